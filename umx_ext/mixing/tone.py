"""Bring the tone of a take back to where it probably was before a microphone, a room or a wrong equaliser coloured it.

What octave bands a vocal has, relative to its own loudness, differs from singer to singer and from song to song, and
octaves differ together: who is dull at 4 kHz is dull at 8. `MEAN_DB` and `COVARIANCE_DB2` say how. On top of that every
octave of the take is taken to be coloured by a gain of its own, independent and with a deviation of
`Settings.tone_colour_db`. The correction is minus the mean of these gains given what is measured: what is ordinary
stays nearly as it is, what is far out comes most of the way back, and what several octaves say counts together.

An octave that stands out further than voices and colourings do (rumble, or one that was never recorded) says nothing
about the others, and is left out. Its own correction is a cut, or none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.signal import sosfreqz
from torch import Tensor

from umx_ext import levels
from umx_ext.mixing.effects import Band, ParametricEq
from umx_ext.mixing.equaliser import sections
from umx_ext.mixing.masking import Q, band_levels_db, bands
from umx_ext.mixing.reverb import CENTRES_HZ
from umx_ext.mixing.settings import Settings

__all__ = ["COVARIANCE_DB2", "MEAN_DB", "Tone", "bells", "colouring", "correct", "corrections"]

FloatArray = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]

# Level of the octaves around 63 Hz to 16 kHz in the frames in which the vocal sounds, minus its integrated loudness:
# finished vocals of records (80 training songs of MUSDB18's 7-second sample, without its validation songs) and dry ones
# (songs of 30 s and more by MIR-1K's training singers) together. Written by scripts/measure_mixing.py.
MEAN_DB = (-37.8, -26.7, -10.4, -8.1, -12.4, -19.1, -22.1, -24.1, -34.1)
COVARIANCE_DB2 = (
    (96.9, 89.7, 28.2, 0.3, -21.2, -27.7, -12.5, 16.5, 17.3),
    (89.7, 164.2, 49.3, -0.9, -40.1, -29.4, -10.3, 27.1, 31.5),
    (28.2, 49.3, 38.0, -0.5, -18.6, -16.2, -10.2, 10.6, 15.1),
    (0.3, -0.9, -0.5, 6.0, 2.1, -1.2, -4.5, -5.5, -6.6),
    (-21.2, -40.1, -18.6, 2.1, 25.1, 19.0, 8.4, -8.0, -11.4),
    (-27.7, -29.4, -16.2, -1.2, 19.0, 40.6, 23.8, 5.9, 1.8),
    (-12.5, -10.3, -10.2, -4.5, 8.4, 23.8, 26.7, 13.7, 11.5),
    (16.5, 27.1, 10.6, -5.5, -8.0, 5.9, 13.7, 35.3, 38.0),
    (17.3, 31.5, 15.1, -6.6, -11.4, 1.8, 11.5, 38.0, 53.0),
)

MEASURED_DB = 1.0  # deviation of a measured level: a few seconds of a song are not all of it
ANY_LEVEL_DB = 1000.0  # deviation of the common level of all octaves: one far too loud moves the loudness they all have
VOICE_HZ = 177.0  # octaves that end below it hold rumble and breath as much as voice: they may be cut, not lifted
EMPTY_DB = 24.0  # an octave that is shorter of sound than this was never recorded: lifting it brings up noise
STANDS_OUT = 3.0  # deviations from what the other octaves predict
WHOLE = 0.8  # of an octave's upper edge; measured against whole ones, what the sample rate cuts off would be missed
REFERENCE_DB = 6.0  # gain at which the shape of a filter is taken


@dataclass(frozen=True)
class Tone:
    """What was measured in each octave band, lowest first, and what was decided.

    Attributes:
        reason: why no band is moved; "" where some were.
        centres_hz: where the filters stand; see `umx_ext.mixing.masking.bands`.
        level_db: of the take, relative to its loudness.
        deviation_db: from the mean vocal, relative to the take's median one.
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
        reason="" if any(gain_db) else "no octave is so far from where vocals have it that it is worth a move",
        centres_hz=tuple(centre for _, centre, _ in bands(sample_rate)),
        level_db=_rounded(level_db),
        deviation_db=_rounded(deviation_db),
        gain_db=gain_db,
    )


def corrections(
    level_db: Sequence[float] | FloatArray, sample_rate: int, settings: Settings
) -> tuple[FloatArray, tuple[float, ...]]:
    """Deviations from the mean vocal and gains, both in dB, of octaves with these levels (relative to the loudness)."""
    carried = bands(sample_rate)
    ends = np.array([high for _, _, high in carried])
    whole = ends >= WHOLE * np.array(CENTRES_HZ[: len(carried)]) * math.sqrt(2)
    beside = np.asarray(level_db, dtype=float) - MEAN_DB[: len(carried)]
    deviation = beside - np.median(beside[whole] if whole.any() else beside)
    # Empty at the top: recorded at a lower rate, which also cut off some of the octave below.
    filled = np.flatnonzero(deviation >= -EMPTY_DB)
    whole[filled[-1] if filled[-1] < len(carried) - 1 else len(carried) :] = False
    gain = np.zeros(len(carried))
    if whole.any() and settings.tone_colour_db > 0:
        covariance, shapes = np.array(COVARIANCE_DB2)[: len(carried), : len(carried)], bells(sample_rate)
        told, outlying = _split(beside, covariance, shapes, settings.tone_colour_db, np.flatnonzero(whole))
        inside = np.ix_(told, told)
        gain[told] = -colouring(beside[told], covariance[inside], shapes[inside], settings.tone_colour_db)
        gain[outlying] = -np.maximum(0.0, deviation[outlying])
        gain *= settings.tone_share
    gain = np.clip(gain, -settings.most_tone_cut_db, settings.most_tone_boost_db)
    lifts = (gain > 0) & ((deviation < -EMPTY_DB) | (ends < VOICE_HZ))
    gain[lifts | (np.abs(gain) < settings.least_db)] = 0.0
    return deviation, _rounded(gain)


def colouring(beside_db: FloatArray, covariance_db2: FloatArray, shapes: FloatArray, deviation_db: float) -> FloatArray:
    """Posterior mean of the filters' gains in a linear Gaussian model, dB.

    The measured levels, less their mean, are ``vocal + shapes @ gains + level + error``: the vocal has
    `covariance_db2`, each gain `deviation_db`, the level common to all octaves `ANY_LEVEL_DB` and each error
    `MEASURED_DB`.
    """
    whole = _measured(covariance_db2, shapes, deviation_db)
    return np.asarray(deviation_db**2 * shapes.T @ np.linalg.solve(whole, beside_db))


def _measured(covariance_db2: FloatArray, shapes: FloatArray, deviation_db: float) -> FloatArray:
    """Covariance of the measured levels in the model of `colouring`."""
    noise = MEASURED_DB**2 * np.eye(len(shapes)) + ANY_LEVEL_DB**2
    return covariance_db2 + deviation_db**2 * shapes @ shapes.T + noise


def _split(
    beside_db: FloatArray, covariance_db2: FloatArray, shapes: FloatArray, deviation_db: float, told: Places
) -> tuple[Places, Places]:
    """Of some octaves those that fit each other, and those that stand out from what the rest of them predicts."""
    outlying: list[int] = []
    while len(told) > 2:
        inside = np.ix_(told, told)
        precision = np.linalg.inv(_measured(covariance_db2[inside], shapes[inside], deviation_db))
        # Each octave less its mean given the others, in deviations: what leaving it out would show.
        apart = np.abs(precision @ beside_db[told]) / np.sqrt(np.diag(precision))
        worst = int(apart.argmax())
        if apart[worst] <= STANDS_OUT:
            break
        outlying.append(int(told[worst]))
        told = np.delete(told, worst)
    return told, np.array(outlying, dtype=np.intp)


@lru_cache(maxsize=16)
def bells(sample_rate: int) -> FloatArray:
    """`(octaves, filters)`: how many dB each octave rises, averaged over it, with every dB of each filter."""
    carried = bands(sample_rate)
    columns = []
    for _, centre, _ in carried:
        filters = sections([("peak", centre, REFERENCE_DB, Q)], sample_rate)
        responses = [sosfreqz(filters, np.geomspace(low, high, 64), fs=sample_rate)[1] for low, _, high in carried]
        columns.append([float(np.mean(20 * np.log10(np.abs(response)))) / REFERENCE_DB for response in responses])
    return np.array(columns).T


def _rounded(values: FloatArray) -> tuple[float, ...]:
    return tuple(round(float(value), 2) + 0.0 for value in values)  # not -0.0
