"""Remixes: training examples made of stems of different songs, at drawn levels.

A remix draws excerpts, sets their levels by a gain law, sums them to the mixture and scales everything by one factor
(the peak rule), so no law can break additivity. `REMIXES` names the gain laws.

The constants of ``wsj0`` are those of speechbrain's WSJ0Mix recipe: the level of a source is the mean absolute
amplitude in dB. The first source's level N(-27.43, 2.57) cancels in the peak rule; what shapes the data is the relative
N(-2.51, 2.66) dB of every further source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from umx_ext.errors import UsageError
from umx_ext.training.tracks import Entry, Pack

__all__ = ["REMIXES", "Remixer", "active_level", "wsj0_gains_db"]

FloatArray = npt.NDArray[np.float32]
STEMS = ("vocals", "drums", "bass", "other")

FIRST_LEVEL_DB, FIRST_LEVEL_SD_DB = -27.43, 2.57
RELATIVE_LEVEL_DB, RELATIVE_LEVEL_SD_DB = -2.51, 2.66
LOWEST_DB, HIGHEST_DB = -45.0, 0.0
PEAK = 0.9

FRAME_S = 0.05
SILENCE_PEAK = 1e-5  # -100 dBFS
LEAST_ACTIVE_SHARE = 0.05


def active_level(waveform: FloatArray, sample_rate: int) -> tuple[float, float]:
    """Mean absolute amplitude over active samples, and the share of active frames.

    A frame of 50 ms is active when its RMS over channels exceeds ``max(-60 dBFS, loudest frame - 40 dB)``.

    Args:
        waveform: `(channels, samples)`; one level for all channels, so that the stereo image stays.
        sample_rate: Hz.

    Returns:
        (level as an amplitude, active share); (0, 0) when silent.
    """
    length = int(FRAME_S * sample_rate)
    count = waveform.shape[-1] // length
    if count == 0 or not np.abs(waveform).max(initial=0.0) >= SILENCE_PEAK:
        return 0.0, 0.0
    frames = waveform[:, : count * length].reshape(waveform.shape[0], count, length)
    power = np.einsum("cft,cft->f", frames, frames) / (waveform.shape[0] * length)
    rms_db = 10.0 * np.log10(np.maximum(power, 1e-20))
    active = rms_db > max(-60.0, float(rms_db.max()) - 40.0)
    if not active.any():
        return 0.0, 0.0
    return float(np.abs(frames[:, active]).mean()), float(active.mean())


def wsj0_gains_db(sources: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Levels in dB for `sources` sources, every one after the first relative to the first."""
    first = np.clip(rng.normal(FIRST_LEVEL_DB, FIRST_LEVEL_SD_DB), LOWEST_DB, HIGHEST_DB)
    others = first + rng.normal(RELATIVE_LEVEL_DB, RELATIVE_LEVEL_SD_DB, sources - 1)
    return np.concatenate([[first], np.clip(others, LOWEST_DB, HIGHEST_DB)])


REMIXES: dict[str, Callable[[int, np.random.Generator], npt.NDArray[np.float64]]] = {"wsj0": wsj0_gains_db}


@dataclass(frozen=True)
class Remixer:
    """Draws training examples from a `Pack`.

    Attributes:
        pack: the decoded stems.
        remix: name in `REMIXES`: the gain law.
        samples: length of an example.
        own_song: share of examples whose stems are one excerpt of one song.
        own_accompaniment: share in which drums, bass and other are one excerpt of one song, the vocals of another.
            In the rest every stem comes from a song of its own.
        mir1k_vocals: share of examples whose vocals are a MIR-1K singer's (dry, mono, 8 kHz wide).
        mir1k_whole: share that is a MIR-1K clip, vocals and accompaniment.
        no_vocals: share without vocals, so that the network learns to put out silence.
        swap_channels: chance to swap left and right, for each stem.
    """

    pack: Pack
    remix: str = "wsj0"
    samples: int = 176400
    own_song: float = 0.25
    own_accompaniment: float = 0.3
    mir1k_vocals: float = 0.15
    mir1k_whole: float = 0.06
    no_vocals: float = 0.03
    swap_channels: float = 0.5

    def __post_init__(self) -> None:
        if self.remix not in REMIXES:
            raise UsageError(f"no remix named {self.remix!r}; known: {', '.join(REMIXES)}")

    def draw(self, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """One example.

        Returns:
            (mixture, vocals), each float32 `(2, samples)`; the mixture is the sum of the stems.
        """
        stems = self._excerpts(rng)
        gains_db = REMIXES[self.remix](len(stems), rng)
        for (name, stem), gain_db in zip(stems.items(), gains_db, strict=True):
            level, active = active_level(stem, self.pack.sample_rate)
            if active >= LEAST_ACTIVE_SHARE:  # noise of a codec in a silent stem is not raised
                stems[name] = stem * np.float32(10.0 ** (gain_db / 20.0) / level)
        mixture = np.sum(list(stems.values()), axis=0)
        peak = max(float(np.abs(signal).max()) for signal in (mixture, *stems.values()))
        scale = np.float32(PEAK / peak if peak > 0 else 1.0)
        return mixture * scale, stems["vocals"] * scale

    def _excerpts(self, rng: np.random.Generator) -> dict[str, FloatArray]:
        kind = rng.random()
        if kind < self.mir1k_whole:
            song = self._song("mir1k", rng)
            start = self._start(song["vocals"], rng)
            return {
                "vocals": self._read(song["vocals"], start, rng, swap=False),
                "other": self._read(song["accompaniment"], start, rng, swap=False),
            }
        song = self._song("musdb18", rng)
        start = self._start(song["vocals"], rng)
        swap = rng.random() < self.swap_channels
        kind = rng.random()
        stems = {}
        for name in STEMS:
            own = kind < self.own_song or (name != "vocals" and kind < self.own_song + self.own_accompaniment)
            if own:
                stems[name] = self._read(song[name], start, rng, swap=swap)
            else:
                entry = self._song("musdb18", rng)[name]
                if name == "vocals" and rng.random() < self.mir1k_vocals:
                    entry = self._song("mir1k", rng)["vocals"]
                stems[name] = self._read(
                    entry, self._start(entry, rng), rng, swap=rng.random() < self.swap_channels
                )
        if rng.random() < self.no_vocals:
            stems["vocals"] = np.zeros_like(stems["vocals"])
        return stems

    def _song(self, source: str, rng: np.random.Generator) -> Mapping[str, Entry]:
        songs = self._songs[source]
        return songs[int(rng.integers(len(songs)))]

    @property
    def _songs(self) -> dict[str, list[dict[str, Entry]]]:
        cached = self.__dict__.get("_cache")
        if cached is None:
            cached = {source: list(self.pack.songs("train", source).values()) for source in ("musdb18", "mir1k")}
            object.__setattr__(self, "_cache", cached)
        return cached

    def _start(self, entry: Entry, rng: np.random.Generator) -> int:
        return int(rng.integers(0, max(0, entry.samples - self.samples) + 1))

    def _read(self, entry: Entry, start: int, rng: np.random.Generator, *, swap: bool) -> FloatArray:
        waveform = self.pack.read(entry, start, self.samples)
        if len(waveform) == 1:
            return np.repeat(waveform, 2, axis=0)
        return waveform[::-1].copy() if swap else waveform
