"""What a mix is set beside to see what it is worth: a raw take to start from, and a mix of settings drawn at random.

A finished vocal is made raw again by what mixing would have to undo: an equaliser that is wrong in four octaves,
dynamics that are too wide, a fader that stands anywhere. What comes out is known to have a good mix: the original.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from umx_ext import levels
from umx_ext.errors import AudioError
from umx_ext.mixing.effects import Band, Compressor, Gain, ParametricEq, Reverb, apply, gain_reduction_db
from umx_ext.mixing.reverb import CENTRES_HZ
from umx_ext.stems import Stems

__all__ = ["balanced", "expanded", "random_equaliser", "random_mix", "raw_take"]

MOST_DB = 15.0  # of an octave, either way
MOVED = 4  # octaves of nine
RELATIVE_LU = (-12.0, 6.0)
TOP = 0.45  # of the sample rate: octaves centred above it are left out


def raw_take(stems: Stems, generator: np.random.Generator) -> Stems:
    """The vocals as a singer might send them; the accompaniment stays.

    A random equaliser (`random_equaliser`), wider dynamics (`expanded`), and a level from 12 LU below to 6 LU above the
    accompaniment.

    Args:
        stems: "vocals" and "accompaniment", `(channels, samples)`, neither of them silent.
        generator: draws; the same state gives the same take.

    Raises:
        AudioError: other stems, or one of them is silent.
    """
    vocals, backing, rate = _tracks(stems)
    take = expanded(random_equaliser(rate, generator)(vocals, rate), rate, generator)
    take = balanced(take, backing, rate, float(generator.uniform(*RELATIVE_LU)))
    return Stems({"vocals": take, "accompaniment": backing}, rate)


def random_mix(stems: Stems, generator: np.random.Generator) -> Tensor:
    """Every setting drawn: four octaves by up to 15 dB, a compressor, a reverb, and the vocals' level.

    Args, errors: as `raw_take`.

    Returns:
        `(2, samples)`, not limited.
    """
    vocals, backing, rate = _tracks(stems)
    vocals, backing = levels.as_stereo(vocals), levels.as_stereo(backing)
    uniform = generator.uniform
    t60_s = float(np.exp(uniform(math.log(0.3), math.log(4))))
    chain = (
        random_equaliser(rate, generator),
        Compressor(threshold_db=levels.peak_db(vocals) - float(uniform(0, 30)), ratio=float(uniform(1, 8))),
        Reverb(
            t60_s=t60_s,
            room_size=float(uniform(5, 30)),
            fade_in_s=float(uniform(0, min(0.3, 0.9 * t60_s))),
            low_cut_hz=float(uniform(50, 400)),
            low_gain_db_per_s=float(uniform(-20, 4)),
            high_cut_hz=float(uniform(1000, 10000)),
            high_gain_db_per_s=float(uniform(-40, 0)),
            dry_wet=float(uniform(0.02, 0.5)),
            engine="noise",
        ),
    )
    wet = apply(chain, vocals, rate)
    return balanced(wet, backing, rate, float(uniform(*RELATIVE_LU))) + backing


def random_equaliser(sample_rate: int, generator: np.random.Generator) -> ParametricEq:
    """Four of the nine octaves around 63 Hz to 16 kHz, each by up to 15 dB either way."""
    carried = [hz for hz in CENTRES_HZ if hz < TOP * sample_rate]
    chosen = generator.choice(carried, MOVED, replace=False)
    gains_db = generator.uniform(-MOST_DB, MOST_DB, MOVED)
    pairs = zip(chosen, gains_db, strict=True)
    return ParametricEq(tuple(Band(float(hz), float(gain_db), math.sqrt(2)) for hz, gain_db in pairs))


def expanded(vocals: Tensor, sample_rate: int, generator: np.random.Generator) -> Tensor:
    """What is loud made louder still: by what a compressor would have taken off it.

    Its threshold is drawn from 20 to 10 dB below the peak, its ratio from 1.5 to 3. Shape: as `vocals`.
    """
    threshold_db = levels.peak_db(vocals) - float(generator.uniform(10, 20))
    detector = Compressor(threshold_db=threshold_db, ratio=float(generator.uniform(1.5, 3)))
    return vocals * 10 ** (gain_reduction_db(detector, vocals, sample_rate) / 20)


def balanced(vocals: Tensor, backing: Tensor, sample_rate: int, relative_lu: float) -> Tensor:
    """The vocals at `relative_lu` over the backing (integrated loudness, in stereo).

    Raises:
        AudioError: one of the two has no loudness.
    """
    lufs = [_lufs(waveform, sample_rate) for waveform in (vocals, backing)]
    if not all(map(math.isfinite, lufs)):
        raise AudioError("the vocals or the accompaniment are silent: there is no balance to set")
    return vocals * 10 ** ((lufs[1] + relative_lu - lufs[0]) / 20)


def _lufs(waveform: Tensor, sample_rate: int) -> float:
    """Measured at a peak of -1 dBFS, where a quiet track is not gated away."""
    stereo = levels.as_stereo(waveform)
    if levels.is_silent(stereo):
        return -math.inf
    up = Gain(-1 - levels.peak_db(stereo))
    return levels.integrated_lufs(up(stereo, sample_rate), sample_rate) - up.gain_db


def _tracks(stems: Stems) -> tuple[Tensor, Tensor, int]:
    if set(stems) != {"vocals", "accompaniment"}:
        raise AudioError(f"expected the stems vocals and accompaniment, got {', '.join(stems)}")
    for name, waveform in stems.items():
        if levels.is_silent(waveform):
            raise AudioError(f"the {name} are silent: there is no balance to set")
    return stems["vocals"], stems["accompaniment"], stems.sample_rate
