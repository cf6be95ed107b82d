"""Other packages of the field as test references; a test that needs an absent one skips with its name."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

__all__ = ["import_peer"]


def import_peer(name: str) -> ModuleType:
    """The module, or a skip. A torchaudio built for another torch fails with RuntimeError or OSError."""
    try:
        if name.split(".")[0] in ("musdb", "museval"):
            return _import_beside_ffmpeg(name)
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"{name} cannot be imported here ({type(error).__name__}); pip install '.[research]'")


def _import_beside_ffmpeg(name: str) -> ModuleType:
    """musdb and museval import stempeg, which wants to see an ffmpeg on the path even if nothing is ever decoded."""
    if shutil.which("ffmpeg") and shutil.which("ffprobe"):
        return importlib.import_module(name)
    path = os.environ["PATH"]
    with tempfile.TemporaryDirectory() as folder:
        for tool in ("ffmpeg", "ffprobe"):
            stand_in = Path(folder, tool)
            stand_in.write_text("#!/bin/sh\nexit 1\n")
            stand_in.chmod(0o755)
        os.environ["PATH"] = folder + os.pathsep + path
        try:
            return importlib.import_module(name)
        finally:
            os.environ["PATH"] = path
