"""What all networks of one stem have in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from umx_ext.errors import ModelError
from umx_ext.separation.config import Config

__all__ = ["Network", "autocast_to_bf16", "in_half"]


class Network(nn.Module):
    """Predicts one stem's share of the mixture's magnitudes: `mask`.

    Args:
        config: the separator's configuration; `stems` in it is not looked at.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, magnitude: Tensor) -> Tensor:
        """The stem's magnitudes: the mask times the mixture's, which is not differentiated.

        Args:
            magnitude: `(batch, channels, bins, frames)`, >= 0; fastest with frames outermost in memory, as
                `spectral.stft` gives it.

        Returns:
            The same shape and memory layout, >= 0, and 0 where the mixture is 0.
        """
        frames_major = magnitude.permute(0, 3, 1, 2)
        return (self.mask(frames_major) * frames_major.detach()).permute(0, 2, 3, 1)

    def mask(self, magnitude: Tensor, *, half: bool = False) -> Tensor:
        """The mask alone, frames-major: `(batch, frames, channels, bins)` -> the same shape.

        Args:
            magnitude: the mixture's.
            half: all that has not to have the range of magnitudes in half precision; the result may be, too.

        Raises:
            ModelError: other channels or bins than the config's.
        """
        raise NotImplementedError

    def require(self, magnitude: Tensor) -> None:
        """Raise a `ModelError` where a frames-major spectrogram has not the config's channels and bins."""
        expected, found = (self.config.channels, self.config.bins), tuple(magnitude.shape[2:])
        if found != expected:
            raise ModelError(
                f"expected a spectrogram (batch, channels, bins, frames) with {expected[0]} channels and {expected[1]} "
                f"bins, got {found[0]} channels and {found[1]} bins"
            )


def in_half(device: torch.device) -> torch.autocast:
    """Products and convolutions in float16. No copies of weights are kept: each is used once, maybe by two threads."""
    return torch.autocast(device.type, torch.float16, cache_enabled=False)


def autocast_to_bf16() -> bool:
    """Whether products on a CUDA device are being made in bfloat16."""
    asked = getattr(torch, "get_autocast_dtype", None)  # since 2.4
    dtype = torch.get_autocast_gpu_dtype() if asked is None else asked("cuda")
    return torch.is_autocast_enabled() and dtype == torch.bfloat16
