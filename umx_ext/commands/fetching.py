"""What every command that may download shares: asking for a licence once, and showing how far the download is."""

from __future__ import annotations

import os
from pathlib import Path

from umx_ext.commands.terminal import Terminal
from umx_ext.errors import ModelError, UsageError
from umx_ext.separation.download import cache_dir
from umx_ext.separation.pretrained import MODELS

__all__ = ["Downloads", "ask_for_acceptance"]


class Downloads:
    """The progress callback of `load` and `pull`: a bar for each file."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._bars: dict[str, int | None] = {}

    def __call__(self, name: str, received: int, total: int | None) -> None:
        if name not in self._bars:
            self._terminal.detail(f"downloading {name}")
            self._bars[name] = self._terminal.bar(name, total)
        self._terminal.advance(self._bars[name], received, total)

    def __enter__(self) -> Downloads:
        return self

    def __exit__(self, *_: object) -> None:
        for bar in self._bars.values():
            self._terminal.end(bar)


def ask_for_acceptance(name: str, *, accepted: bool) -> None:
    """See that a model's terms were accepted, now or before on this machine, and remember it.

    Args:
        name: a name in `MODELS`.
        accepted: `--accept-license` was given.

    Raises:
        UsageError: they were not; the message shows them and how to accept them.
    """
    entry = MODELS[name]
    if not entry.needs_license_acceptance:
        return
    mark = _mark(name)
    if mark.is_file():
        return
    if not accepted:
        raise UsageError(
            f"the weights of {name} are under {entry.license}: {entry.license_note} "
            "To accept, add --accept-license once"
        )
    part = mark.with_name(f"{mark.name}.{os.getpid()}.part")
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(f"{entry.license}\n{entry.license_note}\n", encoding="utf-8")
        part.replace(mark)
    except OSError as error:
        part.unlink(missing_ok=True) if part.parent.is_dir() else None
        raise ModelError(
            f"{mark.parent} cannot be written ({error.strerror}); name another folder in UMX_EXT_CACHE"
        ) from error


def _mark(name: str) -> Path:
    return cache_dir() / f"{name}.license-accepted"
