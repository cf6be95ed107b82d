"""Find the compressor that brings a take's loudness range down to a target.

Trying one means: compress the take and measure it. Neither needs the samples again. A compressor's gain moves slowly
(an attack of some ms), so the take is reduced once to blocks of 1.6 ms with their levels and their K-weighted energy;
the compressor runs on the levels, and its gain scales the energies. What is found is then rendered and measured for
certain.

The loudness range does not always fall with the threshold: a lower one lifts breaths and bleed over the meter's
relative gate, which widens the range. Hence a grid of thresholds first, and a bisection where the target is crossed.

The compressor: D. Giannoulis, M. Massberg, J. Reiss, JAES 60 (2012), see `umx_ext.mixing.dynamics`. Loudness range:
EBU Tech 3342, see `umx_ext.levels`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from umx_ext import levels
from umx_ext.mixing.dynamics import FLOOR, Compressor, excess_db, leaking_maximum, pole
from umx_ext.mixing.settings import Settings

__all__ = ["Compression", "Take", "compress", "loudest"]

BLOCKS_PER_S = 640  # 1.6 ms, and whole numbers of blocks in 50 ms, 100 ms and 3 s
QUANTILES = 8
PEAK_OVER_LOUDNESS_DB = 3.0
STEP_DB, STEPS = 3.0, 11
FINEST_DB, BISECTIONS = 0.25, 6
_CHUNK = 1 << 18  # samples at a time


@dataclass(frozen=True)
class Compression:
    """What was measured and decided.

    Attributes:
        bypassed: whether the take stays as it is; `reason` says why.
        converged: whether the search came within the tolerance of the target.
        lra_before_lu, lra_after_lu: loudness range of the whole take (`domain` as in the settings), nan where it has
            none.
        searched_s: how much of the take, its loudest stretch, the search looked at.
        lra_searched_lu: loudness range of that stretch with the compressor.
        threshold_db, ratio, makeup_db: the compressor's, None without one. The threshold is relative to full scale for
            a take whose peak is -1 dBFS.
        most_reduction_db: how far the gain goes down at most in that stretch.
        singing_reduction_db: and on average, where it is sung in.
    """

    bypassed: bool
    reason: str
    target_lu: float
    domain: str
    lra_before_lu: float = math.nan
    lra_after_lu: float = math.nan
    converged: bool | None = None
    searched_s: float | None = None
    lra_searched_lu: float | None = None
    threshold_db: float | None = None
    ratio: float | None = None
    makeup_db: float | None = None
    most_reduction_db: float | None = None
    singing_reduction_db: float | None = None


@dataclass(frozen=True)
class Take:
    """A take as a compressor and a loudness meter see it: blocks of 1/640 s.

    Attributes:
        level_db: `(blocks, 8)`, level of the louder channel's samples in dBFS: eight quantiles of the block, rising.
        peak_db: the block's largest sample.
        k_power: K-weighted mean square, summed over the channels.
        power: mean square over samples and channels.
    """

    level_db: np.ndarray
    peak_db: np.ndarray
    k_power: np.ndarray
    power: np.ndarray

    @classmethod
    def of(cls, waveform: Tensor, sample_rate: int) -> Take:
        """Reduce `(channels, samples)`; a rest shorter than a block is left out."""
        k_power = _k_power(waveform, sample_rate, BLOCKS_PER_S)
        count = len(k_power)
        edges = (2 * np.arange(count + 1) * int(sample_rate) + BLOCKS_PER_S) // (2 * BLOCKS_PER_S)
        quantiles, peaks, power = np.zeros((count, QUANTILES)), np.zeros(count), np.zeros(count)
        per_chunk = max(1, _CHUNK * BLOCKS_PER_S // int(sample_rate))
        for first in range(0, count, per_chunk):
            part = slice(first, min(count, first + per_chunk))
            samples = waveform[:, edges[part.start] : edges[part.stop]].detach().cpu().double().numpy()
            starts, lengths = edges[part] - edges[first], np.diff(edges[first : part.stop + 1])
            power[part] = np.add.reduceat(np.square(samples).mean(0), starts) / lengths
            loudest = np.abs(samples).max(0)
            # Blocks differ in length by a sample; what is missing is infinite, and sorted to the end.
            place = starts[:, None] + np.arange(lengths.max())
            rows = np.where(place < (starts + lengths)[:, None], loudest[np.minimum(place, len(loudest) - 1)], np.inf)
            rows.sort(axis=1)
            middles = ((np.arange(QUANTILES) + 0.5) / QUANTILES * lengths[:, None]).astype(int)
            quantiles[part] = np.take_along_axis(rows, middles, 1)
            peaks[part] = np.take_along_axis(rows, lengths[:, None] - 1, 1)[:, 0]
        quantiles, peaks = (20 * np.log10(np.maximum(values, FLOOR)) for values in (quantiles, peaks))
        return cls(quantiles, peaks, k_power, power)

    @property
    def duration_s(self) -> float:
        return len(self.peak_db) / BLOCKS_PER_S

    def reduction_db(self, compressor: Compressor) -> np.ndarray:
        """How far the compressor turns each block down: the recursion of `umx_ext.mixing.dynamics`, block by block.

        The release follows the mean of what exceeds the threshold, the peaks hold it up. The block's peak for both
        would be up to 4 dB too much.
        """
        from scipy.signal import lfilter

        release, attack = (pole(ms, BLOCKS_PER_S) for ms in (compressor.release_ms, compressor.attack_ms))
        excess = excess_db(self.level_db - compressor.threshold_db, compressor.ratio, compressor.knee_db).mean(1)
        peaks = excess_db(self.peak_db - compressor.threshold_db, compressor.ratio, compressor.knee_db)
        if release > 1e-40:
            linear = lfilter([1 - release], [1, -release], excess)
            peaks = linear + leaking_maximum(peaks - linear, release)
        return lfilter([1 - attack], [1, -attack], peaks)

    def compressed(self, compressor: Compressor) -> Take:
        """As the compressor would leave it, for the meter; its makeup is added to everything."""
        gain_db = compressor.makeup_db - self.reduction_db(compressor)
        gain = 10 ** (gain_db / 10)
        return Take(self.level_db, self.peak_db + gain_db, self.k_power * gain, self.power * gain)

    def short_term_lufs(self) -> np.ndarray:
        """Loudness in windows of 3 s every 100 ms, ``-inf`` for silence."""
        windows = _sliding(self.k_power, round(levels.SHORT_TERM_S * BLOCKS_PER_S), BLOCKS_PER_S // 10)
        with np.errstate(divide="ignore"):
            return levels.OFFSET_LU + 10 * np.log10(windows)

    def active(self) -> np.ndarray:
        """Which frames of 50 ms are sung in, by the rule of `umx_ext.levels.active_frames`."""
        frames = _hops(self.power, round(levels.ACTIVE_FRAME_S * BLOCKS_PER_S))
        if not len(frames):
            return np.zeros(0, bool)
        floor_db = levels.ACTIVE_FLOOR_DB
        return frames > max(10 ** (floor_db / 10), frames.max() * 10 ** (-levels.ACTIVE_BELOW_LOUDEST_DB / 10))

    def singing_reduction_db(self, compressor: Compressor) -> float:
        """How far the compressor turns down what is sung, mean over active frames; 0 where nothing is."""
        active = self.active()
        if not active.any():
            return 0.0
        return float(_hops(self.reduction_db(compressor), round(levels.ACTIVE_FRAME_S * BLOCKS_PER_S))[active].mean())

    def loudness_range_lu(self, domain: str) -> float:
        """As `umx_ext.levels.loudness_range_lu`, with its "ebu" or "active" windows."""
        loudness = self.short_term_lufs()
        if domain == "active" and len(loudness):
            shares = _sliding(self.active().astype(float), round(levels.SHORT_TERM_S / levels.ACTIVE_FRAME_S), 2)
            # Means of ones and zeros by running sums miss the share of exactly 80 % by a rounding error.
            loudness = loudness[shares >= levels.RANGE_ACTIVE_SHARE - 1e-9]
        kept = loudness[loudness >= levels.ABSOLUTE_GATE_LUFS]
        if len(loudness) < 2 or not len(kept):
            return math.nan
        kept = kept[kept > 10 * np.log10(np.mean(10 ** (kept / 10))) + levels.RANGE_GATE_LU]
        low, high = np.percentile(kept, levels.RANGE_PERCENTILES)
        return float(high - low)


def _sliding(values: np.ndarray, length: int, hop: int) -> np.ndarray:
    """Means of `length` values, one every `hop`; none when there are fewer."""
    if len(values) < length:
        return np.zeros(0)
    # Sums of whole hops first: a running sum over everything would lose quiet passages beside loud ones.
    return np.lib.stride_tricks.sliding_window_view(_hops(values, hop), length // hop).mean(1)


def _hops(values: np.ndarray, hop: int) -> np.ndarray:
    return values[: len(values) // hop * hop].reshape(-1, hop).mean(1)


def _k_power(waveform: Tensor, sample_rate: int, per_s: int) -> np.ndarray:
    loudness = levels.frame_lufs(waveform, sample_rate, 1 / per_s, 1 / per_s).numpy()
    return 10 ** ((loudness - levels.OFFSET_LU) / 10)


def loudest(waveform: Tensor, sample_rate: int, seconds: float) -> slice:
    """The samples of the stretch of so many seconds (a multiple of 0.1) with the most K-weighted energy."""
    tenths = round(10 * seconds)
    if waveform.shape[1] <= seconds * sample_rate:
        return slice(None)
    energy = _sliding(_k_power(waveform, sample_rate, 10), tenths, 1)
    first = round(int(energy.argmax()) * sample_rate / 10)
    return slice(first, first + round(tenths * sample_rate / 10))


def compress(waveform: Tensor, sample_rate: int, settings: Settings) -> tuple[Compressor | None, Compression]:
    """Decide on a compressor for a take.

    Args:
        waveform: `(channels, samples)`, the peak not far below full scale: levels are gated.
        sample_rate: Hz.
        settings: see `umx_ext.mixing.settings.Settings`.

    Returns:
        The compressor, None where the take stays as it is, and what was measured. Its makeup restores the take's
        integrated loudness.
    """
    target, domain = settings.lra_target_lu, settings.lra_domain
    before = levels.loudness_range_lu(waveform, sample_rate, windows=domain)

    def bypass(reason: str) -> tuple[None, Compression]:
        return None, Compression(True, reason, target, domain, before, before)

    if math.isnan(before):
        return bypass("too short or too quiet to have a loudness range")
    if waveform.shape[1] < settings.least_take_s * sample_rate:
        return bypass(f"shorter than {settings.least_take_s:g} s: its loudness range says little")
    if before <= target + settings.lra_tolerance_lu:
        return bypass("its loudness range is not above the target")
    where = slice(None) if settings.search_s is None else loudest(waveform, sample_rate, settings.search_s)
    part = Take.of(waveform[:, where], sample_rate)
    found = _search(part, settings)
    if found is None:
        return bypass(f"the loudest {part.duration_s:.0f} s have no loudness range above the target")
    compressor, reached = found
    lufs = levels.integrated_lufs(waveform, sample_rate)
    squeezed = compressor(waveform, sample_rate)
    compressor = replace(compressor, makeup_db=round(lufs - levels.integrated_lufs(squeezed, sample_rate), 3))
    squeezed.mul_(10 ** (compressor.makeup_db / 20))
    return compressor, Compression(
        bypassed=False,
        reason="",
        target_lu=target,
        domain=domain,
        lra_before_lu=before,
        lra_after_lu=levels.loudness_range_lu(squeezed, sample_rate, windows=domain),
        converged=abs(reached - target) <= settings.lra_tolerance_lu,
        searched_s=round(part.duration_s, 3),
        lra_searched_lu=reached,
        threshold_db=compressor.threshold_db,
        ratio=compressor.ratio,
        makeup_db=compressor.makeup_db,
        most_reduction_db=float(part.reduction_db(compressor).max()),
        singing_reduction_db=part.singing_reduction_db(compressor),
    )


def _search(take: Take, settings: Settings) -> tuple[Compressor, float] | None:
    """The compressor whose loudness range comes nearest to the target, and that range; None if none is needed.

    Not considered is what turns the singing down too far. An idle one never does, so one is always left.
    """
    target, tolerance = settings.lra_target_lu, settings.lra_tolerance_lu
    before = take.loudness_range_lu(settings.lra_domain)
    if math.isnan(before) or before <= target + tolerance:
        return None
    loudness = take.short_term_lufs()
    top = float(np.percentile(loudness[loudness >= levels.ABSOLUTE_GATE_LUFS], 95)) + PEAK_OVER_LOUDNESS_DB
    grid = [round(top - STEP_DB * step, 2) for step in range(STEPS)]

    # Above all peaks a compressor does nothing. The target may be crossed between there and the grid.
    idle = round(max(grid[0] + STEP_DB, float(take.peak_db.max()) + settings.knee_db / 2), 2)

    best: tuple[float, float, Compressor, float] | None = None
    for ratio in settings.ratios:
        tried: dict[float, float] = {}

        def lra_lu(threshold_db: float, ratio: float = ratio, tried: dict[float, float] = tried) -> float:
            if threshold_db not in tried:
                squeezed = take.compressed(_compressor(threshold_db, ratio, settings))
                # Makeup, so that the absolute gates see the level that will be heard.
                lift = 10 ** ((_mean_lufs(take) - _mean_lufs(squeezed)) / 10)
                squeezed = replace(squeezed, k_power=squeezed.k_power * lift, power=squeezed.power * lift)
                tried[threshold_db] = squeezed.loudness_range_lu(settings.lra_domain)
            return tried[threshold_db]

        _bisect(lra_lu, [idle, *grid], target)
        for threshold_db, reached in tried.items():  # the idle one first
            miss = abs(reached - target) if math.isfinite(reached) else math.inf
            compressor = _compressor(threshold_db, ratio, settings)
            if best is not None and (miss, -threshold_db) >= best[:2]:
                continue
            if best is None or take.singing_reduction_db(compressor) <= settings.singing_reduction_db:
                best = miss, -threshold_db, compressor, reached
        assert best is not None
        if best[0] <= tolerance:
            break
    assert best is not None
    return best[2], best[3]


def _bisect(lra_lu: Callable[[float], float], thresholds: list[float], target: float) -> None:
    """Evaluate the thresholds, falling, and go to where the range first crosses the target."""
    ranges = [lra_lu(threshold) for threshold in thresholds]
    for place in range(len(thresholds) - 1):
        if ranges[place] > target >= ranges[place + 1]:
            high, low = thresholds[place], thresholds[place + 1]
            break
    else:
        return
    for _ in range(BISECTIONS):
        if high - low <= FINEST_DB:
            return
        middle = round((high + low) / 2, 2)
        if lra_lu(middle) > target:
            high = middle
        else:
            low = middle


def _compressor(threshold_db: float, ratio: float, settings: Settings) -> Compressor:
    return Compressor(threshold_db, ratio, settings.attack_ms, settings.release_ms, settings.knee_db)


def _mean_lufs(take: Take) -> float:
    """Loudness of the short-term windows that pass the absolute gate: what makeup restores, nearly."""
    windows = 10 ** (take.short_term_lufs() / 10)
    kept = windows[windows >= 10 ** (levels.ABSOLUTE_GATE_LUFS / 10)]
    return 10 * math.log10(kept.mean()) if len(kept) else levels.ABSOLUTE_GATE_LUFS
