"""Multichannel Wiener filter by expectation maximisation, exactly as open-unmix defines it, written to be fast.

In each bin every source j is a Gaussian: a power ``v_j(t, f)``, and a covariance ``R_j(f)`` for a window of frames.

    v_j  = mean over channels of |y_j|^2
    R_j  = sum_t y_j y_j^H / (eps + sum_t v_j)
    C    = sum_j v_j R_j + sqrt(eps) I
    y_j <- v_j R_j C^-1 x

Three things make it fast and accurate without changing the result:

- The first estimates all carry the mixture's phase, so their covariances need only real amplitudes and the one phasor
  ``u_0 conj(u_1)`` that all sources share. The residual too: its amplitude is real, though it may be negative.
- A few frames at a time, so that the planes `(frames, bins)` stay in the cache; 2x2 matrices are inverted by formula.
- Covariances are summed in double precision, and ``C`` is inverted in a basis of each bin's own: the direction in which
  the window is strongest there, and the one across. In the channels' basis a nearly mono bin subtracts almost equal
  numbers and float32 keeps no digit of what is left; in this one the weak direction is a number of its own.

Source: N. Q. Duong, E. Vincent, R. Gribonval, "Under-determined reverberant audio source separation using a full-rank
spatial covariance model", IEEE TASLP 18 (2010); A. Liutkus and F.-R. Stöter, *norbert* (2019).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from umx_ext.errors import UsageError

__all__ = ["EPS", "WINDOW", "filter_window", "wiener"]

EPS = 1e-10
WINDOW = 300  # frames; 7 s at 44.1 kHz and hop 1024

# Loud mixtures are scaled down so that no magnitude is above this (open-unmix's `scale_factor`). It decides how large
# the regularisation is beside the signal, so it is part of the definition.
_PEAK = 10.0

# Bins of all frames that are filtered at a time, on a CPU: fewer spend the time in calls, more in memory.
_PLANE = 1 << 15


def wiener(
    magnitudes: Tensor,
    mixture: Tensor,
    *,
    niter: int = 1,
    window: int | None = WINDOW,
    residual: bool = False,
    eps: float = EPS,
) -> Tensor:
    """Separate a complex mixture, given estimates of its sources' magnitudes.

    Differentiable in both arguments; float32 or float64; on any device. Neither argument is changed.

    Args:
        magnitudes: real, at least 0, `(..., sources, frames, channels, bins)`.
        mixture: complex, `(..., frames, channels, bins)`, 1 or 2 channels.
        niter: iterations. 0 gives the magnitudes the mixture's phase, and nothing more.
        window: frames that share their spatial covariances, and the scale of loud mixtures; None for all.
        residual: append one more source, the mixture minus the first estimates of the others.
        eps: power of the noise that keeps the covariances invertible.

    Returns:
        Complex `(..., sources, frames, channels, bins)`, one source more with `residual`. A bin in which all channels
        of the mixture are 0 (or a channel, with ``niter=0``) is exactly 0 in all sources.

    Raises:
        UsageError: the shapes do not belong together, or there are more than 2 channels.
    """
    _check(magnitudes, mixture, niter, window)
    frames = mixture.shape[-3]
    step = window or max(frames, 1)
    sources = magnitudes.shape[-4] + residual
    shape = (*mixture.shape[:-3], sources, *mixture.shape[-3:])
    songs = math.prod(mixture.shape[:-3])
    flat_magnitudes = magnitudes.reshape(songs, *magnitudes.shape[-4:])
    flat_mixture = mixture.reshape(songs, *mixture.shape[-3:])
    recording = torch.is_grad_enabled() and (mixture.requires_grad or magnitudes.requires_grad)
    estimates = mixture.new_empty((songs, *shape[-4:]))
    parts = []
    for song in range(songs):
        for start in range(0, frames, step):
            part = slice(start, start + step)
            here = flat_mixture[song, part]
            claims = flat_magnitudes[song, :, part] * (here != 0)  # where there is nothing, there is nothing to claim
            filtered = filter_window(list(claims), here, niter=niter, residual=residual, eps=eps)
            for chunk, planes in filtered:
                if recording:
                    parts.append(planes)
                else:
                    estimates[song, :, part][:, chunk] = planes
    if parts:
        count = len(parts) // songs
        return torch.stack([torch.cat(parts[at : at + count], dim=1) for at in range(0, len(parts), count)]).view(shape)
    return estimates.view(shape)


def _check(magnitudes: Tensor, mixture: Tensor, niter: int, window: int | None) -> None:
    if not mixture.is_complex() or magnitudes.is_complex():
        raise UsageError(f"expected real magnitudes and a complex mixture, got {magnitudes.dtype} and {mixture.dtype}")
    if magnitudes.dtype != mixture.real.dtype:
        raise UsageError(f"magnitudes are {magnitudes.dtype} and the mixture is {mixture.dtype}: use one precision")
    fit = magnitudes.dim() == mixture.dim() + 1 and mixture.dim() >= 3 and magnitudes.shape[-4] > 0
    if not fit or (*magnitudes.shape[:-4], *magnitudes.shape[-3:]) != tuple(mixture.shape):
        raise UsageError(
            "expected magnitudes (..., sources, frames, channels, bins) and a mixture (..., frames, channels, bins), "
            f"got {tuple(magnitudes.shape)} and {tuple(mixture.shape)}"
        )
    if mixture.shape[-2] not in (1, 2):
        raise UsageError(f"expected 1 or 2 channels, got {mixture.shape[-2]}: filter pairs of channels")
    if niter < 0 or (window is not None and window < 1):
        raise UsageError(f"niter must be at least 0 and window at least 1 (or None), got {niter} and {window}")


def filter_window(
    magnitudes: Sequence[Tensor],
    mixture: Tensor,
    *,
    niter: int = 1,
    residual: bool = False,
    eps: float = EPS,
    wanted: Sequence[int] | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """`wiener` for one window, a few frames at a time, so that what follows finds them in the cache.

    Args:
        magnitudes: for each source, `(frames, channels, bins)`; 0 where the mixture is.
        mixture: complex `(frames, channels, bins)`.
        niter: iterations.
        residual: append the residual source.
        eps: regularisation.
        wanted: indices of the sources to return (all of them take part); None for all.

    Yields:
        The frames, and complex `(wanted sources, those frames, channels, bins)`.
    """
    frames, channels, bins = mixture.shape
    recording = torch.is_grad_enabled() and (mixture.requires_grad or any(part.requires_grad for part in magnitudes))
    rows = max(1, _PLANE // bins) if mixture.device.type == "cpu" and not recording else max(1, frames)
    chunks = [slice(start, min(start + rows, frames)) for start in range(0, frames, rows)]
    sources = len(magnitudes) + residual
    wanted = range(sources) if wanted is None else wanted

    moments = _Moments(sources, channels, mixture.dtype)
    for chunk in chunks:
        first = _FirstEstimates(magnitudes, mixture, chunk, residual, precise=niter > 0)
        if niter == 0:
            yield chunk, _stacked([first.estimate(source) for source in wanted])
        else:
            moments.add_first(first)
    peak = moments.peak_power.sqrt()
    for iteration in range(1, niter + 1):
        gains = (_MonoGains if channels == 1 else _StereoGains)(moments, mixture.dtype, peak, eps)
        following = _Moments(sources, channels, mixture.dtype)
        for chunk, powers in zip(chunks, moments.powers, strict=True):
            last = iteration == niter
            estimates = gains.apply(mixture[chunk].unbind(1), powers, wanted if last else range(sources))
            if last:
                yield chunk, _stacked(estimates)
            else:
                following.add(estimates)
        moments = following


def _stacked(estimates: Sequence[Sequence[Tensor]]) -> Tensor:
    """For each source, for each channel, `(frames, bins)` -> `(sources, frames, channels, bins)`."""
    planes = torch.stack([plane for estimate in estimates for plane in estimate], dim=1)
    return planes.unflatten(1, (len(estimates), -1)).movedim(1, 0)


def _energy(plane: Tensor) -> Tensor:
    parts = torch.view_as_real(plane).square()
    return parts[..., 0] + parts[..., 1]


class _FirstEstimates:
    """Real amplitudes of all sources, which carry the mixture's phase, in some frames.

    Attributes:
        mixture: for each channel, complex `(frames, bins)`.
        amplitudes: for each source, for each channel, real `(frames, bins)`; the residual's may be negative.
        inverse: for each channel, 1 / |x|, so large where x is 0 that ``x * inverse`` is the phasor, or 0.
    """

    def __init__(
        self, magnitudes: Sequence[Tensor], mixture: Tensor, chunk: slice, residual: bool, precise: bool
    ) -> None:
        convert = _precise if precise else _unchanged
        self.mixture = [convert(plane) for plane in mixture[chunk].unbind(1)]
        energies = [_energy(plane) for plane in self.mixture]
        self.peak_power = torch.stack([energy.amax() for energy in energies]).amax()
        self.inverse = [(energy + torch.finfo(energy.dtype).tiny).rsqrt() for energy in energies]
        self.amplitudes = [[convert(plane) for plane in magnitude[chunk].unbind(1)] for magnitude in magnitudes]
        if residual:
            radii = [energy * inverse for energy, inverse in zip(energies, self.inverse, strict=True)]
            self.amplitudes.append(
                [
                    radius - sum(amplitudes[channel] for amplitudes in self.amplitudes)
                    for channel, radius in enumerate(radii)
                ]
            )

    def estimate(self, source: int) -> list[Tensor]:
        """The complex estimate of a source, for each channel."""
        planes = zip(self.mixture, self.inverse, self.amplitudes[source], strict=True)
        return [plane * (inverse * amplitude) for plane, inverse, amplitude in planes]


class _Moments:
    """Powers of the sources, and sums over the window of their covariances.

    Attributes:
        powers: for each chunk, for each source, `(frames, bins)`: v_j.
        sums: for each source, the distinct entries of ``sum_t y y^H``: 00, or 00, 11 and (complex) 01; `(bins,)`.
        peak_power: largest squared magnitude of the mixture so far.
    """

    def __init__(self, sources: int, channels: int, dtype: torch.dtype) -> None:
        self.channels = channels
        self.dtype = dtype.to_real()
        self.powers: list[list[Tensor]] = []
        self.sums: list[list[Tensor]] = [[] for _ in range(sources)]
        self.peak_power = torch.zeros(())

    def add_first(self, first: _FirstEstimates) -> None:
        self.peak_power = first.peak_power if not self.powers else torch.maximum(self.peak_power, first.peak_power)
        if self.channels == 2:
            phasors = first.mixture[0] * first.mixture[1].conj() * (first.inverse[0] * first.inverse[1])
        entries = []
        for amplitudes in first.amplitudes:
            squares = [amplitude.square() for amplitude in amplitudes]
            if self.channels == 2:
                squares.append(amplitudes[0] * amplitudes[1] * phasors)
            entries.append(squares)
        self._add(entries)

    def add(self, estimates: Sequence[Sequence[Tensor]]) -> None:
        entries = []
        for planes in estimates:
            precise = [_precise(plane) for plane in planes]
            squares = [_energy(plane) for plane in precise]
            if self.channels == 2:
                squares.append(precise[0] * precise[1].conj())
            entries.append(squares)
        self._add(entries)

    def _add(self, entries: list[list[Tensor]]) -> None:
        """entries: for each source, `(frames, bins)` of every distinct entry of y y^H."""
        powers = [squares[0] if self.channels == 1 else (squares[0] + squares[1]) / 2 for squares in entries]
        self.powers.append([power.to(self.dtype) for power in powers])
        for source, squares in enumerate(entries):
            sums = [square.sum(0) for square in squares]
            before = self.sums[source]
            self.sums[source] = [a + b for a, b in zip(before, sums, strict=True)] if before else sums


def _unchanged(values: Tensor) -> Tensor:
    return values


def _precise(values: Tensor) -> Tensor:
    """Double precision, where the device has it."""
    if values.device.type == "mps":
        return values
    return values.to(torch.complex128 if values.is_complex() else torch.float64)


class _MonoGains:
    """One channel: ``y_j = v_j R_j x / (sum_k v_k R_k + sqrt(eps))``."""

    def __init__(self, moments: _Moments, dtype: torch.dtype, peak: Tensor, eps: float) -> None:
        shrink = (peak / _PEAK).clamp_min(1.0).pow(-2)
        self.noise = eps**0.5
        real = dtype.to_real()
        self.covariances = [
            (shrink * sums[0] / (eps + shrink * sums[0])).to(real) * shrink.to(real) for sums in moments.sums
        ]

    def apply(self, mixture: Sequence[Tensor], powers: list[Tensor], wanted: Sequence[int]) -> list[list[Tensor]]:
        models = [power * covariance for power, covariance in zip(powers, self.covariances, strict=True)]
        inverse = (sum(models) + self.noise).reciprocal()
        return [[mixture[0] * (models[source] * inverse)] for source in wanted]


class _StereoGains:
    """Two channels: ``y_j = v_j (R_j Q) (Q^H C Q)^-1 Q^H x`` with a unitary Q for each bin.

    The columns of Q are the window's strongest direction in that bin and the one across it. Any unitary Q gives the
    same result, so none of its gradient is wanted; this one keeps C's small eigenvalue from drowning in the large one.
    """

    def __init__(self, moments: _Moments, dtype: torch.dtype, peak: Tensor, eps: float) -> None:
        # Scaling x and y by 1 / scale scales their powers by its square, and nothing else.
        shrink = (peak / _PEAK).clamp_min(1.0).pow(-2)
        self.noise = eps**0.5
        total = [sum(entries).detach() for entries in zip(*moments.sums, strict=True)]
        angle = torch.atan2(2 * total[2].abs(), total[0] - total[1]) / 2
        turn = torch.polar(torch.ones_like(angle), total[2].angle())
        cos, sin = angle.cos(), angle.sin() * turn  # Q = [[cos, -sin], [conj(sin), cos]]
        self.cos, self.sin = cos.to(dtype), sin.to(dtype)
        self.rotated = []  # for each source: Q^H R Q, its entries 00, 11 and the real and imaginary parts of 01
        self.back = []  # for each source: R Q, its entries 00, 01, 10, 11
        real = dtype.to_real()
        for s00, s11, s01 in moments.sums:  # R in the scaled domain, times what its power there is short of it here
            weight = shrink / (eps + shrink * (s00 + s11) / 2) * shrink
            r00, r11, r01 = weight * s00, weight * s11, weight * s01
            k00 = r00 * cos + r01 * sin.conj()
            k10 = r01.conj() * cos + r11 * sin.conj()
            k01 = r01 * cos - r00 * sin
            k11 = r11 * cos - r01.conj() * sin
            q01 = cos * k01 + sin * k11
            q00, q11 = (cos * k00 + sin * k10).real, (cos * k11 - sin.conj() * k01).real
            self.rotated.append([entry.to(real) for entry in (q00, q11, q01.real, q01.imag)])
            self.back.append([entry.to(dtype) for entry in (k00, k01, k10, k11)])

    def apply(self, mixture: Sequence[Tensor], powers: list[Tensor], wanted: Sequence[int]) -> list[list[Tensor]]:
        left, right = mixture
        strong = torch.addcmul(left * self.cos, right, self.sin)  # Q^H x
        weak = torch.addcmul(right * self.cos, left, self.sin.conj().neg())
        c00, c11, real01, imag01 = (_weighted(powers, entries) for entries in zip(*self.rotated, strict=True))
        # det(A + s I) = det A + s (trace A + s), and det A is never negative: so nothing can vanish by rounding.
        product = torch.addcmul(c00 * c11, real01, real01, value=-1).addcmul_(imag01, imag01, value=-1).clamp_min(0.0)
        inverse = (product + (c00 + c11 + self.noise) * self.noise).reciprocal()
        c01 = torch.complex(real01, imag01)
        z_strong = strong * (c11 + self.noise) - weak * c01
        z_weak = weak * (c00 + self.noise) - strong * c01.conj()
        estimates = []
        for source in wanted:
            k00, k01, k10, k11 = self.back[source]
            gain = powers[source] * inverse
            estimates.append(
                [
                    torch.addcmul(z_strong * k00, z_weak, k01) * gain,
                    torch.addcmul(z_strong * k10, z_weak, k11) * gain,
                ]
            )
        return estimates


def _weighted(powers: Sequence[Tensor], entries: Sequence[Tensor]) -> Tensor:
    """Sum over the sources of power `(frames, bins)` times entry `(bins,)`."""
    total = powers[0] * entries[0]
    for power, entry in zip(powers[1:], entries[1:], strict=True):
        total.addcmul_(power, entry)
    return total
