"""Signal-to-distortion ratio per second, as BSS Eval v4 defines it.

In BSS Eval v4 (`bss_eval_images`) a frame's SDR needs no distortion filter: it is the energy of the reference over the
energy of the error, both summed over channels. Equal to museval's to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from umx_ext.errors import AudioError

__all__ = ["frame_sdr", "median_sdr"]


def frame_sdr(reference: Tensor, estimate: Tensor, sample_rate: int) -> Tensor:
    """SDR of every second.

    Args:
        reference: `(..., channels, samples)`.
        estimate: the same shape.
        sample_rate: Hz; a frame is one second, a last partial frame is dropped.

    Returns:
        `(..., frames)` in dB, float64; nan where reference or estimate is silent in that second (their channels sum to
        zero, which is museval's test), inf where they are equal.

    Raises:
        AudioError: the shapes differ.
    """
    if reference.shape != estimate.shape:
        raise AudioError(f"expected two signals of one shape, got {tuple(reference.shape)} and {tuple(estimate.shape)}")
    frames = reference.shape[-1] // sample_rate

    def framed(signal: Tensor) -> Tensor:
        return signal[..., : frames * sample_rate].double().unflatten(-1, (frames, sample_rate))

    def energy(signal: Tensor) -> Tensor:
        return signal.square().sum(dim=(-3, -1))

    def silent(signal: Tensor) -> Tensor:
        return (signal.sum(dim=-3) == 0).all(dim=-1)

    truth, guess = framed(reference), framed(estimate)
    sdr = 10.0 * torch.log10(energy(truth) / energy(truth - guess))
    return sdr.masked_fill(silent(truth) | silent(guess), torch.nan)


def median_sdr(reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
    """Median over the seconds of one song, nan and inf left out as museval stores them; nan when nothing is left."""
    sdr = frame_sdr(reference, estimate, sample_rate).flatten()
    finite = sdr[torch.isfinite(sdr)]
    if not len(finite):
        return float("nan")
    return float(torch.quantile(finite, 0.5))
