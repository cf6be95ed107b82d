"""Scores of several systems as a table and as a picture.

A `Table` is tidy: one row for each system, stem and metric, and that is what its CSV and JSON hold. Its Markdown sets
the same figures out for reading, stems side by side.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from umx_ext.errors import OutputError, UsageError
from umx_ext.evaluation import sisec as published
from umx_ext.evaluation.metrics import bootstrap_interval
from umx_ext.evaluation.scores import FRAME_METRICS, SONG_METRICS, TrackScores, check_metrics
from umx_ext.plot import require_matplotlib

__all__ = ["Cell", "Table", "plot", "summarise", "worst"]

TARGETS = ("vocals", "drums", "bass", "other", "accompaniment")

OTHER_EXCERPTS = "other excerpts, not comparable"
_SISEC = "SiSEC 2018: "
_SUFFIXES = (".png", ".svg", ".pdf")


class Cell(NamedTuple):
    """One figure: what one system reaches in one metric on one stem. dB, nan where there is none.

    Attributes:
        system: its name.
        target: the stem.
        metric: one of `scores.METRICS`.
        median: over tracks.
        low: lower end of the median's 95 % bootstrap interval.
        high: its upper end.
        mean: over tracks.
        tracks: those with a value.
        missing: those without, of all tracks that any of the systems was scored on.
        source: ``"scored"``, or whose figure it is and whether it can be compared.
    """

    system: str
    target: str
    metric: str
    median: float
    low: float
    high: float
    mean: float
    tracks: int
    missing: int
    source: str


@dataclass(frozen=True)
class Table:
    """Figures and what must be known to read them.

    Attributes:
        rows: the figures, system by system.
        notes: sentences.
    """

    rows: list[Cell]
    notes: list[str]

    @property
    def columns(self) -> list[str]:
        return list(Cell._fields)

    def csv(self) -> str:
        """The rows, with a header; an empty field where there is no value."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.columns)
        for row in self.rows:
            writer.writerow([_rounded(value) for value in row])
        return buffer.getvalue()

    def json(self) -> str:
        """An object of columns, rows and notes; null where there is no value."""
        rows = [[_rounded(value) for value in row] for row in self.rows]
        return json.dumps({"columns": self.columns, "rows": rows, "notes": self.notes}, indent=1, ensure_ascii=False)

    def markdown(self, width: int = 100) -> str:
        """For reading, also in a terminal: stems side by side as far as `width` characters allow.

        SDR and the whole-song metrics come with interval and mean, the others as medians. Of SiSEC's systems only
        `sisec.ANCHORS` are shown; the others are in the CSV and the JSON.
        """
        figures = {(row.system, row.target, row.metric): row for row in self.rows}
        shown = [row for row in self.rows if row.source == "scored" or _anchor(row)]
        systems = list(dict.fromkeys(row.system for row in shown))
        # Each row says what it is, also in a table that has no column for it.
        marks = {row.system: "*" if OTHER_EXCERPTS in row.source else "" for row in shown}
        labels = ["system", *(system + marks[system] for system in systems)]
        targets = list(dict.fromkeys(row.target for row in self.rows))
        metrics = list(dict.fromkeys(row.metric for row in self.rows))
        lines: list[str] = []
        for metric in [name for name in metrics if name in ("SDR", *SONG_METRICS)]:
            lines += [f"**{metric}, dB**: median over tracks, its 95 % interval, mean over tracks", ""]
            groups = []
            for target in targets:
                cells = [figures.get((system, target, metric)) for system in systems]
                groups.append([[target, *map(_median, cells)], ["95 %", *map(_interval, cells)],
                               ["mean", *map(_mean, cells)]])  # fmt: skip
            lines += _tables(labels, groups, width)
        minor = [name for name in metrics if name in FRAME_METRICS and name != "SDR"]
        if minor:
            lines += [f"**{', '.join(minor)}, dB**: medians over tracks", ""]
            groups = [
                [
                    [f"{target} {name}" if name == minor[0] else name]
                    + [_median(figures.get((system, target, name))) for system in systems]
                    for name in minor
                ]
                for target in targets
            ]
            lines += _tables(labels, groups, width)
        return "\n".join(lines + [f"- {note}" for note in self.notes]) + "\n"


def worst(scores: Sequence[TrackScores], target: str, metric: str, count: int = 5) -> list[tuple[str, float]]:
    """The tracks with the lowest values, lowest first; tracks without a value are left out."""
    values = [(track.track, track.median(target, metric)) for track in scores]
    return sorted((item for item in values if math.isfinite(item[1])), key=lambda item: item[1])[:count]


def summarise(
    systems: Mapping[str, Sequence[TrackScores]],
    *,
    targets: Sequence[str] | None = None,
    metrics: Sequence[str] = FRAME_METRICS,
    comparable: bool = False,
    sisec: bool = True,
) -> Table:
    """The figures of systems, side by side.

    Args:
        systems: name -> scores of its tracks. The first is the one that is judged: its worst tracks are named.
        targets: stems; None for those of the first system.
        metrics: any of `scores.METRICS`.
        comparable: the tracks are the whole songs of MUSDB18's test part, so published figures may stand beside them.
            For anything else, the 7-second excerpts too, SiSEC's rows are marked as not comparable.
        sisec: add the published medians of SiSEC 2018.

    Raises:
        UsageError: no system, no track, a metric that does not exist, or a stem that no system has.
    """
    metrics = check_metrics(metrics)
    if not any(systems.values()):
        raise UsageError("expected scores of at least one track, got none")
    names = list(dict.fromkeys(track.track for scores in systems.values() for track in scores))
    found = [name for name in TARGETS if any(name in (*t.frames, *t.song) for s in systems.values() for t in s)]
    first, judged = next(iter(systems.items()))
    if targets is None:
        targets = [name for name in TARGETS if any(name in (*track.frames, *track.song) for track in judged)]
    for target in targets:
        if target not in found:
            raise UsageError(f"nothing was scored for {target!r}; there are scores for {', '.join(found) or 'no stem'}")
    rows: list[Cell] = []
    gaps: dict[tuple[str, tuple[str, ...]], list[tuple[str, str]]] = {}
    for system, scores in systems.items():
        by_track = {track.track: track for track in scores}
        for target in targets:
            for metric in metrics:
                values = {name: track.median(target, metric) for name, track in by_track.items()}
                middle, mean, count = published.over_tracks(list(values.values()))
                low, high = bootstrap_interval(list(values.values()))
                row = Cell(system, target, metric, middle, low, high, mean, count, len(names) - count, "scored")
                rows.append(row)
                if 0 < count < len(names):
                    lacking = tuple(name for name in names if not math.isfinite(values.get(name, math.nan)))
                    gaps.setdefault((system, lacking), []).append((target, metric))
    if sisec:
        rows += _sisec_rows(targets, metrics, comparable)
    key_target = "vocals" if "vocals" in targets else targets[0]
    key_metric = "SDR" if "SDR" in metrics else metrics[0]
    lowest = ", ".join(f"{name} ({value:.2f})" for name, value in worst(judged, key_target, key_metric))
    notes = [_protocol(len(names), metrics)]
    if not comparable:
        notes.append("Not whole songs of MUSDB18's test part: compare these figures with each other only.")
    notes.append(f"Worst tracks of {first} by {key_metric} of the {key_target}, dB: {lowest or 'none has a value'}.")
    notes += [_gap(system, lacking, where, len(names)) for (system, lacking), where in gaps.items()]
    if any(row.source != "scored" for row in rows):
        notes.append(_sisec_legend(comparable))
    return Table(rows, notes)


def _sisec_rows(targets: Sequence[str], metrics: Sequence[str], comparable: bool) -> list[Cell]:
    source = _SISEC + ("published" if comparable else OTHER_EXCERPTS)
    ranked = sorted(published.SISEC18, key=lambda name: -published.SISEC18[name]["vocals"]["SDR"].median)
    return [
        Cell(f"SiSEC {name}", target, metric, figure.median, math.nan, math.nan, figure.mean, figure.tracks, 0, source)
        for name in ranked
        for target in targets
        for metric in metrics
        if (figure := published.SISEC18[name].get(target, {}).get(metric)) is not None
    ]


def _protocol(tracks: int, metrics: Sequence[str]) -> str:
    says = f"{tracks} track{'s' * (tracks != 1)}."
    if any(metric in FRAME_METRICS for metric in metrics):
        says += (
            " BSS Eval v4: distortion filters over the whole track, one-second frames; a track's value is the median"
            " over its frames, those without a finite value left out."
        )
    if "uSDR" in metrics:
        says += " uSDR: the whole song's SDR, ranked by its mean in the demixing challenges."
    if "SI-SDR" in metrics:
        says += " SI-SDR: of the whole song, channels as one signal."
    return says + " Intervals: the median's, by bootstrap over tracks."


def _sisec_legend(comparable: bool) -> str:
    says = "published" if comparable else OTHER_EXCERPTS
    extra = ", ".join(sorted(published.EXTRA_DATA))
    mark = "" if comparable else " (*)"
    return (
        f"SiSEC rows{mark}: {says}. Medians of SiSEC 2018 on the 50 whole test songs of MUSDB18 (Stöter, Liutkus, Ito "
        f"2018); its {', '.join(sorted(published.ORACLES))} are oracles (STFT of 2048), MIX is the mixture / 4, "
        f"{extra} had extra training data. The table shows some of its systems, CSV and JSON all."
    )


def _gap(system: str, lacking: Sequence[str], where: Sequence[tuple[str, str]], tracks: int) -> str:
    targets = ", ".join(dict.fromkeys(target for target, _ in where))
    metrics = ", ".join(dict.fromkeys(metric for _, metric in where))
    some = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
    return (
        f"{system}: no {metrics} of {targets} on {len(lacking)} of {tracks} tracks ({some}); they count in no figure."
    )


# ------------------------------------------------------------------------------------------------------------ Markdown


def _anchor(row: Cell) -> bool:
    return row.system.removeprefix("SiSEC ") in published.ANCHORS


def _rounded(value: str | float) -> str | float | None:
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def _median(cell: Cell | None) -> str:
    return "-" if cell is None else _number(cell.median)


def _mean(cell: Cell | None) -> str:
    return "-" if cell is None else _number(cell.mean)


def _interval(cell: Cell | None) -> str:
    """SiSEC's rows have none; there stands what the row is."""
    if cell is None:
        return "-"
    if cell.source != "scored":
        return "published" if OTHER_EXCERPTS not in cell.source else "not comparable"
    return f"[{cell.low:.2f}, {cell.high:.2f}]" if math.isfinite(cell.low) else "-"


def _tables(first: list[str], groups: list[list[list[str]]], width: int) -> list[str]:
    """Markdown tables: `first` holds the names, the columns of a group stay together. An empty line ends each."""

    def wide(columns: list[list[str]]) -> int:
        return sum(max(map(len, column)) + 3 for column in columns) + 1

    tables: list[list[list[str]]] = []
    for group in groups:
        if tables and wide(tables[-1] + group) <= width:
            tables[-1] += group
        else:
            tables.append([first, *group])
    lines = []
    for columns in tables:
        columns = [[cell.replace("|", "\\|") for cell in column] for column in columns]
        widths = [max(3, *map(len, column)) for column in columns]
        rows = [list(row) for row in zip(*columns, strict=True)]
        rows = [row for row in rows[:1] + rows[1:] if any(cell != "-" for cell in row[1:])]
        rule = ["-" * widths[0]] + ["-" * (size - 1) + ":" for size in widths[1:]]
        for row in [rows[0], rule, *rows[1:]]:
            cells = [row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return lines


# ------------------------------------------------------------------------------------------------------------ picture


def plot(
    systems: Mapping[str, Sequence[TrackScores]],
    path: str | os.PathLike[str],
    *,
    targets: Sequence[str] | None = None,
    metric: str = "SDR",
    title: str = "",
) -> None:
    """Draw how the tracks spread, and how some go second by second.

    Above, for each stem, a box for each system: the quartiles and the median of its tracks, whiskers to the last track
    within 1.5 times the box's length, and every track as a point. Below, second by second, the first system's worst,
    median and best track by the first of the stems.

    Args:
        systems: name -> scores of its tracks.
        path: the file, PNG, SVG or PDF by its suffix; its folder is made, and it appears whole or not at all.
        targets: stems; None for those of the first system.
        metric: one of `FRAME_METRICS`.
        title: stands above.

    Raises:
        UsageError: another suffix or metric, or nothing to draw.
        MissingExtraError: matplotlib is missing or broken.
        OutputError: the file cannot be written.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in _SUFFIXES:
        raise UsageError(f"{target} ends in {suffix or 'no suffix'!r}; a picture is one of {', '.join(_SUFFIXES)}")
    if metric not in FRAME_METRICS:
        raise UsageError(f"no curves of {metric!r}; known: {', '.join(FRAME_METRICS)}")
    table = summarise(systems, targets=targets, metrics=[metric], sisec=False)
    stems = list(dict.fromkeys(row.target for row in table.rows))
    if not stems:
        raise UsageError("the first system has scores for no stem: there is nothing to draw")
    require_matplotlib()
    # Imported here, because it needs what is above.
    from umx_ext.evaluation.picture import draw

    content = draw(systems, stems, metric, title, suffix[1:])
    part = target.with_name(f".{target.name[:80]}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(content)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{target} cannot be written ({error.strerror}); make room, or give another path") from error
