"""Fine-tuning: a network that starts as a trained one, with further branches that have no say yet.

The gain of every branch that the trained network lacks is set to 0. So the start equals the trained network exactly,
whatever those branches' random weights, and the first steps learn the gains before the branches.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from umx_ext.errors import ModelError, UsageError
from umx_ext.separation import pretrained
from umx_ext.separation.download import Progress
from umx_ext.separation.masknet import Encoder, MaskNet, Net, from_openunmix_state
from umx_ext.separation.modelfile import read_openunmix_state
from umx_ext.separation.unet import UNet

__all__ = ["init_from"]

# What two networks must share, so that one can start as the other. Dropout is the new one's own business.
_SHARED = ("sample_rate", "channels", "n_fft", "hop", "bandwidth_bins", "hidden", "layers", "mask")


def init_from(
    net: MaskNet,
    source: Net | Mapping[str, Tensor] | str | os.PathLike[str],
    *,
    stem: str = "vocals",
    progress: Progress | None = None,
    offline: bool | None = None,
) -> tuple[str, ...]:
    """Make a network start as a trained one. Standardise it before, not after: the trained one's statistics are kept.

    Args:
        net: gets the weights. Its first branch must be the trained network's first, and it must have all others that
            the trained network has. Branches beyond those keep their weights, and get the gain 0.
        source: a name in `umx_ext.separation.pretrained.MODELS`, downloaded if need be; the path of a ``.safetensors``
            of ours, of a model folder of open-unmix's or of one of its ``.pth`` (which does not say its rate and STFT:
            they are taken to be the network's); a network; or the state dict of a network of one branch, under
            open-unmix's names or ours. It is not changed. Of a pair (`Config.second`) the first is taken.
        stem: whose network of a model with several.
        progress: called while files are downloaded; as for `umx_ext.load`.
        offline: as for `umx_ext.load`.

    Returns:
        The branches that are new: those with the gain 0.

    Raises:
        ModelError: the source cannot be found or read, or is of an architecture that `net` cannot start as. `net` is
            as before then.
        UsageError: `net` is no `MaskNet`.

    Example:
        >>> net = MaskNet(Config(branches=("linear", "mel")))      # doctest: +SKIP
        >>> init_from(net, "umxhq")                                # doctest: +SKIP
        ('mel',)
    """
    if not isinstance(net, MaskNet):
        raise UsageError(f"only a MaskNet can start from other weights, got {type(net).__name__}")
    where = "the source"
    if isinstance(source, str | os.PathLike):
        where, source = os.fspath(source), _read(source, stem, progress, offline)
    if isinstance(source, UNet):
        raise ModelError(f"{where} is a U-Net; a network can start from one of BLSTMs only")
    if isinstance(source, MaskNet):
        _require_same_settings(net, source, where)
        branches, state = source.config.branches, source.state_dict()
    else:
        state = dict(source)
        if "fc1.weight" in state:
            state = from_openunmix_state(state)
        branches = tuple(dict.fromkeys(key.split(".")[1] for key in state if key.startswith("encoders.")))
        if len(branches) != 1:
            raise ModelError(
                f"{where} is a state dict of {len(branches)} branches; expected one of 1 branch, or the network "
                "itself, which says how its branches are ordered and fused"
            )
    ours = net.config.branches
    if branches[0] != ours[0] or not set(branches) <= set(ours):
        raise ModelError(
            f"{where} has the branches {', '.join(branches)}; a network that starts from it must have these too and "
            f"{branches[0]} first, got {', '.join(ours)}"
        )
    net.load_state_dict(_started(net, branches, state, where))
    return tuple(name for name in ours if name not in branches)


def _read(
    name_or_path: str | os.PathLike[str], stem: str, progress: Progress | None, offline: bool | None
) -> Net | dict[str, Tensor]:
    if name_or_path not in pretrained.MODELS and Path(name_or_path).suffix == ".pth":
        return read_openunmix_state(Path(name_or_path).expanduser())
    return cast(Net, pretrained.load(name_or_path, stems=[stem], progress=progress, offline=offline).nets[stem])


def _require_same_settings(net: MaskNet, source: MaskNet, where: str) -> None:
    ours, theirs = net.config, source.config
    fields = [name for name in _SHARED if getattr(ours, name) != getattr(theirs, name)]
    if len(theirs.branches) > 1 and ours.fusion != theirs.fusion:
        fields.append("fusion")
    if fields:
        here, there = (", ".join(f"{name} {getattr(config, name)}" for name in fields) for config in (ours, theirs))
        raise ModelError(f"a network with {here} cannot start from {where}, which has {there}; set these alike")
    # Branches of one name may still see different things, by settings that only they know of: so they are asked.
    probe = torch.rand(1, 2, ours.channels, ours.bins, generator=torch.Generator().manual_seed(0))
    for name in set(ours.branches) & set(theirs.branches):
        if not torch.equal(_seen(net, name, probe), _seen(source, name, probe)):
            raise ModelError(
                f"the branch {name} of {where} is not the network's: n_mels, bandwidth_hz or another setting differs"
            )


def _seen(net: MaskNet, name: str, probe: Tensor) -> Tensor:
    encoder = net.encoders[name]
    assert isinstance(encoder, Encoder)
    return copy.deepcopy(encoder.branch).to("cpu", torch.float32)(probe)


def _started(net: MaskNet, branches: tuple[str, ...], state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The whole state dict that `net` is to have; nothing of it is `net`'s own memory."""
    config = net.config
    start = {key: value.clone() for key, value in net.state_dict().items()}
    start["gains"].zero_()
    for number, name in enumerate(branches[1:]):
        start["gains"][config.branches.index(name) - 1] = state["gains"][number]
    wanted = {key for key in start if not key.startswith("encoders.") or key.split(".")[1] in branches} - {"gains"}
    missing = [key for key in start if key in wanted and key not in state and not key.endswith("num_batches_tracked")]
    if missing:
        raise ModelError(f"{where} lacks the weight {missing[0]!r}")
    for key in wanted & set(state):
        targets, values = [start[key]], [state[key]]
        if key == "fc2.weight" and config.fusion == "concat":  # its columns are one block a branch
            blocks = start[key].chunk(len(config.branches), dim=1)
            targets = [blocks[config.branches.index(name)] for name in branches]
            values = list(state[key].chunk(len(branches), dim=1))
        for target, value in zip(targets, values, strict=True):
            if target.shape != value.shape:
                raise ModelError(
                    f"{where} has another architecture than the network: its {key!r} has the shape "
                    f"{tuple(value.shape)}, expected {tuple(target.shape)}"
                )
            target.copy_(value)
    return start
