"""The network against open-unmix's, the parameter counts worked out by hand, and its own laws."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from tests.peers import import_peer
from umx_ext.errors import ModelError
from umx_ext.separation.branches import BRANCHES
from umx_ext.separation.config import FUSIONS, Config
from umx_ext.separation.masknet import MaskNet, build_net, from_openunmix_state, members
from umx_ext.spectral import stft

SMALL = {"hidden": 16, "n_fft": 512, "hop": 128, "n_mels": 16, "n_mfcc": 16}


def magnitudes(config: Config, batch: int = 2, frames: int = 9, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 10 * torch.rand(batch, config.channels, config.bins, frames, generator=generator)


def shaken(net: MaskNet) -> MaskNet:
    """Every weight and running statistic random, so that nothing is right by being 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                value.copy_(0.1 * torch.randn(value.shape, generator=generator) + (1.0 if "var" in name else 0.05))
    return net.eval()


# Of a further branch at hidden size 512: batch norm, BLSTM, gain; beside these come fc1 and a mean and scale each.
FURTHER = 1_024 + 4_730_880 + 1


@pytest.mark.parametrize(
    ("branches", "channels", "fusion", "count"),
    [
        (("linear",), 2, "add", 8_893_348),
        (("linear",), 1, "add", 7_078_818),
        (("linear",), 2, "concat", 8_893_348),
        (("linear", "mel"), 2, "add", 13_756_581),
        (("linear", "mel-poster"), 2, "add", 13_756_581),
        (("linear", "mfcc"), 2, "add", 13_666_293),
        (("linear", "linear2"), 2, "add", 8_893_348 + 1_522_688 + 2 * 1_487 + FURTHER),
        (("linear-log", "linear2-log"), 2, "add", 8_893_348 + 1_522_688 + 2 * 1_487 + FURTHER),
        (("linear", "mel"), 1, "add", 7_078_818 + 128 * 512 + 2 * 128 + FURTHER),
        (("linear", "mel", "mfcc"), 2, "add", 13_756_581 + 13_666_293 - 8_893_348),
        (("linear", "mel"), 2, "lstm-add", 13_756_581),
        (("linear", "mel"), 2, "concat", 13_756_581 + 1_024 * 512),  # fc2 sees 2048
    ],
)
def test_parameter_counts_are_those_worked_out_by_hand(branches, channels, fusion, count):
    net = MaskNet(Config(branches=branches, channels=channels, fusion=fusion))
    assert sum(parameter.numel() for parameter in net.parameters()) == count


@pytest.mark.parametrize(("channels", "bandwidth"), [(2, 16000.0), (1, 8000.0)])
def test_linear_branch_alone_is_open_unmix(channels, bandwidth):
    model = import_peer("openunmix.model")
    torch.manual_seed(0)
    config = Config(channels=channels, hidden=64, bandwidth_hz=bandwidth)
    peer = model.OpenUnmix(
        nb_bins=config.bins, nb_channels=channels, hidden_size=64, max_bin=config.bandwidth_bins
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, value in peer.state_dict().items():
            if value.is_floating_point():
                value.copy_(0.1 * torch.randn(value.shape, generator=generator) + (1.0 if "var" in name else 0.05))
    peer.eval()
    net = MaskNet(config).eval()
    net.load_state_dict(from_openunmix_state(peer.state_dict()))
    mixture = magnitudes(config, frames=20)
    with torch.no_grad():
        expected, ours = peer(mixture), net(mixture)
    assert expected.abs().max() > 1
    assert (ours - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_open_unmix_state_with_a_foreign_key_is_refused():
    with pytest.raises(ModelError, match="conv1"):
        from_openunmix_state({"conv1.weight": torch.zeros(1)})


def test_bandwidth_of_16_khz_is_1487_bins():
    assert Config().bandwidth_bins == 1487


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_second_branch_with_gain_zero_changes_nothing(fusion):
    both = shaken(MaskNet(Config(branches=("linear", "mel"), fusion=fusion, **SMALL)))
    alone = MaskNet(Config(branches=("linear",), **SMALL)).eval()
    state = {key: value for key, value in both.state_dict().items() if not key.startswith("encoders.mel")}
    alone.load_state_dict(state | {"gains": torch.ones(0), "fc2.weight": state["fc2.weight"][:, : 2 * 16]})
    mixture = magnitudes(both.config)
    assert not torch.allclose(both(mixture), alone(mixture))
    with torch.no_grad():
        both.gains.zero_()
    assert torch.allclose(both(mixture), alone(mixture), rtol=1e-6, atol=1e-6)


def before_the_decoder(net: MaskNet, mixture: torch.Tensor) -> torch.Tensor:
    """What comes into fc2 (frames, batch, inputs)."""
    seen = []
    handle = net.fc2.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    net(mixture)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_fusion_is_what_its_name_says(fusion):
    """Entry by entry: the first 16 of a branch are its encoder's output, the other 16 its BLSTM's."""
    config = Config(branches=("linear", "mel", "mfcc"), fusion=fusion, **SMALL)
    net, mixture = shaken(MaskNet(config)), magnitudes(config)
    parts = [encoder(mixture.permute(0, 3, 1, 2)).detach() for encoder in net.encoders.values()]
    gains = [1.0, *net.gains.tolist()]
    fused = before_the_decoder(net, mixture)[4, 1]
    for index, value in enumerate(fused.tolist()):
        weighted = [float(gain * part[4, 1, index % 32]) for gain, part in zip(gains, parts, strict=True)]
        expected = {
            "add": sum(weighted),
            "concat": weighted[index // 32],
            "lstm-add": weighted[0] if index < 16 else sum(weighted),
        }
        assert value == pytest.approx(expected[fusion], abs=1e-6)
    assert len(fused) == (96 if fusion == "concat" else 32)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_of_one_branch_every_fusion_is_the_same(fusion):
    config = Config(fusion=fusion, **SMALL)
    mixture = magnitudes(config)
    assert torch.equal(shaken(MaskNet(config))(mixture), shaken(MaskNet(Config(**SMALL)))(mixture))


@pytest.mark.parametrize("name", BRANCHES)
@pytest.mark.parametrize("mask", ["relu", "sigmoid"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("frames", [1, 7, 255])
def test_every_branch_keeps_shape_and_is_zero_where_the_mixture_is(name, mask, channels, frames):
    config = Config(branches=(name,), channels=channels, mask=mask, **SMALL)
    net = shaken(MaskNet(config))
    mixture = magnitudes(config, batch=3, frames=frames)
    mixture[:, :, 3] = 0
    before = mixture.clone()
    estimate = net(mixture)
    assert estimate.shape == mixture.shape
    assert (estimate >= 0).all()
    assert (estimate[:, :, 3] == 0).all()
    assert torch.equal(mixture, before)


@pytest.mark.parametrize("name", BRANCHES)
def test_a_batch_equals_a_loop(name):
    config = Config(branches=("linear", name) if name != "linear" else ("linear",), **SMALL)
    net = shaken(MaskNet(config))
    mixture = magnitudes(config, batch=3)
    looped = torch.cat([net(item[None]) for item in mixture])
    assert torch.allclose(net(mixture), looped, atol=1e-6)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("second", [name for name in BRANCHES if name != "linear"])
def test_every_parameter_learns(second, fusion):
    config = Config(branches=("linear", second), fusion=fusion, mask="sigmoid", **SMALL)
    net = MaskNet(config).train()
    net(magnitudes(config)).square().mean().backward()
    silent = [name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert silent == []


def test_memory_layout_has_frames_outermost():
    config = Config(**SMALL)
    spectrum = stft(torch.randn(1, 2, 4000), config.n_fft, config.hop)
    assert spectrum.mT.is_contiguous()
    assert MaskNet(config).eval()(spectrum.abs()).permute(0, 3, 1, 2).is_contiguous()


@pytest.fixture
def one_thread():
    """For many steps of small tensors: several threads would mostly wait for each other where others work too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_one_excerpt_can_be_learnt(one_thread):
    generator = torch.Generator().manual_seed(0)
    config = Config(branches=("linear", "mel"), dropout=0.0, hidden=64, n_fft=512, hop=128, n_mels=16)
    mixture = 5 * torch.rand(4, 2, config.bins, 40, generator=generator)
    target = mixture * (torch.rand(1, 1, config.bins, 1, generator=generator) > 0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MaskNet(config).train()
        optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
        losses = []
        for _ in range(200):
            loss = (net(mixture) - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 10


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"branches": ("linear", "cepstrum")}, "known: linear"),
        ({"channels": 3}, "1 or 2 channels"),
        ({"mask": "softmax"}, "known: relu, sigmoid"),
        ({"hop": 1000}, "times the hop"),
        ({"hidden": 15}, "even"),
        ({"hop": 0}, "hop above 0, got 0"),
        ({"layers": -1}, "layers above 0"),
        ({"stems": ()}, "at least one stem"),
        ({"fusion": "mean"}, "no fusion named 'mean'; known: add, concat, lstm-add"),
        ({"n_mfcc": 0}, "n_mfcc above 0, got 0"),
        ({"second": ("mel",)}, "second_share above 0 and below 1 with a second network, and 0 without, got 0.0"),
        ({"second": ("mel",), "second_share": 1.0}, "got 1.0"),
        ({"second_share": 0.5}, "and 0 without, got 0.5"),
        ({"second": ("mel", "mel"), "second_share": 0.5}, "expected different branches"),
        ({"second": "mel", "second_share": 0.5}, "the string 'mel'"),
        ({"second": ("mel",), "second_mask": "tanh", "second_share": 0.5}, "no mask named 'tanh'"),
        ({"bandwidth_hz": float("nan")}, "bandwidth_hz above 0, got nan"),
        ({"branches": "linear"}, "sequence of names for branches, got the string 'linear'"),
        ({"branches": ("linear", "linear")}, "different branches, got linear, linear; .* linear2"),
        ({"hidden": "64"}, "whole number for hidden, got '64'"),
        ({"layers": 2.5}, "whole number for layers, got 2.5"),
        ({"niter": True}, "whole number for niter, got True"),
        ({"dropout": None}, "a number for dropout, got None"),
        ({"mask": 1}, "a name for mask, got 1"),
    ],
)
def test_a_wrong_config_is_refused_in_one_sentence(fields, words):
    with pytest.raises(ModelError, match=words):
        MaskNet(Config(**fields))


def test_config_goes_to_a_dict_and_back():
    config = Config(stems=("vocals", "drums"), branches=("linear", "mel"), hidden=32)
    assert Config.from_dict(config.to_dict()) == config
    with pytest.raises(ModelError, match="attention"):
        Config.from_dict(config.to_dict() | {"attention": 8})


def test_a_config_from_before_fusions_is_one_that_adds_and_stays_as_it_was():
    """As JSON, to the byte: saved models keep their hash, and runs that were started before go on."""
    before = (
        '{"stems": ["vocals"], "branches": ["linear-log", "mel"], "sample_rate": 44100, "channels": 2, "n_fft": 4096, '
        '"hop": 1024, "bandwidth_hz": 16000.0, "n_mels": 128, "hidden": 256, "layers": 3, "dropout": 0.4, '
        '"mask": "sigmoid", "niter": 0}'
    )
    config = Config.from_dict(json.loads(before))
    assert (config.fusion, config.n_mfcc) == ("add", 40)
    assert json.dumps(config.to_dict()) == before
    younger = dataclasses.replace(config, fusion="lstm-add", n_mfcc=20)
    assert {name: younger.to_dict()[name] for name in ("fusion", "n_mfcc")} == {"fusion": "lstm-add", "n_mfcc": 20}
    assert Config.from_dict(younger.to_dict()) == younger


def test_a_spectrogram_of_other_bins_is_refused():
    with pytest.raises(ModelError, match="257 bins"):
        MaskNet(Config(**SMALL))(torch.rand(1, 2, 100, 5))


def test_a_pairs_mask_is_the_weighted_mean_of_its_networks():
    both = {"fusion": "concat", "layers": 2, **SMALL}
    config = Config(
        branches=("linear-log", "mel"), mask="sigmoid", second=("linear", "mfcc"), second_share=0.3, **both
    )
    pair = shaken(build_net(config))
    first = MaskNet(Config(branches=("linear-log", "mel"), mask="sigmoid", **both))
    second = MaskNet(Config(branches=("linear", "mfcc"), mask="relu", **both))
    state = pair.state_dict()
    first.load_state_dict({key: value for key, value in state.items() if not key.startswith("second.")})
    second.load_state_dict({key[7:]: value for key, value in state.items() if key.startswith("second.")})
    mixture = magnitudes(config)
    expected = 0.7 * first.eval()(mixture) + 0.3 * second.eval()(mixture)
    torch.testing.assert_close(pair(mixture), expected)
    assert (pair(mixture) - first(mixture)).abs().max() > 1e-3
    assert [share for share, _ in members(pair)] == [0.7, 0.3] and members(first) == [(1.0, first)]
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.of_second == second.config


def test_without_a_second_network_there_is_one():
    assert type(build_net(Config(**SMALL))) is MaskNet
