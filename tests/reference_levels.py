"""Loudness by its equations, one window at a time: slow, and plain to see. And ffmpeg's meter, as a peer: the filter
ebur128 of the libraries inside PyAV, so that it is there wherever the package is."""

from __future__ import annotations

import itertools
import math
import re
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from umx_ext import audio

if TYPE_CHECKING:
    import av

__all__ = [
    "active_frames",
    "ffmpeg_loudness",
    "frame_powers",
    "integrated_lufs",
    "k_weighted",
    "loudness_range_lu",
    "real_audio",
    "true_peak",
]


def k_weighted(signal: np.ndarray, sample_rate: int) -> np.ndarray:
    """One channel through the analogue prototype, whose bilinear transform scipy does.

    The standard's high-pass has the numerator 1 -2 1 whatever the rate, which is the transform's without its factor.
    """
    from scipy.signal import bilinear, lfilter

    high = 10 ** (3.999843853973347 / 20)
    for hertz, q, numerator in (
        (1681.974450955533, 0.7071752369554196, [high, high**0.4996667741545416 / 0.7071752369554196, 1]),
        (38.13547087602444, 0.5003270373238773, [1, 0, 0]),
    ):
        # In units of the corner: a transform at this "rate" puts the corner where it belongs, unwarped.
        b, a = bilinear(numerator, [1, 1 / q, 1], fs=1 / (2 * np.tan(np.pi * hertz / sample_rate)))
        signal = lfilter([1, -2, 1] if numerator[1:] == [0, 0] else b, a, signal)
    return signal


def frame_powers(signal: np.ndarray, sample_rate: int, window_s: float, hop_s: float) -> list[float]:
    """`(channels, samples)` of 1 to 3 channels: summed mean squares of all complete windows."""
    filtered = [k_weighted(channel, sample_rate) for channel in signal]
    hop, window = (Fraction(str(seconds)) * sample_rate for seconds in (hop_s, window_s))
    powers = []
    number = 0
    while True:
        first = math.floor(number * hop + Fraction(1, 2))
        end = math.floor(number * hop + window + Fraction(1, 2))
        if end > signal.shape[1]:
            return powers
        powers.append(sum(float(np.mean(channel[first:end] ** 2)) for channel in filtered))
        number += 1


def lufs(power: float) -> float:
    return -0.691 + 10 * np.log10(power) if power > 0 else -np.inf


def integrated_lufs(signal: np.ndarray, sample_rate: int) -> float:
    powers = [power for power in frame_powers(signal, sample_rate, 0.4, 0.1) if lufs(power) >= -70]
    if not powers:
        return -np.inf
    gate = lufs(np.mean(powers)) - 10
    return lufs(np.mean([power for power in powers if lufs(power) > gate]))


def loudness_range_lu(signal: np.ndarray, sample_rate: int) -> float:
    powers = [power for power in frame_powers(signal, sample_rate, 3.0, 0.1) if lufs(power) >= -70]
    gate = lufs(np.mean(powers)) - 20
    loud = sorted(lufs(power) for power in powers if lufs(power) >= gate)

    def percentile(share: float) -> float:
        place = share * (len(loud) - 1)
        below = int(place)
        above = min(below + 1, len(loud) - 1)
        return loud[below] + (place - below) * (loud[above] - loud[below])

    return percentile(0.95) - percentile(0.10)


def active_frames(signal: np.ndarray, sample_rate: int) -> list[bool]:
    size = round(0.05 * sample_rate)
    levels = []
    for first in range(0, signal.shape[1], size):
        mean = np.mean(signal[:, first : first + size].astype(float) ** 2)
        levels.append(10 * np.log10(mean) if mean > 0 else -np.inf)
    return [level > max(-60, max(levels) - 40) for level in levels]


def true_peak(signal: np.ndarray, factor: int) -> float:
    """The largest of `factor` times as many points, by a Fourier transform of everything: exact but for its ends."""
    peaks = []
    for channel in signal:
        spectrum = np.fft.rfft(channel)
        points = np.fft.irfft(spectrum, factor * len(channel)) * factor
        peaks.append(np.abs(points).max())
    return max(peaks)


LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


def ffmpeg_loudness(waveform: Tensor, sample_rate: int) -> dict[str, float]:
    """What ffmpeg's filter ebur128 says: LUFS, LU (both in steps of 0.01), dBTP."""
    import av

    layout = LAYOUTS[len(waveform)]
    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder, "metadata.txt")
        graph = av.filter.Graph()
        chain = [
            graph.add_abuffer(format="fltp", sample_rate=sample_rate, layout=layout),
            graph.add("ebur128", "metadata=1:peak=true"),
            graph.add("ametadata", f"mode=print:file={printed}"),
            graph.add("abuffersink"),
        ]
        for one, other in itertools.pairwise(chain):
            one.link_to(other)
        graph.configure()
        for first in range(0, waveform.shape[1], sample_rate):
            block = waveform[:, first : first + sample_rate].contiguous().numpy()
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = sample_rate, first
            graph.push(frame)
            drain(graph)
        graph.push(None)
        drain(graph)
        del one, other, chain, graph  # it closes its file with the last of them
        last = dict(re.findall(r"lavfi\.r128\.(\S+)=(\S+)", printed.read_text()))
    peak = max(float(value) for name, value in last.items() if name.startswith("true_peaks_ch"))
    return {
        "integrated_lufs": float(last["I"]),
        "loudness_range_lu": float(last["LRA"]),
        "true_peak_db": round(20 * math.log10(peak), 3),
    }


def drain(graph: av.filter.Graph) -> None:
    import av

    while True:
        try:
            graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return


def real_audio(root: Path) -> Iterator[tuple[str, Tensor, int]]:
    """The whole songs; and singers alone, many clips on end, whose loudness ranges as no finished song's does."""
    for path in sorted((root / "songs").iterdir()):
        yield f"songs/{path.name}", *audio.read(path)
    clips = [audio.read(path)[0] for path in sorted((root / "mir1k" / "train").glob("*/vocals.opus"))[:20]]
    yield "20 clips of mir1k/train, vocals", torch.cat(clips, 1), 16000
    songs = sorted((root / "musdb18-7" / "train").glob("*.stem.mp4"))[:15]
    stems = [audio.read(path, stream=4)[0] for path in songs]
    yield "15 songs of musdb18-7/train, vocals", torch.cat(stems, 1), 44100
