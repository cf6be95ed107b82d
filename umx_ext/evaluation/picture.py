"""The picture of scores: how the tracks of several systems spread, and how some tracks go second by second.

matplotlib (extra `research`) is imported when the picture is drawn.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from umx_ext.evaluation.report import worst
from umx_ext.evaluation.scores import TrackScores
from umx_ext.plot import COLOURS, FAINT, INK

__all__ = ["draw"]

WIDTH_IN = 12.0
LEFT, RIGHT = 0.06, 0.955  # of the width
TOP_IN, GAP_IN, BOTTOM_IN = 0.8, 0.7, 0.55
ROW_IN = 0.36  # a system in the box plot
CURVES_IN = 2.3

LOWEST_DB, HIGHEST_DB = -15.0, 30.0  # a track outside is drawn at the edge, as an arrow; curves reach 10 dB lower
FEW = 60  # seconds that can be drawn one by one; in longer tracks a running median leads the eye
NAME = 30  # most characters of a system's name
GRID = "#e6e8ec"


def draw(
    systems: Mapping[str, Sequence[TrackScores]], targets: Sequence[str], metric: str, title: str, kind: str
) -> bytes:
    """A file of one kind (``"png"``, ``"svg"``, ``"pdf"``); the rest is as of `report.plot`.

    The first system's tracks are ranked by the first of the targets.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    first, judged = next(iter(systems.items()))
    chosen = _chosen(judged, targets[0], metric)
    across = min(len(targets), 3)
    down = math.ceil(len(targets) / across)
    boxes_in = ROW_IN * len(systems) + 0.1
    upper_in = down * boxes_in + (down - 1) * GAP_IN
    height = TOP_IN + upper_in + GAP_IN + 0.35 + CURVES_IN + BOTTOM_IN
    figure = Figure(figsize=(WIDTH_IN, height), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    longest = max(len(_shortened(name, NAME)) for name in systems)
    upper = figure.add_gridspec(
        down, across, left=max((0.35 + 0.085 * longest) / WIDTH_IN, LEFT), right=RIGHT, top=1 - TOP_IN / height,
        bottom=1 - (TOP_IN + upper_in) / height, wspace=0.24, hspace=GAP_IN / boxes_in,
    )  # fmt: skip
    for place, target in enumerate(targets):
        row, column = divmod(place, across)
        _draw_boxes(figure.add_subplot(upper[row, column]), systems, target, metric, names=column == 0)
    lower = figure.add_gridspec(
        1, max(1, len(chosen)), left=LEFT, right=RIGHT, top=(BOTTOM_IN + CURVES_IN) / height, bottom=BOTTOM_IN / height,
        wspace=0.08,
    )  # fmt: skip
    seen = [_curve(track, target, metric) for _, track in chosen for target in targets]
    ranges = [float(edge(curve)) for curve in seen if np.isfinite(curve).any() for edge in (np.nanmin, np.nanmax)]
    span = (max(min(ranges) - 1, LOWEST_DB - 10), min(max(ranges) + 1, HIGHEST_DB)) if ranges else (0.0, 1.0)
    for column, (rank, track) in enumerate(chosen):
        axes = figure.add_subplot(lower[column])
        _draw_curves(axes, track, targets, metric, span, first=column == 0)
        says = f"{rank}: {_shortened(track.track, 120 // len(chosen))}"
        axes.set_title(says, loc="left", fontsize=9, color=INK, pad=5, parse_math=False)
        value = _decibels(track.median(targets[0], metric))
        axes.text(1, 1.02, value, transform=axes.transAxes, fontsize=9, color=COLOURS.get(targets[0], INK),
                  ha="right", va="bottom", fontweight="bold")  # fmt: skip
    tracks = len({track.track for scores in systems.values() for track in scores})
    title = title or f"{metric} of {tracks} track{'s' * (tracks != 1)}"
    top, middle = 1 - 0.3 / height, (BOTTOM_IN + CURVES_IN + 0.5) / height
    figure.text(LEFT, top, _shortened(title, 70), fontsize=14, fontweight="bold", color=INK, va="center",
                parse_math=False)  # fmt: skip
    legend = f"{metric}, dB; a point is a track, the median of its seconds (below: dotted)"
    figure.text(RIGHT, top, legend, fontsize=9, color=FAINT, va="center", ha="right")
    says = f"{_shortened(first, 45)}, second by second"
    figure.text(LEFT, middle, says, fontsize=11, fontweight="bold", color=INK, va="center", parse_math=False)
    edge = RIGHT
    for target in reversed(targets):
        figure.text(edge, middle, target, fontsize=10, fontweight="bold", va="center", ha="right",
                    color=COLOURS.get(target, INK))  # fmt: skip
        edge -= (0.22 + 0.1 * len(target)) / WIDTH_IN
    buffer = io.BytesIO()
    # No date, so equal scores give equal files (an SVG's ids are drawn at random by matplotlib).
    stamps = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    figure.savefig(buffer, format=kind, metadata=stamps[kind])
    return buffer.getvalue()


def _chosen(scores: Sequence[TrackScores], target: str, metric: str) -> list[tuple[str, TrackScores]]:
    """The worst, the median and the best track, as far as there are that many."""
    ranked = [name for name, _ in worst(scores, target, metric, len(scores))]
    by_name = {track.track: track for track in scores}
    places = {"worst": 0, "median": (len(ranked) - 1) // 2, "best": len(ranked) - 1} if ranked else {}
    chosen: dict[str, str] = {}
    for rank, place in places.items():
        chosen.setdefault(ranked[place], rank)
    return [(rank, by_name[name]) for name, rank in chosen.items()]


def _draw_boxes(
    axes: Any, systems: Mapping[str, Sequence[TrackScores]], target: str, metric: str, *, names: bool
) -> None:
    colour = COLOURS.get(target, INK)
    everything = [track.median(target, metric) for scores in systems.values() for track in scores]
    finite = [value for value in everything if math.isfinite(value)] or [0.0, 1.0]
    low, high = max(min(finite), LOWEST_DB), min(max(finite), HIGHEST_DB)
    margin = 0.04 * max(high - low, 1.0)
    low, high = min(low, max(finite)) - margin, max(high, min(finite)) + margin
    for row, scores in enumerate(systems.values()):
        values = np.array([track.median(target, metric) for track in scores])
        values = np.sort(values[np.isfinite(values)])
        if not len(values):
            continue
        strong = row == 0
        quarter, middle, three = np.percentile(values, [25, 50, 75])
        if len(values) >= 5:  # fewer are no distribution
            reach = 1.5 * (three - quarter)
            inside = values[(values >= quarter - reach) & (values <= three + reach)]
            whiskers = np.clip([inside[0], inside[-1]], low, high)
            axes.plot(whiskers, [row, row], color=colour, linewidth=1.0, alpha=0.9 if strong else 0.5, zorder=2)
            axes.barh(row, three - quarter, left=quarter, height=0.56, color=colour, alpha=0.55 if strong else 0.22,
                      linewidth=0, zorder=3)  # fmt: skip
        axes.plot([middle, middle], [row - 0.28, row + 0.28], color=INK, linewidth=1.8, zorder=5)
        # Spread across the row in a fixed pattern (golden ratio), so that neighbours do not hide each other.
        heights = row + 0.4 * ((np.arange(len(values)) * 0.618034) % 1 - 0.5)
        for here, edge, marker in ((values < low, low + margin / 2, "<"), (values > high, high - margin / 2, ">")):
            axes.plot(np.full(here.sum(), edge), heights[here], linestyle="", marker=marker, markersize=4, color=INK,
                      markeredgewidth=0, zorder=6)  # fmt: skip
        within = (values >= low) & (values <= high)
        axes.plot(values[within], heights[within], linestyle="", marker="o", markersize=2.6, color=INK, alpha=0.45,
                  markeredgewidth=0, zorder=4)  # fmt: skip
        axes.annotate(_decibels(float(middle)), (1, row), xycoords=axes.get_yaxis_transform(), xytext=(7, 0),
                      textcoords="offset points", fontsize=8.5, va="center", annotation_clip=False,
                      color=INK if strong else FAINT, fontweight="bold" if strong else "normal")  # fmt: skip
    axes.set_xlim(low, high)
    axes.set_ylim(len(systems) - 0.5, -0.5)
    axes.set_yticks(range(len(systems)), [_shortened(name, NAME) for name in systems] if names else [])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
        label.set_color(INK)
        label.set_fontsize(9.5)
    if names:
        axes.get_yticklabels()[0].set_fontweight("bold")
    _quiet(axes)
    axes.grid(axis="x", color=GRID, linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    axes.set_title(target, loc="left", fontsize=10.5, fontweight="bold", color=colour, pad=5)
    axes.annotate("median", (1, 1), xycoords="axes fraction", xytext=(7, 0), textcoords="offset points", fontsize=7,
                  color=FAINT, va="bottom")  # fmt: skip


def _draw_curves(
    axes: Any, track: TrackScores, targets: Sequence[str], metric: str, span: tuple[float, float], *, first: bool
) -> None:
    curves = {target: _curve(track, target, metric) for target in targets}
    seconds = max([1, *map(len, curves.values())])
    window = 2 * (seconds // FEW) + 1
    for target, curve in curves.items():
        colour = COLOURS.get(target, INK)
        times, shown = np.arange(len(curve)) + 0.5, np.clip(curve, *span)
        if window == 1:
            # A second between two without a value has no line to either side: it needs a point.
            axes.plot(times, shown, color=colour, linewidth=1.6, marker="o", markersize=3.6, markeredgewidth=0)
        else:
            axes.plot(
                times, shown, color=colour, linestyle="", marker="o", markersize=1.8, markeredgewidth=0, alpha=0.4
            )
            axes.plot(times, np.clip(_running_median(curve, window), *span), color=colour, linewidth=1.6)
        value = track.median(target, metric)
        if math.isfinite(value):
            axes.axhline(value, color=colour, linewidth=0.8, linestyle=(0, (2, 3)), alpha=0.8)
    axes.set_xlim(0, seconds)
    axes.set_ylim(*span)
    _quiet(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    smooth = f"; line: running median of {window} s" if window > 1 else ""
    axes.set_xlabel(f"time, s{smooth}", fontsize=8.5, color=INK)
    if first:
        axes.set_ylabel(f"{metric}, dB", fontsize=9, color=INK)
    else:
        axes.tick_params(labelleft=False)


def _curve(track: TrackScores, target: str, metric: str) -> npt.NDArray[np.float64]:
    curve = np.asarray(track.frames.get(target, {}).get(metric, []), dtype=np.float64)
    return np.where(np.isfinite(curve), curve, np.nan)


def _running_median(curve: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    """nan where the second itself has no value."""
    half = window // 2
    smooth = np.full(len(curve), np.nan)
    for second in np.flatnonzero(np.isfinite(curve)):
        smooth[second] = np.nanmedian(curve[max(0, second - half) : second + half + 1])
    return smooth


def _quiet(axes: Any) -> None:
    axes.tick_params(axis="x", colors=INK, labelsize=8, length=2.5, width=0.6)
    axes.tick_params(axis="y", labelsize=8, length=0, labelcolor=INK)
    for side in axes.spines.values():
        side.set_visible(False)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3].rstrip() + "..."


def _decibels(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"
