"""Batches of blocks, as accelerators have them, against the engine; on the CPU, and on a GPU where there is one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.test_engine import CONFIGS, LINEAR, networks, noise
from umx_ext.separation import batches
from umx_ext.separation.batches import RESIDUAL, Batch, Block, Recipe, abreast
from umx_ext.separation.config import Config
from umx_ext.separation.engine import Engine
from umx_ext.separation.separator import Options, Separator
from umx_ext.spectral import frame_count

CPU = torch.device("cpu")
HOPS = 140


def blocks(config: Config) -> list[Block]:
    """Blocks of one length, but for less than a hop, of which some frames are wanted."""
    waveform = noise(config, 300 * config.hop)
    cuts = [(0, 5, 3, 138), (90, 0, 10, 70), (150, 7, 0, 141)]
    return [
        Block(waveform[:, at * config.hop : (at + HOPS) * config.hop + more], *wanted) for at, more, *wanted in cuts
    ]


def recipe(config: Config, **changed: object) -> Recipe:
    settings = {"niter": 1, "wiener_win_len": 50, "residual": True, "wanted": (RESIDUAL, config.stems[0])} | changed
    return Recipe(config.stems, **settings)  # type: ignore[arg-type]


def by_the_engine(nets: dict, config: Config, block: Block, how: Recipe) -> Tensor:
    settings = dict(vars(how))
    engine = Engine(nets, config, threads=2, fast=settings.pop("fast"))
    return engine.overlap_added(block.waveform, block.first, block.last, **settings)


def apart_db(found: Tensor, expected: Tensor) -> float:
    return float(20 * ((found - expected).norm() / expected.norm()).log10())


@pytest.mark.parametrize("niter, window", [(0, 50), (1, 50), (1, None), (2, 50)])
@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_side_by_side_give_what_each_gives_alone(name: str, niter: int, window: int | None) -> None:
    check_blocks(name, niter, window, CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_a_gpu_too() -> None:
    for name in CONFIGS:
        check_blocks(name, 1, 50, torch.device("cuda"))
        check_half_precision(name, 1.0, torch.device("cuda"))


def check_blocks(name: str, niter: int, window: int | None, device: torch.device) -> None:
    config = CONFIGS[name]
    nets, how = networks(config), recipe(config, niter=niter, wiener_win_len=window)
    there = {stem: copy.deepcopy(net).eval().to(device) for stem, net in nets.items()}
    results = list(Batch(there, config, device, blocks(config), how).results())
    assert len(results) == 3
    for block, found in zip(blocks(config), results, strict=True):
        assert found.device == CPU
        # A BLSTM on CUDA may be in TF32.
        limit = -50 if device.type == "cuda" else -90 if niter < 2 else -60
        assert apart_db(found, by_the_engine(nets, config, block, how)) < limit


def test_blocks_of_different_lengths_are_refused() -> None:
    nets = {stem: net.eval() for stem, net in networks(LINEAR).items()}
    short = Block(noise(LINEAR, 90 * LINEAR.hop), 0, 80)
    with pytest.raises(ValueError, match="one length, got frames"):
        Batch(nets, LINEAR, CPU, [blocks(LINEAR)[0], short], recipe(LINEAR))


def test_the_mode_of_the_networks_does_not_matter() -> None:
    config = dataclasses.replace(LINEAR, dropout=0.5, layers=2)
    nets = {stem: net.eval() for stem, net in networks(config).items()}
    (expected,) = Batch(nets, config, CPU, blocks(config)[:1], recipe(config)).results()
    for net in nets.values():
        net.train()
    (found,) = Batch(nets, config, CPU, blocks(config)[:1], recipe(config)).results()
    assert torch.equal(found, expected) and all(net.training for net in nets.values())


@pytest.mark.filterwarnings("ignore:TF32")
@pytest.mark.parametrize("name", ["linear", "two stems, two branches, sigmoid", "U-Net"])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_half_precision_is_near_and_has_the_range_of_audio(name: str, scale: float) -> None:
    check_half_precision(name, scale, CPU)


def check_half_precision(name: str, scale: float, device: torch.device) -> None:
    config = CONFIGS[name]
    if name == "two stems, two branches, sigmoid":
        config = dataclasses.replace(config, branches=("linear-log", "mel-poster"))
    nets = networks(config)
    given = [dataclasses.replace(block, waveform=block.waveform * scale) for block in blocks(config)]
    there = {stem: copy.deepcopy(net).eval().to(device) for stem, net in nets.items()}
    with torch.backends.mkldnn.flags(enabled=False):  # whose LSTM on the CPU does not know half precision
        exact, fast = (
            list(Batch(there, config, device, given, recipe(config, fast=fast)).results()) for fast in (False, True)
        )
    for one, other in zip(exact, fast, strict=True):
        assert other.isfinite().all() and -120 < apart_db(other, one) < -40


def test_a_u_net_that_sees_bare_magnitudes_has_them_in_full_precision() -> None:
    config = dataclasses.replace(CONFIGS["U-Net"], branches=("linear",))
    nets = networks(config)
    with torch.no_grad():
        nets["vocals"].scale.fill_(20.0)  # one over a deviation of high bins
    given = [dataclasses.replace(block, waveform=block.waveform * 300) for block in blocks(config)]
    there = {stem: copy.deepcopy(net).eval() for stem, net in nets.items()}
    for result in Batch(there, config, CPU, given, recipe(config, fast=True)).results():
        assert result.isfinite().all()


def test_nothing_returns_to_the_host_before_the_end() -> None:
    # On the device `meta` numbers have no values: whoever asked for one would fail.
    config = CONFIGS["two stems, two branches, sigmoid"]
    nets = {stem: net.eval().to("meta") for stem, net in networks(config).items()}
    given = [Block(noise(config, 90 * config.hop), 3, 80)] * 2
    batch = Batch(nets, config, torch.device("meta"), given, recipe(config))
    with pytest.raises(NotImplementedError, match="meta"):
        list(batch.results())
    with pytest.raises(RuntimeError, match="meta"):  # the liar: it would
        float(torch.zeros(1, device="meta"))


@pytest.mark.parametrize("held, counts", [(5, [5]), (3, [2, 3]), (2, [2, 1, 2]), (1, [1] * 5)])
def test_what_a_device_does_not_hold_at_once_is_halved(
    held: int, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    class Small(Batch):
        def __init__(self, *settings: Any) -> None:
            if len(settings[3]) > held:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            made.append(len(settings[3]))
            super().__init__(*settings)

    nets, how = networks(LINEAR), recipe(LINEAR)
    given = [Block(noise(LINEAR, (90 + at) * LINEAR.hop)[:, at * LINEAR.hop :], 3, 80) for at in range(5)]
    expected = list(Batch(nets, LINEAR, CPU, given, how).results())
    monkeypatch.setattr(batches, "Batch", Small)
    found = [result for batch in batches.in_batches(nets, LINEAR, CPU, given, how) for result in batch.results()]
    assert made == counts and len(found) == 5
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    held = 0
    with pytest.raises(torch.cuda.OutOfMemoryError):
        batches.in_batches(nets, LINEAR, CPU, given, how)


class Even(Separator):
    """Cuts blocks of one length, on the CPU."""

    even = True


class Ahead(Even):
    """Works like one on an accelerator, on the CPU, and notes what was started together."""

    works_ahead = True

    def __init__(self, config: Config, together: int) -> None:
        super().__init__(config)
        self.together, self.started = together, []

    def abreast(self, stems: int, samples: int) -> int:
        return self.together

    def start(self, given: Sequence[Block], how: Recipe) -> Iterator[Iterator[Tensor]]:
        self.started.append([block.waveform for block in given])
        return map(iter, ([result] for result in Batch(self.nets, self.config, CPU, given, how).results()))  # type: ignore[arg-type]


SMALL = dataclasses.replace(LINEAR, n_fft=256, hop=64, hidden=16)
CUT = Options(segment_s=2.0, overlap_s=0.5, wiener_win_len=50, accompaniment="wiener")  # 250 frames


@pytest.mark.parametrize("seconds", [0.3, 1.9, 2.3, 8.0, 9.0, 20.5])
@pytest.mark.parametrize("together", [1, 3, 16])
@pytest.mark.parametrize("rate", [8000, 11025])
def test_a_song_in_batches_is_the_song_block_by_block(seconds: float, together: int, rate: int) -> None:
    torch.manual_seed(4)
    ahead = Ahead(SMALL, together)
    plain = Even(SMALL, copy.deepcopy(ahead.nets))  # type: ignore[arg-type]
    waveform = 0.1 * torch.randn(2, round(seconds * rate), generator=torch.Generator().manual_seed(1))
    expected = plain.separate(waveform, rate, CUT)
    found = ahead.separate(waveform, rate, CUT)
    for stem in expected:
        assert found[stem].shape == waveform.shape
        assert (found[stem] - expected[stem]).abs().max() < 1e-6
    cores = -(-frame_count(round(seconds * 8000), SMALL.hop) // 250)
    counts = [len(given) for given in ahead.started]
    assert sum(counts) == cores and max(counts) == min(together, cores)
    streamed = list(ahead.stream(waveform.split(3000, dim=-1), rate, CUT))
    assert torch.equal(torch.cat([stems["vocals"] for stems in streamed], dim=-1), found["vocals"])


def test_blocks_of_one_length_hear_no_less_than_others() -> None:
    torch.manual_seed(4)
    even = Even(SMALL)
    plain = Separator(SMALL, even.nets)  # type: ignore[arg-type]
    waveform = 0.1 * torch.randn(2, 8000 * 9, generator=torch.Generator().manual_seed(1))
    whole = plain.separate(waveform, 8000, Options(split=False, wiener_win_len=40))["vocals"]
    little = dataclasses.replace(CUT, overlap_s=0.03, wiener_win_len=40)  # cores on the grid, else others hear more
    apart = [(model.separate(waveform, 8000, little)["vocals"] - whole).abs() for model in (even, plain)]
    assert apart[0].max() <= 1.1 * apart[1].max() and apart[1].max() > 1e-7


def test_a_mono_model_has_both_channels_in_step() -> None:
    torch.manual_seed(4)
    ahead = Ahead(dataclasses.replace(SMALL, channels=1), 3)
    waveform = 0.1 * torch.randn(2, 8000 * 11, generator=torch.Generator().manual_seed(1))
    found = ahead.separate(waveform, 8000, CUT)["vocals"]
    left = ahead.separate(waveform[:1], 8000, CUT)["vocals"]
    assert (found[:1] - left).abs().max() < 1e-6
    ways = iter([3, 2, 1])
    ahead.abreast = lambda stems, samples: next(ways)  # type: ignore[method-assign] - as the memory that is free changes
    assert (ahead.separate(waveform, 8000, CUT)["vocals"] - found).abs().max() < 1e-6


def test_what_waits_for_its_batch_keeps_no_more_than_itself() -> None:
    ahead = Ahead(SMALL, 4)
    list(ahead.stream((0.1 * torch.randn(2, 8000 * 39)).split(3000, dim=-1), 8000, CUT))
    assert len(ahead.started) == 5
    for given in ahead.started:
        kept = {waveform.untyped_storage().data_ptr(): waveform.untyped_storage().nbytes() for waveform in given}
        assert sum(kept.values()) == sum(waveform.nbytes for waveform in given)


def test_how_many_are_started_together_follows_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config, cuda = Config(), torch.device("cuda")
    assert abreast(config, 1, 126 * 44100, CPU) == abreast(config, 1, 126 * 44100, torch.device("mps")) == 1
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 << 30)
    cases = [(126, 0, 1, 1), (126, 80, 3, 3), (36, 8, 2, 13), (36, 1000, 13, 13), (9, 80, 16, 16)]
    for seconds, gigabytes, least, most in cases:
        free = (gigabytes << 30, gigabytes << 30)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: free)
        found = abreast(config, 1, seconds * 44100, cuda)
        assert least <= found <= most
        assert 1 <= abreast(config, 4, seconds * 44100, cuda) <= found
