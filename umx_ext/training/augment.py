"""Augmentations: changes of a single stem, beyond its level, that leave it the stem of a song.

`AUGMENTATIONS` names them. Each has one strength from 0 (the identity) to 1; what 1 means stands in its `about`. A
`umx_ext.training.remix.Remixer` applies those it is given, in the order of the dict::

    Remixer(pack, augment={"speed": 0.5, "polarity": 0.5, "eq": 0.3})

A member of one's own is a function (waveform, sample rate, strength, generator) -> waveform of the same shape::

    AUGMENTATIONS["hum"] = Augmentation(with_hum, "a hum of 50 Hz at up to -40 dBFS")
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from umx_ext.errors import UsageError
from umx_ext.training.filters import grid_hz, reverberated, shaped, stretched

__all__ = ["AUGMENTATIONS", "Augmentation", "Spectral", "augmented"]

FloatArray = npt.NDArray[np.float32]
Change = Callable[[FloatArray, int, float, np.random.Generator], FloatArray]

MOST_SEMITONES = 3.0
EQ_SD_DB = 6.0
EQ_CENTRES_HZ = (60.0, 150.0, 400.0, 1000.0, 2500.0, 6000.0, 15000.0)
TILT_DB_PER_OCTAVE = 2.0
TILT_PIVOT_HZ = 1000.0
BAND_HZ = (4000.0, 16000.0)
BAND_EDGE_OCTAVES = 0.25
REVERB_T60_S = (0.15, 0.8)
REVERB_DELAY_S = (0.0, 0.03)
MOST_WIDER_DB = 6.0
MOST_BALANCE_DB = 6.0
MOST_GAIN_DB = 6.0


@dataclass(frozen=True)
class Augmentation:
    """One member of `AUGMENTATIONS`.

    Attributes:
        change: (float32 `(channels, samples)`, Hz, strength, generator) -> another array of that shape. Called with
            strengths above 0 only. Silence stays silence; the array that came is left as it was.
        about: what it does, and what a strength of 1 means.
        together: stems that are one excerpt of one song get the same draw, so that they still fit each other.
        after: applied when the levels are set; before, a level law would take it back.
        dry_only: for dry recordings alone (MIR-1K's singers).
        reach: strength -> how many times as many samples it needs to be shown for what it hands back.
    """

    change: Change
    about: str
    together: bool = False
    after: bool = False
    dry_only: bool = False
    reach: Callable[[float], float] = lambda strength: 1.0

    def __call__(self, waveform: FloatArray, sample_rate: int, strength: float, rng: np.random.Generator) -> FloatArray:
        """The changed waveform, a new array; at strength 0 an exact copy, and nothing is drawn.

        Raises:
            UsageError: a strength outside 0 ... 1.
        """
        check_strength(strength)
        return waveform.copy() if strength == 0 else self.change(waveform, sample_rate, strength, rng)


@dataclass(frozen=True)
class Spectral:
    """A change that is a gain at each frequency: (Hz, strength, generator) -> gains on `grid_hz`, None for no change.

    Several in a row are one filter (`augmented`): the transforms are what costs.
    """

    gains: Callable[[int, float, np.random.Generator], npt.NDArray[np.float64] | None]

    def __call__(self, waveform: FloatArray, sample_rate: int, strength: float, rng: np.random.Generator) -> FloatArray:
        gains = self.gains(sample_rate, strength, rng)
        return waveform.copy() if gains is None else shaped(waveform, gains)


def augmented(
    waveform: FloatArray, sample_rate: int, chosen: Sequence[tuple[Augmentation, float, np.random.Generator]]
) -> FloatArray:
    """One augmentation after the other, each with its strength and generator; the array that came is left as it was."""
    gains: npt.NDArray[np.float64] | None = None
    for augmentation, strength, rng in chosen:
        if isinstance(augmentation.change, Spectral):
            more = augmentation.change.gains(sample_rate, strength, rng)
            gains = more if gains is None else gains if more is None else gains * more
            continue
        if gains is not None:
            waveform, gains = shaped(waveform, gains), None
        waveform = augmentation(waveform, sample_rate, strength, rng)
    return waveform if gains is None else shaped(waveform, gains)


def check_strength(strength: float, name: str = "an augmentation") -> None:
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 <= strength <= 1:
        raise UsageError(f"the strength of {name} must be a number from 0 to 1, got {strength!r}")


def _speed_factor(strength: float) -> float:
    return 2.0 ** (strength * MOST_SEMITONES / 12)


def _speed(waveform: FloatArray, sample_rate: int, strength: float, rng: np.random.Generator) -> FloatArray:
    return stretched(waveform, _speed_factor(strength * rng.uniform(-1, 1)), sample_rate)


def _eq(sample_rate: int, strength: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    gains_db = strength * EQ_SD_DB * rng.standard_normal(len(EQ_CENTRES_HZ))
    octaves = np.log2(np.maximum(grid_hz(sample_rate), 1.0))
    return 10 ** (np.interp(octaves, np.log2(EQ_CENTRES_HZ), gains_db) / 20)


def _tilt(sample_rate: int, strength: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    slope = strength * TILT_DB_PER_OCTAVE * rng.uniform(-1, 1)
    octaves = np.log2(np.clip(grid_hz(sample_rate), EQ_CENTRES_HZ[0], EQ_CENTRES_HZ[-1]) / TILT_PIVOT_HZ)
    return 10 ** (slope * octaves / 20)


def _band(sample_rate: int, strength: float, rng: np.random.Generator) -> npt.NDArray[np.float64] | None:
    cut_hz = math.exp(rng.uniform(math.log(BAND_HZ[0]), math.log(BAND_HZ[1])))
    if rng.random() >= strength:
        return None
    octaves = np.log2(np.maximum(grid_hz(sample_rate), 1.0) / cut_hz)
    return 0.5 + 0.5 * np.cos(np.pi * np.clip(octaves / BAND_EDGE_OCTAVES + 0.5, 0.0, 1.0))


def _reverb(waveform: FloatArray, sample_rate: int, strength: float, rng: np.random.Generator) -> FloatArray:
    share = strength * rng.random()
    t60_s, delay_s = rng.uniform(*REVERB_T60_S), rng.uniform(*REVERB_DELAY_S)
    return reverberated(waveform, sample_rate, share, t60_s, delay_s, rng)


def _width(waveform: FloatArray, sample_rate: int, strength: float, rng: np.random.Generator) -> FloatArray:
    side = np.float32(10 ** (strength * rng.uniform(-2 * MOST_WIDER_DB, MOST_WIDER_DB) / 20))
    if len(waveform) != 2:
        return waveform.copy()
    middle, difference = 0.5 * (waveform[0] + waveform[1]), side * 0.5 * (waveform[0] - waveform[1])
    return np.stack([middle + difference, middle - difference])


def _balance(waveform: FloatArray, sample_rate: int, strength: float, rng: np.random.Generator) -> FloatArray:
    apart_db = strength * MOST_BALANCE_DB * rng.uniform(-1, 1)
    if len(waveform) != 2:
        return waveform.copy()
    return waveform * np.array([[10 ** (apart_db / 40)], [10 ** (-apart_db / 40)]], np.float32)


def _swap(waveform: FloatArray, sample_rate: int, strength: float, rng: np.random.Generator) -> FloatArray:
    return waveform[::-1].copy() if rng.random() < strength else waveform.copy()


def _polarity(waveform: FloatArray, sample_rate: int, strength: float, rng: np.random.Generator) -> FloatArray:
    return -waveform if rng.random() < strength else waveform.copy()


def _gain(waveform: FloatArray, sample_rate: int, strength: float, rng: np.random.Generator) -> FloatArray:
    return waveform * np.float32(10 ** (strength * MOST_GAIN_DB * rng.uniform(-1, 1) / 20))


AUGMENTATIONS: dict[str, Augmentation] = {
    "speed": Augmentation(
        _speed,
        "faster or slower, pitch and tempo together as on a tape; 1: up to 3 semitones either way",
        together=True,
        reach=_speed_factor,
    ),
    "eq": Augmentation(Spectral(_eq), "a random equaliser of seven bands; 1: 6 dB standard deviation in each"),
    "tilt": Augmentation(Spectral(_tilt), "darker or brighter; 1: up to 2 dB per octave either way"),
    "band": Augmentation(Spectral(_band), "no highs above 4 to 16 kHz; the strength is the chance of it"),
    "reverb": Augmentation(
        _reverb, "a room around dry (MIR-1K) vocals; 1: up to all reverberation, 0.3 is a little", dry_only=True
    ),
    "width": Augmentation(_width, "narrower or wider stereo; 1: the sides by -12 to +6 dB"),
    "balance": Augmentation(_balance, "one channel up, the other down; 1: up to 6 dB apart"),
    "swap": Augmentation(_swap, "left and right swapped; the strength is the chance of it", together=True),
    "polarity": Augmentation(_polarity, "all samples negated; the strength is the chance of it"),
    "gain": Augmentation(_gain, "a gain after the level law; 1: up to 6 dB either way", after=True),
}
