"""The search for a compressor: against takes that are rendered and measured, and where it has nothing to do."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from umx_ext import audio, levels
from umx_ext.mixing.compression import Take, compress, loudest
from umx_ext.mixing.effects import Compressor, gain_reduction_db
from umx_ext.mixing.settings import PRESETS

POSTER, STUDIO = PRESETS["poster"], PRESETS["studio"]
RATE = 16000


def noise(levels_db: list[tuple[float, float]], rate: int = RATE, seed: int = 0) -> Tensor:
    """White noise with these ``(seconds, dBFS)`` one after the other; the same in both channels."""
    gains = torch.cat([torch.full((round(seconds * rate),), 10 ** (db / 20)) for seconds, db in levels_db])
    return (gains * torch.randn(len(gains), generator=torch.Generator().manual_seed(seed)) / 4).repeat(2, 1)


def wide() -> Tensor:
    """A take of 100 s with a loudness range of 25 LU: mostly 25 dB down, loud often enough to hold the gate there."""
    return noise([(6, -10), (44, -35), (6, -10), (44, -35)])


@pytest.fixture(scope="module")
def takes(data) -> list[tuple[Tensor, int]]:
    """Dry voices of 30 s and more: the clips of a song on end, their peak at -1 dBFS."""
    found = []
    for song in ("geniusturtle_8", "leon_5"):
        folders = sorted((data / "mir1k" / "train").glob(f"{song}_*"))
        parts = [audio.read(folder / "vocals.opus") for folder in folders]
        voice = torch.cat([part for part, _ in parts], 1)
        found.append((voice * 10 ** ((-1 - levels.peak_db(voice)) / 20), parts[0][1]))
    return found


@pytest.mark.parametrize("domain", ["ebu", "active"])
def test_blocks_have_the_loudness_range_of_the_samples(takes, domain):
    for voice, rate in [*takes, (noise([(3, 0), (2, -80), (4, -10), (3, -30), (8, -3)], 44100), 44100)]:
        expected = levels.loudness_range_lu(voice, rate, windows=domain)
        assert Take.of(voice, rate).loudness_range_lu(domain) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("domain", ["ebu", "active"])
def test_compressing_blocks_is_compressing_samples(takes, domain):
    for voice, rate in takes:
        assert voice.shape[1] > 30 * rate
        take = Take.of(voice, rate)
        for compressor in (Compressor(-20, 2), Compressor(-30, 4), Compressor(-45, 8), Compressor(-25, 6, 20, 100, 0)):
            expected = levels.loudness_range_lu(compressor(voice, rate), rate, windows=domain)
            assert take.compressed(compressor).loudness_range_lu(domain) == pytest.approx(expected, abs=0.1)


def test_a_take_of_25_lu_is_brought_to_the_target():
    take = wide()
    assert levels.loudness_range_lu(take, RATE) == pytest.approx(25, abs=0.3)
    compressor, report = compress(take, RATE, POSTER)
    assert report.converged and not report.bypassed
    assert levels.loudness_range_lu(compressor(take, RATE), RATE) == pytest.approx(16.36, abs=0.5)
    assert report.lra_after_lu == pytest.approx(16.36, abs=0.5)
    assert compressor.ratio == 2  # the gentlest that can


def test_a_voice_is_brought_to_the_target_and_keeps_its_loudness(takes):
    acted = 0
    for voice, rate in takes:
        for settings in (replace(STUDIO, lra_target_lu=5.0, compress=True), replace(POSTER, lra_target_lu=6.0)):
            compressor, report = compress(voice, rate, settings)
            if report.bypassed:
                continue
            acted += 1
            out = compressor(voice, rate)
            measured = levels.loudness_range_lu(out, rate, windows=settings.lra_domain)
            assert report.lra_after_lu == pytest.approx(measured, abs=0.01)
            assert report.converged == (abs(report.lra_searched_lu - settings.lra_target_lu) <= 0.5)
            assert not report.converged or abs(measured - settings.lra_target_lu) <= 0.6
            assert levels.integrated_lufs(out, rate) == pytest.approx(levels.integrated_lufs(voice, rate), abs=0.05)
            assert (compressor.attack_ms, compressor.release_ms, compressor.knee_db) == (7.5, 400, 6)
    assert acted >= 2


def test_the_nearest_is_returned_when_no_compressor_reaches_the_target():
    take = wide()
    settings = replace(POSTER, ratios=(1.1, 1.2), lra_target_lu=5.0)
    compressor, report = compress(take, RATE, settings)
    assert report.converged is False and compressor.ratio == 1.2
    tried = [Compressor(threshold, ratio) for threshold in (-40, -20) for ratio in (1.1, 1.2)]
    misses = [abs(levels.loudness_range_lu(one(take, RATE), RATE) - 5) for one in tried]
    assert abs(report.lra_after_lu - 5) <= min(misses) + 0.1


def test_the_singing_is_not_turned_down_further_than_allowed():
    """Measured on the samples: the compressor's own gain, where the take is active."""
    take = wide()

    def on_average_db(most_db: float) -> float:
        compressor, report = compress(take, RATE, replace(STUDIO, lra_target_lu=1.0, singing_reduction_db=most_db))
        frames = gain_reduction_db(compressor, take, RATE).view(-1, RATE // 20).mean(1)
        found = float(frames[levels.active_frames(take, RATE)].mean())
        assert abs(report.singing_reduction_db) == pytest.approx(abs(found), abs=0.3)
        return abs(found)

    assert on_average_db(100.0) > 8  # unless it is forbidden
    assert 1 < on_average_db(4.0) < 4.3


def test_a_range_within_the_target_is_left_alone():
    for take in (noise([(30, -20)]), noise([(20, -20), (20, -30)])):
        compressor, report = compress(take, RATE, POSTER)
        assert compressor is None and report.bypassed and "target" in report.reason
        assert report.lra_after_lu == report.lra_before_lu < 11


def test_silence_and_short_takes_are_left_alone():
    short = noise([(1, 0), (1, -20)])
    for take in (torch.zeros(2, 40 * RATE), short, short[:, :1]):
        compressor, report = compress(take, RATE, POSTER)
        assert compressor is None and math.isnan(report.lra_before_lu)
    compressor, report = compress(wide()[:, : 19 * RATE], RATE, replace(STUDIO, lra_target_lu=1.0))
    assert compressor is None and "20 s" in report.reason


def test_of_a_long_take_the_loudest_stretch_is_searched():
    loud = noise([(4, -10), (26, -30)], seed=1)
    take = torch.cat([noise([(30, -50)]), loud, noise([(10, -50)])], 1)
    assert torch.equal(take[:, loudest(take, RATE, 30)], loud)
    assert take[:, loudest(take, RATE, 500)].shape == take.shape
    compressor, report = compress(take, RATE, replace(POSTER, lra_target_lu=12.0, search_s=30.0))
    assert compressor is not None and report.searched_s == 30


def test_a_lower_threshold_can_widen_the_range():
    """Why there is a grid: breaths 24 dB down are gated away at first, and lifted over the gate later."""
    take = Take.of(noise([(8, -10), (4, -33), (8, -10), (4, -33), (8, -12), (4, -36)] * 2), RATE)
    ranges = [take.compressed(Compressor(threshold, 3)).loudness_range_lu("ebu") for threshold in range(0, -40, -3)]
    assert max(np.diff(ranges)) > 0.5
