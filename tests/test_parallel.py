"""Two processes that do one run, against one process that does it alone."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from umx_ext.separation.norms import Norm2d
from umx_ext.training.parallel import GlobalBatchNorm, Group, joined, with_global_norms

ROOT = Path(__file__).parent.parent

SCRIPT = """
import dataclasses, json, os, sys
from pathlib import Path
from tests.toy_store import CONFIG
from umx_ext.training.fit import fit
from umx_ext.training.options import TrainOptions
from umx_ext.training.tracks import Pack
import torch
torch.set_num_threads(1)
losses = []
options = TrainOptions(
    steps=8, batch=5, excerpt_s=0.5, every=4, warmup=2, learning_rate=3e-3, precision="float32", network=sys.argv[3]
)
config = dataclasses.replace(CONFIG, dropout=0.0)
if options.network == "unet":
    config = dataclasses.replace(config, branches=("linear-log",))
fit(Pack(Path(sys.argv[1])), config, options, Path(sys.argv[2]), progress=lambda now: losses.append(now.loss))
if os.environ.get("RANK", "0") == "0":
    Path(sys.argv[2], "losses.json").write_text(json.dumps(losses))
"""


def run(store: Path, folder: Path, processes: int, network: str) -> list[float]:
    import json

    script = folder.with_suffix(".py")
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(script), str(store), str(folder), network]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, timeout=120, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "losses.json").read_text())


@pytest.mark.parametrize("network", ["umx_ext", "unet"])
def test_two_processes_do_the_run_of_one(network, store, tmp_path):
    alone, together = run(store, tmp_path / "alone", 1, network), run(store, tmp_path / "together", 2, network)
    assert together == pytest.approx(alone, rel=2e-4)
    assert alone[0] != pytest.approx(alone[-1], rel=1e-2)  # they did learn something: not the same number eight times
    logs = [list(csv.reader((tmp_path / which / "log.csv").open())) for which in ("alone", "together")]
    for first, second in zip(*(log[1:] for log in logs), strict=True):
        assert [float(value) for value in first[:4]] == pytest.approx([float(value) for value in second[:4]], abs=0.02)


def test_a_process_of_its_own_is_a_group_of_one():
    with joined(torch.device("cpu")) as group:
        assert group == Group(0, 1) and group.leads
        assert group.agree(3) == 3 and group.total(torch.tensor(2.0)) == 2


@pytest.mark.parametrize("shape", [(50, 7), (3, 7, 5, 4)])
def test_a_global_norm_is_torchs_in_a_group_of_one(shape, monkeypatch):
    """The same numbers, gradients and running statistics, where there is nobody to add up with."""
    import torch.distributed.nn.functional as functional

    monkeypatch.setattr(functional, "all_reduce", lambda value: value)
    torch.manual_seed(0)
    plain, ours = (nn.BatchNorm1d(7), nn.BatchNorm1d(7)) if len(shape) == 2 else (nn.BatchNorm2d(7), Norm2d(7))
    with_global_norms(ours)
    assert isinstance(ours, GlobalBatchNorm)
    counted = torch.arange(7.0).view(7, *[1] * (len(shape) - 2))
    results = []
    for norm in (plain, ours):
        values = (3 * torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 2).requires_grad_()
        norm(values).square().mul(counted).sum().backward()
        results.append((norm(values.detach()), values.grad, norm.weight.grad, norm.running_mean, norm.running_var))
        assert int(norm.num_batches_tracked) == 2
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain.eval()(torch.ones(shape)), ours.eval()(torch.ones(shape)))
