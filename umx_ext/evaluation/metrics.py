"""Scores of a whole song, and how sure a figure over a few songs is.

Signals are `(channels, samples)`. An estimate of another length is padded with zeros or cut at its end, as museval
does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from umx_ext.errors import AudioError, UsageError

__all__ = ["CHALLENGE_EPS", "bootstrap_interval", "fit", "si_sdr", "song_sdr"]

# Added once to the energy of the reference and once to that of the error, each summed over all samples and channels,
# with full scale at 1: the value of the Music Demixing Challenge 2021's own scorer.
CHALLENGE_EPS = 1e-7

# Resamplings drawn at a time: so many values at most, 8 MB.
_DRAWN = 1 << 20


class Statistic(Protocol):
    """Reduces the last axis: `numpy.median`, `numpy.mean`."""

    def __call__(self, values: npt.NDArray[np.float64], /, *, axis: int) -> npt.NDArray[np.float64]: ...


def fit(estimate: Tensor, samples: int) -> Tensor:
    """The estimate with so many samples: cut at the end, or padded there with zeros. Shape: `(..., samples)`."""
    missing = samples - estimate.shape[-1]
    if missing > 0:
        return torch.nn.functional.pad(estimate, (0, missing))
    return estimate[..., :samples]


def si_sdr(reference: Tensor, estimate: Tensor, *, remove_mean: bool = False) -> float:
    """Scale-invariant signal-to-distortion ratio of a whole song, dB.

    With ``a = <estimate, reference> / <reference, reference>`` it is the energy of ``a * reference`` over that of
    ``estimate - a * reference``. The channels are one long vector: one scale for all of them, so a wrong balance counts
    as an error. For figures by channel, pass the channels one by one.

    Args:
        reference: `(channels, samples)`.
        estimate: the same channels; padded or cut to the reference.
        remove_mean: take each channel's mean off both first, as some other packages do; the definition does not.

    Returns:
        dB. nan where the reference or the estimate is silent, -inf for an estimate that shares nothing with the
        reference; inf, or the hundreds of dB that rounding leaves, for a scaled copy.

    Raises:
        AudioError: the channels differ.

    Source: J. Le Roux, S. Wisdom, H. Erdogan, J. R. Hershey, "SDR - half-baked or well done?", ICASSP 2019.

    >>> reference = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    >>> si_sdr(reference, torch.tensor([[3.0, 3.0], [0.0, 0.0]]))
    0.0
    """
    truth, guess = _pair(reference, estimate)
    if remove_mean:
        truth, guess = (signal - signal.mean(dim=-1, keepdim=True) for signal in (truth, guess))
    truth, guess = truth.flatten(), guess.flatten()
    energy = truth @ truth
    scaled = (guess @ truth) / energy * truth  # all nan where the reference is silent
    error = guess - scaled
    return _decibels(float(scaled @ scaled), float(error @ error))


def song_sdr(reference: Tensor, estimate: Tensor, *, eps: float = CHALLENGE_EPS) -> float:
    """Signal-to-distortion ratio of a whole song at once, the kind that the demixing challenges rank by, dB.

    ``10 log10((sum reference^2 + eps) / (sum (reference - estimate)^2 + eps))``, sums over samples and channels. Other
    names of it are uSDR, global SDR and MDX SDR; figures for a system are means over songs. It is not BSS Eval's SDR of
    one-second frames (`umx_ext.evaluation.sdr`): never compare the two.

    Args:
        reference: `(channels, samples)`, full scale 1.
        estimate: the same channels; padded or cut to the reference.
        eps: keeps silent songs finite: two silent signals score 0 dB.

    Returns:
        dB, finite for every finite signal.

    Raises:
        AudioError: the channels differ.

    Source: Y. Mitsufuji et al., "Music Demixing Challenge 2021", Frontiers in Signal Processing 1 (2022), and its
    starter kit (`delta = 1e-7`).

    >>> round(song_sdr(torch.ones(2, 44100), 0.9 * torch.ones(2, 44100)), 3)
    20.0
    """
    truth, guess = _pair(reference, estimate)
    return _decibels(float(truth.square().sum()) + eps, float((truth - guess).square().sum()) + eps)


def bootstrap_interval(
    values: Sequence[float] | npt.NDArray[np.float64],
    statistic: Statistic = np.median,
    *,
    n: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic over songs.

    The songs are drawn anew `n` times, with replacement and as many as there are; the interval leaves out the lowest
    and the highest ``(1 - confidence) / 2`` of the figures. Resamplings depend on the seed and the number of values
    alone, so equal calls agree.

    Args:
        values: one for each song; nan and infinite ones are left out.
        statistic: takes an array and ``axis``.
        n: resamplings.
        seed: of the draw.
        confidence: share of the figures inside.

    Returns:
        Low and high; nan for fewer than two values, where nothing can be said.

    Raises:
        UsageError: n is not positive, or the confidence is not between 0 and 1.

    Source: B. Efron, R. Tibshirani, *An Introduction to the Bootstrap* (1993), chapter 13.
    """
    if n < 1 or not 0 < confidence < 1:
        raise UsageError(f"n must be positive and confidence between 0 and 1, got {n} and {confidence}")
    sample = np.asarray(values, dtype=np.float64).ravel()
    sample = sample[np.isfinite(sample)]
    if len(sample) < 2:
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    step = max(1, _DRAWN // len(sample))
    figures = [
        statistic(sample[generator.integers(len(sample), size=(min(step, n - start), len(sample)))], axis=-1)
        for start in range(0, n, step)
    ]
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.concatenate(figures), [tail, 100 - tail])
    return float(low), float(high)


def _pair(reference: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    if reference.shape[:-1] != estimate.shape[:-1] or reference.dim() != 2:
        raise AudioError(
            "expected a reference and an estimate (channels, samples) of equally many channels, "
            f"got {tuple(reference.shape)} and {tuple(estimate.shape)}"
        )
    return reference.detach().double(), fit(estimate.detach().double(), reference.shape[-1])


def _decibels(signal: float, error: float) -> float:
    """Of energies; nan where there are none, or no number."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(10 * np.log10(np.float64(signal) / np.float64(error)))
