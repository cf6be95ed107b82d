"""Branches: fixed views of a magnitude spectrogram, without parameters.

A branch maps `(batch, frames, channels, bins)` to `(batch, frames, channels, features)`, each frame for itself. It has
a `features` count and is built from the `Config`. To add one, put a factory into `BRANCHES`, from anywhere: it can
then be named in a `Config`, trained, saved and run. Whoever loads such a model puts the factory there first.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor, nn

from umx_ext.errors import ModelError
from umx_ext.separation.config import Config
from umx_ext.spectral import dct_matrix, mel_filters

__all__ = ["BRANCHES", "Branch", "Linear", "Mel", "Mfcc", "build_branch"]

# A full-scale sine has |X| = n_fft / 4 = 1024 in the unnormalised STFT, so 1e-4 in power is 20 log10(1024 / 1e-2),
# about 100 dB below it; the same floor in amplitude is 1e-2.
POWER_FLOOR = 1e-4
AMPLITUDE_FLOOR = 1e-2


class Branch(nn.Module):
    """Base of all branches; `features` is the number of outputs per channel and frame.

    What a branch must keep to, since training and inference rely on it:

    - No frame looks at another: inference hands over frames in pieces.
    - No parameters: its outputs are standardised once, by the statistics of the training data.
    - Constants are buffers with ``persistent=False``: they follow from the `Config` and are not saved.
    - The spectrogram is the caller's, and silence is finite.
    """

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

    With ``log`` (preset ``default``) its logarithm above a floor 100 dB below full scale: standardising bands is only
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
        power = magnitude[..., : self.filters.shape[0]].square()
        bands = (power.flatten(0, -2) @ self.filters).unflatten(0, power.shape[:-1])  # one product, not one a frame
        return (bands + POWER_FLOOR).log() if self.log else bands


class Mfcc(Mel):
    """Mel-frequency cepstrum: the orthonormal DCT-II of the log-mel bands, first ``n_mfcc`` coefficients, c0 kept.

    Natural logarithm and the default mel preset's floor; no liftering.

    Raises:
        ModelError: more coefficients than bands.
    """

    cosines: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config, log=True)
        self.features = config.n_mfcc
        self.register_buffer("cosines", dct_matrix(config.n_mels, config.n_mfcc), persistent=False)

    def forward(self, magnitude: Tensor) -> Tensor:
        """`(batch, frames, channels, bins)` -> `(batch, frames, channels, features)`."""
        return super().forward(magnitude) @ self.cosines


# The linear2s are controls: beside the linear branch they make a network as wide as a second kind of feature does.
BRANCHES: dict[str, Callable[[Config], Branch]] = {
    "linear": lambda config: Linear(config, log=False),
    "linear-log": lambda config: Linear(config, log=True),
    "linear2": lambda config: Linear(config, log=False),
    "linear2-log": lambda config: Linear(config, log=True),
    "mel": lambda config: Mel(config, log=True),
    "mel-poster": lambda config: Mel(config, log=False),
    "mfcc": Mfcc,
}


def build_branch(name: str, config: Config) -> Branch:
    """The branch of that name for that configuration.

    Raises:
        ModelError: no such branch, or one that was registered is none.
    """
    if name not in BRANCHES:
        raise ModelError(
            f"no branch named {name!r}; known: {', '.join(BRANCHES)}; one of your own must be put into "
            "umx_ext.separation.branches.BRANCHES first"
        )
    if not re.fullmatch(r"[\w-]+", name) or hasattr(nn.ModuleDict, name):  # torch keeps the encoder under this name
        raise ModelError(f"a branch cannot be named {name!r}; use letters, digits and hyphens, and no word of torch's")
    branch = BRANCHES[name](config)
    features = getattr(branch, "features", None)
    if not isinstance(branch, nn.Module) or not isinstance(features, int) or features < 1:
        raise ModelError(
            f"for the branch {name!r} came {type(branch).__name__} with features = {features!r}; expected a "
            "umx_ext.separation.branches.Branch whose features count its outputs per channel and frame"
        )
    if any(True for _ in branch.parameters()):
        raise ModelError(f"the branch {name!r} has parameters, but is to be a fixed view; use buffers for constants")
    return branch
