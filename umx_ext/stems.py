"""Stems: the named waveforms of one song, with their one sample rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from umx_ext.errors import AudioError

__all__ = ["Stems"]


class Stems(Mapping[str, Tensor]):
    """Named waveforms of equal shape `(..., channels, samples)` and their sample rate.

    Args:
        waveforms: stem name -> waveform. Names are MUSDB18's: vocals, drums, bass, other, accompaniment.
        sample_rate: Hz.
        mixture: what the stems were taken from, when it is known; otherwise it is their sum.

    Raises:
        AudioError: no stems, shapes that differ, or a sample rate that is not positive.

    >>> import torch
    >>> stems = Stems({"vocals": torch.ones(2, 3), "accompaniment": torch.zeros(2, 3)}, 44100)
    >>> stems.mixture.shape, sorted(stems)
    (torch.Size([2, 3]), ['accompaniment', 'vocals'])
    """

    def __init__(self, waveforms: Mapping[str, Tensor], sample_rate: int, mixture: Tensor | None = None) -> None:
        self._waveforms = dict(waveforms)
        self.sample_rate = sample_rate
        self._mixture = mixture
        if not self._waveforms:
            raise AudioError("expected at least one stem, got none")
        if sample_rate <= 0:
            raise AudioError(f"expected a positive sample rate in Hz, got {sample_rate}")
        shapes = {name: tuple(waveform.shape) for name, waveform in self._waveforms.items()}
        if mixture is not None:
            shapes["mixture"] = tuple(mixture.shape)
        if len(set(shapes.values())) > 1:
            raise AudioError(f"expected stems of one shape (..., channels, samples), got {shapes}")

    @property
    def mixture(self) -> Tensor:
        """What the stems were taken from, or else their sum. Shape: `(..., channels, samples)`."""
        if self._mixture is not None:
            return self._mixture
        return torch.stack(list(self._waveforms.values())).sum(dim=0)

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._waveforms[name]
        except KeyError:
            raise KeyError(f"no stem {name!r}; there are {', '.join(self._waveforms)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._waveforms)

    def __len__(self) -> int:
        return len(self._waveforms)

    def __repr__(self) -> str:
        shape = tuple(next(iter(self.values())).shape)
        return f"Stems({', '.join(self)}; {shape} at {self.sample_rate} Hz)"
