"""The files of one mix: written under temporary names, and given their own all together."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from umx_ext import audio
from umx_ext.codecs.files import discard, make_folder, rename
from umx_ext.codecs.formats import shown
from umx_ext.commands.song import Cancelled
from umx_ext.errors import OutputError

__all__ = ["Files"]

BLOCK_SAMPLES = 1 << 20  # written at a time; an interrupt waits for no more than that


class Files:
    """The files being written: all get their names at `commit`, or none; another thread may `discard` them."""

    def __init__(self, cancelled: threading.Event) -> None:
        self._cancelled = cancelled
        self._lock = threading.Lock()
        self._writer: audio.AudioWriter | None = None
        self._parts: dict[Path, str] = {}
        self._folders: list[str] = []

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A stretch in which nobody discards; raises `Cancelled` where that has been done."""
        with self._lock:
            if self._cancelled.is_set():
                raise Cancelled
            yield

    def put_sound(self, path: Path, waveform: Tensor, sample_rate: int, **how: Any) -> audio.AudioWriter:
        """Write sound under a temporary name."""
        with self.alone():
            writer = self._writer = audio.AudioWriter(path, sample_rate, waveform.shape[0], **how)
        for block in waveform.split(BLOCK_SAMPLES, 1):
            with self.alone():
                writer.write(block)
        return writer

    def put(self, path: Path, content: bytes) -> None:
        """Write anything else under a temporary name."""
        with self.alone():
            part = os.path.join(os.path.dirname(os.path.abspath(path)), f".{secrets.token_hex(8)}.part")
            with _named(path):
                make_folder(os.path.dirname(part), self._folders)
                self._parts[path] = part
                with open(part, "xb") as file:
                    file.write(content)

    def commit(self, *, overwrite: bool) -> None:
        """Give every file its name: the mix first, whose end is still unwritten, then the others, which are whole."""
        with self.alone():
            if self._writer is not None:
                self._writer.commit()
            for path, part in self._parts.items():
                with _named(path):
                    rename(part, os.fspath(path), overwrite)
            self._tidy()

    def discard(self) -> None:
        """Remove what is not committed; waits for what is being written this moment."""
        with self._lock:
            if self._writer is not None:
                self._writer.abort()
            self._tidy()

    def _tidy(self) -> None:
        discard(list(self._parts.values()), self._folders)
        self._writer, self._parts, self._folders = None, {}, []


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        reason = (error.strerror or str(error)).lower()
        raise OutputError(
            f"{shown(path)} cannot be written ({reason}); free space there or choose another folder"
        ) from error
