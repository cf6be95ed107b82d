"""Effects with gradients: for networks that learn to mix, and for fitting settings to a recording.

The same effects, the same fields; any field that is a number may be given as a tensor instead, and gradients reach it
and the waveform. What is exact in the offline path by recursion is here a product of spectra:

- equaliser and filters: frequency sampling, with a transform that outlasts the slowest pole;
- compressor: its two one-pole filters as convolutions with their own (truncated, hence not aliased) responses, the
  leaking maximum between them as a running one (see `umx_ext.mixing.dynamics`). Attack *and* release are obeyed;
- reverb: the noise engine, whose noise belongs to the seed and stays the same from call to call.

Values that arrive as tensors are not held to the ranges of the fields: an optimiser may pass through anything.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from umx_ext.errors import AudioError, UsageError
from umx_ext.mixing.dynamics import FLOOR
from umx_ext.mixing.effect import Effect, require_rate
from umx_ext.mixing.effects import Compressor, Gain, HighPass, LowPass, Pan, ParametricEq, Reverb
from umx_ext.mixing.equaliser import biquad, frequency_sampled
from umx_ext.mixing.panning import pan_gains, require_stereo
from umx_ext.mixing.reverb import noise_response

__all__ = ["DIFFERENTIABLE", "apply_differentiable", "parameters"]

# How near a pan position may come to either end: the law "-4.5" has an infinite slope there.
PAN_MARGIN = 1e-4


def parameters(effect: Effect) -> dict[str, Tensor]:
    """The numbers of an effect that `apply_differentiable` can learn, as scalars in double precision.

    Of a `ParametricEq`: ``frequency_hz``, ``gain_db`` and ``q``, each `(bands,)`.
    """
    if isinstance(effect, ParametricEq):
        names = ("frequency_hz", "gain_db", "q")
        return {
            name: torch.tensor([getattr(band, name) for band in effect.bands], dtype=torch.float64) for name in names
        }
    fixed = {"seed", "room_size"}  # they draw and place the noise: no slope leads from one to the next
    values = {field.name: getattr(effect, field.name) for field in dataclasses.fields(effect)}
    numbers = {name: value for name, value in values.items() if isinstance(value, float) and name not in fixed}
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}


def apply_differentiable(effect: Effect, waveform: Tensor, sample_rate: int, **values: Tensor) -> Tensor:
    """Run a waveform through an effect, some of whose numbers are tensors that want gradients.

    Args:
        effect: gives the kind, and every value that `values` does not name.
        waveform: `(..., channels, samples)`, float.
        sample_rate: Hz.
        **values: fields of the effect as tensors: scalars, or of the waveform's leading shape `(...)`, one value an
            item. Of a `ParametricEq`, ``frequency_hz``, ``gain_db`` and ``q`` as `(bands,)` or `(..., bands)`. Of a
            `Reverb`, scalars only.

    Returns:
        The same shape and dtype. Within 1e-4 of ``effect(waveform, sample_rate)`` (measured: closer).

    Raises:
        UsageError: a value that the effect does not have; a reverb whose engine is not "noise".
        AudioError: wrong axes.
    """
    require_rate(sample_rate)
    if waveform.ndim < 2:
        raise AudioError(f"expected (..., channels, samples), got {tuple(waveform.shape)}")
    run = DIFFERENTIABLE.get(effect.kind)
    if run is None:
        raise UsageError(f"no differentiable path for {effect.kind!r}; there is one for {', '.join(DIFFERENTIABLE)}")
    known = parameters(effect)
    known = {name: value.to(waveform.device) for name, value in known.items()}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UsageError(f"{effect.kind}: nothing to learn named {', '.join(unknown)}; known: {', '.join(known)}")
    return run(effect, waveform, sample_rate, {**known, **{name: value.double() for name, value in values.items()}})


def _gain(effect: Effect, waveform: Tensor, sample_rate: int, values: Mapping[str, Tensor]) -> Tensor:
    return waveform * (10 ** (values["gain_db"] / 20)).to(waveform.dtype)[..., None, None]


def _pass(effect: Effect, waveform: Tensor, sample_rate: int, values: Mapping[str, Tensor]) -> Tensor:
    cutoff_hz = values.get("cutoff_hz")
    if cutoff_hz is None or (effect.is_neutral and not cutoff_hz.requires_grad):
        return waveform.clone()
    shape = "high-pass" if isinstance(effect, HighPass) else "low-pass"
    b, a = biquad(shape, cutoff_hz, torch.zeros_like(cutoff_hz), values["q"], sample_rate)
    return frequency_sampled(waveform, b[..., None, :], a[..., None, :])


def _equaliser(effect: Effect, waveform: Tensor, sample_rate: int, values: Mapping[str, Tensor]) -> Tensor:
    assert isinstance(effect, ParametricEq)
    if not effect.bands:
        return waveform.clone()
    columns = (values[name].unbind(dim=-1) for name in ("frequency_hz", "gain_db", "q"))  # a tensor each band
    coefficients = [
        biquad(band.shape, frequency_hz, gain_db, q, sample_rate)
        for band, frequency_hz, gain_db, q in zip(effect.bands, *columns, strict=True)
    ]
    b, a = (torch.stack(side, dim=-2) for side in zip(*coefficients, strict=True))
    return frequency_sampled(waveform, b, a)


def _compressor(effect: Effect, waveform: Tensor, sample_rate: int, values: Mapping[str, Tensor]) -> Tensor:
    value = {name: tensor[..., None] for name, tensor in values.items()}  # (..., 1), against (..., samples)
    loudest = waveform.abs().amax(dim=-2).double()
    over_db = 20 * loudest.clamp_min(FLOOR).log10() - value["threshold_db"]
    knee_db = value["knee_db"].clamp_min(1e-6)  # a hard knee, but for a millionth of a dB
    inside = torch.minimum((over_db + knee_db / 2).clamp_min(0), knee_db)
    excess = (1 - 1 / value["ratio"]) * (inside.square() / (2 * knee_db) + (over_db - knee_db / 2).clamp_min(0))

    release, attack = (1000 / (value[name].clamp_min(1e-4) * sample_rate) for name in ("release_ms", "attack_ms"))
    linear = _one_pole(excess, release)
    # The leaking maximum of what is left, as a running maximum of its logarithm. Double precision: the exponent grows
    # with the length, and only its differences count.
    growth = release * torch.arange(excess.shape[-1], dtype=torch.float64, device=excess.device)
    rest = (excess - linear).clamp_min(1e-12).log() + growth
    peaks = linear + torch.exp(rest.cummax(dim=-1).values - growth)
    reduction_db = _one_pole(peaks, attack)
    gain = torch.exp((value["makeup_db"] - reduction_db) * (math.log(10) / 20))
    return waveform * gain.to(waveform.dtype)[..., None, :]


def _one_pole(signal: Tensor, rate: Tensor) -> Tensor:
    """``y[n] = a y[n-1] + (1 - a) x[n]`` with ``a = exp(-rate)``, as a convolution with ``(1 - a) a^n``."""
    samples = signal.shape[-1]
    time = torch.arange(samples, dtype=signal.dtype, device=signal.device)
    response = -torch.expm1(-rate) * torch.exp(-rate * time)
    n_fft = 1 << (2 * samples - 1).bit_length()
    product = torch.fft.rfft(signal, n=n_fft) * torch.fft.rfft(response, n=n_fft)
    return torch.fft.irfft(product, n=n_fft)[..., :samples]


def _reverb(effect: Effect, waveform: Tensor, sample_rate: int, values: Mapping[str, Tensor]) -> Tensor:
    assert isinstance(effect, Reverb)
    if effect.engine != "noise":
        raise UsageError(f"only the noise engine has gradients, got {effect.engine!r}; set engine to 'noise'")
    response = noise_response(effect, sample_rate, values)[: waveform.shape[-2]].to(waveform.dtype)
    samples = waveform.shape[-1]
    n_fft = 1 << (samples + response.shape[-1] - 1).bit_length()
    wet = torch.fft.irfft(torch.fft.rfft(waveform, n=n_fft) * torch.fft.rfft(response, n=n_fft), n=n_fft)
    dry_wet = values["dry_wet"].to(waveform.dtype)
    return (1 - dry_wet) * waveform + dry_wet * wet[..., :samples]


def _pan(effect: Effect, waveform: Tensor, sample_rate: int, values: Mapping[str, Tensor]) -> Tensor:
    assert isinstance(effect, Pan)
    if "position" not in values:
        return waveform.clone()
    require_stereo(waveform)
    gains = pan_gains(values["position"].clamp(PAN_MARGIN, 1 - PAN_MARGIN), effect.law)
    return waveform * gains.to(waveform.dtype)[..., None]


DIFFERENTIABLE: dict[str, Callable[[Effect, Tensor, int, Mapping[str, Tensor]], Tensor]] = {
    Gain.kind: _gain,
    HighPass.kind: _pass,
    LowPass.kind: _pass,
    ParametricEq.kind: _equaliser,
    Compressor.kind: _compressor,
    Reverb.kind: _reverb,
    Pan.kind: _pan,
}
