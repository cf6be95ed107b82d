"""What MUSDB18's mixes have in common: python scripts/measure_mixing.py DATA

DATA holds `musdb18-7/` and `mir1k/`. Measured are the 94 training songs of MUSDB18's 7-second sample (what
`umx-ext mixstats DATA/musdb18-7` measures), and, for the loudness range of a take nobody has mixed, the singers of
MIR-1K's training part, the clips of each song on end. The table goes into `docs/mixstats.json` and the README; beside
it the JSON has `tone`, the constants of `umx_ext.mixing.tone`: of these singers and of the training songs without the
validation ones.
"""

from __future__ import annotations

import argparse
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tables import machine, publish, render

from umx_ext import audio, levels
from umx_ext.corpora import find_songs
from umx_ext.mixing.statistics import RELIABLE_RANGE_S, Corpus, SilentStemError, measure, summarise
from umx_ext.stems import Stems

LEAST_VOICE = 0.3  # of the time, to have a tone
DRY_OCTAVES = 7  # that 16 kHz carries whole

ROWS = (
    "relative_lu",
    "range_lu",
    "short_range_lu",
    "active_range_lu",
    "active_share",
    "peaks_over_loudness_db",
    "mix_lufs",
    "mix_true_peak_db",
)


def records(root: Path) -> Corpus:
    measured, silent = [], []
    for subset in ("train", "valid"):
        for song in find_songs(root, subset):
            try:
                measured.append(measure(song.read(), song.name))
            except SilentStemError as error:
                silent.append(f"Left out: {error}.")
    return summarise(measured, silent)


def tone(corpus: Corpus, dry: Corpus, validation: set[str]) -> dict[str, list[Any]]:
    """Mean and covariance of the octaves of vocals, of both corpora, the most likely ones under a Gaussian.

    MIR-1K, at 16 kHz, lacks the two highest octaves. These are predicted from the others as MUSDB18's are, and what
    their prediction leaves open is added.
    """
    heard = [song for song in corpus.songs if song.name not in validation and song.active_share >= LEAST_VOICE]
    full = np.array([song.vocal_bands_db for song in heard])
    lower = np.concatenate([full[:, :DRY_OCTAVES], [song.vocal_bands_db[:DRY_OCTAVES] for song in dry.songs]])
    some, rest = slice(0, DRY_OCTAVES), slice(DRY_OCTAVES, None)
    own = np.cov(full.T)
    predict = own[rest, some] @ np.linalg.inv(own[some, some])
    left = own[rest, rest] - predict @ own[some, rest]
    mean, covariance = np.empty(len(own)), np.empty_like(own)
    mean[some], covariance[some, some] = lower.mean(0), np.cov(lower.T)
    mean[rest] = full.mean(0)[rest] + predict @ (mean[some] - full.mean(0)[some])
    covariance[rest, some] = predict @ covariance[some, some]
    covariance[some, rest] = covariance[rest, some].T
    covariance[rest, rest] = left + predict @ covariance[some, some] @ predict.T
    return {"mean_db": mean.round(1).tolist(), "covariance_db2": covariance.round(1).tolist()}


def takes(root: Path) -> Corpus:
    """Dry takes of amateurs: the clips of a song (<singer>_<song>_<clip>) on end, where they are long enough."""
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    measured = []
    for name, clips in groupby(folders, key=lambda path: path.name.rpartition("_")[0]):
        parts: dict[str, list[torch.Tensor]] = {"vocals": [], "accompaniment": []}
        for clip in clips:
            for stem, waveforms in parts.items():
                waveform, rate = audio.read(clip / f"{stem}.opus")
                waveforms.append(waveform)
        lengths = [min(map(lambda w: w.shape[1], pair)) for pair in zip(*parts.values(), strict=True)]
        stems = {
            stem: torch.cat([w[:, :length] for w, length in zip(waveforms, lengths, strict=True)], 1)
            for stem, waveforms in parts.items()
        }
        if stems["vocals"].shape[1] >= RELIABLE_RANGE_S * rate and not levels.is_silent(stems["vocals"]):
            measured.append(measure(Stems(stems, rate), name))
    return summarise(measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    arguments = parser.parse_args()
    corpus, dry = records(arguments.data / "musdb18-7"), takes(arguments.data / "mir1k" / "train")
    cells = dict(zip(corpus.statistics, corpus.rows(), strict=True))
    dry_cells = dict(zip(dry.statistics, dry.rows(), strict=True))
    rows = [cells[name] for name in ROWS]
    for name in ("range_lu", "active_range_lu"):
        says, *figures, _ = dry_cells[name]
        rows.append([f"dry takes of amateurs: {says}", *figures, "-"])
    rows += [cells[name] for name in cells if name not in ROWS]
    table = {
        "columns": corpus.columns(),
        "rows": rows,
        "note": f"{len(corpus.songs)} songs of MUSDB18's training part, 7 s each. The published means are of 21 936 "
        "clips of 30 s, separated by a network, whose leakage widens the range. The dry takes are "
        f"{len(dry.songs)} songs of 30 s or more by MIR-1K's training singers. {' '.join(corpus.notes)}",
        "statistics": corpus.to_dict()["statistics"],
        "songs": corpus.to_dict()["songs"],
        "tone": tone(corpus, dry, {song.name for song in find_songs(arguments.data / "musdb18-7", "valid")}),
        "dry": {"statistics": dry.to_dict()["statistics"], "songs": dry.to_dict()["songs"]},
        "machine": machine(),
    }
    print(render(table))
    publish("mixstats", table)


if __name__ == "__main__":
    main()
