"""The scores of one song: computed by museval's protocol, kept as frames, read and written as museval's JSON.

museval's protocol for MUSDB18 makes two evaluations of a song. One has the estimates of vocals, drums, bass and other
that there are, the other vocals and accompaniment. Vocals are in both; where there is an accompaniment, the vocals that
are reported come from the second.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from umx_ext import __version__
from umx_ext.codecs.formats import shown
from umx_ext.corpora import targets
from umx_ext.errors import AudioError, MissingExtraError, UsageError
from umx_ext.evaluation.sdr import frame_sdr
from umx_ext.stems import Stems

if TYPE_CHECKING:
    import pandas

__all__ = [
    "FRAME_METRICS",
    "METRICS",
    "SONG_METRICS",
    "Row",
    "Rows",
    "TrackScores",
    "check_metrics",
    "evaluate",
    "frame",
    "score",
]

FRAME_METRICS = ("SDR", "ISR", "SIR", "SAR")
SONG_METRICS = ("SI-SDR", "uSDR")
METRICS = (*FRAME_METRICS, *SONG_METRICS)

VOCALS, ACCOMPANIMENT, REST = "vocals", "accompaniment", ("drums", "bass", "other")

_DECIMALS = 5  # museval's own: what is read back is what was computed
_SCHEMA_OF = "0.4.1"  # the version of museval whose protocol and JSON this is

Frames = npt.NDArray[np.float64]


class Row(NamedTuple):
    """One value: dB, of one second (`second` counts from 0) or, with `second` None, of the whole song."""

    track: str
    stem: str
    metric: str
    second: float | None
    value: float


class Rows(list[Row]):
    """A list of `Row` that can become a table of pandas."""

    def frame(self) -> pandas.DataFrame:
        """As `umx_ext.evaluation.scores.frame`."""
        return frame(self)


@dataclass
class TrackScores:
    """The scores of one song.

    Attributes:
        track: its name.
        frames: target -> metric ("SDR", "ISR", "SIR", "SAR") -> `(frames,)` float64, dB a second; nan where museval has
            none: a source is silent in that second, or the value is infinite.
        song: target -> metric ("SI-SDR", "uSDR") -> dB of the whole song.
        subset: of the corpus, such as ``"test"``; may be empty.
        notes: what was done to the estimates or left out, in words.
        made_from: a hash of what was scored; empty in a file of museval's.
        engine: ``"own"`` or ``"museval"``.
        corpus: as of `umx_ext.corpora.Song`; empty where it is not known.
    """

    track: str
    frames: dict[str, dict[str, Frames]]
    song: dict[str, dict[str, float]] = field(default_factory=dict)
    subset: str = ""
    notes: list[str] = field(default_factory=list)
    made_from: str = ""
    engine: str = "own"
    corpus: str = ""

    @property
    def targets(self) -> tuple[str, ...]:
        """The stems that are scored, in the order of the evaluation."""
        return tuple(self.frames)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What was computed, in the order of `METRICS`: each metric that some target has."""
        has = {metric for part in (self.frames, self.song) for values in part.values() for metric in values}
        return tuple(metric for metric in METRICS if metric in has)

    def median(self, target: str, metric: str) -> float:
        """Median over the seconds that have a value, or the value of the whole song; nan where there is none."""
        if metric in SONG_METRICS:
            return self.song.get(target, {}).get(metric, math.nan)
        values = self.frames.get(target, {}).get(metric, np.empty(0))
        values = values[np.isfinite(values)]
        return float(np.median(values)) if len(values) else math.nan

    def rows(self) -> Rows:
        """Every value, a row each: targets in their order, the metrics of each, the seconds of each."""
        rows = Rows()
        for target in self.frames:
            for metric, values in self.frames[target].items():
                rows += [Row(self.track, target, metric, float(second), float(v)) for second, v in enumerate(values)]
            rows += [Row(self.track, target, metric, None, v) for metric, v in self.song.get(target, {}).items()]
        return rows

    def to_json(self) -> str:
        """The scores in museval's schema, which `museval.EvalStore` and `MethodStore` read.

        Metrics of frames that were not computed are NaN there, since museval's readers want all four. What the schema
        has no place for is under keys that it allows and museval ignores: ``song`` of a target, and ``umx_ext``.
        """
        targets = []
        for target, metrics in self.frames.items():
            count = max((len(values) for values in metrics.values()), default=0)
            entry: dict[str, Any] = {
                "name": target,
                "frames": [
                    {
                        "time": float(second),
                        "duration": 1.0,
                        "metrics": {
                            metric: _number(metrics[metric][second]) if metric in metrics else math.nan
                            for metric in FRAME_METRICS
                        },
                    }
                    for second in range(count)
                ],
            }
            if self.song.get(target):
                entry["song"] = {metric: _number(value) for metric, value in self.song[target].items()}
            targets.append(entry)
        ours = {
            "version": __version__,
            "engine": self.engine,
            "corpus": self.corpus,
            "computed": {target: list(metrics) for target, metrics in self.frames.items()},
            "made_from": self.made_from,
            "notes": self.notes,
        }
        fields = {"targets": targets, "museval_version": _SCHEMA_OF, "umx_ext": ours}
        return json.dumps(fields, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, track: str, subset: str = "") -> TrackScores:
        """Scores from the text of a JSON file, ours or museval's.

        Raises:
            UsageError: this is not museval's JSON.
        """
        try:
            fields = json.loads(text)
            ours = fields.get("umx_ext", {})
            frames: dict[str, dict[str, Frames]] = {}
            song: dict[str, dict[str, float]] = {}
            for entry in fields["targets"]:
                name = str(entry["name"])
                values = [frame["metrics"] for frame in entry["frames"]]
                computed = ours.get("computed", {}).get(name)
                if computed is None:
                    computed = [metric for metric in FRAME_METRICS if any(metric in value for value in values)]
                frames[name] = {
                    metric: _stored([_float(value.get(metric)) for value in values])
                    for metric in FRAME_METRICS
                    if metric in computed
                }
                if "song" in entry:
                    song[name] = {str(metric): _float(value) for metric, value in entry["song"].items()}
            return cls(
                track,
                frames,
                song,
                subset,
                [str(note) for note in ours.get("notes", [])],
                str(ours.get("made_from", "")),
                str(ours.get("engine", "museval")),
                str(ours.get("corpus", "")),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"the scores of {shown(track)} are not in museval's format ({type(error).__name__}: {error}); "
                "remove that file, or score the song again"
            ) from error


def _float(value: Any) -> float:
    """A number of a JSON file; null stands for nan in some."""
    return math.nan if value is None else float(value)


def _number(value: float) -> float:
    return round(float(value), _DECIMALS) if math.isfinite(value) else math.nan


def _stored(values: npt.ArrayLike) -> Frames:
    """Values as museval stores them: five decimals, infinities as nan."""
    array: Frames = np.asarray(values, dtype=np.float64).round(_DECIMALS)
    array[~np.isfinite(array)] = np.nan
    return array


# ------------------------------------------------------------------------------------------------------------ compute


def check_metrics(metrics: Iterable[str]) -> tuple[str, ...]:
    """The metrics, each once and in the order of `METRICS`; case does not matter.

    Raises:
        UsageError: none, or one that there is not.
    """
    known = {metric.lower(): metric for metric in METRICS}
    asked = [metric.strip() for metric in metrics]
    unknown = [metric for metric in asked if metric.lower() not in known]
    if unknown or not asked:
        raise UsageError(f"no metric named {', '.join(unknown) or '(none given)'}; known: {', '.join(METRICS)}")
    chosen = {known[metric.lower()] for metric in asked}
    return tuple(metric for metric in METRICS if metric in chosen)


def score(
    references: Mapping[str, Tensor],
    estimates: Mapping[str, Tensor],
    sample_rate: int,
    *,
    track: str,
    metrics: Sequence[str] = METRICS,
    engine: str = "own",
) -> TrackScores:
    """Score the estimates of one song by museval's protocol.

    Args:
        references: target -> `(channels, samples)`; any of vocals, drums, bass, other, accompaniment, the latter as
            the sum of the three before it, as `umx_ext.corpora.targets` gives them.
        estimates: target -> `(channels, samples)`. Those without reference are left out; shorter ones are padded with
            zeros and longer ones cut, as museval does, with a note.
        sample_rate: of all, Hz; a frame is one second.
        track: the song's name.
        metrics: any of `METRICS`. The frames' SDR, which costs next to nothing, is always among the result; distortion
            filters are only computed where ISR, SIR or SAR is asked for.
        engine: ``"own"``, or ``"museval"`` for museval itself.

    Returns:
        dB with five decimals as museval stores them, infinities as nan.

    Raises:
        AudioError: nothing to compare, or a number of channels that differs from the reference's.
        UsageError: no such metric or engine.
        MissingExtraError: museval is asked for and not installed.
    """
    asked = check_metrics(metrics)
    if engine not in ("own", "museval"):
        raise UsageError(f"no engine named {engine!r}; known: own, museval")
    scores = TrackScores(track, {}, {}, engine=engine)
    names = [name for name in references if name in estimates]
    if not names:
        raise AudioError(
            f"{track}: no estimate has a reference: there are references of {', '.join(references)}, and estimates of "
            f"{', '.join(estimates) or 'nothing'}"
        )
    references = {name: references[name].detach().cpu() for name in names}
    fitted = {name: _fitted(references[name], estimates[name].detach().cpu(), name, scores) for name in names}
    paired = VOCALS in names and ACCOMPANIMENT in names
    first = [name for name in names if not (paired and name == ACCOMPANIMENT)]
    needs_filters = any(metric in asked for metric in FRAME_METRICS[1:])
    if len(first) == 1 and not paired and needs_filters:
        scores.notes.append(
            f"ISR, SIR and SAR need two estimates and there is only {first[0]}: they are left out, SDR stands"
        )
    evaluations = [first] if len(first) > 1 or not paired else []
    if paired:
        evaluations.append([VOCALS, ACCOMPANIMENT])
    for number, group in enumerate(evaluations):
        truths, guesses = [references[name] for name in group], [fitted[name] for name in group]
        filters = (needs_filters or engine == "museval") and len(group) > 1
        values = _frames(truths, guesses, sample_rate, engine) if filters else _sdr_frames(truths, guesses, sample_rate)
        for row, name in enumerate(group):
            if name == VOCALS and paired and number < len(evaluations) - 1:
                continue
            scores.frames[name] = {
                metric: _stored(values[metric][row])
                for metric in FRAME_METRICS
                if metric in values and (metric in asked or metric == "SDR")
            }
    for name in names:
        if not bool(references[name].any()):
            scores.notes.append(f"the reference of {name} is silent throughout, so no second can be scored")
    _whole_song(scores, references, fitted, [metric for metric in asked if metric in SONG_METRICS])
    return scores


def _fitted(reference: Tensor, estimate: Tensor, name: str, scores: TrackScores) -> Tensor:
    """The estimate at the reference's length."""
    if reference.ndim != 2 or estimate.ndim != 2:
        raise AudioError(
            f"{scores.track}: expected {name} as (channels, samples), got a reference {tuple(reference.shape)} and an "
            f"estimate {tuple(estimate.shape)}"
        )
    if reference.shape[0] != estimate.shape[0]:
        raise AudioError(
            f"{scores.track}: the estimate of {name} has {_channels(estimate)}, its reference {_channels(reference)}; "
            "give estimates with the reference's channels"
        )
    samples, found = reference.shape[1], estimate.shape[1]
    if found > samples:
        scores.notes.append(f"the estimate of {name} is {found - samples} samples longer than its reference: cut")
        return estimate[:, :samples]
    if found < samples:
        scores.notes.append(
            f"the estimate of {name} is {samples - found} samples shorter than its reference: padded with zeros"
        )
        return torch.nn.functional.pad(estimate, (0, samples - found))
    return estimate


def _channels(waveform: Tensor) -> str:
    count = waveform.shape[0]
    return "1 channel (mono)" if count == 1 else f"{count} channels"


def _sdr_frames(truths: Sequence[Tensor], guesses: Sequence[Tensor], sample_rate: int) -> dict[str, Frames]:
    """SDR alone, for which no filter is needed. A second in which any source is silent has no value for any."""
    window = min(sample_rate, truths[0].shape[-1])  # museval's rule: of less than a second, one frame
    sdr = np.stack([frame_sdr(truth, guess, window).numpy() for truth, guess in zip(truths, guesses, strict=True)])
    sdr[:, np.isnan(sdr).any(axis=0)] = np.nan
    return {"SDR": sdr}


def _frames(truths: Sequence[Tensor], guesses: Sequence[Tensor], sample_rate: int, engine: str) -> dict[str, Frames]:
    from umx_ext.evaluation import bsseval

    # (targets, samples, channels), as views: two copies of a song are worth saving.
    return bsseval.evaluate([truth.mT for truth in truths], [guess.mT for guess in guesses], sample_rate, engine=engine)


def _whole_song(
    scores: TrackScores, references: Mapping[str, Tensor], estimates: Mapping[str, Tensor], asked: Sequence[str]
) -> None:
    if not asked:
        return
    from umx_ext.evaluation.metrics import si_sdr, song_sdr

    measures: dict[str, Callable[[Tensor, Tensor], float]] = {"SI-SDR": si_sdr, "uSDR": song_sdr}
    for name in scores.frames:
        scores.song[name] = {metric: _number(measures[metric](references[name], estimates[name])) for metric in asked}


def evaluate(
    reference: Mapping[str, Tensor],
    estimate: Mapping[str, Tensor],
    sample_rate: int | None = None,
    *,
    track: str = "",
    metrics: Sequence[str] = METRICS,
    engine: str = "own",
) -> Rows:
    """Score one song: the values of every stem, metric and second.

    Args:
        reference: the true `Stems`, or stem -> `(channels, samples)`. Of MUSDB18's four stems the accompaniment is
            made.
        estimate: the estimated ones; shorter ones are padded and longer ones cut.
        sample_rate: Hz, where neither is `Stems`, which know their own.
        track: a name for the rows.
        metrics, engine: as of `score`.

    Returns:
        A list of `Row`; its `.frame()` is a table of pandas.

    Raises:
        AudioError: rates or channels differ, or nothing is to be compared.
        UsageError: no rate is known, or no such metric or engine.

    >>> import torch, umx_ext
    >>> voice, band = torch.randn(2, 2, 44100)
    >>> rows = umx_ext.evaluate({"vocals": voice}, {"vocals": voice + 0.1 * band}, 44100, metrics=["SDR"])
    >>> rows[0].stem, rows[0].metric, rows[0].second, round(rows[0].value)
    ('vocals', 'SDR', 0.0, 20)
    """
    rates = {stems.sample_rate for stems in (reference, estimate) if isinstance(stems, Stems)}
    if sample_rate is not None:
        rates.add(sample_rate)
    if not rates:
        raise UsageError("a waveform never travels without its rate; pass sample_rate= in Hz")
    if len(rates) > 1:
        raise AudioError(
            f"expected one sample rate, got {', '.join(f'{rate} Hz' for rate in sorted(rates))}; resample the estimates"
        )
    rate = rates.pop()
    stems = reference if isinstance(reference, Stems) else Stems(reference, rate)
    truth = targets(stems) if set(stems) == {VOCALS, *REST} else dict(stems)
    return score(truth, estimate, rate, track=track, metrics=metrics, engine=engine).rows()


def frame(rows: Iterable[Row]) -> pandas.DataFrame:
    """Rows as a table of pandas with the columns track, stem, metric, second (nan: the whole song) and value.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise MissingExtraError("rows as a table need pandas; run: pip install pandas") from error
    table = pandas.DataFrame(list(rows), columns=list(Row._fields))
    return table.astype({"second": "float64", "value": "float64"})
