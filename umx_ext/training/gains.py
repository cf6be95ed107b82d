"""Gain laws: how loud each source of a training example is made, and what is done when the sum is too loud.

A `Remix` takes the stems of one example as they were read, changes their levels (one gain for both channels of a stem,
so that its place in the stereo image stays), sums them to the mixture and scales everything by one factor, the peak
rule: no law can break additivity. `LevelRemix` makes one of a law and a measure.

The constants of WSJ0 are those of speechbrain's recipe WSJ0Mix, where the level of a source is its mean absolute
amplitude in dB, neither RMS nor loudness. Its first draw N(-27.43, 2.57) cancels in the peak rule: no output has that
level, it peaks at 0.9. What shapes the data is the relative N(-2.51, 2.66) dB alone. That is a *narrower* diversity
than open-unmix's, whose songs keep their own levels and get another U(0.25, 1.25): there the levels of two stems differ
by about 7.5 dB (standard deviation). Whether narrower is better is an experiment, not a fact.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from umx_ext import levels
from umx_ext.errors import AudioError, UsageError

__all__ = [
    "LEAST_ACTIVE_SHARE", "STEMS", "LevelRemix", "Mix", "Remix", "active_level", "libri_gains_db", "loudness_level",
    "musdb_gains_db", "peak_scale", "rms_level", "summed", "umx_gains_db", "whole_level", "wsj0_gains_db",
]  # fmt: skip

FloatArray = npt.NDArray[np.float32]
Gains = npt.NDArray[np.float64]
# What the sources are called -> dB for each of them.
GainLaw = Callable[[Sequence[str], np.random.Generator], Gains]
# (channels, samples), Hz -> level as an amplitude, share of active frames.
Measure = Callable[[FloatArray, int], tuple[float, float]]

STEMS = ("vocals", "drums", "bass", "other")
BACKING = STEMS[1:]  # what "accompaniment" is the sum of

FIRST_LEVEL_DB, FIRST_LEVEL_SD_DB = -27.43, 2.57
RELATIVE_LEVEL_DB, RELATIVE_LEVEL_SD_DB = -2.51, 2.66
LOWEST_DB, HIGHEST_DB = -45.0, 0.0

# Mean and standard deviation over MUSDB18's 80 training songs (its 7-second sample, validation songs left out), as
# scripts/measure_remix_statistics.py writes them to docs/remix_statistics.json.
MUSDB_VOCALS_LUFS = (-18.93, 2.64)
MUSDB_RELATIVE_LU = {"drums": (-4.27, 4.22), "bass": (-4.23, 5.82), "other": (-1.65, 3.68)}

UMX_GAINS = (0.25, 1.25)
LIBRI_LUFS = (-33.0, -25.0)

PEAK = 0.9
PEAK_RULES = ("always", "limit", "audiosep", "none")

FRAME_S = 0.05
SILENCE_PEAK = 1e-5  # -100 dBFS
LEAST_ACTIVE_SHARE = 0.05
WHOLE_FLOOR = 1e-14  # speechbrain's, against division by zero

# ------------------------------------------------------------------------------------------------------------ measures


def _frames(
    waveform: FloatArray, sample_rate: int
) -> tuple[FloatArray, npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Frames of 50 ms `(channels, frames, samples)`, their power over all channels, and which of them are active."""
    length = int(FRAME_S * sample_rate)
    count = waveform.shape[-1] // length
    frames = waveform[:, : count * length].reshape(waveform.shape[0], count, length)
    if count == 0 or not _peak(waveform) >= SILENCE_PEAK:
        return frames, np.zeros(count), np.zeros(count, bool)
    power = np.einsum("cft,cft->f", frames, frames) / (waveform.shape[0] * length)
    rms_db = 10.0 * np.log10(np.maximum(power, 1e-20))
    return frames, power, rms_db > max(-60.0, float(rms_db.max()) - 40.0)


def active_level(waveform: FloatArray, sample_rate: int) -> tuple[float, float]:
    """Mean absolute amplitude over active samples, and the share of active frames.

    A frame of 50 ms is active when its RMS over channels exceeds ``max(-60 dBFS, loudest frame - 40 dB)``.

    Args:
        waveform: `(channels, samples)`; one level for all channels, so that the stereo image stays.
        sample_rate: Hz.

    Returns:
        (level as an amplitude, active share); (0, 0) when silent.
    """
    frames, _, active = _frames(waveform, sample_rate)
    if not active.any():
        return 0.0, 0.0
    sums = np.abs(frames).sum(axis=2, dtype=np.float32)[:, active]  # (channels, active frames)
    return float(sums.mean(dtype=np.float64)) / frames.shape[2], float(active.mean())


def rms_level(waveform: FloatArray, sample_rate: int) -> tuple[float, float]:
    """Root of the mean square over active samples, and the share of active frames; else as `active_level`."""
    _, power, active = _frames(waveform, sample_rate)
    if not active.any():
        return 0.0, 0.0
    return float(np.sqrt(power[active].mean())), float(active.mean())


def whole_level(waveform: FloatArray, sample_rate: int) -> tuple[float, float]:
    """Mean absolute amplitude over everything, pauses included, as speechbrain's ``rescale`` measures it.

    A vocal that sings 30 % of an excerpt comes out 10 dB louder where it sings. Of several channels it is one level,
    where ``rescale`` would level each by itself and lose the stereo image.
    """
    active = _frames(waveform, sample_rate)[2]
    return float(np.abs(waveform).mean()) + WHOLE_FLOOR, float(active.mean()) if active.any() else 0.0


def loudness_level(waveform: FloatArray, sample_rate: int) -> tuple[float, float]:
    """Loudness (ITU-R BS.1770-4, gated) as an amplitude, ``10 ** (lufs / 20)``, and the share of active frames.

    The K-weighting is applied to the spectra of 100 ms pieces, of which the 400 ms windows are made. What the filter
    carries over from one piece to the next is left out: beside the filter that is run through the whole waveform
    (`umx_ext.levels.integrated_lufs`) the difference is some thousandths of a LU on most excerpts of music, and a few
    tenths where a window lies at the border of a gate. It takes half the time, and no scipy.
    """
    active = _frames(waveform, sample_rate)[2]
    if not active.any():
        return 0.0, 0.0
    length = round(0.1 * sample_rate)
    count = max(1, waveform.shape[-1] // length)
    if waveform.shape[-1] < length:
        length = waveform.shape[-1]
    pieces = waveform[:, : count * length].reshape(-1, length)
    spectra = np.fft.rfft(pieces)
    energy = (np.square(spectra.real) + np.square(spectra.imag)) @ _k_weights(sample_rate, length)
    power = energy.reshape(len(waveform), count).sum(axis=0)
    windows = max(1, count - 3)
    power = np.lib.stride_tricks.sliding_window_view(power, count - windows + 1).mean(axis=1).astype(np.float64)
    lufs = levels.OFFSET_LU + 10 * np.log10(np.maximum(power, 1e-20))
    kept = lufs >= levels.ABSOLUTE_GATE_LUFS
    if not kept.any():
        return 0.0, 0.0
    mean = levels.OFFSET_LU + 10 * np.log10(power[kept].mean())
    kept &= lufs > mean + levels.RELATIVE_GATE_LU
    return float(10 ** (levels.OFFSET_LU / 20) * np.sqrt(power[kept].mean())), float(active.mean())


@functools.lru_cache(maxsize=8)
def _k_weights(sample_rate: int, length: int) -> FloatArray:
    """Weights of ``|rfft|^2`` bins that make them the K-weighted mean square of `length` samples."""
    turn = np.exp(-2j * np.pi * np.fft.rfftfreq(length))
    response = np.ones(len(turn), complex)
    for b0, b1, b2, a0, a1, a2 in levels.k_weighting(sample_rate):
        response *= (b0 + b1 * turn + b2 * turn**2) / (a0 + a1 * turn + a2 * turn**2)
    both_sides = np.full(len(turn), 2.0)
    both_sides[0] = 1.0
    if length % 2 == 0:
        both_sides[-1] = 1.0
    return (both_sides * np.abs(response) ** 2 / length**2).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------- laws


def wsj0_gains_db(sources: int, rng: np.random.Generator) -> Gains:
    """Levels in dB for `sources` sources, every one after the first relative to the first."""
    first = np.clip(rng.normal(FIRST_LEVEL_DB, FIRST_LEVEL_SD_DB), LOWEST_DB, HIGHEST_DB)
    others = first + rng.normal(RELATIVE_LEVEL_DB, RELATIVE_LEVEL_SD_DB, sources - 1)
    return np.concatenate([[first], np.clip(others, LOWEST_DB, HIGHEST_DB)])


def wsj0_law(sources: Sequence[str], rng: np.random.Generator) -> Gains:
    """`wsj0_gains_db` for named sources."""
    return wsj0_gains_db(len(sources), rng)


def musdb_gains_db(sources: Sequence[str], rng: np.random.Generator) -> Gains:
    """LUFS as MUSDB18's own: the vocals', and the other stems' relative to them (normal, `MUSDB_RELATIVE_LU`)."""
    vocals = rng.normal(*MUSDB_VOCALS_LUFS)
    return np.array([vocals if name == "vocals" else vocals + rng.normal(*MUSDB_RELATIVE_LU[name]) for name in sources])


def umx_gains_db(sources: Sequence[str], rng: np.random.Generator) -> Gains:
    """Open-unmix's augmentation: each stem times U(0.25, 1.25) (mean -3.25 dB, standard deviation 3.80 dB)."""
    return 20.0 * np.log10(rng.uniform(*UMX_GAINS, len(sources)))


def libri_gains_db(sources: Sequence[str], rng: np.random.Generator) -> Gains:
    """LibriMix's: U(-33, -25) LUFS for each source, none relative to another."""
    return rng.uniform(*LIBRI_LUFS, len(sources))


# ------------------------------------------------------------------------------------------------------------- remixes


@dataclass(frozen=True)
class Mix:
    """Stems at their levels, and their sum.

    Attributes:
        mixture: `(channels, samples)`, the sum of the sources.
        sources: stem -> waveform of that shape.
        gains_db: stem -> what the law drew for it; nan for a stem that was left as it was since it hardly sounds.
        peak_scale: the factor of the peak rule, which the waveforms have in them and `gains_db` does not.
    """

    mixture: FloatArray
    sources: dict[str, FloatArray]
    gains_db: dict[str, float]
    peak_scale: float


class Remix(ABC):
    """One member of `umx_ext.training.remix.REMIXES`.

    Attributes:
        sources: what levels are drawn for, in this order; the first is the anchor. ``"accompaniment"`` stands for
            drums, bass and other: they come from one excerpt of one song, and keep that song's balance.
        peak: the peak rule, see `peak_scale`.
        about: one line for people.
    """

    sources: tuple[str, ...]
    peak: str
    about: str

    @abstractmethod
    def levelled(
        self, stems: Mapping[str, FloatArray], sample_rate: int, rng: np.random.Generator
    ) -> tuple[dict[str, FloatArray], dict[str, float]]:
        """The stems at their new levels, and what was drawn for each (see `Mix`). The arrays that came stay.

        Args:
            stems: some of `STEMS` -> float32 `(channels, samples)`, as they were recorded.
            sample_rate: Hz.
            rng: the only source of randomness.
        """

    def mix(self, stems: Mapping[str, FloatArray], sample_rate: int, rng: np.random.Generator) -> Mix:
        """`levelled`, summed, under the peak rule.

        Raises:
            AudioError: no stems, shapes that differ, or samples that are nan or infinite.
            UsageError: a stem of another name.
        """
        shapes = {name: waveform.shape for name, waveform in stems.items()}
        if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 2:
            raise AudioError(f"expected stems of one shape (channels, samples), got {shapes}")
        unknown = ", ".join(name for name in stems if name not in STEMS)
        if unknown:
            raise UsageError(f"no stem {unknown} in a remix; known: {', '.join(STEMS)}")
        sources, gains_db = self.levelled(stems, sample_rate, rng)
        return summed(sources, gains_db, self.peak)


@dataclass(frozen=True)
class LevelRemix(Remix):
    """Each source is set to the level that a law draws for it.

    Attributes:
        law: (names of the sources, generator) -> dB for each.
        measure: what a level is: `active_level`, `rms_level`, `whole_level`, `loudness_level` or a function like them.
            The source gets the drawn level, whatever it had. None: the drawn dB are a gain on top of what it had.
        peak, sources, about: as in `Remix`.

    A source of which less than 5 % of the frames are active is left as it is (the noise of a codec in a silent stem is
    not raised), while the others keep the levels that were drawn beside its own.
    """

    law: GainLaw
    measure: Measure | None = active_level
    peak: str = "always"
    sources: tuple[str, ...] = STEMS
    about: str = ""

    def __post_init__(self) -> None:
        check_remix(self)

    def levelled(
        self, stems: Mapping[str, FloatArray], sample_rate: int, rng: np.random.Generator
    ) -> tuple[dict[str, FloatArray], dict[str, float]]:
        members = {name: [stem for stem in BACKING if stem in stems] if name == "accompaniment" else [name]
                   for name in self.sources if name in stems or name == "accompaniment"}  # fmt: skip
        members = {name: found for name, found in members.items() if found}
        drawn = np.asarray(self.law(tuple(members), rng), dtype=np.float64)
        if drawn.shape != (len(members),) or not np.isfinite(drawn).all():
            raise UsageError(
                f"a gain law must return one finite number of dB for each of {', '.join(members)}, got {drawn.tolist()}"
            )
        sources, gains_db = dict(stems), dict.fromkeys(stems, float("nan"))
        for found, gain_db in zip(members.values(), drawn.tolist(), strict=True):
            level, active = 1.0, 1.0
            if self.measure is not None:
                bus = stems[found[0]] if len(found) == 1 else _total([stems[stem] for stem in found])
                level, active = self.measure(bus, sample_rate)
            if active >= LEAST_ACTIVE_SHARE:
                factor = np.float32(10.0 ** (gain_db / 20.0) / level)
                for stem in found:
                    sources[stem], gains_db[stem] = stems[stem] * factor, gain_db
        return sources, gains_db


def check_remix(remix: Remix) -> None:
    """That its peak rule and sources exist; raises UsageError."""
    if remix.peak not in PEAK_RULES:
        raise UsageError(f"no peak rule {remix.peak!r}; known: {', '.join(PEAK_RULES)}")
    covered = [stem for name in remix.sources for stem in (BACKING if name == "accompaniment" else (name,))]
    if sorted(covered) != sorted(STEMS):
        raise UsageError(
            f"a remix needs each of {', '.join(STEMS)} once among its sources (accompaniment stands for the last "
            f"three), got {', '.join(remix.sources)}"
        )


def summed(stems: Mapping[str, FloatArray], gains_db: Mapping[str, float], peak: str) -> Mix:
    """The stems as they are, their sum, and one factor for all of it by the peak rule.

    Raises:
        AudioError: a sample is nan or infinite.
    """
    mixture = _total(list(stems.values()))
    highest, loudest = _peak(mixture), max(_peak(waveform) for waveform in stems.values())
    if not np.isfinite(highest) or not np.isfinite(loudest):
        raise AudioError("a stem holds NaN or infinity; repair it or leave it out")
    scale = peak_scale(peak, highest, loudest)
    factor = np.float32(scale)
    return Mix(mixture * factor, {name: waveform * factor for name, waveform in stems.items()}, dict(gains_db), scale)


def peak_scale(rule: str, mixture_peak: float, source_peak: float) -> float:
    """The factor that everything is multiplied by; 1 for silence.

    ========  =========================================================================================
    always    the highest of mixture and sources becomes 0.9, in quiet examples too (speechbrain)
    limit     the same where it would be higher than 0.9, else 1
    audiosep  the mixture becomes 0.9 where it would be higher than 1, whatever the sources are (AudioSep)
    none      1
    ========  =========================================================================================
    """
    highest = max(mixture_peak, source_peak)
    if rule == "audiosep":
        return PEAK / mixture_peak if mixture_peak > 1 else 1.0
    if rule == "none" or highest <= 0 or (rule == "limit" and highest <= PEAK):
        return 1.0
    return PEAK / highest


def _total(waveforms: Sequence[FloatArray]) -> FloatArray:
    """Their sum; `np.sum` would stack them first."""
    total = waveforms[0].copy()
    for waveform in waveforms[1:]:
        total += waveform
    return total


def _peak(waveform: FloatArray) -> float:
    """The largest absolute sample; nan as soon as one sample is."""
    if waveform.size == 0:
        return 0.0
    return max(float(waveform.max()), -float(waveform.min()))
