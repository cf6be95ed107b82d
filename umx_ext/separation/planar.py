"""Loops over spectra, compiled: in one pass what torch makes in several, and without the interpreter.

`moments` and `filtered` are the stereo Wiener filter's two passes, some ninety operations on planes each time, and
`reestimated` what comes between two iterations; `wiener` says what they compute. `magnitude`, `split` and `add` are
small, and do the same with torch where they must.

The extension is built with the package where a C compiler is to be had. Where none was, `compiled` is false, and all is
done with torch alone: the same numbers but for roundings, the filter several times slower.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

try:
    from umx_ext.separation import _planar
except ImportError:  # not built here
    _planar = None  # type: ignore[assignment]

__all__ = ["add", "compiled", "filtered", "magnitude", "moments", "plain", "ready", "reestimated", "split", "takes"]

LAYOUT = 4  # of what the loops are given: one that was built for another is not used
MOST_SOURCES = 32
SHARE = 1 << 16  # bins of all frames that are worth a thread of their own


def compiled() -> bool:
    """Whether the loops were built with the package, and with this version of it."""
    return _planar is not None and getattr(_planar, "LAYOUT", 0) == LAYOUT


def ready(mixture: Tensor, sources: int) -> bool:
    """Whether the loops can be used: built, and for float32 in stereo on the CPU.

    They record nothing: neither gradients of either mode, nor a trace.
    """
    return (
        compiled()
        and mixture.shape[:2] == (2, 2)
        and mixture.stride(-1) == 1
        and sources <= MOST_SOURCES
        and _single(mixture)
    )


def plain(values: Tensor) -> bool:
    """Whether these are numbers as they lie in the CPU's memory: nothing is put off, traced or transformed."""
    if type(values) not in (Tensor, nn.Parameter) or values.device.type != "cpu" or torch.jit.is_tracing():
        return False
    if values.is_conj() or values.is_neg():
        return False
    if forward_ad.unpack_dual(values).tangent is not None:
        return False
    try:
        return values.data_ptr() != 0 or values.numel() == 0
    except RuntimeError:  # a transformation of torch.func; others have no address
        return False


def _single(values: Tensor) -> bool:
    return values.dtype == torch.float32 and plain(values)


def takes(masks: Sequence[Tensor], mixture: Tensor) -> bool:
    """Whether these masks are what `moments` takes with this mixture."""
    _, channels, frames, bins = mixture.shape
    return all(mask.shape == (frames, channels, bins) and _single(mask) for mask in masks)


def moments(
    mixture: Tensor, masks: Sequence[Tensor], residual: bool, sums: Tensor, tiny: float | None = None
) -> tuple[Tensor, float]:
    """Powers of the first estimates, and sums of their covariances over the frames.

    The bins are shared by as many threads as torch would use, as are those of `filtered`.

    Args:
        mixture: real and imaginary parts, float32 `(2, 2, frames, bins)`.
        masks: for each source, float32 `(frames, 2, bins)`.
        residual: one more source, whose mask is 1 minus the others.
        sums: float64 `(sources, 4, bins)`, the entries 00, 11 and the real and imaginary part of 01 of
            ``sum_t y y^H``; these frames' are added.
        tiny: the masks come multiplied with the mixture's magnitudes; its power and this are their squares.

    Returns:
        The powers, `(sources, frames, bins)`, and the mixture's largest squared magnitude.
    """
    planes = [_rows(mask) for mask in masks]
    powers = mixture.new_empty(len(masks) + residual, *mixture.shape[2:])
    peak = _planar.moments(
        *_where(mixture),
        tuple(plane.data_ptr() for plane in planes),
        tuple(plane[:, 1].data_ptr() for plane in planes),
        tuple(plane.stride(0) for plane in planes),
        int(residual),
        tiny is not None,
        tiny or 0.0,
        powers.data_ptr(),
        sums.data_ptr(),
        _threads(mixture),
    )
    return powers, peak


def filtered(
    mixture: Tensor,
    powers: Tensor,
    basis: Tensor,
    rotated: Tensor,
    back: Tensor,
    wanted: Sequence[int],
    noise: float,
    out: Tensor | None = None,
) -> Tensor:
    """``v_j (R_j Q) (Q^H C Q)^-1 Q^H x`` for the wanted sources.

    Args:
        mixture: real and imaginary parts, float32 `(2, 2, frames, bins)`.
        powers: of the sources, `(sources, frames, bins)`.
        basis: Q of each bin, `(3, bins)`: cosine, and the real and imaginary part of the sine.
        rotated: ``Q^H R_j Q``, `(sources, 4, bins)`: entries 00, 11, real and imaginary part of 01.
        back: ``R_j Q``, `(sources, 4, 2, bins)`: entries 00, 01, 10, 11, real and imaginary parts.
        wanted: indices of sources; negative ones count from the last.
        noise: what C has on its diagonal besides.
        out: complex64 `(wanted, 2, frames, bins)`, a frame's bins next to each other, to be written to.

    Returns:
        Complex `(wanted, 2, frames, bins)`: `out`, if given.

    Raises:
        IndexError: no such source.
    """
    which = tuple(range(len(powers))[source] for source in wanted)
    estimates = mixture.new_empty(len(which), *mixture.shape[1:], dtype=torch.complex64) if out is None else out
    _gains(mixture, powers, basis, rotated, back, which, noise, estimates=estimates)
    return estimates


def reestimated(
    mixture: Tensor, powers: Tensor, basis: Tensor, rotated: Tensor, back: Tensor, noise: float, sums: Tensor
) -> Tensor:
    """What another iteration starts from: of the estimates of all sources, as in `filtered`, which are not kept.

    Args:
        mixture, powers, basis, rotated, back, noise: as for `filtered`.
        sums: float64 `(sources, 4, bins)`, of the estimates' covariances, as in `moments`; these frames' are added.

    Returns:
        The estimates' powers, `(sources, frames, bins)`.
    """
    following = torch.empty_like(powers, memory_format=torch.contiguous_format)
    _gains(mixture, powers, basis, rotated, back, tuple(range(len(powers))), noise, following=following, sums=sums)
    return following


def _gains(
    mixture: Tensor,
    powers: Tensor,
    basis: Tensor,
    rotated: Tensor,
    back: Tensor,
    which: tuple[int, ...],
    noise: float,
    *,
    estimates: Tensor | None = None,
    following: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    powers, basis, rotated, back = (values.contiguous() for values in (powers, basis, rotated, back))
    source, channel, row, _ = (0, 0, 0, 0) if estimates is None else estimates.stride()
    _planar.gains(
        *_where(mixture),
        len(powers),
        powers.data_ptr(),
        basis.data_ptr(),
        rotated.data_ptr(),
        back.data_ptr(),
        which,
        noise,
        0 if estimates is None else estimates.data_ptr(),
        source,
        channel,
        row,
        0 if following is None else following.data_ptr(),
        0 if sums is None else sums.data_ptr(),
        _threads(mixture),
    )


def magnitude(spectrum: Tensor, out: Tensor) -> None:
    """Of a complex64 spectrum of any shape, into a float32 tensor of that shape; both contiguous, on the CPU."""
    if compiled():
        _planar.magnitude(spectrum.data_ptr(), out.data_ptr(), out.numel())
        return
    squares = torch.view_as_real(spectrum).square()  # several times faster than `abs`, which minds overflow
    torch.add(squares[..., 0], squares[..., 1], out=out).sqrt_()


def split(spectrum: Tensor, out: Tensor) -> None:
    """Complex64 `(frames, channels, bins)` into float32 `(channels, 2, frames, bins)`; on the CPU, plain numbers.

    The frames are shared by as many threads as torch would use.
    """
    if compiled() and out.stride(3) == 1:
        spectrum = _rows(spectrum)
        channel, part, row, _ = out.stride()
        frames, channels, bins = spectrum.shape
        spectrum_row, spectrum_channel, _ = spectrum.stride()
        _planar.split(
            spectrum.data_ptr(),
            spectrum_row,
            spectrum_channel,
            frames,
            channels,
            bins,
            out.data_ptr(),
            channel,
            part,
            row,
            _threads(out),
        )
    else:
        out.copy_(torch.view_as_real(spectrum).permute(1, 3, 0, 2))


def add(frames: Tensor, window: Tensor, sums: Tensor, hop: int) -> None:
    """Add windowed frames `(frames, size)` to ``sums``, each a hop later; float32 `((frames - 1) * hop + size,)`."""
    rows, size = frames.shape
    if compiled():
        _planar.add(frames.data_ptr(), window.data_ptr(), sums.data_ptr(), rows, size, hop)
        return
    for first in range(0, size, hop):
        part = slice(first, min(first + hop, size))
        target = sums[first : first + (rows - 1) * hop + part.stop - first]
        target.unfold(0, part.stop - first, hop).addcmul_(frames[:, part], window[part])


def _threads(mixture: Tensor) -> int:
    return min(torch.get_num_threads(), 1 + mixture.shape[2] * mixture.shape[3] // SHARE)


def _rows(values: Tensor) -> Tensor:
    """Of three axes, the last's numbers next to each other."""
    return values if values.stride(2) == 1 else values.contiguous()


def _where(mixture: Tensor) -> tuple[int, int, int, int, int, int]:
    channel, part, row, _ = mixture.stride()
    _, _, rows, bins = mixture.shape
    return mixture.data_ptr(), channel, part, row, rows, bins
