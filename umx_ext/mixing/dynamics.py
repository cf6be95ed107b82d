"""The compressor: feed-forward, in decibels, with a soft knee and a smooth, decoupled peak detector.

For the louder channel ``s``, ``x_G = 20 log10 max(s, 1e-6)``, what exceeds the static curve is ``x_L = x_G - y_G`` and

    y_1[n] = max(x_L[n], a_R y_1[n-1] + (1 - a_R) x_L[n])         a = exp(-1 / (tau sample_rate))
    y_L[n] = a_A y_L[n-1] + (1 - a_A) y_1[n]
    out[n] = 10^((makeup - y_L[n]) / 20) x[n]                      the same gain on both channels

The first line looks as if it had to run sample by sample. It does not: with ``u`` the plain one-pole filter of ``x_L``
(coefficient a_R), the rest ``z = y_1 - u`` obeys ``z[n] = max(x_L[n] - u[n], a_R z[n-1])``, a maximum that leaks. And a
leaking maximum is a running maximum of ``(x_L[n] - u[n]) a_R^-n``, times ``a_R^n``. So the recursion is two linear
filters and a running maximum: exact at every sample, and as fast as those.

Source: D. Giannoulis, M. Massberg, J. Reiss, "Digital dynamic range compressor design - a tutorial and analysis",
JAES 60 (2012), equations 4, 17 and 26.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from umx_ext.errors import AudioError
from umx_ext.mixing.effect import Effect, number, require_rate

__all__ = ["Compressor", "excess_db", "gain_reduction_db"]

FLOOR = 1e-6  # what the logarithm sees of silence: -120 dBFS

# Samples at a time: the block's arrays in double precision stay in the cache.
_BLOCK = 1 << 15

# The running maximum scales by a_R^-n. It starts afresh before that exceeds e^200; double precision ends at e^709.
_GROWTH = 200.0

# Keeps decaying filters away from denormal numbers, which are slow. In dB: no gain in double precision can show it.
_BIAS_DB = 1e-30


@dataclass(frozen=True)
class Compressor(Effect):
    """Feed-forward compressor with a soft knee; both channels get the same gain.

    Attributes:
        threshold_db: -140 to 40 dBFS (of peaks); louder than this is turned down.
        ratio: 1 (off) to 1000, dB in per dB out above the threshold.
        attack_ms: 0 to 1000 ms, time constant (63 %) of the gain's fall.
        release_ms: 0 to 10000 ms, time constant of its recovery, before the attack's smoothing.
        knee_db: 0 (hard) to 40 dB, width of the bend around the threshold.
        makeup_db: -60 to 120 dB, added to everything.
    """

    kind: ClassVar[str] = "compressor"
    threshold_db: float = number(-18.0, -140, 40, "dB")
    ratio: float = number(3.0, 1, 1000)
    attack_ms: float = number(7.5, 0, 1000, "ms")
    release_ms: float = number(400.0, 0, 10000, "ms")
    knee_db: float = number(6.0, 0, 40, "dB")
    makeup_db: float = number(0.0, -60, 120, "dB")

    @classmethod
    def neutral(cls) -> Compressor:
        return cls(ratio=1.0)

    @property
    def is_neutral(self) -> bool:
        return self.ratio == 1 and self.makeup_db == 0

    def _process(self, waveform: Tensor, sample_rate: int) -> Tensor:
        out = torch.empty_like(waveform)
        for item, result in zip(waveform.numpy(), out.numpy(), strict=True):
            for where, reduction_db in _reductions(self, item, sample_rate):
                exponent = ((self.makeup_db - reduction_db) * (math.log(10) / 20)).astype(item.dtype)
                np.multiply(item[:, where], np.exp(exponent), out=result[:, where])
        return out


def gain_reduction_db(compressor: Compressor, waveform: Tensor, sample_rate: int) -> Tensor:
    """How far the compressor turns the waveform down at each sample (``y_L``), dB, 0 or more; without the makeup.

    Args:
        compressor: the settings.
        waveform: `(channels, samples)`, float.
        sample_rate: Hz.

    Returns:
        `(samples,)` in the waveform's dtype.
    """
    require_rate(sample_rate)
    if waveform.ndim != 2 or waveform.shape[0] not in (1, 2):
        raise AudioError(f"expected (channels, samples) with one or two channels, got {tuple(waveform.shape)}")
    item = waveform.detach().cpu().numpy()
    curve = np.empty(item.shape[1], item.dtype)
    for where, reduction_db in _reductions(compressor, item, sample_rate):
        curve[where] = reduction_db
    return torch.from_numpy(curve).to(waveform.device)


def excess_db(over_db: np.ndarray, ratio: float, knee_db: float) -> np.ndarray:
    """What the static curve takes off a level that is `over_db` above the threshold: ``x_L = x_G - y_G``, dB.

    Zero below the knee, ``(1 - 1/ratio) over_db`` above it, a parabola in between that meets both smoothly.
    """
    slope = 1 - 1 / ratio
    if knee_db == 0:
        return slope * np.maximum(over_db, 0.0)
    inside = np.clip(over_db + knee_db / 2, 0.0, knee_db)
    return slope * (inside * inside / (2 * knee_db) + np.maximum(over_db - knee_db / 2, 0.0))


def pole(time_ms: float, sample_rate: int) -> float:
    """Coefficient of the one-pole filter that reaches 63 % after `time_ms`."""
    return math.exp(-1000 / (time_ms * sample_rate)) if time_ms > 0 else 0.0


def _reductions(compressor: Compressor, item: np.ndarray, sample_rate: int) -> Iterator[tuple[slice, np.ndarray]]:
    """``y_L`` of `(channels, samples)`, block after block, in double precision."""
    detector = _Detector(pole(compressor.attack_ms, sample_rate), pole(compressor.release_ms, sample_rate))
    for start in range(0, item.shape[1], _BLOCK):
        where = slice(start, min(start + _BLOCK, item.shape[1]))
        loudest = np.abs(item[:, where]).max(axis=0).astype(np.float64)
        level_db = 20 * np.log10(np.maximum(loudest, FLOOR))
        over_db = level_db - compressor.threshold_db
        yield where, detector(excess_db(over_db, compressor.ratio, compressor.knee_db))


class _Detector:
    """The smooth, decoupled peak detector; remembers its state from one block to the next."""

    def __init__(self, attack: float, release: float) -> None:
        self.attack, self.release = attack, release
        self.smoothed = np.zeros(1)  # scipy's filter state: coefficient times the last output
        self.linear = np.zeros(1)
        self.rest = 0.0

    def __call__(self, excess: np.ndarray) -> np.ndarray:
        from scipy.signal import lfilter

        excess = excess + _BIAS_DB
        peaks = excess
        if self.release > 1e-40:  # a faster release forgets everything between two samples
            linear, self.linear = lfilter([1 - self.release], [1, -self.release], excess, zi=self.linear)
            rest = leaking_maximum(excess - linear, self.release, self.rest)
            self.rest = float(rest[-1]) if rest[-1] > _BIAS_DB else 0.0
            peaks = linear + rest
        smooth, self.smoothed = lfilter([1 - self.attack], [1, -self.attack], peaks, zi=self.smoothed)
        return smooth


def leaking_maximum(values: np.ndarray, leak: float, before: float = 0.0) -> np.ndarray:
    """``z[n] = max(values[n], leak * z[n-1])`` with ``z[-1] = before >= 0``, without a loop over samples.

    Args:
        values: `(samples,)`, double precision.
        leak: above 0, below 1.
        before: the last z of what came before.
    """
    rate = -math.log(leak)
    length = min(len(values), max(1, int(_GROWTH / rate)))
    rows = -(-len(values) // length)
    padded = np.zeros(rows * length)
    padded[: len(values)] = values
    powers = np.exp(-rate * np.arange(1, length + 1))  # leak^1 .. leak^length
    local = np.maximum.accumulate(padded.reshape(rows, length) / powers, axis=1) * powers
    # What a row inherits: the same recursion from row to row.
    inherited = np.empty(rows)
    for row in range(rows):
        inherited[row] = before
        before = max(float(local[row, -1]), float(powers[-1]) * before)
    return np.maximum(local, inherited[:, None] * powers).reshape(-1)[: len(values)]
