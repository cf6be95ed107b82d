"""The score that a run is steered by: whole songs of the validation split, never remixed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from umx_ext.evaluation.sdr import median_sdr
from umx_ext.separation.config import Config
from umx_ext.spectral import istft, stft
from umx_ext.training.tracks import PAIRS, SONGS, Entry, Pack

__all__ = [
    "Score", "Song", "as_channels", "masked", "peak_memory_mb", "separated_songs", "validate", "validation_songs",
]  # fmt: skip


@dataclass(frozen=True)
class Score:
    """Medians over songs of the median SDR over their seconds, dB.

    Attributes:
        target_sdr_db: of the stem.
        rest_sdr_db: of the mixture minus the stem.
    """

    target_sdr_db: float
    rest_sdr_db: float


@dataclass(frozen=True)
class Song:
    """A validation song and what a network made of it; waveforms `(channels, samples)`."""

    name: str
    mixture: Tensor
    target: Tensor
    estimate: Tensor


def validate(net: nn.Module, pack: Pack, config: Config, device: torch.device | str = "cpu") -> Score:
    """Score a network on the validation songs, plain mask; the mixture is the sum of a song's stems.

    Where the store holds songs of four stems, they are what counts; else its pairs of vocals and accompaniment.
    """
    target, rest = [], []
    for song in separated_songs(net, pack, config, device):
        target.append(median_sdr(song.target, song.estimate, config.sample_rate))
        rest.append(median_sdr(song.mixture - song.target, song.mixture - song.estimate, config.sample_rate))
    return Score(_median(target), _median(rest))


def _median(values: list[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.median(finite)) if finite else float("nan")


def separated_songs(
    net: nn.Module, pack: Pack, config: Config, device: torch.device | str = "cpu", most: int | None = None
) -> Iterator[Song]:
    """The validation songs, or the first `most` of them, one at a time."""
    for number, ((name, _), entries) in enumerate(validation_songs(pack).items()):
        if most is not None and number >= most:
            return
        read = {stem: torch.from_numpy(pack.read(entry)) for stem, entry in entries.items()}
        stems = {stem: as_channels(waveform, config.channels) for stem, waveform in read.items()}
        mixture = torch.stack(list(stems.values())).sum(dim=0)
        yield Song(name, mixture, stems[config.stems[0]], masked(net, mixture, config, device))


def validation_songs(pack: Pack) -> dict[tuple[str, float], dict[str, Entry]]:
    """Those that are scored: (track, speed) -> stem -> entry; empty where the store has none."""
    return pack.songs("valid", SONGS) or pack.songs("valid", PAIRS)


def as_channels(waveforms: Tensor, channels: int) -> Tensor:
    """`(..., any, samples)` -> `(..., channels, samples)`: mono in both channels, or the mean of them."""
    if waveforms.shape[-2] == channels:
        return waveforms
    mono = waveforms.mean(dim=-2, keepdim=True)
    return mono.expand(*mono.shape[:-2], channels, mono.shape[-1])


@torch.no_grad()
def masked(net: nn.Module, mixture: Tensor, config: Config, device: torch.device | str = "cpu") -> Tensor:
    """The stem that a network's plain mask leaves of a mixture `(channels, samples)`; puts the network into `eval`."""
    net.eval()
    spectrum = stft(mixture.to(device), config.n_fft, config.hop)
    mask = net.mask(spectrum.abs().permute(2, 0, 1)[None])[0].permute(1, 2, 0)  # type: ignore[operator]
    return istft(spectrum * mask, config.n_fft, config.hop, mixture.shape[-1]).cpu()


def peak_memory_mb(device: torch.device) -> float:
    """Most memory that was held so far: of the GPU, or else of the process (0 where the system does not say)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
