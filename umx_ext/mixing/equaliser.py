"""Biquads: parametric equaliser, high-pass, low-pass.

The forms are those of R. Bristow-Johnson, "Cookbook formulae for audio EQ biquad filter coefficients": with
``A = 10^(gain_db / 40)``, ``w0 = 2 pi f / sample_rate`` and ``alpha = sin(w0) / (2 q)``, each the bilinear transform of
an analogue second-order filter.

Two ways to run them. `filter_exactly` is the recursion, in double precision. `frequency_sampled` multiplies spectra, so
gradients reach the coefficients; the two agree to rounding (the transform is long enough for the slowest pole).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from umx_ext.errors import UsageError
from umx_ext.mixing.effect import Effect, check_fields, choice, fields_from, number

__all__ = ["Band", "HighPass", "LowPass", "ParametricEq", "biquad", "filter_exactly", "frequency_sampled", "response"]

SHAPES = ("peak", "low-shelf", "high-shelf", "high-pass", "low-pass")

# Samples that are filtered at a time: few enough that a block in double precision stays in the cache.
_BLOCK = 1 << 16

# A filter that rings below this on silent input is put to rest. It is 500 dB below anything that can be heard; without
# it, a minute of silence would be spent on denormal numbers, which processors handle a hundred times slower.
_REST = 1e-30


def biquad(shape: str, frequency_hz: Tensor, gain_db: Tensor, q: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Coefficients ``(b, a)`` of a second-order section, normalised so that ``a[..., 0] == 1``; differentiable.

    Args:
        shape: "peak", "low-shelf", "high-shelf", "high-pass" or "low-pass"; the latter two have no use for `gain_db`.
        frequency_hz, gain_db, q: `(...)`, any shapes that broadcast.
        sample_rate: Hz.

    Returns:
        Two tensors `(..., 3)`, powers of 1/z rising.
    """
    frequency_hz, gain_db, q = torch.broadcast_tensors(frequency_hz, gain_db, q)
    amplitude = 10 ** (gain_db / 40)
    angle = 2 * math.pi * frequency_hz / sample_rate
    cos, alpha = angle.cos(), angle.sin() / (2 * q)
    if shape == "peak":
        b = (1 + alpha * amplitude, -2 * cos, 1 - alpha * amplitude)
        a = (1 + alpha / amplitude, -2 * cos, 1 - alpha / amplitude)
    elif shape in ("low-shelf", "high-shelf"):
        # The high shelf is the low one mirrored in frequency (z -> -z): cos and the middle coefficients change sign.
        sign = 1 if shape == "low-shelf" else -1
        cos, slope = sign * cos, 2 * amplitude.sqrt() * alpha
        more, less = amplitude + 1, amplitude - 1
        b = (
            amplitude * (more - less * cos + slope),
            sign * 2 * amplitude * (less - more * cos),
            amplitude * (more - less * cos - slope),
        )
        a = (more + less * cos + slope, -sign * 2 * (less + more * cos), more + less * cos - slope)
    elif shape in ("high-pass", "low-pass"):
        sign = 1 if shape == "low-pass" else -1
        edge = (1 - sign * cos) / 2
        b = (edge, sign * 2 * edge, edge)
        a = (1 + alpha, -2 * cos, 1 - alpha)
    else:
        raise UsageError(f"no biquad shape named {shape!r}; known: {', '.join(SHAPES)}")
    return torch.stack(b, dim=-1) / a[0][..., None], torch.stack(a, dim=-1) / a[0][..., None]


def sections(bands: Sequence[tuple[str, float, float, float]], sample_rate: int) -> np.ndarray:
    """Second-order sections `(bands, 6)` in double precision of ``(shape, frequency_hz, gain_db, q)`` each.

    Raises:
        UsageError: a frequency that this sample rate cannot carry.
    """
    rows = []
    for shape, frequency_hz, gain_db, q in bands:
        if not 0 < frequency_hz < sample_rate / 2:
            raise UsageError(
                f"expected the {shape} filter's frequency below half the sample rate ({sample_rate / 2:g} Hz), "
                f"got {frequency_hz:g} Hz; leave it out or use a higher sample rate"
            )
        values = torch.tensor([frequency_hz, gain_db, q], dtype=torch.float64)
        rows.append(torch.cat(biquad(shape, values[0], values[1], values[2], sample_rate)).numpy())
    return np.stack(rows)


def filter_exactly(sos: np.ndarray, waveform: Tensor) -> Tensor:
    """The recursion of second-order sections along the last axis, from rest, computed in double precision.

    Args:
        sos: `(sections, 6)`.
        waveform: `(..., samples)`, float, on the CPU.

    Returns:
        A new tensor of the same shape and dtype.
    """
    from scipy.signal import sosfilt

    rows = waveform.reshape(-1, waveform.shape[-1]).numpy()
    filtered = np.empty_like(rows)
    state = np.zeros((len(sos), len(rows), 2))
    for start in range(0, rows.shape[1], _BLOCK):
        block = rows[:, start : start + _BLOCK]
        if not block.any() and np.abs(state).max() < _REST:
            filtered[:, start : start + _BLOCK] = 0
            continue
        filtered[:, start : start + _BLOCK], state = sosfilt(sos, block, zi=state)  # as precise as the state
    return torch.from_numpy(filtered).reshape(waveform.shape)


def response(b: Tensor, a: Tensor, n_fft: int) -> Tensor:
    """Frequency response of cascaded sections at the bins of a real FFT; differentiable.

    Args:
        b, a: `(..., sections, 3)`.
        n_fft: length of the transform, samples.

    Returns:
        Complex `(..., n_fft // 2 + 1)`.
    """
    angle = torch.arange(n_fft // 2 + 1, dtype=b.dtype, device=b.device) * (2 * math.pi / n_fft)
    delay = torch.polar(torch.ones_like(angle), -angle)  # 1/z, (bins,)
    b, a = b[..., None], a[..., None]  # (..., sections, 3, 1)
    # Horner's rule in 1/z.
    above = b[..., 0, :] + delay * (b[..., 1, :] + delay * b[..., 2, :])
    below = a[..., 0, :] + delay * (a[..., 1, :] + delay * a[..., 2, :])
    return (above / below).prod(dim=-2)


def frequency_sampled(waveform: Tensor, b: Tensor, a: Tensor) -> Tensor:
    """Filter by multiplying spectra; gradients reach the waveform and the coefficients.

    The response is periodic in time, so a tail longer than the padding would come back at the start. The transform is
    therefore as long as the signal and the tail of the slowest pole (to 1e-6) together need, and at least twice the
    signal.

    Args:
        waveform: `(..., channels, samples)`.
        b, a: `(..., sections, 3)`, leading axes as the waveform's or none; in double precision, since low frequencies
            subtract nearly equal numbers.

    Returns:
        `(..., channels, samples)` in the waveform's dtype.
    """
    samples = waveform.shape[-1]
    # Complex poles have the radius sqrt(a2), real ones solve the quadratic.
    linear, constant = a.detach()[..., 1], a.detach()[..., 2]
    root = (linear**2 - 4 * constant).clamp_min(0).sqrt()
    radius = torch.where(root > 0, (linear.abs() + root) / 2, constant.clamp_min(0).sqrt())
    slowest = float(radius.max().clamp(1e-3, 1 - 1e-6))
    tail = math.ceil(math.log(1e-6) / math.log(slowest))
    n_fft = 1 << (samples + max(samples - 1, min(tail, 1 << 22)) - 1).bit_length()
    curve = response(b, a, n_fft).to(torch.fft.rfft(waveform[..., :1]).dtype)
    spectrum = torch.fft.rfft(waveform, n=n_fft) * curve[..., None, :]
    return torch.fft.irfft(spectrum, n=n_fft)[..., :samples]


@dataclass(frozen=True)
class Band:
    """One band of a `ParametricEq`.

    Attributes:
        frequency_hz: centre of a peak, middle of a shelf's slope; 10 to 48000 Hz, below half the sample rate.
        gain_db: -48 to 48 dB; 0 is no change.
        q: 0.05 to 40. A peak of Q sqrt(2) is about an octave wide.
        shape: "peak", "low-shelf" or "high-shelf".
    """

    frequency_hz: float = number(1000.0, 10, 48000, "Hz")
    gain_db: float = number(0.0, -48, 48, "dB")
    q: float = number(math.sqrt(2), 0.05, 40)
    shape: str = choice("peak", "peak", "low-shelf", "high-shelf")

    def __post_init__(self) -> None:
        check_fields(self, "band")


@dataclass(frozen=True)
class ParametricEq(Effect):
    """Parametric equaliser: peaks and shelves one after the other, without latency.

    Attributes:
        bands: `Band` values, or mappings of their fields; a band of 0 dB is left out. At most 64.

    >>> ParametricEq((Band(4000, -6),))
    ParametricEq(bands=(Band(frequency_hz=4000.0, gain_db=-6.0, q=1.4142135623730951, shape='peak'),))
    """

    kind: ClassVar[str] = "parametric_eq"
    bands: tuple[Band, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.bands, (str, Mapping)) or not isinstance(self.bands, Sequence) or len(self.bands) > 64:
            raise UsageError(f"parametric_eq: expected bands to be a list of at most 64 bands, got {self.bands!r}")
        bands = (band if isinstance(band, Band) else fields_from(Band, band, "band") for band in self.bands)
        object.__setattr__(self, "bands", tuple(bands))

    @classmethod
    def neutral(cls) -> ParametricEq:
        return cls((Band(1000.0, 0.0),))

    @property
    def is_neutral(self) -> bool:
        return all(band.gain_db == 0 for band in self.bands)

    def _process(self, waveform: Tensor, sample_rate: int) -> Tensor:
        active = [(band.shape, band.frequency_hz, band.gain_db, band.q) for band in self.bands if band.gain_db]
        return filter_exactly(sections(active, sample_rate), waveform)

    def to_dict(self) -> dict[str, Any]:
        fields = super().to_dict()
        return {**fields, "bands": list(fields["bands"])}


@dataclass(frozen=True)
class HighPass(Effect):
    """Second-order high-pass, 12 dB an octave.

    Attributes:
        cutoff_hz: 0 (off) to 24000 Hz, below half the sample rate. The gain there is `q` (-3.01 dB for 0.7071).
        q: 0.1 to 10; sqrt(1/2), the default, is a Butterworth filter.
    """

    kind: ClassVar[str] = "high_pass"
    cutoff_hz: float = number(80.0, 0, 24000, "Hz")
    q: float = number(math.sqrt(0.5), 0.1, 10)

    @classmethod
    def neutral(cls) -> HighPass:
        return cls(cutoff_hz=0.0)

    @property
    def is_neutral(self) -> bool:
        return self.cutoff_hz == 0

    def _process(self, waveform: Tensor, sample_rate: int) -> Tensor:
        return filter_exactly(sections([("high-pass", self.cutoff_hz, 0.0, self.q)], sample_rate), waveform)


@dataclass(frozen=True)
class LowPass(Effect):
    """Second-order low-pass, 12 dB an octave.

    Attributes:
        cutoff_hz: 10 to 48000 Hz, below half the sample rate, or None (off). The gain there is `q` (-3.01 dB for
            0.7071).
        q: 0.1 to 10; sqrt(1/2), the default, is a Butterworth filter.
    """

    kind: ClassVar[str] = "low_pass"
    cutoff_hz: float | None = number(16000.0, 10, 48000, "Hz", optional=True)
    q: float = number(math.sqrt(0.5), 0.1, 10)

    @classmethod
    def neutral(cls) -> LowPass:
        return cls(cutoff_hz=None)

    @property
    def is_neutral(self) -> bool:
        return self.cutoff_hz is None

    def _process(self, waveform: Tensor, sample_rate: int) -> Tensor:
        assert self.cutoff_hz is not None  # otherwise neutral
        return filter_exactly(sections([("low-pass", self.cutoff_hz, 0.0, self.q)], sample_rate), waveform)
