"""Which octave bands of a vocal and its backing hide each other, and how far to move them.

A track's bands are ranked by level, and its strongest ones are *essential* to it. Where the vocal is stronger than the
backing in a band that is essential to the backing but not to itself, it gives way; where the backing hides a band that
is essential to the vocal but not to the backing, the vocal is lifted. Bands essential to both are left alone, unless
the backing may be touched, too.

Source: the masking measure of S. Hafezi, J. D. Reiss, "Autonomous multitrack equalization based on masking reduction",
JAES 63 (2015), for two tracks and nine octaves. How much of the excess is corrected is common practice: half of it,
cuts deeper than boosts (`umx_ext.mixing.settings.Settings`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from umx_ext import levels
from umx_ext.mixing.effects import Band, ParametricEq
from umx_ext.mixing.reverb import CENTRES_HZ
from umx_ext.mixing.settings import Settings

__all__ = ["Equalisation", "bands", "equalise", "moves"]

TOP = 0.45  # of the sample rate: above it, decoders and converters leave nothing to measure
Q = math.sqrt(2)  # an octave wide
N_FFT, HOP = 4096, 1024  # at 44.1 kHz
_CHUNK = 64  # frames transformed at a time

Gains = tuple[float, ...]


@dataclass(frozen=True)
class Equalisation:
    """What was measured in each octave band, and what was decided. Tuples have one value a band, lowest first.

    Attributes:
        reason: why the bands stay as they are; "" where some were moved.
        centres_hz: where the filters stand; see `bands`.
        vocal_db, backing_db: level of the band in the frames in which the vocal sounds, relative to the track's own
            loudness: as if both tracks had the same.
        vocal_rank, backing_rank: 1 is the track's strongest band.
        vocal_gain_db, backing_gain_db: the moves, 0 for none.
    """

    reason: str
    centres_hz: Gains = ()
    vocal_db: Gains = ()
    backing_db: Gains = ()
    vocal_rank: tuple[int, ...] = ()
    backing_rank: tuple[int, ...] = ()
    vocal_gain_db: Gains = ()
    backing_gain_db: Gains = ()

    def filters(self, track: str) -> tuple[ParametricEq, ...]:
        """The equaliser of "vocals" or "accompaniment"; none where nothing moves."""
        gains = self.vocal_gain_db if track == "vocals" else self.backing_gain_db
        moved = tuple(Band(hz, gain, Q) for hz, gain in zip(self.centres_hz, gains, strict=True) if gain)
        return (ParametricEq(moved),) if moved else ()


def bands(sample_rate: int) -> list[tuple[float, float, float]]:
    """``(low_hz, centre_hz, high_hz)`` of the octaves around 63 Hz to 16 kHz that the sample rate carries.

    Nothing above 0.45 times the rate counts. An octave that this cuts off below its centre has its filter in the
    (geometric) middle of what is left.
    """
    top = TOP * sample_rate
    found = []
    for centre in CENTRES_HZ:
        low, high = centre / math.sqrt(2), min(centre * math.sqrt(2), top)
        if low < top:
            found.append((low, centre if centre < top else round(math.sqrt(low * high), 1), high))
    return found


def equalise(
    vocals: Tensor, backing: Tensor, sample_rate: int, settings: Settings, backing_lufs: float | None = None
) -> Equalisation:
    """Measure both tracks and decide on the moves.

    Args:
        vocals, backing: `(channels, samples)` each, full scale 1.0, the peak not far below it: levels are gated.
        sample_rate: Hz.
        settings: see `umx_ext.mixing.settings.Settings`.
        backing_lufs: the backing's integrated loudness where it is known; its peak may then be anywhere.
    """
    if levels.is_silent(vocals) or levels.is_silent(backing):
        return Equalisation("silence has no bands to move")
    vocal_lufs = levels.integrated_lufs(vocals, sample_rate)
    if backing_lufs is None:
        backing_lufs = levels.integrated_lufs(backing, sample_rate)
    if not (math.isfinite(vocal_lufs) and math.isfinite(backing_lufs)):
        return Equalisation("too little sound to have a loudness")
    active = levels.active_frames(vocals, sample_rate)
    vocal_db = band_levels_db(vocals, sample_rate, active) - vocal_lufs
    backing_db = band_levels_db(backing, sample_rate, active) - backing_lufs
    vocal_gains, backing_gains = moves(vocal_db, backing_db, settings)
    return Equalisation(
        reason="" if any(vocal_gains) or any(backing_gains) else "no band of one hides an essential one of the other",
        centres_hz=tuple(centre for _, centre, _ in bands(sample_rate)),
        vocal_db=_rounded(vocal_db),
        backing_db=_rounded(backing_db),
        vocal_rank=tuple(int(rank) for rank in ranks(vocal_db)),
        backing_rank=tuple(int(rank) for rank in ranks(backing_db)),
        vocal_gain_db=vocal_gains,
        backing_gain_db=backing_gains,
    )


def moves(
    vocal_db: Sequence[float] | np.ndarray, backing_db: Sequence[float] | np.ndarray, settings: Settings
) -> tuple[Gains, Gains]:
    """The gains in dB of the vocal's bands, and of the backing's, from the levels of both at equal loudness."""
    vocal_db, backing_db = np.asarray(vocal_db, dtype=float), np.asarray(backing_db, dtype=float)
    over_db = vocal_db - backing_db
    threshold = settings.rank_threshold
    to_vocal, to_backing = ranks(vocal_db) <= threshold, ranks(backing_db) <= threshold

    gains = np.zeros(len(over_db))
    hides = to_backing & ~to_vocal & (over_db > 0)
    gains[hides] = -np.minimum(settings.most_cut_db, settings.cut_share * over_db[hides])
    hidden = to_vocal & ~to_backing & (over_db < 0)
    gains[hidden] = np.minimum(settings.most_boost_db, settings.boost_share * -over_db[hidden])

    backing_gains = np.zeros(len(over_db))
    if settings.target == "both":
        shared = to_vocal & to_backing & (-over_db > settings.backing_least_db)
        backing_gains[shared] = -np.minimum(
            settings.backing_most_cut_db, settings.backing_cut_share * -over_db[shared]
        )
    return _largest(gains, settings), _largest(backing_gains, settings)


def ranks(levels_db: np.ndarray) -> np.ndarray:
    """1 for the strongest band; of equal ones the lower frequency comes first."""
    order = np.argsort(-levels_db, kind="stable")
    places = np.empty(len(order), dtype=int)
    places[order] = np.arange(1, len(order) + 1)
    return places


def _largest(gains: np.ndarray, settings: Settings) -> Gains:
    kept = ranks(np.abs(gains)) <= settings.most_moves
    return _rounded(np.where(kept & (np.abs(gains) >= settings.least_db), gains, 0.0))


def _rounded(values: np.ndarray) -> Gains:
    return tuple(round(float(value), 2) + 0.0 for value in values)  # not -0.0


def band_levels_db(waveform: Tensor, sample_rate: int, active: Tensor) -> np.ndarray:
    """Mean power in each of the `bands`, in dB, over the transform's frames that are centred in an active one.

    Args:
        waveform: `(channels, samples)`.
        sample_rate: Hz.
        active: bool, one a 50-ms frame (`umx_ext.levels.active_frames`).
    """
    from scipy.fft import rfft

    scale = 2 ** round(math.log2(sample_rate / 44100))  # a window of about 93 ms at every rate
    n_fft, hop = int(N_FFT * scale), int(HOP * scale)
    window = np.hanning(n_fft + 1)[:-1].astype(np.float32)
    frames = waveform.shape[1] // hop + 1
    middle_s = np.arange(frames) * hop / sample_rate
    place = np.minimum((middle_s / levels.ACTIVE_FRAME_S).astype(int), len(active) - 1)
    wanted = np.flatnonzero(active.numpy()[place])

    # Not torch's transform: many small ones on few threads wait for each other where the machine has other work.
    power = np.zeros(n_fft // 2 + 1)
    for channel in waveform.detach().cpu().numpy():
        padded = np.pad(channel, (n_fft // 2, n_fft))
        cut = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]  # (frames, n_fft), a view
        for first in range(0, len(wanted), _CHUNK):
            spectrum = rfft(cut[wanted[first : first + _CHUNK]] * window)
            power += np.einsum("fb,fb->b", spectrum.real, spectrum.real)
            power += np.einsum("fb,fb->b", spectrum.imag, spectrum.imag)

    frequency_hz = np.fft.rfftfreq(n_fft, 1 / sample_rate)
    spectrum = 2 * power / max(1, len(wanted) * waveform.shape[0]) / (float(np.square(window).sum()) * n_fft)
    inside = [(low <= frequency_hz) & (frequency_hz < high) for low, _, high in bands(sample_rate)]
    return 10 * np.log10(np.maximum([spectrum[band].sum() for band in inside], 1e-30))
