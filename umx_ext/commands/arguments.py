"""The arguments of `umx-ext separate`: the one place where an option is named, explained, defaulted and checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from string import Formatter
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from umx_ext.commands.options import defaulted, option
from umx_ext.errors import UsageError

__all__ = ["DEFAULT_FILENAME", "Arguments"]

DEFAULT_FILENAME = "{model}/{track}/{stem}.{ext}"
FIELDS = ("model", "track", "stem", "ext")

_WHAT = Group("What to write", sort_key=1)
_HOW = Group("How it is written", sort_key=2)
_PART = Group("Which inputs, and which part of them", sort_key=3)
_MODEL = Group("The model and the filter", sort_key=4)
_RUN = Group("The run", sort_key=5)


@Parameter(name="*")
@dataclass(frozen=True)
class Arguments:
    """What `umx-ext separate` was told, as it was told; `check` says what cannot be."""

    # What to write
    out: Annotated[
        str | None,
        option("-o", "--out", group=_WHAT, metavar="DIR", help="Folder of the results [default: separated]."),
    ] = None
    filename: Annotated[
        str,
        defaulted(
            "--filename",
            group=_WHAT,
            metavar="TEMPLATE",
            help="Name of each file below DIR; fields {model} {track} {stem} {ext}.",
        ),
    ] = DEFAULT_FILENAME
    stems: Annotated[
        str | None,
        option(
            "--stems",
            group=_WHAT,
            metavar="A,B",
            help="Only these stems, such as vocals,drums [default: vocals,accompaniment, or all four of a model that "
            "has four].",
        ),
    ] = None
    two_stems: Annotated[
        bool,
        option(
            "--two-stems",
            group=_WHAT,
            help="Vocals and accompaniment, also with a model of four stems (takes no value).",
        ),
    ] = False
    karaoke: Annotated[
        bool,
        option(
            "--karaoke",
            group=_WHAT,
            help="One file: the accompaniment, as SONG.karaoke.EXT beside the song (or in DIR), with its title, artist "
            "and cover.",
        ),
    ] = False
    guide_db: Annotated[
        float | None,
        option(
            "--guide-db",
            group=_WHAT,
            metavar="DB",
            help="With --karaoke: keep the voice, this many dB down, to sing along with [default: none of it].",
        ),
    ] = None
    accompaniment: Annotated[
        Literal["mixture", "wiener"],
        defaulted(
            "--accompaniment",
            group=_WHAT,
            help="What the accompaniment is: mixture minus vocals, so that the two add up to the song exactly, or the "
            "filter's own estimate.",
        ),
    ] = "mixture"
    plot: Annotated[
        bool,
        option(
            "--plot",
            group=_WHAT,
            help="Also a picture (PNG): waveforms and spectrograms of mixture, vocals, accompaniment.",
        ),
    ] = False
    if_exists: Annotated[
        Literal["skip", "overwrite", "error"],
        defaulted("--if-exists", group=_WHAT, help="What to do about results that are already there."),
    ] = "skip"

    # How it is written
    format: Annotated[
        str | None,
        option("--format", group=_HOW, metavar="FORMAT", help="wav, flac, mp3, ogg, opus or m4a [default: wav]."),
    ] = None
    bits: Annotated[
        Literal["16", "24", "32f"] | None,
        option(
            "--bits", group=_HOW, help="Of wav and flac; 32f is float, wav only [default: the input's, at least 16]."
        ),
    ] = None
    mp3: Annotated[bool, option("--mp3", group=_HOW, help="Short for --format mp3.")] = False
    flac: Annotated[bool, option("--flac", group=_HOW, help="Short for --format flac.")] = False
    int24: Annotated[bool, option("--int24", group=_HOW, help="Short for --bits 24.")] = False
    float32: Annotated[bool, option("--float32", group=_HOW, help="Short for --bits 32f.")] = False
    mp3_bitrate: Annotated[
        int | None,
        option(
            "--mp3-bitrate",
            group=_HOW,
            metavar="KBPS",
            help="Kilobits a second of mp3, ogg, opus and m4a [default: 320; of opus and m4a 256].",
        ),
    ] = None
    clip_mode: Annotated[
        Literal["rescale", "clamp", "none"],
        defaulted(
            "--clip-mode",
            group=_HOW,
            help="Where a stem is louder than the format can hold: rescale makes all stems of the song quieter by one "
            "gain, which is reported; clamp cuts at full scale; none leaves it to the format.",
        ),
    ] = "rescale"
    rate: Annotated[
        str,
        defaulted("--rate", group=_HOW, metavar="HZ", help="Samples a second of the results, or keep the input's."),
    ] = "keep"
    channels: Annotated[
        str, defaulted("--channels", group=_HOW, metavar="N", help="1 (mean), 2 (front pair), or keep the input's.")
    ] = "keep"

    # Which inputs, and which part of them
    recursive: Annotated[
        bool, option("-r", "--recursive", group=_PART, help="Take folders: every audio file below them.")
    ] = False
    start: Annotated[
        float, defaulted("--start", group=_PART, metavar="S", help="Where in the song to start, seconds.")
    ] = 0.0
    duration: Annotated[
        float | None,
        option("--duration", group=_PART, metavar="S", help="How much of it to take, seconds [default: to the end]."),
    ] = None
    shard: Annotated[
        str | None,
        option(
            "--shard",
            group=_PART,
            metavar="I/N",
            help="Every Nth input from the Ith (1/4 ... 4/4), to share a list among machines [default: all].",
        ),
    ] = None

    # The model and the filter
    model: Annotated[
        str | None,
        option(
            "-n",
            "--model",
            group=_MODEL,
            metavar="MODEL",
            help="A name from `umx-ext models list`, or the path of a .safetensors file or a model folder [default: "
            "the model that is built in].",
        ),
    ] = None
    niter: Annotated[
        int | None,
        option(
            "--niter",
            group=_MODEL,
            metavar="N",
            help="Iterations of the Wiener filter; 0 is the plain mask [default: what suits the model].",
        ),
    ] = None
    wiener_win_len: Annotated[
        int,
        defaulted(
            "--wiener-win-len",
            group=_MODEL,
            metavar="N",
            help="Window of the Wiener filter, spectrogram frames.",
        ),
    ] = 300
    segment: Annotated[
        float | None,
        option(
            "--segment",
            group=_MODEL,
            metavar="S",
            help="Work in blocks of this many seconds; shorter needs less memory [default: 110].",
        ),
    ] = None
    overlap: Annotated[
        float | None,
        option(
            "--overlap",
            group=_MODEL,
            metavar="S",
            help="Seconds heard on both sides of a block and discarded [default: 8].",
        ),
    ] = None
    no_split: Annotated[
        bool,
        option("--no-split", group=_MODEL, help="The whole song in one block; memory grows with the song."),
    ] = False
    exact: Annotated[
        bool,
        option(
            "--exact",
            group=_MODEL,
            help="Networks in float32. Without it what goes into their products is rounded where that is faster: a "
            "BLSTM's on some processors to 12 bits, which is -65 dB of the song or less; all of it on NVIDIA GPUs to "
            "half precision.",
        ),
    ] = False
    accept_license: Annotated[
        bool, option("--accept-license", group=_MODEL, help="Agree to the terms of a model that asks; once a model.")
    ] = False

    # The run
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
        defaulted(
            "-j",
            "--jobs",
            group=_RUN,
            metavar="N",
            help="Songs at a time; each takes its own memory. 2 is a third faster for many short files.",
        ),
    ] = 1
    json: Annotated[
        bool, option("--json", group=_RUN, help="One line of JSON a song on standard output instead of text.")
    ] = False
    quiet: Annotated[bool, option("-q", "--quiet", group=_RUN, help="Say nothing but errors.")] = False
    verbose: Annotated[
        bool, option("-v", "--verbose", group=_RUN, help="Say more, on standard error, instead of progress bars.")
    ] = False
    no_progress: Annotated[
        bool, option("--no-progress", group=_RUN, help="No progress bars (there are none unless this is a terminal).")
    ] = False
    profile: Annotated[
        bool, option("--profile", group=_RUN, help="Where the time went, stage by stage, on standard error.")
    ] = False

    def check(self) -> None:
        """Look for what contradicts itself or lies out of range, before any work.

        Raises:
            UsageError: names the option and what it takes.
        """
        self._check_output()
        _at_least("--start", self.start, 0.0, "seconds")
        if self.duration is not None:
            _above("--duration", self.duration, 0.0, "seconds")
        if self.segment is not None:
            _above("--segment", self.segment, 0.0, "seconds")
        if self.overlap is not None:
            _at_least("--overlap", self.overlap, 0.0, "seconds")
        if self.no_split and (self.segment is not None or self.overlap is not None):
            raise UsageError("--no-split takes the song in one block: leave out --segment and --overlap")
        if self.niter is not None:
            _at_least("--niter", self.niter, 0, "iterations")
        _at_least("--wiener-win-len", self.wiener_win_len, 1, "frames")
        _at_least("-j", self.jobs, 1, "songs at a time")
        self.shard_of  # noqa: B018 - its own check
        if self.quiet and self.verbose:
            raise UsageError("-q and -v contradict each other: give one of them")

    def _check_output(self) -> None:
        if self.karaoke and (self.stems is not None or self.two_stems):
            raise UsageError("--karaoke writes one file, the accompaniment: leave out --stems and --two-stems")
        if self.karaoke and self.filename != DEFAULT_FILENAME:
            raise UsageError("--karaoke names its file SONG.karaoke.EXT: leave out --filename")
        if self.two_stems and self.stems is not None:
            raise UsageError("--two-stems is vocals and accompaniment: give it or --stems, not both")
        if self.guide_db is not None:
            if not self.karaoke:
                raise UsageError("--guide-db goes with --karaoke: it keeps a little of the voice in that one file")
            _at_least("--guide-db", self.guide_db, 0.0, "dB down")
        if (self.mp3 and self.flac) or (self.format and (self.mp3 or self.flac)):
            raise UsageError("--format, --mp3 and --flac name the format more than once: give one of them")
        if (self.int24 and self.float32) or (self.bits and (self.int24 or self.float32)):
            raise UsageError("--bits, --int24 and --float32 name the bits more than once: give one of them")
        if self.mp3_bitrate is not None:
            _at_least("--mp3-bitrate", self.mp3_bitrate, 8, "kilobits a second")
        self.output_rate_hz  # noqa: B018 - its own check
        self.output_channels  # noqa: B018 - its own check
        self._check_filename()

    def _check_filename(self) -> None:
        known = " ".join(f"{{{field}}}" for field in FIELDS)
        try:
            used = [field for _, field, _, _ in Formatter().parse(self.filename) if field is not None]
            self.filename.format(**dict.fromkeys(FIELDS, "x"))
        except (ValueError, KeyError, IndexError, AttributeError) as error:
            raise UsageError(f"--filename {self.filename} cannot be filled in; its fields are {known}") from error
        if "{ext}" not in self.filename and "ext" not in used:
            raise UsageError(
                f"--filename {self.filename} has no {{ext}}, so the files would have no suffix; add .{{ext}}"
            )
        if self.filename.startswith(("/", "\\")):
            raise UsageError(f"--filename {self.filename} is below the folder of --out: name that there, without the /")

    @property
    def chosen_format(self) -> str:
        """The key of `umx_ext.audio.FORMATS` that the results are written in."""
        return "mp3" if self.mp3 else "flac" if self.flac else (self.format or "wav").lower().lstrip(".")

    @property
    def chosen_bits(self) -> str | None:
        """The bits asked for; None: the input's."""
        return "24" if self.int24 else "32f" if self.float32 else self.bits

    @property
    def output_rate_hz(self) -> int | None:
        """None: the input's."""
        if self.rate == "keep":
            return None
        if not self.rate.isdecimal() or not 1000 <= int(self.rate) <= 768000:
            raise UsageError(f"--rate takes keep or a whole number of Hz, such as 44100, not {self.rate}")
        return int(self.rate)

    @property
    def output_channels(self) -> int | None:
        """None: the input's."""
        if self.channels == "keep":
            return None
        if self.channels not in ("1", "2"):
            raise UsageError(f"--channels takes keep, 1 or 2, not {self.channels}")
        return int(self.channels)

    @property
    def shard_of(self) -> tuple[int, int]:
        """(which, of how many), counted from 1."""
        if self.shard is None:
            return 1, 1
        which, slash, count = self.shard.partition("/")
        if not (slash and which.isdecimal() and count.isdecimal() and 1 <= int(which) <= int(count)):
            raise UsageError(f"--shard takes I/N with I from 1 to N, such as 2/4, not {self.shard}")
        return int(which), int(count)

    @property
    def wanted_stems(self) -> tuple[str, ...] | None:
        """What --stems names, each once; None where it is not given."""
        if self.stems is None:
            return None
        names = tuple(dict.fromkeys(name.strip() for name in self.stems.split(",") if name.strip()))
        if not names:
            raise UsageError("--stems takes names with commas between, such as --stems vocals,drums")
        return names


def _at_least(option: str, value: float, least: float, unit: str) -> None:
    if not (value >= least and math.isfinite(value)):
        raise UsageError(f"{option} takes {least:g} or more {unit}, not {value:g}")


def _above(option: str, value: float, least: float, unit: str) -> None:
    if not (value > least and math.isfinite(value)):
        raise UsageError(f"{option} takes more than {least:g} {unit}, not {value:g}")
