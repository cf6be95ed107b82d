"""How far a mix is from a reference mix of the same song: loudness, spectrum, panning and dynamics.

The features are those that automatic mixing is compared by: M. Martinez Ramirez et al., "Automatic music mixing with
deep learning and out-of-domain data", ISMIR 2022, as computed by automix-toolkit (C. Steinmetz et al., "Deep learning
for automatic mixing", ISMIR 2022 tutorial). The panning spectrum is G. Tzanetakis, R. Jones and K. McNally's ("Stereo
panning features for classifying recording production style", ISMIR 2007); level, spread and crest are Z. Ma et al.'s
("Intelligent multitrack dynamic range compression", JAES 63, 2015).

Two modes:

- ``"strict"``: what is in dB is compared in dB. Dividing one dB value by another means nothing: peaks near 0 dBFS make
  the quotient explode, and the same step looks smaller in a quiet song. Frequencies and panning are compared by their
  relative difference.
- ``"compat"``: the toolkit's formulas with their quirks, so that published tables can be set beside ours.

Either way a feature is a series over time, smoothed by a running mean over 40 frames before the two mixes are compared.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from umx_ext import levels
from umx_ext.errors import AudioError, UsageError
from umx_ext.mixing import descriptors
from umx_ext.mixing.descriptors import LEVEL_FLOOR_DB, UNITS, Arrays

__all__ = ["DISCLAIMER", "MODES", "FeatureReport", "Group", "Member", "Row", "compare", "features", "panning_spectrum"]

MODES = ("strict", "compat")
FORMATS = ("text", "md", "csv")
DISCLAIMER = (
    "A large distance from one human mix is not a bad mix: another engineer's mix of the song would be far away too."
)

RUNNING_FRAMES = 40
PANNING_FLOOR = 0.01  # of a range from 0 to 1: nearly mono is no reason to divide by nearly 0
LEVELS = ("lufs", "peak", "rms")  # these have a floor; the others do not exist in silence


@dataclass(frozen=True)
class Member:
    """One feature of two mixes.

    Attributes:
        name: a key of `UNITS` in its group.
        mix, reference: means over the compared frames, in `unit`; nan where there is no frame.
        unit: of these; "" for numbers without one.
        error: mean absolute difference of the running means in `error_unit`; where that is "", the mean of
            ``|reference - mix| / |reference|``. nan where no frame is left to compare.
        error_unit: "LU", "dB" or "".
    """

    name: str
    mix: float
    reference: float
    unit: str
    error: float
    error_unit: str


@dataclass(frozen=True)
class Group:
    """Features that belong together.

    Attributes:
        members: by name.
        mean_db: mean error of the members in dB or LU; nan where there is none.
        mean_mape: mean of the relative errors; nan where there is none. In ``"compat"`` of the spectral group the three
            contrasts count as one: what the toolkit's present code averages.
        notebook_mape: ``"compat"``, spectral: the mean of seven members, each contrast counted and flatness taken as a
            plain ratio: what the toolkit's notebook published. None elsewhere.
    """

    members: dict[str, Member]
    mean_db: float
    mean_mape: float
    notebook_mape: float | None = None


class Row(NamedTuple):
    """A line of a report's table: a member, or a mean, which has no values of its own. None where there is none."""

    group: str
    feature: str
    mix: float | None
    reference: float | None
    unit: str
    error: float | None
    error_unit: str


@dataclass(frozen=True)
class FeatureReport:
    """What `compare` found.

    Attributes:
        mode: one of `MODES`.
        sample_rate: Hz.
        start_s, duration_s: the part of the reference that was compared.
        groups: loudness, spectral, panning, dynamics.
        notes: what must be known to read the figures; sentences.
    """

    mode: str
    sample_rate: int
    start_s: float
    duration_s: float
    groups: dict[str, Group]
    notes: tuple[str, ...] = ()

    @property
    def mean_db(self) -> float:
        """Mean of the groups' `mean_db`; nan in ``"compat"``."""
        return _mean([group.mean_db for group in self.groups.values()])

    @property
    def mean_mape(self) -> float:
        """Mean of the groups' `mean_mape`."""
        return _mean([group.mean_mape for group in self.groups.values()])

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: None where there is no value."""
        groups: dict[str, Any] = {}
        for name, group in self.groups.items():
            members = {
                member.name: {
                    "mix": _finite(member.mix),
                    "reference": _finite(member.reference),
                    "unit": member.unit,
                    "error": _finite(member.error),
                    "error_unit": member.error_unit,
                }
                for member in group.members.values()
            }
            means = {"mean_db": _finite(group.mean_db), "mean_mape": _finite(group.mean_mape)}
            groups[name] = {"members": members, **means}
            if group.notebook_mape is not None:
                groups[name]["notebook_mape"] = _finite(group.notebook_mape)
        return {
            "mode": self.mode,
            "sample_rate": self.sample_rate,
            "start_s": round(self.start_s, 6),
            "duration_s": round(self.duration_s, 6),
            "groups": groups,
            "mean_db": _finite(self.mean_db),
            "mean_mape": _finite(self.mean_mape),
            "notes": list(self.notes),
            "disclaimer": DISCLAIMER,
        }

    def table(self, format: str = "text") -> str:
        """One row a feature and one a mean, group by group.

        Args:
            format: ``"text"`` or ``"md"``, for reading, with notes and disclaimer below; ``"csv"``: the figures alone.

        Raises:
            UsageError: another format.
        """
        if format not in FORMATS:
            raise UsageError(f"table format is {format!r}; known: {', '.join(FORMATS)}")
        if format == "csv":
            buffer = io.StringIO()
            writer = csv.writer(buffer, lineterminator="\n")
            writer.writerow(Row._fields)
            writer.writerows(self.rows())
            return buffer.getvalue()
        cells = [["group", "feature", "mix", "reference", "difference"]]
        for row in self.rows():
            values = [_shown(value, row.unit) for value in (row.mix, row.reference)]
            if row.feature.startswith("mean"):
                values = ["", ""]
            cells.append([row.group, row.feature, *values, self._difference(row.error, row.error_unit)])
        below = [*self.notes, DISCLAIMER]
        if format == "md":
            cells.insert(1, ["---", "---", "---:", "---:", "---:"])
            lines = [f"| {' | '.join(row)} |" for row in cells]
            return "\n".join([*lines, "", "\n\n".join(below)]) + "\n"
        widths = [max(len(row[column]) for row in cells) for column in range(5)]
        lines = [
            "  ".join([*map(str.ljust, row[:2], widths[:2]), *map(str.rjust, row[2:], widths[2:])]) for row in cells
        ]
        return "\n".join([*lines, "", *below]) + "\n"

    def rows(self) -> list[Row]:
        """The figures: those of the members of each group, then their means."""
        rows: list[Row] = []
        for name, group in self.groups.items():
            for one in group.members.values():
                values = _finite(one.mix), _finite(one.reference), one.unit, _finite(one.error), one.error_unit
                rows.append(Row(name, one.name, *values))
            relative = "mean" if group.notebook_mape is None else "mean of five"
            for label, mean, unit in ((relative, group.mean_mape, ""), ("mean, dB", group.mean_db, "dB")):
                if not math.isnan(mean):
                    rows.append(Row(name, label, None, None, "", mean, unit))
            if group.notebook_mape is not None:
                rows.append(Row(name, "mean of seven", None, None, "", _finite(group.notebook_mape), ""))
        return rows

    def _difference(self, error: float | None, unit: str) -> str:
        if error is None:
            return "-"
        if unit:
            return f"{error:.2f} {unit}"
        return f"{error:.4f}" if self.mode == "compat" else f"{100 * error:.1f} %"


def features(mix: Tensor, sample_rate: int, *, mode: str = "strict") -> dict[str, dict[str, Tensor]]:
    """The features of one mix, frame by frame, not trimmed and not smoothed.

    Args:
        mix: `(channels, samples)`, mono or stereo, at least 0.4 s and 4096 samples; mono is taken as both channels.
        sample_rate: Hz, 8000 or more.
        mode: one of `MODES`.

    Returns:
        float64 by group and member, the names of `UNITS`. Loudness: `(frames,)`, 400 ms every 200 ms. The others are of
        frames of 4096 samples every 1024 of the mix scaled to a peak of -1 dBFS: spectral `(channels, frames)`, panning
        and dynamics `(frames,)`. ``"strict"``: the units of `UNITS`; levels are at least -70 dB, and what silence does
        not have is nan. ``"compat"``: the numbers the toolkit's percentages are of (1 added to frequencies, one minus
        dB for flatness, level and spread, a quotient of two dB values for crest), and ``flatness_ratio``.

    Raises:
        AudioError: more than two channels, silent, too short, NaN or infinity. UsageError: an unknown mode.
    """
    stereo = _checked(mix, sample_rate, mode, "mix")
    return {
        group: {name: torch.from_numpy(values) for name, values in members.items()}
        for group, members in descriptors.measure(stereo, sample_rate, mode).items()
    }


def panning_spectrum(mix: Tensor, sample_rate: int) -> Tensor:
    """Where each bin is, frame by frame: -1 left, 0 centre (or silent), 1 right.

    ``(1 - phi) sign(phi_L - phi_R)`` with ``phi = 2 |L R| / (|L|^2 + |R|^2)``, ``phi_L = |L R| / |L|^2`` and the same
    for R (Tzanetakis et al. 2007).

    Returns:
        float32 `(bins, frames)`, 4096/1024, not centred. Arguments and errors are those of `features`.
    """
    stereo = _checked(mix, sample_rate, "strict", "mix")
    return torch.from_numpy(descriptors.panning_spectrum(stereo).T.copy())


def compare(mix: Tensor, reference: Tensor, sample_rate: int, mode: str = "strict") -> FeatureReport:
    """How far a mix is from a reference.

    The reference loses what is more than 45 dB below its loudest frame at its beginning and its end; the mix is cut at
    the same samples, and the longer of the two at the end of the shorter. A mono mix is taken as both channels.

    In ``"strict"`` a frame counts where it is audible in either mix for the levels, which are at least -70 dB, and in
    both for what silence does not have. In ``"compat"`` frames that measure -inf in either are left out.

    Args:
        mix, reference: `(channels, samples)`, mono or stereo, aligned in time.
        sample_rate: of both, Hz, 8000 or more.
        mode: one of `MODES`; see the module.

    Raises:
        AudioError: more than two channels, silent (peak below -100 dBFS), NaN or infinity, less than 0.4 s or 4096
            samples in common. UsageError: an unknown mode.
    """
    notes = [
        f"The {name} is mono: taken as the same sound in both channels."
        for name, waveform in (("mix", mix), ("reference", reference))
        if waveform.ndim == 2 and waveform.shape[0] == 1
    ]
    theirs = _checked(reference, sample_rate, mode, "reference")
    ours = _checked(mix, sample_rate, mode, "mix")
    start, end = descriptors.audible_span(theirs)
    last = min(end, ours.shape[1])
    if last < end:
        seconds = (end - max(last, start)) / sample_rate
        notes.append(f"The mix ends {seconds:.2f} s before the reference does: compared as far as it goes.")
    elif ours.shape[1] > theirs.shape[1]:
        seconds = (ours.shape[1] - theirs.shape[1]) / sample_rate
        notes.append(f"The mix is {seconds:.2f} s longer than the reference: its end was left out.")
    least = descriptors.least_samples(sample_rate)
    if last - start < least:
        raise AudioError(
            f"the mix and the reference have {max(last - start, 0) / sample_rate:.2f} s of sound in common; at least "
            f"{least / sample_rate:.2f} s are needed, so give longer files that begin at the same time"
        )
    both = ours[:, start:last], theirs[:, start:last]
    if np.abs(both[0]).max() < levels.SILENT_PEAK:
        raise AudioError("the mix is silent where the reference sounds; give one that has sound there")
    with ThreadPoolExecutor(2) as pool:  # numpy lets go of the interpreter's lock
        measured = list(pool.map(lambda stereo: descriptors.measure(stereo, sample_rate, mode), both))
    groups = {group: _group(group, measured[0][group], measured[1][group], mode) for group in UNITS}
    missing = [name for group in groups.values() for name, one in group.members.items() if math.isnan(one.error)]
    if missing:
        notes.append(f"No frame has what it takes to compare {', '.join(missing)}.")
    return FeatureReport(mode, sample_rate, start / sample_rate, (last - start) / sample_rate, groups, tuple(notes))


# --------------------------------------------------------------------------------------------------------- comparing


def _group(group: str, ours: Arrays, theirs: Arrays, mode: str) -> Group:
    members = {name: _member(group, name, ours, theirs, mode) for name in ours}
    if mode == "strict":
        in_db = [one.error for one in members.values() if one.error_unit]
        ratios = [one.error for one in members.values() if not one.error_unit]
        return Group(members, _mean(in_db), _mean(ratios))
    errors = {name: one.error for name, one in members.items()}
    if group != "spectral":
        return Group(members, math.nan, _mean(list(errors.values())))
    return Group(members, math.nan, *_spectral_means(errors))


def _spectral_means(errors: Mapping[str, float]) -> tuple[float, float]:
    """The toolkit's two spectral means of `"compat"` errors: its present code's of five members, the contrasts merged,
    and its notebook's of seven, flatness taken as a plain ratio."""
    contrasts = [errors[f"contrast_{band}"] for band in ("low", "mid", "high")]
    others = [errors[name] for name in ("centroid", "bandwidth", "rolloff")]
    five = _mean([*others, errors["flatness"], _mean(contrasts)])
    return five, _mean([*others, errors["flatness_ratio"], *contrasts])


def _member(group: str, name: str, ours: Arrays, theirs: Arrays, mode: str) -> Member:
    unit, error_unit = UNITS[group][name] if mode == "strict" else ("", "")
    floor = PANNING_FLOOR if mode == "strict" and group == "panning" else 0.0
    found = []
    for x, y in zip(np.atleast_2d(ours[name]), np.atleast_2d(theirs[name]), strict=True):  # channels, or all at once
        if mode == "strict" and name in LEVELS:
            keep = (x > LEVEL_FLOOR_DB) | (y > LEVEL_FLOOR_DB)
        else:
            keep = np.isfinite(x) & np.isfinite(y)
        if mode == "compat" and group == "panning" and (theirs["total"].any() or ours["total"].any()):
            # The toolkit's own guard: it would divide by a frame without any width. Two mono mixes are just equal.
            keep &= theirs["total"] != 0
        if keep.any():
            x, y = x[keep], y[keep]
            found.append((x.mean(), y.mean(), _distance(x, y, error_unit, floor)))
    mix, reference, error = np.mean(found, axis=0).tolist() if found else (math.nan,) * 3
    return Member(name, mix, reference, unit, error, error_unit)


def _distance(ours: np.ndarray, theirs: np.ndarray, unit: str, floor: float) -> float:
    ours, theirs = _running_mean(ours), _running_mean(theirs)
    difference = np.abs(theirs - ours)
    if not unit:
        difference /= np.maximum(np.abs(theirs), max(floor, np.finfo(np.float64).eps))
    return float(difference.mean())


def _running_mean(frames: np.ndarray) -> np.ndarray:
    """(frames,) -> means of 40 neighbours; of all where there are fewer."""
    if len(frames) <= RUNNING_FRAMES:
        return frames.mean(keepdims=True)
    total = np.concatenate([[0.0], np.cumsum(frames)])
    return (total[RUNNING_FRAMES:] - total[:-RUNNING_FRAMES]) / RUNNING_FRAMES


# ---------------------------------------------------------------------------------------------------------- checking


def _checked(waveform: Tensor, sample_rate: int, mode: str, name: str) -> np.ndarray:
    """The waveform as contiguous float32 (2, samples)."""
    if mode not in MODES:
        raise UsageError(f"mode is {mode!r}; known: {', '.join(MODES)}")
    if waveform.ndim != 2 or waveform.shape[0] not in (1, 2):
        raise AudioError(
            f"expected (channels, samples) with 1 or 2 channels for the {name}, got {tuple(waveform.shape)}; mix it "
            "down to stereo, and from soundfile, pass waveform.T"
        )
    if sample_rate < 8000 or int(sample_rate) != sample_rate:
        raise AudioError(f"the {name} has {sample_rate} Hz; features need a whole number from 8000 on, so resample it")
    least = descriptors.least_samples(sample_rate)
    if waveform.shape[1] < least:
        raise AudioError(
            f"the {name} has {waveform.shape[1] / sample_rate:.3f} s; at least {least / sample_rate:.3f} s are needed"
        )
    samples = levels.as_stereo(waveform).detach().to("cpu", torch.float32).contiguous().numpy()
    peak = float(np.abs(samples).max())
    if not math.isfinite(peak):
        raise AudioError(f"the {name} holds NaN or infinity; repair it before it is compared")
    if peak < levels.SILENT_PEAK:
        raise AudioError(f"the {name} is silent (its peak is below -100 dBFS); give one that has sound")
    return samples


def _mean(values: Sequence[float]) -> float:
    """Of those that exist; nan where none does."""
    there = [value for value in values if not math.isnan(value)]
    return sum(there) / len(there) if there else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    digits = 0 if unit == "Hz" else 1 if unit else 3
    return f"{value:.{digits}f} {unit}".rstrip()
