"""Batches of blocks, as accelerators have them, against the engine; on the CPU, and on a GPU where there is one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from tests.test_engine import CONFIGS, LINEAR, networks, noise
from umx_ext.separation.batches import RESIDUAL, Batch, Block, Recipe, abreast
from umx_ext.separation.config import Config
from umx_ext.separation.engine import Engine
from umx_ext.separation.separator import Options, Separator
from umx_ext.spectral import frame_count

CPU = torch.device("cpu")
LENGTHS = (140, 90, 140, 33)  # in hops


def blocks(config: Config) -> list[Block]:
    """Blocks of different lengths, of which some frames are wanted."""
    waveform = noise(config, 200 * config.hop)
    return [Block(waveform[:, : hops * config.hop + 5], 3, hops - 2) for hops in LENGTHS]


def recipe(config: Config, **changed: object) -> Recipe:
    settings = {"niter": 1, "wiener_win_len": 50, "residual": True, "wanted": (RESIDUAL, config.stems[0])} | changed
    return Recipe(config.stems, **settings)  # type: ignore[arg-type]


def by_the_engine(nets: dict, config: Config, block: Block, how: Recipe) -> Tensor:
    return Engine(nets, config, threads=2).overlap_added(
        block.waveform,
        block.first,
        block.last,
        stems=how.stems,
        niter=how.niter,
        wiener_win_len=how.wiener_win_len,
        residual=how.residual,
        wanted=how.wanted,
    )


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
    assert len(results) == len(LENGTHS)
    for block, found in zip(blocks(config), results, strict=True):
        assert found.device == CPU
        assert apart_db(found, by_the_engine(nets, config, block, how)) < (-90 if niter < 2 else -60)


def test_no_frame_hears_the_padding_and_would_if_it_were_not_told() -> None:
    (net,) = (net.eval() for net in networks(LINEAR).values())
    generator = torch.Generator().manual_seed(3)
    short, long = (torch.rand(1, count, 2, LINEAR.bins, generator=generator) for count in (40, 70))
    padded = torch.nn.functional.pad(short, (0, 0, 0, 0, 0, 30), value=1e3)
    alone = net.mask(short)[0]
    found = net.mask(torch.cat([long, padded]), [70, 40])
    assert (found[1, :40] - alone).abs().max() < 1e-5
    assert (found[0] - net.mask(long)[0]).abs().max() < 1e-5
    assert (net.mask(torch.cat([long, padded]))[1, :40] - alone).abs().max() > 1e-3  # the liar


@pytest.mark.parametrize("name", ["linear", "two stems, two branches, sigmoid"])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_half_precision_is_near_and_has_the_range_of_audio(name: str, scale: float) -> None:
    check_half_precision(name, scale, CPU)


def check_half_precision(name: str, scale: float, device: torch.device) -> None:
    config = CONFIGS[name]
    if name != "linear":
        config = dataclasses.replace(config, branches=("linear-log", "mel-poster"))
    nets = networks(config)
    given = [dataclasses.replace(block, waveform=block.waveform * scale) for block in blocks(config)]
    there = {stem: copy.deepcopy(net).eval().to(device) for stem, net in nets.items()}
    exact, fast = (
        list(Batch(there, config, device, given, recipe(config, fast=fast)).results())
        for fast in (False, True)
    )
    for one, other in zip(exact, fast, strict=True):
        assert other.isfinite().all() and -120 < apart_db(other, one) < -40


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


class Ahead(Separator):
    """Works like one on an accelerator, on the CPU, and notes how many blocks were started together."""

    def __init__(self, config: Config, together: int) -> None:
        super().__init__(config)
        self.together, self.started = together, []

    works_ahead = True

    def abreast(self, stems: int, samples: int) -> int:
        return self.together

    def start(self, given: Sequence[Block], how: Recipe) -> Iterator[Iterator[Tensor]]:
        self.started.append(len(given))
        return map(iter, ([result] for result in Batch(self.nets, self.config, CPU, given, how).results()))  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [0.3, 8.0, 9.0, 20.5])
@pytest.mark.parametrize("together", [1, 3, 16])
@pytest.mark.parametrize("rate", [8000, 11025])
def test_a_song_in_batches_is_the_song_block_by_block(seconds: float, together: int, rate: int) -> None:
    config = dataclasses.replace(LINEAR, n_fft=256, hop=64, hidden=16)
    torch.manual_seed(4)
    ahead = Ahead(config, together)
    plain = Separator(config, copy.deepcopy(ahead.nets))  # type: ignore[arg-type]
    waveform = 0.1 * torch.randn(2, round(seconds * rate), generator=torch.Generator().manual_seed(1))
    options = Options(segment_s=2.0, overlap_s=0.5, wiener_win_len=50, accompaniment="wiener")
    expected = plain.separate(waveform, rate, options)
    found = ahead.separate(waveform, rate, options)
    for stem in expected:
        assert found[stem].shape == waveform.shape
        assert (found[stem] - expected[stem]).abs().max() < 1e-6
    frames = frame_count(round(seconds * 8000), config.hop)
    cores = -(-frames // 250)  # 2 s of 125 frames a second
    assert sum(ahead.started) == cores and max(ahead.started) == min(together, cores)
    streamed = list(ahead.stream(waveform.split(3000, dim=-1), rate, options))
    assert torch.equal(torch.cat([stems["vocals"] for stems in streamed], dim=-1), found["vocals"])


def test_how_many_are_started_together_follows_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config, samples = Config(), 126 * 44100
    assert abreast(config, 1, samples, CPU) == abreast(config, 1, samples, torch.device("mps")) == 1
    for gigabytes, least, most in ((1, 1, 1), (8, 1, 4), (80, 10, 16), (1000, 16, 16)):
        free = (gigabytes << 30, gigabytes << 30)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: free)
        assert least <= abreast(config, 1, samples, torch.device("cuda")) <= most
        assert abreast(config, 4, samples, torch.device("cuda")) <= abreast(config, 1, samples, torch.device("cuda"))
