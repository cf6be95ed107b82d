"""Estimates that some tool has written as files: which belong to which song, and whether they can be scored.

Two layouts are read: `DIR/<track>/<stem>.wav` and, as museval and SiSEC have it, `DIR/<subset>/<track>/<stem>.wav`;
any format that `umx_ext.audio` reads will do.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from umx_ext import audio
from umx_ext.codecs.formats import shown
from umx_ext.corpora import Song
from umx_ext.errors import AudioError, UmxError

__all__ = ["EstimateFiles", "find_estimates", "read_estimates"]

STEMS = ("vocals", "drums", "bass", "other", "accompaniment")
SUBSETS = ("test", "train", "valid")


@dataclass
class EstimateFiles:
    """What a folder of estimates has.

    Attributes:
        files: track -> stem -> file, of the songs whose estimates are complete.
        problems: track -> what is wrong with it; also of folders that belong to no song.
    """

    files: dict[str, dict[str, Path]] = field(default_factory=dict)
    problems: dict[str, UmxError] = field(default_factory=dict)


def find_estimates(folder: Path, songs: Sequence[Song], known: Mapping[str, Collection[str]]) -> EstimateFiles:
    """Look for the estimates of songs.

    Args:
        folder: of the estimates.
        songs: those to be scored.
        known: subset -> names of all its songs, so that estimates of songs that are not to be scored are no strangers.

    Raises:
        AudioError: the folder is none, or has estimates of none of the songs.
    """
    if not folder.is_dir():
        raise AudioError(f"{shown(folder)}: no such folder of estimates; check the name")
    found = EstimateFiles()
    for song in songs:
        places = _places(folder, song)
        place = next((place for place in places if place.is_dir()), None)
        if place is None:
            found.problems[song.name] = AudioError(
                f"{shown(folder)} has no estimates of {shown(song.name)}; expected the folder {shown(places[0])}"
            )
            continue
        try:
            found.files[song.name] = _stem_files(place)
        except AudioError as error:
            found.problems[song.name] = error
    if songs and not found.files and all(not any(p.is_dir() for p in _places(folder, song)) for song in songs):
        raise AudioError(
            f"{shown(folder)} has estimates of none of the {len(songs)} songs; expected "
            f"{shown(folder / songs[0].name / '<stem>.wav')}, or the same below {songs[0].subset or 'test'}"
        )
    _require_all_stems(found)
    _find_strangers(folder, known, found)
    return found


def _places(folder: Path, song: Song) -> list[Path]:
    """Where the estimates of a song may be. musdb keeps validation songs in ``train``; a separator that was given
    ``<track>.stem.mp4`` may have named its folder after all but the last suffix."""
    subsets = {"": ("test",), "valid": ("valid", "train")}.get(song.subset, (song.subset,))
    names = (song.name, f"{song.name}.stem")
    return [Path(parent, name) for parent in (*(folder / subset for subset in subsets), folder) for name in names]


def _stem_files(place: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(place.iterdir()):
        stem = path.stem.lower()
        if stem not in STEMS or path.suffix.lower() not in audio.INPUT_SUFFIXES or not path.is_file():
            continue
        if stem in files:
            raise AudioError(
                f"{shown(place)} has two estimates of {stem}, {files[stem].name} and {path.name}; leave one of them"
            )
        files[stem] = path
    if not files:
        raise AudioError(f"{shown(place)} has no estimates; expected files such as vocals.wav, of {', '.join(STEMS)}")
    return {stem: files[stem] for stem in STEMS if stem in files}


def _require_all_stems(found: EstimateFiles) -> None:
    """A stem that some songs have is missing where it is not: medians over different songs compare nothing."""
    union = [stem for stem in STEMS if any(stem in files for files in found.files.values())]
    for track, files in list(found.files.items()):
        missing = [stem for stem in union if stem not in files]
        if missing:
            place = next(iter(files.values())).parent
            found.problems[track] = AudioError(
                f"{shown(place)} has no {' and no '.join(missing)}, which other songs have; add it, or remove it "
                "everywhere"
            )
            del found.files[track]


def _find_strangers(folder: Path, known: Mapping[str, Collection[str]], found: EstimateFiles) -> None:
    everyone = {name for names in known.values() for name in names}
    below = [(folder, everyone)]
    for subset in SUBSETS:
        if (folder / subset).is_dir() and subset not in everyone:
            # musdb has the validation songs in train.
            other = {"train": "valid", "valid": "train"}.get(subset, subset)
            below.append((folder / subset, {*known.get(subset, ()), *known.get(other, ())} or everyone))
    for parent, names in below:
        for entry in sorted(os.scandir(parent), key=lambda entry: entry.name):
            name = entry.name.removesuffix(".stem")
            if not entry.is_dir() or entry.name.startswith(".") or name in names:
                continue
            if any(Path(file).stem.lower() in STEMS for file in os.listdir(entry.path)):
                close = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {shown(close[0])}?" if close else "rename or remove it"
                found.problems[entry.name] = AudioError(f"{shown(entry.path)} are estimates of no known song; {hint}")


def read_estimates(files: Mapping[str, Path], references: Mapping[str, Tensor], sample_rate: int) -> dict[str, Tensor]:
    """Read the estimates of one song: stem -> `(channels, samples)`, those that have a reference.

    Raises:
        AudioError: a file cannot be read, or has another rate or other channels than the reference.
    """
    estimates = {}
    for stem, path in files.items():
        if stem not in references:
            continue
        waveform, rate = audio.read(path)
        if rate != sample_rate:
            raise AudioError(
                f"{shown(path)} has {rate} Hz, its reference {sample_rate} Hz; write the estimates at the song's rate"
            )
        channels, wanted = waveform.shape[0], references[stem].shape[0]
        if channels != wanted:
            raise AudioError(
                f"{shown(path)} has {channels} channel{'s' if channels > 1 else ' (mono)'}, its reference {wanted}; "
                "write the estimates with the song's channels"
            )
        estimates[stem] = waveform
    if not estimates:
        raise AudioError(
            f"{shown(next(iter(files.values())).parent)}: no estimate has a reference; the song has "
            f"{', '.join(references)}"
        )
    return estimates
