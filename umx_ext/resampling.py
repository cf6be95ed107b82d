"""Change of sample rate by soxr, of a whole waveform or block by block, exact in length."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from umx_ext.errors import UsageError

__all__ = ["Resampler", "resample"]


class Resampler:
    """soxr's HQ resampler, block by block, exact in length: `ceil(samples * to_hz / from_hz)` in all.

    Rounding up means that there and back is never shorter than the original; trim it to get the original's length.
    `resample` is one push and one flush, so both give the same values.

    >>> there = Resampler(48000, 44100, channels=1)
    >>> there.push(torch.zeros(1, 1000)).shape[1] + there.flush().shape[1]
    919
    """

    def __init__(self, from_hz: int, to_hz: int, channels: int):
        for hz in (from_hz, to_hz):
            if int(hz) != hz or hz < 1:
                raise UsageError(f"a sample rate is a whole number of Hz above 0, not {hz}")
        self._from, self._to, self._channels = int(from_hz), int(to_hz), channels
        self._taken = self._given = 0
        self._stream = None
        if self._from != self._to:
            import soxr

            self._stream = soxr.ResampleStream(from_hz, to_hz, channels, dtype="float32", quality="HQ")

    def push(self, block: Tensor) -> Tensor:
        """(channels, n) -> (channels, what is ready by now, maybe nothing)."""
        if block.ndim != 2 or block.shape[0] != self._channels:
            raise UsageError(f"expected a block of shape ({self._channels}, samples), got {tuple(block.shape)}")
        self._taken += block.shape[1]
        if not block.shape[1]:
            return torch.empty(self._channels, 0)
        return block.to(torch.float32) if self._stream is None else self._run(block, False)

    def flush(self) -> Tensor:
        """The rest; the resampler takes no more blocks after it."""
        missing = -(-self._taken * self._to // self._from) - self._given
        if self._stream is None or missing <= 0:
            return torch.empty(self._channels, 0)
        # soxr rounds its total to the nearest sample: silence worth one more sample makes sure of the last.
        tail = self._run(torch.zeros(self._channels, -(-self._from // self._to) + 1), True)
        return tail[:, :missing]

    def _run(self, block: Tensor, last: bool) -> Tensor:
        assert self._stream is not None
        planar = block.detach().to("cpu", torch.float32).numpy()
        firsts = range(0, planar.shape[1], 1 << 16)  # pieces that stay in the cache
        out = []
        for first in firsts:
            piece = np.ascontiguousarray(planar[:, first : first + (1 << 16)].T)
            out.append(self._stream.resample_chunk(piece, last and first == firsts[-1]).T)
        done = np.concatenate(out, 1) if len(out) > 1 else np.ascontiguousarray(out[0])
        self._given += done.shape[1]
        return torch.from_numpy(done)


def resample(waveform: Tensor, from_hz: int, to_hz: int) -> Tensor:
    """(..., samples) at `from_hz` -> (..., ceil(samples * to_hz / from_hz)) float32 at `to_hz`; see `Resampler`."""
    if from_hz == to_hz:
        return waveform.to(torch.float32)
    rows = waveform.reshape(math.prod(waveform.shape[:-1]), waveform.shape[-1])
    resampler = Resampler(from_hz, to_hz, rows.shape[0])
    done = torch.cat([resampler.push(rows), resampler.flush()], 1)
    return done.reshape(*waveform.shape[:-1], done.shape[-1]).to(waveform.device)
