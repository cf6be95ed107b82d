"""What the trainer keeps account of, and how it falls, in runs of a few steps."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.toy_store import CONFIG, RATE
from umx_ext.errors import MissingExtraError, UsageError
from umx_ext.training.fit import dry_run, fit, replay
from umx_ext.training.losses import LOSSES
from umx_ext.training.options import SCHEDULES, TrainOptions
from umx_ext.training.tracks import Pack, pack

OPTIONS = TrainOptions(steps=30, batch=3, excerpt_s=0.5, every=15, warmup=2, learning_rate=1e-2)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_learnt(store, tmp_path, loss):
    losses = []
    # Few of the dry singers: in so few steps, which of them are drawn outweighs what is learnt.
    fit(Pack(store), CONFIG, dataclasses.replace(OPTIONS, loss=loss), tmp_path, draws={"mir1k_vocals": 0.15},
        progress=lambda now: losses.append(now.loss))  # fmt: skip
    assert np.mean(losses[-5:]) < 0.98 * np.mean(losses[:5])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_killed_run_is_the_same_to_the_bit_under_every_schedule(store, tmp_path, schedule, ema):
    options = dataclasses.replace(OPTIONS, steps=8, every=2, schedule=schedule, plateau_patience=1, ema=ema)

    class Killed(Exception):
        pass

    def kill(now):
        if now.step == 5:
            raise Killed

    fit(Pack(store), CONFIG, options, tmp_path / "whole")
    with pytest.raises(Killed):
        fit(Pack(store), CONFIG, options, tmp_path / "killed", progress=kill)
    fit(Pack(store), CONFIG, options, tmp_path / "killed")
    whole, killed = (torch.load(tmp_path / run / "last.pt", weights_only=True) for run in ("whole", "killed"))
    for part in ("net", "averaged"):
        assert all(torch.equal(whole[part][key], killed[part][key]) for key in whole[part])


def test_a_replay_has_the_losses_of_the_run(store, tmp_path):
    losses = []
    fit(
        Pack(store),
        CONFIG,
        dataclasses.replace(OPTIONS, steps=6),
        tmp_path,
        progress=lambda now: losses.append(now.loss),
    )
    state = torch.get_rng_state()
    assert replay(Pack(store), CONFIG, dataclasses.replace(OPTIONS, steps=6), 4) == losses[:4]
    assert torch.equal(torch.get_rng_state(), state)


def test_without_averaging_what_is_shipped_is_the_network(store, tmp_path):
    fit(Pack(store), CONFIG, dataclasses.replace(OPTIONS, steps=4, every=2, ema=0.0), tmp_path)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert all(torch.equal(state["net"][key], state["averaged"][key]) for key in state["net"])


def test_a_run_that_gets_no_better_ends(store, tmp_path):
    steps = []
    options = dataclasses.replace(OPTIONS, steps=1000, every=1, learning_rate=1e-12, ema=0.0, patience=3)
    fit(Pack(store), CONFIG, options, tmp_path, progress=lambda now: steps.append(now.step))
    assert 4 <= len(steps) < 60
    assert len(list(csv.reader((tmp_path / "log.csv").open()))) == len(steps) + 1


def test_the_real_openunmix_is_trained_by_the_same_steps(store, tmp_path):
    from tests.peers import import_peer

    import_peer("openunmix")
    config = dataclasses.replace(CONFIG, branches=("linear",), mask="relu")
    losses = {"umx_ext": [], "openunmix": []}
    for network, found in losses.items():
        options = dataclasses.replace(OPTIONS, network=network, loss="mse")
        fit(Pack(store), config, options, tmp_path / network, progress=lambda now, found=found: found.append(now.loss))
        assert np.mean(found[-5:]) < 0.9 * np.mean(found[:5])
    # The same architecture, size, examples, rate: the first loss differs by the first weights alone.
    assert losses["openunmix"][0] == pytest.approx(losses["umx_ext"][0], rel=0.3)


def test_a_start_that_was_asked_for_is_where_the_run_begins(store, tmp_path):
    def zeros(net):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.zero_()

    options = dataclasses.replace(OPTIONS, steps=1, every=1, learning_rate=1e-12, weight_decay=0.0, ema=0.0)
    fit(Pack(store), CONFIG, options, tmp_path, initial=zeros)
    state = torch.load(tmp_path / "last.pt", weights_only=True)["net"]
    assert all(value.abs().max() < 1e-9 for key, value in state.items() if "weight" in key)


def test_a_dry_run_counts_what_a_run_takes(store):
    found = dry_run(Pack(store), CONFIG, dataclasses.replace(OPTIONS, steps=1000, every=100))
    assert found.run_s == pytest.approx(1000 * found.step_s + 10 * found.validation_s)
    assert found.parameters > 1000 and found.peak_mb > 50 and found.device == "cpu"


def packed(folder: Path, songs: dict[str, dict[str, np.ndarray]], **settings) -> Pack:
    """A store of `<split>/<song>/<stem>.wav` made of these waveforms, `(samples, channels)`."""
    for song, stems in songs.items():
        (folder / "songs" / song).mkdir(parents=True)
        for stem, samples in stems.items():
            soundfile.write(folder / "songs" / song / f"{stem}.wav", samples, RATE, subtype="FLOAT")
    pack([folder / "songs"], folder / "store", sample_rate=RATE, **settings)
    return Pack(folder / "store")


def noises(stems: tuple[str, ...], channels: int, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {stem: 0.1 * generator.standard_normal((RATE, channels)) for stem in stems}


FOUR = ("vocals", "drums", "bass", "other")


@pytest.mark.parametrize("stems", [FOUR, ("vocals", "accompaniment")])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("heard", [1, 2])
def test_mono_and_pairs_are_trained_on_and_validated_with(tmp_path, stems, channels, heard):
    songs = {f"{split}/{song}": noises(stems, channels, song) for song, split in enumerate(("train", "train", "valid"))}
    config = dataclasses.replace(CONFIG, channels=heard)
    best = fit(packed(tmp_path, songs), config, dataclasses.replace(OPTIONS, steps=2, every=1), tmp_path / "run")
    assert np.isfinite(torch.load(best, weights_only=True)["sdr_db"])


def test_a_mono_stem_among_stereo_ones_is_validated_with(tmp_path):
    songs = {f"{split}/{song}": noises(FOUR, 2, song) for song, split in enumerate(("train", "valid"))}
    songs["valid/1"]["vocals"] = songs["valid/1"]["vocals"][:, :1]
    best = fit(packed(tmp_path, songs), CONFIG, dataclasses.replace(OPTIONS, steps=1, every=1), tmp_path / "run")
    assert np.isfinite(torch.load(best, weights_only=True)["sdr_db"])


def test_a_batch_of_silence_is_a_step_like_any_other(tmp_path):
    silent = {stem: np.zeros((RATE, 2)) for stem in FOUR}
    store = packed(tmp_path, {"train/a": silent, "valid/b": noises(FOUR, 2, 0)})
    best = fit(store, CONFIG, dataclasses.replace(OPTIONS, steps=2, every=1, batch=1), tmp_path / "run")
    assert all(value.isfinite().all() for value in torch.load(best, weights_only=True)["state"].values())


def test_a_loss_that_is_no_number_ends_the_run_before_anything_is_overwritten(store, tmp_path, monkeypatch):
    options = dataclasses.replace(OPTIONS, steps=6, every=2)
    real, calls = LOSSES["phase-sensitive"], []

    def failing(mask, batch):
        calls.append(0)
        numerator, denominator = real(mask, batch)
        return (numerator * float("nan") if len(calls) == 4 else numerator), denominator

    monkeypatch.setitem(LOSSES, "phase-sensitive", failing)
    with pytest.raises(UsageError, match="the loss of step 4 is nan"):
        fit(Pack(store), CONFIG, options, tmp_path)
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    assert saved["step"] == 2 and all(value.isfinite().all() for value in saved["net"].values())


def test_a_table_that_was_lost_with_the_process_is_written_again(store, tmp_path):
    options = dataclasses.replace(OPTIONS, steps=2, every=1)
    fit(Pack(store), CONFIG, options, tmp_path)
    table = (tmp_path / "log.csv").read_text()
    (tmp_path / "log.csv").unlink()
    fit(Pack(store), CONFIG, options, tmp_path)
    assert (tmp_path / "log.csv").read_text() == table


def test_a_store_packed_otherwise_does_not_continue_a_run(tmp_path):
    options = dataclasses.replace(OPTIONS, steps=1, every=1)
    songs = {"train/a": noises(FOUR, 2, 0), "valid/b": noises(FOUR, 2, 1)}
    first = packed(tmp_path / "1", songs)
    second = packed(tmp_path / "2", songs, speeds=(1.0, 0.9))
    assert first.data_sha256 == second.data_sha256  # the same files
    fit(first, CONFIG, options, tmp_path / "run")
    with pytest.raises(UsageError, match="other settings or data"):
        fit(second, CONFIG, options, tmp_path / "run")


def test_a_run_is_not_continued_from_other_first_weights(store, tmp_path):
    options = dataclasses.replace(OPTIONS, steps=1, every=1)
    fit(Pack(store), CONFIG, options, tmp_path)
    with pytest.raises(UsageError, match="initial"):
        fit(Pack(store), CONFIG, options, tmp_path, initial=lambda net: None)


def test_a_damaged_store_is_said(store, tmp_path):
    for damage in ("index", "short", "gone"):
        folder = tmp_path / damage
        shutil.copytree(store, folder)
        if damage == "index":
            (folder / "index.json").write_text("{")
        elif damage == "short":
            (folder / "audio.i16").write_bytes((folder / "audio.i16").read_bytes()[:1000])
        else:
            (folder / "audio.i16").unlink()
        with pytest.raises(UsageError, match="damaged store"):
            Pack(folder)


def test_another_version_of_a_checkpoint_is_refused(store, tmp_path):
    from umx_ext.errors import ModelError

    torch.save({"version": 1, "identity": {}}, tmp_path / "last.pt")
    with pytest.raises(ModelError, match="another version"):
        fit(Pack(store), CONFIG, OPTIONS, tmp_path)


def test_settings_that_do_not_fit_the_store_are_refused(store, tmp_path):
    for config, options, said in (
        (dataclasses.replace(CONFIG, sample_rate=16000), OPTIONS, "--rate 16000"),
        (dataclasses.replace(CONFIG, stems=("vocals", "drums")), OPTIONS, "a vocals network"),
        (CONFIG, dataclasses.replace(OPTIONS, loss="huber"), "known: phase-sensitive"),
    ):
        with pytest.raises(UsageError, match=said):
            fit(Pack(store), config, options, tmp_path)


def test_tensorboard_is_asked_for_in_words(store, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match="pip install"):
        fit(Pack(store), CONFIG, OPTIONS, tmp_path, tensorboard=True)


def test_tensorboard_gets_scalars_sounds_and_pictures(store, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(Pack(store), CONFIG, dataclasses.replace(OPTIONS, steps=4, every=2, examples=1), tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"loss", "learning rate", "valid/target SDR, dB"} <= set(tags["scalars"])
    assert tags["images"] == ["v"] and tags["audio"] == ["v"]
