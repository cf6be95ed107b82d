"""Laws that every branch obeys, each with a liar; cepstra against librosa and torchaudio; a branch from outside."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.peers import import_peer
from tests.test_engine import assert_equal_to_rounding, networks, noise, plain
from umx_ext.errors import ModelError
from umx_ext.separation.branches import BRANCHES, Branch, build_branch
from umx_ext.separation.config import Config
from umx_ext.separation.engine import Engine
from umx_ext.separation.masknet import MaskNet
from umx_ext.separation.pretrained import load, save
from umx_ext.separation.separator import Separator
from umx_ext.spectral import stft
from umx_ext.training.remix import REMIXES

CONFIG = Config(hidden=16, n_fft=512, hop=128, sample_rate=16000, bandwidth_hz=5000.0, n_mels=20, n_mfcc=13)


def magnitudes(batch: int = 2, frames: int = 7, channels: int = 2, peak: float = 100.0) -> Tensor:
    """Frames-major, `(batch, frames, channels, bins)`."""
    return peak * torch.rand(batch, frames, channels, CONFIG.bins, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- laws

Factory = Callable[[Config], Branch]


def law_only_the_last_axis_changes(factory: Factory) -> None:
    branch = factory(CONFIG)
    for batch, frames, channels in ((1, 1, 1), (3, 1, 2), (2, 7, 1), (1, 255, 2)):
        features = branch(magnitudes(batch, frames, channels))
        assert features.shape == (batch, frames, channels, branch.features)
        assert features.dtype == torch.float32


def law_memory_stays_frames_major(factory: Factory) -> None:
    features = factory(CONFIG)(magnitudes())
    assert features.stride(-1) == 1
    assert list(features.stride()) == sorted(features.stride(), reverse=True)


def law_a_frame_stands_alone(factory: Factory) -> None:
    branch, spectrogram = factory(CONFIG), magnitudes(frames=9)
    pieces = torch.cat([branch(spectrogram[:, :4]), branch(spectrogram[:, 4:])], dim=1)
    torch.testing.assert_close(pieces, branch(spectrogram), rtol=1e-5, atol=1e-5)
    backwards = branch(spectrogram.flip(1)).flip(1)
    torch.testing.assert_close(backwards, branch(spectrogram), rtol=1e-5, atol=1e-5)


def law_the_callers_spectrogram_is_untouched(factory: Factory) -> None:
    spectrogram = magnitudes(peak=5000.0)  # loud: what scales down does so here
    before = spectrogram.clone()
    factory(CONFIG)(spectrogram)
    assert torch.equal(spectrogram, before)


def law_silence_is_finite(factory: Factory) -> None:
    for peak in (0.0, 1e-30, 1e5):
        assert factory(CONFIG)(magnitudes(peak=peak)).isfinite().all()


def law_a_batch_equals_a_loop(factory: Factory) -> None:
    branch, spectrogram = factory(CONFIG), magnitudes(batch=3)
    spectrogram = spectrogram * torch.tensor([1.0, 0.01, 10.0])[:, None, None, None]
    looped = torch.cat([branch(item[None]) for item in spectrogram])
    torch.testing.assert_close(branch(spectrogram), looped, rtol=1e-5, atol=1e-5)


def law_nothing_is_learnt_or_saved(factory: Factory) -> None:
    branch = factory(CONFIG)
    assert list(branch.parameters()) == []
    assert list(branch.state_dict()) == []


def law_the_bandwidth_is_kept(factory: Factory) -> None:
    branch, spectrogram = factory(CONFIG), magnitudes()
    wide, narrow = spectrogram.clone(), spectrogram.clone()
    wide[..., CONFIG.bandwidth_bins :] += 50
    narrow[..., CONFIG.bandwidth_bins - 2] += 50
    assert torch.equal(branch(wide), branch(spectrogram))
    assert not torch.equal(branch(narrow), branch(spectrogram))


LAWS = (
    law_only_the_last_axis_changes,
    law_memory_stays_frames_major,
    law_a_frame_stands_alone,
    law_the_callers_spectrogram_is_untouched,
    law_silence_is_finite,
    law_a_batch_equals_a_loop,
    law_nothing_is_learnt_or_saved,
    law_the_bandwidth_is_kept,
)


class Liar(Branch):
    """Honest by itself: the bins below the bandwidth. A liar changes one thing."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.features = config.bandwidth_bins

    def forward(self, magnitude: Tensor) -> Tensor:
        return magnitude[..., : self.features]


class CountsAllBins(Liar):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.features += 1

    def forward(self, magnitude: Tensor) -> Tensor:
        return magnitude[..., : self.features - 1]


class DropsTheLoneFrame(Liar):
    def forward(self, magnitude: Tensor) -> Tensor:
        return super().forward(magnitude).squeeze(1)


class PutsFramesLast(Liar):
    def forward(self, magnitude: Tensor) -> Tensor:
        return super().forward(magnitude).movedim(1, -1).contiguous().movedim(-1, 1)


class LooksBack(Liar):
    def forward(self, magnitude: Tensor) -> Tensor:
        here = super().forward(magnitude)
        return here - torch.cat([here[:, :1], here[:, :-1]], dim=1)


class ScalesTheCallers(Liar):
    def forward(self, magnitude: Tensor) -> Tensor:
        magnitude /= (magnitude.max() / 1000).clamp_min(1.0)
        return super().forward(magnitude)


class TakesTheLogarithmOfNothing(Liar):
    def forward(self, magnitude: Tensor) -> Tensor:
        return super().forward(magnitude).log()


class DividesByTheLoudest(Liar):
    def forward(self, magnitude: Tensor) -> Tensor:
        peak = magnitude.amax(dim=(0, 2, 3), keepdim=True).clamp_min(1e-8)  # of the batch; each frame's own
        return super().forward(magnitude) / peak


class Learns(Liar):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.ones(()))


class SavesItsConstants(Liar):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.register_buffer("weight", torch.ones(()))


class LooksTooHigh(Liar):
    def forward(self, magnitude: Tensor) -> Tensor:
        return super().forward(magnitude) + magnitude[..., -1:]


class LooksAtNothing(Liar):
    def forward(self, magnitude: Tensor) -> Tensor:
        return torch.zeros_like(super().forward(magnitude))


LIARS = (
    (law_only_the_last_axis_changes, CountsAllBins),
    (law_only_the_last_axis_changes, DropsTheLoneFrame),
    (law_memory_stays_frames_major, PutsFramesLast),
    (law_a_frame_stands_alone, LooksBack),
    (law_the_callers_spectrogram_is_untouched, ScalesTheCallers),
    (law_silence_is_finite, TakesTheLogarithmOfNothing),
    (law_a_batch_equals_a_loop, DividesByTheLoudest),
    (law_nothing_is_learnt_or_saved, Learns),
    (law_nothing_is_learnt_or_saved, SavesItsConstants),
    (law_the_bandwidth_is_kept, LooksTooHigh),
    (law_the_bandwidth_is_kept, LooksAtNothing),
)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", BRANCHES)
def test_every_branch_obeys(name: str, law: Callable[[Factory], None]) -> None:
    law(BRANCHES[name])


@pytest.mark.parametrize("law", LAWS)
def test_the_honest_half_of_the_liars_obeys(law: Callable[[Factory], None]) -> None:
    law(Liar)


@pytest.mark.parametrize("law, liar", LIARS)
def test_a_law_catches_its_liar(law: Callable[[Factory], None], liar: Factory) -> None:
    with pytest.raises(AssertionError):
        law(liar)


def test_every_law_has_a_liar() -> None:
    assert {law for law, _ in LIARS} == set(LAWS)


# ---------------------------------------------------------------- what they compute


@pytest.fixture(scope="module")
def spectrum() -> Tensor:
    """Magnitudes of noise with a tone and a fade, `(channels, bins, frames)`, at open-unmix's settings."""
    waveform = 0.1 * torch.randn(2, 40000, generator=torch.Generator().manual_seed(3))
    waveform[0] += torch.sin(torch.arange(40000) * 0.05)
    return stft(waveform * torch.linspace(1, 0, 40000), 4096, 1024).abs()


def of(name: str, spectrum: Tensor, **fields: object) -> Tensor:
    """A branch's features as `(channels, features, frames)`."""
    branch = build_branch(name, Config(branches=(name,), **fields))  # type: ignore[arg-type]
    return branch(spectrum.permute(2, 0, 1)[None])[0].permute(1, 2, 0)


def test_mel_equals_librosas_on_the_same_spectrogram(spectrum: Tensor) -> None:
    librosa = import_peer("librosa")
    power = spectrum.double().square().numpy()
    expected = librosa.feature.melspectrogram(S=power, sr=44100, n_mels=128, fmax=16000.0, htk=True, norm=None)
    np.testing.assert_allclose(of("mel-poster", spectrum).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(of("mel", spectrum).numpy(), np.log(expected + 1e-4), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_mfcc", [1, 13, 40, 128])
def test_mfcc_equals_librosas_on_the_same_spectrogram(spectrum: Tensor, n_mfcc: int) -> None:
    librosa = import_peer("librosa")
    power = spectrum.double().square().numpy()
    bands = librosa.feature.melspectrogram(S=power, sr=44100, n_mels=128, fmax=16000.0, htk=True, norm=None)
    expected = librosa.feature.mfcc(S=np.log(bands + 1e-4), n_mfcc=n_mfcc, dct_type=2, norm="ortho", lifter=0)
    assert expected.shape[1] == n_mfcc and np.abs(expected).max() > 10
    np.testing.assert_allclose(of("mfcc", spectrum, n_mfcc=n_mfcc).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_mfcc_equals_torchaudios_of_the_same_audio() -> None:
    transforms = import_peer("torchaudio.transforms")
    waveform = 0.1 * torch.randn(2, 30000, generator=torch.Generator().manual_seed(4))
    settings = {"n_fft": 4096, "hop_length": 1024, "f_max": 16000.0, "n_mels": 128, "pad_mode": "reflect"}
    expected = transforms.MFCC(44100, n_mfcc=40, norm="ortho", log_mels=True, melkwargs=settings)(waveform)
    # torchaudio's floor is 1e-6, ours 1e-4: the same for a waveform that is 10 times as large, whose every log-mel is
    # larger by log 100. The cosine transform of that constant is log 100 sqrt(128) in c0 and nothing else.
    expected[:, 0] += math.log(100) * math.sqrt(128)
    ours = of("mfcc", stft(10 * waveform, 4096, 1024).abs())
    assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_the_controls_see_what_the_branches_beside_them_see(spectrum: Tensor) -> None:
    assert torch.equal(of("linear2", spectrum), of("linear", spectrum))
    assert torch.equal(of("linear2-log", spectrum), of("linear-log", spectrum))
    assert not torch.equal(of("linear-log", spectrum), of("linear", spectrum))


def test_more_coefficients_than_bands_are_refused() -> None:
    with pytest.raises(ModelError, match=r"1 to 20 coefficients .* got 21"):
        MaskNet(Config(branches=("mfcc",), n_mels=20, n_mfcc=21))


# ---------------------------------------------------------------- from outside

# The README's: a branch and a remix of one's own.
EXAMPLE = """
from umx_ext import Config
from umx_ext.separation.branches import BRANCHES, Branch
from umx_ext.training.remix import REMIXES, LevelRemix

class Bands(Branch):
    features = 64

    def forward(self, magnitude):  # (batch, frames, channels, bins) -> (batch, frames, channels, features)
        return (magnitude[..., 1:1025].unflatten(-1, (64, 16)).mean(-1) + 1e-2).log()

BRANCHES["bands"] = lambda config: Bands()
REMIXES["even"] = LevelRemix(lambda sources, rng: rng.uniform(-30, -20, len(sources)))  # dB for each stem
config = Config(branches=("linear", "bands"))
"""


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> dict:
    """The names that the example makes; what it registers is taken back afterwards."""
    monkeypatch.setattr("umx_ext.separation.branches.BRANCHES", BRANCHES.copy())
    monkeypatch.setattr("umx_ext.training.remix.REMIXES", REMIXES.copy())
    scope: dict = {}
    exec(EXAMPLE, scope)
    return scope


def test_the_readmes_example_is_short(example: dict) -> None:
    assert len(EXAMPLE.strip().splitlines()) <= 15
    assert "bands" not in BRANCHES and "even" not in REMIXES


def test_the_readmes_branch_learns(example: dict) -> None:
    net = MaskNet(example["config"])
    net(10 * torch.rand(1, 2, 2049, 5)).square().mean().backward()
    parameters = dict(net.encoders["bands"].named_parameters())
    assert parameters["mean"].shape == (64,)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in parameters.values())


def test_the_readmes_remix_sets_levels(example: dict) -> None:
    rng = np.random.default_rng(0)
    stems = {name: rng.standard_normal((2, 8000)).astype(np.float32) for name in ("vocals", "drums")}
    sources, gains_db = example["REMIXES"]["even"].levelled(stems, 8000, np.random.default_rng(1))
    assert sources.keys() == gains_db.keys() == stems.keys()
    levels_db = [20 * np.log10(np.abs(source).mean()) for source in sources.values()]
    assert levels_db == pytest.approx(np.random.default_rng(1).uniform(-30, -20, 2), abs=1e-3)


class Centroid(Branch):
    """Two features that no other branch has, and a constant."""

    weights: Tensor
    features = 2

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.register_buffer("weights", torch.linspace(0, 1, config.bandwidth_bins), persistent=False)

    def forward(self, magnitude: Tensor) -> Tensor:
        magnitude = magnitude[..., : len(self.weights)]
        total = magnitude.sum(-1)
        return torch.stack([(magnitude @ self.weights) / (total + 1e-2), (total + 1e-2).log()], dim=-1)


@pytest.fixture
def centroid(monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setitem(BRANCHES, "centroid", Centroid)
    branches = ("linear", "centroid")
    sizes = {"hidden": 16, "n_fft": 512, "hop": 128, "sample_rate": 8000, "bandwidth_hz": 3000.0, "n_mels": 9}
    return Config(stems=("vocals", "drums"), branches=branches, **sizes)


@pytest.mark.parametrize("law", LAWS)
def test_the_branch_from_outside_obeys(law: Callable[[Factory], None]) -> None:
    law(Centroid)


def test_a_branch_from_outside_runs_in_the_engine(centroid: Config) -> None:
    nets, waveform = networks(centroid), noise(centroid, 300 * centroid.hop)
    result = Engine(nets, centroid, threads=2).overlap_added(waveform, 0, 301)
    assert_equal_to_rounding(result, plain(nets, centroid, waveform, 0, 301))


def test_a_branch_from_outside_is_saved_and_loaded(
    centroid: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    separator = Separator(centroid, networks(centroid))
    path = tmp_path / "model.safetensors"
    save(separator, path, metadata={}, half=False)
    loaded = load(path)
    assert loaded.config == centroid
    waveform = noise(centroid, 20000)
    expected = separator.eval().separate(waveform, 8000)
    for stem, estimate in loaded.separate(waveform, 8000).items():
        assert torch.equal(estimate, expected[stem])

    monkeypatch.delitem(BRANCHES, "centroid")
    with pytest.raises(ModelError) as caught:
        load(path)
    message = str(caught.value)
    assert "no branch named 'centroid'; known: linear, linear-log" in message and "mfcc" in message
    assert str(path) in message and "BRANCHES" in message and "\n" not in message


def test_a_loaded_branch_of_another_size_is_refused(
    centroid: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save(Separator(centroid), path, metadata={})
    monkeypatch.setitem(BRANCHES, "centroid", BRANCHES["mel"])
    with pytest.raises(ModelError, match=r"another architecture.*centroid"):
        load(path)


@pytest.mark.parametrize(
    ("name", "factory", "words"),
    [
        ("my.branch", Centroid, "cannot be named 'my.branch'"),
        ("keys", Centroid, "cannot be named 'keys'"),
        ("", Centroid, "cannot be named ''"),
        ("function", lambda config: lambda magnitude: magnitude, "came function with features = None"),
        ("module", lambda config: nn.Identity(), "came Identity with features = None"),
        ("learns", Learns, "has parameters"),
    ],
)
def test_what_is_no_branch_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, factory: Factory, words: str
) -> None:
    monkeypatch.setitem(BRANCHES, name, factory)
    with pytest.raises(ModelError, match=words):
        MaskNet(Config(branches=("linear", name)))
