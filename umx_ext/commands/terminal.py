"""What the command says and where: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from umx_ext.commands import interrupts

__all__ = ["Terminal", "one_line"]

_RED, _DIM, _PLAIN = "\x1b[1;31m", "\x1b[2m", "\x1b[0m"


def one_line(text: str) -> str:
    """The text with everything that could break a line or move the cursor written as an escape (`\\n`, `\\x1b`).

    File names may hold any character; a message about one of them is still one line.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class Terminal:
    """The two streams and the progress bars, safe to use from several threads.

    Args:
        quiet: no lines for people on standard output, no progress; errors still come.
        verbose: `detail` lines appear on standard error.
        progress: show bars, if standard error is a terminal.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False, progress: bool = True) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self._lock = threading.RLock()
        self._wants_bars = progress and not quiet and not verbose and sys.stderr.isatty()
        self._bars: Any = None

    def result(self, line: str) -> None:
        """A line for a person: what was done."""
        if not self.quiet:
            self._write(sys.stdout, one_line(line))

    def record(self, fields: Mapping[str, Any]) -> None:
        """One line of JSON: what was done, for a program. NaN and infinities, which JSON lacks, must not be in it."""
        self._write(sys.stdout, json.dumps(fields, ensure_ascii=False, allow_nan=False))

    def error(self, message: str) -> None:
        """One line on standard error, whatever the message holds."""
        prefix = _paint("umx-ext:", _RED, sys.stderr)
        self._write(sys.stderr, f"{prefix} {one_line(message)}")

    def detail(self, message: str) -> None:
        """A line for the curious (`-v`)."""
        if self.verbose:
            self._write(sys.stderr, _paint(one_line(message), _DIM, sys.stderr))

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Rows of cells on standard error, the first column to the left, numbers to the right."""
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            self._write(sys.stderr, one_line("  ".join([row[0].ljust(len(first)), *others])))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._bars is not None:
                self._bars.stop()
                self._bars = None

    def bar(self, name: str, total: int | None) -> int | None:
        """Begin a bar; None where none is shown."""
        if not self._wants_bars:
            return None
        with self._lock:
            if self._bars is None:
                self._bars = _bars()
                self._bars.start()
            return int(self._bars.add_task(one_line(name), total=total))

    def advance(self, bar: int | None, done: int, total: int | None) -> None:
        """Move a bar; `total` may have become known. Raises the interrupt that got lost, if there was one."""
        interrupts.heed()
        if bar is not None and self._bars is not None:
            self._bars.update(bar, completed=done, total=total)

    def end(self, bar: int | None) -> None:
        if bar is not None and self._bars is not None:
            self._bars.remove_task(bar)

    def _write(self, stream: TextIO, line: str) -> None:
        encoding = stream.encoding or "utf-8"
        text = line.encode(encoding, "backslashreplace").decode(encoding)
        with self._lock:
            # The bars own the bottom of the screen: they step aside, whichever stream the line goes to.
            if self._bars is not None:
                self._bars.stop()
            stream.write(text + "\n")
            stream.flush()
            if self._bars is not None:
                self._bars.start()


def _paint(text: str, colour: str, stream: TextIO) -> str:
    coloured = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"{colour}{text}{_PLAIN}" if coloured else text


def _bars() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
