"""Songs with known stems, decoded once into one memory-mapped store.

`find_tracks` knows all layouts that scoring knows (`umx_ext.corpora`), and folders of loose vocals or accompaniments;
`pack` decodes to the model's rate; `Pack` maps the result. What lies in a ``test`` folder is never looked at.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from torch import Tensor

from umx_ext import audio
from umx_ext.codecs.formats import shown
from umx_ext.corpora import MUSDB_VALID, Song, find_songs
from umx_ext.errors import AudioError, OutputError, UsageError

__all__ = ["MUSDB_VALID", "Entry", "Pack", "Packed", "Track", "data_hash", "find_loose", "find_tracks", "pack"]

FOUR, TWO = ("vocals", "drums", "bass", "other"), ("vocals", "accompaniment")

# MIR-1K clips are named <singer>_<song>_<part>. These singers of its training part are held out for validation.
MIR1K_VALID = frozenset({"abjones", "stool"})

TEST = "test"  # the folder that is never looked into

HELD_OUT = 10  # where no song is marked as validation, every tenth is
CUT_S = 0.1  # stems whose lengths differ by no more are cut to the shortest

# What a song is to a remix: four stems; a pair; or a loose stem for other songs.
SONGS, PAIRS, VOCALS, ACCOMPANIMENTS = "musdb18", "mir1k", "vocals", "accompaniments"


@dataclass(frozen=True)
class Track:
    """One song, clip or loose stem: where its sound is.

    Attributes:
        name: of the song.
        split: ``"train"`` or ``"valid"``.
        source: ``"musdb18"`` (four stems), ``"mir1k"`` (vocals and accompaniment), ``"vocals"`` or
            ``"accompaniments"`` (loose): named after the corpora that are of the first two kinds.
        stems: stem name -> (file, audio stream in it).
        twice: files that hold one and the same stem; such a song cannot be used.
    """

    name: str
    split: str
    source: str
    stems: dict[str, tuple[Path, int]]
    twice: tuple[Path, ...] = ()


def find_tracks(root: Path) -> list[Track]:
    """The training and validation songs under a folder; its ``test`` subfolder is never looked into.

    Args:
        root: of MUSDB18, MUSDB18-HQ, its 7-second sample, MIR-1K, or any folder of ``<song>/<stem>.wav``, with or
            without subfolders ``train`` and ``valid``.

    Raises:
        UsageError: no such folder.
        AudioError: no songs in it.
    """
    root = Path(root)
    if root.resolve().name.lower() == TEST:
        raise UsageError(f"{shown(root)} is a folder of test songs, which are never trained on; give the one above it")
    if root.is_dir() and not (root / "train").is_dir():
        if (root / "test").is_dir():
            raise AudioError(f"{shown(root)} has a folder test, which is never trained on, and none named train")
        return [_track(song, "train") for song in find_songs(root, "test")]  # a root without subsets
    tracks = [_track(song, "train") for song in find_songs(root, "train")]
    with contextlib.suppress(UsageError):  # none of them is marked as such
        tracks += [_track(song, "valid") for song in find_songs(root, "valid")]
    return tracks


def _track(song: Song, split: str) -> Track:
    if song.name in MUSDB_VALID:  # wherever it lies
        split = "valid"
    stems = {stem: place for stem, place in song.files.items() if stem != "mixture"}
    if set(FOUR) <= stems.keys() or not set(TWO) <= stems.keys():
        return Track(song.name, split, SONGS, {stem: stems[stem] for stem in FOUR if stem in stems}, song.twice)
    held_out = song.name.split("_")[0].lower() in MIR1K_VALID
    pair = {stem: stems[stem] for stem in TWO}
    return Track(song.name, "valid" if held_out else split, PAIRS, pair, song.twice)


def find_loose(folder: Path, stem: str) -> list[Track]:
    """Every sound file in a folder and below, each a stem of its own for other songs.

    Hidden files, and what lies in a folder test or valid, are left alone.

    Args:
        folder: where to look.
        stem: ``"vocals"`` or ``"accompaniment"``.

    Raises:
        UsageError: no such folder.
        AudioError: no sound files in it.
    """
    if not folder.is_dir():
        raise UsageError(f"{shown(folder)} is no folder; give the one that holds the {stem} files")
    source = VOCALS if stem == "vocals" else ACCOMPANIMENTS
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in audio.INPUT_SUFFIXES]
    paths = [path for path in paths if not _is_set_apart(path.relative_to(folder).parts)]
    if not paths:
        raise AudioError(f"there are no sound files in {shown(folder)}")
    return [Track(str(path.relative_to(folder)), "train", source, {stem: (path, 0)}) for path in paths]


def _is_set_apart(parts: tuple[str, ...]) -> bool:
    return any(part.startswith(".") or part.lower() in (TEST, "valid") for part in parts)


def data_hash(tracks: Sequence[Track]) -> str:
    """SHA-256 over the names, splits and contents of all stem files: the identity of a training set."""
    total = hashlib.sha256()
    for track in sorted(tracks, key=lambda track: (track.source, track.name)):
        for path in sorted({path for path, _ in track.stems.values()}):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{track.source}/{track.split}/{track.name}/{path.name} {content}\n".encode())
    return total.hexdigest()


@dataclass(frozen=True)
class Entry:
    """Where one decoded stem lies in the store: `samples` frames of `channels` int16 values from `offset` on."""

    track: str
    split: str
    source: str
    stem: str
    speed: float
    channels: int
    samples: int
    offset: int


@dataclass(frozen=True)
class Packed:
    """What `pack` did.

    Attributes:
        tracks: number of songs, clips and loose stems in the store.
        skipped: name -> why it is not in the store.
        notes: for a person.
    """

    tracks: int
    skipped: dict[str, str]
    notes: list[str]


def pack(
    roots: Sequence[Path],
    target: Path,
    *,
    vocals: Sequence[Path] = (),
    accompaniments: Sequence[Path] = (),
    sample_rate: int = 44100,
    speeds: Sequence[float] = (1.0,),
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Decode every stem once into `target` (a folder: ``audio.i16`` and ``index.json``).

    A song that cannot be read, has nan samples or stems of different lengths is left out, and named in the result.

    Args:
        roots: folders that `find_tracks` understands.
        target: folder to make; complete when ``index.json`` is there.
        vocals, accompaniments: folders of loose stems (`find_loose`).
        sample_rate: rate of the store, Hz.
        speeds: each training song of four stems is stored at each of these speeds (pitch and tempo together, as a tape
            would); everything else only as it is.
        progress: called with (tracks done, tracks in all).

    Raises:
        UsageError, AudioError: as `find_tracks`; or not one song could be read.
        OutputError: the store cannot be written, because the disk is full for example.
    """
    tracks = [track for root in roots for track in find_tracks(root)]
    tracks += [track for folder in vocals for track in find_loose(folder, "vocals")]
    tracks += [track for folder in accompaniments for track in find_loose(folder, "accompaniment")]
    valid = {track.name for track in tracks if (track.split, track.source) == ("valid", SONGS)}
    tracks = [replace(t, split="valid") if t.source == SONGS and t.name in valid else t for t in tracks]
    tracks, notes = _with_validation(tracks)
    skipped: dict[str, str] = {}
    entries: list[Entry] = []
    taken = []
    temporary = target / f".audio.{os.getpid()}.tmp"
    try:
        target.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for number, track in enumerate(tracks, start=1):
                try:
                    stems = _read(track)
                except (AudioError, OSError) as error:
                    skipped[track.name] = str(error)
                else:
                    taken.append(track)
                    varied = track.split == "train" and track.source == SONGS
                    _store(track, stems, speeds if varied else (1.0,), sample_rate, file, entries)
                if progress is not None:
                    progress(number, len(tracks))
        if not taken:
            raise AudioError(f"not one of {len(tracks)} songs could be read; the first: {next(iter(skipped.values()))}")
        if not any(track.split == "valid" for track in taken):
            held = next(why for name, why in skipped.items() for t in tracks if (t.name, t.split) == (name, "valid"))
            raise AudioError(f"not one of the songs that are held out for validation could be read; the first: {held}")
        os.replace(temporary, target / "audio.i16")
        index = {
            "sample_rate": sample_rate,
            "data_sha256": data_hash(taken),
            "skipped": skipped,
            "entries": [asdict(entry) for entry in entries],
        }
        temporary = target / f".index.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(index))
        os.replace(temporary, target / "index.json")
    except OSError as error:
        raise OutputError(
            f"{shown(target)} cannot be written ({error.strerror}); make room or give another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return Packed(len(taken), skipped, notes)


def _with_validation(tracks: list[Track]) -> tuple[list[Track], list[str]]:
    """The tracks with some held out, where none is marked as validation."""
    for source in (SONGS, PAIRS):
        names = sorted({track.name for track in tracks if track.source == source})
        if not names:
            continue
        if any(track.split == "valid" for track in tracks if track.source == source):
            return tracks, []
        if len(names) == 1:
            raise AudioError(f"there is but one song, {names[0]}: none is left to validate with")
        chosen = set(names[::HELD_OUT])
        held = [replace(track, split="valid") if track.name in chosen else track for track in tracks]
        return held, [f"no song is marked as validation: {', '.join(sorted(chosen))} held out"]
    raise AudioError("expected songs with their stems, got loose stems only: there is nothing to validate with")


def _read(track: Track) -> dict[str, tuple[Tensor, int]]:
    """Every stem and its rate, of one length in seconds; AudioError where that is not so."""
    if track.twice:
        names = " and ".join(path.name for path in track.twice)
        raise AudioError(f"{track.name} has one stem twice ({names}); keep one of them")
    missing = [stem for stem in FOUR if stem not in track.stems] if track.source == SONGS else []
    if missing:
        raise AudioError(f"{track.name} has no {' and no '.join(missing)}")
    stems = {stem: audio.read(path, stream=stream) for stem, (path, stream) in track.stems.items()}
    for stem, (waveform, _) in stems.items():
        if not waveform.isfinite().all():
            raise AudioError(f"{track.name}: {stem} has nan or inf samples")
    lengths = {stem: waveform.shape[1] / rate for stem, (waveform, rate) in stems.items()}
    if max(lengths.values()) - min(lengths.values()) > CUT_S:
        found = ", ".join(f"{stem} {seconds:.2f} s" for stem, seconds in lengths.items())
        raise AudioError(f"{track.name} has stems of different lengths: {found}")
    if min(lengths.values()) == 0:
        raise AudioError(f"{track.name} has no samples")
    shortest = min(lengths.values())
    return {stem: (waveform[:, : round(shortest * rate)], rate) for stem, (waveform, rate) in stems.items()}


def _store(
    track: Track,
    stems: dict[str, tuple[Tensor, int]],
    speeds: Sequence[float],
    sample_rate: int,
    file: IO[bytes],
    entries: list[Entry],
) -> None:
    for stem, (waveform, rate) in stems.items():
        for speed in speeds:
            # Played `speed` times as fast: as if it had been recorded at `rate * speed`.
            at_rate = audio.resample(waveform[:2], round(rate * speed), sample_rate)
            values = (at_rate.mT.numpy() * 32767.0).round().clip(-32768, 32767).astype("<i2")
            offset = entries[-1].offset + entries[-1].samples * entries[-1].channels if entries else 0
            file.write(values.tobytes())
            entries.append(
                Entry(track.name, track.split, track.source, stem, speed, values.shape[1], len(values), offset)
            )


class Pack:
    """A store written by `pack`, mapped into memory.

    Raises:
        UsageError: the folder holds none.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        folder = Path(folder)
        try:
            index = json.loads((folder / "index.json").read_bytes())
        except ValueError as error:
            raise _damaged(folder, str(error)) from error
        except OSError as error:
            raise UsageError(
                f"{shown(folder)} is no store of packed songs; make one: umx-ext data pack ROOT OUT"
            ) from error
        self._folder = folder
        try:
            self.sample_rate: int = index["sample_rate"]
            self.data_sha256: str = index["data_sha256"]
            self.entries = [Entry(**fields) for fields in index["entries"]]
            self._values = np.memmap(folder / "audio.i16", dtype="<i2", mode="r")
        except (OSError, LookupError, TypeError, ValueError) as error:
            raise _damaged(folder, str(error)) from error
        held = max((entry.offset + entry.samples * entry.channels for entry in self.entries), default=0)
        if held > len(self._values):
            raise _damaged(folder, "audio.i16 is too short")

    @property
    def identity(self) -> str:
        """SHA-256 over what it holds and where: the same for stores from which the same examples are drawn."""
        entries = [asdict(entry) for entry in self.entries]
        return hashlib.sha256(json.dumps([self.data_sha256, self.sample_rate, entries]).encode()).hexdigest()

    def __reduce__(self) -> tuple[type[Pack], tuple[Path]]:
        return Pack, (self._folder,)  # a process that is sent this maps the store itself

    def read(self, entry: Entry, start: int = 0, samples: int | None = None) -> npt.NDArray[np.float32]:
        """Samples of one stem as float32 `(channels, samples)`; past its end there are zeros."""
        wanted = entry.samples - start if samples is None else samples
        stop = min(start + wanted, entry.samples)
        first = entry.offset + start * entry.channels
        values = self._values[first : first + max(0, stop - start) * entry.channels].reshape(-1, entry.channels)
        result = np.zeros((entry.channels, wanted), np.float32)
        result[:, : len(values)] = values.T
        result /= 32767.0
        return result

    def songs(self, split: str, source: str) -> dict[tuple[str, float], dict[str, Entry]]:
        """(track, speed) -> stem -> entry, for one split and source, in a fixed order."""
        songs: dict[tuple[str, float], dict[str, Entry]] = {}
        for entry in self.entries:
            if (entry.split, entry.source) == (split, source):
                songs.setdefault((entry.track, entry.speed), {})[entry.stem] = entry
        return songs

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)


def _damaged(folder: Path, why: str) -> UsageError:
    return UsageError(f"{shown(folder)} is a damaged store ({why}); delete it and pack the songs again")
