"""The arguments of `umx-ext mix`: the one place where an option is named, explained, defaulted and checked."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from umx_ext.codecs.formats import FORMATS
from umx_ext.commands.options import defaulted, option
from umx_ext.errors import OutputError, UsageError

__all__ = ["AUTO", "MOST_SHIFT_S", "Arguments", "Outputs"]

AUTO = "auto"
MOST_SHIFT_S = 10.0  # that --offset auto looks for
BLIND = ("preset", "vocal_db", "reverb_db", "bpm", "lufs")  # what a chain file has decided already

_WHAT = Group("What to write", sort_key=1)
_HOW = Group("How it is mixed", sort_key=2)
_WHEN = Group("When the take begins", sort_key=3)
_RUN = Group("The run", sort_key=4)


@dataclass(frozen=True)
class Outputs:
    """The files of one call; None for those that nobody asked for."""

    mix: Path
    chain: Path | None
    report: Path | None
    plot: Path | None

    def named(self) -> dict[str, Path]:
        """Those that there are, by what they hold."""
        files = {"mix": self.mix, "chain": self.chain, "report": self.report, "plot": self.plot}
        return {name: path for name, path in files.items() if path is not None}


@Parameter(name="*")
@dataclass(frozen=True)
class Arguments:
    """What `umx-ext mix` was told, as it was told; `check` says what cannot be."""

    # What to write
    out: Annotated[
        str | None,
        option(
            "-o",
            "--out",
            group=_WHAT,
            metavar="FILE",
            help="The mix; its suffix chooses the format [default: TAKE.mix.wav beside the take].",
        ),
    ] = None
    format: Annotated[
        str | None,
        option(
            "--format",
            group=_WHAT,
            metavar="FORMAT",
            help="wav, flac, mp3, ogg, opus or m4a [default: by the suffix of FILE].",
        ),
    ] = None
    bits: Annotated[
        Literal["16", "24", "32f"] | None,
        option(
            "--bits", group=_WHAT, help="Of wav and flac; 32f is float, wav only [default: the backing's, at least 16]."
        ),
    ] = None
    save_chain: Annotated[
        str | None,
        option("--save-chain", group=_WHAT, metavar="FILE", help="Also every effect with its numbers, JSON to edit."),
    ] = None
    report: Annotated[
        str | None,
        option("--report", group=_WHAT, metavar="FILE", help="Also what was measured and decided, and why, JSON."),
    ] = None
    plot: Annotated[
        str | None,
        option(
            "--plot",
            group=_WHAT,
            metavar="FILE",
            help="Also a picture (PNG): loudness and gain reduction over time, spectra before and after.",
        ),
    ] = None
    if_exists: Annotated[
        Literal["skip", "overwrite", "error"],
        defaulted("--if-exists", group=_WHAT, help="What to do about results that are already there."),
    ] = "skip"

    # How it is mixed
    preset: Annotated[
        str | None,
        option(
            "--preset",
            group=_HOW,
            metavar="NAME",
            help="studio: what an engineer would accept. poster: the published numbers as they are [default: studio].",
        ),
    ] = None
    vocal_db: Annotated[
        float | None,
        option(
            "--vocal-db",
            group=_HOW,
            metavar="DB",
            help="Loudness of the voice relative to the backing; below 0 is quieter [default: the preset's, -1.77].",
        ),
    ] = None
    reverb_db: Annotated[
        float | None,
        option(
            "--reverb-db",
            group=_HOW,
            metavar="DB",
            help="Add reverberation, this loud relative to the voice: -12 is a room, -20 a hint [default: the "
            "preset's, none of studio and -12 of poster].",
        ),
    ] = None
    bpm: Annotated[
        float | None,
        option(
            "--bpm",
            group=_HOW,
            metavar="BPM",
            help="Beats a minute, for the reverberation: faster songs get a shorter one [default: heard from the "
            "backing].",
        ),
    ] = None
    lufs: Annotated[
        float | None,
        option(
            "--lufs",
            group=_HOW,
            metavar="LUFS",
            help="Loudness of the whole mix, such as -14 [default: the backing stays as loud as it is].",
        ),
    ] = None
    true_peak: Annotated[
        float | None,
        option(
            "--true-peak",
            group=_HOW,
            metavar="DBTP",
            help="No peak above this, dB true peak; it wins over --lufs [default: -1].",
        ),
    ] = None
    chain: Annotated[
        str | None,
        option(
            "--chain",
            group=_HOW,
            metavar="FILE",
            help="Do what this file of --save-chain says, instead of deciding anew.",
        ),
    ] = None

    # When the take begins
    offset: Annotated[
        str | None,
        option(
            "--offset",
            group=_WHEN,
            metavar="MS|auto",
            help="Start the take this many milliseconds later (below 0: earlier), or auto: where its singing fits "
            f"that of --song, within {MOST_SHIFT_S:g} s [default: 0; auto with --song].",
        ),
    ] = None
    song: Annotated[
        str | None,
        option(
            "--song",
            group=_WHEN,
            metavar="ORIGINAL",
            help="The original song, whose voice is separated to find when the take begins.",
        ),
    ] = None

    # The run
    device: Annotated[
        str,
        defaulted(
            "-d",
            "--device",
            group=_RUN,
            metavar="DEVICE",
            env_var="UMX_EXT_DEVICE",
            help="For --song: auto (cuda, else mps, else cpu), cpu, cuda, cuda:1, mps.",
        ),
    ] = "auto"
    json: Annotated[
        bool, option("--json", group=_RUN, help="One line of JSON on standard output instead of text.")
    ] = False
    quiet: Annotated[bool, option("-q", "--quiet", group=_RUN, help="Say nothing but errors.")] = False
    verbose: Annotated[
        bool, option("-v", "--verbose", group=_RUN, help="Say more, on standard error, instead of a progress bar.")
    ] = False
    no_progress: Annotated[
        bool, option("--no-progress", group=_RUN, help="No progress bar (there is none unless this is a terminal).")
    ] = False

    def check(self) -> None:
        """Look for what contradicts itself or lies out of range, before any work.

        Raises:
            UsageError: names the option and what it takes.
        """
        for flag, value, low, high, unit in (
            ("--vocal-db", self.vocal_db, -60, 60, "dB"),
            ("--reverb-db", self.reverb_db, -60, 12, "dB"),
            ("--bpm", self.bpm, 20, 400, "beats a minute"),
            ("--lufs", self.lufs, -70, 0, "LUFS"),
            ("--true-peak", self.true_peak, -60, 0, "dBTP"),
        ):
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise UsageError(f"{flag} takes {low} to {high} {unit}, not {value:g}")
        if self.chain is not None:
            given = [f"--{name.replace('_', '-')}" for name in BLIND if getattr(self, name) is not None]
            if given:
                raise UsageError(f"--chain has decided already what {', '.join(given)} would: leave one of them out")
        self.offset_ms  # noqa: B018 - its own check
        if self.song is not None and not self.auto:
            raise UsageError("--song is for --offset auto: leave it out, or give no milliseconds")
        if self.plot is not None and Path(self.plot).suffix.lower() != ".png":
            raise UsageError(f"--plot takes a file ending in .png, not {self.plot}")
        if self.quiet and self.verbose:
            raise UsageError("-q and -v contradict each other: give one of them")

    @property
    def auto(self) -> bool:
        """Whether the offset is to be found."""
        return self.offset == AUTO or (self.offset is None and self.song is not None)

    @property
    def offset_ms(self) -> float:
        """The offset as a number; 0 where it is to be found."""
        if self.offset is None or self.offset == AUTO:
            return 0.0
        try:
            value = float(self.offset)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UsageError(f"--offset takes milliseconds or auto, not {self.offset}")
        return value

    def outputs(self, take: str) -> Outputs:
        """The files to write for a take.

        Raises:
            UsageError: a suffix and a format at odds, or no format that is known.
        """
        if self.out is None:
            suffix = (self.format or "wav").lower().lstrip(".")
            mix = Path(take).with_name(f"{Path(take).stem}.mix.{suffix}")
        else:
            mix = Path(self.out)
        extra = (None if name is None else Path(name) for name in (self.save_chain, self.report, self.plot))
        return Outputs(mix, *extra)

    def check_files(self, take: str, backing: str, outputs: Outputs) -> None:
        """See that no two files to be written, and no input, are one file, and that folders can be where they must be.

        Raises:
            UsageError: two outputs have one name, or an output is an input.
            OutputError: a file stands where an output needs a folder.
        """
        inputs = {_key(path): path for path in (take, backing, self.song, self.chain) if path is not None}
        owners: dict[str, str] = {}
        for name, path in outputs.named().items():
            key = _key(path)
            if key in inputs:
                raise UsageError(f"{path} is an input and would be written over: give the {name} another name")
            if key in owners:
                raise UsageError(f"{path} would be both the {owners[key]} and the {name}: give one another name")
            owners[key] = name
            if path.is_dir():
                raise OutputError(f"{path} is a folder; give the {name} the name of a file")
            _check_folder(path)

    def chosen_format(self, mix: Path) -> str:
        """The key of `FORMATS` that the mix is written in.

        Raises:
            UsageError: no format of that name, a suffix of another, or bits that it does not have.
        """
        by_suffix = {kind.suffix: name for name, kind in FORMATS.items()}.get(mix.suffix.lower())
        named = None if self.format is None else self.format.lower().lstrip(".")
        if named is not None and named not in FORMATS:
            raise UsageError(f"no format named {self.format}; known: {', '.join(FORMATS)}")
        if named is not None and by_suffix not in (None, named):
            raise UsageError(f"{mix} and --format {named} contradict each other: give one of them")
        chosen = named or by_suffix
        if chosen is None:
            raise UsageError(
                f"{mix} has no suffix of a format: end it in {', '.join(kind.suffix for kind in FORMATS.values())}"
            )
        known = FORMATS[chosen].bits
        if self.bits is not None and self.bits not in known:
            takes = f"takes {' or '.join(known)}" if known else "has no bits to choose; leave them out"
            raise UsageError(f"{chosen} {takes}, not {self.bits}" if known else f"{chosen} {takes}")
        return chosen


def _key(path: str | Path) -> str:
    return os.path.normcase(os.path.realpath(path))


def _check_folder(path: Path) -> None:
    for parent in path.absolute().parents:
        if os.path.lexists(parent):
            if not parent.is_dir():
                raise OutputError(f"{path} cannot be written: {parent} is a file, not a folder; give another name")
            return
