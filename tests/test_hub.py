"""The entry points of torch.hub, loaded by torch.hub itself from this repository."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.peers import import_peer
from tests.test_pretrained import BANDWIDTH_BINS, openunmix_state
from umx_ext.errors import AudioError, ModelError, UsageError
from umx_ext.separation.config import Config
from umx_ext.separation.pretrained import MODELS, ModelFile, load

REPOSITORY = Path(__file__).resolve().parents[1]
TINY = Config(("vocals",), n_fft=256, hop=64, hidden=12, sample_rate=15000, bandwidth_hz=59.5 * 15000 / 256)

# Everything a separation needs no more than the core for; a process in which none of it can be imported.
ABSENT = (
    "av", "cyclopts", "librosa", "matplotlib", "musdb", "museval", "norbert", "openunmix", "pyloudnorm", "rich",
    "scipy", "soundfile", "soxr", "torchaudio",
)  # fmt: skip


def hub(name: str, **options: Any) -> Any:
    return torch.hub.load(str(REPOSITORY), name, source="local", **options)


def entry_points() -> dict[str, Any]:
    """What `torch.hub.list` and `torch.hub.help` look at; both only take GitHub repositories themselves."""
    module = torch.hub._import_module("hubconf.py", str(REPOSITORY / "hubconf.py"))  # type: ignore[attr-defined]
    return {name: value for name, value in vars(module).items() if callable(value) and not name.startswith("_")}


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.1


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small architectures under the real names; umxhq's weights lie in the cache."""
    monkeypatch.setenv("UMX_EXT_CACHE", str(tmp_path))
    monkeypatch.setenv("UMX_EXT_OFFLINE", "1")
    files = []
    for seed, stem in enumerate(MODELS["umxhq"].stems):
        buffer = io.BytesIO()
        torch.save(openunmix_state(seed=seed), buffer)
        (tmp_path / f"{stem}.pth").write_bytes(buffer.getvalue())
        sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
        files.append(ModelFile(f"https://127.0.0.1/{stem}.pth", sha256, stem))
    monkeypatch.setattr("umx_ext.separation.pretrained.WEIGHTS", tmp_path)
    for name, entry in MODELS.items():
        small = dataclasses.replace(entry, config=dataclasses.replace(TINY, stems=entry.stems))
        monkeypatch.setitem(MODELS, name, small)
    monkeypatch.setitem(MODELS, "umxhq", dataclasses.replace(MODELS["umxhq"], files=tuple(files)))


def test_torch_hub_lists_each_model_twice_and_nothing_else() -> None:
    assert sorted(entry_points()) == sorted([*MODELS, *(f"{name}_spec" for name in MODELS)])


@pytest.mark.parametrize("name", MODELS)
def test_the_help_of_each_entry_explains_it(name: str) -> None:
    waveform, spectrogram = entry_points()[name], entry_points()[f"{name}_spec"]
    model = MODELS[name]
    for entry in (waveform, spectrogram):
        for word in (*inspect.signature(entry).parameters, *model.stems, model.license, model.description):
            assert word in entry.__doc__
        assert max(len(line) for line in model.description.splitlines()) < 100
    assert f"{model.config.sample_rate} Hz" in waveform.__doc__
    assert f"{model.config.bins} bins" in spectrogram.__doc__ and f"hop {model.config.hop}" in spectrogram.__doc__


def test_the_signature_is_the_promised_one() -> None:
    promised = "(targets=None, residual=True, niter=1, device='cpu', pretrained=True, wiener_win_len=300)"
    assert str(inspect.signature(entry_points()["umx_ext"])) == promised
    assert str(inspect.signature(entry_points()["umx_ext_spec"])) == "(targets=None, device='cpu', pretrained=True)"


def test_the_signatures_take_what_openunmixs_take() -> None:
    peer = import_peer("openunmix")
    for name in ("umx", "umxhq", "umxl"):
        ours = inspect.signature(entry_points()[name]).parameters
        theirs = dict(inspect.signature(getattr(peer, name)).parameters)
        theirs.pop("filterbank")  # asteroid's transforms, which we do not have
        assert {key: value.default for key, value in ours.items()} == {k: v.default for k, v in theirs.items()}


def test_the_core_dependencies_alone_load_and_separate_from_an_empty_folder(tmp_path: Path) -> None:
    code = f"""
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ImportError(name + " is made absent")
sys.meta_path.insert(0, Absent())
import torch
before = list(sys.path)
separator = torch.hub.load({str(REPOSITORY)!r}, "umx_ext", source="local", pretrained=False)
assert sys.path == before
mixture = torch.randn(2, 2, 20000) * 0.1
with torch.no_grad():
    estimates = separator(mixture)
assert estimates.shape == (2, 2, 2, 20000), estimates.shape
assert separator.stems == ("vocals", "accompaniment")
nets = torch.hub.load({str(REPOSITORY)!r}, "umx_ext_spec", source="local", pretrained=False)
assert nets["vocals"](torch.rand(1, 2, 2049, 5)).shape == (1, 2, 2049, 5)
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_the_estimates_equal_openunmixs(tiny: None) -> None:
    model = import_peer("openunmix.model")
    targets = {}
    for seed, stem in enumerate(MODELS["umxhq"].stems):
        targets[stem] = model.OpenUnmix(nb_bins=129, nb_channels=2, hidden_size=12, max_bin=BANDWIDTH_BINS)
        targets[stem].load_state_dict(openunmix_state(seed=seed), strict=False)
        targets[stem].eval()
    mixture = noise(2, 2, 8000)
    for residual, niter in ((False, 1), (True, 1), (False, 0)):
        peer = model.Separator(
            targets, niter=niter, residual=residual, sample_rate=15000.0, n_fft=256, n_hop=64, wiener_win_len=50
        )
        ours = hub("umxhq", residual=residual, niter=niter, wiener_win_len=50)
        with torch.no_grad():
            expected, estimates = peer(mixture), ours(mixture)
        assert estimates.shape == expected.shape == (2, 5 if residual else 4, 2, 8000)
        assert (estimates - expected).norm() < 1e-4 * mixture.norm()  # -80 dB, the bar; float32 of both sides
        assert list(ours.to_dict(estimates)) == list(peer.to_dict(expected))
        assert ours.sample_rate == peer.sample_rate


def test_targets_choose_networks_and_their_order(tiny: None) -> None:
    separator = hub("umxhq", targets=["drums", "vocals"])
    assert separator.stems == ("drums", "vocals")
    spectrogram = hub("umxhq_spec", targets=["drums", "vocals"])
    assert list(spectrogram) == ["drums", "vocals"]
    assert isinstance(spectrogram, torch.nn.Module)
    magnitude = noise(1, 2, 129, 9).abs()
    torch.testing.assert_close(spectrogram["drums"](magnitude), separator.separator.nets["drums"](magnitude))
    with pytest.raises(ModelError, match="no network for 'piano'; it has: vocals, drums, bass, other"):
        hub("umxhq", targets=["piano"])


def test_a_single_target_names_its_rest_and_adds_up(tiny: None) -> None:
    vocals = hub("umxhq", targets=["vocals"], residual=True, niter=0)
    assert vocals.stems == ("vocals", "accompaniment")
    assert hub("umxhq", targets=["bass"], residual=True).stems == ("bass", "residual")
    mixture = noise(1, 2, 8000)
    with torch.no_grad():
        estimates = vocals(mixture)
    torch.testing.assert_close(estimates.sum(dim=1), mixture, rtol=0, atol=1e-6)


def test_a_single_source_is_not_filtered_into_the_mixture(tiny: None) -> None:
    with pytest.raises(UsageError, match="needs two sources, and vocals is the only target; pass residual=True"):
        hub("umxhq", targets=["vocals"])
    assert hub("umxhq", targets=["vocals"], niter=0).stems == ("vocals",)


@pytest.mark.parametrize("option, value", [("niter", 0), ("wiener_win_len", 10), ("wiener_win_len", None)])
def test_the_options_of_the_filter_are_used(tiny: None, option: str, value: Any) -> None:
    mixture = noise(1, 2, 30000)  # 469 frames: more than one window of 300
    with torch.no_grad():
        default, other = hub("umxhq")(mixture), hub("umxhq", **{option: value})(mixture)
    assert (default - other).norm() > 1e-3 * default.norm()


def test_stems_can_be_added_up_by_name(tiny: None) -> None:
    separator = hub("umxhq")
    estimates = noise(1, 4, 2, 10)
    added = separator.to_dict(estimates, aggregate_dict={"acc": ["drums", "bass", "other"], "vocals": ["vocals"]})
    torch.testing.assert_close(added["acc"], estimates[:, 1:].sum(dim=1))
    torch.testing.assert_close(added["vocals"], estimates[:, 0])


def test_the_module_can_be_tuned_frozen_and_does_not_change_its_input(tiny: None) -> None:
    separator = hub("umxhq")
    assert not separator.training
    mixture = noise(1, 2, 8000)
    before = mixture.clone()
    separator(mixture).square().sum().backward()
    gradients = [weight.grad for weight in separator.parameters()]
    assert sum(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients) > 10
    assert torch.equal(mixture, before)
    separator.freeze()
    assert not any(weight.requires_grad for weight in separator.parameters())
    with pytest.raises(AudioError, match="channels"):
        separator(noise(1, 3, 8000))


def test_without_pretraining_nothing_is_looked_for(tiny: None, tmp_path: Path) -> None:
    for file in tmp_path.iterdir():
        file.unlink()
    for name in MODELS:
        assert hub(name, pretrained=False).separator.config.stems == MODELS[name].stems
        assert tuple(hub(f"{name}_spec", pretrained=False)) == MODELS[name].stems
    with pytest.raises(ModelError, match="network is switched off"):
        hub("umxhq")
    with pytest.raises(ModelError, match="not part of this installation"):
        hub("umx_ext")


def test_the_shipped_model_comes_with_its_weights() -> None:
    if not MODELS["umx_ext"].files[0].path.is_file():
        pytest.skip("the embedded weights are not made yet")
    shipped = load("umx_ext")
    separator, spectrogram = hub("umx_ext"), hub("umx_ext_spec")
    mixture = noise(1, 2, 44100)
    with torch.no_grad():
        estimates = separator(mixture)
        expected = shipped(mixture, niter=1, residual=True)
    assert separator.stems == ("vocals", "accompaniment")
    assert torch.equal(estimates, expected)
    weights = shipped.nets["vocals"].state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in spectrogram["vocals"].state_dict().items())
