"""A tiny packed corpus, and the network that runs of a few steps train on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from umx_ext.separation.config import Config
from umx_ext.training.tracks import Entry

__all__ = ["CONFIG", "RATE", "write_store"]

RATE = 8000
CONFIG = Config(branches=("linear-log", "mel"), hidden=8, n_fft=256, hop=64, n_mels=8, sample_rate=RATE,
                bandwidth_hz=3000.0, mask="sigmoid")  # fmt: skip


def write_store(folder: Path) -> None:
    """Tones and noise bursts: two songs and a pair to train on, and a song to validate with."""
    rng = np.random.default_rng(0)
    time_s = np.arange(2 * RATE) / RATE
    entries, values, offset = [], [], 0
    for song, split in (("a", "train"), ("b", "train"), ("v", "valid")):
        for stem, hertz in (("vocals", 440), ("drums", 0), ("bass", 80), ("other", 1000)):
            tone = np.sin(2 * np.pi * hertz * time_s) if hertz else rng.standard_normal(2 * RATE)
            stereo = np.stack([tone, 0.5 * tone]) * 0.3 * rng.uniform(0.5, 1.0)
            block = (stereo.T * 32767).clip(-32768, 32767).astype("<i2")
            entries.append(Entry(song, split, "musdb18", stem, 1.0, 2, len(block), offset))
            values.append(block.ravel())
            offset += block.size
    for stem in ("vocals", "accompaniment"):
        block = (0.2 * rng.standard_normal(2 * RATE) * 32767).clip(-32768, 32767).astype("<i2")
        entries.append(Entry("m", "train", "mir1k", stem, 1.0, 1, len(block), offset))
        values.append(block)
        offset += block.size
    np.concatenate(values).tofile(folder / "audio.i16")
    (folder / "index.json").write_text(
        json.dumps({"sample_rate": RATE, "data_sha256": "0" * 64, "entries": [vars(entry) for entry in entries]})
    )
