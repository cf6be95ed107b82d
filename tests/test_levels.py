"""Loudness against the standards' own signals and tables, pyloudnorm, ffmpeg's ebur128 and slow twins; levels against
closed forms. Each law has its liar: a meter that is wrong in one thing, which the law must reject."""

from __future__ import annotations

import math
import re
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import reference_levels as reference
from tests.peers import import_peer
from umx_ext import levels
from umx_ext.errors import AudioError, UmxError, UsageError

RATES = [8000, 11025, 16000, 22050, 32000, 44100, 48000, 88200, 96000, 192000]


def tone(*parts: tuple[float, float], rate: int = 48000, hz: float = 1000.0, channels: int = 2) -> Tensor:
    """Sines on end, each (dBFS of its peak, seconds), the same in all channels; the phase runs through."""
    amplitudes = torch.cat([torch.full((round(s * rate),), 10 ** (db / 20), dtype=torch.float64) for db, s in parts])
    moments = torch.arange(len(amplitudes), dtype=torch.float64) / rate
    return (amplitudes * torch.sin(2 * math.pi * hz * moments)).float().repeat(channels, 1)


def noise(seconds: float, rate: int, channels: int = 2, seed: int = 0) -> Tensor:
    """Noise whose level wanders over 50 dB, and is nothing for a while."""
    generator = np.random.default_rng(seed)
    samples = round(seconds * rate)
    levels_db = np.interp(np.arange(samples), np.linspace(0, samples, 12), generator.uniform(-60, -10, 12))
    wave = generator.standard_normal((channels, samples)) * 10 ** (levels_db / 20)
    wave[:, samples // 3 : samples // 2] = 0
    return torch.from_numpy(wave).float()


# Reference signals: EBU Tech 3341 (minimum requirements test signals 1, 3, 4, 5) and 3342 (1 to 4).

LOUDNESS = [
    (((-23, 20),), -23.0),
    (((-36, 10), (-23, 60), (-36, 10)), -23.0),
    (((-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)), -23.0),
    (((-26, 20), (-20, 20.1), (-26, 20)), -23.0),
]
RANGE = [
    (((-20, 20), (-30, 20)), 10.0),
    (((-20, 20), (-15, 20)), 5.0),
    (((-40, 20), (-20, 20)), 20.0),
    (((-50, 20), (-35, 20), (-20, 20), (-35, 20), (-50, 20)), 15.0),
]


@pytest.mark.parametrize("rate", [44100, 48000])
@pytest.mark.parametrize("parts, expected", LOUDNESS)
def test_ebu_3341_signals_have_their_loudness(parts, expected, rate):
    assert levels.integrated_lufs(tone(*parts, rate=rate), rate) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("parts, expected", RANGE)
def test_ebu_3342_signals_have_their_range(parts, expected):
    measured = levels.loudness_range_lu(tone(*parts), 48000)
    assert measured == pytest.approx(expected, abs=0.1)  # the standard allows 1 LU, and the tail takes some of it:
    padded = levels.loudness_range_lu(tone(*parts, rate=8000), 8000, pad_tail=True)
    assert padded == pytest.approx(expected, abs=1.0)


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_of_minus_23_dbfs_has_minus_23_lufs_at_every_rate(rate):
    assert levels.integrated_lufs(tone((-23, 20), rate=rate), rate) == pytest.approx(-23.0, abs=0.1)


def test_full_scale_sines_of_997_hz_read_as_bs_1770_says():
    one = tone((0, 5), hz=997, channels=1)
    assert levels.integrated_lufs(one, 48000) == pytest.approx(-3.01, abs=0.005)
    assert levels.integrated_lufs(levels.as_stereo(one), 48000) == pytest.approx(0.0, abs=0.005)


# The filters.


def test_k_weighting_at_48_khz_is_the_table_of_bs_1770():
    shelf, high_pass = levels.k_weighting(48000)
    table = [1.53512485958697, -2.69169618940638, 1.19839281085285, 1, -1.69065929318241, 0.73248077421585]
    assert np.allclose(shelf, table, rtol=0, atol=1e-8)
    assert np.allclose(high_pass, [1, -2, 1, 1, -1.99004745483398, 0.99007225036621], rtol=0, atol=1e-8)


@pytest.mark.parametrize("rate", RATES)
def test_k_weighting_equals_scipys_bilinear_transform_of_the_analogue_filter(rate):
    from scipy.signal import sosfilt

    impulse = np.zeros(4000)
    impulse[0] = 1
    ours = sosfilt(levels.k_weighting(rate), impulse)
    assert np.abs(ours - reference.k_weighted(impulse, rate)).max() < 1e-9


# Laws, over functions that a liar can stand in for.


def law_gates(integrated) -> None:
    """Neither the -72 dBFS ends nor those 13 dB below the rest pull the whole down."""
    assert integrated(tone(*LOUDNESS[2][0], rate=16000), 16000) == pytest.approx(-23.0, abs=0.1)


def law_channels_add(integrated) -> None:
    one = tone((-20, 2), channels=1)
    assert integrated(levels.as_stereo(one), 48000) - integrated(one, 48000) == pytest.approx(3.0103, abs=1e-4)


def law_bass_counts_less(integrated) -> None:
    """K-weighting: 30 Hz is 10 dB below 1 kHz, and 4 kHz 3.3 dB above."""
    bass, middle, treble = (integrated(tone((-20, 4), hz=hz), 48000) for hz in (30, 1000, 4000))
    assert -11 < bass - middle < -9 and 3 < treble - middle < 4


def law_gain_shifts(integrated) -> None:
    """Above the gates, 6 dB of gain are 6 LU."""
    sound = 0.1 * torch.randn(2, 64000, generator=torch.Generator().manual_seed(0))
    assert integrated(sound * 10 ** (-6 / 20), 16000) - integrated(sound, 16000) == pytest.approx(-6.0, abs=1e-4)


def law_input_is_untouched(measure) -> None:
    """On loud input, of both types: scaling in place shows only there, and casts hide it."""
    for sound in (noise(4, 16000) * 1000, noise(4, 16000).double() * 1000):
        before = sound.clone()
        measure(sound, 16000)
        assert torch.equal(sound, before)


def law_silence_has_no_level(measure) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measure(torch.zeros(2, 64000), 16000) == -math.inf


def law_range_ignores_deep_pauses(loudness_range) -> None:
    """Passages 25 LU below the rest are pauses, not quiet playing."""
    assert loudness_range(tone((-20, 30), (-55, 12), (-20, 30), rate=16000), 16000) < 6


def law_range_ignores_outliers(loudness_range) -> None:
    """A shot of 1 s in a minute widens the distance of extremes to 15 LU, and the range hardly."""
    assert loudness_range(tone((-30, 30), (-10, 1), (-30, 60), rate=16000), 16000) < 1


def law_finds_peaks_between_samples(true_peak) -> None:
    """EBU Tech 3341, signal 16: a quarter of the rate at 45 degrees, whose samples stop 3.01 dB below its peak."""
    phase = torch.arange(48000, dtype=torch.float64) * math.pi / 2 + math.pi / 4
    sound = (0.5 * torch.sin(phase) * torch.hann_window(48000, dtype=torch.float64) ** 0.1).float()[None]
    assert -6.02 - 0.1 < true_peak(sound, 48000) < -6.02 + 0.1


def law_searches_below_the_highest_sample(true_peak) -> None:
    """The highest sample belongs to a bass tone; the highest point to a quiet-looking one in another place."""
    sound = torch.cat([0.6 * tone((0, 0.5), hz=50), torch.zeros(2, 1000)], 1)
    moments = torch.arange(480, dtype=torch.float64)
    burst = 0.8 * torch.sin(moments * math.pi / 2 + math.pi / 4) * torch.hann_window(480, dtype=torch.float64)
    sound[1, 100:200] = 0
    sound[1, -700:-220] = burst.float()
    assert sound.abs().max() == pytest.approx(0.6, abs=1e-3)
    assert true_peak(sound, 48000) == pytest.approx(20 * math.log10(0.8), abs=0.1)


def integrated_ungated(waveform: Tensor, rate: int) -> float:
    return float(10 * torch.log10((10 ** (levels.momentary_lufs(waveform, rate) / 10)).mean()))


def integrated_of_mono(waveform: Tensor, rate: int) -> float:
    return levels.integrated_lufs(waveform.mean(0, keepdim=True), rate)


def integrated_without_weighting(waveform: Tensor, rate: int) -> float:
    return -0.691 + levels.rms_db(waveform) + 10 * math.log10(waveform.shape[0])


def integrated_after_normalising(waveform: Tensor, rate: int) -> float:
    return levels.integrated_lufs(waveform / waveform.abs().max(), rate)


def level_in_place(waveform: Tensor, rate: int) -> float:
    return levels.rms_db(waveform.div_(waveform.abs().max().clamp_min(1)))


def level_with_a_floor(waveform: Tensor, rate: int) -> float:
    return 20 * math.log10(float(waveform.square().mean().sqrt()) + 1e-10)


def range_without_gate(waveform: Tensor, rate: int) -> float:
    low, high = np.percentile(levels.short_term_lufs(waveform, rate).numpy(), (10, 95))
    return high - low


def range_of_extremes(waveform: Tensor, rate: int) -> float:
    loud = levels.short_term_lufs(waveform, rate)
    return float(loud.max() - loud.min())


def peak_of_samples(waveform: Tensor, rate: int) -> float:
    return levels.peak_db(waveform)


def peak_near_the_highest_sample(waveform: Tensor, rate: int) -> float:
    at = int(waveform.abs().amax(0).argmax())
    return levels.true_peak_db(waveform[:, max(0, at - 500) : at + 500], rate)


LIARS = [
    (law_gates, levels.integrated_lufs, integrated_ungated),
    (law_channels_add, levels.integrated_lufs, integrated_of_mono),
    (law_bass_counts_less, levels.integrated_lufs, integrated_without_weighting),
    (law_gain_shifts, levels.integrated_lufs, integrated_after_normalising),
    (law_range_ignores_deep_pauses, levels.loudness_range_lu, range_without_gate),
    (law_range_ignores_outliers, levels.loudness_range_lu, range_of_extremes),
    (law_finds_peaks_between_samples, levels.true_peak_db, peak_of_samples),
    (law_searches_below_the_highest_sample, levels.true_peak_db, peak_near_the_highest_sample),
]
MEASURES = [
    levels.integrated_lufs,
    levels.true_peak_db,
    levels.active_level_db,
    lambda waveform, rate: levels.rms_db(waveform),
    lambda waveform, rate: levels.mean_abs_db(waveform),
    lambda waveform, rate: levels.peak_db(waveform),
    lambda waveform, rate: levels.momentary_lufs(waveform, rate).max().item(),
    lambda waveform, rate: levels.measure(waveform, rate).short_term_max_lufs,
]


@pytest.mark.parametrize("law, truth, liar", LIARS)
def test_meters_obey_their_laws_and_each_law_catches_its_liar(law, truth, liar):
    law(truth)
    with pytest.raises(AssertionError):
        law(liar)


@pytest.mark.parametrize("measure", [*MEASURES, levels.loudness_range_lu, levels.active_frames])
def test_the_callers_tensor_is_untouched(measure):
    law_input_is_untouched(measure)


@pytest.mark.parametrize("measure", MEASURES)
def test_silence_has_no_level(measure):
    law_silence_has_no_level(measure)


@pytest.mark.parametrize(
    "law, liar", [(law_input_is_untouched, level_in_place), (law_silence_has_no_level, level_with_a_floor)]
)
def test_the_laws_of_all_measures_catch_their_liars(law, liar):
    with pytest.raises(AssertionError):
        law(liar)


# Slow twins.


@pytest.mark.parametrize("rate, channels", [(8000, 1), (11025, 2), (16000, 3), (44100, 2)])
def test_every_measure_equals_its_slow_twin(rate, channels):
    sound = noise(13.37, rate, channels, seed=rate)
    planar = sound.numpy().astype(float)
    assert levels.integrated_lufs(sound, rate) == pytest.approx(reference.integrated_lufs(planar, rate), abs=1e-9)
    assert levels.loudness_range_lu(sound, rate) == pytest.approx(reference.loudness_range_lu(planar, rate), abs=1e-9)
    for window_s, hop_s in ((0.4, 0.2), (3.0, 0.1), (0.05, 0.07)):
        ours = levels.frame_lufs(sound, rate, window_s, hop_s).numpy()
        twins = np.array([reference.lufs(power) for power in reference.frame_powers(planar, rate, window_s, hop_s)])
        assert ours.dtype == np.float64 and ours.shape == twins.shape
        heard = twins > -120  # below, the roundings of a filter that has heard -10 dBFS
        assert heard.mean() > 0.5 and np.abs(ours[heard] - twins[heard]).max() < 1e-6
    if rate % 20 == 0:
        assert levels.active_frames(sound, rate).tolist() == reference.active_frames(planar, rate)


def test_measure_says_what_the_single_functions_say():
    sound = noise(20, 22050)
    whole = levels.measure(sound, 22050)
    assert whole.integrated_lufs == pytest.approx(levels.integrated_lufs(sound, 22050), abs=1e-12)
    assert whole.loudness_range_lu == pytest.approx(levels.loudness_range_lu(sound, 22050), abs=1e-12)
    assert whole.momentary_max_lufs == pytest.approx(levels.momentary_lufs(sound, 22050).max().item(), abs=1e-12)
    assert whole.short_term_max_lufs == pytest.approx(levels.short_term_lufs(sound, 22050).max().item(), abs=1e-12)
    assert whole.true_peak_db == levels.true_peak_db(sound, 22050)


def test_half_strided_and_trainable_waveforms_are_measured_too():
    sound = noise(4, 16000)
    expected = levels.integrated_lufs(sound, 16000)
    assert levels.integrated_lufs(sound.T.contiguous().T, 16000) == expected
    assert levels.integrated_lufs(sound.clone().requires_grad_(), 16000) == expected
    assert levels.integrated_lufs(sound.double(), 16000) == expected
    assert levels.measure(sound.half(), 16000).integrated_lufs == pytest.approx(expected, abs=0.01)
    assert levels.measure(sound.bfloat16(), 16000).integrated_lufs == pytest.approx(expected, abs=0.1)


# Peers, on real audio.


@pytest.fixture(scope="module")
def songs(data) -> dict[str, tuple[Tensor, int]]:
    return {name: (waveform, rate) for name, waveform, rate in reference.real_audio(data)}


def test_real_audio_measures_as_pyloudnorm_says(songs):
    pyloudnorm = import_peer("pyloudnorm")
    for name, (waveform, rate) in songs.items():
        excerpt = waveform[:, : 12 * rate]
        peer = pyloudnorm.Meter(rate, filter_class="DeMan")
        planar = excerpt.numpy().T.astype(float)
        assert levels.integrated_lufs(excerpt, rate) == pytest.approx(peer.integrated_loudness(planar), abs=1e-6), name
        # Its windows of 3 s come every 90 ms: that is why the ranges are not the same to all digits.
        range_lu = levels.loudness_range_lu(excerpt, rate, pad_tail=True)
        assert range_lu == pytest.approx(peer.loudness_range(planar), abs=0.15), name
        padded = torch.nn.functional.pad(excerpt, (0, int(1.5 * rate)))
        ours = levels.frame_lufs(padded, rate, 3.0, 0.09).numpy()
        theirs = np.array(peer.blockwise_loudness)[: len(ours)]
        assert np.abs(ours - theirs)[theirs > -70].max() < 0.01, name


def test_real_audio_measures_as_ffmpeg_says(songs):
    assert len(songs) >= 7
    for waveform, rate in songs.values():
        compare_with_ffmpeg(levels.measure(waveform, rate), reference.ffmpeg_loudness(waveform, rate))


def compare_with_ffmpeg(measured: levels.Loudness, said: dict[str, float]) -> None:
    # Its histogram has steps of 0.01 LU, rounded down, and its percentiles are not interpolated.
    assert 0 <= measured.integrated_lufs - said["integrated_lufs"] < 0.015
    assert measured.loudness_range_lu == pytest.approx(said["loudness_range_lu"], abs=0.1)
    # It resamples to 192 kHz by another filter; EBU Tech 3341 allows a meter +0.2 and -0.4 dB.
    assert measured.true_peak_db == pytest.approx(said["true_peak_db"], abs=0.1)


def test_the_comparison_with_ffmpeg_catches_a_meter_that_is_0_02_lu_off():
    sound = noise(40, 16000)
    said, measured = reference.ffmpeg_loudness(sound, 16000), levels.measure(sound, 16000)
    compare_with_ffmpeg(measured, said)
    for name, wrong in (("integrated_lufs", 0.02), ("loudness_range_lu", 0.25), ("true_peak_db", -0.25)):
        with pytest.raises(AssertionError):
            compare_with_ffmpeg(replace(measured, **{name: getattr(measured, name) + wrong}), said)


@pytest.mark.parametrize("rate, channels, seconds", [(8000, 1, 60), (48000, 2, 5), (44100, 6, 5), (96000, 2, 5)])
def test_noise_measures_as_ffmpeg_says(rate, channels, seconds):
    # The surround channels of WAV's 5.1 weigh 1.41, and its low-frequency channel nothing, in both.
    sound = noise(seconds, rate, channels, seed=channels) * torch.linspace(0.2, 1, channels)[:, None]
    said = reference.ffmpeg_loudness(sound, rate)
    assert 0 <= levels.integrated_lufs(sound, rate) - said["integrated_lufs"] < 0.015
    if seconds >= 60:  # of fewer windows, percentiles that are not interpolated are another number
        assert levels.loudness_range_lu(sound, rate) == pytest.approx(said["loudness_range_lu"], abs=0.1)


# Gates, windows, edges.


def test_what_stays_below_minus_70_lufs_is_gated_away_unless_it_is_shorter_than_a_window():
    assert levels.integrated_lufs(tone((-75, 2)), 48000) == -math.inf
    assert levels.integrated_lufs(tone((-65, 2)), 48000) == pytest.approx(-65, abs=0.05)
    assert levels.integrated_lufs(tone((-75, 0.399)), 48000) == pytest.approx(-75, abs=0.1)


@pytest.mark.parametrize("rate", [8000, 11025, 44100])
def test_there_are_as_many_windows_as_fit_and_they_do_not_drift(rate):
    sound = torch.zeros(1, 60 * rate)
    sound[:, round(59.6 * rate) :] = 0.5 * (-1.0) ** torch.arange(round(0.4 * rate))
    momentary = levels.momentary_lufs(sound, rate)
    assert len(momentary) == 597 and len(levels.momentary_lufs(sound[:, :-1], rate)) == 596
    # A window that ends where the sound starts has heard none of it; the next has heard a quarter.
    assert momentary[592] == -math.inf
    assert momentary[596] - momentary[593] == pytest.approx(10 * math.log10(4), abs=0.01)
    assert len(levels.short_term_lufs(sound, rate)) == 571
    assert levels.short_term_lufs(sound[:, : 2 * rate], rate).shape == (0,)
    assert levels.frame_lufs(sound, rate, 1.0, 7.0).shape == (9,)


def test_one_sample_is_measured():
    click = torch.full((2, 1), 0.5)
    assert math.isfinite(levels.integrated_lufs(click, 44100))
    assert math.isnan(levels.loudness_range_lu(click, 44100))
    assert levels.true_peak_db(click, 44100) == levels.peak_db(click) == pytest.approx(-6.02, abs=0.01)
    assert levels.active_level_db(click, 44100) == pytest.approx(-6.02, abs=0.01)
    assert levels.measure(click, 44100).momentary_max_lufs == -math.inf


@pytest.mark.parametrize("seconds, known", [(2.9, False), (3.0, False), (3.05, False), (3.1, True)])
def test_a_range_takes_two_windows(seconds, known):
    for windows in ("ebu", "active"):
        range_lu = levels.loudness_range_lu(tone((-20, seconds)), 48000, windows=windows)
        assert (range_lu == pytest.approx(0.0, abs=0.01)) if known else math.isnan(range_lu)


def test_a_range_of_nothing_is_not_a_number():
    assert math.isnan(levels.loudness_range_lu(torch.zeros(2, 480000), 48000))
    assert math.isnan(levels.loudness_range_lu(tone((-80, 10)), 48000))
    assert math.isnan(levels.loudness_range_lu(tone((-80, 10)), 48000, windows="active"))


def test_pauses_widen_the_range_of_all_windows_but_not_of_the_active_ones():
    even = tone(*[(-20, 6), (-100, 4)] * 6, rate=8000)
    assert 4 < levels.loudness_range_lu(even, 8000) < 12
    assert levels.loudness_range_lu(even, 8000, windows="active") < 1.0
    steps = tone(*[(-20, 6), (-100, 4), (-30, 6), (-100, 4)] * 3, rate=8000)
    assert levels.loudness_range_lu(steps, 8000, windows="active") == pytest.approx(10, abs=1)


def test_the_tail_widens_the_range_of_what_ends_loud():
    short = tone((-20, 8))
    assert levels.loudness_range_lu(short, 48000) < 0.01 < 1 < levels.loudness_range_lu(short, 48000, pad_tail=True)


def test_surround_channels_weigh_more_and_the_low_frequency_channel_nothing():
    front = levels.integrated_lufs(tone((-20, 2), rate=8000, channels=1), 8000)
    expected = {4: "0011", 5: "00011", 6: "000x11", 7: "000x011", 8: "000x0011"}
    for channels, kinds in expected.items():
        for position, kind in enumerate(kinds):
            sound = torch.zeros(channels, 16000)
            sound[position] = tone((-20, 2), rate=8000, channels=1)[0]
            gain = {"0": 0.0, "1": 10 * math.log10(1.41), "x": -math.inf}[kind]
            assert levels.integrated_lufs(sound, 8000) - front == pytest.approx(gain, abs=1e-6)


def test_silence_after_sound_costs_less_than_sound():
    # The filters' tails decay into denormal numbers and stay there, if they are let.
    rate = 48000
    sound = noise(60, rate) + 1e-3
    faded = sound.clone()
    faded[:, rate:] = 0

    def seconds(waveform: Tensor) -> float:
        taken = []
        for _ in range(3):
            start = time.process_time()
            levels.short_term_lufs(waveform, rate)
            taken.append(time.process_time() - start)
        return min(taken)

    assert seconds(faded) < 0.8 * seconds(sound)


# True peak.


@pytest.mark.parametrize("rate", [44100, 48000, 96000])
@pytest.mark.parametrize("divisor, degrees", [(4, 0), (4, 45), (6, 60), (8, 67.5)])
def test_ebu_3341_true_peak_signals_are_within_its_tolerance(divisor, degrees, rate):
    phase = torch.arange(rate, dtype=torch.float64) * 2 * math.pi / divisor + math.radians(degrees)
    faded = torch.sin(phase) * torch.hann_window(rate, dtype=torch.float64) ** 0.05
    assert -6.02 - 0.4 < levels.true_peak_db((0.5 * faded).float().repeat(2, 1), rate) < -6.02 + 0.2


@pytest.mark.parametrize("rate, factor", [(44100, 4), (96000, 2), (192000, 2)])
def test_true_peak_equals_the_fourier_interpolation_of_band_limited_noise(rate, factor):
    from scipy.signal import firwin, lfilter

    generator = np.random.default_rng(rate)
    for seed in range(5):
        white = generator.standard_normal((2, 20000)) * (0.2 + seed)
        sound = lfilter(firwin(255, 0.8), 1, white) * np.hanning(20000) ** 0.3
        exact = 20 * math.log10(reference.true_peak(sound, factor))
        assert levels.true_peak_db(torch.from_numpy(sound), rate) == pytest.approx(exact, abs=0.005)


def test_true_peak_is_flat_up_to_0_44_of_the_rate():
    for share in (0.01, 0.2, 0.35, 0.44):
        phase = 2 * math.pi * (share + 1e-4 / math.pi) * torch.arange(40000, dtype=torch.float64)
        sound = torch.sin(phase) * torch.hann_window(40000, dtype=torch.float64) ** 0.05
        exact = reference.true_peak(sound.numpy()[None], 4)
        assert levels.true_peak_db(sound[None], 48000) == pytest.approx(20 * math.log10(exact), abs=0.01)


@pytest.mark.parametrize("samples", [1, 47, 48, 49, 96, 200])
def test_a_peak_is_found_wherever_it_is(samples):
    """A pair of equal samples peaks between them, at 2/pi times their sum."""
    for at in range(0, max(1, samples - 1), 7):
        sound = torch.full((2, samples), 1e-3)
        sound[1, at : at + 2] = 0.5
        expected = 20 * math.log10(4 / math.pi * 0.5) if samples > 1 else -6.02
        assert levels.true_peak_db(sound, 44100) == pytest.approx(expected, abs=0.05)


def test_true_peak_is_never_below_the_highest_sample():
    for seed in range(20):
        sound = noise(0.05, 44100, seed=seed)
        assert levels.true_peak_db(sound, 44100) >= levels.peak_db(sound)


# Levels and activity.


def test_a_sine_has_its_closed_form_levels():
    sine = tone((-6, 2), hz=441)
    assert levels.peak_db(sine) == pytest.approx(-6, abs=1e-3)
    assert levels.rms_db(sine) == pytest.approx(-6 - 10 * math.log10(2), abs=1e-3)
    assert levels.mean_abs_db(sine) == pytest.approx(-6 + 20 * math.log10(2 / math.pi), abs=1e-3)


def test_a_level_is_one_number_for_both_channels():
    sound = torch.stack([torch.full((48000,), 0.5), torch.zeros(48000)])
    assert levels.mean_abs_db(sound) == pytest.approx(20 * math.log10(0.25))
    assert levels.rms_db(sound) == pytest.approx(20 * math.log10(0.5) - 10 * math.log10(2))


def test_frames_are_active_above_minus_60_dbfs_and_40_db_below_the_loudest():
    def active(*parts_db: float) -> list[bool]:
        frames = [torch.full((1, 800), 10 ** (db / 20)) for db in parts_db]
        return levels.active_frames(torch.cat(frames, 1), 16000).tolist()

    assert active(-59.9, -60.1, -59.9) == [True, False, True]
    assert active(0, -39.9, -40.1, -100) == [True, True, False, False]
    assert active(-80, -90) == [False, False]
    assert levels.active_frames(torch.zeros(2, 801), 16000).tolist() == [False, False]


def test_the_level_of_what_sounds_does_not_fall_with_pauses():
    sung = tone((-20, 2), rate=16000)
    sparse = torch.cat([torch.zeros(2, 64000), sung, torch.zeros(2, 32000)], 1)
    assert levels.active_fraction(sparse, 16000) == pytest.approx(0.25)
    for measure, level_db in (("mean-abs", levels.mean_abs_db(sung)), ("rms", levels.rms_db(sung))):
        assert levels.active_level_db(sparse, 16000, measure) == pytest.approx(level_db, abs=1e-9)
    assert levels.rms_db(sparse) < levels.rms_db(sung) - 6
    assert levels.active_level_db(torch.full((2, 16000), 1e-4), 16000) == -math.inf


def test_no_sample_at_the_end_is_left_out():
    sound = torch.zeros(1, 16000 + 10)
    sound[:, -10:] = 0.5
    assert levels.active_frames(sound, 16000).tolist() == [False] * 20 + [True]
    assert levels.active_level_db(sound, 16000, "rms") == pytest.approx(-6.02, abs=0.01)


def test_silent_means_below_minus_100_dbfs():
    assert levels.is_silent(torch.full((2, 10), 0.9e-5)) and not levels.is_silent(torch.full((2, 10), 1.1e-5))


def test_as_stereo_doubles_mono_and_leaves_stereo_alone():
    one, two = noise(0.1, 8000, 1), noise(0.1, 8000, 2)
    assert torch.equal(levels.as_stereo(one), torch.cat([one, one])) and levels.as_stereo(two) is two
    with pytest.raises(AudioError, match="1 or 2 channels, got 3"):
        levels.as_stereo(noise(0.1, 8000, 3))


# Bad input.

GOOD = torch.zeros(2, 1000)
BAD = [
    (np.zeros((2, 1000)), 44100, "tensor"),
    (torch.zeros(1000), 44100, "channels, samples"),
    (torch.zeros(1, 2, 1000), 44100, "channels, samples"),
    (torch.zeros(1000, 2), 44100, "1 to 8 channels, got 1000"),
    (torch.zeros(0, 1000), 44100, "1 to 8 channels, got 0"),
    (torch.zeros(2, 0), 44100, "at least one sample"),
    (torch.zeros(2, 1000, dtype=torch.int16), 44100, "floating point"),
    (torch.tensor([[0.0, math.nan, 0.0]]), 44100, "NaN or infinity"),
    (torch.tensor([[0.0, -math.inf, 0.0]]), 44100, "NaN or infinity"),
    (GOOD, 0, "at least 8000, got 0"),
    (GOOD, 7999, "at least 8000"),
    (GOOD, 44100.5, "whole Hz"),
    (GOOD, math.nan, "whole Hz"),
    (GOOD, math.inf, "whole Hz"),
]
FUNCTIONS = [
    levels.integrated_lufs,
    levels.short_term_lufs,
    levels.momentary_lufs,
    levels.loudness_range_lu,
    levels.true_peak_db,
    levels.measure,
    levels.active_frames,
    levels.active_fraction,
    levels.active_level_db,
]


@pytest.mark.parametrize("waveform, rate, message", BAD)
def test_bad_input_is_one_clear_sentence(waveform, rate, message):
    for function in FUNCTIONS:
        with pytest.raises(AudioError, match=re.escape(message)) as caught:
            function(waveform, rate)
        assert isinstance(caught.value, ValueError) and "\n" not in str(caught.value)


@pytest.mark.parametrize("function", [levels.rms_db, levels.peak_db, levels.mean_abs_db, levels.is_silent])
def test_levels_refuse_what_is_not_a_number(function):
    with pytest.raises(AudioError, match="NaN"):
        function(torch.tensor([[0.0, math.nan]]))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: levels.loudness_range_lu(GOOD, 44100, windows="all"), "'ebu' or 'active', got 'all'"),
        (lambda: levels.active_level_db(GOOD, 44100, "lufs"), "'mean-abs' or 'rms', got 'lufs'"),
        (lambda: levels.frame_lufs(GOOD, 44100, 0.0, 0.1), "window of at least one sample, got 0.0 s"),
        (lambda: levels.frame_lufs(GOOD, 44100, 0.4, -1.0), "hop of at least one sample, got -1.0 s"),
        (lambda: levels.frame_lufs(GOOD, 44100, math.nan, 0.1), "window of at least one sample, got nan s"),
    ],
)
def test_senseless_choices_are_refused(call, message):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        call()
    assert isinstance(caught.value, UmxError)
