"""A song taken apart and put together again comes near itself, nearer than what is merely added or drawn at random."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from umx_ext import levels
from umx_ext.errors import AudioError
from umx_ext.mixing.anchors import balanced, expanded, random_equaliser, random_mix, raw_take
from umx_ext.mixing.effects import ParametricEq
from umx_ext.stems import Stems

RATE = 22050
SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "round_trip.py"
Take = Callable[[Stems, np.random.Generator], Stems]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("round_trip", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(script, data) -> dict[str, Any]:
    song = data / "songs" / "lets_go_fishin.ogg"
    return {row.mix: row for row in script.round_trip(song, start_s=30, duration_s=7, takes=3)}


def law_lands_near(row: Any, others: list[Any]) -> None:
    """Balance, spectrum and dynamics all nearer than in every calibration row."""
    for figure in ("off_lu", "loudness_db", "spectral_db", "dynamics_db"):
        assert getattr(row, figure) < min(getattr(other, figure) for other in others), figure


def test_with_the_balance_measured_in_the_song_its_mix_lands_near_the_song(rows):
    near = rows["studio, song's balance"]
    law_lands_near(near, [rows["unprocessed sum"], rows["random mix"]])
    assert near.off_lu < 0.1


@pytest.mark.parametrize("liar", ["random mix", "unprocessed sum"])
def test_the_law_catches_a_mix_that_does_not(rows, liar):
    with pytest.raises(AssertionError):
        law_lands_near(rows[liar], [rows["studio, song's balance"], rows["studio"]])


def test_with_the_presets_own_balance_it_is_off_by_what_songs_differ_by_and_far_from_random(rows):
    preset = rows["studio"]
    law_lands_near(preset, [rows["random mix"]])
    assert preset.off_lu < 2 * 2.7  # twice the standard deviation over the training songs of MUSDB18


# -------------------------------------------------------------------------------------------------------- raw takes


def noise(seconds: float = 4.0, seed: int = 0, channels: int = 2) -> Tensor:
    return 0.05 * torch.randn(channels, round(seconds * RATE), generator=torch.Generator().manual_seed(seed))


def song(channels: int = 2) -> Stems:
    """A voice whose level goes up and down by 12 dB a second, over noise."""
    moments = torch.arange(4 * RATE) / RATE
    swell = 10 ** (0.3 * torch.sin(2 * torch.pi * moments))
    return Stems({"vocals": swell * noise(channels=channels), "accompaniment": noise(seed=1, channels=channels)}, RATE)


def spread_db(waveform: Tensor) -> float:
    """Between the loudest and the quietest tenth of 80 ms."""
    power = waveform[:, : 4 * RATE].reshape(waveform.shape[0], 50, -1).square().mean((0, 2))
    loud = 10 * power.log10()
    return float(loud.quantile(0.9) - loud.quantile(0.1))


def law_the_take_is_raw(take: Take) -> None:
    """Wider dynamics on average, a level that is drawn anew, and the accompaniment as it was."""
    original = song()
    before = {name: waveform.clone() for name, waveform in original.items()}
    raws = [take(original, np.random.default_rng(seed)) for seed in range(5)]
    assert all(torch.equal(raw["accompaniment"], original["accompaniment"]) for raw in raws)
    assert np.mean([spread_db(raw["vocals"]) for raw in raws]) > spread_db(original["vocals"]) + 2
    relative = [levels.integrated_lufs(r["vocals"], RATE) - levels.integrated_lufs(noise(seed=1), RATE) for r in raws]
    assert min(relative) > -12.1 and max(relative) < 6.1 and np.std(relative) > 2
    assert torch.equal(take(original, np.random.default_rng(3))["vocals"], raws[3]["vocals"])
    assert all(torch.equal(original[name], before[name]) for name in original)


def only_levelled(stems: Stems, generator: np.random.Generator) -> Stems:
    backing = stems["accompaniment"]
    vocals = balanced(stems["vocals"], backing, RATE, float(generator.uniform(-12, 6)))
    return Stems({"vocals": vocals, "accompaniment": backing}, RATE)


def always_the_same(stems: Stems, generator: np.random.Generator) -> Stems:
    return raw_take(stems, np.random.default_rng(0))


def scales_everything(stems: Stems, generator: np.random.Generator) -> Stems:
    raw = raw_take(stems, generator)
    return Stems({name: 0.5 * waveform for name, waveform in raw.items()}, RATE)


def test_a_take_is_made_raw():
    law_the_take_is_raw(raw_take)


@pytest.mark.parametrize("liar", [only_levelled, always_the_same, scales_everything])
def test_the_law_of_raw_takes_catches_its_liar(liar):
    with pytest.raises(AssertionError):
        law_the_take_is_raw(liar)


def test_the_random_equaliser_moves_four_octaves_evenly_and_can_be_undone():
    drawn = [random_equaliser(RATE, np.random.default_rng(seed)) for seed in range(500)]
    assert all(len({band.frequency_hz for band in one.bands}) == 4 for one in drawn)
    gains = np.array([band.gain_db for one in drawn for band in one.bands])
    assert np.abs(gains).max() <= 15 and abs(gains.mean()) < 0.6
    assert gains.std() == pytest.approx(15 / 3**0.5, rel=0.05)
    counts = np.unique([band.frequency_hz for one in drawn for band in one.bands], return_counts=True)[1]
    assert len(counts) == 8 and counts.min() > 200 and counts.max() < 300  # 250 of each are expected
    back = ParametricEq(tuple({**vars(band), "gain_db": -band.gain_db} for band in drawn[0].bands))
    x = noise(1.0).double()
    assert (back(drawn[0](x, RATE), RATE) - x).abs().max() < 1e-9
    assert all(band.frequency_hz < 7200 for band in random_equaliser(16000, np.random.default_rng(0)).bands)


def test_what_is_loud_becomes_louder_and_what_is_quiet_stays():
    quiet = noise() * 0.01
    steps = torch.cat([quiet[:, :RATE], 100 * quiet[:, RATE : 2 * RATE]], 1)
    out = expanded(steps, RATE, np.random.default_rng(0))
    assert torch.equal(out[:, :RATE], steps[:, :RATE])
    assert out[:, -RATE // 2 :].norm() > 1.2 * steps[:, -RATE // 2 :].norm()


@pytest.mark.parametrize("channels", [1, 2])
def test_a_random_mix_is_stereo_finite_and_another_for_each_seed(channels):
    one, same, other = (random_mix(song(channels), np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert one.shape == (2, 4 * RATE) and bool(one.isfinite().all())
    assert torch.equal(one, same) and not torch.allclose(one, other, atol=1e-3)


def test_silence_and_other_stems_are_refused():
    silent = Stems({"vocals": torch.zeros(2, RATE), "accompaniment": noise(1.0)}, RATE)
    for make in (raw_take, random_mix):
        with pytest.raises(AudioError, match="the vocals are silent"):
            make(silent, np.random.default_rng(0))
        with pytest.raises(AudioError, match="vocals and accompaniment, got drums"):
            make(Stems({"drums": noise(1.0)}, RATE), np.random.default_rng(0))
