"""Remixes: training examples made of stems of different songs, at drawn levels.

`REMIXES` names them: each says from how many songs an example may be put together, at which levels, measured how, and
what is done about its peak. `Remixer` draws examples from a pack. One of your own is an entry in the dict::

    def even(sources, rng):  # dB for each of ("vocals", "drums", "bass", "other"), whichever are there
        return rng.uniform(-30, -20, len(sources))

    REMIXES["even"] = LevelRemix(even, measure=rms_level, peak="limit")
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from umx_ext.errors import UsageError
from umx_ext.training.augment import AUGMENTATIONS, augmented, check_strength
from umx_ext.training.distance import AudioSepRemix, DistanceRemix
from umx_ext.training.gains import (
    LEAST_ACTIVE_SHARE,
    STEMS,
    LevelRemix,
    Mix,
    Remix,
    active_level,
    libri_gains_db,
    loudness_level,
    musdb_gains_db,
    rms_level,
    summed,
    umx_gains_db,
    whole_level,
    wsj0_gains_db,
    wsj0_law,
)
from umx_ext.training.tracks import ACCOMPANIMENTS, PAIRS, SONGS, VOCALS, Entry, Pack

__all__ = [
    "REMIXES", "STEMS", "Epoch", "Example", "LevelRemix", "Mix", "Remix", "Remixer", "active_level", "loudness_level",
    "rms_level", "whole_level", "wsj0_gains_db",
]  # fmt: skip

FloatArray = npt.NDArray[np.float32]
Song = Mapping[str, Entry]

EXTRA_SAMPLES = 64  # read beyond an excerpt that is to be resampled

REMIXES: dict[str, Remix] = {
    "wsj0": LevelRemix(
        wsj0_law,
        about="WSJ0's statistics with the vocals as first speaker: each other stem N(-2.51, 2.66) dB beside them",
    ),
    "wsj0-literal": LevelRemix(
        wsj0_law,
        measure=whole_level,
        about="the same, levels over whole excerpts with their pauses, as in speechbrain",
    ),
    "wsj0-bus": LevelRemix(
        wsj0_law,
        measure=loudness_level,
        sources=("accompaniment", "vocals"),
        about="the backing of one song, vocals N(-2.51, 2.66) LU beside it: closest to real songs",
    ),
    "musdb": LevelRemix(
        musdb_gains_db,
        measure=loudness_level,
        peak="limit",
        about="MUSDB18's own loudness statistics, each stem beside the vocals",
    ),
    "umx": LevelRemix(
        umx_gains_db,
        measure=None,
        peak="none",
        about="open-unmix's augmentation: every stem as it is, times U(0.25, 1.25)",
    ),
    "libri": LevelRemix(
        libri_gains_db,
        measure=loudness_level,
        peak="limit",
        about="LibriMix's: each stem U(-33, -25) LUFS",
    ),
    "distance": DistanceRemix(about="a judge's far, same or close beside the vocals, within 15 dB"),
    "random-audiosep": AudioSepRemix(about="equal energies, then whole dB from -10 to 10, for each stem and their sum"),
}


@dataclass(frozen=True)
class Example:
    """One training example.

    Attributes:
        mixture: float32 `(2, samples)`, the sum of the sources.
        sources: float32 `(4, 2, samples)` in the order of `STEMS`; zeros where a stem is missing.
        gains_db: `(4,)`, what the remix drew for each source (see `umx_ext.training.gains.Mix`).
        songs: where each source is from; None for a missing one.
        starts: `(4,)`, its first sample in that song; -1 for a missing one.
        peak_scale: the factor of the peak rule.
    """

    mixture: FloatArray
    sources: FloatArray
    gains_db: npt.NDArray[np.float64]
    songs: tuple[str | None, ...]
    starts: npt.NDArray[np.int64]
    peak_scale: float

    @property
    def vocals(self) -> FloatArray:
        """The first source; mixture minus vocals is the accompaniment."""
        return self.sources[0]


@dataclass(frozen=True)
class _Excerpt:
    """Stems that are read from one place of one song."""

    entries: dict[str, Entry]
    start: int
    swap: bool


@dataclass(frozen=True)
class Remixer:
    """Draws training examples from a `Pack`.

    Attributes:
        pack: the decoded stems. Options for a kind of song that it does not hold do nothing. Where it holds pairs of
            vocals and accompaniment alone, those are remixed with each other.
        remix: name in `REMIXES`, or a remix itself: levels, and whether the backing is one song's.
        samples: length of an example.
        own_song: share of examples whose stems are one excerpt of one song.
        own_accompaniment: share in which drums, bass and other are one excerpt of one song, the vocals of another.
            In the rest every stem comes from a song of its own.
        mir1k_vocals: share of examples whose vocals are a MIR-1K singer's (dry, mono, 8 kHz wide), another pair's or
            loose ones, of those in which the vocals have a song of their own.
        mir1k_whole: share that is a MIR-1K clip or another pair, vocals and accompaniment (in the place of "other").
        loose_accompaniments: share in which a loose accompaniment takes the place of drums, bass and other.
        no_vocals: share without vocals, so that the network learns to put out silence.
        swap_channels: chance to swap left and right, for each excerpt.
        p_remix: share of examples that are put together by all of the above. The others are one excerpt of song
            ``index // samples_per_track``, remixed in their levels only; a drawn song where no index is given. 1, with
            `own_song` and `own_accompaniment` 0, is open-unmix's ``random_track_mix``.
        samples_per_track: examples of each song in an epoch.
        max_tries: how many times an excerpt is moved in its song when it hardly sounds (less than 5 % of its frames
            are active). 0 by default, with which earlier runs can be drawn again; 4 is a good number.
        p_keep_silent_target: chance that an excerpt whose vocals hardly sound is kept all the same: the network must
            learn to put out silence. Below 1 it needs `max_tries`.
        augment: name in `AUGMENTATIONS` -> strength, 0 to 1.

    Raises:
        UsageError: an unknown name, a share outside 0 ... 1, or no training song in the pack.
    """

    pack: Pack
    remix: str | Remix = "wsj0"
    samples: int = 176400
    own_song: float = 0.25
    own_accompaniment: float = 0.3
    mir1k_vocals: float = 0.4
    mir1k_whole: float = 0.06
    loose_accompaniments: float = 0.15
    no_vocals: float = 0.03
    swap_channels: float = 0.5
    p_remix: float = 1.0
    samples_per_track: int = 64
    max_tries: int = 0
    p_keep_silent_target: float = 1.0
    augment: Mapping[str, float] = field(default_factory=dict)
    _songs: dict[str, list[Song]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.remix, str) and self.remix not in REMIXES:
            raise UsageError(f"no remix named {self.remix!r}; known: {', '.join(REMIXES)}")
        for name in ("own_song", "own_accompaniment", "mir1k_vocals", "mir1k_whole", "loose_accompaniments",
                     "no_vocals", "swap_channels", "p_remix", "p_keep_silent_target"):  # fmt: skip
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"expected {name} to be a share from 0 to 1, got {getattr(self, name)!r}")
        for name, least in (("samples", 1), ("samples_per_track", 1), ("max_tries", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"expected {name} to be a whole number of at least {least}, got {value!r}")
        if self.p_keep_silent_target < 1 and self.max_tries == 0:
            raise UsageError(
                "p_keep_silent_target below 1 needs max_tries above 0: excerpts are moved to avoid silence"
            )
        for name, strength in self.augment.items():
            if name not in AUGMENTATIONS:
                raise UsageError(f"no augmentation named {name!r}; known: {', '.join(AUGMENTATIONS)}")
            check_strength(strength, name)
        for source in (SONGS, PAIRS, VOCALS, ACCOMPANIMENTS):
            self._songs[source] = list(self.pack.songs("train", source).values())
        if not self._songs[SONGS] and not self._songs[PAIRS]:
            raise UsageError("the pack holds no training song, neither four stems nor vocals and accompaniment")

    @property
    def songs(self) -> int:
        """How many songs there are to draw from, each speed of a song counted."""
        return len(self._songs[SONGS] or self._songs[PAIRS])

    def draw(self, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """One example as (mixture, vocals), each float32 `(2, samples)`; see `example`."""
        mix, _ = self._mix(rng, None)
        return mix.mixture, mix.sources["vocals"]

    def example(self, rng: np.random.Generator, index: int | None = None) -> Example:
        """One example.

        Args:
            rng: the only source of randomness: the same state gives the same example.
            index: of the example in its epoch; it chooses the song where `p_remix` leaves one whole.
        """
        mix, excerpts = self._mix(rng, index)
        sources = np.zeros((len(STEMS), 2, self.samples), np.float32)
        gains_db, starts = np.full(len(STEMS), np.nan), np.full(len(STEMS), -1)
        songs: list[str | None] = [None] * len(STEMS)
        for place, stem in enumerate(STEMS):
            if stem in mix.sources:
                sources[place], gains_db[place] = mix.sources[stem], mix.gains_db[stem]
        for excerpt in excerpts:
            for stem, entry in excerpt.entries.items():
                songs[STEMS.index(stem)], starts[STEMS.index(stem)] = entry.track, excerpt.start
        return Example(mix.mixture, sources, gains_db, tuple(songs), starts, mix.peak_scale)

    def _mix(self, rng: np.random.Generator, index: int | None) -> tuple[Mix, list[_Excerpt]]:
        remix = REMIXES[self.remix] if isinstance(self.remix, str) else self.remix
        excerpts, silent = self._draw_excerpts(remix, rng, index)
        read: dict[str, FloatArray] = {}
        for place, excerpt in enumerate(excerpts):
            excerpts[place], waveforms = self._read(excerpt, rng)
            read |= waveforms
        stems = {stem: read[stem] for stem in STEMS if stem in read}
        if silent:
            stems["vocals"] = np.zeros_like(stems["vocals"])
        sources, gains_db = remix.levelled(stems, self.pack.sample_rate, rng)
        for name, strength in self._augmentations(after=True):
            for stem, waveform in sources.items():
                sources[stem] = AUGMENTATIONS[name](waveform, self.pack.sample_rate, strength, rng)
        return summed(sources, gains_db, remix.peak), excerpts

    def _draw_excerpts(self, remix: Remix, rng: np.random.Generator, index: int | None) -> tuple[list[_Excerpt], bool]:
        """What an example is made of, and whether its vocals are silenced. Earlier runs fix the order of the draws."""
        songs, pairs = self._songs[SONGS], self._songs[PAIRS]
        if self.p_remix < 1 and rng.random() >= self.p_remix:
            whole = songs or pairs
            song = _pick(whole, rng) if index is None else whole[index // self.samples_per_track % len(whole)]
            return [self._excerpt(_as_stems(song), rng, swap=rng.random() < self.swap_channels)], False
        kind = rng.random()
        if pairs and kind < self.mir1k_whole:
            return [self._excerpt(_as_stems(_pick(pairs, rng)), rng, swap=False)], False
        excerpts = self._of_songs(remix, rng) if songs else self._of_pairs(rng)
        loose = self._songs[ACCOMPANIMENTS]
        if loose and rng.random() < self.loose_accompaniments:
            vocals = next(excerpt for excerpt in excerpts if "vocals" in excerpt.entries)
            backing = self._excerpt(_as_stems(_pick(loose, rng)), rng, swap=rng.random() < self.swap_channels)
            excerpts = [replace(vocals, entries={"vocals": vocals.entries["vocals"]}), backing]
        return excerpts, rng.random() < self.no_vocals

    def _of_songs(self, remix: Remix, rng: np.random.Generator) -> list[_Excerpt]:
        songs, singers = self._songs[SONGS], self._songs[PAIRS] + self._songs[VOCALS]
        song = _pick(songs, rng)
        start = self._start(song["vocals"], rng)
        swap = rng.random() < self.swap_channels
        kind = rng.random()
        of_one_song = set(STEMS) if kind < self.own_song else set()
        if "accompaniment" in remix.sources or kind < self.own_song + self.own_accompaniment:
            of_one_song |= set(STEMS) - {"vocals"}
        own = _Excerpt({stem: song[stem] for stem in STEMS if stem in of_one_song}, start, swap)
        excerpts = [own] if own.entries else []
        for stem in STEMS:
            if stem not in of_one_song:
                entry = _pick(songs, rng)[stem]
                if stem == "vocals" and singers and rng.random() < self.mir1k_vocals:
                    entry = _pick(singers, rng)["vocals"]
                start = self._start(entry, rng)
                excerpts.append(_Excerpt({stem: entry}, start, rng.random() < self.swap_channels))
        return excerpts

    def _of_pairs(self, rng: np.random.Generator) -> list[_Excerpt]:
        """Where there are no songs of four stems: the accompaniment of one pair with its own vocals, or another's."""
        pairs, singers = self._songs[PAIRS], self._songs[PAIRS] + self._songs[VOCALS]
        backing = self._excerpt(_as_stems(_pick(pairs, rng)), rng, swap=rng.random() < self.swap_channels)
        if rng.random() < self.own_song:
            return [backing]
        vocals = {"vocals": _pick(singers, rng)["vocals"]}
        backing = replace(backing, entries={"other": backing.entries["other"]})
        return [self._excerpt(vocals, rng, swap=rng.random() < self.swap_channels), backing]

    def _excerpt(self, entries: dict[str, Entry], rng: np.random.Generator, *, swap: bool) -> _Excerpt:
        return _Excerpt(entries, self._start(next(iter(entries.values())), rng), swap)

    def _start(self, entry: Entry, rng: np.random.Generator) -> int:
        return int(rng.integers(0, max(0, entry.samples - self._samples_read) + 1))

    @property
    def _samples_read(self) -> int:
        reach = math.prod(AUGMENTATIONS[name].reach(strength) for name, strength in self._augmentations(after=False))
        return self.samples if reach == 1 else math.ceil(self.samples * reach) + EXTRA_SAMPLES

    def _augmentations(self, *, after: bool) -> list[tuple[str, float]]:
        """(name, strength) of those that are on, in the order of the dict."""
        strengths = ((name, self.augment.get(name, 0)) for name in AUGMENTATIONS if AUGMENTATIONS[name].after == after)
        return [(name, strength) for name, strength in strengths if strength > 0]

    def _read(self, excerpt: _Excerpt, rng: np.random.Generator) -> tuple[_Excerpt, dict[str, FloatArray]]:
        """The waveforms of an excerpt, and the excerpt, which moves in its song as long as it hardly sounds."""
        waveforms = self._waveforms(excerpt)
        for tries in range(self.max_tries):
            # Where there are vocals they decide; the others of one song are moved with them or not at all.
            deciding = [waveforms["vocals"]] if "vocals" in waveforms else list(waveforms.values())
            if any(rms_level(waveform, self.pack.sample_rate)[1] >= LEAST_ACTIVE_SHARE for waveform in deciding):
                break
            if tries == 0 and "vocals" in waveforms and rng.random() < self.p_keep_silent_target:
                break
            excerpt = replace(excerpt, start=self._start(next(iter(excerpt.entries.values())), rng))
            waveforms = self._waveforms(excerpt)
        # Stems of one song have to fit each other: those of an excerpt see the same draws where that matters.
        chosen = [(AUGMENTATIONS[name], strength) for name, strength in self._augmentations(after=False)]
        shared = {place: int(rng.integers(2**63)) for place, (one, _) in enumerate(chosen) if one.together}
        for stem, entry in excerpt.entries.items():
            dry = (stem, entry.source) == ("vocals", PAIRS)
            steps = [
                (augmentation, strength, np.random.default_rng(shared[place]) if place in shared else rng)
                for place, (augmentation, strength) in enumerate(chosen)
                if dry or not augmentation.dry_only
            ]
            waveforms[stem] = augmented(waveforms[stem], self.pack.sample_rate, steps)
        return excerpt, {
            stem: np.ascontiguousarray(waveform[:, : self.samples]) for stem, waveform in waveforms.items()
        }

    def _waveforms(self, excerpt: _Excerpt) -> dict[str, FloatArray]:
        """As two channels: mono in both, of more than two the first two."""
        waveforms = {}
        for stem, entry in excerpt.entries.items():
            waveform = self.pack.read(entry, excerpt.start, self._samples_read)[:2]
            if len(waveform) == 1:
                waveform = np.repeat(waveform, 2, axis=0)
            waveforms[stem] = waveform[::-1].copy() if excerpt.swap else waveform
        return waveforms


def _pick(songs: Sequence[Song], rng: np.random.Generator) -> Song:
    return songs[int(rng.integers(len(songs)))]


def _as_stems(song: Song) -> dict[str, Entry]:
    """The entries of a song under the names of `STEMS`: an accompaniment that is not parted goes by "other"."""
    entries = {stem: song[stem] for stem in STEMS if stem in song}
    return entries if "accompaniment" not in song else entries | {"other": song["accompaniment"]}


@dataclass(frozen=True)
class Epoch:
    """The examples of one epoch, by number, for a `torch.utils.data.DataLoader`.

    Every example has a generator of its own, seeded from (seed, epoch, index): it is the same in any order and in any
    number of workers. Collate with a function of your own, an item is an `Example`.

    Attributes:
        remixer: draws them; an epoch has `samples_per_track` examples for each of its songs.
        seed, epoch: of the generators.
    """

    remixer: Remixer
    seed: int = 0
    epoch: int = 0

    def __len__(self) -> int:
        return self.remixer.songs * self.remixer.samples_per_track

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of an epoch of {len(self)}")
        return self.remixer.example(np.random.default_rng([self.seed, self.epoch, index]), index)
