"""Distance-aware gains: a judge says how loudly each stem should sit against the vocals, and a level is drawn for it.

For a base and a candidate the judge answers ``far``, ``same`` or ``close`` (see `umx_ext.training.judge`). From the
answer a level omega is drawn: uniform in [-gamma, 0) dB for far, 0 for same, uniform in (0, gamma] for close. The
mixture is

    base + sum over candidates of  sqrt(E_base / E_candidate) 10^(omega / 20)  candidate

with E the mean square over active samples, so that omega *is* the candidate's level beside the base. The formula was
published with 10^(omega / 10) in that place, which doubles every level (an omega of -15 becomes -30 dB); since the text
calls omega the relative loudness in dB, and the system that it was built on has 10^(omega / 20), that is taken for a
misprint. ``db_convention="paper"`` is the literal formula.

`AudioSepRemix` is the random strategy that it was compared with: AudioSep's, in which nothing is judged.

Sources: the distance-aware mixing paper (gamma 15 dB, Llama 3.2 1B as judge); AudioSep (Liu et al., 2023), its
``SegmentMixer`` for energy matching, clamps and peak rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from umx_ext.errors import UsageError
from umx_ext.training.filters import one_pole, reverberated
from umx_ext.training.gains import LEAST_ACTIVE_SHARE, SILENCE_PEAK, STEMS, Remix, check_remix, rms_level
from umx_ext.training.judge import LABELS, DistanceJudge, StaticJudge

__all__ = ["AudioSepRemix", "DistanceRemix", "energy_ratio", "omega_db"]

FloatArray = npt.NDArray[np.float32]

CONVENTIONS = {"amplitude": 20.0, "paper": 10.0}
LOWEST_RATIO, HIGHEST_RATIO = 0.02, 50.0
LEAST_ENERGY = 1e-10

# What ``distance_cues`` does to a far source.
CUE_CUT_HZ = 6000.0
CUE_REVERB_SHARE = 0.2
CUE_REVERB_T60_S = 0.6
CUE_REVERB_DELAY_S = 0.01


def energy_ratio(base_energy: float, energy: float) -> float:
    """The amplitude factor that gives a source the base's energy, within 0.02 ... 50; 1 beside a silent base.

    >>> energy_ratio(4.0, 1.0), energy_ratio(1.0, 1e-6), energy_ratio(0.0, 1.0)
    (2.0, 50.0, 1.0)
    """
    if base_energy <= 0:
        return 1.0
    return min(max(math.sqrt(base_energy / max(energy, LEAST_ENERGY)), LOWEST_RATIO), HIGHEST_RATIO)


def omega_db(label: str, gamma_db: float, same_jitter_db: float, rng: np.random.Generator) -> float:
    """A level for a judge's answer: far in [-gamma, 0), close in (0, gamma], same within +-jitter (0 without it)."""
    if label not in LABELS:
        raise UsageError(f"the judge answered {label!r}; expected {', '.join(LABELS)}")
    share = rng.random()  # in [0, 1); drawn for every label, so that another judge leaves the rest of a seed alone
    if label == "same":
        return same_jitter_db * (2.0 * share - 1.0)
    return -gamma_db * (1.0 - share) if label == "far" else gamma_db * (1.0 - share)


class _BesideBase(Remix):
    """Sources that keep the first one as it is, and are set beside it."""

    def _energies(self, stems: Mapping[str, FloatArray], sample_rate: int) -> dict[str, float]:
        """stem -> mean square over active samples; 0 for silence, nan for what hardly sounds and is left as it is."""
        energies = {}
        for name in (name for name in self.sources if name in stems):
            level, active = rms_level(stems[name], sample_rate)
            silent = not stems[name].size or float(np.abs(stems[name]).max()) < SILENCE_PEAK
            energies[name] = 0.0 if silent else math.nan if active < LEAST_ACTIVE_SHARE else level**2
        return energies


@dataclass(frozen=True)
class DistanceRemix(_BesideBase):
    """Levels by a judge of distance.

    Attributes:
        judge: answers how a candidate should sit against the base.
        gamma_db: the largest level beside the base.
        db_convention: ``"amplitude"``, or ``"paper"``, which makes every level twice as many dB.
        same_jitter_db: ``same`` is drawn uniformly within this, instead of being exactly as loud.
        distance_cues: a source judged far also loses its highs (a low-pass of first order, 6 kHz) and gets 20 %
            reverberation, before its level is set. In the paper distance is loudness alone.
        captions: stem -> what the judge is told about it; a stem that is not in it goes by its name.
        peak, sources, about: as in `umx_ext.training.gains.Remix`; the first of the sources is the base.

    A silent source stays silent. One that hardly sounds (less than 5 % of the frames active) is left as it is. Beside a
    base that hardly sounds, energies are not matched: omega is then a plain gain.
    """

    judge: DistanceJudge = field(default_factory=StaticJudge)
    gamma_db: float = 15.0
    db_convention: str = "amplitude"
    same_jitter_db: float = 0.0
    distance_cues: bool = False
    captions: Mapping[str, str] = field(default_factory=dict)
    peak: str = "audiosep"
    sources: tuple[str, ...] = STEMS
    about: str = ""

    def __post_init__(self) -> None:
        check_remix(self)
        _check_single(self.sources)
        if self.db_convention not in CONVENTIONS:
            raise UsageError(f"no db_convention {self.db_convention!r}; known: {', '.join(CONVENTIONS)}")
        for name in ("gamma_db", "same_jitter_db"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UsageError(f"expected {name} to be a number of dB, 0 or more, got {getattr(self, name)!r}")

    def levelled(
        self, stems: Mapping[str, FloatArray], sample_rate: int, rng: np.random.Generator
    ) -> tuple[dict[str, FloatArray], dict[str, float]]:
        present = [name for name in self.sources if name in stems]
        base, sources, gains_db = present[0], dict(stems), dict.fromkeys(stems, math.nan)
        base_caption = self.captions.get(base, base)
        energies = self._energies(stems, sample_rate)
        if energies[base] > 0:
            gains_db[base] = 0.0
        for name in present[1:]:
            label = self.judge.judge(base_caption, self.captions.get(name, name))
            level_db = omega_db(label, self.gamma_db, self.same_jitter_db, rng)
            if math.isnan(energies[name]):
                continue
            if energies[name] == 0:
                sources[name] = np.zeros_like(stems[name])
                continue
            if self.distance_cues and label == "far":
                sources[name] = _cued(stems[name], sample_rate, rng)
                energies[name] = rms_level(sources[name], sample_rate)[0] ** 2
            # A nan base hardly sounds: not above 0, no matching.
            ratio = energy_ratio(energies[base] if energies[base] > 0 else 0.0, energies[name])
            sources[name] = sources[name] * np.float32(ratio * 10 ** (level_db / CONVENTIONS[self.db_convention]))
            gains_db[name] = level_db
        return sources, gains_db


def _cued(waveform: FloatArray, sample_rate: int, rng: np.random.Generator) -> FloatArray:
    duller = one_pole(waveform, sample_rate, CUE_CUT_HZ)
    return reverberated(duller, sample_rate, CUE_REVERB_SHARE, CUE_REVERB_T60_S, CUE_REVERB_DELAY_S, rng)


@dataclass(frozen=True)
class AudioSepRemix(_BesideBase):
    """AudioSep's random strategy: energies are matched, then a whole number of dB is drawn, whatever the sounds are.

    Once for each interferer beside the base, and once more for the sum of the interferers beside the base. With one
    interferer the second draw undoes the first. The energy is that of the whole excerpt, pauses included.

    Attributes:
        lowest_db, highest_db: the dB are a uniform whole number from one to the other, both included.
        fewest, most: how many sources a mixture has, the base included: a uniform whole number from one to the other;
            interferers are chosen at random, and the others are silent. AudioSep's own training is 2 and 2; all four by
            default, so that the material is that of the distance-aware remix.
        peak, sources, about: as in `umx_ext.training.gains.Remix`; the first of the sources is the base.
    """

    lowest_db: int = -10
    highest_db: int = 10
    fewest: int = 4
    most: int = 4
    peak: str = "audiosep"
    sources: tuple[str, ...] = STEMS
    about: str = ""

    def __post_init__(self) -> None:
        check_remix(self)
        _check_single(self.sources)
        if not self.lowest_db <= self.highest_db:
            raise UsageError(f"expected lowest_db up to highest_db, got {self.lowest_db} and {self.highest_db}")
        if not 2 <= self.fewest <= self.most <= len(STEMS):
            raise UsageError(f"expected 2 <= fewest <= most <= {len(STEMS)}, got {self.fewest} and {self.most}")

    def levelled(
        self, stems: Mapping[str, FloatArray], sample_rate: int, rng: np.random.Generator
    ) -> tuple[dict[str, FloatArray], dict[str, float]]:
        present = [name for name in self.sources if name in stems]
        base, sources, gains_db = present[0], dict(stems), dict.fromkeys(stems, math.nan)
        energies = self._energies(stems, sample_rate)
        base_energy = _energy(stems[base]) if energies[base] > 0 else 0.0
        if base_energy > 0:
            gains_db[base] = 0.0
        count = int(rng.integers(self.fewest, self.most + 1)) - 1
        chosen = present[1:]
        if count < len(chosen):
            chosen = [chosen[place] for place in sorted(rng.permutation(len(chosen))[:count])]
        for name in present[1:]:
            drawn_db = int(rng.integers(self.lowest_db, self.highest_db + 1))
            if name not in chosen or energies[name] == 0:
                sources[name] = np.zeros_like(stems[name])
            elif energies[name] > 0:
                ratio = energy_ratio(base_energy, _energy(stems[name]))
                sources[name] = stems[name] * np.float32(ratio * 10 ** (drawn_db / 20))
                gains_db[name] = drawn_db
        sum_db = int(rng.integers(self.lowest_db, self.highest_db + 1))
        levelled = [name for name in chosen if not math.isnan(gains_db[name])]
        if levelled:
            total = np.sum([sources[name] for name in levelled], axis=0)
            factor = np.float32(energy_ratio(base_energy, _energy(total)) * 10 ** (sum_db / 20))
            for name in levelled:
                sources[name] = sources[name] * factor
                gains_db[name] += sum_db
        return sources, gains_db


def _energy(waveform: FloatArray) -> float:
    return float(np.square(waveform, dtype=np.float64).mean())


def _check_single(sources: tuple[str, ...]) -> None:
    if "accompaniment" in sources:
        raise UsageError(f"this remix sets every stem beside the first one; its sources are {', '.join(STEMS)}")
