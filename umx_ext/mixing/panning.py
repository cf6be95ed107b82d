"""Panning: where a source stands between the two channels.

With ``theta = position * pi / 2``:

    law                 left                                        right                              centre
    linear              1 - 2 theta / pi                            2 theta / pi                       -6.02 dB
    constant-power      cos theta                                   sin theta                          -3.01 dB
    -4.5                sqrt((1 - 2 theta / pi) cos theta)          sqrt((2 theta / pi) sin theta)     -4.52 dB

Only the second one keeps the power the same wherever the source stands; the third is the geometric mean of the other
two, a compromise between rooms, where powers add, and headphones, where amplitudes do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from umx_ext.errors import AudioError, UsageError
from umx_ext.mixing.effect import Effect, choice, number

__all__ = ["LAWS", "Pan", "pan_gains"]

LAWS = ("constant-power", "linear", "-4.5")


def pan_gains(position: Tensor, law: str = "constant-power") -> Tensor:
    """Gains of the left and the right channel; differentiable.

    Args:
        position: `(...)`, 0 (left) to 1 (right). The law "-4.5" has an infinite slope at both ends: keep 1e-4 away
            from them where gradients are wanted.
        law: "constant-power", "linear" or "-4.5".

    Returns:
        `(..., 2)`.

    Raises:
        UsageError: an unknown law.
    """
    theta = position * (math.pi / 2)
    if law == "constant-power":
        # sin(pi/2 - theta) instead of cos(theta): exactly zero at the right end.
        return torch.stack([torch.sin((1 - position) * (math.pi / 2)), theta.sin()], dim=-1)
    if law == "linear":
        return torch.stack([1 - position, position], dim=-1)
    if law == "-4.5":
        left = (1 - position) * torch.sin((1 - position) * (math.pi / 2))
        return torch.stack([left, position * theta.sin()], dim=-1).sqrt()
    raise UsageError(f"no panning law named {law!r}; known: {', '.join(LAWS)}")


@dataclass(frozen=True)
class Pan(Effect):
    """Scale the two channels so that a source in the middle (both channels equal) comes from `position`.

    The channels of a stereo recording are scaled, not mixed: at 0 the right one falls silent. One channel has no
    position, so a mono waveform is doubled first (`umx_ext.levels.as_stereo`).

    Attributes:
        position: 0 (left) to 1 (right), or None: leave both channels as they are.
        law: "constant-power", "linear" or "-4.5"; see `pan_gains`.
    """

    kind: ClassVar[str] = "pan"
    position: float | None = number(0.5, 0, 1, optional=True)
    law: str = choice("constant-power", *LAWS)

    @classmethod
    def neutral(cls) -> Pan:
        return cls(position=None)

    @property
    def is_neutral(self) -> bool:
        return self.position is None

    def _process(self, waveform: Tensor, sample_rate: int) -> Tensor:
        require_stereo(waveform)
        gains = pan_gains(torch.tensor(self.position, dtype=torch.float64), self.law)
        return waveform * gains[:, None].to(waveform.dtype)


def require_stereo(waveform: Tensor) -> None:
    """Raise AudioError unless the waveform `(..., channels, samples)` has two channels."""
    if waveform.shape[-2] != 2:
        raise AudioError(
            f"pan: expected two channels, got {waveform.shape[-2]}; double a mono waveform first (levels.as_stereo)"
        )
