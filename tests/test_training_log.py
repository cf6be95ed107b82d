"""The logs of the runs that made the embedded model: what they say can be had again."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import umx_ext
from umx_ext.separation import pretrained
from umx_ext.training.fit import replay
from umx_ext.training.tracks import Pack, pack

ROOT = Path(__file__).resolve().parent.parent
FILE = Path(umx_ext.__file__).parent / "weights" / "umx_ext.safetensors"


def rows(name: str) -> list[dict[str, float]]:
    with (ROOT / "docs" / name).open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def script():
    spec = importlib.util.spec_from_file_location("train_model", ROOT / "scripts" / "train_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_model_comes_from_the_second_run_as_the_script_has_it():
    metadata, (options, draws) = pretrained.read_metadata(FILE), script().SECOND
    said = json.loads(metadata["options"])
    for name in ("loss", "learning_rate", "batch", "excerpt_s", "remix", "seed", "ema"):
        assert said[name] == getattr(options, name), name
    assert json.loads(metadata["draws"]) == draws
    log = {row["step"]: row for row in rows("training_log_second.csv")}
    step = float(metadata["steps"])
    assert log[step]["valid_vocals_sdr_db"] == pytest.approx(float(metadata["valid_sdr_db"]), abs=1e-3)
    before = json.loads(metadata["first_run"])
    assert before["steps"] == rows("training_log_first.csv")[-1]["step"]
    assert before["schedule"] == [[0, script().PLANNED], [script().SHORTENED_AT, script().FIRST[0].steps]]


def test_the_second_network_comes_from_the_u_nets_runs_as_the_script_has_them():
    metadata, runs = pretrained.read_metadata(FILE), script().CONVOLUTIONAL
    second, before = json.loads(metadata["second_run"]), json.loads(metadata["second_runs_before"])
    *names, last = list(runs)[: len(before) + 1]
    options, draws = runs[last]
    assert json.loads(second["options"]) == dataclasses.asdict(options)
    assert json.loads(second["draws"]) == draws and second["data_sha256"] == metadata["data_sha256"]
    assert second["initial"] != "random" and json.loads(second["schedule"]) == [[0, options.steps]]
    end = rows(f"training_log_{last}.csv")[-1]
    assert end["step"] == float(second["steps"]) == options.steps
    assert end["valid_vocals_sdr_db"] == pytest.approx(float(second["valid_sdr_db"]), abs=1e-3)
    assert names[0] == "unet"
    for name, run in zip(names, before, strict=True):
        options, draws = runs[name]
        assert run["options"] == dataclasses.asdict(options) and run["draws"] == draws and len(run["commit"]) >= 7
        assert rows(f"training_log_{name}.csv")[-1]["step"] == run["steps"] == options.steps


def test_open_unmixs_network_had_the_same_steps():
    for name, (options, _) in (("first", script().FIRST), ("second", script().SECOND)):
        assert rows(f"training_log_openunmix_{name}.csv")[-1]["step"] == options.steps


@pytest.fixture(scope="module")
def store(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    target = tmp_path_factory.mktemp("store")
    pack([data / "musdb18-7", data / "mir1k"], target, speeds=script().SPEEDS)
    yield target
    shutil.rmtree(target)  # two gigabytes


def test_the_steps_that_were_logged_one_by_one_are_those_of_the_first_run():
    """Which wrote a mean of 250 steps: theirs is the same, to what decoders of MIR-1K's Opus files differ by."""
    losses = [row["loss"] for row in rows("training_first_steps.csv")]
    assert len(losses) == 250
    assert np.mean(losses) == pytest.approx(rows("training_log_first.csv")[0]["loss"], rel=2e-3)


def test_the_first_steps_of_the_first_run_can_be_done_again(store: Path):
    """And are not those of any run: with another seed they differ by far more than arithmetic does."""
    module = script()
    options, draws = module.FIRST
    planned = dataclasses.replace(options, steps=module.PLANNED)
    logged = [row["loss"] for row in rows("training_first_steps.csv")]
    found = replay(Pack(store), module.CONFIG, planned, 20, draws=draws)
    other = replay(Pack(store), module.CONFIG, dataclasses.replace(planned, seed=5), 3, draws=draws)
    assert np.abs(np.array(found) / logged[:20] - 1).max() < 2e-3
    assert np.abs(np.array(other) / logged[:3] - 1).max() > 1e-2


def test_the_first_steps_of_the_u_nets_run_can_be_done_again(store: Path):
    """In bfloat16 where the processor computes in it, as in the run, and else in float32."""
    module = script()
    options, draws = module.CONVOLUTIONAL["unet"]
    config = dataclasses.replace(module.CONFIG, branches=("linear-log",))
    logged = [row["loss"] for row in rows("training_first_steps_unet.csv")]
    found = replay(Pack(store), config, options, 20, draws=draws)
    other = replay(Pack(store), config, dataclasses.replace(options, seed=5), 2, draws=draws)
    assert len(logged) == 20 and np.abs(np.array(found) / logged - 1).max() < 2e-3
    assert np.abs(np.array(other) / logged[:2] - 1).max() > 5e-3


def test_the_store_is_made_of_the_files_the_model_was_trained_with(store: Path):
    assert Pack(store).data_sha256 == pretrained.read_metadata(FILE)["data_sha256"]
