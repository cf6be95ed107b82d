"""The network against open-unmix's, the parameter counts worked out by hand, and its own laws."""

from __future__ import annotations

import pytest
import torch

from tests.peers import import_peer
from umx_ext.errors import ModelError
from umx_ext.separation.branches import BRANCHES
from umx_ext.separation.config import Config
from umx_ext.separation.masknet import MaskNet, from_openunmix_state
from umx_ext.spectral import stft

SMALL = {"hidden": 16, "n_fft": 512, "hop": 128, "n_mels": 16}


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


@pytest.mark.parametrize(
    ("branches", "channels", "count"),
    [
        (("linear",), 2, 8_893_348),
        (("linear",), 1, 7_078_818),
        (("linear", "mel"), 2, 13_756_581),
        (("linear", "mel-poster"), 2, 13_756_581),
    ],
)
def test_parameter_counts_are_those_of_the_specification(branches, channels, count):
    net = MaskNet(Config(branches=branches, channels=channels))
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


def test_a_second_branch_with_gain_zero_changes_nothing():
    both = shaken(MaskNet(Config(branches=("linear", "mel"), **SMALL)))
    alone = MaskNet(Config(branches=("linear",), **SMALL)).eval()
    state = {key: value for key, value in both.state_dict().items() if not key.startswith("encoders.mel")}
    alone.load_state_dict(state | {"gains": torch.ones(0)})
    mixture = magnitudes(both.config)
    assert not torch.allclose(both(mixture), alone(mixture))
    with torch.no_grad():
        both.gains.zero_()
    assert torch.equal(both(mixture), alone(mixture))


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


def test_every_parameter_learns():
    config = Config(branches=("linear", "mel"), mask="sigmoid", **SMALL)
    net = MaskNet(config).train()
    net(magnitudes(config)).square().mean().backward()
    silent = [name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert silent == []


def test_memory_layout_has_frames_outermost():
    config = Config(**SMALL)
    spectrum = stft(torch.randn(1, 2, 4000), config.n_fft, config.hop)
    assert spectrum.mT.is_contiguous()
    assert MaskNet(config).eval()(spectrum.abs()).permute(0, 3, 1, 2).is_contiguous()


def test_one_excerpt_can_be_learnt():
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


def test_a_spectrogram_of_other_bins_is_refused():
    with pytest.raises(ModelError, match="257 bins"):
        MaskNet(Config(**SMALL))(torch.rand(1, 2, 100, 5))
