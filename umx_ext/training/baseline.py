"""The real open-unmix as a network to train: `openunmix.model.OpenUnmix` behind the interface of `MaskNet`.

It is the baseline of comparisons: not our network with open-unmix's settings, but open-unmix's own code, which goes
through the same examples, loss and optimiser. Its trained weights are then a `MaskNet`'s, and saved as one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from umx_ext.errors import MissingExtraError, ModelError, UsageError
from umx_ext.separation.config import Config
from umx_ext.separation.masknet import MaskNet, from_openunmix_state

__all__ = ["OpenUnmixNet", "masknet_state"]

_PREFIX = "model."  # of the real network's weights in `OpenUnmixNet`'s state dict

# openunmix 1.3 between BLSTM layers; not an argument of its network.
_DROPOUT = 0.4

# 220 dB below a full-scale sine: small enough to be silence, large enough that a gradient over it is finite.
_LEAST_MAGNITUDE = 1e-8


class OpenUnmixNet(nn.Module):
    """`openunmix.model.OpenUnmix` of the size that a `Config` says; `stems` in it is not looked at.

    Source: openunmix 1.3 (Stöter et al., JOSS 2019).

    Args:
        config: with the branch ``linear`` alone, the mask ``relu`` and dropout 0.4: open-unmix has no other.

    Raises:
        MissingExtraError: openunmix is not installed, or its torchaudio does not fit the installed torch.
        UsageError: the config is not open-unmix's.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        given = (config.branches, config.mask, config.dropout if config.layers > 1 else _DROPOUT)
        if given != (("linear",), "relu", _DROPOUT):
            raise UsageError(
                f"open-unmix has the branch linear alone, the mask relu and dropout {_DROPOUT}; the config has "
                f"{', '.join(config.branches)}, {config.mask} and {config.dropout}"
            )
        try:
            from openunmix.model import OpenUnmix
        except (ImportError, RuntimeError, OSError) as error:  # the latter two from a torchaudio of another torch
            raise MissingExtraError(
                f"the network 'openunmix' needs openunmix ({error}); in umx-ext's folder run: pip install '.[research]'"
            ) from error
        self.config = config
        self.model = OpenUnmix(
            nb_bins=config.bins,
            nb_channels=config.channels,
            hidden_size=config.hidden,
            nb_layers=config.layers,
            max_bin=config.bandwidth_bins,
        )

    @torch.no_grad()
    def standardise(self, mean: Tensor, deviation: Tensor) -> None:
        """Set the input's standardisation: statistics of the magnitudes, `(bins,)` each, as open-unmix takes them."""
        expected = (self.config.bins,)
        if mean.shape != expected or deviation.shape != expected:
            raise ModelError(f"expected statistics {expected}, got {tuple(mean.shape)} and {tuple(deviation.shape)}")
        self.model.input_mean.copy_(-mean[: self.config.bandwidth_bins])
        self.model.input_scale.copy_(1.0 / deviation[: self.config.bandwidth_bins])

    def forward(self, magnitude: Tensor) -> Tensor:
        """The stem's magnitudes, of the mixture's: `(batch, channels, bins, frames)`, as `MaskNet.forward`."""
        expected = (self.config.channels, self.config.bins)
        if magnitude.ndim != 4 or magnitude.shape[1:3] != expected:
            raise ModelError(
                f"expected a spectrogram (batch, channels, bins, frames) with {expected[0]} channels and {expected[1]} "
                f"bins, got {tuple(magnitude.shape)}"
            )
        return self.model(magnitude)

    def mask(self, magnitude: Tensor) -> Tensor:
        """The mask alone, frames-major: `(batch, frames, channels, bins)` -> the same shape; 0 where the input is 0.

        open-unmix multiplies its mask by the mixture itself, so this divides by it again.
        """
        estimate = self(magnitude.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return estimate / magnitude.detach().clamp_min(_LEAST_MAGNITUDE)

    def to_masknet(self) -> MaskNet:
        """A `MaskNet` with a copy of these weights, on their device; a `Separator` is made of it, and saved."""
        with torch.random.fork_rng(devices=[]):  # first weights are drawn only to be replaced
            net = MaskNet(self.config)
        net.load_state_dict(masknet_state(self.state_dict()))
        return net.to(self.model.input_mean.device).train(self.training)


def masknet_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of an `OpenUnmixNet`, from a checkpoint for example, under `MaskNet`'s names.

    Raises:
        ModelError: it is not the state dict of an `OpenUnmixNet`.
    """
    foreign = [key for key in state if not key.startswith(_PREFIX)]
    if foreign:
        raise ModelError(f"{foreign[0]!r} is no weight of an OpenUnmixNet; its keys begin with {_PREFIX!r}")
    return from_openunmix_state({key.removeprefix(_PREFIX): value for key, value in state.items()})
