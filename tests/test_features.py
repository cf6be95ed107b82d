"""Objective features of a mix: closed forms, librosa and pyloudnorm, and a slow twin of the toolkit's formulas."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import reference_features
from umx_ext import audio, levels
from umx_ext.errors import AudioError, UsageError
from umx_ext.mixing import descriptors, features
from umx_ext.mixing.features import DISCLAIMER, MODES, FeatureReport, compare, panning_spectrum

RATE = 44100
Measure = Callable[[Tensor], Tensor]


def noise(seconds: float = 4.0, seed: int = 0, rate: int = RATE) -> Tensor:
    """Two channels that share a part, at about -20 dBFS."""
    generator = torch.Generator().manual_seed(seed)
    common, left, right = torch.randn(3, round(seconds * rate), generator=generator) * 0.1
    return torch.stack([common + 0.5 * left, 0.8 * common + 0.3 * right])


def sine(hz: float, amplitude: float = 0.5, seconds: float = 2.0, rate: int = RATE) -> Tensor:
    t = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    return (amplitude * torch.sin(2 * math.pi * hz * t)).float().repeat(2, 1)


def mean_of(mix: Tensor, group: str, member: str, rate: int = RATE) -> float:
    return float(np.nanmean(features.features(mix, rate)[group][member].numpy()))


def errors(report: FeatureReport) -> dict[str, dict[str, float]]:
    return {
        name: {member.name: member.error for member in group.members.values()} for name, group in report.groups.items()
    }


@pytest.fixture(scope="module")
def song(data) -> Tensor:
    waveform, rate = audio.read(data / "songs" / "lets_go_fishin.ogg", start_s=30, duration_s=10)
    assert rate == RATE
    return waveform


# ------------------------------------------------------------------------------------------- what a distance must obey


@pytest.mark.parametrize("mode", MODES)
def test_a_mix_is_at_no_distance_from_itself(song, mode):
    report = compare(song, song, RATE, mode)
    assert all(error == 0 for group in errors(report).values() for error in group.values())
    assert report.mean_mape == 0


def gain_law(mode: str, mix: Tensor) -> None:
    found = errors(compare(2 * mix, mix, RATE, mode))
    assert found["loudness"]["lufs"] == pytest.approx(20 * math.log10(2), abs=1e-6)
    assert found["loudness"]["peak"] == pytest.approx(20 * math.log10(2), abs=1e-6)
    for group in ("spectral", "panning", "dynamics"):
        assert all(error < 1e-6 for error in found[group].values()), group


def test_twice_the_amplitude_is_6_02_lu_and_nothing_else(song):
    gain_law("strict", song * 0.4)


def test_the_gain_law_catches_percentages_of_db(song):
    with pytest.raises(AssertionError):
        gain_law("compat", song * 0.4)


def test_in_compat_the_same_step_costs_more_the_nearer_the_peaks_are_to_full_scale():
    quiet, loud = (
        errors(compare(mix * 0.9, mix, RATE, "compat"))["loudness"]["peak"]
        for mix in (noise() * 0.1, noise() * 0.99 / noise().abs().max())
    )
    assert loud > 5 * quiet


def swap_law(spectrum: Measure, mix: Tensor) -> None:
    there, back = spectrum(mix), spectrum(mix.flip(0))
    assert torch.equal(there, -back) and there.abs().max() > 0.1
    found = errors(compare(mix.flip(0), mix, RATE))["panning"]
    assert all(error < 1e-6 for error in found.values())


def test_swapping_left_and_right_flips_the_sign_of_the_panning_spectrum_and_keeps_its_rms(song):
    swap_law(lambda mix: panning_spectrum(mix, RATE), song)


def test_the_swap_law_catches_a_spectrum_without_sign(song):
    with pytest.raises(AssertionError):
        swap_law(lambda mix: panning_spectrum(mix, RATE).abs(), song)


def test_a_low_pass_lowers_centroid_and_rolloff_and_narrows_the_band(song):
    from scipy.signal import butter, sosfilt

    dull = torch.from_numpy(sosfilt(butter(4, 4000, fs=RATE, output="sos"), song.numpy()).astype(np.float32))
    report = compare(dull, song, RATE).groups["spectral"].members
    for name in ("centroid", "rolloff", "bandwidth"):
        assert report[name].mix < 0.8 * report[name].reference, name
    assert report["rolloff"].mix < 4000
    assert report["flatness"].mix < report["flatness"].reference


def test_hard_compression_lowers_crest_and_raises_level(song):
    squashed = torch.tanh(20 * song / song.abs().max())
    report = compare(squashed, song, RATE).groups["dynamics"].members
    assert report["crest"].mix < report["crest"].reference - 3
    assert report["rms"].mix > report["rms"].reference + 3


def test_a_copy_panned_to_one_side_is_far_away_in_panning_and_near_in_spectrum_and_dynamics(song):
    report = compare(song * torch.tensor([[1.0], [0.1]]), song, RATE)
    assert report.groups["panning"].mean_mape > 0.5
    assert report.groups["spectral"].mean_mape < 0.01
    assert max(report.groups["dynamics"].members[name].error for name in ("spread", "crest")) < 0.1
    assert report.groups["dynamics"].members["rms"].error < 3.02  # the half of the power that went, at most


@pytest.mark.parametrize("mode", MODES)
def test_the_callers_tensors_stay_as_they_are_also_loud(mode):
    mix, reference = 50 * noise(), 80 * noise(seed=1)
    before = mix.clone(), reference.clone()
    compare(mix, reference, RATE, mode)
    features.features(mix, RATE, mode=mode)
    assert torch.equal(mix, before[0]) and torch.equal(reference, before[1])


# -------------------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("hz", [250.0, 1000.0, 9000.0])
def test_the_centroid_of_a_sine_is_its_frequency(hz):
    # The window leaks to all of the spectrum, and most of that lies above: a little of upward pull.
    assert mean_of(sine(hz), "spectral", "centroid") == pytest.approx(hz, rel=0.03)
    assert mean_of(sine(hz), "spectral", "rolloff") == pytest.approx(hz, abs=2 * RATE / 4096)


def test_white_noise_has_the_centroid_bandwidth_rolloff_and_flatness_of_a_uniform_spectrum():
    generator = torch.Generator().manual_seed(3)
    white = 0.1 * torch.randn(2, 8 * RATE, generator=generator)
    assert mean_of(white, "spectral", "centroid") == pytest.approx(RATE / 4, rel=0.005)
    assert mean_of(white, "spectral", "bandwidth") == pytest.approx(RATE / 2 / math.sqrt(12), rel=0.005)
    assert mean_of(white, "spectral", "rolloff") == pytest.approx(0.85 * RATE / 2, rel=0.005)
    # Powers of Gaussian noise are exponential: geometric over arithmetic mean is exp(-gamma).
    assert mean_of(white, "spectral", "flatness") == pytest.approx(10 * math.log10(math.exp(-np.euler_gamma)), abs=0.05)


def test_a_sine_has_a_crest_of_3_01_db_and_a_square_wave_neither_crest_nor_spread():
    square = torch.where(torch.arange(2 * RATE) % 100 < 50, 0.3, -0.3).repeat(2, 1)
    assert mean_of(sine(441), "dynamics", "crest") == pytest.approx(10 * math.log10(2), abs=0.01)
    assert mean_of(square, "dynamics", "crest") == pytest.approx(0, abs=1e-5)
    assert mean_of(square, "dynamics", "spread") == pytest.approx(0, abs=1e-5)


def test_the_spread_of_a_sine_is_the_mean_of_its_db_about_its_rms():
    phase = (np.arange(1_000_000) + 0.5) / 1_000_000 * math.pi
    expected = np.abs(20 * np.log10(np.sqrt(2) * np.sin(phase))).mean()
    assert mean_of(sine(441.3), "dynamics", "spread") == pytest.approx(expected, abs=0.01)


def test_peak_and_loudness_of_a_sine_are_those_of_the_standard():
    tone = sine(1000, amplitude=10 ** (-23 / 20), seconds=4)
    found = features.features(tone, RATE)["loudness"]
    assert float(found["peak"].max()) == pytest.approx(-23, abs=0.01)
    assert float(found["lufs"][3:].mean()) == pytest.approx(-23, abs=0.05)
    assert torch.allclose(found["lufs"], levels.frame_lufs(tone, RATE, 0.4, 0.2))


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.9, 1.0])
def test_panning_by_a_gain_of_one_channel_gives_its_closed_form(ratio):
    mono = noise()[:1]
    spectrum = panning_spectrum(torch.cat([mono, ratio * mono]), RATE)
    expected = -((1 - ratio) ** 2) / (1 + ratio**2)
    assert torch.allclose(spectrum, torch.full_like(spectrum, expected), atol=2e-4)
    assert mean_of(torch.cat([mono, ratio * mono]), "panning", "mid") == pytest.approx(-expected, abs=2e-4)


def test_each_band_of_the_panning_hears_its_own_frequencies_only():
    sides = {"low": 100.0, "mid": 1000.0, "high": 8000.0}
    for band, hz in sides.items():
        tone = sine(hz) * torch.tensor([[1.0], [0.0]]) + 1e-3 * noise(2.0)[:1]
        found = {name: mean_of(tone, "panning", name) for name in sides}
        assert max(found, key=lambda name: found[name]) == band


@pytest.mark.parametrize("rate", [8000, 16000, 48000, 96000])
def test_features_work_at_every_rate(rate):
    mix = noise(3.0, rate=rate)
    report = compare(mix * torch.tensor([[0.5], [1.0]]), mix, rate)
    assert all(math.isfinite(error) for group in errors(report).values() for error in group.values())
    assert report.groups["spectral"].members["centroid"].mix == pytest.approx(rate / 4, rel=0.03)


# --------------------------------------------------------------------------------------------------------------- peers


def assert_same(found: dict[str, dict[str, float]], expected: dict[str, dict[str, float]], tolerance: float) -> None:
    assert {group: set(members) for group, members in found.items()} == {
        group: set(members) for group, members in expected.items()
    }
    for group, members in expected.items():
        for name, value in members.items():
            assert found[group][name] == pytest.approx(value, abs=tolerance, rel=tolerance), (group, name)


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    """Ten seconds of noise, and duller ones, wider, quieter, with a pause of digital silence."""
    reference = noise(10.0)
    mix = 0.5 * noise(10.0, seed=1) + 0.3 * (reference + reference.roll(1, 1)).flip(0)
    mix[:, 200_000:250_000] = 0
    return mix, reference


@pytest.fixture(scope="module")
def twin(pair) -> dict[str, dict[str, float]]:
    return reference_features.compat(pair[0].numpy(), pair[1].numpy(), RATE)


def test_compat_equals_a_slow_twin_of_the_toolkit(pair, twin):
    assert_same(errors(compare(*pair, RATE, "compat")), twin, 1e-6)


def test_strict_is_not_compat(pair, twin):
    found = errors(compare(*pair, RATE, "strict"))
    with pytest.raises(AssertionError):
        assert_same(found, {**twin, "spectral": {k: twin["spectral"][k] for k in found["spectral"]}}, 1e-2)


def test_compat_spectra_equal_librosas(song):
    librosa = pytest.importorskip("librosa")
    found = features.features(song, RATE, mode="compat")["spectral"]
    normal = song.numpy() * (10 ** (-1 / 20) / np.float64(song.abs().max()))
    window = np.sqrt(np.hanning(4097)[:-1])
    for channel in range(2):
        spectrum = np.abs(librosa.stft(normal[channel], n_fft=4096, hop_length=1024, window=window, center=False))
        spectrum = spectrum.astype(np.float32)
        centroid = librosa.feature.spectral_centroid(S=spectrum, sr=RATE)
        contrast = librosa.feature.spectral_contrast(S=spectrum, sr=RATE, fmin=250.0, n_bands=4, quantile=0.02)
        expected = {
            "centroid": centroid[0] + 1,
            "bandwidth": librosa.feature.spectral_bandwidth(S=spectrum, sr=RATE, centroid=centroid)[0] + 1,
            "contrast_low": contrast[0],
            "contrast_mid": contrast[1:4].mean(0),
            "contrast_high": contrast[-1],
            "rolloff": librosa.feature.spectral_rolloff(S=spectrum, sr=RATE, roll_percent=0.85)[0] + 1,
            "flatness_ratio": librosa.feature.spectral_flatness(S=spectrum)[0],
        }
        for name, values in expected.items():
            assert np.allclose(found[name][channel], values, rtol=1e-4, atol=1e-5), name


def test_compat_loudness_equals_pyloudnorms(song):
    pyloudnorm = pytest.importorskip("pyloudnorm")
    found = features.features(song[:, : 5 * RATE], RATE, mode="compat")["loudness"]["lufs"].numpy()
    meter = pyloudnorm.Meter(RATE, block_size=0.4)
    frames = song[:, : 5 * RATE].unfold(1, 17640, 8820).double().permute(1, 2, 0).numpy()
    assert np.allclose(found, [meter.integrated_loudness(frame) for frame in frames], atol=1e-6, rtol=0)


def test_the_trim_equals_librosas(song):
    librosa = pytest.importorskip("librosa")
    fade = torch.cat([torch.zeros(2, 30_011), song * torch.linspace(0, 1, song.shape[1]) ** 6, torch.zeros(2, 5000)], 1)
    _, expected = librosa.effects.trim(fade.numpy(), top_db=45, frame_length=4096, hop_length=1024)
    assert expected[0] > 35_000
    assert descriptors.audible_span(fade.numpy()) == tuple(expected)
    quarter = fade[:, : fade.shape[1] // 4 * 3 + 77]
    _, expected = librosa.effects.trim(quarter.numpy(), top_db=45, frame_length=4096, hop_length=1024)
    assert descriptors.audible_span(quarter.numpy()) == tuple(expected)


# The rows of the notebook 05_evaluate of automix-toolkit for its Mix-Wave-U-Net and its differentiable mixing console,
# rock phrase 066 of ENST-Drums: centroid, bandwidth, roll-off, flatness, contrasts, and the mean it prints.
PUBLISHED = [
    (0.0777, 0.0207, 0.0568, 0.216, 0.0340, 0.0212, 0.0204, 0.0638),
    (0.162, 0.0370, 0.116, 0.333, 0.0534, 0.0148, 0.0488, 0.109),
]


@pytest.mark.parametrize("row", PUBLISHED)
def test_the_published_spectral_mean_is_that_of_seven_members(row):
    names = ("centroid", "bandwidth", "rolloff", "flatness_ratio", "contrast_low", "contrast_mid", "contrast_high")
    members = {**dict(zip(names, row[:-1], strict=True)), "flatness": 9.9}
    five, seven = features._spectral_means(members)
    assert seven == pytest.approx(row[-1], rel=0.005)
    assert five == pytest.approx((sum(row[:3]) + 9.9 + sum(row[4:7]) / 3) / 5)


# ---------------------------------------------------------------------------------- silence, lengths, mono, bad input


def test_mono_and_its_double_are_the_same_mix_without_width():
    mono = noise()[:1]
    for mode in MODES:
        report = compare(mono, mono.repeat(2, 1), RATE, mode)
        assert all(error == 0 for group in errors(report).values() for error in group.values())
        assert all(member.mix == member.reference == 0 for member in report.groups["panning"].members.values())
        assert report.notes[0] == "The mix is mono: taken as the same sound in both channels."


def test_a_wide_mix_of_a_mono_reference_has_a_finite_distance_in_strict_and_none_in_compat():
    wide, mono = noise(), noise()[:1]
    strict = compare(wide, mono, RATE)
    total = strict.groups["panning"].members["total"]
    assert total.error == pytest.approx(total.mix / 0.01, rel=0.05)
    compat = compare(wide, mono, RATE, "compat")
    assert math.isnan(compat.groups["panning"].mean_mape) and math.isfinite(compat.mean_mape)
    assert compat.notes[-1] == "No frame has what it takes to compare total, low, mid, high."
    assert compat.to_dict()["groups"]["panning"]["mean_mape"] is None
    assert [line[-1] for line in compat.table().splitlines() if line.startswith("panning")] == ["-"] * 4


def test_silence_around_the_reference_is_left_out(song):
    late = torch.cat([torch.zeros(2, 20 * 1024), song, torch.zeros(2, 9999)], 1)
    report = compare(late, late, RATE)
    assert report.start_s == pytest.approx(20 * 1024 / RATE, abs=3 * 1024 / RATE)
    assert report.duration_s == pytest.approx(song.shape[1] / RATE, abs=0.15)


def test_a_pause_of_both_does_not_dilute_a_distance_and_one_of_the_mix_alone_is_a_distance():
    reference, mix = noise(12.0), 0.5 * noise(12.0)
    without = errors(compare(mix, reference, RATE))
    pause = torch.ones(1, 12 * RATE)
    pause[:, 5 * RATE : 8 * RATE] = 0
    shared = errors(compare(mix * pause, reference * pause, RATE))
    alone = errors(compare(mix * pause, reference, RATE))
    # The frames at the edges of the pause hold a part of it.
    assert shared["loudness"]["lufs"] == pytest.approx(without["loudness"]["lufs"], abs=0.05)
    assert alone["loudness"]["lufs"] > without["loudness"]["lufs"] + 5
    for groups in (shared, alone):
        assert all(math.isfinite(error) for group in groups.values() for error in group.values())


def test_a_channel_that_is_silent_has_no_spectrum_no_spread_and_no_crest():
    left = noise() * torch.tensor([[1.0], [0.0]])
    report = compare(left, left[:1].repeat(2, 1), RATE)
    dynamics = report.groups["dynamics"].members
    errors_of_one = [member.error for member in report.groups["spectral"].members.values()]
    assert max(*errors_of_one, dynamics["spread"].error, dynamics["crest"].error) < 1e-9
    assert dynamics["rms"].error == pytest.approx(10 * math.log10(2))


def test_the_dither_of_16_bits_is_no_spectrum():
    generator = torch.Generator().manual_seed(5)
    tone = sine(500, seconds=4)
    dither = (torch.rand(2, 2, tone.shape[1], generator=generator) - 0.5).sum(0) / 32768
    found = errors(compare(tone + dither, tone, RATE))["spectral"]
    assert found["flatness"] < 3 and found["contrast_high"] < 3


def test_the_longer_is_cut_to_the_shorter_and_the_report_says_so(song):
    short = compare(song[:, : 6 * RATE], song, RATE)
    assert errors(short)["loudness"]["lufs"] == 0 and short.duration_s == pytest.approx(6, abs=0.1)
    assert any("ends" in note and "before the reference" in note for note in short.notes)
    long = compare(song, song[:, : 6 * RATE], RATE)
    assert errors(long)["loudness"]["lufs"] == 0 and long.duration_s == pytest.approx(6, abs=0.1)
    assert any("longer than the reference" in note for note in long.notes)


def test_fewer_than_forty_frames_are_one_global_mean():
    reference, mix = noise(0.5), noise(0.5, seed=1)
    ours, theirs = (features.features(x, RATE)["dynamics"]["rms"].numpy() for x in (mix, reference))
    assert len(ours) < 40
    found = errors(compare(mix, reference, RATE))["dynamics"]["rms"]
    assert found == pytest.approx(abs(ours.mean() - theirs.mean()), abs=1e-9)


@pytest.mark.parametrize(
    "mix, rate, sentence",
    [
        (torch.zeros(2, 2 * RATE), RATE, "the mix is silent"),
        (torch.full((2, 2 * RATE), math.nan), RATE, "the mix holds NaN or infinity"),
        (torch.full((1, 2 * RATE), math.inf), RATE, "the mix holds NaN or infinity"),
        (noise().repeat(2, 1), RATE, "1 or 2 channels for the mix, got (4, 176400)"),
        (noise().T, RATE, "1 or 2 channels for the mix, got (176400, 2)"),
        (noise()[0], RATE, "got (176400,)"),
        (noise(0.2), RATE, "the mix has 0.200 s; at least 0.400 s are needed"),
        (noise(), 7999, "has 7999 Hz; features need a whole number from 8000 on"),
        (torch.cat([noise(0.3), torch.zeros(2, RATE)], 1)[:, : RATE // 2].roll(RATE // 4, 1), RATE, None),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_sentence(mix, rate, sentence):
    if sentence is None:
        compare(mix, noise(), rate)
        return
    with pytest.raises(AudioError) as caught:
        compare(mix, noise(), rate)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(AudioError):
        features.features(mix, rate)


def test_files_that_do_not_overlap_are_refused():
    late = torch.cat([torch.zeros(2, 5 * RATE), noise()], 1)
    with pytest.raises(AudioError, match=r"have 0\.00 s of sound in common; at least 0\.40 s"):
        compare(noise(), late, RATE)
    early = torch.cat([noise(), torch.zeros(2, 5 * RATE)], 1)
    with pytest.raises(AudioError, match="silent where the reference sounds"):
        compare(early, late, RATE)


def test_an_unknown_mode_or_table_names_the_known_ones():
    with pytest.raises(UsageError, match="'loose'; known: strict, compat"):
        compare(noise(), noise(), RATE, "loose")
    with pytest.raises(UsageError, match="'html'; known: text, md, csv"):
        compare(noise(), noise(), RATE).table("html")


# -------------------------------------------------------------------------------------------------------------- report


@pytest.mark.parametrize("mode", MODES)
def test_a_report_is_json_and_says_what_a_distance_is_not(pair, mode):
    report = compare(*pair, RATE, mode)
    record = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert record["disclaimer"] == DISCLAIMER and "not a bad mix" in DISCLAIMER
    assert list(record["groups"]) == ["loudness", "spectral", "panning", "dynamics"]
    assert record["groups"]["panning"]["members"]["total"]["error"] == report.groups["panning"].members["total"].error
    assert ("notebook_mape" in record["groups"]["spectral"]) == (mode == "compat")


def test_group_means_are_means_of_members_of_one_unit(pair):
    report = compare(*pair, RATE)
    found = errors(report)
    relative = [found["spectral"][name] for name in ("centroid", "bandwidth", "rolloff")]
    in_db = [error for name, error in found["spectral"].items() if name.startswith(("contrast", "flat"))]
    assert report.groups["spectral"].mean_mape == pytest.approx(np.mean(relative))
    assert report.groups["spectral"].mean_db == pytest.approx(np.mean(in_db))
    assert math.isnan(report.groups["loudness"].mean_mape) and math.isnan(report.groups["panning"].mean_db)
    assert report.mean_db == pytest.approx(
        np.mean([report.groups[name].mean_db for name in ("loudness", "spectral", "dynamics")])
    )
    assert report.mean_mape == pytest.approx(np.mean([report.groups[n].mean_mape for n in ("spectral", "panning")]))


def test_tables_hold_every_member_and_the_disclaimer(pair):
    report = compare(*pair, RATE)
    rows = list(csv.DictReader(io.StringIO(report.table("csv"))))
    named = [(row["group"], row["feature"]) for row in rows if not row["feature"].startswith("mean")]
    assert named == [(group, name) for group, members in descriptors.UNITS.items() for name in members]
    assert float(rows[0]["error"]) == report.groups["loudness"].members["lufs"].error
    markdown = report.table("md").splitlines()
    assert all(line.count("|") == 6 for line in markdown[: len(rows) + 2]) and markdown[-1] == DISCLAIMER
    text = report.table().splitlines()
    assert text[-1] == DISCLAIMER and len({len(line) for line in text[: len(rows) + 1]}) == 1
