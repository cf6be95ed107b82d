"""Takes and backings to mix, and the command to mix them with, for the tests of `umx-ext mix`."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from umx_ext import audio, cli
from umx_ext.mixing import vocal

ROOT = Path(__file__).resolve().parent.parent
RATE = 44100


@dataclasses.dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def record(self) -> dict[str, Any]:
        return json.loads(self.out)


Run = Callable[..., Answer]


def caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Call the command in this process, in an empty folder. What libraries write to the descriptors counts too."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("UMX_EXT_OFFLINE", "1")
    monkeypatch.delenv("UMX_EXT_DEVICE", raising=False)

    def call(*words: object) -> Answer:
        capfd.readouterr()
        code = cli.main(["mix", *map(str, words)])
        captured = capfd.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


def process(*words: str, cwd: Path, **how: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "umx_ext", "mix", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "UMX_EXT_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


def voice(seconds: float = 3.0, rate: int = RATE, channels: int = 1, level: float = 0.05) -> Tensor:
    """Harmonics in phrases, with pauses."""
    time_s = np.arange(round(seconds * rate)) / rate
    tone = sum(np.sin(2 * np.pi * 220 * k * time_s + k) / k for k in range(1, 20) if 220 * k < rate / 2)
    wave = level * tone * (np.sin(2 * np.pi * 0.7 * time_s) > -0.3)
    return torch.from_numpy(wave).float().repeat(channels, 1)


def band(seconds: float = 3.0, rate: int = RATE, channels: int = 2, level: float = 0.1) -> Tensor:
    """Noise with beats, different on both sides."""
    generator = torch.Generator().manual_seed(5)
    time_s = torch.arange(round(seconds * rate)) / rate
    beats = 0.4 + torch.exp(-8 * (time_s % 0.5))
    return level * beats * torch.randn(channels, len(time_s), generator=generator).clamp(-3, 3)


def write(path: str, waveform: Tensor, rate: int = RATE, bits: str = "32f") -> Path:
    audio.write(path, waveform, rate, bits=bits)
    return Path(path)


def pair(**how: Any) -> tuple[Path, Path]:
    return write("take.wav", voice(**how)), write("backing.wav", band(**how))


def nothing(*effects: Any) -> str:
    """A file of chains that leaves the take as it is, but for these effects."""
    Path("nothing.json").write_text(vocal.chains_to_json({"vocals": effects}))
    return "nothing.json"


def everything_below(folder: Path = Path()) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def expect_one_line(answer: Answer, code: int, *phrases: str) -> None:
    assert answer.code == code, answer
    assert len(answer.err.splitlines()) == 1, answer.err
    for phrase in phrases:
        assert phrase in answer.err, answer.err
    assert answer.out == ""
