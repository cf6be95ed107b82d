"""What every effect is: a frozen value with units in its field names, called on a waveform, exact in JSON both ways."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from umx_ext.errors import AudioError, UsageError

__all__ = ["Effect", "check_fields", "choice", "fields_from", "number", "require_rate"]

Value = TypeVar("Value")


@dataclass(frozen=True)
class _Number:
    low: float
    high: float
    unit: str
    whole: bool = False
    optional: bool = False

    def checked(self, owner: str, name: str, value: Any) -> float | int | None:
        if value is None and self.optional:
            return None
        kinds = (int,) if self.whole else (int, float)
        if (
            isinstance(value, bool)
            or not isinstance(value, kinds)
            or not self.low <= value <= self.high  # which nan is not, either
        ):
            span = f"between {self.low:g} and {self.high:g}" + (f" {self.unit}" if self.unit else "")
            what = "a whole number " if self.whole else "a number "
            raise UsageError(f"{owner}: expected {name} to be {what}{span}, got {value!r}")
        return value if self.whole else float(value)


@dataclass(frozen=True)
class _Choice:
    names: tuple[str, ...]

    def checked(self, owner: str, name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in self.names:
            raise UsageError(f"{owner}: expected {name} to be one of {', '.join(self.names)}, got {value!r}")
        return value


def number(
    default: float | int | None, low: float, high: float, unit: str = "", *, whole: bool = False, optional: bool = False
) -> Any:
    """A dataclass field that holds a number from `low` to `high`, both included."""
    return dataclasses.field(default=default, metadata={"rule": _Number(low, high, unit, whole, optional)})


def choice(default: str, *names: str) -> Any:
    """A dataclass field that holds one of a few names."""
    return dataclasses.field(default=default, metadata={"rule": _Choice(names)})


def check_fields(value: Any, owner: str) -> None:
    """Hold a frozen dataclass to the rules of its fields; whole numbers become floats where floats are meant.

    Raises:
        UsageError: a field is of the wrong type or outside its range.
    """
    for field in dataclasses.fields(value):
        rule = field.metadata.get("rule")
        if rule is not None:
            object.__setattr__(value, field.name, rule.checked(owner, field.name, getattr(value, field.name)))


def fields_from(cls: type[Value], values: Any, owner: str) -> Value:
    """Build the dataclass `cls` from a mapping of its fields; those that are missing keep their defaults.

    Raises:
        UsageError: not a mapping, a field that does not exist, or a value outside its range.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"{owner}: expected its fields as an object, got {values!r}")
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    unknown = sorted(str(name) for name in values if name not in known)
    if unknown:
        raise UsageError(f"{owner}: no field named {', '.join(unknown)}; known: {', '.join(known)}")
    return cls(**values)


def require_rate(sample_rate: int) -> None:
    """Raise AudioError unless `sample_rate` is a positive number of Hz."""
    if isinstance(sample_rate, bool) or not math.isfinite(sample_rate) or sample_rate <= 0:
        raise AudioError(f"expected a positive sample rate in Hz, got {sample_rate}")


@dataclass(frozen=True)
class Effect:
    """A frozen value with units in its field names: `(waveform, sample_rate) -> waveform` of the same shape.

    A member of the family gives its name in `kind`, says when it changes nothing (`is_neutral`), one such setting
    (`neutral`), and does its work in `_process`. It is then listed in `umx_ext.mixing.effects.EFFECTS`.
    """

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_fields(self, self.kind)

    @classmethod
    def neutral(cls) -> Effect:
        """A setting that leaves any waveform as it is, to the bit."""
        raise NotImplementedError

    @property
    def is_neutral(self) -> bool:
        """Whether this setting changes nothing."""
        raise NotImplementedError

    def _process(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """`(batch, channels, samples)` on the CPU -> a new tensor of that shape and dtype."""
        raise NotImplementedError

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """The processed waveform, a new tensor; the caller's is not changed. Without gradients.

        Args:
            waveform: `(..., channels, samples)`, float32 or float64, one or two channels, full scale 1.0. What goes
                beyond full scale comes out as such: effects never clip.
            sample_rate: Hz.

        Returns:
            The same shape, dtype and device. What would ring on after the last sample is cut off.

        Raises:
            AudioError: wrong axes or dtype, more than two channels, nan or inf, no positive sample rate.
            UsageError: the setting makes no sense at this sample rate.
        """
        require_rate(sample_rate)
        if waveform.ndim < 2 or waveform.shape[-2] not in (1, 2):
            raise AudioError(
                f"expected (channels, samples) with one or two channels, got {tuple(waveform.shape)}; "
                "from soundfile, pass waveform.T"
            )
        if waveform.dtype not in (torch.float32, torch.float64):
            raise AudioError(f"expected float32 or float64 samples with full scale 1.0, got {waveform.dtype}")
        if self.is_neutral or not waveform.numel():
            return waveform.detach().clone()
        low, high = torch.aminmax(waveform.detach())  # nan goes through both
        if not (math.isfinite(low) and math.isfinite(high)):
            raise AudioError("expected finite samples, got nan or inf; mend the recording first")
        flat = waveform.detach().cpu().reshape(-1, *waveform.shape[-2:])
        return self._process(flat, sample_rate).reshape(waveform.shape).to(waveform.device)

    def to_dict(self) -> dict[str, Any]:
        """A plain, JSON-ready dict that opens with ``kind``; `from_dict` is its inverse."""
        return {"kind": self.kind, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Effect:
        """Rebuild an effect of any kind from `to_dict`'s output. Fields that are missing keep their defaults.

        Raises:
            UsageError: an unknown kind or field, another kind than that of the class it was asked of, or a value
                outside its range.
        """
        from umx_ext.mixing.effects import EFFECTS  # the family's dict imports every member, so it comes last

        if not isinstance(fields, Mapping) or "kind" not in fields:
            raise UsageError(f'expected an effect such as {{"kind": "gain", "gain_db": -3}}, got {fields!r}')
        kind = fields["kind"]
        if not isinstance(kind, str) or kind not in EFFECTS:
            raise UsageError(f"no effect named {kind!r}; known: {', '.join(EFFECTS)}")
        member = EFFECTS[kind]
        if not issubclass(member, cls):
            raise UsageError(f"expected an effect of kind {cls.kind!r}, got {kind!r}")
        return fields_from(member, {name: value for name, value in fields.items() if name != "kind"}, kind)
