"""The tempo of a song, and the reverberation that suits it.

librosa's estimate is used where librosa is installed (the extra `research`), otherwise one of our own of the same kind:
the autocorrelation of an onset curve, weighted towards 120 beats a minute (D. Ellis, "Beat tracking by dynamic
programming", Journal of New Music Research 36, 2007).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from umx_ext import levels
from umx_ext.mixing.reverb import Reverb
from umx_ext.mixing.settings import Settings
from umx_ext.resampling import resample

__all__ = ["Reverberation", "fold_bpm", "reverberate", "t60_for", "tempo", "tempo_bpm"]

FALLBACK_BPM = 120.0
SHORTEST_S = 5.0
LOWEST_BPM, HIGHEST_BPM = 60.0, 180.0
RATE, N_FFT, HOP = 22050, 2048, 512
LONGEST_LAG_S = 4.0
PRIOR_OCTAVES = 1.0  # standard deviation of the preference for 120 beats a minute
FLAT = 0.03  # nepers: white noise moves by 0.017, records by 0.05 and more
EDGE_FRAMES = 5  # a track that starts or ends at once has an onset there, which is no beat
_CHUNK = 64  # frames transformed at a time


@dataclass(frozen=True)
class Reverberation:
    """What was measured and decided.

    Attributes:
        bypassed: whether the vocal stays dry; `reason` says why.
        bpm: tempo, folded into 60 to 180 beats a minute; `bpm_from` is "given", "librosa", "onsets" or "fallback".
        t60_s: reverberation time at middle frequencies.
        dry_wet: share of the reverberation, 0 to 1.
        wet_lu: loudness of that share relative to the share of dry vocal.
    """

    bypassed: bool
    reason: str
    bpm: float | None = None
    bpm_from: str | None = None
    t60_s: float | None = None
    dry_wet: float | None = None
    wet_lu: float | None = None


def tempo_bpm(waveform: Tensor, sample_rate: int) -> float:
    """Beats a minute, 60 to 180 (tempi beyond are doubled or halved); 120 where there is nothing to count.

    Args:
        waveform: `(channels, samples)`; at least 5 s, or 120 is the answer.
        sample_rate: Hz.
    """
    return tempo(waveform, sample_rate)[0]


def tempo(waveform: Tensor, sample_rate: int) -> tuple[float, str]:
    """`tempo_bpm`, and where it comes from: "librosa", "onsets" (our own), or "fallback"."""
    if waveform.shape[1] < SHORTEST_S * sample_rate or levels.is_silent(waveform):
        return FALLBACK_BPM, "fallback"
    mono = resample(waveform.mean(dim=0, keepdim=True), sample_rate, RATE)[0]
    peak = float(mono.abs().max())
    if peak < levels.SILENT_PEAK:  # the channels cancel
        return FALLBACK_BPM, "fallback"
    onsets = onset_curve(mono / peak)
    if float(onsets[EDGE_FRAMES:-EDGE_FRAMES].std()) < FLAT:
        return FALLBACK_BPM, "fallback"
    try:
        from librosa.feature import tempo as librosa_tempo
        from librosa.onset import onset_strength
    except ImportError:
        found, source = autocorrelation_bpm(onsets), "onsets"
    else:
        # What librosa.beat.beat_track starts from, without its compiled tracker of the beats themselves.
        strength = onset_strength(y=(mono / peak).numpy(), sr=RATE, hop_length=HOP, aggregate=np.median)
        found, source = float(librosa_tempo(onset_envelope=strength, sr=RATE, hop_length=HOP)[0]), "librosa"
    if not (math.isfinite(found) and found > 0):
        return FALLBACK_BPM, "fallback"
    return round(fold_bpm(found), 2), source


def fold_bpm(bpm: float) -> float:
    """Doubled or halved into 60 (included) to 180 (excluded) beats a minute."""
    while bpm < LOWEST_BPM:
        bpm *= 2
    while bpm >= HIGHEST_BPM:
        bpm /= 2
    return bpm


def onset_curve(mono: Tensor) -> np.ndarray:
    """How much louder the spectrum gets from frame to frame: mean rise of the log magnitude. `(frames,)`, 43 a second.

    Args:
        mono: `(samples,)` at 22050 Hz, peak 1.0.
    """
    from scipy.fft import rfft

    window = np.hanning(N_FFT + 1)[:-1].astype(np.float32)
    padded = np.pad(mono.numpy(), (N_FFT // 2, N_FFT))
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
    before, rises = None, []
    for first in range(0, len(frames), _CHUNK):
        level = np.log(np.abs(rfft(frames[first : first + _CHUNK] * window)) + 1e-2)  # (frames, bins)
        before = level[:1] if before is None else before
        rises.append(np.maximum(np.diff(level, axis=0, prepend=before), 0).mean(1))
        before = level[-1:]
    return np.concatenate(rises).astype(np.float64)


def autocorrelation_bpm(onsets: np.ndarray) -> float:
    """The period after which an onset curve looks most like itself, with a preference for 120 beats a minute."""
    centred = onsets - onsets.mean()
    size = 1 << (2 * len(centred) - 1).bit_length()
    spectrum = np.fft.rfft(centred, size)
    similarity = np.fft.irfft(np.abs(spectrum) ** 2, size)[: len(centred)]
    lags = np.arange(1, min(len(centred) - 1, round(LONGEST_LAG_S * RATE / HOP)))
    likeness = similarity[lags] / (len(centred) - lags)  # as many products in each mean as there are
    bpm = 60 * RATE / HOP / lags
    weight = np.exp(-0.5 * (np.log2(bpm / FALLBACK_BPM) / PRIOR_OCTAVES) ** 2)
    best = int(np.argmax(likeness * weight))
    if 0 < best < len(lags) - 1:  # a parabola through the neighbours: 43 frames a second are coarse
        left, middle, right = likeness[best - 1 : best + 2]
        bend = left - 2 * middle + right
        shift = 0.5 * (left - right) / bend if bend < 0 else 0.0
        return 60 * RATE / HOP / (lags[best] + float(np.clip(shift, -0.5, 0.5)))
    return float(bpm[best])


def t60_for(bpm: float, settings: Settings) -> float:
    """Reverberation time in s: linear in the tempo from `slow_t60_s` at 60 to `fast_t60_s` at 180, constant beyond."""
    share = (min(max(bpm, LOWEST_BPM), HIGHEST_BPM) - LOWEST_BPM) / (HIGHEST_BPM - LOWEST_BPM)
    return round(settings.slow_t60_s + share * (settings.fast_t60_s - settings.slow_t60_s), 3)


def reverberate(
    vocals: Tensor, backing: Tensor, sample_rate: int, settings: Settings
) -> tuple[Reverb | None, Tensor, Reverberation]:
    """Decide on the reverberation of a vocal: its time from the tempo, its amount from loudness.

    Args:
        vocals: `(2, samples)`, the peak not far below full scale: levels are gated.
        backing: `(channels, samples)`, whose tempo counts when the settings give none.
        sample_rate: Hz.
        settings: see `umx_ext.mixing.settings.Settings`.

    Returns:
        The reverb (None where there is none), the vocal with it, and what was measured.
    """
    dry_lufs = levels.integrated_lufs(vocals, sample_rate)
    bpm, source = (settings.bpm, "given") if settings.bpm is not None else tempo(backing, sample_rate)
    t60_s = t60_for(bpm, settings)
    fields = (
        "room_size", "fade_in_s", "low_cut_hz", "low_gain_db_per_s", "low_q",
        "high_cut_hz", "high_gain_db_per_s", "high_q", "engine", "seed",
    )  # fmt: skip
    shape = {name: getattr(settings, name) for name in fields}
    wet = Reverb(t60_s=t60_s, dry_wet=1.0, **shape)(vocals, sample_rate)
    ring_lu = levels.integrated_lufs(wet, sample_rate) - dry_lufs
    if not math.isfinite(ring_lu):
        return None, vocals, Reverberation(True, "too short or too quiet to ring", bpm, source, t60_s)
    ratio = 10 ** ((settings.reverb_lu - ring_lu) / 20)
    reverb = Reverb(t60_s=t60_s, dry_wet=round(ratio / (1 + ratio), 5), **shape)
    share = reverb.dry_wet
    if not 0 < share < 1:
        return None, vocals, Reverberation(True, "so little reverberation is none", bpm, source, t60_s)
    wet.mul_(share).add_(vocals, alpha=1 - share)  # as the reverb does it, without ringing twice
    wet_lu = ring_lu + 20 * math.log10(share / (1 - share))
    return reverb, wet, Reverberation(False, "", bpm, source, t60_s, share, wet_lu)
