"""What finished mixes have in common: the figures that an automatic mix aims at, measured on songs whose vocals and
accompaniment are known.

A published one to set beside them: of 21 936 clips of 30 s of a pop corpus, separated by a network, the vocals lay
1.77 LU below the accompaniment and had a loudness range of 16.36 LU, on average. A range of that size is one of
*separated* vocals: what leaks into their pauses counts as very quiet singing.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umx_ext import levels
from umx_ext.corpora import targets
from umx_ext.errors import AudioError, UsageError
from umx_ext.mixing.masking import band_levels_db
from umx_ext.mixing.reverb import CENTRES_HZ
from umx_ext.stems import Stems

__all__ = [
    "FIGURES",
    "LEAST_ACTIVE",
    "RELIABLE_RANGE_S",
    "Corpus",
    "Figure",
    "MixLevels",
    "SilentStemError",
    "Statistic",
    "clips",
    "measure",
    "summarise",
]

RELIABLE_RANGE_S = 30.0  # EBU Tech 3342: a loudness range of less is unreliable
LEAST_ACTIVE = 0.3  # of a clip, in which the voice sounds
FORMATS = ("text", "md", "csv", "json")


class SilentStemError(AudioError):
    """There is no balance to measure: vocals or accompaniment are silent."""


@dataclass(frozen=True)
class MixLevels:
    """What was measured of one song, or of one clip of it. nan where there is nothing to measure.

    Attributes:
        name, start_s, duration_s: what was measured.
        relative_lu: integrated loudness of the vocals minus that of the accompaniment, over the same time, each gated.
        range_lu: loudness range of the vocals (EBU Tech 3342), without padding.
        active_range_lu: the same from windows of 3 s that are full of voice; see `levels.loudness_range_lu`.
        active_share: share of 50 ms frames in which the voice sounds.
        peaks_over_loudness_db: how far the vocals' peaks (95th percentile of the highest sample in active frames of
            50 ms) lie above their loud passages (95th percentile of short-term loudness).
        mix_lufs, mix_true_peak_db: of the sum.
        vocal_bands_db, accompaniment_bands_db: mean level in the octaves around `CENTRES_HZ` while the voice sounds,
            below the track's own loudness (dB minus LUFS); nan for octaves that the sample rate does not carry.
    """

    name: str
    start_s: float
    duration_s: float
    relative_lu: float
    range_lu: float
    active_range_lu: float
    active_share: float
    peaks_over_loudness_db: float
    mix_lufs: float
    mix_true_peak_db: float
    vocal_bands_db: tuple[float, ...]
    accompaniment_bands_db: tuple[float, ...]


@dataclass(frozen=True)
class Figure:
    """One row of a corpus's table: what is averaged, over which songs, and what was published."""

    says: str
    unit: str
    value: Callable[[MixLevels], float]
    counts: Callable[[MixLevels], bool] = lambda song: True
    published: float | None = None


def _is_long(song: MixLevels) -> bool:
    return song.duration_s >= RELIABLE_RANGE_S


def _octave(place: int) -> Figure:
    hz = CENTRES_HZ[place]
    at = f"{hz / 1000:g} kHz" if hz >= 1000 else f"{hz:g} Hz"
    return Figure(f"vocals, octave at {at} over their loudness", "dB", lambda song: song.vocal_bands_db[place])


FIGURES: dict[str, Figure] = {
    "relative_lu": Figure("vocals minus accompaniment", "LU", attrgetter("relative_lu"), published=-1.77),
    "range_lu": Figure(
        "loudness range of the vocals, 30 s or more", "LU", attrgetter("range_lu"), _is_long, published=16.36
    ),
    "short_range_lu": Figure(
        "loudness range of the vocals, less than 30 s (unreliable)",
        "LU",
        attrgetter("range_lu"),
        lambda song: not _is_long(song),
    ),
    "active_range_lu": Figure(
        "loudness range of the vocals, windows full of voice", "LU", attrgetter("active_range_lu")
    ),
    "active_share": Figure("share of the time with voice", "", attrgetter("active_share")),
    "peaks_over_loudness_db": Figure(
        "vocals' peaks above their loud passages", "dB", attrgetter("peaks_over_loudness_db")
    ),
    "mix_lufs": Figure("loudness of the mix", "LUFS", attrgetter("mix_lufs")),
    "mix_true_peak_db": Figure("true peak of the mix", "dBTP", attrgetter("mix_true_peak_db")),
    **{f"vocal_{hz:g}_hz_db": _octave(place) for place, hz in enumerate(CENTRES_HZ)},
}


@dataclass(frozen=True)
class Statistic:
    """Mean, standard deviation and median of one figure; nan where there is no value (of one value, no deviation).

    `published` is the mean that the published corpus had, None where none was printed.
    """

    name: str
    says: str
    unit: str
    mean: float
    sd: float
    median: float
    count: int
    published: float | None


@dataclass(frozen=True)
class Corpus:
    """What songs have in common.

    Attributes:
        statistics: by the names of `FIGURES`.
        songs: each song's or clip's own figures.
        notes: what must be known to read them; sentences.
    """

    statistics: dict[str, Statistic]
    songs: tuple[MixLevels, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: None where there is no value."""
        return {
            "statistics": [_jsonable(asdict(one)) for one in self.statistics.values()],
            "songs": [_jsonable(asdict(song)) for song in self.songs],
            "notes": list(self.notes),
        }

    def table(self, format: str = "text") -> str:
        """One row a figure.

        Args:
            format: ``"text"`` or ``"md"``, for reading, with the notes below; ``"csv"``: the figures alone;
                ``"json"``: everything.

        Raises:
            UsageError: another format.
        """
        if format not in FORMATS:
            raise UsageError(f"table format is {format!r}; known: {', '.join(FORMATS)}")
        if format == "json":
            return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False) + "\n"
        if format == "csv":
            buffer = io.StringIO()
            writer = csv.writer(buffer, lineterminator="\n")
            writer.writerow(Statistic.__dataclass_fields__)
            writer.writerows(_jsonable(asdict(one)).values() for one in self.statistics.values())
            return buffer.getvalue()
        columns, rows = self.columns(), self.rows()
        if format == "md":
            lines = [f"| {' | '.join(row)} |" for row in [columns, ["---"] + ["---:"] * 5, *rows]]
            return "\n".join(["", *lines, *(f"\n{note}" for note in self.notes)]).lstrip("\n") + "\n"
        widths = [max(len(row[at]) for row in [columns, *rows]) for at in range(len(columns))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in [columns, *rows]
        ]
        return "\n".join([*lines, *([""] if self.notes else []), *self.notes]) + "\n"

    def columns(self) -> list[str]:
        return ["figure", "mean", "sd", "median", "songs", "published mean"]

    def rows(self) -> list[list[str]]:
        """The cells of a table for people."""
        return [
            [
                one.says + (f", {one.unit}" if one.unit else ""),
                *(_shown(value) for value in (one.mean, one.sd, one.median)),
                str(one.count),
                _shown(math.nan if one.published is None else one.published),
            ]
            for one in self.statistics.values()
        ]


def measure(stems: Stems, name: str = "", start_s: float = 0.0) -> MixLevels:
    """The figures of one song.

    Args:
        stems: vocals and accompaniment, or vocals, drums, bass and other, `(channels, samples)` of one or two channels;
            one channel is taken as both. The mix is their sum, not `stems.mixture`, which a lossy file has changed.
        name, start_s: what the result is to say about where it comes from.

    Raises:
        SilentStemError: nothing of the vocals or of the accompaniment passes the gates of BS.1770.
        AudioError: other stems, more than two channels, NaN or infinity.
    """
    pair = targets(stems)
    rate = stems.sample_rate
    vocals, backing = (levels.as_stereo(pair[part]) for part in ("vocals", "accompaniment"))
    loud, below = (levels.measure(waveform, rate) for waveform in (vocals, backing))
    for part, found in (("vocals", loud), ("accompaniment", below)):
        if found.integrated_lufs == -math.inf:
            where = f" of {name}" if name else ""
            raise SilentStemError(f"the {part}{where} stay below -70 LUFS: there is no balance to measure")
    mix = levels.measure(vocals + backing, rate)
    active = levels.active_frames(vocals, rate)
    return MixLevels(
        name,
        start_s,
        vocals.shape[1] / rate,
        relative_lu=loud.integrated_lufs - below.integrated_lufs,
        range_lu=loud.loudness_range_lu,
        active_range_lu=levels.loudness_range_lu(vocals, rate, windows="active"),
        active_share=float(active.double().mean()),
        peaks_over_loudness_db=_peaks_over_loudness_db(vocals, rate, active),
        mix_lufs=mix.integrated_lufs,
        mix_true_peak_db=mix.true_peak_db,
        vocal_bands_db=_bands_db(vocals, rate, active, loud.integrated_lufs),
        accompaniment_bands_db=_bands_db(backing, rate, active, below.integrated_lufs),
    )


def clips(stems: Stems, length_s: float) -> list[tuple[float, Stems]]:
    """A song in clips of `length_s` seconds, one after the other, as (first second, stems).

    Left out are the end that is too short for a clip, and clips in which the voice sounds less than 30 % of the time.

    Raises:
        UsageError: clips of less than 0.4 s, of which there is no loudness.
        AudioError: other stems than those of `measure`.
    """
    if not (math.isfinite(length_s) and length_s >= levels.MOMENTARY_S):
        raise UsageError(f"expected clips of at least {levels.MOMENTARY_S} s, got {length_s}")
    rate = stems.sample_rate
    pair = {part: waveform for part, waveform in targets(stems).items() if part in ("vocals", "accompaniment")}
    length = round(length_s * rate)
    found = []
    for first in range(0, pair["vocals"].shape[-1] - length + 1, length):
        cut = Stems({part: waveform[..., first : first + length] for part, waveform in pair.items()}, rate)
        if levels.active_fraction(cut["vocals"], rate) >= LEAST_ACTIVE:
            found.append((first / rate, cut))
    return found


def summarise(songs: Iterable[MixLevels], notes: Sequence[str] = ()) -> Corpus:
    """Mean, standard deviation and median of each figure over songs.

    Raises:
        UsageError: no songs.
    """
    songs = tuple(songs)
    if not songs:
        raise UsageError("expected at least one song, got none; there is nothing to average")
    found = {name: _statistic(name, figure, songs) for name, figure in FIGURES.items()}
    notes = list(notes)
    if found["short_range_lu"].count:
        short = sum(not _is_long(song) for song in songs)
        notes.append(
            f"{short} of {len(songs)} are shorter than {RELIABLE_RANGE_S:.0f} s, which a loudness range needs: theirs "
            "are smaller than a whole song's and are not to be compared with the published one."
        )
    notes.append("Reverberation cannot be read from a finished vocal: its settings are not among these figures.")
    return Corpus(found, songs, tuple(notes))


def _statistic(name: str, figure: Figure, songs: Sequence[MixLevels]) -> Statistic:
    values = [figure.value(song) for song in songs if figure.counts(song)]
    values = [value for value in values if math.isfinite(value)]
    mean, median = (how(values) if values else math.nan for how in (statistics.fmean, statistics.median))
    sd = statistics.stdev(values) if len(values) > 1 else math.nan
    return Statistic(name, figure.says, figure.unit, mean, sd, median, len(values), figure.published)


def _bands_db(waveform: Tensor, sample_rate: int, active: Tensor, lufs: float) -> tuple[float, ...]:
    if not active.any():
        return (math.nan,) * len(CENTRES_HZ)
    found = band_levels_db(waveform.detach().cpu(), sample_rate, active) - lufs
    return (*found.tolist(), *[math.nan] * (len(CENTRES_HZ) - len(found)))


def _peaks_over_loudness_db(vocals: Tensor, sample_rate: int, active: Tensor) -> float:
    loud = levels.short_term_lufs(vocals, sample_rate)
    loud = loud[loud >= levels.ABSOLUTE_GATE_LUFS]
    if not len(loud) or not active.any():
        return math.nan
    edges = np.floor(np.arange(len(active)) * (levels.ACTIVE_FRAME_S * sample_rate) + 0.5).astype(int)
    highest = np.maximum.reduceat(vocals.detach().abs().amax(0).double().cpu().numpy(), edges)
    return float(20 * torch.from_numpy(highest)[active].quantile(0.95).log10() - loud.quantile(0.95))


def _jsonable(fields: dict[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: plain(value) for name, value in fields.items()}


def _shown(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"
