"""Decoders, encoders and tags behind `umx_ext.audio`: numpy blocks of shape (samples, channels), float32.

libsndfile (through soundfile) does what it can do exactly; FFmpeg's libraries (through PyAV, imported only when
needed) do the rest. WAV is written here: that is the one way to switch to RF64 in mid-file and to meet a full disk
as an ordinary OSError. Nothing here checks arguments; `audio` does.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import io
import os
import re
import shutil
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np

from .errors import AudioError, MissingExtraError, OutputError, UsageError

# Vorbis and Opus keep more than two channels in the order of Xiph's tables (left, centre, right, ...); everything
# else here has WAV's (left, right, centre, low, ...). Entry k: where WAV's channel k lies in the stream.
XIPH_ORDER = {
    3: (0, 2, 1),
    5: (0, 2, 1, 3, 4),
    6: (0, 2, 1, 5, 3, 4),
    7: (0, 2, 1, 6, 5, 3, 4),
    8: (0, 2, 1, 7, 5, 6, 3, 4),
}
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
CHANNEL_MASKS = {1: 0x4, 2: 0x3, 3: 0x7, 4: 0x33, 5: 0x37, 6: 0x3F, 7: 0x70F, 8: 0x63F}
# Sizes that programs writing to a pipe leave in a header because they cannot go back: they promise nothing.
OPEN_ENDED = ((0x7FFFF000, 0x80000000), (0xFFFFF000, 0xFFFFFFFF))
PAD_SECONDS = 0.1  # a declared length that the last frames miss by less than this is rounding, not damage


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


def require_file(path: str) -> None:
    """Raise AudioError, in words, where `path` cannot be opened as a file with something in it."""
    name = shown(path)
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise AudioError(f"{name} is a folder; name a sound file in it")
        if not stat.S_ISREG(status.st_mode):
            raise AudioError(f"{name} is not a regular file; copy the sound into one first")
        if not status.st_size:
            raise AudioError(f"{name} is empty (0 bytes); get the file again")
        with open(path, "rb"):
            pass
    except (FileNotFoundError, NotADirectoryError):
        raise AudioError(f"{name} does not exist; check the name and the folder") from None
    except (OSError, ValueError) as error:
        if isinstance(error, AudioError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise AudioError(f"{name} cannot be opened ({reason}); check the name and its permissions") from error


class Source(Protocol):
    """A decoded stream that is read from front to back.

    samples is exact or None; promised is what the header claims: more than samples, or known when samples is None, in
    a file cut short.
    """

    sample_rate: int
    channels: int
    samples: int | None
    promised: int | None
    bits: str
    format: str
    streams: int

    def skip(self, samples: int) -> None: ...

    def read(self, samples: int) -> np.ndarray: ...  # (up to samples, channels); empty at the end

    def count(self) -> int: ...  # samples from here to the end, by decoding them

    def close(self) -> None: ...


def open_source(path: str, stream: int) -> Source:
    """The decoder for a regular file; AudioError when none of them takes it."""
    mpeg = _mpeg(path)
    # libsndfile stops early in a VBR mp3 without a Xing header and writes to stderr about a damaged one; such files,
    # known by their first frame, go to FFmpeg.
    source: Source | None = None
    if stream == 0 and (mpeg is None or mpeg.intact):
        with contextlib.suppress(_NotThisDecoder):
            source = SoundfileSource(path)
    # A WAV that was never finished says 0 samples; FFmpeg reads such a file to its end.
    if source is not None and source.samples == 0:
        source.close()
        source = None
    if source is None:
        source = AvSource(path, stream, mpeg)
    return source


class _NotThisDecoder(Exception):
    pass


class _Decoding:
    def skip(self, samples: int) -> None:
        while samples > 0 and len(block := self.read(min(samples, 1 << 16))):
            samples -= len(block)

    def count(self) -> int:
        total = 0
        while length := len(self.read(1 << 16)):
            total += length
        return total

    def read(self, samples: int) -> np.ndarray:
        raise NotImplementedError


class SoundfileSource(_Decoding):
    def __init__(self, path: str):
        import soundfile

        self._path = path
        self._handle = open(path, "rb")  # noqa: SIM115 (closed by close(): libsndfile reads through its descriptor)
        self._open, self._errors, self._over = soundfile.SoundFile, (soundfile.LibsndfileError, RuntimeError), False
        try:
            # A descriptor, not the name: no name is odd, and no suffix makes libsndfile guess.
            self._file = self._open(self._handle.fileno(), closefd=False)
        except (soundfile.LibsndfileError, TypeError) as error:
            self._handle.close()
            raise _NotThisDecoder from error
        self.sample_rate, self.channels = int(self._file.samplerate), int(self._file.channels)
        frames = int(self._file.frames)
        self.samples: int | None = frames if 0 <= frames < 1 << 62 else None
        self.promised: int | None = _promised(self._file.extra_info, frames)
        subtype = self._file.subtype
        self.bits = _bits(subtype)
        self.format = _format(self._file.format, subtype)
        self.streams = 1
        # libsndfile's seek gives values that differ in the 4th decimal in Opus, and wrong ones in Vorbis's last page.
        self._exact_seek = subtype not in ("OPUS", "VORBIS") and "ADPCM" not in subtype
        # Two reads that part within Opus's last packet give a wrong second half: the end is read in one piece.
        self._whole_end = 1 << 14 if subtype == "OPUS" else 0
        self._tail: np.ndarray | None = None
        self._order = XIPH_ORDER.get(self.channels) if subtype in ("VORBIS", "OPUS") else None
        self._buffer = np.empty((0, self.channels), np.float32)

    def skip(self, samples: int) -> None:
        if not self._exact_seek:
            super().skip(samples)
            return
        try:
            self._file.seek(samples)
        except self._errors:
            self._over = True  # cut short before that

    def read(self, samples: int) -> np.ndarray:
        """The block is a view that the next read() overwrites."""
        if len(self._buffer) < samples:
            self._buffer = np.empty((samples, self.channels), np.float32)
        if self._tail is not None:
            block, self._tail = self._tail[:samples], self._tail[samples:]
            return block
        if self._over:
            return self._buffer[:0]
        at = self._file.tell()
        if self._whole_end and samples < (self.samples or 0) - at < samples + self._whole_end:
            self._tail = self.read((self.samples or 0) - at)
            return self.read(samples)
        try:
            block = self._file.read(out=self._buffer[:samples])
        except self._errors:
            block = self._salvage(at, samples)
        return block if self._order is None else block[:, self._order]

    def _salvage(self, start: int, samples: int) -> np.ndarray:
        """Of a block that is damaged somewhere, what lies before that; nothing comes after it. libsndfile's decoders
        do not recover from an error, so a new one goes there in small steps."""
        self._over = True
        self._file.close()
        self._handle.seek(0)
        parts, position = [self._buffer[:0]], 0
        with contextlib.suppress(*self._errors):
            self._file = self._open(self._handle.fileno(), closefd=False)
            while position < start + samples:
                block = self._file.read(256, dtype="float32", always_2d=True)
                if not len(block):
                    break
                position += len(block)
                if position > start:
                    parts.append(block[-(position - start) :])
        return np.concatenate(parts)[:samples]

    def close(self) -> None:
        self._file.close()
        self._handle.close()


def _format(container: str, subtype: str) -> str:
    if subtype in ("OPUS", "MPEG_LAYER_III"):
        return {"OPUS": "opus", "MPEG_LAYER_III": "mp3"}[subtype]
    return {"WAVEX": "wav", "RF64": "wav"}.get(container, container.lower())


def _bits(subtype: str) -> str:
    if subtype in ("FLOAT", "DOUBLE", "PCM_32", "ALAC_32"):
        return "32f"
    return "24" if subtype.endswith(("_24", "_20")) else "16"


def _promised(log: str, frames: int) -> int | None:
    """Samples that a header claims, read from libsndfile's log, which corrects a header larger than its file."""
    said = re.search(r"(?:match value from 'ds64' chunk of|read from 'COMM' chunk \()\s*(\d+)", log)
    if said:
        return max(frames, int(said[1]))
    said = re.search(r"^\s*(?:data|SSND|Data Size|riff)\s*: (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    if said and int(said[1]) > int(said[2]) and not any(a <= int(said[1]) <= b for a, b in OPEN_ENDED):
        return max(int(said[1]) // max(int(said[2]) // max(frames, 1), 1), frames)
    return frames


class _Mpeg:
    """What the first frame of an MPEG audio file says."""

    promised: int | None = None  # samples, without the encoder's delay and padding; None: the file does not say
    cut: bool = False  # the file is shorter than its header says
    intact: bool = False  # header and file agree, and the header tells delay and padding


def _mpeg(path: str) -> _Mpeg | None:
    """None: not MPEG audio. Layout of the Xing/Info and LAME tags: LAME's `tech.html`, "Mp3 Info Tag rev 1"."""
    with open(path, "rb") as file:
        head = file.read(10)
        start = 0
        if head[:3] == b"ID3" and len(head) == 10:
            start = 10 + _syncsafe(head[6:10])
            file.seek(start)
            head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 not in (0xE2, 0xE4, 0xE6):  # a layer bit set: not ADTS
            return None
        file.seek(start)
        frame = file.read(256)
        size = os.fstat(file.fileno()).st_size
    mpeg = _Mpeg()
    version1, mono = frame[1] & 0x18 == 0x18, frame[3] >> 6 == 3
    at = 4 + ((17 if mono else 32) if version1 else (9 if mono else 17))
    if frame[at : at + 4] not in (b"Xing", b"Info") or len(frame) < at + 160:
        return mpeg
    flags = int.from_bytes(frame[at + 4 : at + 8], "big")
    if flags & 3 != 3:
        return mpeg
    frames, length = struct.unpack(">2I", frame[at + 8 : at + 16])
    if size - start < length * 0.998:
        mpeg.cut, mpeg.promised = True, frames * (1152 if version1 else 576)
    lame = at + 16 + (100 if flags & 4 else 0) + (4 if flags & 8 else 0)
    if frame[lame : lame + 4] in (b"LAME", b"Lavf", b"Lavc"):
        delay, padding = frame[lame + 21] << 4 | frame[lame + 22] >> 4, (frame[lame + 22] & 15) << 8 | frame[lame + 23]
        mpeg.promised = max(frames * (1152 if version1 else 576) - delay - padding, 0)
        mpeg.intact = delay > 0 and abs(size - start - length) <= max(0.005 * length, 1024)
    return mpeg


def _syncsafe(raw: bytes) -> int:
    return raw[0] << 21 | raw[1] << 14 | raw[2] << 7 | raw[3]


def open_av(path: str, mode: str = "r", **options: Any) -> Any:
    """`file:` keeps FFmpeg from reading a protocol or a pattern into a name."""
    return pyav(f"opening {shown(path)}").open("file:" + os.path.abspath(path), mode, **options)


class AvSource(_Decoding):
    def __init__(self, path: str, stream: int, mpeg: _Mpeg | None = None):
        self._av = pyav(f"decoding {shown(path)}")
        self._path = path
        try:
            self._container = open_av(path)
        except (self._av.FFmpegError, OSError, ValueError) as error:
            cut = ", or was cut short" if os.path.splitext(path)[1].lower() in (".m4a", ".mp4", ".m4b", ".mov") else ""
            raise AudioError(
                f"{shown(path)} is not sound that libsndfile or FFmpeg can decode; check that it is what its name "
                f"says{cut}, or convert it to wav or flac"
            ) from error
        try:
            self._open(stream, mpeg)
        except BaseException:
            self.close()
            raise

    def _open(self, stream: int, mpeg: _Mpeg | None) -> None:
        found = self._container.streams.audio
        self.streams = len(found)
        if not found:
            kinds = ", ".join(sorted({s.type for s in self._container.streams})) or "nothing"
            raise AudioError(f"{shown(self._path)} has no audio stream (it holds {kinds}); give a file with sound")
        if not 0 <= stream < len(found):
            raise AudioError(f"{shown(self._path)} has {len(found)} audio stream(s), numbered from 0: no {stream}")
        self._stream = found[stream]
        self._damaged_at: int | None = None
        self._count = 0  # samples handed out or skipped
        self._blocks = self._decode()
        self._rest = np.empty((0, 0), np.float32)
        # The first frame, not the header, knows the rate and channels (HE-AAC doubles either).
        try:
            self._rest = next(self._blocks)
        except StopIteration:
            raise AudioError(
                f"{shown(self._path)} has no samples that can be decoded; check that the file is complete"
            ) from None
        names = self._container.format.name.split(",")
        self.channels = self._rest.shape[1]
        self.samples = self.promised = None
        if names[0] in ("mov", "caf") and self._stream.duration:
            self.samples = self.promised = self._declared()
        elif mpeg is not None and mpeg.promised:
            self.promised = mpeg.promised
            self.samples = None if mpeg.cut else mpeg.promised
        codec = self._stream.codec_context
        depth = getattr(codec, "bits_per_raw_sample", 0) or codec.format.bits
        lossless = codec.name.startswith("pcm_") or codec.name in ("alac", "flac", "wavpack", "tta", "ape")
        self.bits = "16" if not lossless or depth <= 16 else "24" if depth <= 24 else "32f"
        films = [s for s in self._container.streams.video if s.codec_context.name not in ("png", "mjpeg")]
        self.format = ("mp4" if films else "m4a") if "mov" in names else {"matroska": "mkv"}.get(names[0], names[0])

    def _declared(self) -> int:
        """The stream's duration. FFmpeg's own files round that to milliseconds; where they round up, the last packet's
        end, which is exact, tells how much of it is padding."""
        stream, rate = self._stream, self.sample_rate
        declared = round(stream.duration * stream.time_base * rate)
        with open_av(self._path) as again:
            tail = again.streams[stream.index]
            again.seek(max(stream.duration - round(1 / stream.time_base), 0) + (stream.start_time or 0), stream=tail)
            ends = [p.pts + p.duration for p in again.demux(tail) if p.pts is not None and p.duration]
        end = round((max(ends, default=0) - (stream.start_time or 0)) * stream.time_base * rate)
        return end if 0 < declared - end <= rate / 1000 + 1 else declared

    def _decode(self) -> Iterator[np.ndarray]:
        av, to_float = self._av, None
        wanted = None
        for packet in self._container.demux(self._stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                self._damaged_at = self._damaged_at or self._count
                continue
            for frame in frames:
                if self._damaged_at and wanted:  # not at the very end of the file, where junk is common
                    raise AudioError(
                        f"{shown(self._path)} is damaged near {self._damaged_at / self.sample_rate:.2f} s; get it "
                        f"again, or use the part before that (a start and a duration)"
                    )
                if wanted is None:
                    self.sample_rate = int(frame.sample_rate)
                    wanted = (frame.sample_rate, frame.layout.nb_channels)
                elif wanted != (frame.sample_rate, frame.layout.nb_channels):
                    raise AudioError(
                        f"{shown(self._path)} changes from {wanted[0]} Hz, {wanted[1]} channels to "
                        f"{frame.sample_rate} Hz, {frame.layout.nb_channels} in mid-stream; convert it to wav or flac"
                    )
                channels = wanted[1]
                if frame.format.name == "fltp" and channels < 8:
                    yield frame.to_ndarray().T
                elif frame.format.name == "flt":
                    yield frame.to_ndarray().reshape(-1, channels)
                else:  # PyAV cannot take more than seven planes apart, so eight are packed first
                    to_float = to_float or av.AudioResampler(format="flt")
                    for packed in to_float.resample(frame):
                        yield packed.to_ndarray().reshape(-1, channels)

    def read(self, samples: int) -> np.ndarray:
        parts, got = [self._rest], len(self._rest)
        while got < samples and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            got += len(block)
        joined = np.concatenate(parts) if len(parts) > 1 else parts[0]
        short = (self.samples or 0) - self._count - len(joined)
        if got < samples and 0 < short <= PAD_SECONDS * self.sample_rate:
            joined = np.concatenate([joined, np.zeros((short, self.channels), np.float32)])
        self._rest = joined[samples:]
        self._count += len(joined[:samples])
        return joined[:samples]

    def close(self) -> None:
        self._container.close()


# --------------------------------------------------------------------------------------------------------- encoders


def to_integers(block: np.ndarray, bits: int) -> np.ndarray:
    """(…) float -> the nearest integers of that many bits, in the range that the format holds."""
    full = 1 << (bits - 1)
    scaled = block * np.float32(full)
    np.rint(scaled, out=scaled)
    np.clip(scaled, -full, full - 1, out=scaled)
    return scaled.astype(np.int16 if bits == 16 else np.int32)


def downmix(channels: int, to: int) -> np.ndarray:
    """(to, channels) gains for a format that holds fewer; rows sum to 1, so that nothing clips that did not before.

    To stereo: left and right, plus centre and surrounds 3 dB down, the low channel left out (after ITU-R BS.775); of
    more than eight channels, the even ones are left and the odd ones right.
    """
    side = {3: "LRC", 4: "LRLR", 5: "LRCLR", 6: "LRC-LR", 7: "LRC-CLR", 8: "LRC-LRLR"}.get(channels, "LR" * channels)
    gains = np.zeros((2, channels), np.float32)
    for index, place in enumerate(side[:channels]):
        gain = 1.0 if index < 2 else 0.5**0.5
        gains[:, index] = gain * (place in "LC"), gain * (place in "RC")
    gains /= gains.sum(1, keepdims=True)
    return gains if to == 2 else gains.mean(0, keepdims=True)


class Sink(Protocol):
    """An encoder that writes into an open, empty, readable file; OSError when that fails."""

    def write(self, block: np.ndarray) -> None: ...  # (samples, channels)

    def close(self) -> None: ...

    def drop(self) -> None: ...  # give up: free what is held, raise nothing


class WavSink:
    """WAV; a header for RF64 (EBU Tech 3306) is kept free and used when the file passes 4 GiB."""

    limit = 0xFFFFFFFF  # the largest size that RIFF's 32 bits hold; lower in tests

    def __init__(self, file: BinaryIO, sample_rate: int, channels: int, bits: str):
        self._file, self._bits, self._align = file, bits, channels * {"16": 2, "24": 3, "32f": 4}[bits]
        self._bytes = 0
        depth, tag = (32, 3) if bits == "32f" else (int(bits), 1)
        fields = struct.pack("<HIIHH", channels, sample_rate, sample_rate * self._align, self._align, depth)
        if channels > 2:  # WAVE_FORMAT_EXTENSIBLE names the loudspeakers
            guid = struct.pack("<H", tag) + bytes.fromhex("000000001000800000aa00389b71")
            fmt = struct.pack("<H", 0xFFFE) + fields
            fmt += struct.pack("<HHI", 22, depth, CHANNEL_MASKS.get(channels, 0)) + guid
        else:
            fmt = struct.pack("<H", tag) + fields + (b"\0\0" if tag == 3 else b"")
        self._head = b"fmt " + struct.pack("<I", len(fmt)) + fmt
        self._float = tag == 3
        file.write(self._header())

    def _header(self) -> bytes:
        samples = self._bytes // self._align
        fact = b"fact" + struct.pack("<II", 4, min(samples, 0xFFFFFFFF)) if self._float else b""
        after = self._head + fact + b"data"
        riff = 4 + 36 + len(after) + 4 + self._bytes + self._bytes % 2
        if riff <= self.limit:
            return b"RIFF" + struct.pack("<I", riff) + b"WAVEJUNK" + struct.pack("<I28x", 28) + after + struct.pack(
                "<I", self._bytes
            )
        ds64 = struct.pack("<IQQQI", 28, riff, self._bytes, samples, 0)
        return b"RF64\xff\xff\xff\xffWAVEds64" + ds64 + after + b"\xff\xff\xff\xff"

    def write(self, block: np.ndarray) -> None:
        if self._bits == "32f":
            raw = np.ascontiguousarray(block, "<f4")
        elif self._bits == "16":
            raw = np.ascontiguousarray(to_integers(block, 16), "<i2")
        else:
            raw = np.ascontiguousarray(to_integers(block, 24).astype("<i4", copy=False)).view(np.uint8)
            raw = np.ascontiguousarray(raw.reshape(-1, 4)[:, :3])
        self._file.write(raw.data)
        self._bytes += raw.nbytes

    def close(self) -> None:
        if self._bytes % 2:
            self._file.write(b"\0")
        self._file.seek(0)
        self._file.write(self._header())
        self._file.flush()

    def drop(self) -> None:
        pass


class SoundfileSink:
    """flac, mp3, ogg (Vorbis), opus."""

    def __init__(self, file: BinaryIO, name: str, sample_rate: int, channels: int, bits: str, bitrate_kbps: int):
        import soundfile

        self._errors = (soundfile.LibsndfileError, AssertionError, RuntimeError)
        self._handle, self._name, self._samples = file, name, 0
        self._order = np.argsort(XIPH_ORDER[channels]) if name in ("ogg", "opus") and channels in XIPH_ORDER else None
        container, subtype = {
            "flac": ("FLAC", f"PCM_{bits}"),
            "mp3": ("MP3", "MPEG_LAYER_III"),
            "ogg": ("OGG", "VORBIS"),
            "opus": ("OGG", "OPUS"),
        }[name]
        self._bits = int(bits) if name == "flac" else 0
        options: dict[str, Any] = {}
        if name != "flac":
            options["compression_level"] = _compression(name, sample_rate, channels, bitrate_kbps)
        if name == "mp3":
            options["bitrate_mode"] = "CONSTANT"
        self._open = soundfile.SoundFile
        with self._told():
            self._file = soundfile.SoundFile(
                file.fileno(), "w", sample_rate, channels, subtype, format=container, closefd=False, **options
            )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            # libsndfile does not say why. Writing on does, when it is for want of space.
            os.lseek(self._handle.fileno(), 0, os.SEEK_END)
            os.write(self._handle.fileno(), bytes(1 << 16))
            raise OSError(f"libsndfile refused: {error}") from error

    def write(self, block: np.ndarray) -> None:
        if self._order is not None:
            block = block[:, self._order]
        if self._bits:
            block = to_integers(block, self._bits)
            if self._bits == 24:
                block <<= 8  # libsndfile takes the upper 24 bits
        with self._told():
            for first in range(0, len(block), 1 << 13):  # Vorbis and Opus analyse a call's worth on the stack
                self._file.write(block[first : first + (1 << 13)])
        self._samples += len(block)

    def close(self) -> None:
        with self._told():
            self._file.close()
            # libsndfile does not report a disk that fills while it closes: look at the end of what was written.
            os.lseek(self._handle.fileno(), 0, os.SEEK_SET)
            with self._open(self._handle.fileno(), closefd=False) as written:
                if self._name == "flac" or self._samples:
                    written.seek(max(self._samples - 1, 0))
                    if written.frames != self._samples or len(written.read(1)) != min(self._samples, 1):
                        raise RuntimeError(f"{written.frames} of {self._samples} samples arrived")

    def drop(self) -> None:
        with contextlib.suppress(*self._errors):
            self._file.close()


def mp3_limits(sample_rate: int) -> tuple[int, int]:
    """Bit rates in kbps that libsndfile gives to LAME at a rate."""
    return (32, 320) if sample_rate >= 32000 else (8, 160) if sample_rate >= 16000 else (8, 64)


# Nominal kbps of libvorbis for 44.1 kHz stereo at qualities 0 to 1 in steps of 0.1 (xiph.org, "Vorbis quality").
VORBIS_KBPS = (64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 500)


def _compression(name: str, sample_rate: int, channels: int, kbps: int) -> float:
    """libsndfile's 0 (best) to 1 for a bit rate; its encoders map that scale back linearly."""
    if name == "ogg":
        quality = np.interp(kbps * 2 / channels, VORBIS_KBPS, np.linspace(0, 1, 11))
        return float(1 - quality)
    low, high = mp3_limits(sample_rate) if name == "mp3" else (6 * channels, 256 * channels)
    return float(np.clip((high - kbps) / (high - low), 0, 0.999))


class AacSink:
    """AAC in MP4 (.m4a). The movie's clock is the sample rate: its edit list then tells the length to the sample."""

    def __init__(self, path: str, sample_rate: int, channels: int, bitrate_kbps: int):
        self._av = pyav("writing m4a")
        self._layout, self._rate, self._samples = LAYOUTS[channels], sample_rate, 0
        self._container = open_av(
            path, "w", format="mp4", options={"movie_timescale": str(sample_rate)}
        )
        self._stream = self._container.add_stream("aac", rate=sample_rate, layout=self._layout)
        self._stream.bit_rate = bitrate_kbps * 1000

    def write(self, block: np.ndarray) -> None:
        for first in range(0, len(block), 1 << 14):
            piece = np.ascontiguousarray(block[first : first + (1 << 14)], np.float32).reshape(1, -1)
            frame = self._av.AudioFrame.from_ndarray(piece, format="flt", layout=self._layout)
            frame.sample_rate, frame.pts = self._rate, self._samples
            self._samples += frame.samples
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        try:
            if self._samples:
                self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()

    def drop(self) -> None:
        with contextlib.suppress(self._av.FFmpegError, OSError, ValueError):
            self._container.close()


def open_sink(
    file: BinaryIO, path: str, name: str, sample_rate: int, channels: int, bits: str, bitrate_kbps: int
) -> Sink:
    """The encoder for a format of `FORMATS` into an open, empty file and its path."""
    if name == "wav":
        return WavSink(file, sample_rate, channels, bits)
    if name == "m4a":
        return AacSink(path, sample_rate, channels, bitrate_kbps)
    return SoundfileSink(file, name, sample_rate, channels, bits, bitrate_kbps)


# ------------------------------------------------------------------------------------------------ files and folders


def format_of(path: str, name: str | None) -> Format:
    """The output format by its name, or by the path's suffix."""
    if name is None:
        suffix = os.path.splitext(path)[1].lower()
        name = {".oga": "ogg", ".wave": "wav", ".mp4": "m4a", ".m4b": "m4a"}.get(suffix, suffix[1:])
    if name not in FORMATS:
        raise UsageError(f"no output format for {shown(path)} ({name or 'no suffix'}); known: {', '.join(FORMATS)}")
    return FORMATS[name]


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


# -------------------------------------------------------------------------------------------------------------- tags

TAGS = ("title", "artist", "album", "album_artist", "composer", "date", "genre", "track", "comment", "copyright")


def read_tags(path: str) -> tuple[dict[str, str], bytes | None]:
    """The tags named in `TAGS` and the cover's bytes (JPEG or PNG); nothing where FFmpeg cannot open the file."""
    av = pyav("reading tags")
    try:
        with open_av(path) as container:
            found = dict(container.metadata)
            for stream in container.streams.audio[:1]:  # Ogg keeps them there
                found.update(stream.metadata)
            cover = None
            for stream in container.streams.video:
                if stream.disposition & av.stream.Disposition.attached_pic and cover is None:
                    cover = next((bytes(packet) for packet in container.demux(stream) if packet.size), None)
    except (av.FFmpegError, OSError, ValueError):
        return {}, None
    lower = {key.lower(): value for key, value in found.items()}
    return {key: lower[key] for key in TAGS if lower.get(key)}, cover if mime(cover) else None


def mime(cover: bytes | None) -> str | None:
    if cover is None:
        return None
    return {b"\xff\xd8": "image/jpeg", b"\x89P": "image/png"}.get(cover[:2])


def write_tags(path: str, target: str, name: str, tags: Mapping[str, str], cover: bytes | None) -> str | None:
    """Copy the sound of `path` (format `name`), packet by packet, to the new file `target` with these tags; they
    replace the old ones. Returns what could not be kept, in words."""
    kept = {key: " ".join(value.split("\0")) for key, value in tags.items() if key in TAGS and value}
    before = open_source(path, 0)
    before.close()
    av = pyav("writing tags")
    options = {"m4a": {"movie_timescale": str(before.sample_rate)}, "wav": {"rf64": "auto"}}.get(name, {})
    container = {"m4a": "mp4"}.get(name, name)
    with open_av(path) as source, open_av(target, "w", format=container, options=options) as output:
        sound = source.streams.audio[0]
        copy = output.add_stream_from_template(sound)
        output.metadata.update(kept)
        if name in ("ogg", "opus"):
            copy.metadata.update(kept)
            if cover:
                copy.metadata["METADATA_BLOCK_PICTURE"] = base64.b64encode(_flac_picture(cover)).decode()
        elif cover and name != "wav":
            with av.open(io.BytesIO(cover)) as image:
                frame = image.streams.video[0]
                picture = output.add_stream_from_template(frame)
                picture.disposition = av.stream.Disposition.attached_pic
                packet = next(image.demux(frame))
                packet.stream = picture
                output.mux(packet)
        for packet in source.demux(sound):
            if packet.dts is not None:
                packet.stream = copy
                output.mux(packet)
    # Of a few hundred samples (one Ogg page, one MP3 frame) FFmpeg does not keep the exact length.
    after = open_source(target, 0)
    after.close()
    if (before.samples, before.sample_rate, before.channels) == (after.samples, after.sample_rate, after.channels):
        return "wav holds no cover" if cover and name == "wav" else None
    shutil.copyfile(path, target)
    return f"tags left out: so short a file cannot have them in {name} and keep its length"


def _flac_picture(cover: bytes) -> bytes:
    """METADATA_BLOCK_PICTURE of RFC 9639, section 8.8: a front cover, sizes left for the reader to find."""
    kind = (mime(cover) or "").encode()
    return struct.pack(">2I", 3, len(kind)) + kind + struct.pack(">6I", 0, 0, 0, 0, 0, len(cover)) + cover
