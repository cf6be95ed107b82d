"""Bring the tone of a take back to where vocals on records are, where it lies outside.

What octave bands a vocal has, relative to its own loudness, differs from singer to singer and from song to song, but
not without bounds. `TYPICAL_DB` and `SPREAD_DB` are mean and standard deviation on records. A take whose octave lies
further out than that (a dull microphone, a small room, a hand too close) is brought to the edge, not to the mean: what
is ordinary stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from umx_ext import levels
from umx_ext.mixing.effects import Band, ParametricEq
from umx_ext.mixing.masking import Q, band_levels_db, bands
from umx_ext.mixing.reverb import CENTRES_HZ
from umx_ext.mixing.settings import Settings

__all__ = ["Tone", "correct", "corrections"]

# Level of the octaves around 63 Hz to 16 kHz in the frames in which the vocal sounds, minus its integrated loudness:
# the true vocals of the training songs of MUSDB18's 7-second sample (without its validation songs) that sound at least
# 30 % of the time, 80 songs.
TYPICAL_DB = (-44.3, -33.0, -13.6, -8.3, -10.1, -15.1, -19.5, -24.3, -34.7)
SPREAD_DB = (9.3, 12.5, 6.8, 2.6, 3.8, 4.5, 4.1, 5.8, 7.2)

VOICE_HZ = 177.0  # octaves that end below it hold rumble and breath as much as voice: they may be cut, not lifted
EMPTY_DB = 24.0  # an octave that is shorter of sound than this was never recorded: lifting it brings up noise
WHOLE = 0.8  # of an octave's upper edge; measured against whole ones, what the sample rate cuts off would be missed


@dataclass(frozen=True)
class Tone:
    """What was measured in each octave band, lowest first, and what was decided.

    Attributes:
        reason: why the bands stay as they are; "" where some were moved.
        centres_hz: where the filters stand; see `umx_ext.mixing.masking.bands`.
        level_db: of the take, relative to its loudness.
        deviation_db: from records, relative to the take's median one.
        gain_db: the corrections, 0 for none.
    """

    reason: str
    centres_hz: tuple[float, ...] = ()
    level_db: tuple[float, ...] = ()
    deviation_db: tuple[float, ...] = ()
    gain_db: tuple[float, ...] = ()

    def filters(self) -> tuple[ParametricEq, ...]:
        """The equaliser; none where nothing moves."""
        moved = tuple(Band(hz, gain, Q) for hz, gain in zip(self.centres_hz, self.gain_db, strict=True) if gain)
        return (ParametricEq(moved),) if moved else ()


def correct(vocals: Tensor, sample_rate: int, settings: Settings) -> Tone:
    """Measure a take and decide on the corrections.

    Args:
        vocals: `(channels, samples)`, the peak not far below full scale: levels are gated.
        sample_rate: Hz.
        settings: see `umx_ext.mixing.settings.Settings`.
    """
    lufs = -math.inf if levels.is_silent(vocals) else levels.integrated_lufs(vocals, sample_rate)
    if not math.isfinite(lufs):
        return Tone("too little sound to have a loudness")
    level_db = band_levels_db(vocals, sample_rate, levels.active_frames(vocals, sample_rate)) - lufs
    deviation_db, gain_db = corrections(level_db, sample_rate, settings)
    return Tone(
        reason="" if any(gain_db) else "every octave is within the bounds of vocals on records",
        centres_hz=tuple(centre for _, centre, _ in bands(sample_rate)),
        level_db=_rounded(level_db),
        deviation_db=_rounded(deviation_db),
        gain_db=gain_db,
    )


def corrections(
    level_db: Sequence[float] | np.ndarray, sample_rate: int, settings: Settings
) -> tuple[np.ndarray, tuple[float, ...]]:
    """Deviations from records and gains, both in dB, of octaves with these levels (relative to the loudness)."""
    carried = bands(sample_rate)
    spread = np.array(SPREAD_DB[: len(carried)])
    deviation = np.asarray(level_db, dtype=float) - TYPICAL_DB[: len(carried)]
    ends = np.array(CENTRES_HZ[: len(carried)]) * math.sqrt(2)
    whole = np.array([high for _, _, high in carried]) >= WHOLE * ends
    # One octave far too loud raises the loudness that all are measured against. The median one stays.
    deviation = deviation - np.median(deviation[whole] if whole.any() else deviation)
    beyond = np.sign(deviation) * np.maximum(0.0, np.abs(deviation) - settings.tone_spreads * spread)
    gain = np.clip(-settings.tone_share * beyond, -settings.most_tone_cut_db, settings.most_tone_boost_db)
    lifts = (gain > 0) & ((deviation < -EMPTY_DB) | np.array([high < VOICE_HZ for _, _, high in carried]))
    gain[lifts | ~whole | (np.abs(gain) < settings.least_db)] = 0.0
    return deviation, _rounded(gain)


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 2) + 0.0 for value in values)  # not -0.0
