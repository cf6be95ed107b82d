"""Runs as model files: one network, and two as a pair."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from umx_ext.errors import ModelError
from umx_ext.separation import pretrained
from umx_ext.separation.config import Config
from umx_ext.separation.masknet import MaskNet, MaskPair
from umx_ext.training.export import export

FIRST = Config(branches=("linear-log", "mel"), mask="sigmoid", hidden=8, layers=1, n_fft=256, hop=64, n_mels=8,
               niter=2, filter_power=0.5)  # fmt: skip
SECOND = dataclasses.replace(FIRST, branches=("linear",), mask="relu", niter=1, filter_power=1.0)


def chosen(config: Config, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    options = {"network": "umx_ext", "seed": seed}
    origin = {"options": options, "data": "0" * 64, "step": 7, "draws": {}, "schedule": [[0, 9]], "sdr_db": 1.0}
    return {"config": config.to_dict(), "state": MaskNet(config).state_dict(), **origin}


def test_two_runs_become_a_pair_with_the_weights_of_both(tmp_path: Path) -> None:
    first, second, target = chosen(FIRST, 1), chosen(SECOND, 2), tmp_path / "pair.safetensors"
    export(first, target, second=second, second_share=0.25, niter=2, filter_power=0.5, half=False)
    made = pretrained.load(target)
    net = made.nets["vocals"]
    assert isinstance(net, MaskPair) and (made.config.niter, made.config.filter_power) == (2, 0.5)
    state = net.state_dict()
    for name, values in first["state"].items():
        assert torch.equal(state[name], values), name
    for name, values in second["state"].items():
        assert torch.equal(state[f"second.{name}"], values), name
    metadata = pretrained.read_metadata(target)
    assert metadata["seed"] == "1" and json.loads(metadata["second_run"])["seed"] == "2"
    assert metadata["config"]["second"] == ["linear"] and metadata["config"]["second_share"] == 0.25


def test_networks_of_different_sizes_are_no_pair(tmp_path: Path) -> None:
    other = dataclasses.replace(SECOND, hidden=16)
    with pytest.raises(ModelError, match="of the same sizes"):
        export(chosen(FIRST, 1), tmp_path / "pair", second=chosen(other, 2), second_share=0.3)
    assert not list(tmp_path.iterdir())
