"""A trained network as a model that `umx-ext separate -n` and `umx_ext.load` take."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from umx_ext.errors import ModelError
from umx_ext.separation.config import Config
from umx_ext.separation.masknet import build_net
from umx_ext.separation.pretrained import save
from umx_ext.separation.separator import Separator

__all__ = ["chosen_of", "export"]


def chosen_of(run: Path, *, last: bool = False) -> dict[str, Any]:
    """The weights of a run and where they come from: the best validated ones, or those of its last validation.

    Raises:
        ModelError: the folder has no such checkpoint, or it is damaged.
    """
    path = run / ("last.pt" if last else "best.pt")
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        if not last:
            return state
        origin = state["identity"] | {"step": state["step"], "schedule": state["schedule"]}
        return origin | {"state": state["averaged"], "sdr_db": state["log"][-1][2]}
    except Exception as error:  # torch raises a dozen kinds
        raise ModelError(f"{path} is no checkpoint of a run that was validated; train it first") from error


def export(
    chosen: Mapping[str, Any],
    target: Path,
    *,
    niter: int | None = None,
    filter_power: float | None = None,
    metadata: Mapping[str, str] | None = None,
    half: bool = True,
    second: Mapping[str, Any] | None = None,
    second_share: float = 0.0,
) -> None:
    """Write a run's weights as safetensors.

    Args:
        chosen: what `chosen_of` gives.
        target: the file.
        niter: iterations of the Wiener filter by default; None for what the run's config says.
        filter_power: exponent of the masks that it starts from; None for what the run's config says.
        metadata: more to say of its origin than the run knows: commit, licence.
        half: store as float16, at half the size.
        second: what `chosen_of` gives of another run, whose network has the same sizes: both become a pair.
        second_share: its share of the mask.

    Raises:
        ModelError: the two do not fit together.
        OutputError: the file cannot be written.
    """
    config, state = _network(chosen)
    if second is not None:
        other, its_state = _network(second)
        config = dataclasses.replace(
            config,
            second=other.branches,
            second_mask=other.mask,
            second_share=second_share,
            second_network=other.network,
        )
        own = {"stems": other.stems, "niter": other.niter, "filter_power": other.filter_power}  # of no network
        if dataclasses.replace(config.of_second, **own) != other:  # type: ignore[arg-type]
            raise ModelError(f"expected two networks of the same sizes, got {config.of_second} and {other}")
        state = {**state, **{f"second.{name}": values for name, values in its_state.items()}}
    if niter is not None:
        config = dataclasses.replace(config, niter=niter)
    if filter_power is not None:
        config = dataclasses.replace(config, filter_power=filter_power)
    net = build_net(config)
    net.load_state_dict(state, strict=False)  # counters of the batch norms are not kept by open-unmix
    origin = _origin(chosen)
    if second is not None:
        origin["second_run"] = json.dumps(_origin(second))
    save(Separator(config, {config.stems[0]: net}), target, metadata=origin | dict(metadata or {}), half=half)


def _network(chosen: Mapping[str, Any]) -> tuple[Config, dict[str, torch.Tensor]]:
    """Config and weights under the names of our networks."""
    state, config = dict(chosen["state"]), Config.from_dict(chosen["config"])
    if chosen["options"]["network"] == "unet":
        config = dataclasses.replace(config, network="unet")
    if chosen["options"]["network"] == "openunmix":
        from umx_ext.training.baseline import masknet_state

        state = masknet_state(state)
    return config, state


def _origin(chosen: Mapping[str, Any]) -> dict[str, str]:
    return {
        "data_sha256": chosen["data"],
        "steps": str(chosen["step"]),
        "seed": str(chosen["options"]["seed"]),
        "options": json.dumps(chosen["options"]),
        "draws": json.dumps(chosen["draws"]),
        "initial": "weights of another run" if chosen.get("initial") else "random",
        "schedule": json.dumps(chosen["schedule"]),
        "valid_sdr_db": f"{chosen['sdr_db']:.3f}",
    }
