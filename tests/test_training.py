"""The gain law's statistics, the remix's sums, and a trainer that goes on exactly where it was killed."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.toy_store import CONFIG, RATE
from umx_ext.errors import AudioError, UsageError
from umx_ext.evaluation.sdr import frame_sdr, median_sdr
from umx_ext.training.fit import _precision, fit
from umx_ext.training.losses import phase_sensitive_target
from umx_ext.training.options import TrainOptions
from umx_ext.training.remix import REMIXES, Remixer, active_level, wsj0_gains_db
from umx_ext.training.tracks import MUSDB_VALID, Pack, data_hash, find_tracks, pack


def test_wsj0_gains_have_the_printed_statistics():
    rng = np.random.default_rng(0)
    gains = np.stack([wsj0_gains_db(4, rng) for _ in range(20_000)])
    assert gains[:, 0].mean() == pytest.approx(-27.43, abs=3 * 2.57 / np.sqrt(20_000))
    assert gains[:, 0].std() == pytest.approx(2.57, rel=0.02)
    relative = gains[:, 1:] - gains[:, :1]
    assert relative.mean() == pytest.approx(-2.51, abs=3 * 2.66 / np.sqrt(60_000))
    assert relative.std() == pytest.approx(2.66, rel=0.02)
    # Each relative to the first, not to the one before: the deviations do not grow, and share no first draw.
    assert np.abs(np.corrcoef(relative.T) - np.eye(3)).max() < 0.03


def test_active_level_leaves_silence_out():
    tone = np.full((2, RATE), 0.25, np.float32)
    tone[:, RATE // 2 :] = 0
    level, share = active_level(tone, RATE)
    assert level == pytest.approx(0.25)
    assert share == pytest.approx(0.5)
    assert active_level(np.zeros((2, RATE), np.float32), RATE) == (0.0, 0.0)
    assert active_level(np.full((2, RATE), 1e-6, np.float32), RATE) == (0.0, 0.0)


@pytest.mark.parametrize("name", [name for name, remix in REMIXES.items() if remix.peak in ("always", "limit")])
def test_every_remix_peaks_at_0_9_and_keeps_the_image(store, name):
    remixer = Remixer(Pack(store), remix=name, samples=RATE, no_vocals=0.0, mir1k_vocals=0.0, mir1k_whole=0.0)
    for item in range(20):
        mixture, vocals = remixer.draw(np.random.default_rng([0, item]))
        assert mixture.shape == vocals.shape == (2, RATE)
        assert max(np.abs(mixture).max(), np.abs(vocals).max()) <= 0.9 + 1e-6
        energy = np.square(vocals).sum(axis=1)
        assert max(energy) / min(energy) == pytest.approx(4.0, rel=1e-2)  # int16 rounding of the store


def test_a_drawn_example_has_the_drawn_levels(store):
    remixer = Remixer(Pack(store), samples=RATE, own_song=1.0, own_accompaniment=0.0, mir1k_whole=0.0, no_vocals=0.0)
    levels = []
    for item in range(400):
        mixture, vocals = remixer.draw(np.random.default_rng([1, item]))
        rest = mixture - vocals
        levels.append(20 * np.log10(np.abs(rest).mean() / np.abs(vocals).mean()))
    # Three independent sources at -2.51 +- 2.66 dB: the spread of their sum is narrower than one's.
    assert 1.2 < np.std(levels) < 2.1


def test_examples_without_vocals_have_silent_vocals(store):
    remixer = Remixer(Pack(store), samples=RATE, no_vocals=1.0, mir1k_whole=0.0)
    mixture, vocals = remixer.draw(np.random.default_rng(0))
    assert not vocals.any() and mixture.any()


def test_the_same_seed_draws_the_same_example(store):
    remixer = Remixer(Pack(store), samples=RATE)
    first, second = (remixer.draw(np.random.default_rng([3, 4])) for _ in range(2))
    assert np.array_equal(first[0], second[0])
    assert not np.array_equal(first[0], remixer.draw(np.random.default_rng([3, 5]))[0])


def test_training_never_sees_a_validation_song(store):
    pack_ = Pack(store)
    read = []
    original = pack_.read
    pack_.read = lambda entry, *rest: (read.append(entry), original(entry, *rest))[1]  # type: ignore[method-assign]
    remixer = Remixer(pack_, samples=RATE)
    for item in range(50):
        remixer.draw(np.random.default_rng([0, item]))
    assert {entry.track for entry in read} == {"a", "b", "m"}


def test_unknown_remix_names_the_known_ones(store):
    with pytest.raises(UsageError, match="known: wsj0"):
        Remixer(Pack(store), remix="loud")


def test_phase_sensitive_target_is_the_projection():
    mixture = torch.tensor([1 + 0j, 2j, 1 + 0j, 1 + 0j])
    target = torch.tensor([0.5 + 3j, 1j, -1 + 0j, 4 + 0j])
    expected = torch.tensor([0.5, 1.0, 0.0, 1.0])
    assert torch.allclose(phase_sensitive_target(target, mixture, mixture.abs()), expected)


OPTIONS = TrainOptions(steps=12, batch=2, excerpt_s=0.5, every=3, warmup=2)


def test_a_run_lowers_its_loss_and_writes_its_log(store, tmp_path):
    losses = []
    options = TrainOptions(steps=60, batch=4, excerpt_s=0.5, every=30, warmup=2, learning_rate=1e-2)
    # Few of the dry singers: in so few steps, which of them are drawn outweighs what is learnt.
    draws = {"mir1k_vocals": 0.15}
    best = fit(Pack(store), CONFIG, options, tmp_path, draws=draws, progress=lambda now: losses.append(now.loss))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    state = torch.load(best, weights_only=True)
    assert state["step"] in (30, 60)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3


def test_training_leaves_the_callers_random_state_alone(store, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(Pack(store), CONFIG, TrainOptions(steps=1, batch=1, excerpt_s=0.5, every=1), tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_a_killed_run_ends_with_the_same_weights_to_the_bit(store, tmp_path):
    class Killed(Exception):
        pass

    def kill_at_8(now):
        if now.step == 8:
            raise Killed

    fit(Pack(store), CONFIG, OPTIONS, tmp_path / "whole")
    with pytest.raises(Killed):
        fit(Pack(store), CONFIG, OPTIONS, tmp_path / "killed", progress=kill_at_8)
    steps = []
    fit(Pack(store), CONFIG, OPTIONS, tmp_path / "killed", progress=lambda now: steps.append(now.step))
    assert steps[0] == 7  # after the last checkpoint, not from the start
    whole, killed = (torch.load(tmp_path / run / "last.pt", weights_only=True) for run in ("whole", "killed"))
    for part in ("net", "averaged"):
        assert all(torch.equal(whole[part][key], killed[part][key]) for key in whole[part])


def test_a_run_survives_sigkill(store, tmp_path):
    script = (
        "import sys; from pathlib import Path\n"
        "from tests.toy_store import CONFIG; from umx_ext.training.options import TrainOptions\n"
        "from umx_ext.training.fit import fit, Pack\n"
        "options = TrainOptions(steps=60, batch=2, excerpt_s=0.5, every=5)\n"
        f"fit(Pack(Path({str(store)!r})), CONFIG, options, Path(sys.argv[1]))"
    )
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}

    def command(folder: str) -> list[str]:
        return [sys.executable, "-c", script, str(tmp_path / folder)]

    process = subprocess.Popen(command("killed"), cwd=root, env=environment)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "killed" / "last.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 5 <= torch.load(tmp_path / "killed" / "last.pt", weights_only=True)["step"] < 60
    for folder in ("killed", "whole"):  # the same command again, and one that nobody killed
        subprocess.run(command(folder), cwd=root, env=environment, check=True, timeout=120)
    killed, whole = (torch.load(tmp_path / folder / "last.pt", weights_only=True) for folder in ("killed", "whole"))
    for part in ("net", "averaged"):
        assert all(torch.equal(whole[part][key], killed[part][key]) for key in whole[part])


def test_another_configuration_does_not_continue_a_run(store, tmp_path):
    options = TrainOptions(steps=2, batch=1, excerpt_s=0.5, every=1)
    fit(Pack(store), CONFIG, options, tmp_path)
    with pytest.raises(UsageError, match="other settings"):
        fit(Pack(store), CONFIG, TrainOptions(steps=2, batch=2, excerpt_s=0.5, every=1), tmp_path)


def test_a_run_can_be_made_shorter_and_keeps_account_of_it(store, tmp_path):
    class Enough(Exception):
        pass

    def stop_at_4(now):
        if now.step == 4:
            raise Enough

    with pytest.raises(Enough):
        fit(Pack(store), CONFIG, OPTIONS, tmp_path, progress=stop_at_4)
    steps = []
    shorter = dataclasses.replace(OPTIONS, steps=6)
    fit(Pack(store), CONFIG, shorter, tmp_path, progress=lambda now: steps.append(now.step))
    assert steps == [4, 5, 6]
    assert torch.load(tmp_path / "last.pt", weights_only=True)["schedule"] == [[0, 12], [3, 6]]


def test_frame_sdr_is_musevals(data):
    from tests.peers import import_peer
    from umx_ext import audio

    museval = import_peer("museval")
    path = sorted((data / "musdb18-7" / "train").glob("*.stem.mp4"))[0]
    stems = [audio.read(path, stream=index)[0][:, : 3 * 44100 + 500] for index in (4, 3)]
    references = torch.stack(stems)
    noise = torch.randn(references.shape, generator=torch.Generator().manual_seed(0))
    estimates = references + 0.02 * noise
    references[0, :, 44100 : 2 * 44100] = 0  # a silent second is nan for every source in museval
    expected, *_ = museval.evaluate(references.mT.numpy(), estimates.mT.numpy(), win=44100, hop=44100)
    ours = frame_sdr(references, estimates, 44100).numpy()
    assert np.isnan(ours[0, 1]) and np.isnan(expected[0, 1])
    voiced = [0, 2]
    assert np.abs(ours[:, voiced] - expected[:, voiced]).max() < 1e-6


def test_median_sdr_of_half_the_signal_is_6_db():
    signal = torch.randn(2, 5 * RATE, generator=torch.Generator().manual_seed(0))
    assert median_sdr(signal, 0.5 * signal, RATE) == pytest.approx(20 * np.log10(2), abs=1e-4)
    assert np.isnan(median_sdr(signal, signal, RATE))


def test_musdb_split_is_musdbs_own():
    from tests.peers import import_peer

    yaml = import_peer("yaml")
    musdb = importlib.util.find_spec("musdb")  # not imported: it refuses to be where ffmpeg is not installed
    if musdb is None or musdb.origin is None:
        pytest.skip("musdb is not installed; pip install '.[research]'")
    settings = yaml.safe_load((Path(musdb.origin).parent / "configs" / "mus.yaml").read_text())
    assert set(settings["validation_tracks"]) == MUSDB_VALID


def test_packing_real_songs_keeps_valid_apart_and_never_looks_at_test(data, tmp_path):
    root = tmp_path / "musdb"
    (root / "train").mkdir(parents=True)
    (root / "test").mkdir()
    songs = sorted((data / "musdb18-7" / "train").glob("*.stem.mp4"))
    valid = next(song for song in songs if song.name.removesuffix(".stem.mp4") in MUSDB_VALID)
    for song in (songs[1], valid):
        (root / "train" / song.name).symlink_to(song)
    (root / "test" / "never.stem.mp4").write_bytes(b"not audio")
    pack([root], tmp_path / "pack", speeds=(1.0, 0.9))
    store = Pack(tmp_path / "pack")
    assert {entry.split for entry in store if entry.track == valid.name.removesuffix(".stem.mp4")} == {"valid"}
    train = store.songs("train", "musdb18")
    assert sorted(speed for _, speed in train) == [0.9, 1.0]
    slow, normal = (song["vocals"].samples for _, song in sorted(train.items(), key=lambda item: item[0][1]))
    assert slow / normal == pytest.approx(1 / 0.9, rel=1e-4)
    assert store.data_sha256 == data_hash(find_tracks(root))


def test_a_folder_without_songs_is_refused(tmp_path):
    with pytest.raises(AudioError, match="no songs"):
        find_tracks(tmp_path)


def test_open_unmixs_network_steps_out_of_bf16_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's LSTM makes float16 of it, whatever is asked for; our own network does that part in float32."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    cuda, theirs = torch.device("cuda"), TrainOptions(network="openunmix")
    assert _precision(theirs, cuda) == "float32"
    assert _precision(TrainOptions(), cuda) == "bf16"
    assert _precision(dataclasses.replace(theirs, precision="fp16"), cuda) == "fp16"
    with pytest.raises(UsageError, match="precision float32, fp16 or auto"):
        _precision(dataclasses.replace(theirs, precision="bf16"), cuda)
    assert _precision(dataclasses.replace(theirs, precision="bf16"), torch.device("cpu")) == "bf16"
