"""The real open-unmix learns by the trainer's interface, and what it learnt is one of our models."""

from __future__ import annotations

import builtins
import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.peers import import_peer
from umx_ext.errors import MissingExtraError, ModelError, UsageError
from umx_ext.separation.config import Config
from umx_ext.separation.masknet import MaskNet
from umx_ext.separation.pretrained import load, save
from umx_ext.separation.separator import Separator
from umx_ext.training.baseline import OpenUnmixNet, masknet_state

CONFIG = Config(hidden=32, n_fft=512, hop=128)


def magnitudes(frames: int = 40, channels: int = 2) -> Tensor:
    """Frames-major, with bins and frames that are silent."""
    values = 20 * torch.rand(3, frames, channels, CONFIG.bins, generator=torch.Generator().manual_seed(0))
    values[:, 3], values[..., 7] = 0, 0
    return values


def baseline(**fields: object) -> OpenUnmixNet:
    import_peer("openunmix.model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = OpenUnmixNet(dataclasses.replace(CONFIG, **fields))
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, nn.BatchNorm1d):
                part.running_mean.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
                part.running_var.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(2))
    return net


def test_it_is_the_real_network_of_the_configs_size() -> None:
    model = import_peer("openunmix.model")
    net = OpenUnmixNet(Config())
    assert type(net.model) is model.OpenUnmix
    assert sum(parameter.numel() for parameter in net.parameters()) == 8_893_348


@pytest.mark.parametrize("channels", [1, 2])
def test_its_mask_gives_the_real_networks_output(channels: int) -> None:
    net, mixture = baseline(channels=channels).eval(), magnitudes(channels=channels)
    before = mixture.clone()
    with torch.no_grad():
        mask, expected = net.mask(mixture), net.model(mixture.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert mask.shape == mixture.shape and mask.isfinite().all() and (mask >= 0).all()
    assert expected.abs().max() > 1
    assert (mask * mixture - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert (mask[:, 3] == 0).all() and (mask[..., 7] == 0).all()
    assert torch.equal(mixture, before)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_step_trains_it(precision: str) -> None:
    net, mixture = baseline().train(), magnitudes()
    goal = mixture * (torch.rand(CONFIG.bins, generator=torch.Generator().manual_seed(3)) > 0.5)
    before = copy.deepcopy(net.state_dict())
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(4)
        for _ in range(8):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                mask = net.mask(mixture)
            loss = (mask.float() * mixture - goal).abs().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
            if len(losses) == 1:
                changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
                assert changed == set(before)
    assert losses[-1] < 0.9 * losses[0]


def test_its_gradients_are_a_mask_nets() -> None:
    """With the norms' running statistics: those of the batch would cancel the input's mean and leave its rounding."""
    net, mixture = baseline().eval(), magnitudes()
    ours = net.to_masknet()
    for each in (net, ours):
        (each.mask(mixture) * mixture).square().mean().backward()
    theirs = masknet_state({name: parameter.grad for name, parameter in net.named_parameters()})
    for name, parameter in ours.named_parameters():
        if name != "gains":
            scale = parameter.grad.abs().max()
            assert (parameter.grad - theirs[name]).abs().max() <= 1e-4 * scale


def test_the_statistics_are_those_that_openunmix_would_have_been_given() -> None:
    model = import_peer("openunmix.model")
    mean, deviation = 1 + torch.rand(2, CONFIG.bins, generator=torch.Generator().manual_seed(5))
    settings = {"nb_bins": CONFIG.bins, "nb_channels": 2, "hidden_size": 32, "max_bin": CONFIG.bandwidth_bins}
    expected = model.OpenUnmix(**settings, input_mean=mean.numpy(), input_scale=deviation.numpy())
    net = baseline()
    net.standardise(mean.double(), deviation.double())
    torch.testing.assert_close(net.model.input_mean, expected.input_mean)
    torch.testing.assert_close(net.model.input_scale, expected.input_scale)
    with pytest.raises(ModelError, match=r"expected statistics \(257,\), got \(256,\)"):
        net.standardise(mean[1:], deviation)


def test_what_it_learnt_is_saved_and_loaded_as_our_model(tmp_path: Path) -> None:
    net, mixture = baseline().eval(), magnitudes()
    ours = net.to_masknet()
    assert isinstance(ours, MaskNet) and not ours.training
    path = tmp_path / "baseline.safetensors"
    save(Separator(CONFIG, {"vocals": ours}), path, metadata={}, half=False)
    loaded = load(path).nets["vocals"]
    with torch.no_grad():
        expected = net.model(mixture.permute(0, 2, 3, 1))
        assert (loaded(mixture.permute(0, 2, 3, 1)) - expected).abs().max() <= 1e-6 * expected.abs().max()
        ours.fc2.weight.zero_()  # a copy
    assert net.model.fc2.weight.any()


def test_a_checkpoint_of_it_loads_into_a_mask_net_and_no_other_does() -> None:
    net = baseline()
    ours = MaskNet(CONFIG)
    ours.load_state_dict(masknet_state(net.state_dict()))
    assert torch.equal(ours.fc3.weight, net.model.fc3.weight)
    with pytest.raises(ModelError, match="no weight of an OpenUnmixNet"):
        masknet_state(ours.state_dict())


@pytest.mark.parametrize(
    "fields", [{"branches": ("linear", "mel")}, {"branches": ("linear-log",)}, {"mask": "sigmoid"}, {"dropout": 0.1}]
)
def test_what_openunmix_does_not_have_is_refused(fields: dict) -> None:
    with pytest.raises(UsageError, match=r"open-unmix has the branch linear alone, the mask relu and dropout 0\.4"):
        OpenUnmixNet(dataclasses.replace(CONFIG, **fields))


def test_a_spectrogram_of_other_bins_is_refused() -> None:
    with pytest.raises(ModelError, match="2 channels and 257 bins, got"):
        baseline().mask(torch.rand(1, 5, 2, 100))


@pytest.mark.parametrize("error", [ImportError("No module named 'openunmix'"), RuntimeError("CUDA 13.2"), OSError()])
def test_without_openunmix_the_error_is_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    honest = builtins.__import__

    def refuses(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("openunmix"):
            raise error
        return honest(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuses)
    with pytest.raises(MissingExtraError, match=r"pip install '.\[research\]'"):
        OpenUnmixNet(CONFIG)
