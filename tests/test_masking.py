"""The rule that makes room between vocal and backing, and the one that mends a take's tone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import reference_vocal
from umx_ext import audio, levels
from umx_ext.mixing import masking
from umx_ext.mixing.effects import Band, ParametricEq
from umx_ext.mixing.masking import band_levels_db, bands, equalise, moves
from umx_ext.mixing.settings import PRESETS, Settings
from umx_ext.mixing.tone import COVARIANCE_DB2, MEAN_DB, bells, colouring, correct, corrections

RATE = 44100
POSTER = PRESETS["poster"]


def octaves(levels_db: list[float], seed: int, seconds: float = 6.0, rate: int = RATE) -> Tensor:
    """Noise of those powers in dB in the nine octaves, flat inside each; `(1, samples)`, scaled to a peak of 0.9."""
    samples = int(seconds * rate)
    generator = np.random.default_rng(seed)
    spectrum = np.fft.rfft(generator.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / rate)
    shape = np.zeros(len(frequency))
    for (low, _, high), level in zip(bands(rate), levels_db, strict=True):
        inside = (low <= frequency) & (frequency < high)
        shape[inside] = 10 ** (level / 20) / math.sqrt(inside.sum())
    noise = np.fft.irfft(spectrum * shape, samples)
    return torch.from_numpy(0.9 * noise / np.abs(noise).max())[None].float()


# ------------------------------------------------------------------------------------------------------------- the rule


def test_moves_are_those_of_the_rule_written_band_by_band():
    generator = np.random.default_rng(1)
    moved = 0
    for draw in range(400):
        vocal, backing = (10 * generator.standard_normal((2, 9 - draw % 3))).tolist()
        both = bool(draw % 2)
        settings = replace(POSTER, target="both" if both else "vocals")
        expected = reference_vocal.masking_moves(vocal, backing, both)
        found = moves(vocal, backing, settings)
        assert np.abs(np.array(found) - np.array(expected)).max() <= 0.005 + 1e-9
        moved += sum(gain != 0 for gain in found[0] + found[1])
    assert moved > 200


def test_of_equally_large_moves_the_lower_frequencies_are_kept():
    assert masking._largest(np.array([-2.0, 2, 2, -2, 2, 0, 0, 0, 0]), POSTER) == (-2, 2, 2, -2, 0, 0, 0, 0, 0)


# Essential to the backing: 63 to 250 Hz and 4 kHz; to the vocal: 250 Hz to 2 kHz. At equal loudness the vocal's 4 kHz
# is some 6 dB above the backing's.
BACKING = [0.0, 0, 0, -40, -40, -40, -13, -40, -40]
VOCAL = [-40.0, -40, 0, 0, 0, 0, -3, -40, -40]


def test_a_bump_where_the_backing_lives_gives_exactly_one_cut_of_half_the_excess():
    backing, vocal = octaves(BACKING, 1), octaves([*VOCAL[:6], -16, *VOCAL[7:]], 2)
    assert not any(equalise(vocal, backing, RATE, POSTER).vocal_gain_db)
    bumped = ParametricEq((Band(4000, 12.0, math.sqrt(2)),))(vocal, RATE)
    bumped = 0.9 * bumped / bumped.abs().max()
    found = equalise(bumped, backing, RATE, POSTER)
    excess = found.vocal_db[6] - found.backing_db[6]
    assert found.vocal_rank[6] > 4 >= found.backing_rank[6] and 1 < excess < 12
    assert found.vocal_gain_db == (0, 0, 0, 0, 0, 0, pytest.approx(-min(6, excess / 2), abs=0.011), 0, 0)
    assert found.filters("vocals")[0].bands == (Band(4000, found.vocal_gain_db[6], math.sqrt(2)),)


def test_identical_tracks_are_left_alone():
    sound = octaves([0, -3, -6, 2, 1, -4, -8, -12, -20], 3)
    found = equalise(sound, sound.clone(), RATE, POSTER)
    assert found.reason and not any(found.vocal_gain_db) and found.filters("vocals") == ()


def test_with_both_as_target_the_backing_is_cut_where_both_live():
    vocal = octaves([-20, -20, -20, 0, 0, 0, 0, -20, -20], 1)
    backing = octaves([-20, -20, 0, 8, 0, 0, -20, -20, -20], 2)
    assert not any(equalise(vocal, backing, RATE, POSTER).backing_gain_db)
    found = equalise(vocal, backing, RATE, replace(POSTER, target="both"))
    over = found.backing_db[3] - found.vocal_db[3]
    assert over > 3
    assert found.backing_gain_db[3] == pytest.approx(-min(3, over / 4), abs=0.011)
    assert [band.frequency_hz for band in found.filters("accompaniment")[0].bands] == [500]


def gains_do_not_matter(decide) -> None:
    """Law: a common or separate gain of the inputs changes no move."""
    vocal, backing = octaves(VOCAL, 4), octaves(BACKING, 5)
    expected = decide(vocal, backing)
    assert any(expected)
    for of_vocal, of_backing in ((0.3, 0.3), (0.2, 1.0), (1.0, 0.05)):
        found = decide(vocal * of_vocal, backing * of_backing)
        assert np.abs(np.array(found) - np.array(expected)).max() <= 0.011


def test_gains_of_the_inputs_do_not_matter():
    gains_do_not_matter(lambda vocal, backing: equalise(vocal, backing, RATE, POSTER).vocal_gain_db)


def test_the_law_of_gains_catches_a_rule_that_compares_levels_as_they_are():
    def liar(vocal: Tensor, backing: Tensor):
        found = [band_levels_db(x, RATE, levels.active_frames(vocal, RATE)) for x in (vocal, backing)]
        return moves(*found, POSTER)[0]

    with pytest.raises(AssertionError):
        gains_do_not_matter(liar)


def test_silence_of_either_gives_no_equaliser():
    sound = octaves(VOCAL, 4, 2.0)
    for pair in ((sound, 0 * sound), (0 * sound, sound), (0 * sound, 0 * sound)):
        found = equalise(*pair, RATE, POSTER)
        assert found.reason and found.filters("vocals") == () and found.filters("accompaniment") == ()


def test_only_what_sounds_while_the_vocal_does_counts():
    vocal, backing, intro = (octaves(shape, 4 + at, 4.0) for at, shape in enumerate((VOCAL, BACKING, VOCAL[::-1])))
    there = equalise(vocal, backing, RATE, POSTER, backing_lufs=-20.0)
    silence = torch.zeros(1, 4 * RATE)
    later = equalise(torch.cat([silence, vocal], 1), torch.cat([intro, backing], 1), RATE, POSTER, backing_lufs=-20.0)
    for place, level in enumerate(BACKING):
        if level > -30:  # the intro rings into the first window, where the others are quiet
            assert there.backing_db[place] == pytest.approx(later.backing_db[place], abs=0.3)
    whole = torch.cat([intro, backing], 1)
    always = band_levels_db(whole, RATE, torch.ones(160, dtype=torch.bool)) + 20
    assert always[5] > later.backing_db[5] + 10


# ------------------------------------------------------------------------------------------------------------ the bands


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 32000, 44100, 48000, 96000])
def test_every_band_has_a_filter_that_the_rate_can_carry(rate):
    found = bands(rate)
    ParametricEq(tuple(Band(centre, 1.0) for _, centre, _ in found))(torch.ones(1, 10), rate)
    assert all(low < centre < high <= 0.45 * rate + 1e-6 for low, centre, high in found)
    assert [centre for _, centre, _ in found][:6] == [63, 125, 250, 500, 1000, 2000][: len(found)]
    assert len(found) == {8000: 7, 16000: 8, 22050: 8}.get(rate, 9)


@pytest.mark.parametrize("rate", [16000, 44100, 96000])
def test_a_tones_power_is_found_in_its_octave_at_every_rate(rate):
    time = torch.arange(2 * rate) / rate
    for place, hz in enumerate([63, 125, 250, 500, 1000, 2000, 4000]):
        sound = (0.5 * torch.sin(2 * math.pi * hz * time))[None].repeat(2, 1)
        found = band_levels_db(sound, rate, levels.active_frames(sound, rate))
        assert found[place] == pytest.approx(20 * math.log10(0.5) - 3.01, abs=0.3)
        assert max(np.delete(found, place)) < -25


# ------------------------------------------------------------------------------------------------------------- the tone


def test_the_colouring_is_what_it_was_on_average_of_all_takes_that_measure_alike():
    """Takes are drawn from the model; the mean of their true gains, as a regression finds it, is what is estimated."""
    generator, colour_db = np.random.default_rng(2), 5.8
    covariance, shapes, draws = np.array(COVARIANCE_DB2), bells(RATE), 200_000
    gains = colour_db * generator.standard_normal((draws, 9))
    vocals = generator.multivariate_normal(np.zeros(9), covariance, draws)
    beside = vocals + gains @ shapes.T + generator.standard_normal((draws, 9))  # measured within 1 dB
    beside -= beside.mean(axis=1, keepdims=True)  # the common level says nothing
    weights, *_ = np.linalg.lstsq(beside, gains, rcond=None)
    for seen in beside[:20]:
        assert np.abs(colouring(seen, covariance, shapes, colour_db) - seen @ weights).max() < 0.25
    assert np.abs(beside[:20] @ weights).max() > 5


def test_an_ordinary_tone_stays_as_it_is_and_the_level_does_not_matter():
    coloured = np.array(MEAN_DB) + np.array([0, 0, 0, 0, 0, 12, 0, 0, 0])
    gains = corrections(coloured, RATE, PRESETS["studio"])[1]
    assert min(gains) == gains[5] < -3
    for shift in (0, -20, 15):
        assert not any(corrections(np.array(MEAN_DB) + shift, RATE, PRESETS["studio"])[1])
        assert corrections(coloured + shift, RATE, PRESETS["studio"])[1] == pytest.approx(gains, abs=0.02)


def test_nothing_is_done_about_a_tone_that_is_not_taken_to_be_coloured():
    coloured = np.array(MEAN_DB) + np.array([0, 0, 0, 0, 0, 12, 0, -9, 0])
    assert not any(corrections(coloured, RATE, Settings(tone_colour_db=0))[1])
    most = Settings(most_tone_cut_db=2, most_tone_boost_db=1)
    assert (min(corrections(coloured, RATE, most)[1]), max(corrections(coloured, RATE, most)[1])) == (-2, 1)


def test_octaves_without_voice_and_empty_ones_are_not_lifted():
    low = np.array(MEAN_DB) - np.array([25, 15, 0, 0, 0, 0, 0, 0, 0])
    empty = np.array(MEAN_DB) - np.array([0, 0, 0, 0, 0, 0, 0, 0, 40])
    assert max(corrections(low, RATE, PRESETS["studio"])[1][:2]) <= 0
    assert corrections(empty, RATE, PRESETS["studio"])[1][8] <= 0


@pytest.mark.parametrize(("octave", "off_db"), [(8, -40), (0, -45), (0, 45), (8, -70)])
def test_an_octave_that_stands_out_says_nothing_about_the_others(octave, off_db):
    """Rumble, a low cut, a 16 kHz recording at a higher rate: what is done elsewhere is what would have been done."""
    coloured = np.array(MEAN_DB) + np.array([0, 0, 0, 0, 0, 9, 0, 0, 0])
    ordinary = np.array(corrections(coloured, RATE, PRESETS["studio"])[1])
    coloured[octave] += off_db
    found = np.array(corrections(coloured, RATE, PRESETS["studio"])[1])
    others = np.arange(9) != octave
    assert np.abs(found - ordinary)[others].max() < 1.5
    assert found[octave] == (-PRESETS["studio"].most_tone_cut_db if off_db > 0 else 0)


def test_a_dry_take_is_corrected_alike_at_another_sample_rate(data):
    from umx_ext.resampling import resample

    clip = sorted((data / "mir1k" / "train").iterdir())[3]
    vocals, rate = audio.read(clip / "vocals.opus")
    vocals = vocals * 10 ** (-(1 + levels.peak_db(vocals)) / 20)
    low = np.array(correct(vocals, rate, PRESETS["studio"]).gain_db)
    high = np.array(correct(resample(vocals, rate, RATE), RATE, PRESETS["studio"]).gain_db)
    assert np.abs(low[:7] - high[:7]).max() < 1.5


def test_at_16_khz_the_octave_that_is_cut_off_is_not_compared():
    level = np.array(MEAN_DB[:8])
    level[7] -= 10
    assert not any(corrections(level, 16000, PRESETS["studio"])[1])
    assert any(corrections(np.append(level, MEAN_DB[8]), RATE, PRESETS["studio"])[1])


def test_a_take_recorded_through_a_bad_equaliser_comes_nearer_to_what_it_was(data):
    from umx_ext.corpora import find_songs

    closer = []
    for song in find_songs(data / "musdb18-7", "valid")[:4]:
        vocals = song.read()["vocals"]
        if levels.active_fraction(vocals, RATE) < 0.3:
            continue
        bad = ParametricEq((Band(500, -14), Band(4000, 15)))(vocals, RATE)
        found = correct(bad * 10 ** (-(1 + levels.peak_db(bad)) / 20), RATE, PRESETS["studio"])
        mended = bad
        for effect in found.filters():
            mended = effect(mended, RATE)
        active = levels.active_frames(vocals, RATE)
        true, before, after = (
            band_levels_db(x, RATE, active) - levels.integrated_lufs(x, RATE) for x in (vocals, bad, mended)
        )
        closer.append(np.abs(after - true).mean() / np.abs(before - true).mean())
    assert len(closer) >= 3 and np.mean(closer) < 0.7


def test_the_constants_are_those_that_were_measured():
    written = json.loads((Path(__file__).parents[1] / "docs" / "mixstats.json").read_text())["tone"]
    assert written == {"mean_db": list(MEAN_DB), "covariance_db2": [list(row) for row in COVARIANCE_DB2]}
    assert np.linalg.eigvalsh(np.array(COVARIANCE_DB2)).min() > 0
