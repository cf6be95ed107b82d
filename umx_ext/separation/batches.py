"""Inference on an accelerator: blocks of a song side by side in one batch, in the arithmetic of `Separator.forward`.

A BLSTM's steps follow one another, however wide the device is, so the networks see several blocks at once; they are cut
to one length, because packed sequences cost a BLSTM its fastest algorithms and a look at the host. Whatever follows the
networks is wide enough block by block, which bounds memory.

On CUDA a batch is put into the device's queue when it is made, with its transfers from and to pinned memory, and only
who asks for a result waits for it. The queue takes about a thousand operations: who adds more waits for the first of
them. Between the waveform that goes there and the estimates, windowed and overlap-added, that come back nothing returns
to the host.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from umx_ext.separation.config import Config
from umx_ext.separation.masknet import Net
from umx_ext.separation.wiener import shares, wiener
from umx_ext.spectral import frame_count, hann, overlap_add, stft

__all__ = ["RESIDUAL", "Batch", "Block", "Recipe", "abreast", "filter_input", "in_batches"]

RESIDUAL = "residual"

_MOST, _MOST_S = 16, 500.0  # blocks of a batch, and seconds in all: what waits for a batch is kept on the host
_PLANES, _PLANES_A_BLOCK = 40, 16  # float32 spectrograms of a block that are alive together, counted for one stem,
_MORE, _MORE_A_BLOCK = 8, 2  # and for each stem more

_making = threading.Lock()


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
        blocks: at least one, all of as many frames.
        recipe: what to do with them.
    """

    @torch.no_grad()
    def __init__(
        self,
        nets: Mapping[str, Net],
        config: Config,
        device: torch.device,
        blocks: Sequence[Block],
        recipe: Recipe,
    ) -> None:
        self._config, self._recipe, self._device = config, recipe, device
        # Whatever mode they are in, as the engine does.
        nets = {stem: copy.deepcopy(nets[stem]).eval() if nets[stem].training else nets[stem] for stem in recipe.stems}
        spectra = [
            stft(self._there(block.waveform), config.n_fft, config.hop).movedim(-1, 0) for block in blocks
        ]  # each (frames, channels, bins)
        if len({len(spectrum) for spectrum in spectra}) > 1:
            raise ValueError(f"expected blocks of one length, got frames {[len(spectrum) for spectrum in spectra]}")
        magnitude = torch.stack([spectrum.abs() for spectrum in spectra])
        half = recipe.fast and device.type != "mps"
        masks = [nets[stem].mask(magnitude, half=half) for stem in recipe.stems]  # each as the magnitude
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
        host = torch.empty(result.shape, dtype=result.dtype, device="cpu", pin_memory=True)
        host.copy_(result, non_blocking=True)
        arrived = torch.cuda.Event(blocking=True)
        arrived.record(torch.cuda.current_stream(self._device))

        def waited() -> Tensor:
            arrived.synchronize()
            return host.clone()  # pinned memory is dear: torch uses it again for what comes next, if nobody keeps it

        return waited


def in_batches(
    nets: Mapping[str, Net], config: Config, device: torch.device, blocks: Sequence[Block], recipe: Recipe
) -> list[Batch]:
    """One batch of all blocks; or where the device's memory does not hold it, two of half of them, and so on.

    Raises:
        torch.cuda.OutOfMemoryError: it does not hold a single block either.
    """
    try:
        # One thread at a time: a batch is given half of what is free, and what it is done with is free for the next.
        with _making:
            return [Batch(nets, config, device, blocks, recipe)]
    except torch.cuda.OutOfMemoryError:
        if len(blocks) == 1:
            raise
    # Here, not where the exception is handled: it keeps the tensors of what failed.
    half = len(blocks) // 2
    return [one for part in (blocks[:half], blocks[half:]) for one in in_batches(nets, config, device, part, recipe)]


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
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch keeps what it has freed
    fixed, each = _PLANES + _MORE * (stems - 1), _PLANES_A_BLOCK + _MORE_A_BLOCK * (stems - 1)
    held = (free // 2 // plane - fixed) // each
    return max(1, min(_MOST, int(_MOST_S * config.sample_rate / samples), held))
