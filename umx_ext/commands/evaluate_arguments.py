"""The arguments of `umx-ext evaluate`: the one place where an option is named, explained, defaulted and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from umx_ext.commands.options import defaulted, option
from umx_ext.errors import UsageError

__all__ = ["Arguments", "TableKind"]

TableKind = Literal["md", "csv", "json"]

_WHAT = Group("What is scored", sort_key=1)
_HOW = Group("How it is scored", sort_key=2)
_OUT = Group("What comes out", sort_key=3)
_RUN = Group("The run", sort_key=4)


@Parameter(name="*")
@dataclass(frozen=True)
class Arguments:
    """What `umx-ext evaluate` was told, as it was told."""

    root: Annotated[
        str | None,
        option(
            "--root",
            group=_WHAT,
            metavar="DIR",
            help="The corpus: a MUSDB18 (.stem.mp4), a MUSDB18-HQ (wav), its 7-second sample, or a folder of "
            "<track>/<stem>.wav.",
        ),
    ] = None
    model: Annotated[
        tuple[str, ...],
        option(
            "-n",
            "--model",
            group=_WHAT,
            metavar="MODEL",
            help="A name from `umx-ext models list`, or the path of a .safetensors file or a model folder; may be "
            "given several times [default: the model that is built in].",
        ),
    ] = ()
    estimates: Annotated[
        tuple[str, ...],
        option(
            "--estimates",
            group=_WHAT,
            metavar="DIR",
            help="Score files instead: DIR/<track>/<stem>.wav or DIR/<subset>/<track>/<stem>.wav, of any format that "
            "can be read. Some of the stems will do, from two on for ISR, SIR and SAR. May be given several times.",
        ),
    ] = ()
    subset: Annotated[
        Literal["test", "train", "valid"],
        defaulted("--subset", group=_WHAT, help="Which songs; valid is musdb's split of the training songs."),
    ] = "test"
    tracks: Annotated[
        str, defaulted("--tracks", group=_WHAT, metavar="GLOB", help="Only songs whose name fits, such as 'A*'.")
    ] = "*"
    shard: Annotated[
        str | None,
        option(
            "--shard",
            group=_WHAT,
            metavar="I/N",
            help="Every Nth song from the Ith (1/4 ... 4/4), to share them among machines; then merge [default: all].",
        ),
    ] = None
    accept_license: Annotated[
        bool, option("--accept-license", group=_WHAT, help="Agree to the terms of a model that asks; once a model.")
    ] = False

    metrics: Annotated[
        str,
        defaulted(
            "--metrics",
            group=_HOW,
            metavar="A,B",
            help="Of SDR, ISR, SIR, SAR (BSS Eval v4, medians over seconds), SI-SDR and uSDR (whole song). Without "
            "ISR, SIR and SAR it takes a fraction of the time.",
        ),
    ] = "SDR,ISR,SIR,SAR,SI-SDR,uSDR"
    baselines: Annotated[
        str | None,
        option(
            "--baselines",
            group=_HOW,
            metavar="A,B",
            help="More rows to calibrate the table than mixture/2 and MWF, which are always there: of mixture/4, IRM1, "
            "IRM2, IBM and MWF norbert; without names, all of them.",
        ),
    ] = None
    engine: Annotated[
        Literal["own", "museval"],
        defaulted("--engine", group=_HOW, help="Who computes BSS Eval: this package, or museval itself (slow)."),
    ] = "own"

    evaldir: Annotated[
        str,
        defaulted(
            "--evaldir",
            group=_OUT,
            metavar="DIR",
            help="Scores go to DIR/<system>/<subset>/<track>.json, which museval reads.",
        ),
    ] = "scores"
    if_exists: Annotated[
        Literal["skip", "overwrite"],
        defaulted(
            "--if-exists",
            group=_OUT,
            help="What to do about scores that are there: skip takes them, so a run that was stopped goes on.",
        ),
    ] = "skip"
    table: Annotated[TableKind, defaulted("--table", group=_OUT, help="The table on standard output.")] = "md"
    plot: Annotated[
        str | None,
        option(
            "--plot",
            group=_OUT,
            metavar="FILE",
            help="Also a picture (.png, .svg, .pdf): tracks as boxes, some of them second by second.",
        ),
    ] = None
    compare: Annotated[
        tuple[str, ...],
        option(
            "--compare",
            group=_OUT,
            metavar="EVALDIR",
            consume_multiple=True,
            help="Also rows of scores from other runs or tools: folders of a system, or of systems. Without --root "
            "only these.",
        ),
    ] = ()

    device: Annotated[
        str,
        defaulted(
            "-d",
            "--device",
            group=_RUN,
            metavar="DEVICE",
            env_var="UMX_EXT_DEVICE",
            help="auto (cuda, else mps, else cpu), cpu, cuda, cuda:1, mps.",
        ),
    ] = "auto"
    jobs: Annotated[
        int,
        defaulted("-j", "--jobs", group=_RUN, metavar="N", help="Songs at a time, each in a process of its own."),
    ] = 1
    dask: Annotated[
        str | None,
        option(
            "--dask", group=_RUN, metavar="ADDRESS", help="Share the songs among the workers of this Dask scheduler."
        ),
    ] = None
    json: Annotated[
        bool,
        option(
            "--json",
            group=_RUN,
            help="One line of JSON for each song and system on standard output, and one for the table.",
        ),
    ] = False
    quiet: Annotated[bool, option("-q", "--quiet", group=_RUN, help="The table and errors, nothing else.")] = False
    verbose: Annotated[
        bool, option("-v", "--verbose", group=_RUN, help="A line for each song instead of a progress bar.")
    ] = False

    def check(self) -> None:
        """Look for what contradicts itself, before any work.

        Raises:
            UsageError: names the option and what it takes.
        """
        self.shard_of  # noqa: B018 - its own check
        if self.root is None and not self.compare:
            raise UsageError("--root names the folder of the corpus: umx-ext evaluate --root DIR")
        if self.jobs < 1:
            raise UsageError(f"-j takes 1 or more songs at a time, not {self.jobs}")
        if self.dask is not None and self.jobs > 1:
            raise UsageError("--dask shares out the songs by itself: leave out -j")
        if self.quiet and self.verbose:
            raise UsageError("-q and -v contradict each other: give one of them")

    @property
    def shard_of(self) -> tuple[int, int]:
        """(which, of how many), counted from 1."""
        if self.shard is None:
            return 1, 1
        which, slash, count = self.shard.partition("/")
        if not (slash and which.isdecimal() and count.isdecimal() and 1 <= int(which) <= int(count)):
            raise UsageError(f"--shard takes I/N with I from 1 to N, such as 2/4, not {self.shard}")
        return int(which), int(count)
