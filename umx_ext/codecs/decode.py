"""Sources: decoders of sound files, libsndfile's and FFmpeg's, read from front to back in blocks."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import struct
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from umx_ext.codecs.formats import XIPH_ORDER, open_av, pyav, shown
from umx_ext.errors import AudioError

# Sizes that programs writing to a pipe leave in a header because they cannot go back: they promise nothing.
OPEN_ENDED = ((0x7FFFF000, 0x80000000), (0xFFFFF000, 0xFFFFFFFF))
PAD_SECONDS = 0.1  # a declared length that the last frames miss by less than this is rounding, not damage


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
    seeks: bool  # to the sample, so that `seek` may be called

    def skip(self, samples: int) -> None: ...

    def seek(self, position: int) -> None: ...

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
    seeks = False

    def seek(self, position: int) -> None:
        raise NotImplementedError

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
        coded = ("OPUS", "VORBIS", "GSM610", "G721_32", "G723_24", "G723_40", "DWVW_12", "DWVW_16", "DWVW_24")
        self.seeks = subtype not in coded and "ADPCM" not in subtype
        # Two reads that part within Opus's last packet give a wrong second half: the end is read in one piece.
        self._whole_end = 1 << 14 if subtype == "OPUS" else 0
        self._tail: np.ndarray | None = None
        self._order = XIPH_ORDER.get(self.channels) if subtype in ("VORBIS", "OPUS") else None
        self._buffer = np.empty((0, self.channels), np.float32)

    def skip(self, samples: int) -> None:
        if self.seeks:
            self.seek(samples)
        else:
            super().skip(samples)

    def seek(self, position: int) -> None:
        if self._over:  # no decoder goes on after an error
            self._file.close()
            self._handle.seek(0)
            self._file, self._over = self._open(self._handle.fileno(), closefd=False), False
        try:
            self._file.seek(position)
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
