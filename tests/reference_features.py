"""automix-toolkit's formulas once more, slowly and in plain numpy: one frame, one band, one filter step at a time.

Nothing here shares code with umx_ext, librosa or pyloudnorm. The formulas are those of the toolkit's
`automix/evaluation/utils_evaluation.py` (github.com/csteinmetz1/automix-toolkit), with the flatness in dB and the
contrasts merged in the spectral mean, and a guard of our own where the toolkit divides by zero or stops.
"""

from __future__ import annotations

import math

import numpy as np

N_FFT, HOP, RUNNING = 4096, 1024, 40


def compat(mix: np.ndarray, reference: np.ndarray, rate: int) -> dict[str, dict[str, float]]:
    """Errors by group and member of two stereo mixes, (2, samples) float, not trimmed."""
    loudness = {}
    for name, series in (("lufs", frame_lufs), ("peak", frame_peaks)):
        ours, theirs = series(mix, rate), series(reference, rate)
        keep = np.isfinite(ours) & np.isfinite(theirs)
        loudness[name] = mape(running(theirs[keep] + 1e-10), running(ours[keep] + 1e-10))
    ours, theirs = (x * (10 ** (-1.0 / 20) / np.abs(x).max()) for x in (mix, reference))
    channels = [spectral(x, y, rate) for x, y in zip(ours, theirs, strict=True)]
    spectra = {name: float(np.mean([errors[name] for errors in channels])) for name in channels[0]}
    return {"loudness": loudness, "spectral": spectra, "panning": panning(ours, theirs, rate),
            "dynamics": dynamics(ours, theirs)}  # fmt: skip


def running(series: np.ndarray) -> np.ndarray:
    if len(series) < RUNNING:
        return np.array([series.mean()])
    return np.array([series[first : first + RUNNING].mean() for first in range(len(series) - RUNNING + 1)])


def mape(target: np.ndarray, output: np.ndarray) -> float:
    return float(np.mean(np.abs(target - output) / np.maximum(np.abs(target), np.finfo(float).eps)))


def window_starts(samples: int, rate: int) -> tuple[range, int]:
    length, hop = round(0.4 * rate), round(0.2 * rate)
    return range(0, samples - length + 1, hop), length


def frame_peaks(x: np.ndarray, rate: int) -> np.ndarray:
    starts, length = window_starts(x.shape[1], rate)
    with np.errstate(divide="ignore"):
        return np.array([20 * np.log10(np.abs(x[:, i : i + length]).max()) for i in starts])


def frame_lufs(x: np.ndarray, rate: int) -> np.ndarray:
    """Of each window by itself: the filters as the response to one impulse, convolved by the transform."""
    starts, length = window_starts(x.shape[1], rate)
    impulse = [1.0] + [0.0] * (length - 1)
    response = np.array(recursion(*high_pass(rate), recursion(*high_shelf(rate), impulse)))
    spectrum = np.fft.rfft(response, 2 * length)
    values = []
    for i in starts:
        z = 0.0
        for channel in x[:, i : i + length].astype(np.float64):
            weighted = np.fft.irfft(np.fft.rfft(channel, 2 * length) * spectrum)[:length]
            z += np.mean(weighted**2)
        loudness = -0.691 + 10 * math.log10(z) if z > 0 else -math.inf
        values.append(loudness if loudness > -70 else -math.inf)
    return np.array(values)


def recursion(b: list[float], a: list[float], x: list[float]) -> list[float]:
    y: list[float] = []
    for n in range(len(x)):
        value = sum(b[k] * x[n - k] for k in range(3) if n >= k) - sum(a[k] * y[n - k] for k in (1, 2) if n >= k)
        y.append(value / a[0])
    return y


def high_shelf(rate: int) -> tuple[list[float], list[float]]:
    """The Audio EQ Cookbook's, as pyloudnorm sets it: 4 dB, 1500 Hz, Q 1/sqrt(2)."""
    big_a, w0, q = 10 ** (4 / 40), 2 * math.pi * 1500 / rate, 1 / math.sqrt(2)
    alpha, c = math.sin(w0) / (2 * q), math.cos(w0)
    b = [
        big_a * ((big_a + 1) + (big_a - 1) * c + 2 * math.sqrt(big_a) * alpha),
        -2 * big_a * ((big_a - 1) + (big_a + 1) * c),
        big_a * ((big_a + 1) + (big_a - 1) * c - 2 * math.sqrt(big_a) * alpha),
    ]
    a = [
        (big_a + 1) - (big_a - 1) * c + 2 * math.sqrt(big_a) * alpha,
        2 * ((big_a - 1) - (big_a + 1) * c),
        (big_a + 1) - (big_a - 1) * c - 2 * math.sqrt(big_a) * alpha,
    ]
    return b, a


def high_pass(rate: int) -> tuple[list[float], list[float]]:
    """The Audio EQ Cookbook's, as pyloudnorm sets it: 38 Hz, Q 0.5."""
    w0, q = 2 * math.pi * 38 / rate, 0.5
    alpha, c = math.sin(w0) / (2 * q), math.cos(w0)
    return [(1 + c) / 2, -(1 + c), (1 + c) / 2], [1 + alpha, -2 * c, 1 - alpha]


def frame_starts(samples: int) -> range:
    return range(0, samples - N_FFT + 1, HOP)


def magnitudes(channel: np.ndarray) -> list[np.ndarray]:
    window = np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT))
    frames = [channel[i : i + N_FFT].astype(np.float64) * window for i in frame_starts(len(channel))]
    return [np.abs(np.fft.rfft(frame).astype(np.complex64)).astype(np.float64) for frame in frames]


def spectral(ours: np.ndarray, theirs: np.ndarray, rate: int) -> dict[str, float]:
    x, y = spectral_series(ours, rate), spectral_series(theirs, rate)
    return {name: mape(running(y[name]), running(x[name])) for name in x}


def spectral_series(channel: np.ndarray, rate: int) -> dict[str, np.ndarray]:
    hz = np.arange(N_FFT // 2 + 1) * rate / N_FFT
    out: dict[str, list[float]] = {
        name: [] for name in ("centroid", "bandwidth", "rolloff", "flatness", "flatness_ratio")
    }
    peaks, valleys = [], []
    bands = [contrast_band(hz, band) for band in range(5)]
    for spectrum in magnitudes(channel):
        total = spectrum.sum() or 1.0  # librosa's rule: silence has its centroid at 0
        centroid = (hz * spectrum).sum() / total
        out["centroid"].append(centroid + 1)
        out["bandwidth"].append(math.sqrt((spectrum * (hz - centroid) ** 2).sum() / total) + 1)
        reached = np.cumsum(spectrum.astype(np.float32))  # whose rounding may shift it by a bin, as in the toolkit
        out["rolloff"].append(next(f for f, part in zip(hz, reached, strict=True) if part >= 0.85 * reached[-1]) + 1)
        power = np.maximum(spectrum**2, 1e-10)
        ratio = math.exp(np.mean(np.log(power))) / power.mean()
        out["flatness_ratio"].append(ratio)
        out["flatness"].append(1 - 20 * math.log10(ratio + 1e-30))
        ordered = [(np.sort(spectrum[bins]), share) for bins, share in bands]
        peaks.append([values[-share:].mean() for values, share in ordered])
        valleys.append([values[:share].mean() for values, share in ordered])
    contrast = clipped_db(np.array(peaks)) - clipped_db(np.array(valleys))  # (frames, 5)
    series = {name: np.array(values) for name, values in out.items()}
    series["contrast_low"] = contrast[:, 0]
    series["contrast_mid"] = contrast[:, 1:4].mean(1)
    series["contrast_high"] = contrast[:, 4]
    return series


def contrast_band(hz: np.ndarray, band: int) -> tuple[list[int], int]:
    """The bins of 0-250, 250-500, 500-1000, 1000-2000 or 2000 Hz and more, and how many make a peak or a valley."""
    low, high = (0.0, 250.0) if band == 0 else (250.0 * 2 ** (band - 1), 250.0 * 2**band)
    inside = [i for i, f in enumerate(hz) if low <= f <= high or (band == 4 and f > high)]
    if band > 0:
        inside.insert(0, inside[0] - 1)
    return inside if band == 4 else inside[:-1], max(1, round(0.02 * len(inside)))


def clipped_db(values: np.ndarray) -> np.ndarray:
    db = 10 * np.log10(np.maximum(values, 1e-10))
    return np.maximum(db, db.max() - 80)


def panning(ours: np.ndarray, theirs: np.ndarray, rate: int) -> dict[str, float]:
    x, y = panning_series(ours, rate), panning_series(theirs, rate)
    keep = y["total"] > 0
    return {name: mape(running(y[name][keep]), running(x[name][keep])) for name in x}


def panning_series(stereo: np.ndarray, rate: int) -> dict[str, np.ndarray]:
    edges = {"total": (0, rate // 2), "low": (0, 250), "mid": (250, 2500), "high": (2500, rate // 2)}
    out: dict[str, list[float]] = {name: [] for name in edges}
    for left, right in zip(*(magnitudes(channel) for channel in stereo), strict=True):
        left, right = left + 1e-20, right + 1e-20
        phi = 2 * left * right / (left**2 + right**2)
        delta = (left * right) / left**2 - (left * right) / right**2
        sps = (1 - phi) * np.sign(delta)
        for name, (low, high) in edges.items():
            first, end = math.floor(low * N_FFT / rate), math.floor(high * N_FFT / rate)
            out[name].append(math.sqrt(np.sum(sps[first:end] ** 2) / (end - first)))
    return {name: np.array(values) for name, values in out.items()}


def dynamics(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    x, y = dynamics_series(ours), dynamics_series(theirs)
    return {name: mape(running(y[name]), running(x[name])) for name in x}


def dynamics_series(stereo: np.ndarray) -> dict[str, np.ndarray]:
    rms, spread, crest = [], [], []
    for i in frame_starts(stereo.shape[1]):
        frames = [channel[i : i + N_FFT].astype(np.float64) for channel in stereo]
        levels = [db(math.sqrt(np.mean(frame**2))) for frame in frames]
        rms.append(np.mean(levels))
        spread.append(np.mean([np.mean(db(np.abs(f)) - level) for f, level in zip(frames, levels, strict=True)]))
        crest.append(np.mean([db(np.abs(f).max()) / level for f, level in zip(frames, levels, strict=True)]))
    return {"rms": 1 - np.array(rms), "spread": 1 - np.array(spread), "crest": np.array(crest)}


def db(amplitude: np.ndarray | float) -> np.ndarray:
    return 20 * np.log10(np.asarray(amplitude) + 1e-30)
