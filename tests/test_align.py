"""Where a take belongs in its song: against shifts that are known because they were made."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import signal
from torch import Tensor

from umx_ext import audio
from umx_ext.errors import AudioError, UsageError
from umx_ext.mixing.align import SURE, offset_s

RATE = 16000


def sung(rate: int = RATE, seconds: float = 12.0, seed: int = 0) -> Tensor:
    """Harmonics with vibrato in syllables of random length and pitch, between pauses: (1, samples)."""
    generator = np.random.default_rng(seed)
    samples = round(seconds * rate)
    wave, at = np.zeros(samples), 0
    while at < samples:
        length = round(rate * generator.uniform(0.15, 0.7))
        if generator.random() > 0.25:
            time_s = np.arange(min(length, samples - at)) / rate
            pitch_hz = 110 * 2 ** (generator.integers(0, 20) / 12)
            phase = 2 * np.pi * np.cumsum(pitch_hz * (1 + 0.01 * np.sin(2 * np.pi * 5.5 * time_s))) / rate
            tone = sum(np.sin(k * phase) / k ** generator.uniform(0.6, 1.6) for k in range(1, 12))
            wave[at : at + len(time_s)] += tone * np.sin(np.pi * np.arange(len(time_s)) / max(len(time_s), 1)) ** 0.3
        at += length
    return torch.from_numpy(0.1 * wave / np.abs(wave).max())[None].float()


def moved(waveform: Tensor, seconds: float, rate: int) -> Tensor:
    """What a recorder hears that is switched on so many seconds late (below 0: early)."""
    shift = round(seconds * rate)
    return waveform[:, shift:] if shift >= 0 else torch.nn.functional.pad(waveform, (-shift, 0))


# Of one performance the answer is a matter of samples: the recording has lost this much of its beginning, so it has to
# start that much later.
@pytest.mark.parametrize("seconds", [-9.5, -1.234, -0.02, 0.0, 0.0137, 2.5])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_the_same_performance_is_found_to_the_sample(seconds, rate):
    song = sung(rate)
    take = 0.05 * moved(song, seconds, rate) + 1e-4 * torch.randn(1, 1, generator=torch.Generator().manual_seed(1))
    found, sure = offset_s(take, song, rate)
    assert round(found * rate) == round(seconds * rate)
    assert sure > SURE


def test_the_sign_is_that_of_a_delay_of_the_take():
    song = sung()
    found, _ = offset_s(song[:, 3 * RATE :], song, RATE)  # the recorder was switched on 3 s late
    assert found == pytest.approx(3.0)


def test_level_polarity_room_and_colour_do_not_matter():
    song = sung()
    room = torch.from_numpy(np.random.default_rng(3).standard_normal(RATE // 2) * np.exp(-np.arange(RATE // 2) / 1500))
    wet = torch.from_numpy(signal.fftconvolve(song[0].numpy(), room.numpy()))[None, : song.shape[1]].float()
    dull = torch.from_numpy(signal.sosfilt(signal.butter(2, 1500, fs=RATE, output="sos"), wet.numpy())).float()
    take = -1e-3 * moved(song + 0.01 * dull, 1.5, RATE)
    assert offset_s(take, song, RATE)[0] == pytest.approx(1.5, abs=0.01)


def test_different_songs_are_not_sure_of_anything():
    sure = [offset_s(sung(seed=seed), sung(seed=seed + 100), RATE)[1] for seed in range(8)]
    assert max(sure) < SURE


def test_silence_says_nothing():
    assert offset_s(torch.zeros(1, RATE), sung(), RATE) == (0.0, 0.0)
    assert offset_s(sung(), torch.zeros(2, RATE), RATE) == (0.0, 0.0)


def test_no_shift_beyond_the_largest_is_answered():
    song = sung()
    for late_s in (4.0, 2.01):  # the second is within reach of the fine step
        assert abs(offset_s(song[:, round(late_s * RATE) :], song, RATE, most_s=2.0)[0]) <= 2.0


def test_very_short_takes_do_no_harm():
    for samples in (1, 100, 4000):
        found, sure = offset_s(sung()[:, 5000 : 5000 + samples], sung(), RATE)
        assert math.isfinite(found) and 0 <= sure <= 1


def test_the_callers_waveforms_are_left_as_they_are():
    take, song = 20 * sung(), 20 * sung()
    before = take.clone(), song.clone()
    offset_s(take, song, RATE)
    assert torch.equal(take, before[0]) and torch.equal(song, before[1])


def test_what_is_no_waveform_is_refused():
    broken = sung()
    broken[0, 5] = math.nan
    for take, rate in ((broken, RATE), (torch.zeros(5), RATE), (sung(), 0), (torch.zeros(1, 0), RATE)):
        with pytest.raises(AudioError):
            offset_s(take, sung(), rate)
    with pytest.raises(UsageError, match="most_s"):
        offset_s(sung(), sung(), RATE, most_s=0)


# ------------------------------------------------------------------------------------------------ people singing


def again(take: np.ndarray, rate: int, seed: int) -> np.ndarray:
    """Another performance, as far as one can be made of a recording: the pitch a whole tone up, so that no partial is
    where it was, the timing wandering by 40 ms to and fro, and other vowels (a tilt), levels and noise."""
    librosa = pytest.importorskip("librosa")
    generator = np.random.default_rng(seed)
    other = librosa.effects.pitch_shift(take, sr=rate, n_steps=2.0)
    time_s = np.arange(len(other)) / rate
    wander_s = 0.04 * np.sin(2 * np.pi * time_s / generator.uniform(2.0, 4.0) + generator.uniform(0, 6.28))
    other = np.interp(time_s + wander_s, time_s, other)
    other = signal.lfilter([1, -0.7], [1], other) * (1 + 0.5 * np.sin(2 * np.pi * time_s / 1.7))
    return other + 0.01 * np.abs(other).max() * generator.standard_normal(len(other))


def clips(data, folder, count):
    """Real singers with real accompaniments, one clip of each of several songs."""
    found = sorted((data / "mir1k" / folder).iterdir())
    return [found[place] for place in np.linspace(0, len(found) - 1, count).astype(int)]


def test_another_performance_of_the_same_song_is_found(data):
    """Against the vocals with a tenth of the backing left in, as a separation leaves it."""
    right, sure = 0, []
    chosen = clips(data, "train", 8)
    for seed, clip in enumerate(chosen):
        vocals, rate = audio.read(clip / "vocals.opus")
        backing, _ = audio.read(clip / "accompaniment.opus")
        shift_s = np.random.default_rng(seed).uniform(-2, 2)
        take = moved(torch.from_numpy(again(vocals[0].numpy(), rate, seed))[None].float(), shift_s, rate)
        found, confidence = offset_s(take, vocals + 0.1 * backing, rate)
        right += abs(found - shift_s) < 0.06
        sure.append(confidence)
    assert right == len(chosen)
    assert np.median(sure) > SURE


def test_another_song_is_not_followed(data):
    chosen = clips(data, "train", 10)
    sure = []
    for one, other in itertools.pairwise(chosen):
        first, rate = audio.read(one / "vocals.opus")
        second, other_rate = audio.read(other / "vocals.opus")
        sure.append(offset_s(first, audio.resample(second, other_rate, rate), rate)[1])
    assert np.mean([value < SURE for value in sure]) >= 0.8
