"""Branches: fixed views of a magnitude spectrogram, without parameters.

A branch maps `(batch, frames, channels, bins)` to `(batch, frames, channels, features)`. It has a `features` count and
is built from the `Config`. To add one, put a factory into `BRANCHES`: it can then be named in a `Config`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from umx_ext.errors import ModelError
from umx_ext.separation.config import Config
from umx_ext.spectral import mel_filters

__all__ = ["BRANCHES", "Branch", "Linear", "Mel", "build_branch"]

# A full-scale sine has |X| = n_fft / 4 = 1024 in the unnormalised STFT, so 1e-4 in power is 20 log10(1024 / 1e-2),
# about 100 dB below it; the same floor in amplitude is 1e-2.
POWER_FLOOR = 1e-4
AMPLITUDE_FLOOR = 1e-2


class Branch(nn.Module):
    """Base of all branches; `features` is the number of outputs per channel and frame."""

    features: int


class Linear(Branch):
    """The STFT bins up to the bandwidth: magnitudes as open-unmix sees them, or their logarithm."""

    def __init__(self, config: Config, *, log: bool) -> None:
        super().__init__()
        self.features = config.bandwidth_bins
        self.log = log

    def forward(self, magnitude: Tensor) -> Tensor:
        """`(batch, frames, channels, bins)` -> `(batch, frames, channels, features)`."""
        magnitude = magnitude[..., : self.features]
        return (magnitude + AMPLITUDE_FLOOR).log() if self.log else magnitude


class Mel(Branch):
    """Mel bands of the power spectrogram (HTK scale, peak-1 triangles, 0 Hz to the bandwidth).

    With ``log`` (the default preset) its logarithm above a floor 100 dB below full scale: standardising bands is only
    meaningful then. Without (preset ``poster``) the bare power.
    """

    filters: Tensor

    def __init__(self, config: Config, *, log: bool) -> None:
        super().__init__()
        self.features = config.n_mels
        self.log = log
        # Bins above the bandwidth have weight 0 in every band, so they are left out of the product.
        filters = mel_filters(config.n_fft, config.sample_rate, config.n_mels, config.bandwidth_hz)
        self.register_buffer("filters", filters[: config.bandwidth_bins].contiguous(), persistent=False)

    def forward(self, magnitude: Tensor) -> Tensor:
        """`(batch, frames, channels, bins)` -> `(batch, frames, channels, features)`."""
        bands = magnitude[..., : self.filters.shape[0]].square() @ self.filters
        return (bands + POWER_FLOOR).log() if self.log else bands


BRANCHES: dict[str, Callable[[Config], Branch]] = {
    "linear": lambda config: Linear(config, log=False),
    "linear-log": lambda config: Linear(config, log=True),
    "mel": lambda config: Mel(config, log=True),
    "mel-poster": lambda config: Mel(config, log=False),
}


def build_branch(name: str, config: Config) -> Branch:
    """The branch of that name for that configuration.

    Raises:
        ModelError: no such branch.
    """
    if name not in BRANCHES:
        raise ModelError(f"no branch named {name!r}; known: {', '.join(BRANCHES)}")
    return BRANCHES[name](config)


