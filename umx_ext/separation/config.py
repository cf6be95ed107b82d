"""The frozen description of a separator: with it and the weights, everything can be rebuilt."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from umx_ext.errors import ModelError

__all__ = ["FUSIONS", "MASKS", "NETWORKS", "Config"]

MASKS = ("relu", "sigmoid")
NETWORKS = ("blstm", "unet")
FUSIONS = ("add", "concat", "lstm-add")

# Younger than the first models. `to_dict` leaves them out while they have their defaults, which is what all networks
# were before: such a model's file stays the same to the byte, older versions read it, a run started before goes on.
_YOUNGER = ("n_mfcc", "fusion", "filter_power", "second", "second_mask", "second_share", "network", "second_network")

# By annotation: what a value must be, in Python (numpy's numbers are of these too) and in words.
_KINDS = {"int": (numbers.Integral, "a whole number"), "float": (numbers.Real, "a number"), "str": (str, "a name")}


@dataclass(frozen=True)
class Config:
    """Everything needed to rebuild a `Separator` except its weights.

    The defaults are open-unmix's: a linear branch alone, hidden size 512, three BLSTM layers.

    Attributes:
        stems: names of the stems that have a network, in order.
        branches: different names of linear, linear-log, linear2, linear2-log, mel, mel-poster, mfcc, and others in
            `umx_ext.separation.branches.BRANCHES`: each the start of one encoder + BLSTM. The first has the weight 1,
            every further one a gain that is learnt.
        sample_rate: rate the networks run at, Hz.
        channels: channels the networks run at, 1 or 2.
        n_fft: STFT window, samples (periodic Hann).
        hop: STFT hop, samples.
        bandwidth_hz: highest frequency that the branches look at.
        n_mels: bands of the mel branches, and of the spectrum that ``mfcc`` transforms.
        hidden: width of the network; each direction of a BLSTM has half of it.
        layers: BLSTM layers.
        dropout: between BLSTM layers, in training only.
        mask: ``"relu"`` (open-unmix: unbounded) or ``"sigmoid"`` (0 to 1).
        niter: iterations of the Wiener filter that suit this model, for whoever does not say otherwise.
        n_mfcc: coefficients of the branch ``mfcc``, the 0th counted.
        fusion: what the decoder sees of several branches. ``"add"``: the sum of their concatenations ``[encoder
            output, BLSTM output]``; ``"concat"``: all of them side by side; ``"lstm-add"``: the sum of the BLSTM
            outputs, beside the encoder output of the first branch alone. Of one branch it is the same.
        filter_power: exponent of the masks that the Wiener filter starts from, 0.1 to 1. With 1 a mask is a stem's
            share of the amplitude, as open-unmix has it. With 0.5 it is its share of the power: where a stem and
            the rest come from the same direction, the filter then gives the mask back instead of a sharper one.
        second: branches of a second network of the same sizes, with a decoder of its own, that has a say in the mask;
            none: there is no second network.
        second_mask: how it makes its mask, as `mask`.
        second_share: above 0 and below 1: a stem's mask is so much of the second network's, the rest of the first's.
        network: ``"blstm"`` (`umx_ext.separation.masknet`) or ``"unet"`` (`umx_ext.separation.unet`), which has one
            branch and the mask sigmoid; its sizes are fixed: hidden, layers, dropout and fusion are the other's.
        second_network: what the second one is.
    """

    stems: tuple[str, ...] = ("vocals",)
    branches: tuple[str, ...] = ("linear",)
    sample_rate: int = 44100
    channels: int = 2
    n_fft: int = 4096
    hop: int = 1024
    bandwidth_hz: float = 16000.0
    n_mels: int = 128
    hidden: int = 512
    layers: int = 3
    dropout: float = 0.4
    mask: str = "relu"
    niter: int = 1
    n_mfcc: int = 40
    fusion: str = "add"
    filter_power: float = 1.0
    second: tuple[str, ...] = ()
    second_mask: str = "relu"
    second_share: float = 0.0
    network: str = "blstm"
    second_network: str = "blstm"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kind, words = _KINDS.get(str(field.type), (object, ""))
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not object):
                raise ModelError(f"expected {words} for {field.name}, got {value!r}")
        for name in ("stems", "branches", "second"):
            if isinstance(getattr(self, name), str):  # which is a sequence of names too, of a letter each
                raise ModelError(f"expected a sequence of names for {name}, got the string {getattr(self, name)!r}")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.stems or not self.branches:
            raise ModelError(f"expected at least one stem and one branch, got {self.stems} and {self.branches}")
        for branches in (self.branches, self.second):
            if len(set(branches)) < len(branches):
                raise ModelError(
                    f"expected different branches, got {', '.join(map(str, branches))}; a second linear one is linear2"
                )
        if self.channels not in (1, 2):
            raise ModelError(f"expected 1 or 2 channels, got {self.channels}")
        for mask in (self.mask, self.second_mask):
            if mask not in MASKS:
                raise ModelError(f"no mask named {mask!r}; known: {', '.join(MASKS)}")
        for network in (self.network, self.second_network):
            if network not in NETWORKS:
                raise ModelError(f"no network named {network!r}; known: {', '.join(NETWORKS)}")
        if not self.second and self.second_network != "blstm":
            raise ModelError(f"a second_network ({self.second_network}) needs the branches of a second network")
        if not (0 < self.second_share < 1 if self.second else self.second_share == 0):
            raise ModelError(
                f"expected a second_share above 0 and below 1 with a second network, and 0 without, got "
                f"{self.second_share} with the second's branches {self.second}"
            )
        if self.fusion not in FUSIONS:
            raise ModelError(f"no fusion named {self.fusion!r}; known: {', '.join(FUSIONS)}")
        for name in ("sample_rate", "n_fft", "hop", "bandwidth_hz", "n_mels", "hidden", "layers", "n_mfcc"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ModelError(f"expected {name} above 0, got {value}")
        if self.n_fft % 2 or self.n_fft % self.hop or self.n_fft < 2 * self.hop:
            raise ModelError(f"n_fft ({self.n_fft}) must be even and 2 or more times the hop ({self.hop})")
        if not 0.1 <= self.filter_power <= 1:
            raise ModelError(f"expected a filter_power from 0.1 to 1, got {self.filter_power}")
        if self.niter < 0:
            raise ModelError(f"expected niter of 0 or more, got {self.niter}")
        if self.hidden % 2:
            raise ModelError(f"hidden ({self.hidden}) must be even: half of it for each direction of the BLSTM")

    @property
    def bins(self) -> int:
        """Frequencies of the one-sided STFT."""
        return self.n_fft // 2 + 1

    @property
    def bandwidth_bins(self) -> int:
        """Number of STFT bins at or below `bandwidth_hz` (1487 for 16 kHz at 44.1 kHz and n_fft 4096)."""
        return min(self.bins, int(self.bandwidth_hz * self.n_fft / self.sample_rate) + 1)

    @property
    def of_first(self) -> Config:
        """The first network's own config, as if it were alone."""
        return dataclasses.replace(self, second=(), second_mask="relu", second_share=0.0, second_network="blstm")

    @property
    def of_second(self) -> Config:
        """The second network's own config, as if it were alone."""
        return dataclasses.replace(
            self.of_first, branches=self.second, mask=self.second_mask, network=self.second_network
        )

    def to_dict(self) -> dict[str, Any]:
        """A plain, JSON-ready dict; `from_dict` is its inverse. The younger fields are in it if not the defaults."""
        defaults = {field.name: field.default for field in dataclasses.fields(self) if field.name in _YOUNGER}
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in defaults or value != defaults[name]
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Config:
        """Rebuild from `to_dict`'s output.

        Raises:
            ModelError: a field is unknown, so the model was made by a newer umx_ext, or is not what it can be.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise ModelError(
                f"the model's config has fields that this version does not know: {', '.join(unknown)}; update umx-ext"
            )
        try:
            return cls(**fields)
        except (TypeError, ModelError) as error:
            raise ModelError(f"the model's config is malformed: {error}") from error
