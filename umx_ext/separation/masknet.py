"""The network of one stem: branches, an encoder and a BLSTM each, their fusion, a decoder, a mask.

With the branch ``linear`` alone this is open-unmix (Stöter et al., JOSS 2019) and `from_openunmix_state` loads its
weights. With more branches, each has an encoder and BLSTM of its own; the ``[encoder output, BLSTM output]``
concatenations, weighted by one learnable gain for each branch after the first, are fused as the `Config` says (added,
by default), and one decoder follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from umx_ext.errors import ModelError
from umx_ext.separation.branches import build_branch
from umx_ext.separation.config import Config
from umx_ext.separation.network import Network, autocast_to_bf16, in_half
from umx_ext.separation.norms import Norm
from umx_ext.separation.unet import UNet

__all__ = ["Encoder", "MaskNet", "MaskPair", "Net", "build_net", "from_openunmix_state", "members"]


class Encoder(nn.Module):
    """One branch's standardisation, first matrix and BLSTM.

    Attributes:
        mean: added to the features, `(features,)`; minus the training mean at first.
        scale: multiplied after that, `(features,)`; one over the training deviation at first.
    """

    def __init__(self, name: str, config: Config) -> None:
        super().__init__()
        self.branch = build_branch(name, config)
        features, hidden = self.branch.features, config.hidden
        self.mean = nn.Parameter(torch.zeros(features))
        self.scale = nn.Parameter(torch.ones(features))
        self.fc1 = nn.Linear(features * config.channels, hidden, bias=False)
        self.bn1 = Norm(hidden)
        self.lstm = nn.LSTM(
            hidden,
            hidden // 2,
            num_layers=config.layers,
            bidirectional=True,
            batch_first=False,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )

    def encoded(self, magnitude: Tensor) -> Tensor:
        """`(batch, frames, channels, bins)` -> `(frames, batch, hidden)`: what the BLSTM hears."""
        features = self.branch(magnitude)
        # fc1 of the standardised features, with the standardisation in its matrix: features are many, and only the
        # small products have to be differentiated.
        weight = self.fc1.weight.view(-1, *features.shape[2:])  # (hidden, channels, features)
        bias = (weight @ (self.mean * self.scale)).sum(dim=1)
        hidden = functional.linear(features.flatten(2), (weight * self.scale).flatten(1), bias)
        return torch.tanh(_normalised(self.bn1, hidden)).transpose(0, 1)

    def followed(self, hidden: Tensor) -> Tensor:
        """What `encoded` gave, `(frames, batch, hidden)`, -> that beside the BLSTM's, `(frames, batch, 2 * hidden)`."""
        if hidden.is_cuda and autocast_to_bf16():
            # Whatever autocast is asked for, cuDNN's LSTM gets float16, and nothing keeps its gradients from vanishing.
            with torch.autocast("cuda", enabled=False):
                recurrent, _ = self.lstm(hidden.float())
        else:
            recurrent, _ = self.lstm(hidden)
        return torch.cat([hidden, recurrent.to(hidden.dtype)], dim=-1)

    def forward(self, magnitude: Tensor) -> Tensor:
        """`(batch, frames, channels, bins)` -> `(frames, batch, 2 * hidden)`: encoder output beside BLSTM output."""
        return self.followed(self.encoded(magnitude))


def _normalised(norm: Norm, hidden: Tensor) -> Tensor:
    return norm(hidden.flatten(0, 1)).view(hidden.shape)


def _fused(fusion: str, parts: Iterable[Tensor], gains: Tensor) -> Tensor:
    """What goes into fc2, of each branch's `(frames, batch, 2 * hidden)`."""
    first, *others = parts
    if fusion == "concat":
        weighted = (gain * other for gain, other in zip(gains, others, strict=True))
        return torch.cat([first, *weighted], dim=-1)
    if fusion == "lstm-add":
        encoded, recurrent = first.chunk(2, dim=-1)
        for gain, other in zip(gains, others, strict=True):
            recurrent = recurrent + gain * other.chunk(2, dim=-1)[1]
        return torch.cat([encoded, recurrent], dim=-1)
    for gain, other in zip(gains, others, strict=True):
        first = first + gain * other
    return first


class MaskNet(Network):
    """Predicts the magnitude spectrogram of one stem from the mixture's.

    Args:
        config: the separator's configuration; `stems` in it is not looked at.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        hidden, bins, channels = config.hidden, config.bins, config.channels
        self.encoders = nn.ModuleDict({name: Encoder(name, config) for name in config.branches})
        self.gains = nn.Parameter(torch.ones(len(config.branches) - 1))  # of each branch after the first
        seen = len(config.branches) if config.fusion == "concat" else 1
        self.fc2 = nn.Linear(2 * hidden * seen, hidden, bias=False)
        self.bn2 = Norm(hidden)
        self.fc3 = nn.Linear(hidden, bins * channels, bias=False)
        self.bn3 = Norm(bins * channels)
        self.output_scale = nn.Parameter(torch.ones(bins))
        self.output_mean = nn.Parameter(torch.ones(bins))

    def mask(self, magnitude: Tensor, *, half: bool = False) -> Tensor:
        """As `Network.mask`; the branches and their first matrices are never in half precision."""
        self.require(magnitude)
        batch, count = magnitude.shape[:2]
        encoders = cast(Iterable[Encoder], self.encoders.values())
        encoded = [(encoder, encoder.encoded(magnitude)) for encoder in encoders]
        with in_half(magnitude.device) if half else nullcontext():
            return self._decoded([encoder.followed(hidden) for encoder, hidden in encoded], batch, count)

    def _decoded(self, parts: Sequence[Tensor], batch: int, count: int) -> Tensor:
        """What the encoders gave, `(frames, batch, 2 * hidden)` each, -> the mask."""
        channels, bins = self.config.channels, self.config.bins
        hidden = torch.relu(_normalised(self.bn2, self.fc2(_fused(self.config.fusion, parts, self.gains))))
        # The output's scale and mean belong to the last norm's: one pass over all bins less.
        scale, mean = self.output_scale.repeat(channels), self.output_mean.repeat(channels)
        weight, bias = self.bn3.weight * scale, self.bn3.bias * scale + mean
        outputs = self.bn3.normalised(self.fc3(hidden).flatten(0, 1), weight, bias)
        hidden = outputs.view(count, batch, channels, bins).transpose(0, 1)
        return torch.sigmoid(hidden) if self.config.mask == "sigmoid" else torch.relu(hidden)


class MaskPair(MaskNet):
    """Two networks: the mask is a weighted mean of theirs. Unlike ones err differently, and the mean errs less.

    The first one's weights have the names that they have in a `MaskNet`, the other's stand under ``second``.

    Args:
        config: one with a `second` network, and a BLSTM as the first.
    """

    def __init__(self, config: Config) -> None:
        if config.network != "blstm":
            raise ModelError(f"the first network of a pair is a blstm, got {config.network}")
        super().__init__(config)
        self.second = build_net(config.of_second)

    def mask(self, magnitude: Tensor, *, half: bool = False) -> Tensor:
        """As `MaskNet.mask`."""
        first, second = super().mask(magnitude, half=half), self.second.mask(magnitude, half=half)
        return torch.lerp(first, second.to(first.dtype), self.config.second_share)


Net: TypeAlias = MaskNet | UNet


def build_net(config: Config) -> Net:
    """The network, or the two, that a config describes, with random weights."""
    if config.second:
        return MaskPair(config)
    return UNet(config) if config.network == "unet" else MaskNet(config)


def members(net: Net) -> list[tuple[float, Net]]:
    """The networks whose masks are averaged, each with its share; of a pair's first the first's own weights count."""
    if not isinstance(net, MaskPair):
        return [(1.0, net)]
    share = net.config.second_share
    return [(1 - share, net), (share, net.second)]


def from_openunmix_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of open-unmix's `OpenUnmix` under `MaskNet`'s names (one branch, ``linear``).

    Keys that describe the transform, not the network (`stft.window`, `sample_rate`, `transform.*`), are left out.

    Raises:
        ModelError: a key is neither open-unmix's nor one of those.
    """
    renamed = {"gains": torch.ones(0)}
    for key, value in state.items():
        head = key.split(".")[0]
        if head in ("input_mean", "input_scale"):
            renamed[f"encoders.linear.{head.removeprefix('input_')}"] = value
        elif head in ("fc1", "bn1", "lstm"):
            renamed[f"encoders.linear.{key}"] = value
        elif head in ("fc2", "bn2", "fc3", "bn3", "output_scale", "output_mean"):
            renamed[key] = value
        elif head not in ("stft", "sample_rate", "transform"):
            raise ModelError(f"{key!r} is no weight of open-unmix: this is a model of another architecture")
    return renamed
