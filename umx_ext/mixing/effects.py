"""The family of effects, and chains of them: tuples that can be printed, edited, and written as JSON.

>>> chain = (HighPass(80), Compressor(threshold_db=-24, ratio=3), Gain(-1.5))
>>> chain_from_json(chain_to_json(chain)) == chain
True
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from torch import Tensor

from umx_ext.errors import UsageError
from umx_ext.mixing.dynamics import Compressor, gain_reduction_db
from umx_ext.mixing.effect import Effect, number
from umx_ext.mixing.equaliser import Band, HighPass, LowPass, ParametricEq
from umx_ext.mixing.panning import Pan, pan_gains
from umx_ext.mixing.reverb import Reverb, impulse_response

__all__ = [
    "EFFECTS",
    "Band",
    "Chain",
    "Compressor",
    "Effect",
    "Gain",
    "HighPass",
    "LowPass",
    "Pan",
    "ParametricEq",
    "Reverb",
    "apply",
    "chain_from_json",
    "chain_to_json",
    "gain_reduction_db",
    "impulse_response",
    "pan_gains",
]

Chain: TypeAlias = tuple[Effect, ...]


@dataclass(frozen=True)
class Gain(Effect):
    """Louder or quieter.

    Attributes:
        gain_db: -120 to 120 dB.
    """

    kind: ClassVar[str] = "gain"
    gain_db: float = number(0.0, -120, 120, "dB")

    @classmethod
    def neutral(cls) -> Gain:
        return cls(0.0)

    @property
    def is_neutral(self) -> bool:
        return self.gain_db == 0

    def _process(self, waveform: Tensor, sample_rate: int) -> Tensor:
        return waveform * 10 ** (self.gain_db / 20)


EFFECTS: dict[str, type[Effect]] = {
    member.kind: member for member in (Gain, HighPass, LowPass, ParametricEq, Compressor, Reverb, Pan)
}


def apply(chain: Iterable[Effect], waveform: Tensor, sample_rate: int) -> Tensor:
    """Run a waveform through effects, one after the other; an empty chain copies it.

    Args:
        chain: effects, first to last.
        waveform: `(..., channels, samples)`, float, one or two channels.
        sample_rate: Hz.

    Returns:
        A new tensor of the same shape.

    Raises:
        AudioError, UsageError: as `Effect.__call__`.
    """
    for effect in (*chain, Gain.neutral()):
        waveform = effect(waveform, sample_rate)
    return waveform


def chain_to_json(chain: Iterable[Effect]) -> str:
    """A JSON list with one object per effect, for people to edit; `chain_from_json` is its exact inverse."""
    return json.dumps([effect.to_dict() for effect in chain], indent=2, allow_nan=False) + "\n"


def chain_from_json(text: str) -> Chain:
    """Read a chain that `chain_to_json` or a person wrote. Fields that are left out keep their defaults.

    Raises:
        UsageError: not JSON, not a list, an unknown effect or field, or a value outside its range; the message counts
            the effects from 1.
    """
    try:
        entries: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"expected a chain of effects as JSON, and this is not JSON: {error}") from error
    if not isinstance(entries, list):
        raise UsageError(f"expected a chain as a JSON list of effects, got {type(entries).__name__}")
    chain = []
    for place, entry in enumerate(entries, start=1):
        try:
            chain.append(Effect.from_dict(entry))
        except UsageError as error:
            raise UsageError(f"effect {place} of the chain: {error}") from error
    return tuple(chain)
