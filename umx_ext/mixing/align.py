"""Where a vocal take belongs in its song: its shift against the song's own vocals.

Two steps. The first needs the same song, not the same singer: spectrograms of 10 ms frames and 24 bands, each band
with its level and its onsets, are correlated over all shifts. The second sharpens that where both are one performance
(a take cut out of the song, a remaster, the song played back into a microphone): the smoothed coherence transform, a
cross-correlation in which every frequency counts by the coherence that it has, in the 60 ms around the first answer.

Source of the second: C. H. Knapp, G. C. Carter, "The generalized correlation method for estimation of time delay",
IEEE Trans. ASSP 24 (1976).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from umx_ext.errors import AudioError, UsageError
from umx_ext.levels import LOWEST_RATE_HZ, is_silent

__all__ = ["SURE", "offset_s"]

# Confidence from which on a shift is worth following. On clips of 8 s of amateur singers, 57 of 60 performances that
# were made over (a tone higher, timing 40 ms to and fro) have more, and all 60 are found; 3 of 59 other songs do.
SURE = 0.4

HOP_S = 0.01
WINDOW_S = 0.04
BANDS = 24
LOWEST_HZ, HIGHEST_HZ = 120.0, 7000.0
FLOOR = 1e-5  # 50 dB below the loudest band and frame nothing counts
ONSET_FRAMES = 3
NEIGHBOURS_S = 0.25  # shifts this near to the best are the best one's own flanks
CHUNK = 1024  # frames analysed at a time

FINE_S = 0.03  # how far from the first answer the second looks
FINE_WINDOW_S = 0.4
PEAK = 0.12  # mean coherence that shows one and the same performance ...
PROMINENCE = 3.0  # ... and how far it stands above the highest elsewhere in a second window of shifts


def offset_s(
    take: Tensor, original_vocals: Tensor, sample_rate: int, *, most_s: float = 10.0
) -> tuple[float, float]:
    """When in the song the take begins, so that both sing at the same time.

    Args:
        take: `(channels, samples)`, what was sung over the song.
        original_vocals: `(channels, samples)`, the song's vocals from the song's first sample on.
        sample_rate: of both, Hz.
        most_s: the largest shift that is considered, seconds, either way.

    Returns:
        The shift in seconds, above 0 where the take has to start later, as one does that was switched on late; and how
        sure that is, 0 to 1: by how much of its height the best shift stands out from the best of the others. From
        `SURE` on it is worth following. Both are 0 where there is nothing to compare.

    Raises:
        AudioError: not two waveforms with samples, or nan or infinity in one of them.
        UsageError: `most_s` is not above 0.
    """
    if not (math.isfinite(most_s) and most_s > 0):
        raise UsageError(f"expected most_s in seconds above 0, got {most_s}")
    if not (sample_rate % 1 == 0 and sample_rate >= LOWEST_RATE_HZ):
        raise AudioError(f"expected a rate in whole Hz, at least {LOWEST_RATE_HZ}, got {sample_rate}; resample first")
    if is_silent(take) or is_silent(original_vocals):  # which also sees to shapes and nan
        return 0.0, 0.0
    first, second = (waveform.detach().cpu().float().mean(0) for waveform in (take, original_vocals))
    hop = max(1, round(HOP_S * sample_rate))
    shift, confidence = _coarse(first, second, sample_rate, hop, most_s)
    if confidence <= 0:
        return 0.0, 0.0
    fine = _fine(first, second, sample_rate, round(shift * sample_rate))
    shift = shift if fine is None else fine / sample_rate
    return max(-most_s, min(most_s, shift)), confidence


def _coarse(take: Tensor, original: Tensor, sample_rate: int, hop: int, most_s: float) -> tuple[float, float]:
    features = [_features(waveform, sample_rate, hop) for waveform in (take, original)]
    size = 1 << (features[0].shape[1] + features[1].shape[1] - 1).bit_length()
    product = torch.fft.rfft(features[1], size) * torch.fft.rfft(features[0], size).conj()
    correlation = torch.fft.irfft(product.sum(0), size)  # over the shift of the take, in frames, negative ones last
    reach = min(math.ceil(most_s * sample_rate / hop), size // 2 - 1)
    correlation = torch.cat([correlation[-reach:], correlation[: reach + 1]])
    norm = math.sqrt(float(features[0].square().sum() * features[1].square().sum()))
    best = int(correlation.argmax())
    height = float(correlation[best])
    if norm <= 0 or height <= 0:
        return 0.0, 0.0
    away = (torch.arange(len(correlation)) - best).abs() > NEIGHBOURS_S * sample_rate / hop
    rival = max(float(correlation[away].max()), 0.0) if bool(away.any()) else 0.0
    return (best - reach + _vertex(correlation, best)) * hop / sample_rate, 1 - rival / height


def _features(waveform: Tensor, sample_rate: int, hop: int) -> Tensor:
    """(2 * BANDS, frames): level and onsets of each band, of no mean, level and onsets of equal energy in all."""
    n_fft = 1 << round(math.log2(WINDOW_S * sample_rate))
    window = torch.hann_window(n_fft)
    padded = torch.nn.functional.pad(waveform, (n_fft // 2, n_fft // 2))
    frames = padded.unfold(0, n_fft, hop)
    bands = _bands(sample_rate, n_fft)
    power = torch.cat([torch.fft.rfft(part * window).abs().square() @ bands.T for part in frames.split(CHUNK)]).T
    level = (power + FLOOR * power.max()).log10()
    onsets = torch.zeros_like(level)
    onsets[:, ONSET_FRAMES:] = (level[:, ONSET_FRAMES:] - level[:, :-ONSET_FRAMES]).clamp_min(0)
    parts = [part - part.mean(1, keepdim=True) for part in (level, onsets)]
    return torch.cat([part / part.square().sum().sqrt().clamp_min(1e-12) for part in parts])


def _bands(sample_rate: int, n_fft: int) -> Tensor:
    """(BANDS, bins): which bin is in which of the bands of equal width on a logarithmic axis, as triangles."""
    bins = torch.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    edges = torch.logspace(math.log10(LOWEST_HZ), math.log10(min(HIGHEST_HZ, 0.45 * sample_rate)), BANDS + 2)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    half = sample_rate / n_fft  # where bands are narrower than bins, the triangle is a bin wide
    rising = (bins - centre) / torch.clamp(centre - low, min=half)
    falling = (bins - centre) / torch.clamp(high - centre, min=half)
    return torch.where(bins < centre, 1 + rising, 1 - falling).clamp_min(0)


def _fine(take: Tensor, original: Tensor, sample_rate: int, shift: int) -> int | None:
    """The shift in samples, near the one given; None where the two are not one performance."""
    begin, end = max(0, -shift), min(len(take), len(original) - shift)
    length = 1 << round(math.log2(FINE_WINDOW_S * sample_rate))
    if end - begin < length:
        return None
    window = torch.hann_window(length)
    frames = [part.unfold(0, length, length // 2) for part in (take[begin:end], original[begin + shift : end + shift])]
    cross = torch.zeros(length + 1, dtype=torch.complex64)
    powers = [torch.zeros(length + 1) for _ in frames]
    for ours, theirs in zip(*(part.split(32) for part in frames), strict=True):
        first, second = (torch.fft.rfft(part * window, 2 * length) for part in (ours, theirs))
        cross += (second * first.conj()).sum(0)
        for power, spectrum in zip(powers, (first, second), strict=True):
            power += spectrum.abs().square().sum(0)
    scale = (powers[0] * powers[1]).sqrt()
    # Where a recording has nothing (above 8 kHz, say) its rounding errors must not vote.
    heard = (powers[0] > 1e-8 * powers[0].max()) & (powers[1] > 1e-8 * powers[1].max())
    coherence = torch.where(heard, cross / scale.clamp_min(1e-30), torch.zeros_like(cross))
    curve = torch.fft.irfft(coherence).abs() * (2 * length / max(1, 2 * int(heard.sum())))
    reach = round(FINE_S * sample_rate)
    near = torch.cat([curve[-reach:], curve[: reach + 1]])
    best = int(near.argmax())
    elsewhere = torch.cat([curve[reach + 1 : length // 2], curve[-length // 2 : -reach - 1]])
    if float(near[best]) < PEAK or float(near[best]) < PROMINENCE * float(elsewhere.max()):
        return None
    return shift + best - reach


def _vertex(curve: Tensor, at: int) -> float:
    """Where between samples the parabola through a maximum and its neighbours has its top, -0.5 to 0.5."""
    if not 0 < at < len(curve) - 1:
        return 0.0
    left, middle, right = (float(value) for value in curve[at - 1 : at + 2])
    bend = left - 2 * middle + right
    return 0.0 if bend >= 0 else max(-0.5, min(0.5, 0.5 * (left - right) / bend))
