"""How loud a waveform is: loudness and loudness range as broadcasters measure them, true peak, RMS, active frames.

Loudness is that of ITU-R BS.1770-4: the waveform is K-weighted (a high shelf for the head, a high-pass for the ear),
its mean square is taken in overlapping windows, and windows that are silent or far below the rest are left out.

Everything is measured in float64, a block at a time; the caller's waveform is never changed. Waveforms are
`(channels, samples)` of floats, full scale 1.0, 1 to 8 channels in the order of WAV files, at 8000 Hz or more; anything
else, and NaN or infinity, is an `AudioError`. Silence has the level ``-inf``.

A mono waveform is 3.01 LU quieter than the same sound in both channels of a stereo one, which is what a player makes of
it: send it through `as_stereo` wherever it is compared with, or put into, something stereo.

Sources: ITU-R BS.1770-4 (2015); EBU Tech 3341 (windows of 0.4 and 3 s) and 3342 (loudness range); the analogue
prototype of the K-weighting for any rate is B. De Man, "Evaluation of implementations of the EBU R128 loudness
measurement", AES 145 (2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from umx_ext.errors import AudioError, UsageError

__all__ = [
    "ACTIVE_FRAME_S", "SILENT_PEAK", "Loudness", "active_fraction", "active_frames", "active_level_db",
    "as_stereo", "frame_lufs", "integrated_lufs", "is_silent", "k_weighting", "loudness_range_lu",
    "mean_abs_db", "measure", "momentary_lufs", "peak_db", "rms_db", "short_term_lufs", "true_peak_db",
]

SILENT_PEAK = 1e-5  # -100 dBFS: below this a signal counts as silent
ACTIVE_FRAME_S = 0.05
ACTIVE_FLOOR_DB = -60.0
ACTIVE_BELOW_LOUDEST_DB = 40.0
MOMENTARY_S = 0.4
SHORT_TERM_S = 3.0
HOP_S = 0.1
OFFSET_LU = -0.691  # undoes the K-weighting's gain at 997 Hz
ABSOLUTE_GATE_LUFS = -70.0
RELATIVE_GATE_LU = -10.0
RANGE_GATE_LU = -20.0
RANGE_PERCENTILES = (10, 95)
RANGE_TAIL_S = 1.5
RANGE_ACTIVE_SHARE = 0.8
LOWEST_RATE_HZ = 8000
MOST_CHANNELS = 8

# BS.1770-4 weighs power by where the loudspeaker stands: 1.41 from 60 to 120 degrees to the side, 1 elsewhere, 0 for
# low-frequency effects. A waveform does not say its layout; these are the ones of WAV files.
_WEIGHTS = {
    4: (1.0, 1.0, 1.41, 1.41),  # L R Ls Rs
    5: (1.0, 1.0, 1.0, 1.41, 1.41),  # L R C Ls Rs
    6: (1.0, 1.0, 1.0, 0.0, 1.41, 1.41),  # L R C LFE Ls Rs
    7: (1.0, 1.0, 1.0, 0.0, 1.0, 1.41, 1.41),  # L R C LFE back, left and right side
    8: (1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.41, 1.41),  # L R C LFE, left and right back, left and right side
}

_BLOCK = 1 << 16  # samples filtered at a time: they stay in the cache
_DENORMAL = 1e-150  # filter states below this are silence; they never reach 0, and are slow where denormal numbers are


@dataclass(frozen=True)
class Loudness:
    """What a loudness meter shows of a whole waveform; `measure` reads it in one pass."""

    integrated_lufs: float
    loudness_range_lu: float  # nan where there is none
    momentary_max_lufs: float
    short_term_max_lufs: float
    true_peak_db: float


def k_weighting(sample_rate: int) -> np.ndarray:
    """The K-weighting of BS.1770-4 as two biquads, for ``scipy.signal.sosfilt``.

    At 48 kHz they are the standard's table; at other rates the analogue prototype goes through the bilinear transform.
    Beside 48 kHz a tone reads up to 0.15 LU more at 16 kHz, 0.4 LU more at 8 kHz and 0.04 LU less at 192 kHz, here as
    in pyloudnorm and ffmpeg. Resample first where that matters.

    Returns:
        float64 `(2, 6)`: the high shelf, then the high-pass, each ``b0 b1 b2 1 a1 a2``.
    """
    _check_rate(sample_rate)
    k = math.tan(math.pi * 1681.974450955533 / sample_rate)
    q = 0.7071752369554196
    high = 10 ** (3.999843853973347 / 20)
    band = high**0.4996667741545416
    a0 = 1 + k / q + k * k
    numerator = [(high + band * k / q + k * k) / a0, 2 * (k * k - high) / a0, (high - band * k / q + k * k) / a0]
    shelf = [*numerator, 1.0, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0]
    k = math.tan(math.pi * 38.13547087602444 / sample_rate)
    q = 0.5003270373238773
    a0 = 1 + k / q + k * k
    # The standard's table has 1 -2 1 too, not divided by a0: far above the cut-off the gain is a little over 1.
    high_pass = [1.0, -2.0, 1.0, 1.0, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0]
    return np.array([shelf, high_pass])


def integrated_lufs(waveform: Tensor, sample_rate: int) -> float:
    """Loudness of the whole, in LUFS (BS.1770-4): 400 ms windows every 100 ms, gated at -70 LUFS and at -10 LU.

    ``-inf`` when no window passes the gates. A waveform shorter than 400 ms is one window, without gates. The last
    samples, too few for a window, do not count, as in the standard.

    >>> time = torch.arange(48000) / 48000
    >>> tone = 0.1 * torch.sin(2 * torch.pi * 997 * time)
    >>> round(integrated_lufs(tone.expand(2, -1), 48000), 1)
    -20.0
    """
    _check(waveform, sample_rate)
    spans = [_spans(waveform, sample_rate, MOMENTARY_S, HOP_S), _whole(waveform)]
    return _integrated(*_k_powers(waveform, sample_rate, spans))


def frame_lufs(waveform: Tensor, sample_rate: int, window_s: float, hop_s: float) -> Tensor:
    """Loudness of every complete window of `window_s` seconds, one every `hop_s`, ungated.

    Returns:
        float64 `(frames,)` in LUFS, ``-inf`` for silence; no frames when the waveform is shorter than a window.

    Raises:
        UsageError: a window or hop that is not above 0, or shorter than one sample.
    """
    _check(waveform, sample_rate)
    (power,) = _k_powers(waveform, sample_rate, [_spans(waveform, sample_rate, window_s, hop_s)])
    return torch.from_numpy(_lufs(power))


def momentary_lufs(waveform: Tensor, sample_rate: int) -> Tensor:
    """Loudness in windows of 400 ms every 100 ms (EBU Tech 3341): float64 `(frames,)` in LUFS; see `frame_lufs`."""
    return frame_lufs(waveform, sample_rate, MOMENTARY_S, HOP_S)


def short_term_lufs(waveform: Tensor, sample_rate: int) -> Tensor:
    """Loudness in windows of 3 s every 100 ms (EBU Tech 3341): float64 `(frames,)` in LUFS; see `frame_lufs`."""
    return frame_lufs(waveform, sample_rate, SHORT_TERM_S, HOP_S)


def loudness_range_lu(waveform: Tensor, sample_rate: int, *, pad_tail: bool = False, windows: str = "ebu") -> float:
    """How far apart loud and quiet passages are, in LU (EBU Tech 3342).

    Short-term loudness, gated at -70 LUFS and at 20 LU below the mean power of what that leaves; the 95th percentile
    minus the 10th, interpolated linearly. Under 30 s the number is unreliable, under 20 s not worth comparing.

    Args:
        pad_tail: append 1.5 s of silence first, as EBU's own code and pyloudnorm do; it widens the range of a short
            waveform that ends loud.
        windows: "ebu" for all windows; "active" for those of which at least 80 % of the 50 ms frames are active (see
            `active_frames`), so that a window half in a singer's pause is not taken for quiet singing. Leakage less
            than 40 dB below the loudest frame still counts as sound.

    ``nan`` when there are fewer than two windows (3.1 s), or none passes the gates.
    """
    _check(waveform, sample_rate)
    if windows not in ("ebu", "active"):
        raise UsageError(f"expected windows 'ebu' or 'active', got {windows!r}")
    if pad_tail:
        waveform = torch.nn.functional.pad(waveform, (0, round(RANGE_TAIL_S * sample_rate)))
    (power,) = _k_powers(waveform, sample_rate, [_spans(waveform, sample_rate, SHORT_TERM_S, HOP_S)])
    if windows == "active" and len(power):
        active = active_frames(waveform, sample_rate).numpy()
        of_window, of_hop = round(SHORT_TERM_S / ACTIVE_FRAME_S), round(HOP_S / ACTIVE_FRAME_S)
        shares = np.lib.stride_tricks.sliding_window_view(active, of_window)[::of_hop].mean(1)
        power = power[shares[: len(power)] >= RANGE_ACTIVE_SHARE]
    return _range(power)


def true_peak_db(waveform: Tensor, sample_rate: int) -> float:
    """The highest peak between the samples too, in dBTP: what a converter or a lossy encoder may have to reproduce.

    BS.1770-4, annex 2: oversampled 4 times, 2 times from 96 kHz, by a windowed sinc with 48 taps a phase (flat within
    0.01 dB up to 0.44 of the sample rate) instead of the standard's 12. A tone at that frequency may still peak 0.5 dB
    higher between the oversampled points, lower ones less. Never below `peak_db`; ``-inf`` for silence.
    """
    _check(waveform, sample_rate)
    return _db(_true_peak(waveform, 2 if sample_rate >= 96000 else 4))


def measure(waveform: Tensor, sample_rate: int) -> Loudness:
    """`integrated_lufs`, `loudness_range_lu`, the highest momentary and short-term loudness, and `true_peak_db`.

    The same numbers, from one pass. The maxima are ``-inf`` when the waveform is shorter than their window.
    """
    _check(waveform, sample_rate)
    spans = [_spans(waveform, sample_rate, window_s, HOP_S) for window_s in (MOMENTARY_S, SHORT_TERM_S)]
    momentary, short_term, whole = _k_powers(waveform, sample_rate, [*spans, _whole(waveform)])
    return Loudness(
        integrated_lufs=_integrated(momentary, whole),
        loudness_range_lu=_range(short_term),
        momentary_max_lufs=float(_lufs(momentary).max(initial=-math.inf)),
        short_term_max_lufs=float(_lufs(short_term).max(initial=-math.inf)),
        true_peak_db=true_peak_db(waveform, sample_rate),
    )


def peak_db(waveform: Tensor) -> float:
    """The largest sample in dBFS; ``-inf`` for silence. See `true_peak_db` for what lies between the samples."""
    return _db(_check(waveform))


def is_silent(waveform: Tensor) -> bool:
    """Whether no sample reaches `SILENT_PEAK`, -100 dBFS."""
    return _check(waveform) < SILENT_PEAK


def rms_db(waveform: Tensor) -> float:
    """Root of the mean square over all channels and samples, in dBFS: a full-scale sine has -3.01 dB."""
    _check(waveform)
    return _db(math.sqrt(_sums(waveform, np.array([0, waveform.shape[1]]), _squares)[0] / waveform.numel()))


def mean_abs_db(waveform: Tensor) -> float:
    """Mean absolute value over all channels and samples, in dBFS: a full-scale sine has -3.92 dB."""
    _check(waveform)
    return _db(_sums(waveform, np.array([0, waveform.shape[1]]), _magnitudes)[0] / waveform.numel())


def active_frames(waveform: Tensor, sample_rate: int) -> Tensor:
    """Which frames of 50 ms sound: RMS over channels above -60 dBFS, and above the loudest frame's minus 40 dB.

    bool `(frames,)`; frames do not overlap, and the last may be shorter: no sample is left out.
    """
    _check(waveform, sample_rate)
    edges = _frame_edges(waveform, sample_rate)
    power = _sums(waveform, edges, _squares) / (waveform.shape[0] * np.diff(edges))
    floor = max(10 ** (ACTIVE_FLOOR_DB / 10), power.max() * 10 ** (-ACTIVE_BELOW_LOUDEST_DB / 10))
    return torch.from_numpy(power > floor)


def active_fraction(waveform: Tensor, sample_rate: int) -> float:
    """Share of `active_frames`, 0 to 1."""
    return active_frames(waveform, sample_rate).double().mean().item()


def active_level_db(waveform: Tensor, sample_rate: int, measure: str = "mean-abs") -> float:
    """Level of what sounds, in dBFS: one number for all channels, over the samples of `active_frames` only.

    Over the whole of a vocal that sings a third of the time, a level would come out 5 to 10 dB lower. `measure` is
    "mean-abs" as in `mean_abs_db`, or "rms" as in `rms_db`. ``-inf`` when no frame is active.
    """
    if measure not in ("mean-abs", "rms"):
        raise UsageError(f"expected measure 'mean-abs' or 'rms', got {measure!r}")
    active = active_frames(waveform, sample_rate).numpy()
    if not active.any():
        return -math.inf
    edges = _frame_edges(waveform, sample_rate)
    sums = _sums(waveform, edges, _squares if measure == "rms" else _magnitudes)[active]
    mean = sums.sum() / (waveform.shape[0] * np.diff(edges)[active].sum())
    return _db(math.sqrt(mean) if measure == "rms" else mean)


def as_stereo(waveform: Tensor) -> Tensor:
    """`(1, samples)` to both channels of `(2, samples)`: +3.01 LU; what has two channels is returned as it is."""
    _check_shape(waveform)
    if waveform.shape[0] > 2:
        raise AudioError(f"expected 1 or 2 channels, got {waveform.shape[0]}; mix them down to stereo first")
    return waveform if waveform.shape[0] == 2 else waveform.repeat(2, 1)


def _check_shape(waveform: Tensor) -> None:
    if not isinstance(waveform, Tensor):
        raise AudioError(f"expected a tensor (channels, samples), got {type(waveform).__name__}; use torch.from_numpy")
    if waveform.ndim != 2:
        raise AudioError(f"expected (channels, samples), got {tuple(waveform.shape)}; from soundfile, pass waveform.T")
    if not waveform.is_floating_point():
        raise AudioError(f"expected a floating point waveform with full scale 1.0, got {waveform.dtype}")
    if not 1 <= waveform.shape[0] <= MOST_CHANNELS:
        raise AudioError(f"expected 1 to {MOST_CHANNELS} channels, got {waveform.shape[0]}; pass (channels, samples)")
    if not waveform.shape[1]:
        raise AudioError("expected at least one sample, got none; there is no level to measure")


def _check_rate(sample_rate: int) -> None:
    if not (sample_rate % 1 == 0 and sample_rate >= LOWEST_RATE_HZ):
        raise AudioError(f"expected a rate in whole Hz, at least {LOWEST_RATE_HZ}, got {sample_rate}; resample first")


def _check(waveform: Tensor, sample_rate: int | None = None) -> float:
    """The largest absolute sample of a waveform that can be measured."""
    _check_shape(waveform)
    if sample_rate is not None:
        _check_rate(sample_rate)
    low, high = (float(extreme) for extreme in torch.aminmax(waveform.detach()))
    if not math.isfinite(low) or not math.isfinite(high):  # aminmax is nan as soon as one sample is
        raise AudioError("the waveform holds NaN or infinity; repair it or leave it out")
    return max(-low, high)


def _db(amplitude: float) -> float:
    return 20 * math.log10(amplitude) if amplitude > 0 else -math.inf


def _lufs(power: np.ndarray) -> np.ndarray:
    loud = np.full(power.shape, -np.inf)
    np.log10(power, out=loud, where=power > 0)
    return OFFSET_LU + 10 * loud


def _squares(block: np.ndarray) -> np.ndarray:
    return np.einsum("cn,cn->n", block, block)


def _magnitudes(block: np.ndarray) -> np.ndarray:
    return np.abs(block).sum(0)


def _spans(waveform: Tensor, sample_rate: int, window_s: float, hop_s: float) -> tuple[np.ndarray, np.ndarray]:
    """First samples and ends of all complete windows.

    Times are rounded to samples one by one: where 100 ms are no whole number of samples, windows do not drift.
    """
    for name, seconds in (("window", window_s), ("hop", hop_s)):
        if not (math.isfinite(seconds) and seconds * sample_rate >= 1):
            raise UsageError(f"expected a {name} of at least one sample, got {seconds} s at {sample_rate} Hz")
    window, hop = (Fraction(seconds).limit_denominator(10**6) * int(sample_rate) for seconds in (window_s, hop_s))
    unit = math.lcm(window.denominator, hop.denominator)
    window_units, hop_units = int(window * unit), int(hop * unit)
    most = max(0, (waveform.shape[1] + 1) * unit - window_units) // hop_units + 1
    firsts = np.arange(most, dtype=np.int64) * hop_units
    starts, ends = ((2 * units + unit) // (2 * unit) for units in (firsts, firsts + window_units))
    complete = ends <= waveform.shape[1]
    return starts[complete], ends[complete]


def _whole(waveform: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return np.array([0]), np.array([waveform.shape[1]])


def _frame_edges(waveform: Tensor, sample_rate: int) -> np.ndarray:
    ends = _spans(waveform, sample_rate, ACTIVE_FRAME_S, ACTIVE_FRAME_S)[1]
    return np.unique(np.concatenate([[0], ends, [waveform.shape[1]]]))


def _planar(waveform: Tensor) -> Tensor:
    """The waveform on the CPU, in a type that numpy knows; not a copy unless it has to be."""
    planar = waveform.detach().to("cpu")
    return planar if planar.dtype in (torch.float32, torch.float64) else planar.float()


def _sums(waveform: Tensor, edges: np.ndarray, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Sums, from each edge to the next (0 to samples), of what `of` makes of float64 blocks (channels, n): (n,)."""
    planar = _planar(waveform).numpy()
    sums = np.zeros(len(edges) - 1)
    for first in range(0, planar.shape[1], _BLOCK):
        values = of(planar[:, first : first + _BLOCK].astype(np.float64))
        last = first + len(values)
        low, high = np.searchsorted(edges, first, "right") - 1, np.searchsorted(edges, last)
        sums[low:high] += np.add.reduceat(values, np.maximum(edges[low:high] - first, 0))
    return sums


def _k_powers(waveform: Tensor, sample_rate: int, spans: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """Weighted sum over channels of the K-weighted mean square, in each of the spans (starts, ends)."""
    from scipy.signal import sosfilt

    sos = k_weighting(sample_rate)
    channels, samples = waveform.shape
    weights = np.array(_WEIGHTS.get(channels, (1.0,) * channels))
    state = np.zeros((len(sos), channels, 2))

    def weighted(block: np.ndarray) -> np.ndarray:
        nonlocal state
        if not state.any() and not block.any():
            return np.zeros(block.shape[1])
        filtered, state = sosfilt(sos, block, zi=state)
        state[np.abs(state) < _DENORMAL] = 0.0
        return np.einsum("c,cn,cn->n", weights, filtered, filtered)

    edges = np.unique(np.concatenate([[0, samples], *(np.concatenate(span) for span in spans)]))
    energies = np.append(_sums(waveform, edges, weighted), 0.0)
    powers = []
    for starts, ends in spans:
        pairs = np.searchsorted(edges, np.stack([starts, ends], 1)).ravel()
        energy = np.add.reduceat(energies, pairs)[::2] if len(pairs) else np.zeros(0)
        powers.append(energy / (ends - starts))
    return powers


def _integrated(power: np.ndarray, whole: np.ndarray) -> float:
    """Gated loudness of windows with these powers; without a complete window, the loudness of the whole."""
    if not len(power):
        return float(_lufs(whole)[0])
    kept = _gated(power, RELATIVE_GATE_LU)
    return float(_lufs(power[kept].mean())) if kept.any() else -math.inf


def _range(power: np.ndarray) -> float:
    kept = _gated(power, RANGE_GATE_LU)
    if len(power) < 2 or not kept.any():
        return math.nan
    low, high = np.percentile(_lufs(power[kept]), RANGE_PERCENTILES)
    return float(high - low)


def _gated(power: np.ndarray, relative_lu: float) -> np.ndarray:
    """Which windows pass the absolute gate, and then the one relative to the mean power of those that did."""
    loud = _lufs(power)
    kept = loud >= ABSOLUTE_GATE_LUFS
    if kept.any():
        kept &= loud > _lufs(power[kept].mean()) + relative_lu
    return kept


_HALF = 24  # samples on each side that a point between two is made of
_ROWS = 2048  # rows of 2 * _HALF samples at a time


def _between(factor: int) -> np.ndarray:
    """Matrix from ``4 * _HALF`` samples to the points after the samples `_HALF` - 1 to ``3 * _HALF`` - 2 of them."""
    target = (_HALF - 1 + np.arange(2 * _HALF))[:, None] + np.arange(1, factor) / factor
    distance = target.reshape(1, -1) - np.arange(4 * _HALF)[:, None]
    inside = np.maximum(0.0, 1 - (distance / _HALF) ** 2)
    taps = np.sinc(distance) * np.i0(8.0 * np.sqrt(inside)) * (inside > 0)  # Kaiser window, side lobes at -80 dB
    return taps / taps.sum(0)


def _true_peak(waveform: Tensor, factor: int) -> float:
    """Largest absolute value of the waveform oversampled `factor` times, silence around it.

    No point between samples is higher than the samples it is made of times the sum of its taps. So the waveform is
    gone through from its highest rows downwards, and left where no row can have a higher point than what was found.
    """
    between = _between(factor)
    most = float(np.abs(between).sum(0).max())
    row = 2 * _HALF
    channels, samples = waveform.shape
    padded = torch.nn.functional.pad(_planar(waveform), (row, row + -samples % row)).reshape(channels, -1, row)
    lowest, highest = torch.aminmax(padded, dim=-1)
    peaks = torch.maximum(-lowest, highest)
    peak = float(peaks.max())
    bounds = (torch.maximum(peaks[:, 1:], peaks[:, :-1]) * most).flatten()
    order = bounds.argsort(descending=True)
    starts = (order + order // (padded.shape[1] - 1)).numpy()  # every channel has one pair of rows less than rows
    falling = bounds[order].numpy()
    rows = padded.reshape(-1, row).numpy()
    for first in range(0, len(starts), _ROWS):
        if falling[first] <= peak:
            break
        chosen = starts[first : first + _ROWS]
        pairs = np.concatenate([rows[chosen], rows[chosen + 1]], 1).astype(np.float64)
        peak = max(peak, float(np.abs(pairs @ between).max()))
    return peak
