"""The published results of SiSEC 2018 on MUSDB18, and the aggregation that makes them.

A track's value is the median over its one-second frames; a system's is the median over its tracks. Frames and tracks
without a finite value are left out. The mean over tracks is given beside it, because a median hides failures: over
tracks, TAK1's vocals have a median SDR of 6.60 dB and a mean of 5.12 dB.

Source: F.-R. Stöter, A. Liutkus, N. Ito, "The 2018 Signal Separation Evaluation Campaign", LVA/ICA 2018; recomputed
from the score files of its 31 submissions, 50 tracks each, at https://github.com/sigsep/sigsep-mus-2018.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["ANCHORS", "EXTRA_DATA", "ORACLES", "SISEC18", "Summary", "aggregate", "over_frames", "over_tracks"]

# STFT of 2048 samples with a hop of 1024, four sources.
ORACLES = frozenset({"IBM1", "IBM2", "IRM1", "IRM2", "MWF"})
# Trained on more than MUSDB18's training part.
EXTRA_DATA = frozenset({"STL1", "TAK2", "TAK3", "TAU1", "UHL3"})
# Enough to place a system by: oracles, the best with and without extra data, the classics, the trivial one.
ANCHORS = ("IRM2", "MWF", "IRM1", "IBM1", "TAK2", "TAU1", "TAK1", "UHL2", "WK", "MELO", "MIX")


class Summary(NamedTuple):
    """Over tracks.

    Attributes:
        median: dB; nan where no track has a value.
        mean: dB; likewise.
        tracks: those with a value.
    """

    median: float
    mean: float
    tracks: int


class Framed(Protocol):
    """What `aggregate` needs of a track's scores."""

    @property
    def frames(self) -> Mapping[str, Mapping[str, npt.NDArray[np.float64]]]: ...


def over_frames(frames: npt.ArrayLike) -> float:
    """Median of the finite values, dB; nan where there is none."""
    values = np.asarray(frames, dtype=np.float64)
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")


def over_tracks(values: npt.ArrayLike) -> Summary:
    """Median and mean of the finite values, dB."""
    tracks = np.asarray(values, dtype=np.float64)
    finite = tracks[np.isfinite(tracks)]
    if not len(finite):
        return Summary(float("nan"), float("nan"), 0)
    return Summary(float(np.median(finite)), float(finite.mean()), len(finite))


def aggregate(scores: Iterable[Framed]) -> dict[str, dict[str, Summary]]:
    """Scores of one system's tracks -> target -> metric -> its figures, as `SISEC18` holds them for each system."""
    values: dict[str, dict[str, list[float]]] = {}
    for track in scores:
        for target, metrics in track.frames.items():
            for metric, frames in metrics.items():
                values.setdefault(target, {}).setdefault(metric, []).append(over_frames(frames))
    return {
        target: {metric: over_tracks(tracks) for metric, tracks in metrics.items()}
        for target, metrics in values.items()
    }


def _load() -> dict[str, dict[str, dict[str, Summary]]]:
    text = (files("umx_ext.evaluation") / "sisec18.csv").read_text(encoding="utf-8")
    table: dict[str, dict[str, dict[str, Summary]]] = {}
    for row in csv.DictReader(line for line in text.splitlines() if not line.startswith("#")):
        table.setdefault(row["system"], {})[row["target"]] = {
            metric: Summary(float(row[metric]), float(row[f"{metric}_mean"]), 50)
            for metric in ("SDR", "ISR", "SIR", "SAR")
        }
    return table


# system -> target -> metric -> figures
SISEC18: Mapping[str, Mapping[str, Mapping[str, Summary]]] = _load()
