"""Effects by their equations, one sample at a time: slow, and plain to see."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["biquad", "compressor", "network", "static_curve"]


def biquad(b: np.ndarray, a: np.ndarray, x: np.ndarray) -> np.ndarray:
    """``a0 y[n] = b0 x[n] + b1 x[n-1] + b2 x[n-2] - a1 y[n-1] - a2 y[n-2]`` from rest."""
    y = np.zeros(len(x))
    for n in range(len(x)):
        for k in range(min(n, 2) + 1):
            y[n] += b[k] * x[n - k] - (a[k] * y[n - k] if k else 0.0)
        y[n] /= a[0]
    return y


def static_curve(x_g: float, threshold_db: float, ratio: float, knee_db: float) -> float:
    """Level out for a level in, dB: the three cases of Giannoulis et al. (2012), equation 4."""
    over = x_g - threshold_db
    if 2 * over < -knee_db:
        return x_g
    if knee_db > 0 and 2 * abs(over) <= knee_db:
        return x_g + (1 / ratio - 1) * (over + knee_db / 2) ** 2 / (2 * knee_db)
    return threshold_db + over / ratio


def compressor(
    x: np.ndarray,
    sample_rate: int,
    *,
    threshold_db: float,
    ratio: float,
    attack_ms: float,
    release_ms: float,
    knee_db: float,
    makeup_db: float,
) -> tuple[np.ndarray, np.ndarray]:
    """`(channels, samples)` -> the compressed waveform and the gain reduction ``y_L`` `(samples,)` in dB."""
    a_attack = math.exp(-1 / (attack_ms / 1000 * sample_rate)) if attack_ms else 0.0
    a_release = math.exp(-1 / (release_ms / 1000 * sample_rate)) if release_ms else 0.0
    y_1 = y_l = 0.0
    reduction = np.zeros(x.shape[1])
    for n in range(x.shape[1]):
        x_g = 20 * math.log10(max(np.abs(x[:, n]).max(), 1e-6))
        x_l = x_g - static_curve(x_g, threshold_db, ratio, knee_db)
        y_1 = max(x_l, a_release * y_1 + (1 - a_release) * x_l)
        y_l = a_attack * y_l + (1 - a_attack) * y_1
        reduction[n] = y_l
    return x * 10 ** ((makeup_db - reduction) / 20), reduction


def network(
    lengths: list[int], scalars: list[float], mixing: np.ndarray, into: np.ndarray, taps: np.ndarray, samples: int
) -> np.ndarray:
    """Impulse response of a feedback delay network whose lines only scale. `(outputs, samples)`."""
    lines = [[0.0] * length for length in lengths]  # the oldest sample first
    out = np.zeros((len(taps), samples))
    for n in range(samples):
        heard = np.array([line.pop(0) * scalar for line, scalar in zip(lines, scalars, strict=True)])
        out[:, n] = taps @ heard
        fed = mixing @ heard + (into if n == 0 else 0.0)
        for line, value in zip(lines, fed, strict=True):
            line.append(float(value))
    return out
