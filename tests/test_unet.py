"""The convolutional network: what it depends on, its pieces, and its way through training into a file."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from umx_ext.errors import ModelError, UsageError
from umx_ext.separation import pretrained, unet
from umx_ext.separation.config import Config
from umx_ext.separation.initial import init_from
from umx_ext.separation.masknet import MaskNet, MaskPair, build_net, members
from umx_ext.separation.separator import Options, Separator
from umx_ext.separation.unet import GRID, REACH, UNet, folded
from umx_ext.training.export import chosen_of, export
from umx_ext.training.fit import fit
from umx_ext.training.options import TrainOptions
from umx_ext.training.tracks import Pack

SMALL = Config(
    branches=("linear-log",), mask="sigmoid", hidden=16, n_fft=256, hop=64, sample_rate=8000, bandwidth_hz=3000.0
)


def network(config: Config = SMALL) -> UNet:
    """Random weights and statistics; masks that are not all 0 or 1."""
    torch.manual_seed(4)
    net = UNet(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for part in net.modules():
            if isinstance(part, nn.BatchNorm1d):
                assert part.running_mean is not None and part.running_var is not None
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2.0)
        net.out.weight.mul_(0.02)
    return net.eval()


def mixture(frames: int, config: Config = SMALL, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return 5 * torch.rand(batch, frames, config.channels, config.bins, generator=generator)


def test_its_size_at_44_khz() -> None:
    net = UNet(Config(branches=("linear-log",), mask="sigmoid"))
    assert sum(parameter.numel() for parameter in net.parameters()) == 583_418


@pytest.mark.parametrize("frames", [1, 7, 8, 50])
@pytest.mark.parametrize("channels", [1, 2])
@torch.no_grad()
def test_masks_are_from_0_to_1_of_any_number_of_frames(frames: int, channels: int) -> None:
    config = dataclasses.replace(SMALL, channels=channels)
    net, seen = network(config), mixture(frames, config, batch=3)
    mask = net.mask(seen)
    assert mask.shape == seen.shape and mask.min() >= 0 and mask.max() <= 1 and mask.std() > 0.05
    assert not mask[..., config.bandwidth_bins :].any() and mask[..., : config.bandwidth_bins].all()
    torch.testing.assert_close(net.mask(seen[1:2]), mask[1:2], rtol=0, atol=1e-4)  # not of its neighbours
    found = net(seen.permute(0, 2, 3, 1))
    torch.testing.assert_close(found.permute(0, 3, 1, 2), mask * seen)
    assert net.mask(0 * seen).isfinite().all()


@torch.no_grad()
def test_a_frame_depends_on_reach_frames_and_no_more() -> None:
    net = copy.deepcopy(network()).double()
    frames, at = 4 * REACH, 2 * REACH
    seen = mixture(frames).double()
    mask = net.mask(seen)[0, at]

    def changed(far: int) -> float:
        other = seen.clone()
        other[:, : at - far], other[:, at + far + 1 :] = 0, 40
        return float((net.mask(other)[0, at] - mask).abs().max())

    assert changed(REACH) == 0
    assert changed(REACH - GRID - 8) > 0  # it is no larger than it has to be


def in_pieces(net: UNet, seen: Tensor, length: int, reach: int) -> Tensor:
    ready, frames = folded(net), seen.shape[1]
    features = ready.branch(seen)[0]
    filled, pieces = -(-frames // GRID) * GRID, []
    for first in range(0, frames, length):
        last = min(first + length, frames)
        begin, end = max(0, first - reach) // GRID * GRID, min(-(-(last + reach) // GRID) * GRID, filled)
        piece = ready.mask(features[begin:end], end - begin, slice(first - begin, last - begin))
        assert piece.shape == (last - first, seen.shape[2], features.shape[-1])
        pieces.append(piece)
    return torch.cat(pieces)


@pytest.mark.parametrize("frames", [1, 200, 331, 400])
@pytest.mark.parametrize("length", [33, 128, 1000])
@torch.no_grad()
def test_pieces_of_the_folded_network_make_the_whole(frames: int, length: int) -> None:
    net, seen = network(), mixture(frames)
    exact = copy.deepcopy(net).double().mask(seen.double())[0, ..., : SMALL.bandwidth_bins]
    assert (in_pieces(net, seen, length, REACH) - exact).abs().max() < 2e-5


@torch.no_grad()
def test_pieces_with_less_beside_them_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    net, seen = network(), mixture(400)
    exact = net.mask(seen)[0, ..., : SMALL.bandwidth_bins]
    assert (in_pieces(net, seen, 33, REACH // 2) - exact).abs().max() > 1e-4
    monkeypatch.setattr(unet, "NEAR", 0)
    assert (in_pieces(net, seen, 33, REACH) - exact).abs().max() > 1e-4


def test_every_parameter_learns() -> None:
    net = network().train()
    net.mask(mixture(20, batch=2)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())


def test_what_it_cannot_be_is_refused() -> None:
    with pytest.raises(ModelError, match="one branch and the mask sigmoid, got linear-log, mel"):
        UNet(dataclasses.replace(SMALL, branches=("linear-log", "mel")))
    with pytest.raises(ModelError, match=r"each of the 97 bins, such as linear-log; mel has 12"):
        UNet(dataclasses.replace(SMALL, branches=("mel",), n_mels=12))
    with pytest.raises(ModelError, match=r"a second_network \(unet\) needs the branches"):
        dataclasses.replace(SMALL, second_network="unet")
    with pytest.raises(ModelError, match="the source is a U-Net"):
        init_from(MaskNet(SMALL), network())
    with pytest.raises(ModelError, match="got linear-log and relu"):
        UNet(dataclasses.replace(SMALL, mask="relu"))
    with pytest.raises(ModelError, match="129 bins, got 2 channels and 100 bins"):
        network().mask(torch.rand(1, 5, 2, 100))
    with pytest.raises(ModelError, match="no network named 'cnn'"):
        dataclasses.replace(SMALL, network="cnn")
    pair = {"network": "unet", "second": ("linear",), "second_share": 0.5}
    with pytest.raises(ModelError, match="first network of a pair is a blstm"):
        build_net(dataclasses.replace(SMALL, **pair))


@pytest.mark.parametrize("window", [300, 50])
def test_a_song_in_blocks_is_the_whole_song(window: int) -> None:
    """Not so where a block would begin off the grid of frames that the network halves."""
    made = Separator(dataclasses.replace(SMALL, network="unet"), {"vocals": network()})
    waveform = 0.1 * torch.randn(2, 130 * 100 * SMALL.hop // 10, generator=torch.Generator().manual_seed(2))
    blocks = {"segment_s": 3.0, "overlap_s": (2 * REACH + 3) * SMALL.hop / SMALL.sample_rate, "wiener_win_len": window}
    whole, cut = (
        made.separate(waveform, SMALL.sample_rate, Options(split=split, **blocks))["vocals"] for split in (False, True)
    )
    assert (cut - whole).abs().max() < 1e-4 * whole.abs().max()


@torch.no_grad()
def test_a_pair_with_a_blstm_has_the_mean_of_both_masks() -> None:
    config = dataclasses.replace(
        SMALL, second=("linear-log",), second_mask="sigmoid", second_network="unet", second_share=0.6
    )
    torch.manual_seed(1)
    pair, seen = build_net(config).eval(), mixture(30)
    assert isinstance(pair, MaskPair) and isinstance(pair.second, UNet)
    (_, first), (_, second) = members(pair)
    assert second is pair.second
    assert config.of_second == pair.second.config == dataclasses.replace(SMALL, network="unet")
    alone = build_net(dataclasses.replace(SMALL)).eval()
    alone.load_state_dict({name: values for name, values in first.state_dict().items() if "second" not in name})
    torch.testing.assert_close(pair.mask(seen), 0.4 * alone.mask(seen) + 0.6 * second.mask(seen))
    assert Config.from_dict(config.to_dict()) == config and "second_network" in config.to_dict()
    assert "network" not in Config().to_dict()


def test_a_run_becomes_a_model_that_separates(store: Path, tmp_path: Path) -> None:
    toy = Pack(store)
    config = dataclasses.replace(SMALL, sample_rate=toy.sample_rate)
    options = TrainOptions(
        network="unet", steps=4, batch=2, excerpt_s=0.5, every=2, warmup=0, precision="float32", loss="error-energy"
    )
    fit(toy, config, options, tmp_path / "run")
    chosen = chosen_of(tmp_path / "run", last=True)
    statistics = chosen["state"]["mean"], chosen["state"]["scale"]
    assert statistics[0].std() > 0.1 and not torch.equal(statistics[1], torch.ones_like(statistics[1]))
    export(chosen, tmp_path / "model.safetensors", half=False)
    made = pretrained.load(tmp_path / "model.safetensors")
    assert made.config.network == "unet" and isinstance(made.nets["vocals"], UNet)
    waveform = 0.1 * torch.randn(2, 3 * config.sample_rate)
    stems = made.separate(waveform, config.sample_rate)
    torch.testing.assert_close(stems["vocals"] + stems["accompaniment"], waveform)
    # The same as by the plain network, with the filter that the model asks for.
    expected = made(waveform[None], niter=1, residual=True)[0, 0]
    assert (stems["vocals"] - expected).abs().max() < 1e-4 * expected.abs().max()
    with pytest.raises(UsageError, match="leave out network 'unet'"):
        fit(toy, dataclasses.replace(config, network="unet"), options, tmp_path / "other")
