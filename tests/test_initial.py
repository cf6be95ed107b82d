"""Fine-tuning starts at the real open-unmix's output, and leaves it by learning."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.peers import import_peer
from umx_ext.errors import ModelError, UsageError
from umx_ext.separation.config import FUSIONS, Config
from umx_ext.separation.initial import init_from
from umx_ext.separation.masknet import MaskNet, from_openunmix_state
from umx_ext.separation.pretrained import MODELS, save
from umx_ext.separation.separator import Separator

# Of open-unmix, small. Dropout is 0 so that training mode can be compared too.
CONFIG = Config(hidden=32, n_fft=1024, hop=256, n_mels=16, n_mfcc=9, dropout=0.0)
MORE = ("linear", "mel", "mfcc")


def mixture(config: Config = CONFIG) -> Tensor:
    return 20 * torch.rand(2, config.channels, config.bins, 30, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def shaken(net: nn.Module, seed: int = 1) -> nn.Module:
    """Random weights and statistics; the network in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value.copy_(0.1 * torch.randn(value.shape, generator=generator) + (1.0 if "var" in name else 0.05))
    return net.eval()


@pytest.fixture(scope="module")
def peer() -> nn.Module:
    """The real one."""
    model = import_peer("openunmix.model")
    net = model.OpenUnmix(nb_bins=CONFIG.bins, nb_channels=2, hidden_size=32, max_bin=CONFIG.bandwidth_bins)
    return shaken(net)


def network(seed: int = 2, **fields: object) -> MaskNet:
    return shaken(MaskNet(dataclasses.replace(CONFIG, **{"branches": MORE, **fields})), seed)  # type: ignore[return-value]


def assert_equals_open_unmix(net: MaskNet, peer: nn.Module) -> None:
    with torch.no_grad():
        expected, ours = peer(mixture()), net.eval()(mixture())
    assert expected.abs().max() > 1
    assert (ours - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("branches", [("linear",), ("linear", "mel"), ("linear", "linear2"), MORE])
def test_the_start_equals_the_real_open_unmix(peer: nn.Module, branches: tuple[str, ...], fusion: str) -> None:
    net = network(branches=branches, fusion=fusion)
    untouched = {key: value.clone() for key, value in net.state_dict().items() if key.startswith("encoders.m")}
    assert init_from(net, peer.state_dict()) == branches[1:]
    assert_equals_open_unmix(net, peer)
    assert net.gains.tolist() == [0.0] * (len(branches) - 1)
    # The new branches keep their statistics and weights: with other gains they do have a say.
    assert all(torch.equal(net.state_dict()[key], value) for key, value in untouched.items())
    if len(branches) > 1:
        net.gains.data.fill_(1.0)
        with pytest.raises(AssertionError):
            assert_equals_open_unmix(net, peer)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_from_there_everything_learns(peer: nn.Module, fusion: str) -> None:
    net = network(fusion=fusion)
    init_from(net, peer.state_dict())
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    goal = torch.rand(mixture().shape, generator=torch.Generator().manual_seed(3)) * mixture()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):  # in the first step the gains alone learn of the new branches, then all
        loss = (net.train()(mixture()) - goal).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert [name for name, parameter in net.named_parameters() if torch.equal(parameter, before[name])] == []


@pytest.mark.parametrize("kind", ["network", "our state", "safetensors", "folder", "pth", "name"])
def test_every_kind_of_source_gives_the_same(
    peer: nn.Module, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, stems=("drums", "vocals"))
    nets = {"drums": shaken(MaskNet(config), 5), "vocals": MaskNet(config)}
    nets["vocals"].load_state_dict(from_openunmix_state(peer.state_dict()))
    source: object
    if kind == "network":
        source = nets["vocals"]
    elif kind == "our state":
        source = nets["vocals"].state_dict()
    elif kind == "safetensors":
        source = tmp_path / "model.safetensors"
        save(Separator(config, nets), source, metadata={}, half=False)  # type: ignore[arg-type]
    else:
        path = tmp_path / "vocals-01234567.pth"
        torch.save(peer.state_dict(), path)
        source = path
        if kind == "folder":
            (tmp_path / "separator.json").write_text(
                '{"sample_rate": 44100, "nfft": 1024, "nhop": 256, "nb_channels": 2}'
            )
            source = str(tmp_path)
        if kind == "name":  # as umxhq is registered, with the file where a download would have put it
            entry = MODELS["umxhq"]
            file = dataclasses.replace(entry.files[0], sha256=hashlib.sha256(path.read_bytes()).hexdigest())
            file = dataclasses.replace(file, location=f"https://example.invalid/{path.name}")
            entry = dataclasses.replace(entry, config=dataclasses.replace(CONFIG, stems=entry.stems), files=(file,))
            monkeypatch.setitem(MODELS, "umxhq", dataclasses.replace(entry, stems=("vocals",)))
            monkeypatch.setattr("umx_ext.separation.pretrained.cache_dir", lambda: tmp_path)
            source = "umxhq"
    net = network()
    assert init_from(net, source, offline=True) == ("mel", "mfcc")  # type: ignore[arg-type]
    assert_equals_open_unmix(net, peer)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_source_of_several_branches_keeps_their_gains_wherever_they_come_to_stand(fusion: str) -> None:
    source = network(seed=7, branches=("linear", "mel"), fusion=fusion)
    net = network(branches=("linear", "mfcc", "mel"), fusion=fusion)
    before = copy.deepcopy(source.state_dict())
    assert init_from(net, source) == ("mfcc",)
    with torch.no_grad():
        expected, ours = source(mixture()), net(mixture())
    assert (ours - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
    with torch.no_grad():
        net.fc2.weight.add_(1.0)  # its own memory
    assert torch.equal(source.fc2.weight, before["fc2.weight"])


def test_the_callers_random_numbers_stay_as_they_were(peer: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(Separator(dataclasses.replace(CONFIG)), path, metadata={})
    net, state = network(), torch.get_rng_state()
    init_from(net, path)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ({"hidden": 16}, {}, "hidden 16 cannot start from the source, which has hidden 32"),
        ({"mask": "sigmoid", "layers": 2}, {}, "layers 2, mask sigmoid .* layers 3, mask relu"),
        ({"bandwidth_hz": 8000.0}, {}, "bandwidth_bins 186 .* bandwidth_bins 372"),
        ({"branches": ("mel", "linear")}, {}, "has the branches linear; .* linear first, got mel, linear"),
        ({"branches": ("linear", "mel")}, {"branches": ("linear", "mfcc")}, "has the branches linear, mfcc; .* got"),
        ({"branches": ("linear", "mel"), "fusion": "lstm-add"}, {"branches": ("linear", "mel")}, "fusion lstm-add"),
        ({"n_mels": 20}, {"branches": ("linear", "mel")}, "branch mel of the source .* n_mels"),
        ({"bandwidth_hz": 15990.0}, {"branches": ("linear", "mel")}, "branch mel of the source .* bandwidth_hz"),
    ],
)
def test_a_source_that_the_network_cannot_start_as_is_refused(ours: dict, theirs: dict, words: str) -> None:
    net, source = network(**ours), network(**{"branches": ("linear",), **theirs})
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ModelError, match=words):
        init_from(net, source)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_bandwidth_that_gives_the_same_bins_is_the_same_to_open_unmix() -> None:
    assert init_from(network(bandwidth_hz=15990.0), network(branches=("linear",))) == ("mel", "mfcc")


def test_bad_states_and_names_are_refused(peer: nn.Module, tmp_path: Path) -> None:
    whole = from_openunmix_state(peer.state_dict())
    cases = [
        ({key: value for key, value in whole.items() if key != "bn2.bias"}, "lacks the weight 'bn2.bias'"),
        (whole | {"fc3.weight": torch.zeros(3, 4)}, r"'fc3.weight' has the shape \(3, 4\), expected \(1026, 32\)"),
        (network().state_dict(), "state dict of 3 branches"),
        ({}, "state dict of 0 branches"),
        ({"fc1.weight": torch.zeros(1), "conv1.weight": torch.zeros(1)}, "conv1"),
        ("umxx", "no model named 'umxx'; known: .*umxhq"),
        (tmp_path / "gone.pth", "cannot read"),
        (tmp_path / "gone.safetensors", "is not a file"),
    ]
    for source, words in cases:
        net = network()
        before = copy.deepcopy(net.state_dict())
        with pytest.raises(ModelError, match=words):
            init_from(net, source)
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    with pytest.raises(UsageError, match=r"only a MaskNet .* got Linear"):
        init_from(nn.Linear(1, 1), whole)  # type: ignore[arg-type]
