"""Rows that calibrate a table of scores: trivial estimates, and oracles, which see the truth.

Oracles compute masks from the true stems and lay them over the mixture. Their STFT is the one of this package's models:
4096 samples at 44.1 kHz, a quarter of that as hop, periodic Hann window. They work on `WINDOW` frames at a time, so
memory is bounded for songs of any length; masks do not notice, and the Wiener filters share their covariances over a
window as separation does.

Which sources compete for a bin is part of an oracle's definition. Where vocals and accompaniment are both among the
references, those two compete, and both estimates come from that; the single stems (all but accompaniment) compete among
themselves, for the estimates that remain. The oracles of SiSEC 2018 differ: four sources always, the accompaniment as
the sum of three estimates, and an STFT of 2048 samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from umx_ext.errors import AudioError, MissingExtraError, UsageError
from umx_ext.separation.wiener import WINDOW, wiener
from umx_ext.spectral import frame_count, hann, overlap_add, stft

__all__ = ["BASELINES", "Baseline", "n_fft_at"]

Estimator = Callable[[Tensor, Mapping[str, Tensor], int], dict[str, Tensor]]

# Spectra of one window: the mixture's `(channels, bins, frames)` and the true sources' `(sources, ...)` give the
# sources' estimates, shaped as those.
Filter = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Baseline:
    """A way to estimate stems that needs no model.

    Attributes:
        says: what it is, in half a sentence.
        estimator: takes what calling takes.
        oracle: sees the true stems, so no system is expected to beat it; otherwise trivial.
    """

    says: str
    estimator: Estimator
    oracle: bool = True

    def __call__(self, mixture: Tensor, references: Mapping[str, Tensor], sample_rate: int) -> dict[str, Tensor]:
        """Estimates of the stems that `references` names.

        Args:
            mixture: `(channels, samples)`.
            references: stem name -> true stem of the same shape; accompaniment aside, they are all the stems there are.
            sample_rate: Hz.

        Returns:
            stem name -> estimate, for the names in `references`, in their order and of their shape.

        Raises:
            AudioError: a reference differs from the mixture in shape.
            UsageError: an oracle was given a single reference: nothing competes with it.
            MissingExtraError: norbert is needed and not installed.
        """
        for name, reference in references.items():
            if reference.shape != mixture.shape:
                raise AudioError(
                    f"{name} is {tuple(reference.shape)} and the mixture {tuple(mixture.shape)}; "
                    "expected (channels, samples) of one shape"
                )
        if self.oracle and len(references) < 2:
            raise UsageError(f"an oracle needs the references of at least two stems, got {', '.join(references)}")
        return self.estimator(mixture, references, sample_rate)


def n_fft_at(sample_rate: int) -> int:
    """Window of the oracles' STFT: the power of two nearest to 93 ms, 4096 samples at 44.1 kHz and at 48 kHz."""
    return 2 ** round(math.log2(4096 * sample_rate / 44100))


def _attenuated(parts: int, accompaniment_parts: int) -> Estimator:
    def estimate(mixture: Tensor, references: Mapping[str, Tensor], sample_rate: int) -> dict[str, Tensor]:
        return {
            name: mixture * ((accompaniment_parts if name == "accompaniment" else 1) / parts) for name in references
        }

    return estimate


def _oracle(filter_: Filter) -> Estimator:
    def estimate(mixture: Tensor, references: Mapping[str, Tensor], sample_rate: int) -> dict[str, Tensor]:
        estimates: dict[str, Tensor] = {}
        pair = ["vocals", "accompaniment"]
        stems = [name for name in references if name != "accompaniment"]
        groups = ([pair] if all(name in references for name in pair) else []) + [stems]
        for names in groups:
            if not set(names) <= estimates.keys():
                sources = torch.stack([references[name] for name in names])
                found = _in_windows(filter_, mixture, sources, n_fft_at(sample_rate))
                estimates = dict(zip(names, found, strict=True)) | estimates
        return {name: estimates[name] for name in references}

    return estimate


def _in_windows(filter_: Filter, mixture: Tensor, sources: Tensor, n_fft: int) -> Tensor:
    """`istft(filter_(stft(mixture), stft(sources)))`, some frames at a time. Shape: that of `sources`."""
    hop, half = n_fft // 4, n_fft // 2
    samples = mixture.shape[-1]
    signals = torch.cat([mixture[None], sources])  # (1 + sources, channels, samples)
    signals = torch.nn.functional.pad(signals, (0, max(0, half + 1 - samples)))
    signals = torch.nn.functional.pad(signals, (half, half), mode="reflect")[..., : samples + n_fft]
    frames = frame_count(samples, hop)
    total = torch.zeros_like(signals[1:, :, : (frames - 1) * hop + n_fft])
    weight = torch.zeros_like(total[0, 0])
    window = hann(n_fft, mixture)
    for start in range(0, frames, WINDOW):
        stop = min(start + WINDOW, frames)
        here = slice(start * hop, (stop - 1) * hop + n_fft)
        spectra = stft(signals[..., here], n_fft, hop, center=False)
        estimates = filter_(spectra[0], spectra[1:])
        pieces = torch.fft.irfft(estimates.mT, n=n_fft) * window  # (sources, channels, frames, n_fft)
        total[..., here] += overlap_add(pieces, hop)
        weight[here] += overlap_add((window * window).expand(stop - start, n_fft), hop)
    wanted = slice(half, half + samples)
    return total[..., wanted] / weight[wanted].clamp_min(1e-11)


def _ratio_mask(power: float) -> Filter:
    def apply(mixture: Tensor, sources: Tensor) -> Tensor:
        shares = sources.abs() ** power
        # What belongs to no source goes to none: 0 of 0 is 0.
        return mixture * (shares / shares.sum(dim=0).clamp_min(torch.finfo(shares.dtype).tiny))

    return apply


def _binary_mask(mixture: Tensor, sources: Tensor) -> Tensor:
    magnitudes = sources.abs()
    loudest, which = magnitudes.max(dim=0)  # the first of equals
    audible = mixture * (loudest > 0)
    return torch.stack([audible * (which == source) for source in range(len(magnitudes))])


def _our_wiener(mixture: Tensor, sources: Tensor) -> Tensor:
    magnitudes = sources.abs().permute(0, 3, 1, 2)  # (sources, frames, channels, bins)
    return wiener(magnitudes, mixture.permute(2, 0, 1), niter=1).permute(0, 2, 3, 1)


def _norbert(mixture: Tensor, sources: Tensor) -> Tensor:
    try:
        import norbert
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingExtraError(
            f"the baseline 'MWF norbert' needs norbert ({error}); run: pip install norbert"
        ) from error
    # norbert scales its caller's mixture in place: this one is ours. First estimates take its phase, as in our filter.
    magnitudes = sources.abs().double().permute(3, 2, 1, 0)  # (frames, bins, channels, sources)
    spectrum = mixture.to(torch.complex128).permute(2, 1, 0)  # (frames, bins, channels)
    found = norbert.wiener(magnitudes.cpu().numpy(), spectrum.cpu().numpy(), iterations=1, use_softmask=False)
    estimates: Tensor = torch.from_numpy(found).permute(3, 2, 1, 0)
    return estimates.to(device=mixture.device, dtype=mixture.dtype)


BASELINES: dict[str, Baseline] = {
    "mixture/2": Baseline("the mixture, halved, as every stem", _attenuated(2, 1), oracle=False),
    "mixture/4": Baseline(
        "a quarter of the mixture as every stem, three quarters of it as accompaniment (SiSEC 2018's MIX)",
        _attenuated(4, 3),
        oracle=False,
    ),
    "IRM1": Baseline("ideal ratio masks of the true magnitudes", _oracle(_ratio_mask(1))),
    "IRM2": Baseline("ideal ratio masks of the true powers", _oracle(_ratio_mask(2))),
    "IBM": Baseline("ideal binary masks: each bin goes to the stem that is loudest in it", _oracle(_binary_mask)),
    "MWF": Baseline("one iteration of our multichannel Wiener filter on the true magnitudes", _oracle(_our_wiener)),
    "MWF norbert": Baseline(
        "one iteration of norbert's multichannel Wiener filter on the true magnitudes", _oracle(_norbert)
    ),
}
