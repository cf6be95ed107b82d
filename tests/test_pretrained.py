"""Models by name and path: what is registered, saved files, foreign folders, and every way they can be wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import io
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.peers import import_peer
from tests.test_download import Loopback
from umx_ext.errors import ModelError, OutputError, UsageError
from umx_ext.separation import pretrained
from umx_ext.separation.config import Config
from umx_ext.separation.masknet import MaskNet, from_openunmix_state
from umx_ext.separation.pretrained import MODELS, ModelEntry, ModelFile, load, pick_device, read_metadata, save
from umx_ext.separation.separator import Separator

SMALL = Config(stems=("vocals", "drums"), branches=("linear", "mel"), n_fft=256, hop=64, n_mels=8, hidden=12, layers=2)
# A folder of open-unmix's: 129 bins, of which the lower 60 are looked at (3.5 kHz at 15 kHz).
FACTS = {"sample_rate": 15000, "nfft": 256, "nhop": 64, "nb_channels": 2}
BANDWIDTH_BINS = 60


def openunmix_state(hidden: int = 12, layers: int = 3, channels: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under open-unmix's names and shapes (openunmix/model.py), as an old file holds them."""
    draw = torch.Generator().manual_seed(seed)
    bins, half = FACTS["nfft"] // 2 + 1, hidden // 2
    shapes: dict[str, tuple[int, ...]] = {
        "input_mean": (BANDWIDTH_BINS,),
        "input_scale": (BANDWIDTH_BINS,),
        "output_scale": (bins,),
        "output_mean": (bins,),
        "fc1.weight": (hidden, BANDWIDTH_BINS * channels),
        "fc2.weight": (hidden, 2 * hidden),
        "fc3.weight": (bins * channels, hidden),
    }
    for name, width in (("bn1", hidden), ("bn2", hidden), ("bn3", bins * channels)):
        shapes |= {f"{name}.{key}": (width,) for key in ("weight", "bias", "running_mean", "running_var")}
    for layer in range(layers):
        for way in ("", "_reverse"):
            shapes |= {
                f"lstm.weight_ih_l{layer}{way}": (4 * half, hidden),
                f"lstm.weight_hh_l{layer}{way}": (4 * half, half),
                f"lstm.bias_ih_l{layer}{way}": (4 * half,),
                f"lstm.bias_hh_l{layer}{way}": (4 * half,),
            }
    state = {name: torch.randn(shape, generator=draw) * 0.3 for name, shape in shapes.items()}
    for name in ("bn1", "bn2", "bn3"):
        state[f"{name}.running_var"] = state[f"{name}.running_var"].abs() + 0.5
    return {**state, "stft.window": torch.hann_window(256), "sample_rate": torch.tensor(15000.0)}


def write_folder(folder: Path, states: dict[str, Any], facts: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "separator.json").write_text(json.dumps(FACTS if facts is None else facts))
    for name, state in states.items():
        torch.save(state, folder / f"{name}.pth")
        (folder / f"{name}.json").write_text(json.dumps({"args": {"nfft": 256, "nb_channels": 2, "hidden_size": 12}}))
    return folder


def small_separator(seed: int = 0, config: Config = SMALL) -> Separator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        separator = Separator(config)
        for value in separator.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.1, 0.9)
    return separator


def same_weights(first: Separator, second: Separator) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# ---------------------------------------------------------------- the registry


@pytest.mark.parametrize("name", ["umx", "umxhq", "umxl"])
def test_the_registry_names_the_files_that_openunmix_downloads(name: str) -> None:
    peer = import_peer("openunmix")
    source = inspect.getsource(getattr(peer, f"{name}_spec"))
    theirs = dict(re.findall(r'"(\w+)": "(https://\S+\.pth)"', source))
    assert {file.stem: file.location for file in MODELS[name].files} == theirs
    assert f"hidden_size={MODELS[name].config.hidden}," in source
    nets = getattr(peer, f"{name}_spec")(targets=["vocals"], pretrained=False)
    expected = MaskNet(MODELS[name].config).state_dict()
    assert {key: value.shape for key, value in from_openunmix_state(nets["vocals"].state_dict()).items()} == {
        key: value.shape for key, value in expected.items()
    }


@pytest.mark.parametrize("name", MODELS)
def test_every_entry_has_one_file_of_ours_or_one_hashed_file_a_stem(name: str) -> None:
    entry = MODELS[name]
    assert entry.stems == entry.config.stems
    if entry.files[0].embedded:
        assert len(entry.files) == 1 and entry.files[0].location.endswith(".safetensors")
        return
    assert tuple(file.stem for file in entry.files) == entry.stems
    for file in entry.files:
        digits = re.search(r"-([0-9a-f]{8})\.pth$", file.location)
        assert digits and file.sha256.startswith(digits[1])
        assert len(file.sha256) in (8, 64)


def test_the_one_hash_known_in_full_is_the_published_one() -> None:
    vocals = {file.stem: file for file in MODELS["umxhq"].files}["vocals"]
    assert vocals.sha256 == "b62c91cedbc7a066f1778ead5b5cecb377aa3a46a31af1cce7c5c8769339d083"


def test_only_umxl_restricts_use_so_far_that_a_command_must_ask() -> None:
    assert [name for name, entry in MODELS.items() if entry.needs_license_acceptance] == ["umxl"]
    assert MODELS["umxl"].license == "CC BY-NC-SA 4.0"
    assert "CC BY-NC-SA 4.0" in pretrained.license("umxl") and "Non-commercial" in pretrained.card("umxl")


def test_listing_names_needs_no_torch() -> None:
    code = "import sys, umx_ext.separation.pretrained as p; assert p.MODELS; assert 'torch' not in sys.modules"
    root = str(Path(pretrained.__file__).resolve().parents[2])
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env={**os.environ, "PYTHONPATH": root})


def test_models_tells_what_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UMX_EXT_CACHE", str(tmp_path))
    before = {info.name: info for info in pretrained.models()}
    assert list(before) == list(MODELS)
    assert [info.name for info in before.values() if info.default] == ["umx_ext"]
    assert before["umx_ext"].embedded and not before["umx"].embedded
    assert not before["umxhq"].available and before["umxhq"].size_bytes is None
    for file in pretrained.path("umxhq"):
        assert file.parent == tmp_path
        file.write_bytes(b"12345")
    after = {info.name: info for info in pretrained.models()}
    assert after["umxhq"].available and after["umxhq"].size_bytes == 20
    assert [check.note for check in pretrained.verify("umxhq")] == ["it has another SHA-256"] * 4


@pytest.mark.parametrize("ask", [load, pretrained.path, pretrained.pull, pretrained.verify, pretrained.card])
def test_an_unknown_name_lists_the_known_ones(ask: Any) -> None:
    with pytest.raises(ModelError, match="no model named 'umxxl'; known: umx_ext, umxl, umxhq, umx; or give the path"):
        ask("umxxl")


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of `umx_ext/weights`."""
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path / "weights")
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def test_the_default_without_its_weights_says_what_to_do(embedded: Path) -> None:
    with pytest.raises(
        ModelError, match=r"weights of 'umx_ext' are not part .*reinstall umx-ext, .*: umxl, umxhq, umx"
    ):
        load()
    assert [check.note for check in pretrained.verify("umx_ext")] == ["missing"]
    assert "vocals" in pretrained.card("umx_ext") and "research" in pretrained.license("umx_ext")


def test_the_default_is_loaded_from_beside_its_card_and_licence(embedded: Path) -> None:
    separator = small_separator()
    save(separator, embedded / "umx_ext.safetensors", metadata={"steps": 3}, half=False)
    (embedded / "umx_ext.md").write_text("# the card")
    (embedded / "LICENSE-WEIGHTS.txt").write_text("the terms")
    assert same_weights(load(), separator)
    assert same_weights(load("umx_ext", offline=True), separator)
    assert pretrained.config("umx_ext") == SMALL  # the file's, not the registry's
    assert pretrained.card("umx_ext") == "# the card" and pretrained.license("umx_ext") == "the terms"
    assert [check.ok for check in pretrained.verify("umx_ext")] == [True]
    assert pretrained.pull("umx_ext") == [embedded / "umx_ext.safetensors"]


def test_the_shipped_weights_are_whole_and_as_registered() -> None:
    info = pretrained.models()[0]
    if not info.available:
        pytest.skip("the embedded weights are not made yet")
    assert all(check.ok for check in pretrained.verify("umx_ext"))
    assert load().config == MODELS["umx_ext"].config
    assert info.size_bytes is not None and info.size_bytes <= 20e6


# ---------------------------------------------------------------- our own files


def test_a_saved_separator_comes_back_the_same(tmp_path: Path) -> None:
    separator = small_separator()
    save(separator, tmp_path / "model.safetensors", metadata={"commit": "abc", "steps": 12}, half=False)
    loaded = load(tmp_path / "model.safetensors")
    assert loaded.config == SMALL
    assert same_weights(loaded, separator)
    assert not loaded.training
    assert loaded.metadata["commit"] == "abc" and loaded.metadata["steps"] == "12"
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_half_halves_the_matrices_and_spares_the_vectors(tmp_path: Path) -> None:
    separator = small_separator()
    before = {key: value.clone() for key, value in separator.state_dict().items()}
    save(separator, tmp_path / "model.safetensors", metadata={})
    kept = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for value in kept.values() if value.ndim > 1} == {torch.float16}
    assert {value.dtype for value in kept.values() if value.ndim == 1} == {torch.float32}
    loaded = load(tmp_path / "model.safetensors").state_dict()
    for key, value in before.items():
        assert torch.equal(separator.state_dict()[key], value)  # the caller's is not rounded
        assert loaded[key].dtype == value.dtype
        torch.testing.assert_close(loaded[key], value, rtol=2**-11, atol=0)  # half a unit of float16's 11 bits


def test_a_matrix_beyond_float16_is_kept_in_float32(tmp_path: Path) -> None:
    separator = small_separator()
    with torch.no_grad():
        separator.nets["drums"].fc2.weight[0, 0] = 1e5  # float16 ends at 65504
    save(separator, tmp_path / "model.safetensors", metadata={})
    assert load(tmp_path / "model.safetensors").nets["drums"].fc2.weight[0, 0] == 1e5


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    metadata = {"steps": 1, "data": "d", "seed": 2, "commit": "c"}
    save(small_separator(), tmp_path / "a", metadata=metadata)
    save(small_separator(), tmp_path / "b", metadata=dict(reversed(metadata.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_metadata_are_kept_beside_the_config(tmp_path: Path) -> None:
    metadata = {"commit": "abc", "data": {"songs": 94}, "seed": 7, "título": "☃"}
    save(small_separator(), tmp_path / "model.safetensors", metadata=metadata)
    read = read_metadata(tmp_path / "model.safetensors")
    assert {key: read[key] for key in metadata} == metadata
    assert read["format_version"] == 1
    assert Config.from_dict(read["config"]) == SMALL


@pytest.mark.parametrize("metadata", [{"format_version": 2}, {"x": object()}, {"x": float("nan")}, {"config": {}}])
def test_metadata_that_would_spoil_the_file_are_refused(tmp_path: Path, metadata: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="metadata m"):
        save(small_separator(), tmp_path / "model.safetensors", metadata=metadata)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_model_file_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot write the model"):
        save(small_separator(), tmp_path / "file" / "model.safetensors", metadata={})
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot write the model"):
        save(small_separator(), tmp_path / "folder", metadata={})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]


def test_a_subset_of_the_stems_comes_in_the_order_asked_for(tmp_path: Path) -> None:
    separator = small_separator()
    save(separator, tmp_path / "model.safetensors", metadata={}, half=False)
    both = load(tmp_path / "model.safetensors", stems=["drums", "vocals"])
    assert both.config.stems == ("drums", "vocals")
    assert torch.equal(both.nets["drums"].fc3.weight, separator.nets["drums"].fc3.weight)
    assert load(tmp_path / "model.safetensors", stems=["drums"]).config.stems == ("drums",)
    with pytest.raises(ModelError, match=r"has no network for 'bass'; it has: vocals, drums"):
        load(tmp_path / "model.safetensors", stems=["vocals", "bass"])
    for stems in ([], ["vocals", "vocals"]):
        with pytest.raises(ModelError, match="one or more different stems"):
            load(tmp_path / "model.safetensors", stems=stems)


def test_loading_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    save(small_separator(), tmp_path / "model.safetensors", metadata={})
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load(tmp_path / "model.safetensors")
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_truncated_model_file_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.safetensors"
    save(small_separator(), path, metadata={})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError, match=r"model\.safetensors is not a whole \.safetensors file .* copy or download"):
        load(path)


def test_one_flipped_bit_is_noticed(tmp_path: Path, embedded: Path) -> None:
    path = embedded / "umx_ext.safetensors"
    save(small_separator(), path, metadata={})
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is damaged: its weights do not have the hash"):
        load(path)
    assert [check.ok for check in pretrained.verify("umx_ext")] == [False]


def rewrite(
    path: Path, config: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None, **fields: Any
) -> None:
    """Change a file's metadata and tensors, with a hash that is right; None removes."""
    metadata, kept = read_metadata(path), load_file(path)
    for name, value in (tensors or {}).items():
        kept.pop(name, None)
        if value is not None:
            kept[name] = value
    metadata["config"] |= config or {}
    metadata |= {"weights_sha256": pretrained.weights_sha256(kept), **fields}
    save_file(kept, path, metadata={"umx_ext": json.dumps(metadata)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format_version": 2}, r"has format version 2, this version of umx-ext reads up to 1; update umx-ext"),
        ({"format_version": "one"}, "metadata that umx_ext did not write"),
        ({"config": {"colour": "red"}}, r"config has fields that this version does not know: colour; update umx-ext"),
        ({"config": {"mask": "softmax"}}, "no mask named 'softmax'"),
        ({"config": {"branches": ["cqt"]}}, "no branch named 'cqt'"),
        ({"config": {"hidden": 16}}, r"for vocals, 'encoders\.linear\.fc1\.weight' has the shape \(12, "),
        ({"config": {"hidden": "wide"}}, "config is malformed"),
        ({"config": {"hidden": -2}}, "expected hidden above 0, got -2"),
        ({"config": {"hop": 0}}, "expected hop above 0, got 0"),
        ({"config": {"branches": ["linear"]}}, r"for vocals, it has an unknown 'encoders\.mel\."),
        ({"config": {"layers": 3}}, r"it lacks 'encoders\.linear\.lstm\.weight_ih_l2'"),
        ({"config": {"stems": ["vocals"]}}, r"holds 'drums\..*', but its config has the stems vocals"),
        ({"config": {"stems": ["vocals", "drums", "bass"]}}, "for bass, it lacks"),
        ({"tensors": {"vocals.fc2.weight": None}}, r"for vocals, it lacks 'fc2\.weight'"),
        ({"tensors": {"vocals.fc9": torch.zeros(1)}}, r"for vocals, it has an unknown 'fc9'"),
        (
            {"tensors": {"drums.bn2.bias": torch.zeros(3)}},
            r"for drums, 'bn2\.bias' has the shape \(3,\) instead of \(12,\)",
        ),
    ],
)
def test_a_model_of_another_kind_is_refused_by_name(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = tmp_path / "model.safetensors"
    save(small_separator(), path, metadata={}, half=False)
    rewrite(path, **change)
    with pytest.raises(ModelError, match=says) as caught:
        load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_somebody_elses_safetensors_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="does not say that umx_ext saved it"):
        load(tmp_path / "a.safetensors")
    (tmp_path / "text").write_text("hello, this is no model at all")
    with pytest.raises(ModelError, match=r"is not a whole \.safetensors file"):
        load(tmp_path / "text")


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.safetensors is not a file"):
        load(tmp_path / "gone.safetensors")
    with pytest.raises(ModelError, match="known: umx_ext"):
        load(tmp_path / "gone")


# ---------------------------------------------------------------- open-unmix's files


def test_a_folder_of_openunmix_is_understood_from_its_weights(tmp_path: Path) -> None:
    states = {"zither": openunmix_state(seed=1), "drums": openunmix_state(seed=2), "vocals": openunmix_state(seed=3)}
    separator = load(write_folder(tmp_path / "mine", states))
    config = separator.config
    assert config.stems == ("vocals", "drums", "zither")  # open-unmix's order, then the alphabet's
    assert (config.sample_rate, config.n_fft, config.hop, config.channels) == (15000, 256, 64, 2)
    assert (config.hidden, config.layers, config.bandwidth_bins) == (12, 3, BANDWIDTH_BINS)
    assert (config.branches, config.mask) == (("linear",), "relu")
    assert torch.equal(separator.nets["drums"].encoders["linear"].mean, states["drums"]["input_mean"])
    assert torch.equal(separator.nets["zither"].bn3.running_var, states["zither"]["bn3.running_var"])
    assert load(str(tmp_path / "mine"), stems=["drums"]).config.stems == ("drums",)


def test_the_bandwidth_of_released_models_stays_16_khz(tmp_path: Path) -> None:
    state = openunmix_state()
    wide = {"input_mean": torch.zeros(93), "input_scale": torch.ones(93), "fc1.weight": torch.zeros(12, 186)}
    folder = write_folder(tmp_path, {"vocals": {**state, **wide}}, {**FACTS, "sample_rate": 44100})
    assert load(folder).config.bandwidth_hz == 16000.0  # 16000 * 256 / 44100 = 92.9: bins 0 to 92


def test_a_folder_equals_openunmix_itself(tmp_path: Path) -> None:
    model = import_peer("openunmix.model")
    state = openunmix_state()
    peer = model.OpenUnmix(nb_bins=129, nb_channels=2, hidden_size=12, max_bin=BANDWIDTH_BINS)
    missing, unexpected = peer.load_state_dict(state, strict=False)
    assert all(key.endswith("num_batches_tracked") for key in missing)
    assert set(unexpected) == {"stft.window", "sample_rate"}
    peer.eval()
    separator = load(write_folder(tmp_path / "folder", {"vocals-0123abcd": peer.state_dict()}))
    magnitude = torch.rand(3, 2, 129, 31, generator=torch.Generator().manual_seed(4)) * 5
    with torch.no_grad():
        ours, theirs = separator.nets["vocals"](magnitude), peer(magnitude.clone())
    assert theirs.std() > 0.1  # a mask that lives
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * float(theirs.max()))


def test_a_folder_survives_our_own_format(tmp_path: Path) -> None:
    separator = load(write_folder(tmp_path / "folder", {"vocals": openunmix_state()}))
    save(separator, tmp_path / "model.safetensors", metadata={}, half=False)
    assert same_weights(load(tmp_path / "model.safetensors"), separator)


class Evil:
    """Pickles to a call that would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pth_cannot_run_code(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", {"vocals": {**openunmix_state(), "evil": Evil(tmp_path / "ran")}})
    with pytest.raises(ModelError, match=r"vocals\.pth is damaged or holds more than weights, and is not opened"):
        load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02}q\x00."[:3]])
def test_a_pth_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = write_folder(tmp_path / "folder", {"vocals": openunmix_state()})
    (folder / "vocals.pth").write_bytes(content)
    with pytest.raises(ModelError, match=r"vocals\.pth is damaged or holds more than weights"):
        load(folder)


def test_a_truncated_pth_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", {"vocals": openunmix_state()})
    content = (folder / "vocals.pth").read_bytes()
    (folder / "vocals.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"vocals\.pth is damaged or holds more than weights") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def without(key: str) -> dict[str, Tensor]:
    return {name: value for name, value in openunmix_state().items() if name != key}


@pytest.mark.parametrize(
    ("states", "facts", "says"),
    [
        ({"vocals": {"epoch": 3, "state_dict": {}}}, None, "is not a state dict of tensors; give the <stem>.pth"),
        ({"vocals": {"weight": torch.ones(2)}}, None, "is not a network of open-unmix"),
        ({"vocals": without("bn2.bias")}, None, r"for vocals, it lacks 'bn2\.bias'"),
        ({"vocals": without("fc1.weight")}, None, "is not a network of open-unmix"),
        (
            {"vocals": {**openunmix_state(), "attention.q": torch.ones(1)}},
            None,
            "'attention.q' is no weight of open-unmix",
        ),
        (
            {"vocals": {k: v for k, v in openunmix_state().items() if "reverse" not in k}},
            None,
            "is a unidirectional network",
        ),
        ({"vocals": openunmix_state()}, {**FACTS, "nfft": 512}, "separator.json says nfft 512 and 2 channels"),
        ({"vocals": openunmix_state()}, {**FACTS, "nb_channels": 1}, "for 129 bins and 2 channels"),
        ({"vocals": openunmix_state()}, {"nfft": 256}, "separator.json lacks sample_rate, nfft, nhop or nb_channels"),
        ({"vocals": openunmix_state()}, {**FACTS, "nhop": None}, "lacks sample_rate, nfft, nhop or nb_channels"),
        ({"vocals": openunmix_state()}, {**FACTS, "nhop": 0}, "expected hop above 0, got 0"),
        (
            {"vocals": openunmix_state(), "bass": openunmix_state(hidden=16)},
            None,
            r"differ in hidden \(vocals: 12, bass: 16\); load them one at a time",
        ),
        ({}, None, r"has no <stem>\.pth"),
    ],
)
def test_a_folder_of_another_kind_is_refused_by_name(
    tmp_path: Path, states: dict[str, Any], facts: dict[str, Any] | None, says: str
) -> None:
    folder = write_folder(tmp_path / "folder", states, facts)
    with pytest.raises(ModelError, match=says) as caught:
        load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_without_its_description_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", {"vocals": openunmix_state()})
    (folder / "separator.json").write_text("{")
    with pytest.raises(ModelError, match=r"cannot read .*separator\.json"):
        load(folder)
    (folder / "separator.json").unlink()
    with pytest.raises(ModelError, match=r"is no model folder: it has no separator\.json"):
        load(folder)
    with pytest.raises(ModelError, match="give its folder"):
        load(folder / "vocals.pth")


# ---------------------------------------------------------------- by name, over the network


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Loopback]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("UMX_EXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UMX_EXT_OFFLINE", raising=False)
    loopback = Loopback()
    yield loopback
    loopback.close()


@pytest.fixture
def tiny_umxhq(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> ModelEntry:
    """The entry umxhq with small weights on the loopback server."""
    files = []
    for seed, stem in enumerate(MODELS["umxhq"].stems):
        buffer = io.BytesIO()
        torch.save(openunmix_state(seed=seed), buffer)
        digits = hashlib.sha256(buffer.getvalue()).hexdigest()[:8]
        name = f"{stem}-{digits}.pth"
        server.files[name] = buffer.getvalue()
        files.append(ModelFile(server.url("good", name), digits, stem))
    config = Config(
        MODELS["umxhq"].stems, n_fft=256, hop=64, hidden=12, sample_rate=15000, bandwidth_hz=59.5 * 15000 / 256
    )
    entry = dataclasses.replace(MODELS["umxhq"], config=config, files=tuple(files))
    monkeypatch.setitem(MODELS, "umxhq", entry)
    return entry


def test_a_registered_model_is_downloaded_once_and_converted(
    server: Loopback, tiny_umxhq: ModelEntry, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="the network is switched off"):
        load("umxhq", offline=True)
    seen: list[tuple[str, int, int | None]] = []
    separator = load("umxhq", progress=lambda *step: seen.append(step))
    assert separator.config == tiny_umxhq.config
    assert torch.equal(separator.nets["other"].fc2.weight, openunmix_state(seed=3)["fc2.weight"])
    assert separator.metadata["license"] == "MIT"
    assert {name for name, _, _ in seen} == {file.path.name for file in tiny_umxhq.files}
    assert len(server.requests) == 4
    assert same_weights(load("umxhq", offline=True), separator)  # the cache is enough
    assert pretrained.pull("umxhq") == pretrained.path("umxhq")
    assert len(server.requests) == 4
    assert all(check.ok and check.actual.startswith(check.expected) for check in pretrained.verify("umxhq"))
    assert {file.parent for file in pretrained.path("umxhq")} == {tmp_path / "cache"}
    assert all(stat.S_ISREG(file.stat().st_mode) for file in (tmp_path / "cache").iterdir())


def test_one_stem_needs_one_download(server: Loopback, tiny_umxhq: ModelEntry) -> None:
    assert load("umxhq", stems=["bass"]).config.stems == ("bass",)
    assert len(server.requests) == 1
    with pytest.raises(
        ModelError, match="model 'umxhq' has no network for 'piano'; it has: vocals, drums, bass, other"
    ):
        load("umxhq", stems=["piano"])


def test_a_lying_server_gives_no_model(
    server: Loopback, tiny_umxhq: ModelEntry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = tuple(
        dataclasses.replace(file, location=file.location.replace("/good/", "/lying/")) for file in tiny_umxhq.files
    )
    monkeypatch.setitem(MODELS, "umxhq", dataclasses.replace(tiny_umxhq, files=files))
    with pytest.raises(ModelError, match="which is not the expected one"):
        load("umxhq")
    assert list((tmp_path / "cache").iterdir()) == []


def test_weights_that_do_not_fit_the_entry_are_refused(
    server: Loopback, tiny_umxhq: ModelEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = dataclasses.replace(tiny_umxhq, config=dataclasses.replace(tiny_umxhq.config, hidden=16))
    monkeypatch.setitem(MODELS, "umxhq", wide)
    with pytest.raises(ModelError, match="umxhq is of another architecture than its config says: for vocals, 'enc"):
        load("umxhq")


def test_a_name_wins_over_a_file_of_that_name(
    server: Loopback, tiny_umxhq: ModelEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "umxhq", {"vocals": openunmix_state(seed=9)})
    assert load("umxhq").config.stems == tiny_umxhq.stems
    assert load("./umxhq").config.stems == load(Path("umxhq")).config.stems == ("vocals",)


def test_an_untrained_model_has_the_registered_shape_and_random_weights(tiny_umxhq: ModelEntry) -> None:
    first, second = (pretrained.untrained("umxhq", stems=["drums"]) for _ in range(2))
    assert first.config == dataclasses.replace(tiny_umxhq.config, stems=("drums",))
    assert not same_weights(first, second)


# ---------------------------------------------------------------- devices


def test_devices_are_named_or_refused() -> None:
    assert pick_device() == pick_device("cpu") == torch.device("cpu")
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device("auto").type == best
    with pytest.raises(UsageError, match="no device named 'gpu'; known: auto, cpu, cuda"):
        pick_device("gpu")
    with pytest.raises(UsageError, match="is not on this machine"):
        pick_device("cuda:99")
    with pytest.raises(UsageError, match="no device"):
        load("umxhq", device="gpu")
