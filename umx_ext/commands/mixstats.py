"""`umx-ext mixstats`: what the mixes of a corpus have in common, the figures that `umx-ext mix` aims at."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from umx_ext.commands.terminal import Terminal, one_line
from umx_ext.errors import AudioError, UmxError, UsageError

if TYPE_CHECKING:
    from umx_ext.corpora import Song
    from umx_ext.mixing.statistics import MixLevels
    from umx_ext.separation.separator import Separator
    from umx_ext.stems import Stems

__all__ = ["app", "mixstats"]

EXAMPLE = """\
umx-ext mixstats musdb18                 true stems: MUSDB18's, or <song>/vocals.wav and accompaniment.wav
umx-ext mixstats my_records              whole songs, each separated first
umx-ext mixstats my_records --clip 30    in clips of 30 s, as the published figures were measured
"""

app = App(
    name="mixstats",
    help_prologue=EXAMPLE,
    usage="Usage: umx-ext mixstats FOLDER [OPTIONS]",
    help_format="plaintext",
    version_flags=(),
)
app["--help"].show = False


@app.default
def mixstats(
    folder: Annotated[
        str,
        Parameter(
            name="FOLDER",
            help="Songs with stems (MUSDB18, MUSDB18-HQ, or <song>/<stem>.wav), or a folder of songs to separate.",
        ),
    ],
    /,
    *,
    subset: Annotated[
        Literal["train", "valid", "test", "all"],
        Parameter(
            help="Where FOLDER has such subfolders. train is everything but test; valid is musdb's part of it. What a "
            "mix is judged on should not be what its settings come from, so test has to be asked for."
        ),
    ] = "train",
    clip: Annotated[
        float | None,
        Parameter(
            name="--clip",
            negative="",
            show_default=False,
            help="Measure clips of so many seconds in which the voice sounds at least 30 % of the time, instead of "
            "whole songs.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        Parameter(
            name=["-n", "--model"],
            negative="",
            show_default=False,
            help="What separates songs without stems: a name from `umx-ext models list` or a path [default: the model "
            "that is built in].",
        ),
    ] = None,
    table: Annotated[
        Literal["md", "csv", "json"] | None,
        Parameter(help="Markdown, CSV (figures alone) or JSON with every song, instead of columns for a terminal."),
    ] = None,
    quiet: Annotated[bool, Parameter(name=["-q", "--quiet"], negative="", help="No progress.")] = False,
) -> int:
    """Measure how loud vocals are over their accompaniment, their loudness range, and more, over all songs of a folder.

    A song whose vocals or accompaniment are silent is left out, and named.
    """
    from umx_ext.mixing.statistics import summarise

    run = _Run(_Terminal(quiet=quiet), clip, model)
    with run.terminal as terminal:
        songs = run.songs(Path(folder), subset)
        measured = list(run.measured(songs))
        if not measured:
            raise run.failure or AudioError(
                f"no song in {folder} could be measured" + (f" in clips of {clip:g} s" if clip is not None else "")
            )
        corpus = summarise(measured, run.notes)
        for line in corpus.table(table or "text").rstrip("\n").split("\n"):
            terminal.show(line)
        if table == "csv":
            # Standard output holds the figures alone, so that a program can read them.
            for note in corpus.notes:
                terminal.note(note)
    return UmxError.exit_code if run.failure else 0


class _Terminal(Terminal):
    """With the table, which is the result also of a quiet run, and notes for people on standard error."""

    def __enter__(self) -> _Terminal:
        return self

    def show(self, line: str) -> None:
        self._write(sys.stdout, one_line(line))

    def note(self, line: str) -> None:
        if not self.quiet:
            self._write(sys.stderr, one_line(line))


class _Run:
    """One call of the command."""

    def __init__(self, terminal: _Terminal, clip_s: float | None, model: str | None) -> None:
        self.terminal = terminal
        self.clip_s = clip_s
        self.model = model
        self.notes: list[str] = []
        self.failure: UmxError | None = None
        self._separator: Separator | None = None

    def songs(self, folder: Path, subset: str) -> Sequence[Song | Path]:
        """Songs with stems, else files to separate."""
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise UsageError(f"{folder} {what}; give a folder of songs")
        from umx_ext import audio
        from umx_ext.corpora import SUBSETS, find_songs

        there = [name for name in SUBSETS if (folder / name).is_dir()]
        wanted = {"all": SUBSETS, "train": ("train", "valid")}.get(subset, (subset,)) if there else ("test",)
        found: list[Song] = []
        refused: UmxError | None = None
        for name in wanted:
            try:
                found += find_songs(folder, name)
            except UmxError as error:
                refused = refused or error
        if found:
            if self.model is not None:
                raise UsageError(f"the songs of {folder} have their stems: leave out --model {self.model}")
            return found
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in audio.INPUT_SUFFIXES)
        files = [path for path in files if path.is_file() and not path.name.startswith(".")]
        if there or not files:
            assert refused is not None  # there was at least one subset to look in
            raise refused
        self.notes.append("The songs were separated first: what leaks between the stems counts as theirs.")
        return files

    def measured(self, songs: Sequence[Song | Path]) -> Iterator[MixLevels]:
        from umx_ext.mixing.statistics import SilentStemError, clips, measure

        bar = self.terminal.bar("songs", len(songs))
        for done, song in enumerate(songs, start=1):
            try:
                stems = self._separated(song) if isinstance(song, Path) else song.read()
                parts = [(0.0, stems)] if self.clip_s is None else clips(stems, self.clip_s)
                if not parts:
                    self._leave_out(f"{song.name} has no clip of {self.clip_s:g} s with voice in it")
                for start_s, part in parts:
                    yield measure(part, song.name, start_s)
            except SilentStemError as error:
                self._leave_out(str(error))
            except AudioError as error:
                self.failure = self.failure or error
                self.terminal.error(str(error))
            self.terminal.advance(bar, done, len(songs))

    def _separated(self, path: Path) -> Stems:
        import umx_ext

        if self._separator is None:
            self._separator = umx_ext.load(self.model)
        return umx_ext.separate(path, model=self._separator)

    def _leave_out(self, why: str) -> None:
        self.notes.append(f"Left out: {why.rstrip('.')}.")
