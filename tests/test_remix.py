"""The family of remixes: its laws and their liars, the presets' statistics, and the examples drawn from a pack."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests import reference_remix
from umx_ext import levels
from umx_ext.corpora import MUSDB_VALID, find_songs
from umx_ext.errors import AudioError, UsageError
from umx_ext.stems import Stems
from umx_ext.training import gains
from umx_ext.training.gains import loudness_level, peak_scale, whole_level
from umx_ext.training.remix import (
    REMIXES,
    STEMS,
    Epoch,
    LevelRemix,
    Remix,
    Remixer,
    active_level,
    rms_level,
    wsj0_gains_db,
)
from umx_ext.training.tracks import Entry, Pack, pack

ROOT = Path(__file__).parent.parent
RATE = 8000
NOISE_90_DB = 10 ** (-90 / 20)


def stem(seed: int, *, peak: float = 0.5, left: float = 1.0, right: float = 0.5, samples: int = RATE) -> np.ndarray:
    """Coloured noise in two channels of different level: (2, samples)."""
    noise = np.random.default_rng(seed).standard_normal(samples)
    noise = noise + 0.8 * np.roll(noise, 1)
    return np.stack([left * noise, right * noise]).astype(np.float32) * np.float32(peak / np.abs(noise).max())


def stems(peak: float = 0.5) -> dict[str, np.ndarray]:
    return {name: stem(place, peak=peak * (1 - 0.2 * place)) for place, name in enumerate(STEMS)}


def mixed(remix: Remix, sounds: dict[str, np.ndarray], seed: int = 0) -> gains.Mix:
    return remix.mix(sounds, RATE, np.random.default_rng(seed))


# ---------------------------------------------------------------------------------------------------------------- laws


def sources_add_up_to_the_mixture(remix: Remix) -> None:
    for seed in range(5):
        mix = mixed(remix, stems(), seed)
        assert np.abs(sum(mix.sources.values()) - mix.mixture).max() < 1e-6


def the_stereo_image_is_kept(remix: Remix) -> None:
    for seed in range(5):
        for waveform in mixed(remix, stems(), seed).sources.values():
            energy = np.square(waveform, dtype=np.float64).sum(axis=1)
            assert energy[0] == pytest.approx(4 * energy[1], rel=1e-6)


def the_callers_stems_are_untouched(remix: Remix) -> None:
    sounds = stems(peak=8.0)  # loud: an array that is normalised in place is seen on loud input only
    before = {name: waveform.copy() for name, waveform in sounds.items()}
    mixed(remix, sounds)
    assert all(np.array_equal(sounds[name], before[name]) for name in STEMS)


def silence_stays_silence(remix: Remix) -> None:
    for quiet in STEMS:
        mix = mixed(remix, stems() | {quiet: np.zeros((2, RATE), np.float32)})
        assert not mix.sources[quiet].any() and np.isfinite(mix.mixture).all() and mix.mixture.any()
    mix = mixed(remix, {name: np.zeros((2, RATE), np.float32) for name in STEMS})
    assert not mix.mixture.any() and mix.peak_scale == 1


def noise_of_a_codec_is_not_raised(remix: Remix) -> None:
    for quiet in STEMS[1:]:
        hiss = stem(9, peak=NOISE_90_DB)
        mix = mixed(remix, stems() | {quiet: hiss})
        assert np.abs(mix.sources[quiet]).max() <= 1.26 * NOISE_90_DB * max(1.0, mix.peak_scale)


def the_same_generator_gives_the_same_mix(remix: Remix) -> None:
    one, other = mixed(remix, stems(), 3), mixed(remix, stems(), 3)
    assert np.array_equal(one.mixture, other.mixture) and one.gains_db == other.gains_db


def the_peak_rule_holds(remix: Remix) -> None:
    for peak in (0.05, 8.0):
        for seed in range(5):
            mix = mixed(remix, stems(peak), seed)
            mixture = float(np.abs(mix.mixture).max())
            highest = max(mixture, *(float(np.abs(waveform).max()) for waveform in mix.sources.values()))
            if remix.peak == "always":
                assert highest == pytest.approx(0.9, abs=1e-6)
            elif remix.peak == "limit":
                assert highest <= 0.9 + 1e-6 and (mix.peak_scale == 1 or highest == pytest.approx(0.9, abs=1e-6))
            elif remix.peak == "audiosep":
                assert mixture <= 1 and (mix.peak_scale == 1 or mixture == pytest.approx(0.9, abs=1e-6))
            else:
                assert mix.peak_scale == 1


def stems_that_are_missing_are_not_made_up(remix: Remix) -> None:
    sounds = {"vocals": stem(0), "other": stem(1)}
    mix = mixed(remix, sounds)
    assert mix.sources.keys() == mix.gains_db.keys() == sounds.keys()


LAWS = (
    sources_add_up_to_the_mixture,
    the_stereo_image_is_kept,
    the_callers_stems_are_untouched,
    silence_stays_silence,
    noise_of_a_codec_is_not_raised,
    the_same_generator_gives_the_same_mix,
    the_peak_rule_holds,
    stems_that_are_missing_are_not_made_up,
)


class Liar(LevelRemix):
    """Honest but for what each liar spoils."""

    def __init__(self, peak: str = "always"):
        super().__init__(gains.wsj0_law, peak=peak)


class ClipsItsMixture(Liar):
    def mix(self, sounds, sample_rate, rng):
        mix = super().mix(sounds, sample_rate, rng)
        return dataclasses.replace(mix, mixture=mix.mixture.clip(-0.3, 0.3))


class LevelsEachChannel(Liar):
    """As speechbrain's `rescale` does with stereo."""

    def levelled(self, sounds, sample_rate, rng):
        sounds = {name: sound / np.abs(sound).mean(axis=1, keepdims=True).clip(1e-9) for name, sound in sounds.items()}
        return super().levelled(sounds, sample_rate, rng)


class NormalisesInPlace(Liar):
    def levelled(self, sounds, sample_rate, rng):
        for sound in sounds.values():
            sound /= max(1.0, np.abs(sound).max())
        return super().levelled(sounds, sample_rate, rng)


class DividesByNothing(Liar):
    def levelled(self, sounds, sample_rate, rng):
        with np.errstate(invalid="ignore", divide="ignore"):
            return super().levelled({name: s / np.abs(s).max() for name, s in sounds.items()}, sample_rate, rng)


class RaisesNoise(Liar):
    def levelled(self, sounds, sample_rate, rng):
        return {name: s * (0.1 / max(float(np.abs(s).mean()), 1e-14)) for name, s in sounds.items()}, dict.fromkeys(
            sounds, -20.0
        )


class DrawsElsewhere(Liar):
    def levelled(self, sounds, sample_rate, rng):
        return super().levelled(sounds, sample_rate, np.random.default_rng())


class ForgetsItsRule(Liar):
    def mix(self, sounds, sample_rate, rng):
        mix = super().mix(sounds, sample_rate, rng)
        return dataclasses.replace(mix, mixture=2 * mix.mixture, sources={n: 2 * s for n, s in mix.sources.items()})


class MakesUpStems(Liar):
    def levelled(self, sounds, sample_rate, rng):
        silence = {name: np.zeros_like(next(iter(sounds.values()))) for name in STEMS}
        return super().levelled(silence | dict(sounds), sample_rate, rng)


LIARS = (
    (sources_add_up_to_the_mixture, ClipsItsMixture()),
    (the_stereo_image_is_kept, LevelsEachChannel()),
    (the_callers_stems_are_untouched, NormalisesInPlace()),
    (silence_stays_silence, DividesByNothing()),
    (noise_of_a_codec_is_not_raised, RaisesNoise()),
    (the_same_generator_gives_the_same_mix, DrawsElsewhere()),
    (the_peak_rule_holds, ForgetsItsRule()),
    (stems_that_are_missing_are_not_made_up, MakesUpStems()),
)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", REMIXES)
def test_every_remix_obeys(name, law):
    law(REMIXES[name])


@pytest.mark.parametrize(("law", "liar"), LIARS, ids=lambda one: getattr(one, "__name__", type(one).__name__))
def test_every_law_catches_its_liar(law, liar):
    with pytest.raises((AssertionError, AudioError)):
        law(liar)


def test_no_law_is_without_a_liar():
    assert {law for law, _ in LIARS} == set(LAWS)


# ------------------------------------------------------------------------------------- the presets' gain statistics


def drawn(name: str, count: int = 20_000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([REMIXES[name].law(REMIXES[name].sources, rng) for _ in range(count)])


def deviates(values: np.ndarray, mean: float, spread: float) -> float:
    """How many standard errors the mean is off; the spread must be within 2 %."""
    assert values.std() == pytest.approx(spread, rel=0.02)
    return abs(values.mean() - mean) / (spread / math.sqrt(values.size))


@pytest.mark.parametrize("name", ["wsj0", "wsj0-literal", "wsj0-bus"])
def test_wsj0s_draws_have_its_statistics(name):
    values = drawn(name)
    assert values.shape[1] == (2 if name == "wsj0-bus" else 4)
    assert deviates(values[:, 0], -27.43, 2.57) < 3
    assert deviates(values[:, 1:] - values[:, :1], -2.51, 2.66) < 3


def test_the_backing_is_the_anchor_of_the_bus_and_the_vocals_of_the_rest():
    assert REMIXES["wsj0-bus"].sources == ("accompaniment", "vocals")
    assert all(remix.sources == STEMS for name, remix in REMIXES.items() if name != "wsj0-bus")


def test_musdbs_draws_have_the_statistics_that_the_script_measured():
    measured = json.loads((ROOT / "docs" / "remix_statistics.json").read_text())
    assert measured["songs"] == 80 and measured["measures"][2] == "BS.1770 LU"
    values = drawn("musdb")
    mean, spread = measured["statistics"]["vocals"][2]
    assert deviates(values[:, 0], mean, spread) < 3.5  # the constants are rounded to 0.01 LU
    for place, name in enumerate(STEMS[1:], start=1):
        mean, spread = measured["statistics"][name][2]
        assert gains.MUSDB_RELATIVE_LU[name] == (round(mean, 2), round(spread, 2))
        assert deviates(values[:, place] - values[:, 0], mean, spread) < 3.5
    assert tuple(round(value, 2) for value in measured["statistics"]["vocals"][2]) == gains.MUSDB_VOCALS_LUFS


class ToneSong:
    """Tones of 997 Hz, of which all levels are known: -23 dBFS in both channels are -23 LUFS."""

    def __init__(self, levels_db: dict[str, float]) -> None:
        self.levels_db = levels_db

    def read(self) -> Stems:
        tone = torch.sin(2 * torch.pi * 997 * torch.arange(48000) / 48000).repeat(2, 1)
        return Stems({name: tone * 10 ** (level_db / 20) for name, level_db in self.levels_db.items()}, 48000)


def script(name: str):
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def test_the_script_measures_what_is_known():
    songs = [
        ToneSong({"vocals": -20.0, "drums": -26.0, "bass": -20.0, "other": -30.0}),
        ToneSong({"vocals": -24.0, "drums": -26.0, "bass": -300.0, "other": -30.0}),
        ToneSong({"vocals": -22.0, "drums": -26.0, "bass": -20.0, "other": -30.0}),
    ]
    found = script("measure_remix_statistics").statistics(songs)
    assert [value[:2] for value in found["drums"]] == [pytest.approx((-4.0, 2.0), abs=1e-4)] * 3
    # The silent one is left out.
    assert [value[::2] for value in found["bass"]] == [(pytest.approx(1.0, abs=1e-4), 2)] * 3
    mean_abs_db, rms_db, lufs = (value[0] for value in found["vocals"])
    assert (mean_abs_db, rms_db, lufs) == pytest.approx((-22 - 3.92, -22 - 3.01, -22), abs=0.02)


def test_statistics_are_of_training_songs_alone(data):
    names = {song.name for song in find_songs(data / "musdb18-7", "train")}
    assert len(names) == 80 and not names & MUSDB_VALID


def test_umxs_draws_are_uniform_amplitudes():
    values = drawn("umx")
    amplitudes = 10 ** (values / 20)
    assert 0.25 <= amplitudes.min() < 0.2505 and 1.2495 < amplitudes.max() <= 1.25
    assert amplitudes.mean() == pytest.approx(0.75, abs=0.003)
    assert values.mean() == pytest.approx(-3.25, abs=0.05) and values.std() == pytest.approx(3.80, abs=0.05)


def test_libris_draws_are_uniform_loudness():
    values = drawn("libri")
    assert -33 <= values.min() < -32.99 and -25.01 < values.max() <= -25
    assert deviates(values, -29, 8 / math.sqrt(12)) < 3


@pytest.mark.parametrize(
    ("name", "measure"), [("wsj0", active_level), ("wsj0-literal", whole_level), ("musdb", loudness_level),
                          ("libri", loudness_level)])  # fmt: skip
def test_a_source_gets_the_level_that_was_drawn(name, measure):
    sounds = stems()
    for sound in sounds.values():
        sound[:, RATE // 2 :] = 0  # half of it is a pause
    mix = mixed(REMIXES[name], sounds)
    for stem_, waveform in mix.sources.items():
        level, _ = measure(waveform / np.float32(mix.peak_scale), RATE)
        assert level == pytest.approx(10 ** (mix.gains_db[stem_] / 20), rel=1e-6)


def test_levels_are_means_over_what_sounds():
    sounds = stems()
    sounds["vocals"][:, RATE // 2 :] = 0
    mix = mixed(REMIXES["wsj0"], sounds)
    singing = mix.sources["vocals"][:, : RATE // 2] / mix.peak_scale
    assert np.abs(singing).mean() == pytest.approx(10 ** (mix.gains_db["vocals"] / 20), rel=1e-6)


def test_the_bus_keeps_its_songs_balance():
    sounds = stems()
    mix = mixed(REMIXES["wsj0-bus"], sounds)
    factors = [float(mix.sources[name][0, 7] / sounds[name][0, 7]) for name in STEMS[1:]]
    assert factors == pytest.approx([factors[0]] * 3, rel=1e-6)
    assert len({mix.gains_db[name] for name in STEMS[1:]}) == 1
    backing = sum(mix.sources[name] for name in STEMS[1:])
    apart_db = 20 * math.log10(loudness_level(mix.sources["vocals"], RATE)[0] / loudness_level(backing, RATE)[0])
    assert apart_db == pytest.approx(mix.gains_db["vocals"] - mix.gains_db["drums"], abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_wsj0_literal_is_speechbrains_formula_on_mono(seed):
    sounds = {name: stem(10 * seed + place, left=1, right=1, samples=4000) for place, name in enumerate(STEMS)}
    sounds["vocals"][:, 1000:2500] = 0
    mix = mixed(REMIXES["wsj0-literal"], sounds, seed)
    drawn_db = [mix.gains_db[name] for name in STEMS]
    mixture, sources = reference_remix.wsj0_mix([sounds[name][0] for name in STEMS], drawn_db)
    assert np.abs(mix.mixture[0] - mixture).max() < 1e-6
    assert max(np.abs(mix.sources[name][0] - source).max() for name, source in zip(STEMS, sources, strict=True)) < 1e-6
    # The default levels what sounds, so a vocal with a pause comes out quieter than the formula makes it.
    default = mixed(REMIXES["wsj0"], sounds, seed)
    assert np.abs(default.mixture[0] - mixture).max() > 1e-3


def test_the_first_draw_cancels_in_the_peak_rule():
    relative = np.array([0.0, -2.0, 1.5, -4.0])
    loud, quiet = (
        mixed(LevelRemix(lambda names, rng, first=first: first + relative), stems()) for first in (-27.0, -35.0)
    )
    assert np.abs(loud.mixture - quiet.mixture).max() < 1e-6


def test_the_others_keep_their_levels_beside_an_anchor_that_is_silent():
    sounds = stems() | {"vocals": np.zeros((2, RATE), np.float32)}
    mix = mixed(REMIXES["wsj0"], sounds)
    assert math.isnan(mix.gains_db["vocals"])
    level, _ = active_level(mix.sources["drums"] / np.float32(mix.peak_scale), RATE)
    assert level == pytest.approx(10 ** (mix.gains_db["drums"] / 20), rel=1e-6)


def test_loudness_is_that_of_the_filter_run_through_the_whole(data):
    for rate in (8000, 44100, 48000):
        time_s = np.arange(3 * rate) / rate
        tone = np.stack([0.1 * np.sin(2 * np.pi * 997 * time_s)] * 2).astype(np.float32)
        exact = levels.integrated_lufs(torch.from_numpy(tone), rate)
        assert 20 * math.log10(loudness_level(tone, rate)[0]) == pytest.approx(exact, abs=0.01)
    differences = []
    for song in find_songs(data / "musdb18-7", "train")[:2]:
        for waveform in song.read().values():
            excerpt = waveform[:, : 4 * 44100]
            level, active = loudness_level(excerpt.numpy(), 44100)
            if active:
                differences.append(20 * math.log10(level) - levels.integrated_lufs(excerpt, 44100))
    assert len(differences) >= 6 and np.abs(differences).max() < 0.1


def test_short_and_silent_sounds_have_no_level():
    for measure in (active_level, rms_level, loudness_level):
        assert measure(np.zeros((2, RATE), np.float32), RATE) == (0.0, 0.0)
        assert measure(np.ones((2, 10), np.float32), RATE) == (0.0, 0.0)
    assert loudness_level(stem(0, samples=RATE // 10), RATE)[0] > 0  # shorter than a window: that is the window


def test_rms_is_over_active_frames():
    half = np.full((2, RATE), 0.25, np.float32)
    half[:, RATE // 2 :] = 0
    assert rms_level(half, RATE) == (pytest.approx(0.25), pytest.approx(0.5))


@pytest.mark.parametrize(
    ("rule", "mixture", "source", "expected"),
    [("always", 0.3, 0.2, 3.0), ("always", 0.2, 0.3, 3.0), ("always", 1.8, 0.1, 0.5), ("limit", 0.3, 0.2, 1.0),
     ("limit", 0.4, 1.8, 0.5), ("audiosep", 0.95, 3.0, 1.0), ("audiosep", 1.8, 3.0, 0.5), ("none", 9.0, 9.0, 1.0),
     ("always", 0.0, 0.0, 1.0)])  # fmt: skip
def test_peak_rules(rule, mixture, source, expected):
    assert peak_scale(rule, mixture, source) == pytest.approx(expected)


def test_sensible_sentences_for_what_cannot_be_mixed():
    with pytest.raises(AudioError, match="one shape"):
        REMIXES["wsj0"].mix({"vocals": stem(0), "drums": stem(1)[:, :50]}, RATE, np.random.default_rng(0))
    with pytest.raises(UsageError, match="no stem piano"):
        REMIXES["wsj0"].mix({"piano": stem(0)}, RATE, np.random.default_rng(0))
    with pytest.raises(AudioError, match="NaN"):
        REMIXES["umx"].mix({"vocals": stem(0) * np.float32("nan")}, RATE, np.random.default_rng(0))
    with pytest.raises(UsageError, match="no peak rule 'loud'"):
        LevelRemix(gains.wsj0_law, peak="loud")
    with pytest.raises(UsageError, match="each of vocals, drums, bass, other once"):
        LevelRemix(gains.wsj0_law, sources=("accompaniment", "drums", "vocals"))
    with pytest.raises(UsageError, match="one finite number of dB for each of vocals, drums"):
        mixed(LevelRemix(lambda names, rng: [1.0]), stems())


# ------------------------------------------------------------------------------------------------ drawing from a pack


def make_pack(folder: Path, kinds: tuple[str, ...] = ("musdb18", "mir1k"), songs: int = 3, seconds: float = 3) -> Pack:
    """Songs of noise. Of the first stem of each song, the second half of the samples is silent."""
    rng = np.random.default_rng(0)
    entries, values, offset = [], [], 0
    names = {"musdb18": STEMS, "mir1k": ("vocals", "accompaniment"), "vocals": ("vocals",),
             "accompaniments": ("accompaniment",)}  # fmt: skip
    for kind in kinds:
        for number in range(songs):
            for place, name in enumerate(names[kind]):
                channels = 2 if kind == "musdb18" else 1
                block = rng.integers(-9000, 9000, (int(seconds * RATE), channels))
                block[:, channels - 1] //= channels
                if place == 0:
                    block[len(block) // 2 :] = 0
                entries.append(Entry(f"{kind}{number}", "train", kind, name, 1.0, channels, len(block), offset))
                values.append(block.astype("<i2").ravel())
                offset += block.size
    folder.mkdir(exist_ok=True)
    np.concatenate(values).tofile(folder / "audio.i16")
    index = {"sample_rate": RATE, "data_sha256": "0" * 64, "entries": [vars(entry) for entry in entries]}
    (folder / "index.json").write_text(json.dumps(index))
    return Pack(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Pack:
    return make_pack(tmp_path_factory.mktemp("remix"))


def examples(remixer: Remixer, count: int = 40):
    return [remixer.example(np.random.default_rng([5, number])) for number in range(count)]


def test_draws_are_those_of_the_first_training_run(store):
    remixer = Remixer(store, samples=RATE, mir1k_vocals=0.15)
    for number in range(60):
        mixture, vocals = remixer.draw(np.random.default_rng([0, 1, number]))
        expected = reference_remix.first_draw(store, np.random.default_rng([0, 1, number]), RATE)
        assert np.abs(mixture - expected[0]).max() < 1e-6 and np.abs(vocals - expected[1]).max() < 1e-6


@pytest.mark.parametrize("name", REMIXES)
def test_an_example_says_what_it_is_made_of(store, name):
    remixer = Remixer(store, remix=name, samples=RATE)
    for number, example in enumerate(examples(remixer, 12)):
        assert example.mixture.shape == (2, RATE) and example.sources.shape == (4, 2, RATE)
        assert np.abs(example.sources.sum(axis=0) - example.mixture).max() < 1e-6
        assert example.gains_db.shape == example.starts.shape == (4,) and len(example.songs) == 4
        for song, start, source in zip(example.songs, example.starts, example.sources, strict=True):
            assert (song is None) == (start == -1) and (song is not None or not source.any())
        mixture, vocals = remixer.draw(np.random.default_rng([5, number]))
        assert np.array_equal(mixture, example.mixture) and np.array_equal(vocals, example.vocals)


def test_an_example_holds_the_samples_it_names(store):
    songs = store.songs("train", "musdb18")
    for example in examples(Remixer(store, remix="umx", samples=RATE, mir1k_whole=0, mir1k_vocals=0, no_vocals=0)):
        for place, name in enumerate(STEMS):
            entry = songs[(example.songs[place], 1.0)][name]
            original = store.read(entry, int(example.starts[place]), RATE)
            factor = 10 ** (example.gains_db[place] / 20)
            closest = min(np.abs(example.sources[place] - factor * sides).max() for sides in (original, original[::-1]))
            assert closest < 1e-6


def test_accompaniment_beside_vocals_spreads_less_than_one_source(store):
    remixer = Remixer(store, samples=RATE // 8, own_song=0, own_accompaniment=0, mir1k_whole=0, no_vocals=0)
    apart_db = []
    for number in range(2000):  # the silent half of the vocals is passed over
        mixture, vocals = remixer.draw(np.random.default_rng([7, number]))
        if np.abs(vocals).max() > 0.01:
            level, _ = rms_level(vocals, RATE)
            apart_db.append(20 * math.log10(rms_level(mixture - vocals, RATE)[0] / level))
    assert len(apart_db) > 800 and 1.2 < np.std(apart_db) < 2.1


def load(example_of: Epoch, workers: int) -> list[np.ndarray]:
    loader = DataLoader(example_of, batch_size=4, num_workers=workers, collate_fn=list)
    return [example.mixture for batch in loader for example in batch]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_any_number_of_workers_gives_the_same_examples(store):
    epoch = Epoch(Remixer(store, samples=RATE, samples_per_track=4), seed=1, epoch=2)
    assert len(epoch) == 12
    alone = load(epoch, 0)
    for workers in (2, 4):
        assert all(np.array_equal(one, other) for one, other in zip(alone, load(epoch, workers), strict=True))
    for other in (dataclasses.replace(epoch, epoch=3), dataclasses.replace(epoch, seed=2)):
        assert not np.array_equal(alone[0], other[0].mixture)
    with pytest.raises(IndexError):
        epoch[12]


def test_other_rates_and_mono_become_stereo_at_the_packs_rate(tmp_path):
    import soundfile

    rng = np.random.default_rng(0)
    for song, channels in (("held", 2), ("mono", 1), ("stereo", 2)):
        folder = tmp_path / "songs" / song
        folder.mkdir(parents=True)
        for name in STEMS:
            soundfile.write(folder / f"{name}.wav", 0.1 * rng.standard_normal((48000, channels)), 48000)
    pack([tmp_path / "songs"], tmp_path / "pack")
    store = Pack(tmp_path / "pack")
    assert store.sample_rate == 44100
    held_out = {entry.track for entry in store if entry.split == "valid"}
    seen = set()
    for example in examples(Remixer(store, samples=22050, own_song=1.0, no_vocals=0), 10):
        assert example.mixture.shape == (2, 22050) and example.sources.shape == (4, 2, 22050)
        seen.add((example.songs[0], np.array_equal(example.vocals[0], example.vocals[1])))
    assert held_out == {"held"} and seen == {("mono", True), ("stereo", False)}


def test_songs_shorter_than_an_example_end_in_silence(store):
    (example,) = examples(Remixer(store, samples=4 * RATE, own_song=1.0, mir1k_whole=0, no_vocals=0), 1)
    assert example.mixture.shape == (2, 4 * RATE)
    assert not example.mixture[:, 3 * RATE :].any() and (example.starts == 0).all()


def test_p_remix_leaves_examples_whole_and_the_index_says_of_which_song(store):
    remixer = Remixer(store, samples=RATE, p_remix=0.0, samples_per_track=5)
    for index in range(15):
        example = remixer.example(np.random.default_rng([1, index]), index)
        assert example.songs == (f"musdb18{index // 5}",) * 4 and len(set(example.starts.tolist())) == 1
    shares = Counter(
        len(set(zip(example.songs, example.starts.tolist(), strict=True)))
        for example in examples(Remixer(store, samples=RATE, p_remix=0.4, own_song=0, own_accompaniment=0,
                                        mir1k_whole=0), 200)
    )  # fmt: skip
    assert 0.5 < shares[1] / 200 < 0.7


def test_the_bus_is_one_excerpt_of_one_song(store):
    for example in examples(Remixer(store, remix="wsj0-bus", samples=RATE, own_song=0, mir1k_whole=0)):
        assert len(set(example.songs[1:])) == len(set(example.starts[1:].tolist())) == 1


def silent_share(store: Pack, **options) -> float:
    remixer = Remixer(store, samples=RATE, own_song=0, own_accompaniment=0, mir1k_whole=0, mir1k_vocals=0, no_vocals=0,
                      **options)  # fmt: skip
    return float(np.mean([not example.vocals.any() for example in examples(remixer, 200)]))


def test_silent_vocals_are_kept_as_often_as_asked(store):
    # An excerpt of 1 s out of 3 s, of which the second half is silent: a quarter of the starts hold silence alone.
    kept = silent_share(store, max_tries=4)
    assert 0.17 < kept < 0.34
    assert silent_share(store) == pytest.approx(kept, abs=0.1)
    assert silent_share(store, max_tries=4, p_keep_silent_target=0.0) < 0.02
    assert 0.3 * kept < silent_share(store, max_tries=4, p_keep_silent_target=0.5) < 0.75 * kept


def test_other_stems_move_until_they_sound(tmp_path):
    store = make_pack(tmp_path / "pack")
    for entry in list(store.entries):
        if entry.stem == "drums":  # silent but for the first third
            first = entry.offset + entry.samples // 3 * entry.channels
            store._values = np.array(store._values)
            store._values[first : entry.offset + entry.samples * entry.channels] = 0
    options = {"samples": RATE // 2, "own_song": 0, "own_accompaniment": 0, "mir1k_whole": 0, "no_vocals": 0}
    shares = [
        np.mean([not example.sources[1].any() for example in examples(Remixer(store, **options, max_tries=tries), 150)])
        for tries in (0, 4)
    ]
    assert shares[0] > 0.45 and shares[1] < 0.2


@pytest.mark.parametrize("kinds", [("musdb18",), ("mir1k",), ("mir1k", "vocals", "accompaniments")])
def test_packs_of_any_kind_can_be_drawn_from(tmp_path, kinds):
    store = make_pack(tmp_path / "pack", kinds)
    drawn_ = examples(Remixer(store, samples=RATE), 60)
    assert {song[:-1] for example in drawn_ for song in example.songs if song} == set(kinds)
    assert all(np.isfinite(example.mixture).all() for example in drawn_)


def test_singers_take_their_share_of_the_vocals(tmp_path):
    store = make_pack(tmp_path / "pack", ("musdb18", "mir1k", "vocals"))
    options = {"samples": RATE, "own_song": 0, "mir1k_whole": 0}
    for share in (0.0, 0.5, 1.0):
        found = [example.songs[0] for example in examples(Remixer(store, mir1k_vocals=share, **options), 200)]
        singers = np.mean([not song.startswith("musdb18") for song in found])
        assert singers == pytest.approx(share, abs=0.12)
        assert share == 0 or {song[:-1] for song in found} >= {"mir1k", "vocals"}


def test_a_loose_accompaniment_takes_the_place_of_the_backing(tmp_path):
    store = make_pack(tmp_path / "pack", ("musdb18", "accompaniments"))
    for example in examples(Remixer(store, samples=RATE, loose_accompaniments=1.0, no_vocals=0)):
        assert example.songs[1:3] == (None, None) and example.songs[3].startswith("accompaniments")
        assert example.songs[0].startswith("musdb18")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"remix": "loud"}, "no remix named 'loud'; known: wsj0"), ({"own_song": 1.5}, "own_song to be a share"),
     ({"augment": {"echo": 0.5}}, "no augmentation named 'echo'; known: speed"),
     ({"augment": {"eq": 2.0}}, "strength of eq"), ({"max_tries": -1}, "max_tries"),
     ({"p_keep_silent_target": 0.5}, "needs max_tries"), ({"samples": 0}, "samples")])  # fmt: skip
def test_options_that_make_no_sense_are_refused(store, options, sentence):
    with pytest.raises(UsageError, match=sentence):
        Remixer(store, **options)


def test_a_pack_without_songs_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no training song"):
        Remixer(make_pack(tmp_path / "pack", ("vocals",)))


def test_a_remix_can_be_registered_from_outside(store):
    def even(sources, rng):
        return rng.uniform(-30, -20, len(sources))

    REMIXES["even"] = LevelRemix(even, measure=rms_level, peak="limit")
    try:
        for law in LAWS:
            law(REMIXES["even"])
        (by_name,) = examples(Remixer(store, remix="even", samples=RATE), 1)
        (by_value,) = examples(Remixer(store, remix=REMIXES["even"], samples=RATE), 1)
        assert np.array_equal(by_name.mixture, by_value.mixture)
        assert ((by_name.gains_db >= -30) & (by_name.gains_db <= -20) | np.isnan(by_name.gains_db)).all()
    finally:
        del REMIXES["even"]


def test_wsj0_levels_are_clipped_where_the_recipe_clips():
    class Extreme:
        def normal(self, mean, spread, size=None):
            return mean + 20 * spread if size is None else np.full(size, -500.0)

    assert wsj0_gains_db(3, Extreme()).tolist() == [0.0, -45.0, -45.0]
