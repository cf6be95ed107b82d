"""Sinks: encoders of blocks into an open file, and what a format makes of the values, channels and bit rates.

WAV is written here: that is the one way to switch to RF64 in mid-file and to meet a full disk as an ordinary OSError.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

import numpy as np

from umx_ext.codecs.formats import XIPH_ORDER, open_av, pyav

LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
CHANNEL_MASKS = {1: 0x4, 2: 0x3, 3: 0x7, 4: 0x33, 5: 0x37, 6: 0x3F, 7: 0x70F, 8: 0x63F}


def to_integers(block: np.ndarray, bits: int) -> np.ndarray:
    """(…) float -> the nearest integers of that many bits, in the range that the format holds."""
    full = 1 << (bits - 1)
    scaled = block * np.float32(full)
    np.rint(scaled, out=scaled)
    np.clip(scaled, -full, full - 1, out=scaled)
    return scaled.astype(np.int16 if bits == 16 else np.int32)


def _interleaved(block: np.ndarray, kind: str) -> np.ndarray:
    """(samples, channels) one after the other; a channel at a time, which is several times faster than at once."""
    whole = np.empty(block.shape, kind)
    for channel in range(block.shape[1]):
        whole[:, channel] = block[:, channel]
    return whole


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
            raw = _interleaved(block, "<f4")
        elif self._bits == "16":
            raw = _interleaved(to_integers(block, 16), "<i2")
        else:
            raw = _interleaved(to_integers(block, 24), "<i4").view(np.uint8)
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
