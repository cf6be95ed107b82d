"""The multichannel Wiener filter by its equations, one bin and one frame at a time: slow, and plain to see."""

from __future__ import annotations

import numpy as np

__all__ = ["wiener"]


def wiener(
    magnitudes: np.ndarray,
    mixture: np.ndarray,
    *,
    niter: int = 1,
    window: int = 300,
    residual: bool = False,
    eps: float = 1e-10,
) -> np.ndarray:
    """`(sources, frames, channels, bins)` and `(frames, channels, bins)` in; complex, shaped as the former, out."""
    phasor = np.where(mixture == 0, 0, mixture / np.where(mixture == 0, 1, np.abs(mixture)))
    first = [magnitude * phasor for magnitude in magnitudes]
    if residual:
        first.append(mixture - sum(first))
    estimates = np.array(first)
    if niter == 0:
        return estimates
    for start in range(0, len(mixture), window):
        frames = slice(start, start + window)
        scale = max(1.0, np.abs(mixture[frames]).max() / 10)
        for bin_ in range(mixture.shape[-1]):
            y = estimates[:, frames, :, bin_] / scale  # (sources, frames, channels)
            estimates[:, frames, :, bin_] = scale * _one_bin(y, mixture[frames, :, bin_] / scale, niter, eps)
    return estimates


def _one_bin(y: np.ndarray, x: np.ndarray, niter: int, eps: float) -> np.ndarray:
    noise = np.sqrt(eps) * np.eye(x.shape[-1])
    for _ in range(niter):
        power = (np.abs(y) ** 2).mean(axis=2)  # (sources, frames)
        covariances = [
            sum(np.outer(y_t, y_t.conj()) for y_t in y_j) / (eps + v_j.sum()) for y_j, v_j in zip(y, power, strict=True)
        ]
        following = np.zeros_like(y)
        for t, x_t in enumerate(x):
            model = [v_j[t] * covariance for v_j, covariance in zip(power, covariances, strict=True)]
            inverse = np.linalg.inv(sum(model) + noise)
            for j, part in enumerate(model):
                following[j, t] = part @ inverse @ x_t
        y = following
    return y
