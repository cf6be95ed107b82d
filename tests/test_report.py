"""Tables and pictures of scores: every figure against numpy, every format read back."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import stat
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from tests.peers import import_peer
from umx_ext.errors import MissingExtraError, OutputError, UsageError
from umx_ext.evaluation.metrics import bootstrap_interval
from umx_ext.evaluation.report import Cell, Table, plot, summarise, worst
from umx_ext.evaluation.scores import TrackScores
from umx_ext.evaluation.sisec import ANCHORS, SISEC18

FRAMES = ("SDR", "ISR", "SIR", "SAR")
LEVELS = {"vocals": 6.0, "drums": 5.0, "bass": 4.0, "other": 3.0, "accompaniment": 12.0}


def track(name: str, seed: int, targets=("vocals", "accompaniment"), seconds: int = 6, shift: float = 0.0):
    generator = np.random.default_rng(seed)
    frames = {
        target: {metric: LEVELS[target] + shift + generator.normal(0, 3, seconds) for metric in FRAMES}
        for target in targets
    }
    frames[targets[0]]["SDR"][0] = math.nan
    song = {target: {"SI-SDR": LEVELS[target] + seed, "uSDR": LEVELS[target] - seed} for target in targets}
    return TrackScores(name, frames, song)


def system(shift: float = 0.0, count: int = 9, **options) -> list[TrackScores]:
    return [track(f"Song {number}", number, shift=shift, **options) for number in range(count)]


@pytest.fixture
def systems():
    return {"ours": system(), "floor": system(-5.0)}


def cell(table: Table, name: str, target: str, metric: str) -> Cell:
    (found,) = [row for row in table.rows if row[:3] == (name, target, metric)]
    return found


# ------------------------------------------------------------------------------------------------------------- figures


def test_figures_are_the_median_the_mean_and_the_interval_of_the_tracks_medians(systems) -> None:
    table = summarise(systems, targets=["vocals", "accompaniment"], metrics=["SDR", "SIR", "uSDR"])
    for name, tracks in systems.items():
        for target in ("vocals", "accompaniment"):
            for metric in ("SDR", "SIR"):
                values = [np.nanmedian(scores.frames[target][metric]) for scores in tracks]
                found = cell(table, name, target, metric)
                assert found.median == pytest.approx(np.median(values))
                assert found.mean == pytest.approx(np.mean(values))
                assert (found.low, found.high) == bootstrap_interval(values)
                assert found.low <= found.median <= found.high
                assert (found.tracks, found.missing, found.source) == (9, 0, "scored")
            assert cell(table, name, target, "uSDR").median == LEVELS[target] - 4


def test_systems_stems_and_metrics_keep_their_order_and_nothing_else_appears(systems) -> None:
    rows = summarise(systems, targets=["accompaniment", "vocals"], metrics=["SDR", "SAR"], sisec=False).rows
    assert [row[:3] for row in rows] == [
        (name, target, metric)
        for name in ("ours", "floor")
        for target in ("accompaniment", "vocals")
        for metric in ("SDR", "SAR")
    ]


def test_stems_are_those_of_the_first_system_unless_named() -> None:
    systems = {"two": system(), "five": system(targets=tuple(LEVELS))}
    assert {row.target for row in summarise(systems, sisec=False).rows} == {"vocals", "accompaniment"}
    turned = {"five": systems["five"], "two": systems["two"]}
    assert list(dict.fromkeys(row.target for row in summarise(turned, sisec=False).rows)) == list(LEVELS)


def test_the_five_worst_tracks_of_the_first_system_are_named_with_their_values(systems) -> None:
    systems["ours"][7].frames["vocals"]["SDR"][:] = -12.25
    values = {scores.track: float(np.nanmedian(scores.frames["vocals"]["SDR"])) for scores in systems["ours"]}
    expected = sorted(values, key=values.__getitem__)[:5]
    assert expected[0] == "Song 7"
    assert [name for name, _ in worst(systems["ours"], "vocals", "SDR")] == expected
    (note,) = [
        note for note in summarise(systems).notes if note.startswith("Worst tracks of ours by SDR of the vocals")
    ]
    assert note.endswith(", ".join(f"{name} ({values[name]:.2f})" for name in expected) + ".")


def test_tracks_without_a_value_are_counted_and_named(systems) -> None:
    systems["ours"][2].frames["vocals"]["SDR"][:] = math.nan
    systems["floor"].pop()
    table = summarise(systems, metrics=["SDR"])
    found = cell(table, "ours", "vocals", "SDR")
    assert (found.tracks, found.missing) == (8, 1)
    assert cell(table, "floor", "accompaniment", "SDR")[-3:-1] == (8, 1)
    assert cell(table, "ours", "accompaniment", "SDR")[-3:-1] == (9, 0)
    assert any("ours: no SDR of vocals on 1 of 9 tracks (Song 2)" in note for note in table.notes)
    assert any("floor: no SDR of vocals, accompaniment on 1 of 9 tracks (Song 8)" in note for note in table.notes)


def test_a_system_without_a_stem_has_no_figure_for_it_and_no_row_in_that_table() -> None:
    table = summarise({"five": system(targets=tuple(LEVELS)), "two": system()}, metrics=["SDR"], sisec=False)
    found = cell(table, "two", "drums", "SDR")
    assert math.isnan(found.median)
    assert (found.tracks, found.missing) == (0, 9)
    assert "null" in table.json()
    assert "nan" not in table.csv() + table.json() + table.markdown(200)


def test_one_track_has_no_interval() -> None:
    found = cell(summarise({"ours": system(count=1)}, metrics=["SDR"]), "ours", "vocals", "SDR")
    assert math.isnan(found.low)
    assert math.isfinite(found.median)


# --------------------------------------------------------------------------------------------------------------- SiSEC


@pytest.mark.parametrize("comparable, mark", [(True, "published"), (False, "other excerpts, not comparable")])
def test_published_rows_are_all_there_and_marked(systems, comparable: bool, mark: str) -> None:
    table = summarise(systems, comparable=comparable)
    rows = [row for row in table.rows if row.source != "scored"]
    assert {row.source for row in rows} == {f"SiSEC 2018: {mark}"}
    assert {row.system for row in rows} == {f"SiSEC {name}" for name in SISEC18}
    assert cell(table, "SiSEC TAK1", "vocals", "SDR")[3:8] == pytest.approx(
        (6.6, math.nan, math.nan, 5.122, 50), nan_ok=True
    )
    assert any(note.startswith("SiSEC rows") and mark in note for note in table.notes)


def test_every_published_row_of_the_markdown_says_whether_it_can_be_compared(systems) -> None:
    for comparable in (True, False):
        lines = [
            line for line in summarise(systems, comparable=comparable).markdown().splitlines() if "| SiSEC" in line
        ]
        assert len(lines) == 2 * len(ANCHORS)  # SDR, and the other three
        sdr = lines[: len(ANCHORS)]
        assert all(("published" in line, "not comparable" in line) == (comparable, not comparable) for line in sdr)
        assert all(("*" in line) == (not comparable) for line in lines)


def test_no_published_row_stands_in_a_table_without_sisec(systems) -> None:
    assert "SiSEC" not in summarise(systems, sisec=False).markdown()
    # SiSEC published no whole-song figures.
    assert "SiSEC" not in summarise(systems, metrics=["uSDR"]).markdown()


def test_excerpts_are_called_excerpts(systems) -> None:
    warning = "compare these figures with each other only"
    assert any(warning in note for note in summarise(systems).notes)
    assert not any(warning in note for note in summarise(systems, comparable=True).notes)


# ------------------------------------------------------------------------------------------------------------- formats


def test_the_csv_holds_every_row_to_five_decimals(systems) -> None:
    table = summarise(systems)
    read = list(csv.DictReader(io.StringIO(table.csv())))
    assert list(read[0]) == table.columns
    assert len(read) == len(table.rows)
    for row, fields in zip(table.rows, read, strict=True):
        assert fields["system"] == row.system
        for name in ("median", "low", "high", "mean"):
            value = getattr(row, name)
            assert fields[name] == "" if math.isnan(value) else float(fields[name]) == pytest.approx(value, abs=6e-6)


def test_the_json_is_strict_and_holds_rows_and_notes(systems) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    table = summarise(systems)
    read = json.loads(table.json(), parse_constant=refuse)
    assert read["columns"] == table.columns
    assert read["notes"] == table.notes
    assert len(read["rows"]) == len(table.rows)
    assert dict(zip(read["columns"], read["rows"][0], strict=True))["median"] == pytest.approx(table.rows[0].median)


def markdown_tables(text: str) -> list[list[list[str]]]:
    tables: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            tables[-1].append([field.strip() for field in line.strip("|").split("|")])
        elif tables[-1]:
            tables.append([])
    return [table for table in tables if table]


def test_the_markdown_reads_back_as_the_figures(systems) -> None:
    table = summarise(systems, metrics=["SDR", "ISR"], sisec=False)
    sdr, isr = markdown_tables(table.markdown())
    assert sdr[0] == ["system", "vocals", "95 %", "mean", "accompaniment", "95 %", "mean"]
    assert isr[0] == ["system", "vocals ISR", "accompaniment ISR"]
    for fields in sdr[2:]:
        for column, target in ((1, "vocals"), (4, "accompaniment")):
            found = cell(table, fields[0], target, "SDR")
            assert fields[column] == f"{found.median:.2f}"
            assert fields[column + 1] == f"[{found.low:.2f}, {found.high:.2f}]"
            assert fields[column + 2] == f"{found.mean:.2f}"
    assert isr[2] == ["ours"] + [f"{cell(table, 'ours', t, 'ISR').median:.2f}" for t in ("vocals", "accompaniment")]


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_tables_keep_to_the_width_and_their_columns_are_aligned(width: int) -> None:
    table = summarise({"ours": system(targets=tuple(LEVELS)), "floor": system(-5, targets=tuple(LEVELS))})
    text = table.markdown(width)
    blocks = text.split("\n\n")
    for block in (block for block in blocks if block.startswith("|")):
        lengths = {len(line) for line in block.splitlines()}
        assert len(lengths) == 1
        assert lengths.pop() <= width
    shown = {name for rows in markdown_tables(text) for name in rows[0]}
    assert {f"{target} ISR" for target in LEVELS} | LEVELS.keys() <= shown


def test_a_bar_in_a_name_does_not_end_a_field() -> None:
    (rows,) = markdown_tables(summarise({"a|b": system()}, metrics=["SDR"], sisec=False).markdown().replace("\\|", "¦"))
    assert rows[2][0] == "a¦b"
    assert len(rows[2]) == len(rows[0])


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "systems, options, says",
    [
        ({}, {}, "at least one track"),
        ({"ours": []}, {}, "at least one track"),
        ({"ours": system()}, {"metrics": ["SNR"]}, "no metric named SNR; known: SDR"),
        ({"ours": system()}, {"metrics": []}, "no metric"),
        (
            {"ours": system()},
            {"targets": ["drums"]},
            "nothing was scored for 'drums'; there are scores for vocals, acc",
        ),
    ],
)
def test_what_makes_no_table_is_refused_with_a_sentence(systems, options, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        summarise(systems, **options)


# ------------------------------------------------------------------------------------------------------------- picture


def size_of(path: Path) -> tuple[int, int]:
    image = import_peer("matplotlib.image").imread(path)
    assert image[..., :3].std() > 0.02  # something is drawn
    return image.shape[1], image.shape[0]


def test_each_suffix_gives_that_kind_of_file(systems, tmp_path: Path) -> None:
    import_peer("matplotlib")
    for suffix, head in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".PDF", b"%PDF")):
        path = tmp_path / "new folder" / f"scores{suffix}"
        plot(systems, path)
        assert path.read_bytes().startswith(head)
    width, height = size_of(tmp_path / "new folder" / "scores.png")
    assert width > 1000
    assert height > 400
    assert [entry.name for entry in (tmp_path / "new folder").iterdir() if entry.name.startswith(".")] == []


def texts(path: Path) -> str:
    """matplotlib writes each text into an SVG as a comment beside its outlines."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    tree = ElementTree.parse(path, parser)
    return "\n".join(node.text or "" for node in tree.iter() if node.tag is ElementTree.Comment)


def test_the_picture_names_systems_stems_and_the_worst_median_and_best_track(systems, tmp_path: Path) -> None:
    import_peer("matplotlib")
    values = {scores.track: scores.median("vocals", "SDR") for scores in systems["ours"]}
    ranked = sorted(values, key=values.__getitem__)
    plot(systems, tmp_path / "scores.svg", title="Nine songs")
    drawn = texts(tmp_path / "scores.svg")
    for text in ("Nine songs", "ours", "floor", "vocals", "accompaniment", f"worst: {ranked[0]}",
                 f"median: {ranked[4]}", f"best: {ranked[-1]}", f"{np.median(list(values.values())):.2f}"):  # fmt: skip
        assert text in drawn, text


def test_equal_scores_give_equal_png_and_pdf_files(systems, tmp_path: Path) -> None:
    import_peer("matplotlib")
    for suffix in ("png", "pdf"):
        first, second = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
        plot(systems, first)
        plot(systems, second)
        assert first.read_bytes() == second.read_bytes()
    assert b"CreationDate" not in second.read_bytes()


@pytest.mark.parametrize(
    "tracks",
    [
        [track("one", 0)],
        [track(r"$\nosuch{$", 0), track("two^$", 1)],
        [track("long", 0, seconds=240), track("short", 1, seconds=1)],
        [TrackScores("nothing", {"vocals": {"SDR": np.full(5, math.nan)}})],
        [TrackScores("no second", {"vocals": {"SDR": np.empty(0)}})],
        [TrackScores(f"flat at {level}", {"vocals": {"SDR": np.full(5, level)}}) for level in (3.0, 3.0, -80.0, 70.0)],
        [track(f"track {number}", number, targets=tuple(LEVELS)) for number in range(6)],
    ],
    ids=["one track", "two tracks", "long and short", "no value", "no frame", "extremes", "five stems"],
)  # fmt: skip
def test_odd_scores_are_drawn_without_a_warning(tracks, tmp_path: Path, recwarn) -> None:
    import_peer("matplotlib")
    plot({r"a system named $\nosuch{$ at a length that goes on": tracks}, tmp_path / "scores.png")
    assert size_of(tmp_path / "scores.png")[0] > 1000
    assert [str(warning.message) for warning in recwarn.list] == []


def test_drawing_changes_no_state_of_matplotlib(systems, tmp_path: Path) -> None:
    matplotlib = import_peer("matplotlib")
    before = dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False)
    plot(systems, tmp_path / "scores.png")
    assert (dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False)) == before


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = "import sys, umx_ext.evaluation.report, umx_ext.evaluation.picture; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_matplotlib_the_message_is_the_command(systems, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(MissingExtraError, match="pip install matplotlib"):
        plot(systems, tmp_path / "scores.png")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_of_another_kind_or_of_no_curve_is_refused(systems, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in '\.jpg'; a picture is one of \.png, \.svg, \.pdf"):
        plot(systems, tmp_path / "scores.jpg")
    with pytest.raises(UsageError, match="no curves of 'uSDR'"):
        plot(systems, tmp_path / "scores.png", metric="uSDR")
    with pytest.raises(UsageError, match="at least one track"):
        plot({}, tmp_path / "scores.png")


@pytest.mark.skipif(os.name == "nt", reason="folders have no write permission there")
def test_a_picture_that_cannot_be_written_leaves_the_old_one(systems, tmp_path: Path, monkeypatch) -> None:
    import_peer("matplotlib")
    path = tmp_path / "scores.png"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match=r"scores\.png cannot be written"):
        plot(systems, path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.png"]
    assert stat.S_ISREG(path.stat().st_mode)
