"""What input and output formats there are and what they hold, and what decoders and encoders share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from umx_ext.errors import MissingExtraError, UsageError

# Vorbis and Opus keep more than two channels in the order of Xiph's tables (left, centre, right, ...); everything
# else here has WAV's (left, right, centre, low, ...). Entry k: where WAV's channel k lies in the stream.
XIPH_ORDER = {
    3: (0, 2, 1),
    5: (0, 2, 1, 3, 4),
    6: (0, 2, 1, 5, 3, 4),
    7: (0, 2, 1, 6, 5, 3, 4),
    8: (0, 2, 1, 7, 5, 6, 3, 4),
}


def shown(path: str | os.PathLike[str]) -> str:
    """The path as a person can read it on one line: as it is, or escaped where it has newlines and the like."""
    text = os.fsdecode(path)
    return text if text and text.isprintable() else repr(text)


def pyav(purpose: str) -> Any:
    try:
        import av
    except (ImportError, RuntimeError) as error:
        raise MissingExtraError(f"{purpose} needs PyAV ({error}); run: pip install av") from error
    return av


def open_av(path: str, mode: str = "r", **options: Any) -> Any:
    """`file:` keeps FFmpeg from reading a protocol or a pattern into a name."""
    return pyav(f"opening {shown(path)}").open("file:" + os.path.abspath(path), mode, **options)


# What a folder is searched for; a file of another name is opened all the same when it is named itself.
INPUT_SUFFIXES: frozenset[str] = frozenset(
    f".{suffix}"
    for suffix in (
        *("wav", "wave", "bwf", "rf64", "w64", "flac", "ogg", "oga", "opus", "mp3", "mp2", "aif", "aiff", "aifc", "au"),
        *("caf", "m4a", "m4b", "mp4", "aac", "mov", "mkv", "mka", "webm", "wma", "wv", "ape", "ac3", "avi", "ts"),
    )
)


@dataclass(frozen=True)
class Format:
    """What an output format can hold. rates: None for any; bits: () for lossy formats."""

    name: str
    suffix: str
    bits: tuple[str, ...]
    rates: tuple[int, ...] | None
    max_channels: int
    bitrate_kbps: int  # the default for two channels (mp3: for one as well); 0 for lossless formats

    def default_kbps(self, channels: int) -> int:
        return self.bitrate_kbps if self.name == "mp3" else self.bitrate_kbps * channels // 2

    @property
    def lossless(self) -> bool:
        return bool(self.bits)

    def nearest_rate(self, sample_rate: int) -> int:
        """The lowest rate that keeps the whole band, else the highest there is."""
        if self.rates is None:
            return sample_rate
        return min((rate for rate in self.rates if rate >= sample_rate), default=max(self.rates))


_MPEG_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
FORMATS: dict[str, Format] = {
    "wav": Format("wav", ".wav", ("16", "24", "32f"), None, 1024, 0),
    "flac": Format("flac", ".flac", ("16", "24"), None, 8, 0),
    "mp3": Format("mp3", ".mp3", (), _MPEG_RATES, 2, 320),
    "ogg": Format("ogg", ".ogg", (), None, 8, 320),
    "opus": Format("opus", ".opus", (), (8000, 12000, 16000, 24000, 48000), 8, 256),
    "m4a": Format("m4a", ".m4a", (), (7350, *_MPEG_RATES, 64000, 88200, 96000), 8, 256),
}


@dataclass(frozen=True)
class AudioInfo:
    """What a file is. samples: exact, or None where only decoding would tell. bits: "16", "24" or "32f", what a
    lossless copy needs ("16" for lossy formats and 8-bit files)."""

    path: str
    sample_rate: int
    channels: int
    samples: int | None
    bits: str
    format: str
    tags: dict[str, str]
    has_cover: bool
    streams: int = 1

    @property
    def duration_s(self) -> float | None:
        return None if self.samples is None else self.samples / self.sample_rate


def format_of(path: str, name: str | None) -> Format:
    """The output format by its name, or by the path's suffix."""
    if name is None:
        suffix = os.path.splitext(path)[1].lower()
        name = {".oga": "ogg", ".wave": "wav", ".mp4": "m4a", ".m4b": "m4a"}.get(suffix, suffix[1:])
    if name not in FORMATS:
        raise UsageError(f"no output format for {shown(path)} ({name or 'no suffix'}); known: {', '.join(FORMATS)}")
    return FORMATS[name]
