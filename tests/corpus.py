"""A corpus of seconds instead of minutes, and a model of random weights: what a benchmark needs to run in a moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch

from umx_ext.separation import pretrained
from umx_ext.separation.config import Config
from umx_ext.separation.separator import Separator

__all__ = ["FOUR", "RATE", "TWO", "estimates_of", "make_corpus", "make_model", "make_song", "wave"]

RATE = 8000
FOUR, TWO = ("vocals", "drums", "bass", "other"), ("vocals", "accompaniment")


def wave(seed: int, seconds: float = 2.5, channels: int = 1) -> np.ndarray:
    """Coloured noise `(samples, channels)` whose loudness changes from second to second."""
    generator = np.random.default_rng(seed)
    count = round(seconds * RATE)
    noise = generator.standard_normal((count + 3, channels))
    colour = generator.standard_normal(4)
    coloured = sum(tap * noise[at : at + count] for at, tap in enumerate(colour))
    loudness = np.repeat(generator.uniform(0.3, 1.0, int(np.ceil(seconds))), RATE)[:count, None]
    return 0.05 * coloured * loudness


def make_song(
    folder: Path,
    seed: int,
    stems: Sequence[str] = FOUR,
    seconds: float = 2.5,
    *,
    channels: int = 1,
    suffix: str = ".wav",
) -> None:
    """Of one channel, since distortion filters of two take eight times as long."""
    folder.mkdir(parents=True)
    for number, stem in enumerate(stems):
        soundfile.write(folder / f"{stem}{suffix}", wave(10 * seed + number, seconds, channels), RATE)


def make_corpus(
    root: Path,
    names: Sequence[str] = ("Ann - One", "Bob - Two"),
    stems: Sequence[str] = FOUR,
    *,
    channels: int = 1,
) -> Path:
    for seed, name in enumerate(names):
        make_song(root / name, seed, stems, channels=channels)
    return root


def estimates_of(root: Path, folder: Path, stems: Sequence[str] = TWO, error: float = 0.3) -> Path:
    """Estimates of every song below `root`: the truth and some noise."""
    for number, song in enumerate(sorted(path for path in root.iterdir() if path.is_dir())):
        truth = {path.stem: soundfile.read(path, always_2d=True)[0] for path in song.iterdir()}
        truth.setdefault("accompaniment", sum(sound for stem, sound in truth.items() if stem != "vocals"))
        (folder / song.name).mkdir(parents=True)
        for at, stem in enumerate(stems):
            samples, channels = truth[stem].shape
            noise = error * wave(1000 + 10 * number + at, samples / RATE, channels)
            soundfile.write(folder / song.name / f"{stem}.wav", truth[stem] + noise, RATE, subtype="FLOAT")
    return folder


def make_model(path: Path, stems: Sequence[str] = ("vocals",), seed: int = 1) -> str:
    torch.manual_seed(seed)
    config = Config(
        stems=tuple(stems), sample_rate=RATE, hidden=16, layers=1, n_fft=512, hop=128, mask="sigmoid", niter=0
    )
    pretrained.save(Separator(config), path, metadata={"license": "none"})
    return str(path)
