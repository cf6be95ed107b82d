"""Multichannel Wiener filter by expectation maximisation, exactly as open-unmix defines it, written to be fast.

In each bin every source j is a Gaussian: a power ``v_j(t, f)``, and a covariance ``R_j(f)`` for a window of frames.

    v_j  = mean over channels of |y_j|^2
    R_j  = sum_t y_j y_j^H / (eps + sum_t v_j)
    C    = sum_j v_j R_j + sqrt(eps) I
    y_j <- v_j R_j C^-1 x

Four things make it fast and accurate without changing the result:

- The first estimates, the residual's too, are real masks times the mixture. So the products of the mixture's channels
  are formed once, and every source only scales them.
- Real and imaginary parts in planes of their own, `(frames, bins)`, and few enough frames at a time that the planes
  stay in the cache; 2x2 matrices are inverted by formula.
- In stereo, on a CPU, both passes over the frames are compiled where a compiler was to be had (`planar`).
- What is summed over the window is summed in double precision, and ``C`` is inverted in a basis of each bin's own: the
  direction in which the window is strongest there, and the one across. In the channels' basis a nearly mono bin
  subtracts almost equal numbers and float32 keeps no digit of what is left; in this one the weak direction is a number
  of its own.

Source: N. Q. Duong, E. Vincent, R. Gribonval, "Under-determined reverberant audio source separation using a full-rank
spatial covariance model", IEEE TASLP 18 (2010); A. Liutkus and F.-R. Stöter, *norbert* (2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import TypeAlias

import torch
from torch import Tensor

from umx_ext.errors import UsageError
from umx_ext.separation import planar

__all__ = ["EPS", "WINDOW", "filter_window", "parts", "shares", "wiener"]

EPS = 1e-10
WINDOW = 300  # frames; 7 s at 44.1 kHz and hop 1024

# Loud mixtures are scaled down so that no magnitude is above this (open-unmix's `scale_factor`). It decides how large
# the regularisation is beside the signal, so it is part of the definition.
_PEAK = 10.0

# Windows of fewer frames form their products in double precision too: with the mean over many, roundings fall below the
# regularisation; over few, they would be what the weak direction consists of.
_FEW = 128

# Bins of all frames that a thread filters at a time, on a CPU: with fewer, threads wait for the interpreter; more cost
# memory and leave the cache.
_PLANE = 1 << 17
_TOGETHER = 8  # windows that anything but a CPU filters at a time: it has many hands, and each call costs the same
_ASKED = 2  # such chunks for which the masks are asked at once


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
    mixture, magnitudes = mixture.resolve_conj().resolve_neg(), magnitudes.resolve_neg()
    frames = mixture.shape[-3]
    step = window or max(frames, 1)
    sources = magnitudes.shape[-4] + residual
    shape = (*mixture.shape[:-3], sources, *mixture.shape[-3:])
    songs = math.prod(mixture.shape[:-3])
    flat_magnitudes = magnitudes.reshape(songs, *magnitudes.shape[-4:])
    flat_mixture = mixture.reshape(songs, *mixture.shape[-3:])
    recording = torch.is_grad_enabled() and (mixture.requires_grad or magnitudes.requires_grad)
    together = 1 if recording else _together(mixture.device)
    direct = not recording and together == 1 and planar.plain(mixture) and planar.plain(magnitudes)
    estimates = mixture.new_empty((songs, *shape[-4:]))
    windows = []
    for song in range(songs):
        for start, count in _groups(frames, step, together):
            part = slice(start, start + step * count)
            here, claims, out = flat_mixture[song, part], flat_magnitudes[song, :, part], estimates[song, :, part]
            if count > 1:
                here, claims, out = (_side_by_side(values, count) for values in (here, claims, out))
                here, claims = here.flatten(-2), claims.flatten(-2)
            filtered = filter_window(
                lambda rows, claims=claims: list(claims[:, rows]),  # type: ignore[misc]
                parts(here),
                windows=count,
                of_magnitudes=True,
                niter=niter,
                residual=residual,
                eps=eps,
                out=out if direct else None,
            )
            for chunk, planes in filtered:
                if recording:  # in one chunk
                    windows.append(torch.stack([torch.stack(channels, dim=1) for channels in planes]))
                elif not direct:
                    for source, channels in enumerate(planes):
                        for channel, plane in enumerate(channels):
                            out[source, chunk, channel] = plane.view(out[source, chunk, channel].shape)
    if windows:
        count = len(windows) // songs
        joined = [torch.cat(windows[at : at + count], dim=1) for at in range(0, len(windows), count)]
        return torch.stack(joined).view(shape)
    return estimates.view(shape)


def _together(device: torch.device) -> int:
    return 1 if device.type == "cpu" else _TOGETHER


def _groups(frames: int, step: int, together: int) -> Iterator[tuple[int, int]]:
    """Where some whole windows begin, and how many they are; the last one may be shorter than a window."""
    start = 0
    while start < frames:
        count = max(1, min(together, (frames - start) // step))
        yield start, count
        start += count * step


def _side_by_side(values: Tensor, count: int) -> Tensor:
    """Windows one after the other, `(..., count * frames, channels, bins)`, as one of more bins.

    No bin knows of another. What is returned is `(..., frames, channels, count, bins)`.
    """
    return values.unflatten(-3, (count, -1)).movedim(-4, -2)


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


def shares(magnitudes: Tensor, whole: Tensor, power: float, *, residual: bool = False) -> Tensor:
    """What to start the filter from, if the magnitudes are the mixture's times masks that are to be raised to a power.

    The filter compares powers: a mask m and its rest end as m^2 / (m^2 + (1 - m)^2) where the channels say nothing.
    With their square roots (`power` 0.5) it gives m back there, and what channels do say comes on top.

    Args:
        magnitudes: `(sources, ...)`, >= 0.
        whole: the mixture's, `(...)`. Masks are 1 where the magnitudes equal it, and all are 1 to the `power` where it
            is 0.
        power: 0.1 to 1; 1 changes nothing.
        residual: append what is left to `whole`, at least 0: the filter is to be called without a residual then.

    Returns:
        `(sources, ...)`, one source more with `residual`.
    """
    if residual:
        magnitudes = torch.cat([magnitudes, (whole - magnitudes.sum(dim=0)).clamp_min(0)[None]])
    if power == 1:
        return magnitudes
    tiny = torch.finfo(whole.dtype).tiny  # below which roots have no gradient
    return magnitudes.clamp_min(tiny) ** power * whole.clamp_min(tiny) ** (1 - power)


Plane = Tensor  # real `(frames, bins)`
Parts = tuple[Plane, Plane]  # a complex plane: its real and its imaginary part
Planes: TypeAlias = Sequence[Plane] | Tensor  # one for each source, or `(sources, frames, bins)`


def parts(spectrum: Tensor) -> Tensor:
    """Complex `(frames, channels, bins)` -> real `(channels, 2, frames, bins)`: planes of real and imaginary parts.

    One permuted copy is several times faster than a copy of each part.
    """
    recording = torch.is_grad_enabled() and spectrum.requires_grad
    if planar.compiled() and spectrum.dtype == torch.complex64 and planar.plain(spectrum) and not recording:
        frames, channels, bins = spectrum.shape
        split = spectrum.new_empty((channels, 2, frames, bins), dtype=torch.float32)
        planar.split(spectrum, split)
        return split
    return torch.view_as_real(spectrum).permute(1, 3, 0, 2).contiguous()


def filter_window(
    masks: Callable[[slice], Sequence[Tensor]],
    mixture: Tensor,
    *,
    windows: int = 1,
    of_magnitudes: bool = False,
    niter: int = 1,
    residual: bool = False,
    eps: float = EPS,
    wanted: Sequence[int] | None = None,
    out: Tensor | None = None,
) -> Iterator[tuple[slice, list[list[Tensor]]]]:
    """`wiener` for one window, a few frames at a time, so that what follows finds them in the cache.

    Args:
        masks: asked for some of the frames, gives for each source real `(those frames, channels, bins)`: what to
            multiply the mixture with for a first estimate.
        mixture: real and imaginary parts `(channels, 2, frames, bins)`, as `parts` gives them.
        windows: so many stand side by side, the bins of one after those of another.
        of_magnitudes: the masks come multiplied with the mixture's magnitudes.
        niter: iterations.
        residual: append the residual source, whose mask is 1 minus the others.
        eps: regularisation.
        wanted: indices of the sources to return (all of them take part); None for all.
        out: complex `(wanted, frames, channels, bins)`, a channel's bins next to each other, on the CPU: the estimates
            are written there. Nothing may be recorded.

    Yields:
        The frames, and for each wanted source, for each channel, complex `(those frames, bins)`; parts of `out`, if
        that is given.
    """
    channels, _, frames, bins = mixture.shape
    recording = torch.is_grad_enabled() and (
        mixture.requires_grad or any(mask.requires_grad for mask in masks(slice(0, 1)))
    )
    rows = max(1, frames)
    if mixture.device.type == "cpu" and not recording:
        rows = max(1, _PLANE * torch.get_num_threads() // bins)
    chunks = [slice(start, min(start + rows, frames)) for start in range(0, frames, rows)]
    asked = _asked(masks, chunks)
    first_masks = next(asked)
    sources = len(first_masks) + residual
    wanted = range(sources) if wanted is None else wanted
    compiled = not recording and windows == 1 and planar.ready(mixture, sources)
    compiled = compiled and planar.takes(first_masks, mixture[:, :, chunks[0]])
    tiny = torch.finfo(mixture.dtype).eps ** 3.5 if of_magnitudes else None  # a mask is large where the mixture is 0

    def at(chunk: slice) -> list[Parts]:
        return [(channel[0, chunk], channel[1, chunk]) for channel in mixture]

    def into(chunk: slice) -> Tensor | None:
        return None if out is None else out[:, chunk].transpose(1, 2)

    if niter == 0:
        for chunk, claims in zip(chunks, chain([first_masks], asked), strict=True):
            planes = at(chunk)
            energies = [] if tiny is None else _products(planes)[:channels]
            first = _all_masks([mask.unbind(1) for mask in claims], residual, tiny, energies)
            there = into(chunk)
            yield (
                chunk,
                [
                    [
                        torch.complex(real * mask, imag * mask, out=None if there is None else there[number, channel])
                        for channel, ((real, imag), mask) in enumerate(zip(planes, first[source], strict=True))
                    ]
                    for number, source in enumerate(wanted)
                ],
            )
        return

    complex_dtype = mixture.dtype.to_complex()
    moments = _Moments(sources, mixture.dtype, windows)
    widen = _precise if frames < _FEW else _as_it_is
    for chunk, claims in zip(chunks, chain([first_masks], asked), strict=True):
        if compiled and frames >= _FEW and planar.takes(claims, mixture[:, :, chunk]):
            moments.add_first(mixture[:, :, chunk], claims, residual, tiny)
            continue
        products = _products([(widen(real), widen(imag)) for real, imag in at(chunk)])
        first = _all_masks([widen(mask).unbind(1) for mask in claims], residual, tiny, products[:channels])
        moments.add_masked(products, first, channels)
    peak = _precise(moments.peak_power).sqrt()
    for iteration in range(1, niter + 1):
        gains = (_MonoGains if channels == 1 else _StereoGains)(moments, complex_dtype, peak, eps)
        by_loops = gains if compiled and isinstance(gains, _StereoGains) else None
        if iteration == niter:
            apply = gains.apply if by_loops is None else by_loops.apply_compiled
            for chunk, powers in zip(chunks, moments.powers, strict=True):
                yield chunk, apply(mixture[:, :, chunk], powers, wanted, into(chunk))
            return
        following = _Moments(sources, mixture.dtype, windows)
        for chunk, powers in zip(chunks, moments.powers, strict=True):
            if by_loops is None:
                following.add(gains.apply(mixture[:, :, chunk], powers, range(sources), None))
            else:
                following.add_again(mixture[:, :, chunk], powers, by_loops)
        moments = following


def _asked(masks: Callable[[slice], Sequence[Tensor]], chunks: Sequence[slice]) -> Iterator[list[Tensor]]:
    """The masks of each chunk, asked for several chunks at a time: a network's products like many rows."""
    for group in (chunks[at : at + _ASKED] for at in range(0, len(chunks), _ASKED)):
        together = masks(slice(group[0].start, group[-1].stop))
        for chunk in group:
            yield [mask[chunk.start - group[0].start : chunk.stop - group[0].start] for mask in together]


def _all_masks(
    masks: Sequence[Sequence[Tensor]], residual: bool, tiny: float | None, energies: Sequence[Plane]
) -> list[Sequence[Tensor]]:
    """For each source, for each channel, a mask; the residual's may be negative.

    With `tiny`, what comes are masks times the mixture's magnitudes: the roots of its `energies`, with that added.
    """
    if tiny is not None:
        inverse = [(energy + tiny).rsqrt() for energy in energies]
        masks = [[claim * per for claim, per in zip(claims, inverse, strict=True)] for claims in masks]
    if not residual:
        return list(masks)
    rest = [1 - mask for mask in masks[0]]
    for source in masks[1:]:
        rest = [left - mask for left, mask in zip(rest, source, strict=True)]
    return [*masks, rest]


def _products(channels: Sequence[Parts]) -> list[Plane]:
    """The distinct entries of x x^H: 00; or 00, 11, and the real and imaginary part of 01."""
    products = [torch.addcmul(real * real, imag, imag) for real, imag in channels]
    if len(channels) == 2:
        (real0, imag0), (real1, imag1) = channels
        products.append(torch.addcmul(real0 * real1, imag0, imag1))
        products.append(torch.addcmul(imag0 * real1, real0, imag1, value=-1))
    return products


class _Moments:
    """Powers of the sources, and sums over the window of their covariances.

    Attributes:
        powers: for each chunk, for each source, `(frames, bins)`: v_j.
        sums: for each source, the distinct entries of ``sum_t y y^H``, as `_products` orders them; `(bins,)`, in double
            precision where the device has it: those of a chunk are rounded, those of a window are not.
        peak_power: largest squared magnitude of the mixture so far; of several windows, for each bin that of its own.
    """

    def __init__(self, sources: int, dtype: torch.dtype, windows: int) -> None:
        self.dtype = dtype
        self.windows = windows
        self.powers: list[Planes] = []
        self.sums: list[list[Tensor]] = [[] for _ in range(sources)]
        self.peak_power = torch.zeros(())

    def add_masked(self, products: Sequence[Plane], masks: Sequence[Sequence[Tensor]], channels: int) -> None:
        """The first estimates are masks, `(frames, bins)` for each channel, times a mixture with these `_products`."""
        if self.windows == 1:
            peak = torch.stack([product.amax() for product in products[:channels]]).amax()
        else:
            of_bins = torch.stack([product.amax(0) for product in products[:channels]]).amax(0)
            of_windows = of_bins.unflatten(0, (self.windows, -1))
            peak = of_windows.amax(1, keepdim=True).expand_as(of_windows).flatten()
        self.peak_power = torch.maximum(self.peak_power, peak) if self.powers else peak
        self.powers.append(
            [self._add(source, self._masked(products, of_source)) for source, of_source in enumerate(masks)]
        )

    def add_first(self, mixture: Tensor, masks: Sequence[Tensor], residual: bool, tiny: float | None) -> None:
        """`add_masked` by loops, for real and imaginary parts `(2, 2, frames, bins)` and masks `(frames, 2, bins)`."""
        sums = self._no_sums(mixture)
        powers, largest = planar.moments(mixture, masks, residual, sums, tiny)
        peak = mixture.new_tensor(largest)
        self.peak_power = torch.maximum(self.peak_power, peak) if self.powers else peak
        self._add_up(powers, sums)

    def add(self, estimates: Sequence[Sequence[Tensor]]) -> None:
        """Estimates, complex `(frames, bins)`, for each source and channel."""
        spectra = (parts(torch.stack(list(planes), dim=1)) for planes in estimates)
        products = (_products([(real, imag) for real, imag in channels]) for channels in spectra)
        self.powers.append([self._add(source, of_source) for source, of_source in enumerate(products)])

    def add_again(self, mixture: Tensor, powers: Planes, gains: _StereoGains) -> None:
        """`add` by loops, of the estimates that these gains would make."""
        sums = self._no_sums(mixture)
        self._add_up(planar.reestimated(mixture, _stacked(powers), *gains.constants, gains.noise, sums), sums)

    def _no_sums(self, mixture: Tensor) -> Tensor:
        sums = mixture.new_empty((len(self.sums), 4, mixture.shape[-1]), dtype=torch.float64)
        for of_source in sums:  # one by one: torch's threads, once awake, would take the processors from the loops'
            of_source.zero_()
        return sums

    def _add_up(self, powers: Tensor, sums: Tensor) -> None:
        self.powers.append(powers)
        for source, entries in enumerate(sums):
            before = self.sums[source]
            self.sums[source] = [a + b for a, b in zip(before, entries, strict=True)] if before else list(entries)

    @staticmethod
    def _masked(products: Sequence[Plane], masks: Sequence[Tensor]) -> list[Plane]:
        factors = [mask.square() for mask in masks]
        if len(masks) == 2:
            factors += [masks[0] * masks[1]] * 2
        return [factor * product for factor, product in zip(factors, products, strict=True)]

    def _add(self, source: int, products: list[Plane]) -> Plane:
        """Every distinct entry of a source's y y^H -> its power."""
        sums = [_precise(product.sum(0)) for product in products]
        before = self.sums[source]
        self.sums[source] = [a + b for a, b in zip(before, sums, strict=True)] if before else sums
        power = products[0] if len(products) == 1 else (products[0] + products[1]).mul_(0.5)
        return power.to(self.dtype)


def _stacked(powers: Planes) -> Tensor:
    return powers if isinstance(powers, Tensor) else torch.stack(list(powers))


def _precise(values: Tensor) -> Tensor:
    """Double precision, where the device has it."""
    return values if values.device.type == "mps" else values.double()


def _as_it_is(values: Tensor) -> Tensor:
    return values


class _MonoGains:
    """One channel: ``y_j = v_j R_j x / (sum_k v_k R_k + sqrt(eps))``."""

    def __init__(self, moments: _Moments, dtype: torch.dtype, peak: Tensor, eps: float) -> None:
        shrink = (peak / _PEAK).clamp_min(1.0).pow(-2)
        self.noise = eps**0.5
        real = dtype.to_real()
        self.covariances = [(shrink * sums[0] / (eps + shrink * sums[0]) * shrink).to(real) for sums in moments.sums]

    def apply(self, mixture: Tensor, powers: Planes, wanted: Sequence[int], out: Tensor | None) -> list[list[Tensor]]:
        models = [power * covariance for power, covariance in zip(powers, self.covariances, strict=True)]
        inverse = (sum(models) + self.noise).reciprocal()
        estimates = []
        for number, source in enumerate(wanted):
            gain = models[source] * inverse
            real, imag = mixture[0]
            there = None if out is None else out[number, 0]
            estimates.append([torch.complex(real * gain, imag * gain, out=there)])
        return estimates


class _StereoGains:
    """Two channels: ``y_j = v_j (R_j Q) (Q^H C Q)^-1 Q^H x`` with a unitary Q for each bin.

    The columns of Q are the window's strongest direction in that bin and the one across it. Any unitary Q gives the
    same result, so none of its gradient is wanted; this one keeps C's small eigenvalue from drowning in the large one.
    """

    def __init__(self, moments: _Moments, dtype: torch.dtype, peak: Tensor, eps: float) -> None:
        # Scaling x and y by 1 / scale scales their powers by its square, and nothing else.
        shrink = (peak / _PEAK).clamp_min(1.0).pow(-2)
        self.noise = eps**0.5
        left, right, real01, imag01 = (sum(entries).detach() for entries in zip(*moments.sums, strict=True))
        angle = torch.atan2(2 * torch.hypot(real01, imag01), left - right) / 2
        # Not `cos` and `sin`, for which torch wakes its threads, see `_Moments._no_sums`.
        turn, turned = (torch.polar(torch.ones_like(angle), by) for by in (torch.atan2(imag01, real01), angle))
        cos, sin = turned.real, turned.imag * turn  # Q = [[cos, -sin], [conj(sin), cos]]
        real = dtype.to_real()
        self.cos, self.sin = cos.to(real), (sin.real.to(real), sin.imag.to(real))
        self.rotated = []  # for each source: Q^H R Q, its entries 00, 11 and the real and imaginary parts of 01
        self.back = []  # for each source: R Q, its entries 00, 01, 10, 11
        for s00, s11, real01, imag01 in moments.sums:
            weight = shrink / (eps + shrink * (s00 + s11) / 2) * shrink  # the second is v_j's, applied to R_j once
            r00, r11, r01 = weight * s00, weight * s11, weight * torch.complex(real01, imag01)
            k00 = r00 * cos + r01 * sin.conj()
            k10 = r01.conj() * cos + r11 * sin.conj()
            k01 = r01 * cos - r00 * sin
            k11 = r11 * cos - r01.conj() * sin
            q01 = cos * k01 + sin * k11
            q00, q11 = (cos * k00 + sin * k10).real, (cos * k11 - sin.conj() * k01).real
            self.rotated.append([entry.to(real) for entry in (q00, q11, q01.real, q01.imag)])
            self.back.append([entry.to(dtype) for entry in (k00, k01, k10, k11)])

    def apply_compiled(
        self, mixture: Tensor, powers: Planes, wanted: Sequence[int], out: Tensor | None
    ) -> list[list[Tensor]]:
        """`apply` by loops."""
        estimates = planar.filtered(mixture, _stacked(powers), *self.constants, wanted, self.noise, out)
        return [list(channels) for channels in estimates]

    @cached_property
    def constants(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each bin: the basis, and each source's covariance in it and out of it, as `planar.filtered` wants them."""
        back = self.cos.new_empty(len(self.back), 4, 2, len(self.cos))
        for there, entries in zip(back, self.back, strict=True):  # one by one, as in `_Moments._no_sums`
            there.copy_(torch.view_as_real(torch.stack(entries)).mT)
        rotated = self.cos.new_empty(len(self.rotated), 4, len(self.cos))
        for there, entries in zip(rotated, self.rotated, strict=True):
            torch.stack(entries, out=there)
        return torch.stack([self.cos, *self.sin]), rotated, back

    def apply(self, mixture: Tensor, powers: Planes, wanted: Sequence[int], out: Tensor | None) -> list[list[Tensor]]:
        (left_real, left_imag), (right_real, right_imag) = mixture
        cos, (sin_real, sin_imag) = self.cos, self.sin
        # Q^H x
        strong_real = _sum(left_real * cos, (right_real, sin_real, 1), (right_imag, sin_imag, -1))
        strong_imag = _sum(left_imag * cos, (right_imag, sin_real, 1), (right_real, sin_imag, 1))
        weak_real = _sum(right_real * cos, (left_real, sin_real, -1), (left_imag, sin_imag, -1))
        weak_imag = _sum(right_imag * cos, (left_imag, sin_real, -1), (left_real, sin_imag, 1))

        c00, c11, real01, imag01 = (_weighted(powers, entries) for entries in zip(*self.rotated, strict=True))
        # det(A + s I) = det A + s (trace A + s), and det A is never negative: so nothing can vanish by rounding.
        determinant = _sum(c00 * c11, (real01, real01, -1), (imag01, imag01, -1)).clamp_min(0.0)
        inverse = determinant.add_(c00 + c11, alpha=self.noise).add_(self.noise**2).reciprocal()
        c00, c11 = c00 + self.noise, c11 + self.noise
        # adj(Q^H C Q) Q^H x
        z_strong = torch.complex(
            _sum(strong_real * c11, (weak_real, real01, -1), (weak_imag, imag01, 1)),
            _sum(strong_imag * c11, (weak_imag, real01, -1), (weak_real, imag01, -1)),
        )
        z_weak = torch.complex(
            _sum(weak_real * c00, (strong_real, real01, -1), (strong_imag, imag01, -1)),
            _sum(weak_imag * c00, (strong_imag, real01, -1), (strong_real, imag01, 1)),
        )
        estimates = []
        for number, source in enumerate(wanted):
            gain = powers[source] * inverse
            if out is not None:
                gain = gain.to(z_strong.dtype)  # once, not in each product
            planes = []
            for channel in range(2):
                k_strong, k_weak = self.back[source][2 * channel : 2 * channel + 2]
                plane = torch.mul(z_strong, k_strong, out=None if out is None else out[number, channel])
                planes.append(plane.add_(z_weak * k_weak).mul_(gain))
            estimates.append(planes)
        return estimates


def _sum(first: Tensor, *products: tuple[Tensor, Tensor, int]) -> Tensor:
    """`first`, which is written over, plus products with their signs."""
    for a, b, sign in products:
        first.addcmul_(a, b, value=sign)
    return first


def _weighted(powers: Planes, entries: Sequence[Tensor]) -> Tensor:
    """Sum over the sources of power `(frames, bins)` times entry `(bins,)`."""
    total = powers[0] * entries[0]
    for power, entry in zip(powers[1:], entries[1:], strict=True):
        total.addcmul_(power, entry)
    return total
