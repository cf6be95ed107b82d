"""Short-time Fourier transform, its inverse, and the matrices of mel bands and of the cosine transform.

Spectrograms are native complex with axes `(..., bins, frames)`. In memory frames are outermost and bins contiguous, so
``spectrogram.mT`` is contiguous: the whole package is fast because of that layout.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from umx_ext.errors import ModelError

__all__ = ["dct_matrix", "frame_count", "hann", "istft", "mel_filters", "stft"]

_CHUNK = 256  # frames that are transformed at a time on a CPU


@functools.lru_cache(maxsize=16)
def _hann_double(n_fft: int) -> Tensor:
    return torch.hann_window(n_fft, periodic=True, dtype=torch.float64)


@functools.lru_cache(maxsize=16)
def _hann(n_fft: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # whoever asks first
        return _hann_double(n_fft).to(device=device, dtype=dtype)


def hann(n_fft: int, like: Tensor) -> Tensor:
    """Periodic Hann window in the real dtype and on the device of `like`. Shape: `(n_fft,)`."""
    return _hann(n_fft, like.device, like.real.dtype if like.is_complex() else like.dtype)


def frame_count(samples: int, hop: int) -> int:
    """Frames of a centred STFT of so many samples."""
    return samples // hop + 1


def stft(waveform: Tensor, n_fft: int, hop: int, *, center: bool = True) -> Tensor:
    """One-sided STFT, periodic Hann window, not normalised; equal to `torch.stft` with ``pad_mode="reflect"``.

    Args:
        waveform: `(..., samples)`, float.
        n_fft: window length, samples.
        hop: hop, samples.
        center: pad both ends by half a window (by reflection), so that frame t is centred on sample ``t * hop``.
            A signal shorter than half a window is extended by zeros before it is reflected.

    Returns:
        Complex `(..., bins, frames)`, frames outermost in memory.
    """
    leading, samples = waveform.shape[:-1], waveform.shape[-1]
    flat = waveform.reshape(-1, 1, samples)
    half = n_fft // 2
    if center:
        if samples <= half:
            flat = torch.nn.functional.pad(flat, (0, half + 1 - samples))
        flat = torch.nn.functional.pad(flat, (half, half), mode="reflect")[..., : samples + n_fft]
    frames, window = flat[:, 0].unfold(-1, n_fft, hop), hann(n_fft, waveform)  # (batch, frames, n_fft)
    if waveform.device.type != "cpu" or (waveform.requires_grad and torch.is_grad_enabled()):
        spectrum = torch.fft.rfft(frames * window)  # (batch, frames, bins)
    else:  # the same a few frames at a time, which stay in the cache: twice as fast
        dtype = frames.dtype.to_complex()
        spectrum = torch.empty(*frames.shape[:2], n_fft // 2 + 1, dtype=dtype)
        for signal, result in zip(frames, spectrum, strict=True):
            for first in range(0, len(signal), _CHUNK):
                some = slice(first, first + _CHUNK)
                torch.fft.rfft(signal[some] * window, out=result[some])
    return spectrum.view(*leading, *spectrum.shape[-2:]).mT


def istft(spectrogram: Tensor, n_fft: int, hop: int, samples: int) -> Tensor:
    """Inverse of the centred `stft` by weighted overlap-add.

    Args:
        spectrogram: complex `(..., bins, frames)`.
        n_fft: window length, samples; a multiple of `hop`.
        hop: hop, samples.
        samples: length of the result; the frames must cover it.

    Returns:
        `(..., samples)`. ``istft(stft(x)) == x`` to rounding.
    """
    frames = torch.fft.irfft(spectrogram.mT, n=n_fft)  # (..., frames, n_fft)
    window = hann(n_fft, frames)
    padded = overlap_add(frames * window, hop)
    weight = overlap_add((window * window).expand(frames.shape[-2], n_fft), hop)
    half = n_fft // 2
    wanted = slice(half, half + samples)
    return padded[..., wanted] / weight[wanted].clamp_min(1e-11)


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """Sum of frames that start `hop` samples apart.

    Args:
        frames: `(..., frames, length)` with a length that is a multiple of `hop`.
        hop: samples.

    Returns:
        `(..., (frames - 1) * hop + length)`.
    """
    count, length = frames.shape[-2:]
    parts = length // hop
    total = frames.new_zeros(*frames.shape[:-2], count + parts - 1, hop)
    for part in range(parts):
        total[..., part : part + count, :] += frames[..., part * hop : (part + 1) * hop]
    return total.flatten(-2)


def mel_filters(n_fft: int, sample_rate: int, n_mels: int, high_hz: float) -> Tensor:
    """Triangular mel filters from 0 Hz to `high_hz`: HTK scale, peak 1, no area normalisation.

    Equal to ``torchaudio.functional.melscale_fbanks(n_fft // 2 + 1, 0, high_hz, n_mels, sample_rate)`` and to the
    transpose of ``librosa.filters.mel(htk=True, norm=None)``.

    Returns:
        float32 `(bins, n_mels)`.

    Raises:
        ModelError: so many bands that one of them would contain no bin.
    """

    def mel(hertz: float) -> float:
        return 2595.0 * math.log10(1.0 + hertz / 700.0)

    bins = torch.linspace(0.0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    edges_mel = torch.linspace(0.0, mel(high_hz), n_mels + 2, dtype=torch.float64)
    edges = 700.0 * (10.0 ** (edges_mel / 2595.0) - 1.0)
    width = edges.diff()  # (n_mels + 1,)
    rising = (bins[:, None] - edges[None, :-2]) / width[:-1]
    falling = (edges[None, 2:] - bins[:, None]) / width[1:]
    filters = torch.minimum(rising, falling).clamp_min(0.0)
    if (filters.amax(dim=0) == 0).any():
        raise ModelError(f"{n_mels} mel bands are too many for n_fft {n_fft}: at least one would be empty; use fewer")
    return filters.float()


def dct_matrix(length: int, count: int) -> Tensor:
    """The first `count` columns of the orthonormal DCT-II of `length` values: ``values @ dct_matrix(...)``.

    Column k is ``sqrt(2 / length) cos(pi k (2 n + 1) / (2 length))``, column 0 that over ``sqrt(2)``. Equal to
    ``torchaudio.functional.create_dct(count, length, "ortho")`` and to ``scipy.fft.dct(norm="ortho")``.

    Returns:
        float32 `(length, count)`.

    Raises:
        ModelError: fewer than one column, or more than there are values.
    """
    if not 1 <= count <= length:
        raise ModelError(f"expected 1 to {length} coefficients of a cosine transform of {length} values, got {count}")
    place = 2 * torch.arange(length, dtype=torch.float64)[:, None] + 1
    matrix = torch.cos(math.pi / (2 * length) * place * torch.arange(count)) * math.sqrt(2.0 / length)
    matrix[:, 0] /= math.sqrt(2.0)
    return matrix.float()
