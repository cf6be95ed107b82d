"""Slow, obvious twins and synthetic signals for the tests of `umx_ext.audio`."""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np

# PNG of one black pixel and JPEG's opening: enough of a cover to be kept.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c636000000002000148afa471"
    "0000000049454e44ae426082"
)


def tones(channels: int, samples: int, sample_rate: int, start: int = 0) -> np.ndarray:
    """(channels, samples) float64: another low tone in each channel, known at every point in time."""
    t = (np.arange(samples) + start) / sample_rate
    return np.stack([0.3 * np.sin(2 * np.pi * (90 + 37 * k) * t + k) for k in range(channels)])


def nearest_step(value: float, bits: int) -> float:
    """The nearest multiple of 2**(1 - bits) that the format holds, in exact arithmetic; ties to even."""
    full = 1 << (bits - 1)
    steps = round(Fraction(value) * full)  # Python rounds a Fraction exactly, ties to even
    return max(-full, min(full - 1, steps)) / full


def resampled_length(samples: int, from_hz: int, to_hz: int) -> int:
    return math.ceil(Fraction(samples * to_hz, from_hz))


def wav_bytes(frames: list[list[float]], sample_rate: int, bits: int) -> bytes:
    """The simplest WAV: 44 bytes of header and integers, one at a time."""
    data = b""
    for frame in frames:
        for value in frame:
            data += round(value * (1 << (bits - 1))).to_bytes(bits // 8, "little", signed=True)
    channels = len(frames[0])
    align = channels * bits // 8
    fmt = struct.pack("<HHIIHH", 1, channels, sample_rate, sample_rate * align, align, bits)
    body = b"WAVEfmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def wav_chunks(path: Path) -> dict[bytes, tuple[int, int]]:
    """{chunk name: (offset of its content, size)} of a RIFF or RF64 file; sizes as their 32 bits say."""
    raw = path.read_bytes()
    chunks, position = {}, 12
    while position + 8 <= len(raw):
        name, size = struct.unpack("<4sI", raw[position : position + 8])
        chunks[name] = (position + 8, size)
        if name == b"data" and size == 0xFFFFFFFF:
            break
        position += 8 + size + size % 2
    return chunks
