"""Filters on excerpts, in numpy and one thread: a loader that works beside a training step stays out of its way."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

__all__ = ["convolved", "one_pole", "reverberated", "shaped", "stretched"]

FloatArray = npt.NDArray[np.float32]

GRID = 2049  # frequencies, 0 to half the sample rate, at which `shaped` takes its gains
TAPS = 2047  # of `shaped`'s filter: 46 ms at 44.1 kHz
LEAST_BLOCK = 8192


def convolved(waveform: FloatArray, taps: FloatArray, first: int = 0) -> FloatArray:
    """The convolution's samples `first` to `first` + n, by transforms of overlapping blocks.

    Args:
        waveform: `(channels, n)`.
        taps: `(channels, m)` or `(1, m)`.

    Returns:
        float32 `(channels, n)`.
    """
    channels, samples = waveform.shape
    tail = taps.shape[-1] - 1
    if samples == 0:
        return waveform.copy()
    size = min(max(LEAST_BLOCK, _power_of_two(4 * tail)), _power_of_two(samples + tail))
    hop = size - tail
    whole, rest = divmod(samples, hop)
    count = max(1, whole + (rest > 0))
    blocks = np.zeros((channels, count, size), np.float32)
    blocks[:, :whole, :hop] = waveform[:, : whole * hop].reshape(channels, whole, hop)
    if rest:
        blocks[:, -1, :rest] = waveform[:, whole * hop :]
    spectra = np.fft.rfft(blocks)
    spectra *= np.fft.rfft(taps, size)[:, None]
    pieces = np.fft.irfft(spectra, size)
    if count == 1:
        return np.array(pieces[:, 0, first : first + samples], np.float32)
    # More than one block: a tail is at most a third of a hop long.
    pieces[:, 1:, :tail] += pieces[:, :-1, hop:]
    joined = np.empty((channels, count + 1, hop), np.float32)
    joined[:, :-1] = pieces[..., :hop]
    joined[:, -1, :tail] = pieces[:, -1, hop:]
    return joined.reshape(channels, -1)[:, first : first + samples]


def _power_of_two(least: int) -> int:
    return 1 << max(1, least - 1).bit_length()


def grid_hz(sample_rate: int) -> npt.NDArray[np.float64]:
    """The frequencies of `shaped`'s gains, Hz."""
    return np.linspace(0, sample_rate / 2, GRID)


def shaped(waveform: FloatArray, gains: npt.NDArray[np.float64]) -> FloatArray:
    """The waveform with its spectrum multiplied, phases and timing kept (a symmetric filter of 2047 taps).

    Args:
        waveform: `(channels, samples)`.
        gains: amplitude factors at the `GRID` frequencies of `grid_hz`.
    """
    response = np.roll(np.fft.irfft(gains), TAPS // 2)[:TAPS] * _window()
    return convolved(waveform, response.astype(np.float32)[None], TAPS // 2)


@functools.lru_cache(maxsize=1)
def _window() -> npt.NDArray[np.float64]:
    return np.hanning(TAPS + 2)[1:-1]


def one_pole(waveform: FloatArray, sample_rate: int, cut_hz: float) -> FloatArray:
    """A causal low-pass of first order, 3 dB down at `cut_hz`: ``y[n] = (1 - b) x[n] + b y[n - 1]``."""
    # |H|^2 = (1 - b)^2 / (1 + b^2 - 2 b cos w) = 1/2 at the cut-off, solved for b.
    middle = 2.0 - np.cos(2 * np.pi * min(cut_hz / sample_rate, 0.5))
    pole = middle - np.sqrt(middle**2 - 1)
    count = min(8 * TAPS, int(np.ceil(-20.0 / np.log10(pole))))  # to -400 dB, below float32
    taps = (1 - pole) * pole ** np.arange(count)
    return convolved(waveform, taps.astype(np.float32)[None])


def reverberated(
    waveform: FloatArray, sample_rate: int, share: float, t60_s: float, delay_s: float, rng: np.random.Generator
) -> FloatArray:
    """``(1 - share) x + share (h * x)``: h is decaying noise of unit energy, another one for each channel.

    Its highs die four times as fast as its lows, as in a furnished room.

    Args:
        waveform: `(channels, samples)`.
        share: 0 (dry) to 1 (reverberation alone).
        t60_s: time in which the lows fall by 60 dB.
        delay_s: before the reverberation starts.
        rng: draws the noise.
    """
    silent, length = int(delay_s * sample_rate), max(1, int(t60_s * sample_rate))
    noise = rng.standard_normal((waveform.shape[0], length), dtype=np.float32)
    decay = np.exp(np.linspace(0.0, -6.9078, length, dtype=np.float32))  # to -60 dB
    lows = 0.5 * noise
    lows[:, 1:] += 0.25 * noise[:, :-1]
    lows[:, :-1] += 0.25 * noise[:, 1:]
    tail = decay * lows + decay**4 * (noise - lows)
    tail /= np.sqrt(np.square(tail).sum(axis=1).mean())
    taps = np.zeros((waveform.shape[0], silent + length), np.float32)
    taps[:, silent:] = share * tail
    taps[:, 0] += 1 - share
    return convolved(waveform, taps)


def stretched(waveform: FloatArray, factor: float, sample_rate: int) -> FloatArray:
    """Played `factor` times as fast, as a tape would be: pitch and tempo together.

    As many samples as came in: past the end of a faster one there are zeros, of a slower one the end is missing.
    """
    import soxr

    channels, samples = waveform.shape
    if factor == 1 or samples == 0:
        return waveform.copy()
    needed = min(samples, int(np.ceil(samples * factor)) + 64)  # the resampler's filter looks ahead
    played = soxr.resample(waveform[:, :needed].T, sample_rate * factor, sample_rate, quality="MQ")[:samples]
    done = np.zeros((channels, samples), np.float32)
    done[:, : len(played)] = played.T
    return done
