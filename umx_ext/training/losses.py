"""What a network is trained to make small: `LOSSES`, all of ratios of sums.

A loss is a numerator and a denominator, each summed over the examples at hand. So a batch that is spread over processes
has the loss, and the gradient, that it would have in one: the denominators are added up before they divide. (A mean
over each process' share would weigh quiet shares like loud ones.)

To add one, put a function into `LOSSES`: it can then be named in `TrainOptions.loss`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from umx_ext.separation.config import Config
from umx_ext.spectral import hann, overlap_add, stft

__all__ = ["LOSSES", "Batch", "Ratio", "phase_sensitive_target"]

FLOOR = 1e-2  # of magnitudes under a logarithm: 100 dB below a full-scale sine's 1024 with 4096 samples
ENERGY_FLOOR = 1.0  # of an example, so that silence is 0 beside it: 80 dB below a second of a full-scale sine
RESOLUTIONS = (1, 4, 16)  # parts of the network's own window: 4096, 1024 and 256 samples; hops are half of each

Ratio: TypeAlias = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Batch:
    """Spectra of some examples, frames-major.

    Attributes:
        mixture: complex `(batch, frames, channels, bins)`.
        target: the stem to find, the same shape.
        magnitude: of the mixture, real.
        config: of the network: window and hop.
    """

    mixture: Tensor
    target: Tensor
    magnitude: Tensor
    config: Config


def phase_sensitive_target(target: Tensor, mixture: Tensor, magnitude: Tensor) -> Tensor:
    """``|S| cos(angle S - angle X)``, limited to 0 ... |X|: the best magnitude under the mixture's phase.

    Source: Erdogan et al., ICASSP 2015. Everything `(batch, frames, channels, bins)`.
    """
    projected = (target.real * mixture.real + target.imag * mixture.imag) / magnitude.clamp_min(1e-8)
    return torch.minimum(projected.clamp_min(0.0), magnitude)


def phase_sensitive(mask: Tensor, batch: Batch) -> Ratio:
    """L1 to the phase-sensitive target, relative to the mixture's magnitudes."""
    goal = phase_sensitive_target(batch.target, batch.mixture, batch.magnitude)
    return (mask * batch.magnitude - goal).abs().sum(), batch.magnitude.sum()


def mean_square(mask: Tensor, batch: Batch) -> Ratio:
    """Mean squared difference of magnitudes, unnormalised: what open-unmix is trained with."""
    return (mask * batch.magnitude - _magnitude(batch.target)).square().sum(), _count(mask)


def log_spectral(mask: Tensor, batch: Batch) -> Ratio:
    """L1 of the magnitudes' logarithms, in nepers, above a floor 100 dB below full scale."""
    found, truth = mask * batch.magnitude, _magnitude(batch.target)
    return ((found + FLOOR).log() - (truth + FLOOR).log()).abs().sum(), _count(mask)


def complex_difference(mask: Tensor, batch: Batch) -> Ratio:
    """L1 of the real and the imaginary parts, relative to the mixture's magnitudes."""
    real = (mask * batch.mixture.real - batch.target.real).abs().sum()
    imag = (mask * batch.mixture.imag - batch.target.imag).abs().sum()
    return real + imag, batch.magnitude.sum()


def error_energy(mask: Tensor, batch: Batch) -> Ratio:
    """Root of the error's energy beside the mixture's, of each example; their mean.

    What the SDR is made of, up to the windows' overlap. The best mask is the mean of what the stem's share may be,
    where L1 has the median, and a quiet example counts like a loud one. Errors more than 40 dB down hardly count.
    """
    projected = batch.target.real * batch.mixture.real + batch.target.imag * batch.mixture.imag
    # |mask X - S|^2, multiplied out: two passes over real numbers less than the complex difference.
    error = mask * (mask * batch.magnitude.square() - 2 * projected)
    energies = error.sum(dim=(1, 2, 3)) + _magnitude(batch.target).square().sum(dim=(1, 2, 3))
    whole = batch.magnitude.square().sum(dim=(1, 2, 3)) + ENERGY_FLOOR
    return (energies.clamp_min(0) / whole + 1e-4).sqrt().sum(), mask.new_tensor(float(len(mask)))


def waveform_difference(mask: Tensor, batch: Batch) -> Ratio:
    """L1 of the waveforms, relative to the mixture's."""
    found = _waveform(torch.complex(mask * batch.mixture.real, mask * batch.mixture.imag), batch.config)
    truth, mixture = (_waveform(spectrum, batch.config) for spectrum in (batch.target, batch.mixture))
    return (found - truth).abs().sum(), mixture.abs().sum()


def multi_resolution(mask: Tensor, batch: Batch) -> Ratio:
    """L1 of magnitudes relative to the mixture's, mean over three windows: the network's own, and 1/4 and 1/16 of it.

    After R. Yamamoto, E. Song, J.-M. Kim, "Parallel WaveGAN", ICASSP 2020, with one norm for all terms.
    """
    found = _waveform(torch.complex(mask * batch.mixture.real, mask * batch.mixture.imag), batch.config)
    truth, mixture = (_waveform(spectrum, batch.config) for spectrum in (batch.target, batch.mixture))
    numerators, denominators = [], []
    for window in (batch.config.n_fft // part for part in RESOLUTIONS):
        views = [_magnitude(stft(signal, window, window // 2, center=False)) for signal in (found, truth, mixture)]
        # A short window has more frames of smaller magnitudes: each resolution counts the same.
        scale = 1 / (views[2].shape[-1] * window)
        numerators.append(scale * (views[0] - views[1]).abs().sum())
        denominators.append(scale * views[2].sum())
    return torch.stack(numerators).sum(), torch.stack(denominators).sum()


LOSSES: dict[str, Callable[[Tensor, Batch], Ratio]] = {
    "phase-sensitive": phase_sensitive,
    "mse": mean_square,
    "log": log_spectral,
    "complex": complex_difference,
    "error-energy": error_energy,
    "waveform": waveform_difference,
    "multi-resolution": multi_resolution,
}


def _count(mask: Tensor) -> Tensor:
    return mask.new_tensor(float(mask.numel()))


def _magnitude(spectrum: Tensor) -> Tensor:
    # Not `abs`, whose gradient at 0 is nan in some versions; 1e-12 is 300 dB below full scale.
    return (spectrum.real.square() + spectrum.imag.square() + 1e-24).sqrt()


def _waveform(spectrum: Tensor, config: Config) -> Tensor:
    """Complex `(batch, frames, channels, bins)` -> `(batch, channels, samples)`, windowed and overlap-added.

    Not divided by the windows' sum: what is compared has the same weights on both sides, and the ends, where frames are
    missing, count less.
    """
    frames = torch.fft.irfft(spectrum.transpose(1, 2), n=config.n_fft)
    return overlap_add(frames * hann(config.n_fft, frames), config.hop)
