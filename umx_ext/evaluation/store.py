"""Scores as files, in the layout of museval's stores: `evaldir/<system>/<subset>/<track>.json`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from umx_ext.codecs.files import discard, make_folder
from umx_ext.codecs.formats import shown
from umx_ext.errors import OutputError, UsageError
from umx_ext.evaluation.oracles import BASELINES
from umx_ext.evaluation.scores import TrackScores

__all__ = ["SUBSETS", "compare", "directory", "merge_files", "read_file", "read_scores", "score_path", "write_scores"]

SUBSETS = ("test", "train", "valid")


def write_scores(scores: TrackScores, evaldir: str | os.PathLike[str], subset: str) -> Path:
    """Write `evaldir/<subset>/<track>.json`, whole or not at all; what is there is replaced. Returns the path.

    Raises:
        OutputError: it cannot be written.
    """
    path = score_path(evaldir, subset, scores.track)
    write_text(path, scores.to_json())
    return path


def score_path(evaldir: str | os.PathLike[str], subset: str, track: str) -> Path:
    """Where the scores of a song are."""
    return Path(evaldir, subset, f"{track}.json")


def write_text(path: Path, text: str) -> None:
    """A file that is there whole or not at all: it gets its name when it is complete."""
    leftovers = [str(path.parent / f".{secrets.token_hex(8)}.part")]
    folders: list[str] = []
    try:
        make_folder(os.path.abspath(path.parent), folders)
        Path(leftovers[0]).write_text(text, encoding="utf-8")
        os.replace(leftovers[0], path)
        folders.clear()
    except OSError as error:
        raise OutputError(
            f"{shown(path)} cannot be written ({(error.strerror or str(error)).lower()}); free space there or choose "
            "another folder"
        ) from error
    finally:
        discard(leftovers, folders)


def read_file(path: Path, track: str, subset: str = "") -> TrackScores:
    """The scores in one file.

    Raises:
        UsageError: it cannot be read, or is not museval's JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{shown(path)} cannot be read ({error}); remove it, or score the song again") from error
    try:
        return TrackScores.from_json(text, track, subset)
    except UsageError as error:
        raise UsageError(
            f"{shown(path)} holds no scores in museval's format ({error.__cause__}); remove it, or score the song again"
        ) from error


def read_scores(evaldir: str | os.PathLike[str]) -> list[TrackScores]:
    """All scores of one system: `evaldir/<subset>/<track>.json`, or `evaldir/<track>.json`, ours or museval's.

    Raises:
        UsageError: there are none, or a file is not what it should be.
    """
    folder = Path(evaldir)
    found: list[TrackScores] = []
    for subset in [subset for subset in SUBSETS if (folder / subset).is_dir()] or [""]:
        root = folder / subset
        for path in sorted(root.rglob("*.json") if subset else root.glob("*.json")):
            if not path.name.startswith("."):
                found.append(read_file(path, path.relative_to(root).as_posix().removesuffix(".json"), subset))
    if not found:
        if not folder.is_dir():
            raise UsageError(f"{shown(folder)}: no such folder of scores; check the name")
        raise UsageError(f"{shown(folder)} holds no scores; expected {shown(folder / 'test' / '<track>.json')}")
    return found


def directory(system: str) -> str:
    """The name of a system's folder."""
    return system.replace("/", "-")


def _system(folder: str) -> str:
    return {directory(name): name for name in BASELINES}.get(folder, folder)


def compare(evaldirs: Sequence[str | os.PathLike[str]]) -> dict[str, list[TrackScores]]:
    """Scores that were stored: of a system's folder (`<subset>/<track>.json` in it), or of a folder of such folders.

    Raises:
        UsageError: a folder is neither.
    """
    systems: dict[str, list[TrackScores]] = {}
    for evaldir in evaldirs:
        for folder in _system_folders(Path(evaldir)):
            name = _system(folder.resolve().name)
            if name in systems:
                name = f"{folder.resolve().parent.name}/{name}"
            systems[name] = read_scores(folder)
    return systems


def _system_folders(evaldir: Path) -> list[Path]:
    if not evaldir.is_dir():
        raise UsageError(f"{shown(evaldir)}: no such folder of scores; check the name")
    if any(evaldir.glob("*.json")) or any((evaldir / subset).is_dir() for subset in SUBSETS):
        return [evaldir]
    inside = sorted(path for path in evaldir.iterdir() if path.is_dir() and not path.name.startswith("."))
    folders = [path for path in inside if any((path / subset).is_dir() for subset in SUBSETS)]
    if not folders:
        raise UsageError(
            f"{shown(evaldir)} holds no scores; expected <system>/test/<track>.json or test/<track>.json in it"
        )
    return folders


def merge_files(evaldirs: Sequence[str | os.PathLike[str]], target: str | os.PathLike[str]) -> None:
    """Bring the scores of several runs, such as shards, together in one folder; what is there already stays.

    Raises:
        UsageError: a folder has no scores, or two disagree about a song.
        OutputError: the folder cannot be written.
    """
    files: dict[Path, tuple[Path, str]] = {}
    there = Path(target).is_dir() and any(Path(target).iterdir())
    for evaldir in [*evaldirs, *([target] if there else [])]:
        for folder in _system_folders(Path(evaldir)):
            read_scores(folder)  # sees that they are scores
            for path in sorted(folder.rglob("*.json")):
                name = Path(folder.resolve().name) / path.relative_to(folder)
                text = path.read_text(encoding="utf-8")
                first, other = files.setdefault(name, (path, text))
                if other != text:
                    raise UsageError(
                        f"{shown(first)} and {shown(path)} disagree about the same song; remove one of them"
                    )
    for name, (path, text) in files.items():
        goal = Path(target) / name
        if path.resolve() != goal.resolve():
            write_text(goal, text)
