"""What is measured of a separation for the person who waits for it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["Levels"]

SILENCE = 1e-10  # sum of squares
MOST_DOWN = 1e-3  # beyond 60 dB down nobody hears how far


class Levels:
    """How loud the vocals are, and how much of them the accompaniment still has.

    The second takes the vocals found for the true ones, which nobody has here: it compares the projection on them of
    the accompaniment with that of the mixture. It is an estimate, and it does not see voice that was never found.
    """

    def __init__(self) -> None:
        self._mixture = self._vocals = self._before = self._after = 0.0
        self._heard = False

    def add(self, parts: Mapping[str, Tensor], blocks: Mapping[str, Tensor]) -> None:
        """Take in one block of the mixture and what was made of it, (channels, samples) each."""
        if "vocals" not in parts:
            return
        vocals, mixture = parts["vocals"], parts["mixture"]
        self._mixture += _dot(mixture, mixture)
        self._vocals += _dot(vocals, vocals)
        if "accompaniment" in blocks:
            self._heard = True
            self._before += _dot(mixture, vocals)
            self._after += _dot(blocks["accompaniment"], vocals)

    @property
    def vocals_level_db(self) -> float | None:
        """RMS of the vocals relative to the mixture's, dB; None where either is silent."""
        if min(self._mixture, self._vocals) <= SILENCE:
            return None
        return 10 * math.log10(self._vocals / self._mixture)

    @property
    def voice_down_db(self) -> float | None:
        """Estimate of how far the voice came down in the accompaniment, dB (0 to 60); None without vocals."""
        if not self._heard or min(self._mixture, self._vocals) <= SILENCE or self._before <= 0:
            return None
        left = max(abs(self._after) / self._before, MOST_DOWN)
        return max(0.0, -20 * math.log10(left))


def _dot(first: Tensor, second: Tensor) -> float:
    # Within a block float32 is enough; over an hour it is not: the sums are Python's doubles. By channel: a part of a
    # longer waveform is no vector without a copy.
    return sum(float(torch.dot(a, b)) for a, b in zip(first, second, strict=True))
