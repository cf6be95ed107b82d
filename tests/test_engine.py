"""The engine against its plain twin and the real openunmix, and its workers against the caller's threads."""

from __future__ import annotations

import copy
import dataclasses
import math
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.peers import import_peer
from umx_ext.errors import AudioError, UsageError
from umx_ext.separation import dense, planar
from umx_ext.separation import engine as module
from umx_ext.separation.batches import RESIDUAL
from umx_ext.separation.branches import BRANCHES
from umx_ext.separation.config import FUSIONS, Config
from umx_ext.separation.engine import Engine
from umx_ext.separation.masknet import MaskNet, build_net, from_openunmix_state
from umx_ext.separation.unet import UNet
from umx_ext.separation.wiener import wiener
from umx_ext.separation.workers import Cancelled, Workers
from umx_ext.spectral import frame_count, hann, overlap_add, stft

LINEAR = Config(hidden=32, n_fft=512, hop=128, sample_rate=8000, bandwidth_hz=3000.0)
CONFIGS = {
    "linear": LINEAR,
    "mono": Config(channels=1, hidden=32, n_fft=512, hop=256, sample_rate=8000, bandwidth_hz=3000.0),
    "two stems, two branches, sigmoid": Config(
        stems=("vocals", "drums"),
        branches=("linear-log", "mel"),
        hidden=32,
        n_fft=512,
        hop=128,
        sample_rate=8000,
        bandwidth_hz=3000.0,
        n_mels=16,
        layers=2,
        mask="sigmoid",
    ),
    "masks to a power": Config(
        branches=("linear-log",),
        hidden=32,
        n_fft=512,
        hop=128,
        sample_rate=8000,
        bandwidth_hz=3000.0,
        layers=1,
        mask="sigmoid",
        filter_power=0.4,
    ),
}
CONFIGS["pairs"] = dataclasses.replace(
    CONFIGS["two stems, two branches, sigmoid"], filter_power=0.5, second=("linear",), second_share=0.3
)
UNET = dataclasses.replace(LINEAR, branches=("linear-log",), mask="sigmoid", network="unet")
CONFIGS["U-Net"] = UNET
CONFIGS["pair with a U-Net"] = dataclasses.replace(
    CONFIGS["masks to a power"],
    second=("linear-log",),
    second_mask="sigmoid",
    second_network="unet",
    second_share=0.6,
)


def networks(config: Config) -> dict[str, MaskNet]:
    """Random weights that use every part of the network; the networks stay in training mode on purpose."""
    torch.manual_seed(5)
    nets = {stem: build_net(config) for stem in config.stems}
    for net in nets.values():
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            for part in net.modules():
                if isinstance(part, UNet):
                    part.out.weight.mul_(0.02)  # else its masks are 0 or 1, with roundings as large as these weights
                if isinstance(part, nn.BatchNorm1d):
                    assert part.running_mean is not None and part.running_var is not None
                    part.running_mean.normal_()
                    part.running_var.uniform_(0.5, 2.0)
    return nets


def noise(config: Config, samples: int) -> Tensor:
    return 0.1 * torch.randn(config.channels, samples, generator=torch.Generator().manual_seed(6))


@torch.no_grad()
def plain(
    nets: dict[str, MaskNet],
    config: Config,
    waveform: Tensor,
    first: int,
    last: int,
    *,
    niter: int = 1,
    window: int | None = 300,
    residual: bool = False,
) -> Tensor:
    """What `Engine.overlap_added` computes, one thing after the other."""
    spectrum = stft(waveform, config.n_fft, config.hop)
    whole = spectrum.abs()[..., first:last]
    magnitudes = torch.stack([net.eval()(spectrum.abs()[None])[0, ..., first:last] for net in nets.values()])
    if niter and config.filter_power != 1:
        masks = magnitudes / whole
        if residual:
            masks = torch.cat([masks, 1 - masks.sum(dim=0, keepdim=True)]).clamp_min(0)
        magnitudes, residual = whole * torch.exp(config.filter_power * masks.log()), False
    estimates = wiener(
        magnitudes.permute(0, 3, 1, 2),
        spectrum[..., first:last].permute(2, 0, 1),
        niter=niter,
        window=window,
        residual=residual,
    )
    frames = torch.fft.irfft(estimates.transpose(1, 2), n=config.n_fft)
    return overlap_add(frames * hann(config.n_fft, frames), config.hop)


def assert_equal_to_rounding(result: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert result.shape == expected.shape and result.dtype == torch.float32
    assert expected.abs().max() > 0
    assert (result - expected).abs().max() <= tolerance * expected.abs().max()


# The plain twin


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("niter, window", [(0, 300), (1, 300), (1, 7), (1, 70), (1, 1000), (1, None), (2, 300)])
@pytest.mark.parametrize("name", CONFIGS)
def test_it_equals_the_plain_twin(name: str, niter: int, window: int | None, residual: bool) -> None:
    config = CONFIGS[name]
    nets = networks(config)
    waveform = noise(config, 700 * config.hop + 17)
    settings = {"niter": niter, "residual": residual}
    result = Engine(nets, config, threads=2).overlap_added(waveform, 0, 701, wiener_win_len=window, **settings)
    # In double precision: of masks that are almost zero the filter enlarges the twin's own rounding, too.
    exact = {stem: copy.deepcopy(net).double() for stem, net in nets.items()}
    expected = plain(exact, config, waveform.double(), 0, 701, window=window, **settings)
    # From the second iteration on the filter itself enlarges the rounding of masks that are almost zero.
    assert_equal_to_rounding(result, expected, 1e-5 if niter < 2 else 1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_fast_is_near_and_differs_only_where_the_loops_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS[name]
    nets, waveform = networks(config), noise(config, 2900 * config.hop)

    def both(threads: int = 2) -> tuple[Tensor, Tensor]:
        made = [Engine(nets, config, threads=threads, fast=fast) for fast in (False, True)]
        return tuple(engine.overlap_added(waveform, 0, 2901, residual=True) for engine in made)  # type: ignore[return-value]

    exact, fast = both()
    apart_db = 20 * ((fast - exact).norm() / exact.norm()).log10()
    assert apart_db < -50
    assert torch.equal(fast, both(threads=1)[1])
    assert (apart_db > -110) == (dense.compiled() and config.network == "blstm")
    monkeypatch.setattr(dense, "_dense", None)
    exact, fast = both()
    assert torch.equal(exact, fast)


SETS = [("linear", name) for name in BRANCHES if name != "linear"]
SETS += [("linear",), ("mel", "linear"), ("linear", "mel", "mfcc"), tuple(BRANCHES)]
FUSED = [(branches, fusion) for branches in SETS for fusion in FUSIONS] + [((name,), "add") for name in BRANCHES]


@pytest.mark.parametrize("branches, fusion", FUSED)
def test_every_set_of_branches_and_every_fusion_equals_the_plain_twin(branches: tuple[str, ...], fusion: str) -> None:
    config = dataclasses.replace(LINEAR, branches=branches, fusion=fusion, n_mels=16, n_mfcc=9, layers=2)
    nets, waveform = networks(config), noise(config, 140 * config.hop + 17)
    result = Engine(nets, config, threads=2).overlap_added(waveform, 0, 141, residual=True)
    assert_equal_to_rounding(result, plain(nets, config, waveform, 0, 141, residual=True))


@pytest.mark.parametrize("samples", [1, 100, 256, 257, 300, 511, 512, 513, 1000])
def test_short_waveforms_are_no_exception(samples: int) -> None:
    nets, waveform = networks(LINEAR), noise(LINEAR, samples)
    frames = frame_count(samples, LINEAR.hop)
    result = Engine(nets, LINEAR, threads=2).overlap_added(waveform, 0, frames, residual=True)
    assert_equal_to_rounding(result, plain(nets, LINEAR, waveform, 0, frames, residual=True))


@pytest.mark.parametrize("first, last", [(0, 1), (13, 14), (0, 40), (40, 400), (399, 401)])
def test_a_range_of_frames_counts_its_windows_from_its_first(first: int, last: int) -> None:
    nets, waveform = networks(LINEAR), noise(LINEAR, 400 * LINEAR.hop)
    result = Engine(nets, LINEAR, threads=2).overlap_added(waveform, first, last, wiener_win_len=50, residual=True)
    assert_equal_to_rounding(result, plain(nets, LINEAR, waveform, first, last, window=50, residual=True))


def test_ranges_that_meet_between_windows_add_up_to_the_whole() -> None:
    engine, waveform = Engine(networks(LINEAR), LINEAR, threads=2), noise(LINEAR, 700 * LINEAR.hop)
    whole = engine.overlap_added(waveform, 0, 701, wiener_win_len=100)
    total = torch.zeros_like(whole)
    for first, last in ((0, 300), (300, 400), (400, 701)):
        part = engine.overlap_added(waveform, first, last, wiener_win_len=100)
        total[..., first * LINEAR.hop :][..., : part.shape[-1]] += part
    torch.testing.assert_close(total, whole, rtol=1e-6, atol=1e-7)


def test_stems_and_wanted_choose_and_order() -> None:
    config = CONFIGS["two stems, two branches, sigmoid"]
    nets, waveform = networks(config), noise(config, 5000)
    engine = Engine(nets, config, threads=2)
    both = engine.overlap_added(waveform, 0, 40, residual=True)
    chosen = engine.overlap_added(waveform, 0, 40, residual=True, wanted=[RESIDUAL, "vocals"])
    assert torch.equal(chosen, both[[2, 0]])
    turned = engine.overlap_added(waveform, 0, 40, residual=True, stems=["drums", "vocals"])
    torch.testing.assert_close(turned, both[[1, 0, 2]], rtol=1e-4, atol=1e-6)
    alone = engine.overlap_added(waveform, 0, 40, residual=True, stems=["drums"])
    assert_equal_to_rounding(alone, plain({"drums": nets["drums"]}, config, waveform, 0, 40, residual=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_number_of_workers_changes_no_bit(name: str) -> None:
    config = CONFIGS[name]
    nets, waveform = networks(config), noise(config, 1000 * config.hop)
    results = [
        Engine(nets, config, threads=threads).overlap_added(waveform, 0, 1001, wiener_win_len=70, residual=True)
        for threads in (1, 2, 3, 5)
    ]
    assert all(torch.equal(results[0], result) for result in results[1:])


@pytest.mark.parametrize("name", ["U-Net", "pair with a U-Net"])
def test_longer_tasks_of_long_songs_change_nothing_but_roundings(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Where convolutions take part a task has more windows, from a length on that is the same for all workers."""
    config = CONFIGS[name]
    nets, waveform = networks(config), noise(config, 1000 * config.hop)
    tasks: list[int] = []
    original = module._Job._decode

    def noting(job, hidden, windows, plan):
        tasks.append(windows[-1][1] - windows[0][0])
        return original(job, hidden, windows, plan)

    def results() -> list[Tensor]:
        return [
            Engine(nets, config, threads=threads).overlap_added(waveform, 0, 1001, wiener_win_len=70, residual=True)
            for threads in (1, 2, 5)
        ]

    monkeypatch.setattr(module._Job, "_decode", noting)
    short = results()
    assert max(tasks) <= module._TASK
    tasks.clear()
    monkeypatch.setattr(module, "_LONG", 1001)
    long = results()
    assert module._TASK < max(tasks) <= module._CONVOLVED
    assert all(torch.equal(long[0], one) for one in long[1:]) and torch.equal(short[0], short[2])
    assert_equal_to_rounding(long[0], short[0])


def test_the_real_openunmix_gives_the_same_song(data: Path) -> None:
    model = import_peer("openunmix.model")
    soundfile = import_peer("soundfile")
    torch.manual_seed(8)
    target = model.OpenUnmix(nb_bins=2049, nb_channels=2, hidden_size=64, max_bin=1487)
    for part in target.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 2.0)
    state = target.state_dict()
    path = data / "songs" / "lets_go_fishin.ogg"
    samples, _ = soundfile.read(path, start=20 * 44100, frames=8 * 44100, dtype="float32")
    waveform = torch.from_numpy(samples.T.copy())
    # In double precision, constants included: in single, openunmix is 55 dB from its own truth on this song, whose
    # channels are nearly equal here and there.
    torch.set_default_dtype(torch.float64)
    try:
        peer = model.Separator({"vocals": copy.deepcopy(target)}, niter=1, residual=True).eval().double()
        with torch.no_grad():
            expected = peer(waveform.double()[None])[0]  # 345 frames: two windows
    finally:
        torch.set_default_dtype(torch.float32)

    config = Config(hidden=64)
    net = MaskNet(config)
    net.load_state_dict(from_openunmix_state(state), strict=False)
    frames = frame_count(waveform.shape[-1], config.hop)
    sums = Engine({"vocals": net}, config, threads=2).overlap_added(waveform, 0, frames, residual=True)
    window = hann(config.n_fft, sums)
    weight = overlap_add((window * window).expand(frames, -1), config.hop)
    ours = (sums / weight.clamp_min(1e-11))[..., 2048 : 2048 + waveform.shape[-1]]
    error_db = 10 * math.log10(float((ours - expected).square().mean() / waveform.square().mean()))
    assert error_db < -110


# The caller's things


def test_the_callers_waveform_may_be_anything_real_and_stays_as_it_was() -> None:
    engine = Engine(networks(LINEAR), LINEAR, threads=2)
    waveform = noise(LINEAR, 6000)
    expected = engine.overlap_added(waveform, 0, 40)
    interleaved = waveform.T.contiguous().T.double().requires_grad_()
    before = interleaved.detach().clone()
    torch.testing.assert_close(engine.overlap_added(interleaved, 0, 40), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(interleaved.detach(), before)


def test_the_result_can_be_computed_with() -> None:
    result = Engine(networks(LINEAR), LINEAR, threads=2).overlap_added(noise(LINEAR, 6000), 0, 40)
    gain = torch.ones((), requires_grad=True)
    (result * gain).sum().backward()
    assert gain.grad is not None and not result.is_inference()


def test_progress_rises_to_one_in_the_callers_thread() -> None:
    seen: list[float] = []
    threads = set()

    def progress(fraction: float) -> None:
        seen.append(fraction)
        threads.add(threading.current_thread())

    Engine(networks(LINEAR), LINEAR, threads=2).overlap_added(noise(LINEAR, 90000), 0, 600, progress=progress)
    assert seen == sorted(seen) and seen[0] > 0 and seen[-1] == pytest.approx(1.0) and len(seen) >= 5
    assert threads == {threading.current_thread()}


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"waveform": torch.zeros(3, 5000)}, AudioError, r"\(2, samples\).*\(3, 5000\)"),
        ({"waveform": torch.zeros(1, 2, 5000)}, AudioError, r"\(1, 2, 5000\)"),
        ({"waveform": torch.zeros(2, 5000, dtype=torch.int16)}, AudioError, "int16"),
        ({"first": 5, "last": 5}, UsageError, "5 to 5"),
        ({"last": 41}, UsageError, "40 frames.*0 to 41"),
        ({"niter": -1}, UsageError, "-1"),
        ({"wiener_win_len": 0}, UsageError, "and 0"),
        ({"stems": ["piano"]}, UsageError, "vocals.*piano"),
        ({"wanted": [RESIDUAL]}, UsageError, "residual"),
        ({"wanted": []}, UsageError, "none"),
    ],
)
def test_an_error_says_what_came(arguments: dict, error: type[Exception], words: str) -> None:
    call = {"waveform": torch.zeros(2, 5000), "first": 0, "last": 40, **arguments}
    with pytest.raises(error, match=words):
        Engine(networks(LINEAR), LINEAR).overlap_added(**call)


def test_an_engine_needs_sense() -> None:
    nets = networks(LINEAR)
    for arguments in (({}, LINEAR), ({RESIDUAL: nets["vocals"]}, LINEAR)):
        with pytest.raises(UsageError):
            Engine(*arguments)
    with pytest.raises(UsageError, match="got 0"):
        Engine(nets, LINEAR, threads=0)


# Workers


class NeverRestores(Workers):
    """The liar: threads started after it inherit one torch thread."""

    def _start(self) -> None:
        super()._start()
        torch.set_num_threads(1)


def law_nobody_elses_thread_count_changes(workers: type[Workers]) -> None:
    counts = []

    def ask() -> None:
        torch.ones(300, 300) @ torch.ones(300, 300)
        counts.append(torch.get_num_threads())

    with workers(2) as pool:
        inside = list(pool.run([_busy] * 6))
        later = threading.Thread(target=ask)
        later.start()
        later.join()
    after = threading.Thread(target=ask)
    after.start()
    after.join()
    ask()
    assert inside == [1] * 6
    assert counts == [3, 3, 3]


def _busy() -> int:
    torch.ones(300, 300) @ torch.ones(300, 300)
    return torch.get_num_threads()


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_nobody_elses_thread_count_changes(three_threads) -> None:
    law_nobody_elses_thread_count_changes(Workers)


def test_the_law_of_thread_counts_catches_its_liar(three_threads) -> None:
    with pytest.raises(AssertionError):
        law_nobody_elses_thread_count_changes(NeverRestores)


def alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("umx-ext")]


def test_results_come_in_order_and_the_threads_end() -> None:
    with Workers(3) as pool:
        assert len(alive()) == 3
        delays = [0.05, 0.0, 0.02, 0.0]
        results = pool.run([lambda number=number: (time.sleep(delays[number]), number)[1] for number in range(4)])
        assert list(results) == [0, 1, 2, 3]
        assert list(pool.run([lambda: "again"])) == ["again"]
        assert list(pool.run([])) == []
    assert not alive()


@pytest.mark.parametrize("error", [ValueError("from a task"), KeyboardInterrupt(), MemoryError()])
def test_a_tasks_error_reaches_the_caller_and_stops_the_rest(error: BaseException) -> None:
    started = []

    def task(number: int) -> None:
        started.append(number)
        time.sleep(0.01)
        if number == 1:
            raise error

    with pytest.raises(type(error)), Workers(2) as pool:
        list(pool.run([lambda number=number: task(number) for number in range(100)]))
    assert len(started) < 10 and not alive()


def test_running_tasks_are_told_that_nobody_waits() -> None:
    told = []

    with Workers(2) as pool:

        def endless() -> None:
            try:
                while True:
                    pool.check()
                    time.sleep(0.001)
            except Cancelled:
                told.append(True)
                raise

        with pytest.raises(ZeroDivisionError):
            list(pool.run([lambda: 1 // 0, endless]))
        assert told in ([True], [])  # it may not have started
        assert list(pool.run([lambda: "still of use"])) == ["still of use"]
    assert not alive()


def test_an_interrupt_ends_a_separation() -> None:
    engine = Engine(networks(LINEAR), LINEAR, threads=2)

    def interrupt(fraction: float) -> None:
        if fraction > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.overlap_added(noise(LINEAR, 200000), 0, 1500, progress=interrupt)
    assert not alive()
    assert engine.overlap_added(noise(LINEAR, 5000), 0, 40).isfinite().all()


def test_a_process_does_not_wait_for_its_workers() -> None:
    script = (
        "import threading, time\n"
        "from umx_ext.separation.workers import Workers\n"
        "def wait():\n"
        "    with Workers(2) as pool:\n"
        "        list(pool.run([lambda: time.sleep(60)] * 2))\n"
        "threading.Thread(target=wait, daemon=True).start()\n"
        "while threading.active_count() < 4: time.sleep(0.01)\n"
        "print(time.monotonic())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - float(done.stdout) < 10


def test_the_compiled_loops_do_the_work(monkeypatch):
    if not planar.compiled():
        pytest.skip("the loops were not compiled here")
    calls: dict[str, int] = {}
    for name in ("moments", "filtered"):
        original = getattr(planar, name)

        def counted(*arguments, name: str = name, original=original):
            calls[name] = calls.get(name, 0) + 1
            return original(*arguments)

        monkeypatch.setattr(planar, name, counted)
    config = CONFIGS["linear"]
    Engine(networks(config), config, threads=2).overlap_added(noise(config, 700 * config.hop), 0, 600, residual=True)
    assert calls["moments"] == calls["filtered"] >= 2  # windows of 300 frames
