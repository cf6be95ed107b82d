"""What every effect must obey, as functions that fail; and for each law a liar: an effect so wrong that it must fail.

A law takes an effect with a setting that does something (one of `EXAMPLES`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from umx_ext.errors import AudioError, UsageError
from umx_ext.mixing.effect import Effect
from umx_ext.mixing.effects import Band, Compressor, Gain, HighPass, LowPass, Pan, ParametricEq, Reverb

__all__ = ["EXAMPLES", "LAWS", "LIARS"]

RATE = 16000

# Settings that do something audible, every member of the family at least once.
EXAMPLES: dict[str, tuple[Effect, ...]] = {
    "gain": (Gain(-4.3),),
    "high_pass": (HighPass(120, 0.9),),
    "low_pass": (LowPass(3000, 0.9),),
    "parametric_eq": (
        ParametricEq((Band(250, -4.1, 1.3), Band(120, 3.3, 0.7, "low-shelf"), Band(4000, 5.7, 0.6, "high-shelf"))),
    ),
    "compressor": (Compressor(-30.3, 4.2, 5.1, 90, 7, 3.3), Compressor(-20, 1000, 0, 0, 0, 0)),
    "reverb": (
        Reverb(0.41, 5, 0.03, 150, 2.1, 0.5, 2500, -31, 0.6, 0.37, "fdn", 3),
        Reverb(0.41, 5, 0.03, 150, 2.1, 0.5, 2500, -31, 0.6, 0.37, "noise", 3),
    ),
    "pan": (Pan(0.31), Pan(0.8, "linear"), Pan(0.8, "-4.5")),
}


def noise(*shape: int, seed: int = 0, peak: float = 0.5) -> Tensor:
    waveform = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return waveform * (peak / waveform.abs().max())


def same(one: Tensor, other: Tensor) -> bool:
    """Equal to the bit, shape and type included."""
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


# ---------------------------------------------------------------------------------------------------------------- laws


def shape_is_kept(effect: Effect) -> None:
    for shape in ((2, 1), (2, 7), (2, 4801), (2, 0), (3, 2, 1000), (2, 1, 2, 500)):
        for dtype in (torch.float32, torch.float64):
            out = effect(noise(*shape).to(dtype) if math.prod(shape) else torch.zeros(shape, dtype=dtype), RATE)
            assert (out.shape, out.dtype) == (shape, dtype)


def one_channel_is_kept_or_refused(effect: Effect) -> None:
    try:
        out = effect(noise(1, 3000), RATE)
    except AudioError as error:
        assert "two channels" in str(error)
    else:
        assert out.shape == (1, 3000) and bool(out.isfinite().all())


def the_callers_waveform_is_untouched(effect: Effect) -> None:
    for one in (effect, type(effect).neutral()):
        loud = noise(2, 4000, peak=8.0)
        before = loud.clone()
        out = one(loud, RATE)
        assert torch.equal(loud, before)
        out.add_(1.0)  # what comes out is the caller's to change, and not a view of what went in
        assert torch.equal(loud, before)


def loud_input_is_not_clipped(effect: Effect) -> None:
    level = effect(noise(2, 4000, peak=1e-3), RATE).abs().max()
    assert effect(noise(2, 4000, peak=800.0), RATE).abs().max() > 3 * min(level, 1.0)
    assert effect(noise(2, 4000, peak=1e6), RATE).isfinite().all()


def silence_stays_silent(effect: Effect) -> None:
    for shape in ((2, 1), (2, 8000)):
        out = effect(torch.zeros(shape), RATE)
        assert out.isfinite().all() and out.abs().max() < 1e-5
    burst = torch.zeros(2, 15 * RATE)
    burst[:, :100] = noise(2, 100)
    out = effect(burst, RATE)  # what rings on must end, and not in denormal numbers
    assert out.isfinite().all() and out[:, -RATE:].abs().max() < 1e-5


def a_batch_equals_a_loop(effect: Effect) -> None:
    batch = torch.stack([noise(2, 3000, seed=1, peak=1.0), noise(2, 3000, seed=2, peak=0.01), torch.zeros(2, 3000)])
    together = effect(batch, RATE)
    apart = torch.stack([effect(item, RATE) for item in batch])
    assert (together - apart).abs().max() < 1e-6


def the_same_call_gives_the_same_result(effect: Effect) -> None:
    waveform = noise(2, 3000)
    first = effect(waveform, RATE)
    effect(noise(2, 5000, seed=5), RATE)
    torch.rand(3)
    assert same(first, effect(waveform, RATE))
    assert same(first, dataclasses.replace(effect)(waveform, RATE))


def the_future_does_not_change_the_past(effect: Effect) -> None:
    waveform = noise(2, 6000)
    louder = torch.cat([waveform[:, :4000], noise(2, 2000, seed=9, peak=1.0)], dim=1)
    assert (effect(waveform, RATE) - effect(louder, RATE))[:, :4000].abs().max() < 1e-6


def neutral_is_the_identity(effect: Effect) -> None:
    neutral = type(effect).neutral()
    assert neutral.is_neutral and not effect.is_neutral
    for waveform in (noise(2, 3000), noise(1, 3000), noise(2, 3000, peak=30.0).double(), torch.zeros(3, 2, 50)):
        assert same(neutral(waveform, RATE), waveform)


def variations(effect: Effect) -> Iterator[tuple[str, Effect]]:
    """The effect with each of its fields moved, one at a time."""
    for field in dataclasses.fields(effect):
        value = getattr(effect, field.name)
        if field.name == "bands":
            for place, band in enumerate(value):
                for name, moved in variations(band):
                    yield f"bands[{place}].{name}", ParametricEq((*value[:place], moved, *value[place + 1 :]))
            continue
        rule = field.metadata["rule"]
        if isinstance(value, str):
            changed: Any = next(name for name in rule.names if name != value)
        elif isinstance(value, int):
            changed = value + 1
        else:
            changed = value * 1.1 if 0 < value * 1.1 <= rule.high else (rule.low + value) / 2 or rule.low + 1.0
        yield field.name, dataclasses.replace(effect, **{field.name: changed})


def every_field_matters(effect: Effect) -> None:
    waveform = noise(2, 8000, peak=1.0)
    before = effect(waveform, RATE)
    ignored = [name for name, other in variations(effect) if (other(waveform, RATE) - before).abs().max() < 1e-6]
    assert not ignored, ignored


def json_is_exact_both_ways(effect: Effect) -> None:
    for one in (effect, type(effect).neutral(), *(other for _, other in variations(effect))):
        fields = json.loads(json.dumps(one.to_dict()))
        kind = fields.pop("kind")
        assert kind == type(one).kind and set(fields) == {field.name for field in dataclasses.fields(one)}
        again = type(one)(**fields)
        assert again == one and hash(again) == hash(one) and repr(again) == repr(one)


def values_outside_their_range_are_refused(effect: Effect) -> None:
    def refuse(make: Any) -> None:
        try:
            make()
        except UsageError as error:
            text = str(error)
            assert "expected" in text and "got" in text and "\n" not in text
        else:
            raise AssertionError("accepted")

    for value in (effect, *getattr(effect, "bands", ())):
        for field in dataclasses.fields(value):
            if field.name == "bands":
                wrong: tuple[Any, ...] = ("peak", 3, [7], None, {"gain_db": 1}, (Band(),) * 65)
            elif isinstance(getattr(value, field.name), str):
                wrong = ("no such name", "", 3, None, True)
            else:
                rule = field.metadata["rule"]
                above, below = rule.high * 1.01 + 1, rule.low - abs(rule.low) * 0.01 - 1
                wrong = (math.nan, math.inf, -math.inf, above, below, "3", True, [1.0], 1j)
            for bad in wrong:
                refuse(lambda name=field.name, bad=bad, value=value: dataclasses.replace(value, **{name: bad}))


LAWS = (
    shape_is_kept,
    one_channel_is_kept_or_refused,
    the_callers_waveform_is_untouched,
    loud_input_is_not_clipped,
    silence_stays_silent,
    a_batch_equals_a_loop,
    the_same_call_gives_the_same_result,
    the_future_does_not_change_the_past,
    neutral_is_the_identity,
    every_field_matters,
    json_is_exact_both_ways,
    values_outside_their_range_are_refused,
)


# --------------------------------------------------------------------------------------------------------------- liars


@dataclass(frozen=True)
class Liar(Effect):
    """An honest gain with a plain field; each liar below spoils one thing."""

    kind: ClassVar[str] = "liar"
    factor: float = 0.5

    @classmethod
    def neutral(cls) -> Liar:
        return cls(1.0)

    @property
    def is_neutral(self) -> bool:
        return self.factor == 1

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        return waveform.clone() if self.is_neutral else self.spoil(waveform)

    def spoil(self, waveform: Tensor) -> Tensor:
        return waveform * self.factor


class Shortens(Liar):
    def spoil(self, waveform: Tensor) -> Tensor:
        return (waveform * self.factor)[..., : waveform.shape[-1] // 2 * 2]


class MakesStereo(Liar):
    def spoil(self, waveform: Tensor) -> Tensor:
        return (waveform * self.factor).expand(*waveform.shape[:-2], 2, -1)


class NormalisesInPlace(Liar):
    """As `norbert.wiener` does: only what is loud is scaled, so quiet tests never see it."""

    def spoil(self, waveform: Tensor) -> Tensor:
        waveform /= max(1.0, float(waveform.abs().max()))
        return waveform * self.factor


class HandsBackTheInput(Liar):
    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        return waveform if self.is_neutral else waveform * self.factor


class Clips(Liar):
    def spoil(self, waveform: Tensor) -> Tensor:
        return (waveform * self.factor).clamp(-1e-3, 1e-3)


class DividesByThePeak(Liar):
    def spoil(self, waveform: Tensor) -> Tensor:
        return waveform / waveform.abs().max()


class NeverEnds(Liar):
    def spoil(self, waveform: Tensor) -> Tensor:
        return waveform * self.factor + 1e-4 * waveform.abs().amax()


class LevelsTheBatch(Liar):
    def spoil(self, waveform: Tensor) -> Tensor:
        return waveform * self.factor / (1e-3 + waveform.square().mean().sqrt())


class DrawsNewNoise(Liar):
    def spoil(self, waveform: Tensor) -> Tensor:
        return waveform * self.factor + 1e-3 * torch.randn_like(waveform)


class LooksAhead(Liar):
    def spoil(self, waveform: Tensor) -> Tensor:
        return waveform * self.factor + 0.01 * waveform.flip(-1)


class AlmostNeutral(Liar):
    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        return waveform * (1 + 2e-7) if self.is_neutral else waveform * self.factor


@dataclass(frozen=True)
class IgnoresItsRelease(Compressor):
    """As dasp-pytorch's compressor, which takes a release time and never reads it."""

    def _process(self, waveform: Tensor, sample_rate: int) -> Tensor:
        return Compressor._process(dataclasses.replace(self, release_ms=self.attack_ms), waveform, sample_rate)


@dataclass(frozen=True)
class Rounds(Gain):
    def to_dict(self) -> dict[str, Any]:
        return {name: value if name == "kind" else round(value, 1) for name, value in super().to_dict().items()}


@dataclass(frozen=True)
class AcceptsAnything(Gain):
    def __post_init__(self) -> None:
        pass


LIARS = (
    (shape_is_kept, Shortens()),
    (one_channel_is_kept_or_refused, MakesStereo()),
    (the_callers_waveform_is_untouched, NormalisesInPlace()),
    (the_callers_waveform_is_untouched, HandsBackTheInput()),
    (loud_input_is_not_clipped, Clips()),
    (silence_stays_silent, DividesByThePeak()),
    (silence_stays_silent, NeverEnds()),
    (a_batch_equals_a_loop, LevelsTheBatch()),
    (the_same_call_gives_the_same_result, DrawsNewNoise()),
    (the_future_does_not_change_the_past, LooksAhead()),
    (neutral_is_the_identity, AlmostNeutral()),
    (every_field_matters, IgnoresItsRelease(-30.3, 4.2, 5.1, 90, 7, 3.3)),
    (json_is_exact_both_ways, Rounds(-4.321)),
    (values_outside_their_range_are_refused, AcceptsAnything(-4.3)),
)
