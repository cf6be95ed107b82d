"""Slow, obvious twins of what `umx_ext.mixing.masking` and `vocal` decide, band by band, block by block."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["integrated_at", "masking_moves"]


def masking_moves(vocal: list[float], backing: list[float], both: bool) -> tuple[list[float], list[float]]:
    """The rule with its default numbers: rank threshold 4, half of the excess, cuts to 6 dB, boosts to 3 dB."""

    def rank(track: list[float], band: int) -> int:
        return 1 + sum(
            other > track[band] or (other == track[band] and place < band) for place, other in enumerate(track)
        )

    gains, backing_gains = [], []
    for band in range(len(vocal)):
        of_vocal, of_backing = rank(vocal, band), rank(backing, band)
        excess = vocal[band] - backing[band]
        gain = backing_gain = 0.0
        if of_backing <= 4 < of_vocal and excess > 0:
            gain = -min(6.0, 0.5 * excess)
        elif of_vocal <= 4 < of_backing and excess < 0:
            gain = min(3.0, -0.5 * excess)
        elif both and of_vocal <= 4 and of_backing <= 4 and -excess > 3:
            backing_gain = -min(3.0, 0.25 * -excess)
        gains.append(gain)
        backing_gains.append(backing_gain)
    return four_largest(gains), four_largest(backing_gains)


def four_largest(gains: list[float]) -> list[float]:
    by_size = sorted(range(len(gains)), key=lambda band: -abs(gains[band]))[:4]
    return [gain if band in by_size and abs(gain) >= 0.5 else 0.0 for band, gain in enumerate(gains)]


def integrated_at(powers: np.ndarray, gain_db: float) -> float:
    """LUFS of blocks of these K-weighted powers after a gain, less the gain; the two gates in loops."""
    scaled = [power * 10 ** (gain_db / 10) for power in powers]
    loud = [power for power in scaled if power > 0 and -0.691 + 10 * math.log10(power) >= -70]
    if not loud:
        return -math.inf
    relative = -0.691 + 10 * math.log10(sum(loud) / len(loud)) - 10
    kept = [power for power in loud if -0.691 + 10 * math.log10(power) > relative]
    return -0.691 + 10 * math.log10(sum(kept) / len(kept)) - gain_db
