"""`umx-ext data pack` and `umx-ext train` as a person meets them: what they do, and what they say to bad input."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import umx_ext
from umx_ext import cli
from umx_ext.commands.train import Draws, Options, Shape, readable
from umx_ext.separation import pretrained
from umx_ext.separation.branches import BRANCHES
from umx_ext.training.augment import AUGMENTATIONS
from umx_ext.training.losses import LOSSES
from umx_ext.training.remix import REMIXES, Remixer
from umx_ext.training.tracks import MUSDB_VALID, Pack, find_loose, find_tracks, pack

RATE = 8000
ROOT = Path(__file__).resolve().parent.parent
KNOWN = {"branches": BRANCHES, "remix": REMIXES, "loss": LOSSES, "augment": AUGMENTATIONS}
SMALL = ["--sample-rate", "8000", "--n-fft", "256", "--hop", "64", "--bandwidth-hz", "3000", "--n-mels", "8"]
SMALL += ["--hidden", "8", "--batch", "2", "--excerpt-s", "0.5", "--warmup", "1", "--steps", "4", "--every", "2"]


def test_the_help_names_whatever_can_be_named():
    for owner, setting in ((Shape, "branches"), (Options, "remix"), (Options, "loss"), (Draws, "augment")):
        doc = inspect.cleandoc(owner.__doc__)
        (said,) = re.findall(rf"^    {setting}: (.*?)(?=^    \w+: |\Z)", doc, flags=re.M | re.S)
        words = set(re.findall(r"[a-z][a-z0-9-]*", said))
        assert set(KNOWN[setting]) <= words, setting
        assert "`" not in owner.__doc__
    assert readable('``"relu"`` (see `a.b`), ``x``') == "relu (see a.b), x"


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three songs of four stems, one pair, and one of each kind that cannot be used."""
    root = tmp_path_factory.mktemp("songs")
    rng = np.random.default_rng(0)

    def write(song: str, **stems: np.ndarray) -> None:
        (root / song).mkdir()
        for stem, samples in stems.items():
            soundfile.write(root / song / f"{stem}.wav", samples, RATE, subtype="FLOAT")

    def noise(seconds: float = 1.5) -> np.ndarray:
        return 0.1 * rng.standard_normal((round(seconds * RATE), 2))

    four = ("vocals", "drums", "bass", "other")
    for song in "abc":
        write(song, **{stem: noise() for stem in four})
    write("nan", **{stem: noise() for stem in four[1:]}, vocals=np.full((RATE, 2), np.nan))
    write("unequal", **{stem: noise() for stem in four[1:]}, vocals=noise(0.5))
    write("lacking", **{stem: noise() for stem in four[:3]})
    write("broken", **{stem: noise() for stem in four})
    (root / "broken" / "drums.wav").write_bytes(b"not sound")
    write("short", **{stem: noise(0.2) for stem in four})  # shorter than an excerpt: padded with silence
    return root


@pytest.fixture(scope="module")
def store(songs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a validation song, which the toy corpus marks by its folder."""
    folder = tmp_path_factory.mktemp("stores") / "store"
    assert cli.main(["data", "pack", str(songs), str(folder), "--rate", str(RATE), "-q"]) == 1
    return folder


def test_songs_that_cannot_be_read_are_left_out_by_name_and_counted(songs, tmp_path, capsys):
    code = cli.main(["data", "pack", str(songs), str(tmp_path / "store"), "--rate", str(RATE)])
    out, err = capsys.readouterr()
    assert code == 1
    lines = err.splitlines()
    reasons = {"broken": "not sound", "nan": "nan", "unequal": "different lengths", "lacking": "no other"}
    for song, why in reasons.items():
        assert sum(song in line and why in line for line in lines) == 1, err
    assert "4 songs, clips and loose stems, 4 left out" in out
    index = json.loads((tmp_path / "store" / "index.json").read_text())
    assert set(index["skipped"]) == {"broken", "nan", "unequal", "lacking"}
    assert {entry["track"] for entry in index["entries"]} == {"a", "b", "c", "short"}
    assert "held out" in out  # none of them is marked as validation


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["one"], 2, "ROOT... OUT"),
        (["nowhere", "out"], 2, "nowhere"),
        (["EMPTY", "out"], 4, "EMPTY"),
        (["SONGS", "STORE"], 2, "is a store already"),
        (["SONGS", "out", "--vocals", "nowhere"], 2, "nowhere"),
        (["SONGS", "FILE/out"], 6, "cannot be written"),
    ],
)
def test_packing_says_what_is_wrong(arguments, code, said, songs, store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "FILE").write_text("")
    names = {"SONGS": str(songs), "STORE": str(store)}
    assert cli.main(["data", "pack", *(names.get(argument, argument) for argument in arguments)]) == code
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and said in err
    assert not (tmp_path / "out").exists()


def test_test_songs_are_never_looked_into(songs, tmp_path, capsys):
    for kind in ("test", "Test"):
        shutil.copytree(songs / "a", tmp_path / kind / "corpus" / "a")
    assert cli.main(["data", "pack", str(tmp_path / "test"), str(tmp_path / "out")]) == 2
    assert "never trained on" in capsys.readouterr().err


def test_musdbs_validation_songs_are_held_out_wherever_they_lie(songs, tmp_path):
    name = sorted(MUSDB_VALID)[0]
    for song in (name, "another"):
        shutil.copytree(songs / "a", tmp_path / "flat" / song)
    assert {track.name: track.split for track in find_tracks(tmp_path / "flat")} == {name: "valid", "another": "train"}
    # A song that is for validation in one corpus is not trained on in another.
    for place in ("one/train/x", "one/valid/y", "two/train/y", "two/train/z"):
        shutil.copytree(songs / "a", tmp_path / place)
    pack([tmp_path / "one", tmp_path / "two"], tmp_path / "store", sample_rate=RATE)
    assert {entry.track for entry in Pack(tmp_path / "store") if entry.split == "train"} == {"x", "z"}


def test_loose_files_of_test_folders_and_hidden_ones_are_left_alone(songs, tmp_path):
    for place in ("a.wav", "deep/b.wav", "test/c.wav", "deep/valid/d.wav", "._a.wav"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(songs / "a" / "vocals.wav", tmp_path / place)
    assert [track.name for track in find_loose(tmp_path, "vocals")] == ["a.wav", "deep/b.wav"]


def test_a_finished_run_that_was_killed_before_its_model_gets_it(store, tmp_path, capsys):
    command = ["train", str(store), str(tmp_path / "run"), *SMALL]
    assert cli.main(command) == 0
    (tmp_path / "run" / "model.safetensors").unlink()
    assert cli.main(command) == 0
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_loose_vocals_are_stored_beside_the_songs(songs, tmp_path):
    (tmp_path / "loose").mkdir()
    soundfile.write(tmp_path / "loose" / "singer.flac", np.full((RATE, 1), 0.1), RATE)
    arguments = [str(songs), str(tmp_path / "store"), "--vocals", str(tmp_path / "loose"), "--rate", str(RATE), "-q"]
    cli.main(["data", "pack", *arguments])
    index = json.loads((tmp_path / "store" / "index.json").read_text())
    assert [entry["source"] for entry in index["entries"] if entry["track"] == "singer.flac"] == ["vocals"]


def test_a_run_trains_says_its_scores_and_goes_on(store, tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main(["train", str(store), str(run), *SMALL, "--examples", "1"]) == 0
    out, err = capsys.readouterr()
    assert "model.safetensors: vocals" in out and "step 2: loss" in err and "step 4: loss" in err
    assert {path.name for path in run.iterdir()} == {"best.pt", "last.pt", "log.csv", "examples", "model.safetensors"}
    assert {path.suffix for path in (run / "examples").iterdir()} == {".png", ".wav"}
    noise = torch.randn(2, RATE, generator=torch.Generator().manual_seed(0))
    stems = umx_ext.load(run / "model.safetensors").separate(noise, RATE)
    torch.testing.assert_close(stems["vocals"] + stems["accompaniment"], noise)
    longer = [*SMALL[: SMALL.index("--steps")], "--steps", "6", "--every", "2", "--examples", "1"]
    assert cli.main(["train", str(store), str(run), *longer]) == 0
    assert len((run / "log.csv").read_text().splitlines()) == 4


def test_settings_come_from_a_file_and_the_command_line_wins(store, tmp_path):
    keys = [name.removeprefix("--").replace("-", "_") for name in SMALL[::2]]
    settings = dict(zip(keys, SMALL[1::2], strict=True)) | {"seed": "7"}
    file = tmp_path / "small.toml"
    file.write_text("".join(f"{name} = {value}\n" for name, value in settings.items()) + 'branches = ["linear"]\n')
    assert cli.main(["train", str(file), str(store), str(tmp_path / "run"), "--seed", "8", "-q"]) == 0
    kept = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["identity"]
    assert kept["options"]["seed"] == 8 and kept["config"]["hidden"] == 8
    assert list(kept["config"]["branches"]) == ["linear"]


def test_the_settings_of_examples_are_the_remixers(store, tmp_path):
    theirs = {one.name: one for one in dataclasses.fields(Remixer) if one.init}
    left_out = {"pack", "remix", "samples", "samples_per_track"}
    ours = {one.name: one for one in dataclasses.fields(Draws)}
    assert set(ours) == set(theirs) - left_out
    assert all(one.default == theirs[name].default for name, one in ours.items())
    run = [str(store), str(tmp_path / "run"), *SMALL, "--own-song", "0.5", "--augment.polarity", "0.25", "-q"]
    assert cli.main(["train", *run]) == 0
    kept = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["identity"]["draws"]
    assert kept["own_song"] == 0.5 and kept["augment"] == {"polarity": 0.25}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hiden = 8\n", "hiden"),
        ('hidden = "wide"\n', "hidden"),
        ("hidden = \n", "small.toml is not TOML"),
        ("steps = 0\n", "steps"),
    ],
)
def test_a_file_with_a_mistake_is_named(text, said, store, tmp_path, capsys):
    file = tmp_path / "small.toml"
    file.write_text(text)
    assert cli.main(["train", str(file), str(store), str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and said in err
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_module_of_ones_own_is_imported_first(store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("umx_ext.training.remix.REMIXES", dict(REMIXES))
    Path("my_remixes.py").write_text(
        "from umx_ext.training import remix\n"
        "remix.REMIXES['even'] = remix.LevelRemix(lambda sources, rng: rng.uniform(-30, -20, len(sources)))\n"
    )
    assert cli.main(["train", str(store), "run", *SMALL, "--remix", "even", "--import", "my_remixes", "-q"]) == 0
    assert cli.main(["train", str(store), "other", *SMALL, "--import", "nowhere"]) == 2
    assert "nowhere cannot be imported" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere", "run"], 2, "umx-ext data pack"),
        (["missing.toml", "STORE", "run"], 2, "missing.toml"),
        (["STORE", "run", "--remix", "loud"], 2, "known: wsj0"),
        (["STORE", "run", "--loss", "huber"], 2, "known: phase-sensitive"),
        (["STORE", "run", "--branches", "bark"], 3, "bark"),
        (["STORE", "run", "--precision", "fp16", "-d", "cpu"], 2, "GPU"),
        (["STORE", "run", "--network", "unet"], 2, "--branches linear-log"),
        (["STORE", "run", "--sample-rate", "16000"], 2, "--rate 16000"),
        (["STORE", "FILE/run"], 6, "cannot be made"),
        (["STORE", "run", "--devise", "cpu"], 2, "--device"),
        (["STORE", "run", "-d", "cuda:9"], 2, "cuda:9"),
    ],
)
def test_training_says_what_is_wrong(arguments, code, said, store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")
    chosen = [str(store) if argument == "STORE" else argument for argument in arguments]
    small = [*SMALL[2:]] if "--sample-rate" in chosen else SMALL
    assert cli.main(["train", *chosen, *small]) == code
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and said in err, err


def test_a_u_net_is_trained_by_name(store, tmp_path):
    run = tmp_path / "run"
    assert cli.main(["train", str(store), str(run), *SMALL, "--network", "unet", "--branches", "linear-log", "-q"]) == 0
    assert pretrained.load(run / "model.safetensors").config.network == "unet"


def test_an_excerpt_shorter_than_a_window_is_refused(store, tmp_path, capsys):
    short = ["0.01" if word == "0.5" else word for word in SMALL]
    assert cli.main(["train", str(store), str(tmp_path / "run"), *short]) == 2
    assert "at least one window, 0.032 s, got 0.01 s" in capsys.readouterr().err


def test_more_processes_than_cores_are_refused(store, tmp_path, monkeypatch, capsys):
    cores = os.cpu_count()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores + 1))
    assert cli.main(["train", str(store), str(tmp_path / "run"), *SMALL, "-d", "cpu"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "run").exists()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores))
    assert cli.main(["train", str(store), str(tmp_path / "run"), *SMALL, "-d", "cpu", "-q"]) == 0


def test_a_checkpoint_of_another_architecture_is_left_alone(store, tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main(["train", str(store), str(run), *SMALL, "-q"]) == 0
    before = (run / "last.pt").read_bytes()
    wider = ["12" if value == "8" and SMALL[at - 1] == "--hidden" else value for at, value in enumerate(SMALL)]
    assert cli.main(["train", str(store), str(run), *wider]) == 2
    assert "hidden is 12 and was 8" in capsys.readouterr().err
    (run / "last.pt").write_bytes(before[: len(before) // 2])
    assert cli.main(["train", str(store), str(run), *SMALL]) == 3
    assert "damaged" in capsys.readouterr().err
    assert (run / "last.pt").read_bytes() == before[: len(before) // 2]


def test_a_dry_run_keeps_nothing(store, tmp_path, capsys):
    assert cli.main(["train", str(store), str(tmp_path / "run"), *SMALL, "--dry-run"]) == 0
    assert "s a step of 2 examples" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_said_and_the_last_checkpoint_stays(store, tmp_path):
    """A limit on the size of files stands in for the disk: what was saved before is still read."""
    run = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "umx_ext", "train", str(store), str(run), *SMALL]
    subprocess.run(command, check=True, env=environment, cwd=ROOT, capture_output=True)
    before = (run / "last.pt").read_bytes()

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    longer = [*command, "--steps", "8"]
    longer.remove("4")
    longer.remove("--steps")
    result = subprocess.run(longer, env=environment, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit)
    assert result.returncode == 6
    assert [line for line in result.stderr.splitlines() if "cannot be written" in line], result.stderr
    assert (run / "last.pt").read_bytes() == before
    assert not list(run.glob(".*.tmp"))


def test_a_run_that_is_interrupted_ends_at_once_and_leaves_whole_files(store, tmp_path):
    run = tmp_path / "run"
    endless = ["1000000" if SMALL[at - 1] == "--steps" else value for at, value in enumerate(SMALL)]
    command = [sys.executable, "-m", "umx_ext", "train", str(store), str(run), *endless]
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (run / "log.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("umx-ext: interrupted")
    assert torch.load(run / "last.pt", weights_only=True)["step"] >= 2
    assert not list(run.glob(".*.tmp"))
