"""Files and folders around a file that is being written: made, given its name, removed."""

from __future__ import annotations

import contextlib
import errno
import os

from umx_ext.codecs.formats import shown
from umx_ext.errors import OutputError


def make_folder(folder: str, made: list[str]) -> None:
    """Make a folder and those above it; the new ones are appended to `made`, outermost first."""
    missing = []
    while not os.path.isdir(folder):
        if os.path.lexists(folder):
            raise NotADirectoryError(errno.ENOTDIR, f"{shown(folder)} is a file, not a folder")
        missing.append(folder)
        folder = os.path.dirname(folder)
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):  # made by someone else in between: theirs to remove
            os.mkdir(folder)
            made.append(folder)


def rename(temporary: str, path: str, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)  # unlike a rename, fails when someone else has made the file meanwhile
    except FileExistsError:
        raise OutputError(f"{shown(path)} is there already; give another name or allow overwriting") from None
    except OSError:  # a file system without links
        os.replace(temporary, path)


def discard(leftovers: list[str], folders: list[str]) -> None:
    """Remove temporary files, and the folders made for them that are empty."""
    for path in leftovers:
        with contextlib.suppress(OSError):
            os.unlink(path)
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
