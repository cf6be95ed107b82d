"""What a mix measures, frame by frame: the series that `features` compares.

All of it is computed in float64 from blocks of frames (magnitudes are kept as float32), so that memory is bounded by
the block. The transform is in float64 because the bins that a lossy file has emptied would otherwise hold the rounding
noise of the loud ones, and flatness and contrast would measure that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from umx_ext import levels

__all__ = ["LEVEL_FLOOR_DB", "UNITS", "audible_span", "least_samples", "measure", "panning_spectrum"]

N_FFT, HOP = 4096, 1024  # samples, whatever the rate
WINDOW_S, WINDOW_HOP_S = 0.4, 0.2  # of loudness and peak
TRIM_DB = 45.0
PEAK = 10 ** (-1 / 20)  # what spectrum, panning and dynamics are scaled to
LEVEL_FLOOR_DB = -70.0  # the absolute gate of BS.1770: what is below it is silence, whatever it measures
SAMPLE_FLOOR_DB = -100.0
# Of a bin, against a sine at full scale. The dither of 16 bits lies just below, at -123 dB: it must not count as a
# spectrum that differs from that of digital silence.
BIN_FLOOR_DB = -120.0
CONTRAST_LOW_HZ, CONTRAST_BANDS, CONTRAST_SHARE = 250.0, 4, 0.02
ROLLOFF_SHARE = 0.85
PANNING_HZ = (250, 2500)
BLOCK_FRAMES = 32  # 2 MB: stays in the cache
TINY = 1e-30

# What each feature is measured in, and what its distance is given in: "" is a ratio, 0.1 for 10 %.
UNITS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "loudness": {"lufs": ("LUFS", "LU"), "peak": ("dBFS", "dB")},
    "spectral": {
        "centroid": ("Hz", ""),
        "bandwidth": ("Hz", ""),
        "contrast_low": ("dB", "dB"),
        "contrast_mid": ("dB", "dB"),
        "contrast_high": ("dB", "dB"),
        "rolloff": ("Hz", ""),
        "flatness": ("dB", "dB"),
    },
    "panning": {"total": ("", ""), "low": ("", ""), "mid": ("", ""), "high": ("", "")},
    "dynamics": {"rms": ("dB", "dB"), "spread": ("dB", "dB"), "crest": ("dB", "dB")},
}

Arrays = dict[str, np.ndarray]


def least_samples(sample_rate: int) -> int:
    """The shortest signal that has a frame of each kind."""
    return max(N_FFT, round(WINDOW_S * sample_rate))


def audible_span(stereo: np.ndarray) -> tuple[int, int]:
    """First sample and end of what is within 45 dB of the loudest frame (of 4096 samples, centred every 1024), the
    louder channel counting: `librosa.effects.trim` with these settings."""
    padded = np.pad(stereo, ((0, 0), (N_FFT // 2, N_FFT // 2)))
    hops = padded[:, : padded.shape[1] // HOP * HOP].reshape(2, -1, HOP)
    energy = np.square(hops).sum(-1, dtype=np.float64)
    frames = np.lib.stride_tricks.sliding_window_view(energy, N_FFT // HOP, 1).sum(-1).max(0)
    loud = np.flatnonzero(frames > frames.max() * 10 ** (-TRIM_DB / 10))
    return int(loud[0]) * HOP, min(stereo.shape[1], (int(loud[-1]) + 1) * HOP)


def panning_spectrum(stereo: np.ndarray) -> np.ndarray:
    """(2, samples) -> (frames, bins): see `features.panning_spectrum`."""
    return np.concatenate([_panning(*_magnitudes(framed)) for _, framed in _blocks(stereo)])


def measure(stereo: np.ndarray, sample_rate: int, mode: str) -> dict[str, Arrays]:
    """float32 (2, samples) -> features by group and member, as `features.features` describes them."""
    return _compat(stereo, sample_rate) if mode == "compat" else _strict(stereo, sample_rate)


def _strict(stereo: np.ndarray, sample_rate: int) -> dict[str, Arrays]:
    windows = _windows(stereo, sample_rate)
    lufs = levels.frame_lufs(torch.from_numpy(stereo), sample_rate, WINDOW_S, WINDOW_HOP_S).numpy()
    count = min(len(lufs), windows.shape[1])
    loudness = {"lufs": lufs[:count], "peak": _db(_peaks(windows))[:count]}
    loudness = {name: np.maximum(values, LEVEL_FLOOR_DB) for name, values in loudness.items()}
    spectra, time = _frames(stereo, sample_rate, compat=False)
    silent = time["rms"] <= LEVEL_FLOOR_DB  # (channels, frames)
    spectra["flatness"] = 10 * np.log10(spectra["flatness"])
    spectra |= _thirds(*(20 * np.log10(np.maximum(spectra[name], _bin_floor())) for name in ("peaks", "valleys")))
    dynamics = {
        # One level for both channels; but a channel that is silent has neither spread nor crest.
        "rms": np.maximum(10 * np.log10((10 ** (time["rms"] / 10)).mean(0)), LEVEL_FLOOR_DB),
        "spread": _over_channels(time["spread"], silent),
        "crest": _over_channels(time["peak"] - time["rms"], silent),
    }
    return {
        "loudness": loudness,
        "spectral": {name: np.where(silent, np.nan, spectra[name]) for name in UNITS["spectral"]},
        "panning": {name: np.where(silent.all(0), np.nan, spectra[name]) for name in UNITS["panning"]},
        "dynamics": dynamics,
    }


def _compat(stereo: np.ndarray, sample_rate: int) -> dict[str, Arrays]:
    """The same by automix-toolkit's formulas."""
    windows = _windows(stereo, sample_rate)
    with np.errstate(divide="ignore"):
        lufs = _pyloudnorm_lufs(windows, sample_rate)
        peak = 20 * np.log10(_peaks(windows))
    spectra, time = _frames(stereo, sample_rate, compat=True)
    spectral = {name: spectra[name] + 1.0 for name in ("centroid", "bandwidth")}
    spectral |= _thirds(_librosa_db(spectra["peaks"]), _librosa_db(spectra["valleys"]))
    spectral["rolloff"] = spectra["rolloff"] + 1.0
    # A ratio of powers that is made dB as if it were one of amplitudes.
    spectral["flatness"] = 1.0 - _db(spectra["flatness"])
    spectral["flatness_ratio"] = spectra["flatness"]
    return {
        "loudness": {"lufs": lufs + 1e-10, "peak": peak + 1e-10},
        "spectral": spectral,
        "panning": {name: spectra[name] for name in UNITS["panning"]},
        "dynamics": {
            "rms": 1.0 - time["rms"].mean(0),
            "spread": 1.0 - time["spread"].mean(0),
            "crest": (time["peak"] / time["rms"]).mean(0),
        },
    }


def _frames(stereo: np.ndarray, sample_rate: int, *, compat: bool) -> tuple[Arrays, Arrays]:
    """What spectrum and samples of each frame say, in one pass; frames are the last axis.

    Args:
        compat: the toolkit's floors, its signed spread, and its sums in float32, whose rounding may shift a roll-off by
            a bin.
    """
    hz = np.arange(N_FFT // 2 + 1) * (sample_rate / N_FFT)
    moments = np.stack([np.ones_like(hz), hz, hz * hz], 1)  # (bins, 3)
    bands = _contrast_bands(hz)
    low, mid, top = (edge * N_FFT // sample_rate for edge in (*PANNING_HZ, sample_rate // 2))
    ranges = {"total": (0, top), "low": (0, low), "mid": (low, mid), "high": (mid, top)}
    least = np.float32(TINY if compat else 10 ** (SAMPLE_FLOOR_DB / 20))
    faintest = np.float32(1e-10 if compat else _bin_floor() ** 2)
    spectra: list[Arrays] = []
    time: list[Arrays] = []
    for segment, framed in _blocks(stereo):
        magnitude = _magnitudes(framed)  # (channels, frames, bins)
        total, first, second = np.moveaxis(magnitude.astype(np.float64) @ moments, -1, 0)
        total = np.maximum(total, np.finfo(np.float32).tiny)
        centroid = first / total
        reached = np.cumsum(magnitude, -1, dtype=np.float32 if compat else np.float64)
        power = np.maximum(magnitude * magnitude, faintest)
        valleys, peaks = _extremes(magnitude, bands)
        squares = np.square(_panning(*magnitude))
        widths = {name: np.sqrt(squares[:, i:j].mean(-1, dtype=np.float64)) for name, (i, j) in ranges.items()}
        spectra.append(
            {
                "centroid": centroid,
                "bandwidth": np.sqrt(np.maximum(second / total - centroid * centroid, 0.0)),
                "rolloff": hz[(reached < ROLLOFF_SHARE * reached[..., -1:]).sum(-1)],
                "flatness": np.exp(np.log(power).mean(-1, dtype=np.float64)) / power.mean(-1, dtype=np.float64),
                "valleys": valleys,
                "peaks": peaks,
                **widths,
            }
        )
        rms = _db(np.sqrt(np.square(framed).mean(-1)))  # (channels, frames)
        # In float32, whose logarithm is the faster; its errors of 1e-6 dB a sample average out.
        samples_db = np.log(np.maximum(np.abs(segment).astype(np.float32), least)) * np.float32(20 / math.log(10))
        deviation = _framed(samples_db) - rms[..., None].astype(np.float32)
        spread = (deviation if compat else np.abs(deviation, out=deviation)).mean(-1, dtype=np.float64)
        time.append({"rms": rms, "spread": spread, "peak": _db(np.abs(framed).max(-1))})
    return _joined(spectra), _joined(time)


def _blocks(stereo: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The mix at a peak of -1 dBFS, float64, as stretches (channels, samples) and their frames (channels, frames,
    4096), uncentred."""
    gain = PEAK / float(np.abs(stereo).max())
    count = (stereo.shape[1] - N_FFT) // HOP + 1
    for first in range(0, count, BLOCK_FRAMES):
        last = min(first + BLOCK_FRAMES, count) - 1
        segment = stereo[:, first * HOP : last * HOP + N_FFT].astype(np.float64) * gain
        yield segment, _framed(segment)


def _framed(segment: np.ndarray) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(segment, N_FFT, 1)[:, ::HOP]


def _magnitudes(framed: np.ndarray) -> np.ndarray:
    from scipy.fft import rfft

    window = np.sin(math.pi * np.arange(N_FFT) / N_FFT)  # the square root of a periodic Hann window
    return np.abs(rfft(framed * window).astype(np.complex64))


def _bin_floor() -> float:
    """The magnitude of a bin at the floor: of a sine in its middle, amplitude * sum(window) / 2."""
    return 10 ** (BIN_FLOOR_DB / 20) / math.tan(math.pi / (2 * N_FFT)) / 2


def _panning(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The panning spectrum of magnitudes. ``1 - phi`` is written as ``(L - R)^2 / (L^2 + R^2)``, which does not cancel
    near the centre and is 0 where both are silent."""
    difference = right - left
    power = np.maximum(left * left + right * right, np.finfo(np.float32).tiny)
    return np.sign(difference) * (difference * difference / power)


def _contrast_bands(hz: np.ndarray) -> list[tuple[slice, int]]:
    """The bins of each band and how many of them make a peak or a valley: librosa's rules, by which a band begins a bin
    early, all but the last leave out their last bin, and the last goes to the end."""
    edges = [0.0, *(CONTRAST_LOW_HZ * 2**octave for octave in range(CONTRAST_BANDS + 1))]
    bands = []
    for band in range(CONTRAST_BANDS + 1):
        first = int(np.searchsorted(hz, edges[band])) - (band > 0)
        last = len(hz) if band == CONTRAST_BANDS else int(np.searchsorted(hz, edges[band + 1], "right"))
        share = max(1, round(CONTRAST_SHARE * (last - first)))
        bands.append((slice(first, last - (band < CONTRAST_BANDS)), share))
    return bands


def _extremes(magnitude: np.ndarray, bands: list[tuple[slice, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Valleys and peaks, each (channels, bands, frames)."""
    ordered = [(np.sort(magnitude[..., bins], -1), share) for bins, share in bands]
    valleys = [band[..., :share].mean(-1, dtype=np.float64) for band, share in ordered]
    peaks = [band[..., -share:].mean(-1, dtype=np.float64) for band, share in ordered]
    return np.stack(valleys, 1), np.stack(peaks, 1)


def _thirds(peaks_db: np.ndarray, valleys_db: np.ndarray) -> Arrays:
    contrast = peaks_db - valleys_db
    return {
        "contrast_low": contrast[:, 0],
        "contrast_mid": contrast[:, 1:4].mean(1),
        "contrast_high": contrast[:, -1],
    }


def _librosa_db(magnitude: np.ndarray) -> np.ndarray:
    """`librosa.power_to_db` of magnitudes, as its spectral contrast takes them: half as many dB as there are, and no
    more than 80 below each channel's largest."""
    db = 10 * np.log10(np.maximum(magnitude, 1e-10))
    return np.maximum(db, db.max((1, 2), keepdims=True) - 80.0)


def _over_channels(values: np.ndarray, silent: np.ndarray) -> np.ndarray:
    """Mean over the channels that sound, nan where none does: (channels, frames) -> (frames,)."""
    sounding = (~silent).sum(0)
    return np.where(sounding > 0, np.where(silent, 0.0, values).sum(0) / np.maximum(sounding, 1), np.nan)


def _windows(stereo: np.ndarray, sample_rate: int) -> np.ndarray:
    """Samples in windows of 400 ms, one every 200: a view (channels, windows, samples)."""
    length, hop = round(WINDOW_S * sample_rate), round(WINDOW_HOP_S * sample_rate)
    return np.lib.stride_tricks.sliding_window_view(stereo, length, 1)[:, ::hop]


def _peaks(windows: np.ndarray) -> np.ndarray:
    return np.maximum(windows.max((0, 2)), -windows.min((0, 2))).astype(np.float64)


def _pyloudnorm_lufs(windows: np.ndarray, sample_rate: int) -> np.ndarray:
    """Integrated loudness of each window by itself, as pyloudnorm's default meter gives it.

    Each window begins with the settling of the filters, and those are of the meter's own class: RBJ's high shelf of
    4 dB at 1500 Hz, Q 1/sqrt(2), and high-pass at 38 Hz, Q 0.5.
    """
    from scipy.signal import lfilter

    shelf, high_pass = _high_shelf(sample_rate), _high_pass(sample_rate)
    lufs = np.empty(windows.shape[1])
    for first in range(0, len(lufs), BLOCK_FRAMES):
        block = windows[:, first : first + BLOCK_FRAMES].astype(np.float64)
        weighted = lfilter(*high_pass, lfilter(*shelf, block))
        lufs[first : first + BLOCK_FRAMES] = -0.691 + 10 * np.log10(np.square(weighted).mean(-1).sum(0))
    lufs[lufs <= -70.0] = -np.inf  # nothing of the window survives the absolute gate
    return lufs


def _high_shelf(sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    a, w = 10 ** (4.0 / 40), 2 * math.pi * 1500.0 / sample_rate
    cos, root = math.cos(w), math.sqrt(2 * a) * math.sin(w)  # 2 sqrt(A) alpha with Q = 1/sqrt(2)
    upper = np.array([a + 1 + (a - 1) * cos + root, -2 * (a - 1 + (a + 1) * cos), a + 1 + (a - 1) * cos - root]) * a
    lower = np.array([a + 1 - (a - 1) * cos + root, 2 * (a - 1 - (a + 1) * cos), a + 1 - (a - 1) * cos - root])
    return upper / lower[0], lower / lower[0]


def _high_pass(sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    w = 2 * math.pi * 38.0 / sample_rate
    cos, alpha = math.cos(w), math.sin(w)  # Q = 0.5
    upper = np.array([(1 + cos) / 2, -1 - cos, (1 + cos) / 2])
    lower = np.array([1 + alpha, -2 * cos, 1 - alpha])
    return upper / lower[0], lower / lower[0]


def _db(amplitude: np.ndarray) -> np.ndarray:
    return 20 * np.log10(amplitude + TINY)


def _joined(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts], -1) for name in parts[0]}
