"""How much is done for a song, counted: transforms, steps of the BLSTM, rows of products, modules. Time is not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from umx_ext.separation import dense
from umx_ext.separation.config import Config
from umx_ext.separation.dense import Matrix
from umx_ext.separation.recurrence import Direction
from umx_ext.separation.separator import Options, Separator
from umx_ext.spectral import frame_count

ROOT = Path(__file__).parents[1]
CONFIG = Config(
    branches=("linear-log", "mel"), hidden=32, layers=2, n_fft=256, hop=64, sample_rate=8000, n_mels=12,
    bandwidth_hz=3000.0, mask="sigmoid",
)  # fmt: skip
FRAMES = 5000
WARM = 300  # frames that a lane of the recurrence runs before its own
WHY_NOT = "the loops were not compiled here" if dense._dense is None else "the loops are not for this processor"
needs_loops = pytest.mark.skipif(not dense.compiled(), reason=WHY_NOT)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts frames transformed, steps and rows of LSTMs, and rows of products that a function follows."""
    seen: Counter[str] = Counter()
    lock = threading.Lock()  # workers count at the same time

    def counted(holder: object, name: str, note) -> None:
        original = getattr(holder, name)

        def noting(*arguments, **settings):
            with lock:
                note(*arguments, **settings)
            return original(*arguments, **settings)

        monkeypatch.setattr(holder, name, noting)

    def run(self, values, target, first, steps, stride, state, *_):
        seen["lstm calls"] += 1
        seen["lstm steps"] += steps
        seen["lstm rows"] += steps * len(state[0])

    def product(self, rows, *_, then="", **settings):
        seen["products' rows"] += len(rows) if then else 0

    counted(torch.fft, "rfft", lambda frames, *_: seen.update({"rfft": frames.numel() // frames.shape[-1]}))
    counted(torch.fft, "irfft", lambda plane, **_: seen.update({"irfft": plane.numel() // plane.shape[-1]}))
    counted(Direction, "run", run)
    counted(Matrix, "product", product)
    yield seen


def separated(samples: int, **options) -> list[str]:
    torch.manual_seed(0)
    waveform = 0.1 * torch.randn(CONFIG.channels, samples)
    return list(Separator(CONFIG).separate(waveform, CONFIG.sample_rate, Options(**options)))


@pytest.mark.parametrize("niter", [0, 1])
def test_a_song_is_transformed_twice_and_back_once(work: Counter[str], niter: int) -> None:
    samples = FRAMES * CONFIG.hop
    frames = frame_count(samples, CONFIG.hop)
    assert separated(samples, niter=niter, split=False) == ["vocals", "accompaniment"]
    assert work["rfft"] == 2 * CONFIG.channels * frames  # to encode, and again to decode: cheaper than keeping it
    assert work["irfft"] == CONFIG.channels * frames  # the accompaniment is what the vocals leave


@pytest.mark.parametrize("lanes", [4, pytest.param(6, marks=needs_loops)])
def test_the_recurrence_takes_little_more_than_a_lane_of_the_steps(
    work: Counter[str], lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lanes == 4:
        monkeypatch.setattr(dense, "_dense", None)
    frames = frame_count(FRAMES * CONFIG.hop, CONFIG.hop)
    separated(FRAMES * CONFIG.hop, niter=0, split=False)
    directions = 2 * CONFIG.layers * len(CONFIG.branches)
    assert directions * frames / lanes < work["lstm steps"] < directions * (frames / lanes + WARM)
    assert work["lstm rows"] < directions * (frames + lanes * WARM)
    assert work["lstm calls"] < directions * (frames / 250)


def test_each_frame_meets_the_large_matrices_once(work: Counter[str]) -> None:
    frames = frame_count(FRAMES * CONFIG.hop, CONFIG.hop)
    separated(FRAMES * CONFIG.hop, niter=0, split=False)
    assert work["products' rows"] == (len(CONFIG.branches) + 1) * frames  # fc1 of each branch, fc3


def test_blocks_repeat_their_context_only(work: Counter[str]) -> None:
    samples = FRAMES * CONFIG.hop  # 40 s
    separated(samples, niter=0, segment_s=20.0, overlap_s=4.0)
    frames, context = frame_count(samples, CONFIG.hop), round(4.0 * CONFIG.sample_rate / CONFIG.hop)
    assert work["rfft"] <= CONFIG.channels * (2 * frames + 2 * context + 3 * WARM)  # cores are whole Wiener windows
    assert work["irfft"] <= CONFIG.channels * (frames + 8)


def test_a_wav_file_needs_torch_numpy_and_soundfile_alone(tmp_path: Path) -> None:
    path = tmp_path / "song.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal((22050, 2)), 44100)
    program = f"""
import sys
from umx_ext.cli import main
code = main(["separate", {os.fspath(path)!r}, "-o", {os.fspath(tmp_path / "out")!r}])
unused = "av soxr scipy matplotlib rich librosa torchaudio torch._dynamo torch._inductor sympy onnx umx_ext.training "
unused += "umx_ext.evaluation umx_ext.mixing umx_ext.separation.onnx_file"
loaded = [name for name in unused.split() if name in sys.modules]
sys.exit(str(loaded) if loaded or code else 0)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
