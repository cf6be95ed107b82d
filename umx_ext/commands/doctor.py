"""`umx-ext doctor`: what is here, which device would be used and why, and the command that mends what is not."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from cyclopts import App

from umx_ext import __version__
from umx_ext.commands.terminal import Terminal
from umx_ext.errors import MissingExtraError, UmxError

__all__ = ["app", "doctor"]

app = App(
    name="doctor",
    help_prologue="umx-ext doctor\n",
    usage="Usage: umx-ext doctor",
    help_format="plaintext",
    version_flags=(),
)
app["--help"].show = False

CORE = ("torch", "numpy", "soundfile", "soxr", "av", "safetensors", "scipy", "cyclopts", "rich")
# What each is for, and what mends it. torchaudio and openunmix only work with a torch of their own version, so they
# are installed as the set that pip resolves.
RESEARCH = "in umx-ext's folder: pip install '.[research]'"
AGAIN = "in umx-ext's folder: pip install . --force-reinstall --no-deps"
ONNX = "in umx-ext's folder: pip install '.[onnx]'"
EXTRAS = {
    "matplotlib": ("--plot", "pip install matplotlib"),
    "torchaudio": ("research", RESEARCH),
    "openunmix": ("research", RESEARCH),
    "librosa": ("research", RESEARCH),
    "musdb": ("research", RESEARCH),
    "museval": ("research", RESEARCH),
    "norbert": ("research", RESEARCH),
    "tensorboard": ("research", RESEARCH),
    "onnx": ("models export", ONNX),
    "onnxruntime": ("models export", ONNX),
}


@app.default
def doctor() -> int:
    """What is installed, which device would be used and why, which formats can be read and written, where models are.

    Exit code 2 where something is missing that separation needs; the last line is then the command that mends it.
    """
    terminal = Terminal()
    terminal.result(
        f"umx-ext {__version__}, Python {platform.python_version()} ({sys.executable}), {platform.platform()}"
    )
    broken = []
    terminal.result("packages")
    for name in CORE:
        trouble = _trouble(name)
        terminal.result(_row(name, trouble or _version(name)))
        if trouble:
            broken.append(name)
    if "torch" not in broken:
        _say(terminal, "devices", _devices())
    if not {"torch", "numpy"} & set(broken):
        _say(terminal, "formats", _formats())
        _say(terminal, "models", _models())
    terminal.result("optional packages")
    for name, (used_for, mend) in EXTRAS.items():
        trouble = _trouble(name)
        if "ffmpeg" in trouble:  # which is no package: musdb reads with the system's, our own reading does not
            mend = "install the system's ffmpeg"
        says = f"{trouble}; for {used_for}: {mend}" if trouble else _version(name)
        terminal.result(_row(name, says))
    if broken:
        raise MissingExtraError(f"separation needs {', '.join(broken)}; run: pip install {' '.join(broken)}")
    return 0


def _row(name: str, says: str) -> str:
    return f"  {name:<12}{says}"


def _say(terminal: Terminal, title: str, rows: Iterator[tuple[str, str]]) -> None:
    terminal.result(title)
    try:
        for name, says in rows:
            terminal.result(_row(name, says))
    except (UmxError, ImportError, RuntimeError, OSError) as error:
        terminal.result(_row("", f"could not be found out: {_first_line(error)}"))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(name), "__version__", "unknown version"))


def _trouble(name: str) -> str:
    """Why a package cannot be imported; empty where it can."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        return "missing" if error.name == name else f"broken ({_first_line(error)})"
    except Exception as error:
        # A mismatched torchaudio raises RuntimeError or OSError, and what others do is theirs to choose.
        return f"{_version(name)}, broken ({type(error).__name__}: {_first_line(error)})"
    return ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _devices() -> Iterator[tuple[str, str]]:
    import torch

    from umx_ext.separation import dense, planar
    from umx_ext.separation.pretrained import pick_device

    loops = "compiled"
    if not planar.compiled():
        loops = f"torch's, slower; with a C compiler, {AGAIN} --no-cache-dir"
    products = "compiled, of 12 bits unless --exact" if dense.compiled() else "torch's, float32"
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} processors"
    yield "cpu", f"{threads}; Wiener filter: {loops}; products: {products}"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    else:
        built = (
            "no device found, or its driver does not fit" if torch.version.cuda else "this torch is built without CUDA"
        )
        yield "cuda", f"no: {built}"
    mps = "yes" if torch.backends.mps.is_available() else "no: not an Apple GPU, or torch is built without it"
    yield "mps", mps
    asked = os.environ.get("UMX_EXT_DEVICE") or "auto"
    why = "UMX_EXT_DEVICE says so" if asked != "auto" else "auto takes cuda, else mps, else cpu"
    yield "chosen", f"{pick_device(asked)} ({why})"


def _formats() -> Iterator[tuple[str, str]]:
    import soundfile

    from umx_ext.audio import FORMATS, INPUT_SUFFIXES

    known = soundfile.available_formats()
    yield "libsndfile", f"{soundfile.__libsndfile_version__}: {', '.join(sorted(name.lower() for name in known))}"
    encoders: dict[str, bool] = {
        "wav": True,
        "flac": "FLAC" in known,
        "mp3": "MP3" in known,
        "ogg": "OGG" in known,
        "opus": "OGG" in known and "OPUS" in soundfile.available_subtypes("OGG"),
    }
    try:
        import av

        libraries = av.ffmpeg_version_info if hasattr(av, "ffmpeg_version_info") else "unknown version"
        yield "FFmpeg", f"{libraries}, inside PyAV: m4a, mp4, webm, aac, video"
        encoders["m4a"] = "aac" in av.codecs_available
    except (ImportError, RuntimeError, OSError) as error:
        yield "FFmpeg", f"no ({_first_line(error)}); for m4a, mp4 and video: pip install av"
        encoders["m4a"] = False
    yield "reads", " ".join(sorted(suffix.lstrip(".") for suffix in INPUT_SUFFIXES))
    yield "writes", ", ".join(name if encoders.get(name, True) else f"{name} (no encoder)" for name in FORMATS)


def _models() -> Iterator[tuple[str, str]]:
    from umx_ext.separation.download import cache_dir, is_offline
    from umx_ext.separation.pretrained import models

    folder = cache_dir()
    why = "UMX_EXT_CACHE" if os.environ.get("UMX_EXT_CACHE") else "torch.hub's"
    yield "cache", f"{folder} ({why}; {_writable(folder)})"
    yield "network", "off (UMX_EXT_OFFLINE)" if is_offline() else "used when a model has to be fetched"
    for info in models():
        if info.available:
            says = f"{(info.size_bytes or 0) / 1e6:.0f} MB"
        elif info.embedded:
            says = f"missing from this installation; {AGAIN}"
        else:
            says = f"not here; umx-ext models pull {info.name}"
        yield info.name, says


def _writable(folder: Path) -> str:
    for place in (folder, *folder.parents):
        if place.is_dir():
            if not os.access(place, os.W_OK):
                return "not writable; name another folder in UMX_EXT_CACHE"
            return "writable" if place == folder else "will be made"
        if place.exists():
            break
    return "cannot be made; name another folder in UMX_EXT_CACHE"
