"""Songs whose stems are known: MUSDB18, MUSDB18-HQ, the 7-second sample, and folders of one's own.

    MUSDB18, its sample   <root>/test/<song>.stem.mp4                  five AAC streams (`MUSDB_STREAMS`)
    MUSDB18-HQ            <root>/test/<song>/{mixture,vocals,drums,bass,other}.wav
    any other folder      <root>/<song>/<stem>.wav (flac, opus, ...)   or <root>/test/<song>/..., likewise train, valid

A song has the stems vocals, drums, bass and other, or vocals and accompaniment; `mixture` may lie beside them.
`find_songs` looks at names alone; a song that is incomplete or damaged says so when it is read.
"""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from umx_ext import audio
from umx_ext.codecs.decode import AvSource, require_file
from umx_ext.codecs.formats import shown
from umx_ext.errors import AudioError, UsageError
from umx_ext.stems import Stems

__all__ = ["MUSDB_STREAMS", "MUSDB_VALID", "SUBSETS", "Song", "find_songs", "targets"]

SUBSETS = ("train", "valid", "test")

# The audio streams of a .stem.mp4 (Native Instruments' stem format as MUSDB18 uses it).
MUSDB_STREAMS = {"mixture": 0, "drums": 1, "bass": 2, "other": 3, "vocals": 4}

# musdb's own validation split of the training songs (the tracks named in musdb 0.4.3's mus.yaml). All 14 are in
# MUSDB18 and its 7-second sample alike.
MUSDB_VALID = frozenset(
    {
        "Actions - One Minute Smile",
        "Clara Berry And Wooldog - Waltz For My Victims",
        "Johnny Lokke - Promises & Lies",
        "Patrick Talbot - A Reason To Leave",
        "Triviul - Angelsaint",
        "Alexander Ross - Goodbye Bolero",
        "Fergessen - Nos Palpitants",
        "Leaf - Summerghost",
        "Skelpolu - Human Mistakes",
        "Young Griffo - Pennies",
        "ANiMAL - Rockshow",
        "James May - On The Line",
        "Meaxic - Take A Step",
        "Traffic Experiment - Sirens",
    }
)

FOUR, TWO = ("vocals", "drums", "bass", "other"), ("vocals", "accompaniment")
# In this order the reference targets are scored by museval, and published.
TARGETS = (*FOUR, "accompaniment")
NAMES = frozenset({*TARGETS, "mixture"})
SUFFIX = ".stem.mp4"


@dataclass(frozen=True)
class Song:
    """One song and where its stems are.

    Attributes:
        name: of the song; its file's or folder's name.
        subset: ``"train"``, ``"valid"``, ``"test"``, or ``""`` under a root without such subfolders.
        corpus: the layout it was found in: ``"musdb18"``, ``"musdb18-hq"`` or ``"folder"``.
        files: stem -> (file, audio stream in it); with ``"mixture"`` where there is one.
        twice: of a folder that has a stem in two files, those files: it cannot be read.
    """

    name: str
    subset: str
    corpus: str
    files: Mapping[str, tuple[Path, int]]
    twice: tuple[Path, ...] = ()

    @property
    def path(self) -> Path:
        """Its ``.stem.mp4`` or its folder."""
        file = next(file for file, _ in self.files.values())
        return file if self.corpus == "musdb18" else file.parent

    def read(self) -> Stems:
        """The references, float32 `(channels, samples)`, and the mixture: the song's own, else the sum of the stems.

        Both are what musdb reads, on which scores are published: of a `.stem.mp4` all that the AAC packets decode to,
        as 16-bit samples (see `_packed_stem`), so that sums of its stems are exact in float32. Other files are read by
        `umx_ext.audio.read` and left as they are.

        Raises:
            AudioError: a stem is missing, twice there, or unreadable; rates, channels or lengths differ between the
                stems; MUSDB's are not stereo. The message names the path.
        """
        stems = self._stems()
        waveforms, rates = {}, {}
        for stem in ["mixture", *stems] if "mixture" in self.files else stems:
            file, stream = self.files[stem]
            waveforms[stem], rates[stem] = (
                _packed_stem(file, stream) if self.corpus == "musdb18" else audio.read(file, stream=stream)
            )
        for what, values in (
            ("sample rates in Hz", rates),
            ("numbers of channels", {stem: waveform.shape[0] for stem, waveform in waveforms.items()}),
            ("lengths in samples", {stem: waveform.shape[1] for stem, waveform in waveforms.items()}),
        ):
            if len(set(values.values())) > 1:
                found = ", ".join(f"{stem} {value}" for stem, value in values.items())
                raise AudioError(f"{shown(self.path)} has stems of different {what} ({found}); make them equal")
        channels = waveforms["vocals"].shape[0]
        if self.corpus != "folder" and channels != 2:
            raise AudioError(
                f"{shown(self.path)} has {channels} channel(s), and MUSDB's references are stereo; put songs of "
                f"another kind straight into the root, without a train or test folder"
            )
        mixture = waveforms.pop("mixture", None)
        return Stems(waveforms, rates["vocals"], mixture=mixture)

    def _stems(self) -> tuple[str, ...]:
        """Which stems the set has; all of them are there."""
        if self.twice:
            names = " and ".join(path.name for path in self.twice)
            raise AudioError(f"{shown(self.path)} has one stem twice ({names}); keep one of them")
        there = self.files.keys()
        by_two = there >= set(TWO) or not there & {"drums", "bass", "other"}
        stems = TWO if self.corpus == "folder" and by_two and not there >= set(FOUR) else FOUR
        needed = stems if self.corpus == "folder" else ("mixture", *stems)
        missing = ", ".join(stem for stem in needed if stem not in there)
        if missing:
            either = f", or {' and '.join(TWO)}" if self.corpus == "folder" else " and mixture"
            raise AudioError(f"{shown(self.path)} lacks {missing}; expected the stems {', '.join(FOUR)}{either}")
        return stems


def _packed_stem(path: Path, stream: int) -> tuple[Tensor, int]:
    """One stream of a `.stem.mp4` as musdb gives it: (channels, samples), its rate.

    musdb 0.4.3 has stempeg call `ffmpeg -i FILE -map 0:STREAM -f s16le`. Two things follow, which `audio.read` does
    otherwise: the last AAC packet comes whole (ffmpeg cuts what lies before the edit list's start, not what lies after
    its end: 152 samples more in the 7-second sample, not silent), and samples are rounded to 16 bits and clipped.
    FFmpeg 5 and 8 differ by up to 0.005 of such a step before the rounding, so that of 10,000 samples one or two come
    out one step apart.
    """
    require_file(str(path))
    source = AvSource(str(path), stream)
    try:
        if source.streams < len(MUSDB_STREAMS):
            raise AudioError(
                f"{shown(path)} has {source.streams} audio stream(s); a song of MUSDB18 has {len(MUSDB_STREAMS)}: "
                f"{', '.join(MUSDB_STREAMS)}"
            )
        block = source.read(sys.maxsize)  # (samples, channels): to the end
    finally:
        source.close()
    if len(block) < (source.samples or 1):
        raise AudioError(
            f"{shown(path)} is cut short or damaged: of stream {stream}'s {source.samples} samples {len(block)} can be "
            f"read; get it again"
        )
    if not np.isfinite(block).all():
        raise AudioError(f"{shown(path)} holds NaN or infinity in stream {stream}; get it again")
    return audio.quantize(torch.from_numpy(np.ascontiguousarray(block.T)), "16"), source.sample_rate


def targets(stems: Stems) -> dict[str, Tensor]:
    """What estimates are compared with, in museval's order: vocals, drums, bass, other, accompaniment.

    Of a set of four stems the accompaniment is drums + bass + other (musdb's definition, and of MUSDB18's 16-bit
    samples exactly its values); of a set of two there are vocals and accompaniment alone. Shapes are the stems' own.

    Raises:
        AudioError: the set is neither of the two.
    """
    if stems.keys() == set(FOUR):
        rest = stems["drums"] + stems["bass"] + stems["other"]
        return {**{name: stems[name] for name in FOUR}, "accompaniment": rest}
    if stems.keys() == set(TWO):
        return {name: stems[name] for name in TWO}
    raise AudioError(f"expected the stems {', '.join(FOUR)} or {' and '.join(TWO)}, got {', '.join(stems)}")


def find_songs(root: Path, subset: str = "test", pattern: str = "*") -> list[Song]:
    """The songs of one subset, sorted by name.

    Args:
        root: a folder in one of the layouts above.
        subset: ``"train"``, ``"valid"`` or ``"test"``. Where there is no folder ``valid``, the songs of musdb's
            validation split (`MUSDB_VALID`) are taken out of ``train`` for it. A root without any of the three folders
            has one set of songs: the answer to ``"test"``.
        pattern: of song names, as in a shell; ``"*"`` takes all.

    Raises:
        UsageError: `root` is no folder, it has no such subset, or no song's name fits the pattern.
        AudioError: there are no songs in it, or songs of both kinds, or it cannot be listed.
    """
    root = Path(root)
    if subset not in SUBSETS:
        raise UsageError(f"no subset {subset!r}; known: {', '.join(SUBSETS)}")
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise UsageError(f"{shown(root)} {what}; give the folder that holds the songs (of MUSDB18, its root)")
    folder, label = _subset_folder(root, subset)
    songs = _songs_in(folder, label)
    if not songs:
        raise AudioError(_nothing_found(root, folder))
    if not (root / "valid").is_dir() and label in ("train", "valid"):
        songs = [song for song in songs if (song.name in MUSDB_VALID) == (label == "valid")]
        if not songs:
            raise UsageError(
                f"{shown(root)} has no {label} songs: there is no folder {shown(root / 'valid')}, and "
                f"{'none' if label == 'valid' else 'each'} of the songs in {shown(folder)} belongs to MUSDB18's "
                f"validation split"
            )
    chosen = [song for song in songs if fnmatch.fnmatchcase(song.name, pattern)]
    if not chosen:
        some = ", ".join(repr(song.name) for song in songs[:3])
        raise UsageError(
            f"no song in {shown(folder)} is named like {pattern!r}; there are {len(songs)}, among them {some}"
        )
    return chosen


def _subset_folder(root: Path, subset: str) -> tuple[Path, str]:
    """Where the songs of a subset lie, and what the subset is called ("" where the root has none)."""
    there = [name for name in SUBSETS if (root / name).is_dir()]
    if subset in there:
        return root / subset, subset
    if subset == "valid" and "train" in there:
        return root / "train", subset
    if there:
        raise UsageError(f"{shown(root)} has no folder {subset!r}; its subsets: {', '.join(there)}")
    if subset != "test" and _songs_in(root, ""):
        raise UsageError(f"{shown(root)} is not parted into subsets; ask for 'test' to get all of its songs")
    return root, ""


def _listed(folder: Path) -> list[Path]:
    """Sorted, without hidden files (among them the ones that macOS adds beside each file of a foreign disk)."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise AudioError(f"{shown(folder)} cannot be listed ({error.strerror}); check its permissions") from error


def _songs_in(folder: Path, label: str) -> list[Song]:
    paths = _listed(folder)
    packed = [path for path in paths if path.name.lower().endswith(SUFFIX) and path.is_file()]
    loose = [(path, _stem_files(path)) for path in paths if path.is_dir()]
    loose = [(path, files) for path, files in loose if files.keys() - {"mixture"}]
    if packed and loose:
        raise AudioError(
            f"{shown(folder)} holds songs of two kinds, {packed[0].name} and the folder {loose[0][0].name} for "
            f"example; keep the *{SUFFIX} files and the folders apart"
        )
    if packed:
        return [
            Song(
                path.name[: -len(SUFFIX)],
                label,
                "musdb18",
                {stem: (path, stream) for stem, stream in MUSDB_STREAMS.items()},
            )
            for path in packed
        ]
    # One complete song in MUSDB18-HQ's layout, and every song of the folder is held to that.
    corpus = "musdb18-hq" if label and any(_is_hq(files) for _, files in loose) else "folder"
    return [
        Song(
            path.name,
            label,
            corpus,
            {stem: (found[0], 0) for stem, found in files.items()},
            next((tuple(found) for found in files.values() if len(found) > 1), ()),
        )
        for path, files in loose
    ]


def _is_hq(files: Mapping[str, list[Path]]) -> bool:
    suffixes = {path.suffix.lower() for paths in files.values() for path in paths}
    return files.keys() >= MUSDB_STREAMS.keys() and suffixes == {".wav"}


def _stem_files(folder: Path) -> dict[str, list[Path]]:
    """stem -> the sound files of that name; one, as a rule."""
    files: dict[str, list[Path]] = {}
    for path in _listed(folder):
        if path.stem.lower() in NAMES and path.suffix.lower() in audio.INPUT_SUFFIXES and path.is_file():
            files.setdefault(path.stem.lower(), []).append(path)
    return files


def _nothing_found(root: Path, folder: Path) -> str:
    """What was looked for, what is there instead, and a folder of songs one level down if there is one."""
    paths = _listed(folder)
    found = ", ".join(path.name + "/" * path.is_dir() for path in paths[:4]) or "nothing"
    found += f" and {len(paths) - 4} more" if len(paths) > 4 else ""
    where = ", which has no folder train, valid or test either" if folder == root else ""
    message = (
        f"no songs with stems in {shown(folder)}{where}: expected MUSDB18 (<song>{SUFFIX}), MUSDB18-HQ "
        f"(<song>/{{{','.join(MUSDB_STREAMS)}}}.wav) or <song>/{{vocals,accompaniment}}.wav (flac, opus, ...), "
        f"found {found}"
    )
    for path in _listed(root):
        inner = [path / name for name in SUBSETS if (path / name).is_dir()] if path.is_dir() else []
        if any(_songs_in(subset, subset.name) for subset in inner):
            return f"{message}; did you mean {shown(path)}?"
    return message
