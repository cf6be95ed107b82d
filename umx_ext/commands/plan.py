"""From the words on the command line to the files that will be read and written, decided before any work."""

from __future__ import annotations

import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from umx_ext.errors import AudioError, OutputError, UsageError

__all__ = [
    "DEFAULT_OUT",
    "Job",
    "Naming",
    "Source",
    "check_collisions",
    "find_sources",
    "model_label",
    "standard_input",
    "take_shard",
]

STDIN, STDIN_SHOWN = "-", "standard input"
DEFAULT_OUT = "separated"
PLOT_STEM, PLOT_SUFFIX = "plot", "png"


@dataclass(frozen=True)
class Source:
    """One input.

    Attributes:
        shown: what to call it: the path as it was given, or `-`.
        path: where it is; None for standard input until it has been spooled.
        track: its name among the results, which for a file found in a folder keeps the subfolders.
    """

    shown: str
    path: Path | None
    track: str


@dataclass(frozen=True)
class Job:
    """One song to do: where it is and which files to make of it."""

    source: Source
    path: Path
    outputs: Mapping[str, Path]
    plot: Path | None


@dataclass(frozen=True)
class Naming:
    """How outputs are named. `beside`: a karaoke track is put beside its song instead of below `out`."""

    out: Path
    filename: str
    model: str
    ext: str
    karaoke: bool = False
    beside: bool = False

    def path(self, source: Source, stem: str, ext: str | None = None) -> Path:
        """The file that `stem` of `source` is written to."""
        ext = self.ext if ext is None else ext
        if self.karaoke:
            name = f"{source.track}.karaoke.{ext}"
            if not self.beside:
                return self.out / name
            folder = Path() if source.path is None else source.path.parent
            return folder / os.path.basename(name)
        return self.out / self.filename.format(model=self.model, track=source.track, stem=stem, ext=ext)


def model_label(name_or_path: str) -> str:
    """What a model is called in names of files: a registered name itself, of a path the last part without suffix."""
    path = Path(name_or_path)
    return path.stem if path.suffix in (".safetensors", ".pth") else path.name or "model"


def find_sources(
    words: Sequence[str], *, recursive: bool, leave_out: Sequence[Path] = (), karaoke: bool = False
) -> tuple[list[Source], dict[str, AudioError]]:
    """Files, folders, patterns and `-` to the list of inputs, each file once, in the order given.

    Args:
        words: as on the command line.
        recursive: folders are welcome.
        leave_out: our own results: nothing below these folders is taken from a folder.
        karaoke: our own karaoke tracks, which lie beside the songs, are not taken from a folder either.

    Returns:
        the inputs, and the words that led to no audio with the reason.

    Raises:
        UsageError: a folder without `-r`.
    """
    sources: dict[str, Source] = {}
    missing: dict[str, AudioError] = {}

    def take(shown: str, path: Path, track: str) -> None:
        sources.setdefault(os.path.realpath(path), Source(shown, path, track))

    for word in words:
        if word == STDIN:
            sources.setdefault(STDIN, Source(STDIN, None, "stdin"))
            continue
        path = Path(word)
        if not os.path.lexists(path) and glob.has_magic(word):
            # The shell has not: it is of a kind that leaves patterns to programs, or the pattern was quoted.
            matches = sorted(glob.glob(word, recursive=True))
            if not matches:
                missing[word] = AudioError(f"{word}: no file matches this pattern; check it, and the folder you are in")
            for match in matches:
                if os.path.isfile(match):
                    take(match, Path(match), Path(match).stem)
        elif path.is_dir():
            if not recursive:
                raise UsageError(f"{word} is a folder: add -r to take every audio file below it")
            from umx_ext.audio import INPUT_SUFFIXES as suffixes  # which imports torch

            found = _walk(path, suffixes, leave_out, karaoke)
            if not found:
                missing[word] = AudioError(
                    f"{word}: no audio file in this folder or below; looked for {', '.join(sorted(suffixes))}"
                )
            for file in found:
                take(str(file), file, file.relative_to(path).with_suffix("").as_posix())
        elif not path.exists():
            missing[word] = AudioError(f"{word}: no such file; check the name{_stem_hint(word)}")
        else:
            take(word, path, path.stem)
    return list(sources.values()), missing


def _stem_hint(word: str) -> str:
    if word in ("vocals", "drums", "bass", "other"):
        return " (--two-stems takes no value; --stems does)"
    return ""


def _walk(folder: Path, suffixes: frozenset[str], leave_out: Sequence[Path], karaoke: bool) -> list[Path]:
    found = []
    ours = {os.path.realpath(path) for path in leave_out}
    for root, folders, files in os.walk(folder):
        # In place: os.walk goes where this list says. Hidden folders and files (._song.mp3) are a system's, not songs.
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(root, name)) not in ours
        )
        for name in sorted(files):
            stem, suffix = os.path.splitext(name)
            mine = karaoke and stem.endswith(".karaoke")
            if suffix.lower() in suffixes and not name.startswith(".") and not mine:
                found.append(Path(root, name))
    return found


def take_shard(sources: Sequence[Source], which: int, count: int) -> list[Source]:
    """Every `count`th input from the `which`th, counted from 1: the shards are disjoint and together all inputs."""
    return list(sources[which - 1 :: count])


def check_collisions(sources: Sequence[Source], naming: Naming, stems: Sequence[str], *, plot: bool = False) -> None:
    """See that no two files to be written, and no input, are one file, and that folders can be where they must be.

    Args:
        stems: what will be written of each input, or stand-ins where the model is not loaded yet.

    Raises:
        UsageError: two outputs have one name, or an output is an input.
        OutputError: a file stands where an output needs a folder.
    """
    owners: dict[str, tuple[Source, str]] = {}
    inputs = {os.path.realpath(source.path): source for source in sources if source.path is not None}
    for source in sources:
        paths = [(stem, naming.path(source, stem)) for stem in stems]
        if plot:
            paths.append((PLOT_STEM, naming.path(source, PLOT_STEM, PLOT_SUFFIX)))
        for stem, path in paths:
            key = os.path.normcase(os.path.realpath(path))
            if key in inputs:
                raise UsageError(f"{path} is an input and would be written over: give another --out or --filename")
            if key in owners:
                other, other_stem = owners[key]
                if other is source:
                    raise UsageError(
                        f"{path} would be both {other_stem} and {stem}: put {{stem}} and {{ext}} into --filename"
                    )
                raise UsageError(
                    f"{other.shown} and {source.shown} would both be written to {path}: rename one, or do them in two "
                    "calls with another --out each"
                )
            owners[key] = (source, stem)
            _check_folder(path)


def _check_folder(path: Path) -> None:
    for parent in path.parents:
        if os.path.lexists(parent):
            if not parent.is_dir():
                raise OutputError(f"{path} cannot be written: {parent} is a file, not a folder; give another --out")
            return


@contextmanager
def standard_input(sources: Sequence[Source]) -> Iterator[dict[Source, Path]]:
    """Where to read each source: its path; for `-` a temporary file, since sound is read by going back and forth."""
    paths = {source: source.path for source in sources if source.path is not None}
    streamed = [source for source in sources if source.path is None]
    if not streamed:
        yield paths
        return
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError(
            "- reads a song from standard input, which is the keyboard here: umx-ext separate - < song.ogg"
        )
    with tempfile.NamedTemporaryFile(prefix="umx-ext-") as spool:
        try:
            shutil.copyfileobj(sys.stdin.buffer, spool, 1 << 20)
            spool.flush()
        except OSError as error:
            raise OutputError(
                f"-: no room for standard input in {tempfile.gettempdir()} ({error.strerror}); "
                "name another folder in TMPDIR"
            ) from error
        yield {**paths, streamed[0]: Path(spool.name)}
