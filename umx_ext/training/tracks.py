"""Songs with known stems, decoded once into one memory-mapped file.

Sources are folders in the layout of MUSDB18 (``*.stem.mp4``) and of MIR-1K (``<clip>/vocals.*`` and
``<clip>/accompaniment.*``). `pack` decodes them to the model's rate; `Pack` maps the result.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from umx_ext import audio
from umx_ext.corpora import MUSDB_STREAMS, MUSDB_VALID
from umx_ext.errors import AudioError

__all__ = ["MUSDB_VALID", "Entry", "Pack", "Track", "data_hash", "find_tracks", "pack"]

STEM_STREAMS = {stem: stream for stem, stream in MUSDB_STREAMS.items() if stem != "mixture"}

# MIR-1K clips are named <singer>_<song>_<part>. These singers of its training part are held out for validation.
MIR1K_VALID = frozenset({"abjones", "stool"})


@dataclass(frozen=True)
class Track:
    """One song or clip: where each stem is.

    Attributes:
        name: of the song.
        split: ``"train"`` or ``"valid"``.
        source: ``"musdb18"`` or ``"mir1k"``.
        stems: stem name -> (file, audio stream in it).
    """

    name: str
    split: str
    source: str
    stems: dict[str, tuple[Path, int]]


def find_tracks(root: Path) -> list[Track]:
    """The training and validation songs under a folder; its ``test`` subfolder is never looked into.

    Args:
        root: a folder with a ``train`` subfolder in the layout of MUSDB18 or of MIR-1K.

    Raises:
        AudioError: there is neither.
    """
    folder = root / "train"
    tracks = []
    for path in sorted(folder.glob("*.stem.mp4")):
        name = path.name.removesuffix(".stem.mp4")
        split = "valid" if name in MUSDB_VALID else "train"
        tracks.append(Track(name, split, "musdb18", {stem: (path, index) for stem, index in STEM_STREAMS.items()}))
    for clip in sorted(path for path in folder.glob("*") if path.is_dir()):
        files = {path.stem: (path, 0) for path in sorted(clip.iterdir())}
        if {"vocals", "accompaniment"} <= files.keys():
            split = "valid" if clip.name.split("_")[0].lower() in MIR1K_VALID else "train"
            tracks.append(Track(clip.name, split, "mir1k", files))
    if not tracks:
        raise AudioError(f"no songs with stems in {folder}; expected *.stem.mp4 files or <clip>/vocals.* folders")
    return tracks


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


def pack(
    roots: Sequence[Path],
    target: Path,
    *,
    sample_rate: int = 44100,
    speeds: Sequence[float] = (1.0,),
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Decode every stem once into `target` (a folder: ``audio.i16`` and ``index.json``).

    Args:
        roots: folders that `find_tracks` understands.
        target: folder to make; complete when ``index.json`` is there.
        sample_rate: rate of the store, Hz.
        speeds: each training song of MUSDB18 is stored at each of these speeds (pitch and tempo together, as a tape
            would); validation songs and MIR-1K only as they are.
        progress: called with (tracks done, tracks in all).
    """
    tracks = [track for root in roots for track in find_tracks(root)]
    target.mkdir(parents=True, exist_ok=True)
    entries: list[Entry] = []
    offset = 0
    temporary = target / f".audio.{os.getpid()}.tmp"
    with temporary.open("wb") as file:
        for number, track in enumerate(tracks):
            varied = track.split == "train" and track.source == "musdb18"
            for stem, (path, stream) in track.stems.items():
                waveform, rate = audio.read(path, stream=stream)
                for speed in speeds if varied else (1.0,):
                    # Played `speed` times as fast: as if it had been recorded at `rate * speed`.
                    at_rate = audio.resample(waveform, round(rate * speed), sample_rate)
                    values = (at_rate.mT.numpy() * 32767.0).round().clip(-32768, 32767).astype("<i2")
                    file.write(values.tobytes())
                    entries.append(
                        Entry(track.name, track.split, track.source, stem, speed, values.shape[1], len(values), offset)
                    )
                    offset += values.size
            if progress is not None:
                progress(number + 1, len(tracks))
    os.replace(temporary, target / "audio.i16")
    index = {
        "sample_rate": sample_rate,
        "data_sha256": data_hash(tracks),
        "entries": [asdict(entry) for entry in entries],
    }
    temporary = target / f".index.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(index))
    os.replace(temporary, target / "index.json")


class Pack:
    """A store written by `pack`, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        self.sample_rate: int = index["sample_rate"]
        self.data_sha256: str = index["data_sha256"]
        self.entries = [Entry(**fields) for fields in index["entries"]]
        self._values = np.memmap(folder / "audio.i16", dtype="<i2", mode="r")

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
