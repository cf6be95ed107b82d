"""SiSEC 2018's table against the data it restates, and the aggregation against museval's own."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from tests.peers import import_peer
from umx_ext.evaluation import sisec
from umx_ext.evaluation.scores import TrackScores
from umx_ext.evaluation.store import read_scores

METRICS = ("SDR", "ISR", "SIR", "SAR")


def test_every_published_figure_is_restated(data: Path) -> None:
    path = data / "sisec18_medians.csv"
    if not path.exists():
        pytest.skip(f"{path.name} is not among the shared data")
    count = 0
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            summary = sisec.SISEC18[row["method"]][row["target"]][row["metric"]]
            assert summary == (
                float(row["median_of_medians"]), float(row["mean_of_medians"]), int(row["n_tracks"])
            )  # fmt: skip
            count += 1
    assert count == sum(len(m) for targets in sisec.SISEC18.values() for m in targets.values()) == 484


def test_the_table_holds_the_figures_that_papers_quote() -> None:
    vocals = {system: targets["vocals"]["SDR"] for system, targets in sisec.SISEC18.items()}
    assert len(vocals) == 31
    best = max((system for system in vocals if system not in sisec.ORACLES), key=lambda system: vocals[system].median)
    assert best == "TAK2"
    assert vocals["TAK1"] == (6.6, 5.122, 50)
    assert sisec.SISEC18["MIX"]["vocals"]["ISR"].median == pytest.approx(-20 * math.log10(0.75), abs=0.01)
    assert "drums" not in sisec.SISEC18["MELO"]


def test_names_of_systems_are_those_of_the_table() -> None:
    for names in (sisec.ANCHORS, sisec.ORACLES, sisec.EXTRA_DATA):
        assert set(names) <= sisec.SISEC18.keys()


def two_tracks() -> dict[str, dict[str, dict[str, list[float]]]]:
    """Seconds of two songs, of different lengths, with nan, infinities, and a stem of one that has no value at all."""
    generator = np.random.default_rng(0)
    tracks: dict[str, dict[str, dict[str, list[float]]]] = {}
    for track, seconds in (("First Song", 7), ("Second Song", 12)):
        tracks[track] = {}
        for target in ("drums", "vocals", "accompaniment"):
            tracks[track][target] = {metric: list(generator.normal(5, 4, seconds).round(5)) for metric in METRICS}
            tracks[track][target]["SDR"][2] = math.nan
            tracks[track][target]["SIR"][3] = math.inf
    tracks["Second Song"]["drums"] = {metric: [math.nan] * 12 for metric in METRICS}
    return tracks


def test_aggregation_of_musevals_files_is_musevals(tmp_path: Path) -> None:
    """SiSEC's figures are made by museval's stores, so these are the truth: they write the two songs' files (as JSON in
    SiSEC's format) and aggregate them."""
    museval = import_peer("museval")
    folder = tmp_path / "SYSTEM"
    (folder / "test").mkdir(parents=True)
    for track, targets in two_tracks().items():
        store = museval.TrackStore(track)
        for target, values in targets.items():
            store.add_target(target, values)
        store.validate()
        store.save(folder / "test" / f"{track}.json")
    peer = museval.EvalStore()
    peer.add_eval_dir(folder)
    medians = peer.agg_frames_tracks_scores()
    by_mean = museval.EvalStore(tracks_agg="mean")
    by_mean.add_eval_dir(folder)
    means = by_mean.agg_frames_tracks_scores()
    ours = sisec.aggregate(read_scores(folder))
    assert set(ours) == {"drums", "vocals", "accompaniment"}
    for target, metrics in ours.items():
        assert set(metrics) == set(METRICS)
        for metric, summary in metrics.items():
            assert summary.median == pytest.approx(medians[target, metric], abs=1e-9)
            assert summary.mean == pytest.approx(means[target, metric], abs=1e-9)
            assert summary.tracks == (1 if target == "drums" else 2)


def test_values_that_are_not_finite_count_nowhere() -> None:
    assert sisec.over_frames([1.0, math.nan, 5.0, math.inf, -math.inf]) == 3.0
    assert math.isnan(sisec.over_frames([math.nan, math.inf]))
    assert math.isnan(sisec.over_frames([]))
    assert sisec.over_tracks([1.0, math.nan, 3.0, 8.0]) == (3.0, 4.0, 3)
    assert math.isnan(sisec.over_tracks([math.nan]).median)


def test_a_track_without_a_stem_counts_for_the_others_only() -> None:
    first = TrackScores("a", {"vocals": {"SDR": np.array([1.0, 2.0, 9.0])}, "drums": {"SDR": np.array([4.0])}})
    second = TrackScores("b", {"vocals": {"SDR": np.array([4.0])}})
    assert sisec.aggregate([first, second]) == {
        "vocals": {"SDR": (3.0, 3.0, 2)},
        "drums": {"SDR": (4.0, 4.0, 1)},
    }
