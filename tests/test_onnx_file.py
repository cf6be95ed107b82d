"""The ONNX file beside the networks it was written from, run by onnxruntime."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from umx_ext.errors import AudioError, MissingExtraError, ModelError, OutputError
from umx_ext.separation import onnx_file
from umx_ext.separation.branches import BRANCHES, Linear
from umx_ext.separation.config import FUSIONS, Config
from umx_ext.separation.separator import Separator

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SMALL = Config(hidden=16, n_fft=256, hop=64, sample_rate=8000, bandwidth_hz=3000.0, n_mels=12, n_mfcc=6)
CONFIGS = {
    "open-unmix's": SMALL,
    "mono, one layer": dataclasses.replace(SMALL, channels=1, layers=1),
    "two stems that share a branch": dataclasses.replace(
        SMALL, stems=("vocals", "drums"), branches=("linear-log", "mel"), mask="sigmoid"
    ),
    "mel of powers and mfcc": dataclasses.replace(SMALL, branches=("mel-poster", "mfcc", "linear2")),
    "pairs": dataclasses.replace(
        SMALL, branches=("linear-log", "mel"), mask="sigmoid", second=("mfcc",), second_share=0.3
    ),
    "U-Net": dataclasses.replace(SMALL, branches=("linear-log",), mask="sigmoid", network="unet"),
    "pair with a U-Net": dataclasses.replace(
        SMALL,
        mask="sigmoid",
        second=("linear-log",),
        second_mask="sigmoid",
        second_network="unet",
        second_share=0.6,
    ),
    **{fusion: dataclasses.replace(SMALL, branches=("mfcc", "linear"), fusion=fusion) for fusion in FUSIONS},
}


def separator(config: Config) -> Separator:
    """Random weights that use every part of the networks."""
    torch.manual_seed(3)
    made = Separator(config)
    for name, values in made.state_dict().items():
        if values.is_floating_point():
            drawn = torch.rand_like(values) if "running_var" in name else torch.randn_like(values)
            values.add_(0.3 * drawn)
    return made.eval()


def spectrogram(config: Config, batch: int, frames: int) -> Tensor:
    return 10 * torch.rand(batch, config.channels, config.bins, frames, generator=torch.Generator().manual_seed(7))


def sound(config: Config, seconds: float = 1.0) -> Tensor:
    length = round(seconds * config.sample_rate)
    return torch.randn(config.channels, length, generator=torch.Generator().manual_seed(8))


@pytest.mark.parametrize("name", CONFIGS)
def test_it_finds_what_the_networks_find_in_any_number_of_frames(name: str) -> None:
    made = separator(CONFIGS[name])
    content = onnx_file.to_onnx(made)
    for batch, frames in ((1, 30), (2, 7), (1, 1)):
        assert onnx_file.difference(content, made, spectrogram(made.config, batch, frames)) < -110


def test_the_embedded_model_on_real_music(data: Path) -> None:
    import umx_ext
    from umx_ext import audio
    from umx_ext.spectral import stft

    made = umx_ext.load()
    waveform, _ = audio.read(data / "songs" / "lets_go_fishin.ogg", start_s=40, duration_s=3)
    magnitude = stft(waveform, made.config.n_fft, made.config.hop).abs()[None]
    assert onnx_file.difference(onnx_file.to_onnx(made), made, magnitude) < -110


def test_the_file_says_what_it_takes() -> None:
    made = separator(CONFIGS["two stems that share a branch"])
    made.metadata = {"license": "for research"}
    model = onnx.load_from_string(onnx_file.to_onnx(made))
    facts = {one.key: one.value for one in model.metadata_props}
    assert Config.from_dict(json.loads(facts["config"])) == made.config
    assert json.loads(facts["metadata"]) == made.metadata
    assert "hop 64" in facts["input"] and "8000 Hz" in facts["input"]
    assert [one.name for one in model.graph.input] == ["magnitude"]
    assert [one.name for one in model.graph.output] == ["vocals", "drums"]
    shape = [dim.dim_param or dim.dim_value for dim in model.graph.output[1].type.tensor_type.shape.dim]
    assert shape == ["batch", 2, 129, "frames"]
    # A branch that both stems have is computed once.
    assert sum(node.op_type == "Log" for node in model.graph.node) == 2


def test_a_file_is_checked_before_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, path = separator(SMALL), tmp_path / "model.onnx"
    with monkeypatch.context() as patch:  # the liar: an LSTM with torch's order of gates
        patch.setattr(onnx_file, "_GATES", (0, 1, 2, 3))
        with pytest.raises(ModelError, match="off the model, and was not written"):
            onnx_file.export(made, path, sound(SMALL))
    assert list(tmp_path.iterdir()) == []
    assert onnx_file.export(made, path, sound(SMALL)) < -110
    assert list(tmp_path.iterdir()) == [path]


def test_nan_is_no_small_difference(tmp_path: Path) -> None:
    made = separator(CONFIGS["two stems that share a branch"])
    with torch.no_grad():
        made.nets["vocals"].bn3.bias.fill_(torch.nan)
    with pytest.raises(ModelError, match="nan dB off"):
        onnx_file.export(made, tmp_path / "model.onnx", sound(SMALL))


@pytest.mark.parametrize(
    "waveform", [torch.zeros(2, 800), torch.full((2, 800), torch.nan), torch.ones(1, 800), torch.ones(2, 0)]
)
def test_what_cannot_show_a_difference_is_refused(tmp_path: Path, waveform: Tensor) -> None:
    with pytest.raises(AudioError):
        onnx_file.export(separator(SMALL), tmp_path / "model.onnx", waveform)
    assert list(tmp_path.iterdir()) == []


def test_a_separator_in_training_stays_as_it_is(tmp_path: Path) -> None:
    made = separator(SMALL).train().double()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    assert onnx_file.export(made, tmp_path / "model.onnx", sound(SMALL)) < -110
    assert made.training and all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_a_stem_cannot_have_the_inputs_name() -> None:
    with pytest.raises(ModelError, match="'magnitude'"):
        onnx_file.to_onnx(separator(dataclasses.replace(SMALL, stems=("magnitude",))))


def test_a_file_that_is_there_is_replaced_only_if_asked(tmp_path: Path) -> None:
    made, path = separator(SMALL), tmp_path / "model.onnx"
    path.write_bytes(b"dear")
    with pytest.raises(OutputError, match="is there already"):
        onnx_file.export(made, path, sound(SMALL))
    assert path.read_bytes() == b"dear"
    onnx_file.export(made, path, sound(SMALL), overwrite=True)
    assert onnx.load(path).producer_name == "umx_ext"


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        onnx_file.export(separator(SMALL), tmp_path / "none" / "model.onnx", sound(SMALL))


def test_a_branch_of_somebodys_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Linear):
        pass

    monkeypatch.setitem(BRANCHES, "own", lambda config: Own(config, log=True))
    with pytest.raises(ModelError, match="'own' has no form in ONNX"):
        onnx_file.to_onnx(separator(dataclasses.replace(SMALL, branches=("own",))))


def test_without_onnx_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"onnxruntime, which cannot be imported .*pip install '.\[onnx\]'"):
        onnx_file.export(separator(SMALL), tmp_path / "model.onnx", sound(SMALL))
