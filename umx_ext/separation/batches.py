"""Inference on an accelerator: blocks of a song side by side in one batch, in the arithmetic of `Separator.forward`.

A BLSTM's steps follow one another, however wide the device is, so the networks see several blocks at once. Blocks of
different lengths are padded, and none hears its padding. Whatever follows the networks is wide enough block by block,
which bounds memory.

Nothing waits: a batch is put into the device's queue when it is made, with its transfers from and to pinned memory, and
only who asks for a result waits for it. Between the waveform that goes there and the finished one that comes back
nothing returns to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from umx_ext.separation.config import Config
from umx_ext.separation.masknet import MaskNet
from umx_ext.separation.wiener import shares, wiener
from umx_ext.spectral import frame_count, hann, overlap_add, stft

__all__ = ["RESIDUAL", "Batch", "Block", "Recipe", "abreast", "filter_input"]

RESIDUAL = "residual"

_MOST = 16  # blocks; with more the products are as wide as any device
_PLANES, _PLANES_A_STEM = 8, 10  # float32 spectrograms of a block that are alive together, with some to spare


@dataclass(frozen=True)
class Block:
    """Some audio, and the frames of it that are wanted.

    Attributes:
        waveform: `(channels, samples)` at the config's rate, context included.
        first: first frame of the core; windows of the Wiener filter are counted from it.
        last: frame after the core's last.
    """

    waveform: Tensor
    first: int
    last: int


@dataclass(frozen=True)
class Recipe:
    """What is done with every block.

    Attributes:
        stems: networks to run.
        niter: iterations of the Wiener filter.
        wiener_win_len: its window, frames; None for all.
        residual: let the filter have one more source, what no network claims, named ``"residual"``.
        wanted: sources to return, in this order.
        fast: as of `Options`.
    """

    stems: tuple[str, ...]
    niter: int
    wiener_win_len: int | None
    residual: bool
    wanted: tuple[str, ...]
    fast: bool = False


class Batch:
    """Blocks that are on their way.

    Args:
        nets: a network a stem, on the device.
        config: what they were built from.
        device: where to work.
        blocks: at least one.
        recipe: what to do with them.
    """

    @torch.no_grad()
    def __init__(
        self,
        nets: Mapping[str, MaskNet],
        config: Config,
        device: torch.device,
        blocks: Sequence[Block],
        recipe: Recipe,
    ) -> None:
        self._config, self._recipe, self._device = config, recipe, device
        spectra = [
            stft(self._there(block.waveform), config.n_fft, config.hop).movedim(-1, 0) for block in blocks
        ]  # each (frames, channels, bins)
        lengths = [len(spectrum) for spectrum in spectra]
        magnitude = spectra[0].real.new_zeros(len(blocks), max(lengths), config.channels, config.bins)
        for spectrum, padded in zip(spectra, magnitude, strict=True):
            torch.abs(spectrum, out=padded[: len(spectrum)])
        frames = lengths if len(set(lengths)) > 1 else None
        half = recipe.fast and device.type != "mps"
        masks = []  # each (blocks, frames, channels, bins)
        for stem in recipe.stems:
            with torch.autocast(device.type, torch.float16) if half else nullcontext():
                masks.append(nets[stem].mask(magnitude, frames))
        self._results = []
        for number, (block, spectrum) in enumerate(zip(blocks, spectra, strict=True)):
            core = slice(block.first, block.last)
            claims = torch.stack([mask[number, core].float() for mask in masks])
            self._results.append(self._back(self._finished(claims, magnitude[number, core], spectrum[core])))

    def results(self) -> Iterator[Tensor]:
        """For each block `(wanted, channels, samples)` on the CPU: frames of the estimates, windowed, overlap-added."""
        for result in self._results:
            yield result()

    def _finished(self, claims: Tensor, magnitude: Tensor, spectrum: Tensor) -> Tensor:
        """Masks `(stems, frames, channels, bins)` of a core -> `(wanted, channels, samples)`."""
        config, recipe = self._config, self._recipe
        power = config.filter_power
        magnitudes, residual = filter_input(claims * magnitude, magnitude, power, recipe.niter, recipe.residual)
        estimates = wiener(
            magnitudes, spectrum, niter=recipe.niter, window=recipe.wiener_win_len, residual=residual
        )  # (sources, frames, channels, bins)
        order = (*recipe.stems, RESIDUAL)
        chosen = torch.stack([estimates[order.index(source)] for source in recipe.wanted])
        frames = torch.fft.irfft(chosen.transpose(1, 2), n=config.n_fft)
        return overlap_add(frames * hann(config.n_fft, frames), config.hop)

    def _there(self, waveform: Tensor) -> Tensor:
        waveform = waveform.detach().float()
        if self._device.type != "cuda":
            return waveform.to(self._device)
        return waveform.contiguous().pin_memory().to(self._device, non_blocking=True)

    def _back(self, result: Tensor) -> Callable[[], Tensor]:
        """Something that waits for the result on the host and returns it there."""
        if self._device.type != "cuda":
            return lambda: result.cpu()
        host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
        host.copy_(result, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(self._device))

        def waited() -> Tensor:
            arrived.synchronize()
            return host

        return waited


def filter_input(magnitudes: Tensor, whole: Tensor, power: float, niter: int, residual: bool) -> tuple[Tensor, bool]:
    """What the Wiener filter starts from, `(sources, ...)`, and whether it shall add the residual itself.

    Args:
        magnitudes: the networks' `(stems, ...)`.
        whole: the mixture's `(...)`.
        power: the config's `filter_power`.
        niter: iterations of the filter.
        residual: whether there shall be one.
    """
    if niter == 0 or power == 1:
        return magnitudes, residual
    return shares(magnitudes, whole, power, residual=residual), False


def abreast(config: Config, stems: int, samples: int, device: torch.device) -> int:
    """How many blocks of so many samples to put into a batch: what half of the device's free memory holds."""
    if device.type != "cuda":
        return 1
    plane = 4 * frame_count(samples, config.hop) * config.channels * config.bins
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(_MOST, free // 2 // (plane * (_PLANES + _PLANES_A_STEM * stems))))
