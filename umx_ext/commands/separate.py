"""`umx-ext separate`: plan, load the model, hand the songs to workers, say what became of each.

The songs are done in worker threads, also when there is only one at a time: a signal then always lands in the main
thread, which does nothing but wait, and never in the middle of a library's work.
"""

from __future__ import annotations

import difflib
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from umx_ext.commands import interrupts
from umx_ext.commands.arguments import Arguments
from umx_ext.commands.fetching import Downloads, ask_for_acceptance
from umx_ext.commands.plan import (
    DEFAULT_OUT,
    PLOT_STEM,
    PLOT_SUFFIX,
    Job,
    Naming,
    Source,
    check_collisions,
    find_sources,
    model_label,
    standard_input,
    take_shard,
)
from umx_ext.commands.report import as_line, as_record, listed
from umx_ext.commands.terminal import Terminal
from umx_ext.errors import OutputError, UmxError, UsageError
from umx_ext.separation.pretrained import DEFAULT_MODEL, MODELS
from umx_ext.separation.stages import Stages, stage

if TYPE_CHECKING:
    from umx_ext.commands.song import Files, Recipe, Report
    from umx_ext.separation.separator import Separator

__all__ = ["app", "separate"]

VOCALS, ACCOMPANIMENT = "vocals", "accompaniment"
MOST_NAMED = 10  # in a summary

EXAMPLE = """\
umx-ext separate song.mp3                vocals and accompaniment, as
                                         separated/<model>/song/<stem>.wav
umx-ext separate --karaoke --mp3 *.mp3   song.karaoke.mp3 beside each song
umx-ext separate -r albums --flac        every song below the folder albums
umx-ext separate - < song.ogg            from standard input
"""

app = App(
    name="separate",
    help_prologue=EXAMPLE,
    usage="Usage: umx-ext separate INPUT... [OPTIONS]",
    help_format="plaintext",
    version_flags=(),
)
app["--help"].show = False


@app.default
def separate(
    inputs: Annotated[
        list[str],
        Parameter(
            name="INPUT",
            allow_leading_hyphen=True,  # for -, standard input; what is an option is sorted out below
            help="Songs: files of any common audio or video format, folders (with -r), patterns, or - for standard "
            "input. A name that begins with a dash: ./-name, or after --.",
        ),
    ],
    /,
    *,
    arguments: Arguments = Arguments(),  # noqa: B008 - frozen
) -> int:
    """Take songs apart.

    The results have the rate, the channels and exactly the samples of the song, and add up to it. Each song is one
    line on standard output: how far the voice came down, where the files are, how long it took.
    """
    _reject_unknown_options(inputs)
    arguments.check()
    terminal = Terminal(
        quiet=arguments.quiet or arguments.json,
        verbose=arguments.verbose,
        progress=not (arguments.no_progress or arguments.quiet),
    )
    with terminal:
        run = _Run(arguments, terminal)
        return _profiled(run, inputs) if arguments.profile else run.do(inputs)


def _profiled(run: _Run, inputs: Sequence[str]) -> int:
    """Do it, and say where the time went: seconds of all threads together, and their shares."""
    began = time.perf_counter()
    with Stages() as stages:
        code = run.do(inputs)
    wall_s, total_s = time.perf_counter() - began, max(sum(stages.seconds.values()), 1e-9)
    rows = [["stage", "seconds", "share"]]
    rows += [[name, f"{seconds:.3f}", f"{100 * seconds / total_s:.1f} %"] for name, seconds in stages.seconds.items()]
    rows += [["all threads", f"{total_s:.3f}", ""], ["from start to end", f"{wall_s:.3f}", ""]]
    run.terminal.table(rows)
    return code


def _reject_unknown_options(inputs: Sequence[str]) -> None:
    for word in inputs:
        if word.startswith("-") and word != "-":
            known = [name for argument in app.assemble_argument_collection() for name in argument.names]
            close = difflib.get_close_matches(word.partition("=")[0], known, n=1)
            hint = f"did you mean {close[0]}?" if close else "see umx-ext separate --help"
            raise UsageError(f"there is no option {word}; {hint}")


def check_stems(wanted: Sequence[str], has: Sequence[str], model: str) -> None:
    """Raise `UsageError` where a model that has networks for `has` cannot give a stem."""
    known = (*has, ACCOMPANIMENT) if VOCALS in has else tuple(has)
    unknown = [stem for stem in wanted if stem not in known]
    if unknown:
        raise UsageError(f"model {model} has no stem {', '.join(unknown)}; it gives {', '.join(known)}")


class _Run:
    """One call of the command."""

    def __init__(self, arguments: Arguments, terminal: Terminal) -> None:
        self.arguments = arguments
        self.terminal = terminal
        self.failed: dict[str, int] = {}  # exit codes; an error would keep what was on its way alive
        self.succeeded = 0
        self.cancelled = threading.Event()

    def do(self, words: Sequence[str]) -> int:
        arguments = self.arguments
        # What can be refused without torch is refused before its import, which takes longer than all of this.
        naming = self._naming()
        sources, missing = find_sources(
            words,
            recursive=arguments.recursive,
            leave_out=(Path(DEFAULT_OUT), naming.out, naming.out / naming.model),
            karaoke=arguments.karaoke,
        )
        check_collisions(sources, naming, self._wanted() or (VOCALS, ACCOMPANIMENT), plot=arguments.plot)
        self._check_registered()
        for word, error in missing.items():
            self._fail(word, error)
        which, count = arguments.shard_of
        shard = take_shard(sources, which, count)
        if shard:
            with standard_input(shard) as paths:
                self._separate(shard, paths, naming)
        elif sources:
            self.terminal.result(
                f"nothing to do: there is no input for shard {which}/{count}, only {len(sources)} in all"
            )
        return self._summary()

    def _naming(self) -> Naming:
        arguments = self.arguments
        return Naming(
            out=Path(arguments.out or (DEFAULT_OUT if not arguments.karaoke else ".")),
            filename=arguments.filename,
            model=model_label(arguments.model or DEFAULT_MODEL),
            ext=arguments.chosen_format,
            karaoke=arguments.karaoke,
            beside=arguments.out is None,
        )

    def _check_registered(self) -> None:
        """What the registry knows of the model without loading it: its stems and its terms."""
        arguments = self.arguments
        name = arguments.model or DEFAULT_MODEL
        entry = MODELS.get(name)
        if entry is None:
            return
        check_stems(self._wanted() or (), entry.stems, name)
        if entry.needs_license_acceptance:
            ask_for_acceptance(name, accepted=arguments.accept_license)

    def _wanted(self) -> tuple[str, ...] | None:
        """The stems that the call names; None: the model's."""
        if self.arguments.karaoke:
            return (ACCOMPANIMENT,)
        return (VOCALS, ACCOMPANIMENT) if self.arguments.two_stems else self.arguments.wanted_stems

    def _separate(self, sources: Sequence[Source], paths: Mapping[Source, Path], naming: Naming) -> None:
        with stage("import torch"):
            from umx_ext.commands.song import Files, check_format, take_apart

        check_format(self.arguments.chosen_format, self.arguments.chosen_bits, self.arguments.mp3_bitrate)
        if self.arguments.plot:
            from umx_ext.plot import require_matplotlib

            require_matplotlib()
        with stage("load the model"):
            separator = self._load()
        interrupts.heed()  # torch is imported by now
        recipe = self._recipe(separator)
        check_collisions(sources, naming, recipe.stems, plot=self.arguments.plot)
        jobs = self._jobs(sources, paths, naming, recipe.stems)
        if not jobs:
            return
        active: list[Files] = []

        def work(job: Job) -> Report:
            files = Files(self.cancelled)
            active.append(files)
            bar = self.terminal.bar(job.source.shown, None)
            try:
                return take_apart(
                    job, separator, recipe, files, progress=lambda done, total: self.terminal.advance(bar, done, total)
                )
            finally:
                self.terminal.end(bar)
                active.remove(files)

        executor = ThreadPoolExecutor(min(self.arguments.jobs, len(jobs)), thread_name_prefix="song")
        try:
            futures = {executor.submit(copy_context().run, work, job): job for job in jobs}
            for future in as_completed(futures):
                self._settle(futures.pop(future), future)
        except BaseException:
            self.cancelled.set()
            for files in tuple(active):
                files.discard()
            executor.shutdown(wait=False, cancel_futures=True)
            raise
        executor.shutdown()

    def _load(self) -> Separator:
        from umx_ext.commands.song import out_of_memory_as_ours
        from umx_ext.separation.pretrained import load

        arguments = self.arguments
        name = arguments.model or DEFAULT_MODEL
        wanted = self._wanted()
        # Of a registered model only the networks that are needed are fetched and loaded.
        stems = None
        if wanted is not None and name in MODELS:
            needed = {VOCALS if stem == ACCOMPANIMENT else stem for stem in wanted}
            stems = tuple(stem for stem in MODELS[name].stems if stem in needed)
        with Downloads(self.terminal) as progress, out_of_memory_as_ours(name, "give -d cpu"):
            separator = load(name, stems=stems, device=arguments.device, progress=progress)
        self.terminal.detail(f"model {name} on {separator.device}: {', '.join(separator.stems)}")
        return separator

    def _recipe(self, separator: Separator) -> Recipe:
        from umx_ext.commands.song import Recipe
        from umx_ext.separation.separator import Options

        arguments = self.arguments
        has = separator.config.stems
        wanted = self._wanted() or separator.stems
        check_stems(wanted, has, arguments.model or DEFAULT_MODEL)
        needed = {VOCALS if stem == ACCOMPANIMENT else stem for stem in wanted}
        asked = tuple(stem for stem in has if stem in needed)
        remainders: dict[str, tuple[str, ...]] = {}
        if arguments.accompaniment == "wiener" and VOCALS in asked:
            asked = (*asked, ACCOMPANIMENT)
        elif arguments.accompaniment == "mixture":
            if VOCALS in asked:
                remainders[ACCOMPANIMENT] = (VOCALS,)
            if len(has) > 1 and set(asked) == set(has) and "other" in wanted:
                remainders["other"] = tuple(stem for stem in has if stem != "other")
        blocks: dict[str, Any] = {"segment_s": arguments.segment, "overlap_s": arguments.overlap}
        options = Options(
            stems=asked,
            niter=arguments.niter,
            wiener_win_len=arguments.wiener_win_len,
            accompaniment=arguments.accompaniment,
            split=not arguments.no_split,
            fast=not arguments.exact,
            **{name: seconds for name, seconds in blocks.items() if seconds is not None},
        )
        return Recipe(
            stems=wanted,
            asked=asked,
            remainders=remainders,
            drawn=(VOCALS, ACCOMPANIMENT) if has == (VOCALS,) or ACCOMPANIMENT in wanted else wanted,
            guide=0.0 if arguments.guide_db is None else 10 ** (-arguments.guide_db / 20),
            options=options,
            format=arguments.chosen_format,
            bits=arguments.chosen_bits,
            bitrate_kbps=arguments.mp3_bitrate,
            clip_mode=arguments.clip_mode,
            rate_hz=arguments.output_rate_hz,
            channels=arguments.output_channels,
            start_s=arguments.start,
            duration_s=arguments.duration,
            keep_tags=arguments.karaoke,
            overwrite=arguments.if_exists == "overwrite",
        )

    def _jobs(
        self, sources: Sequence[Source], paths: Mapping[Source, Path], naming: Naming, stems: Sequence[str]
    ) -> list[Job]:
        """What is left to do after --if-exists."""
        jobs = []
        policy = self.arguments.if_exists
        for source in sources:
            outputs = {stem: naming.path(source, stem) for stem in stems}
            plot = naming.path(source, PLOT_STEM, PLOT_SUFFIX) if self.arguments.plot else None
            there = [path for path in (*outputs.values(), plot) if path is not None and os.path.lexists(path)]
            if there and policy == "error":
                raise OutputError(f"{there[0]} is already there; give --if-exists skip or overwrite, or another --out")
            if there and policy == "skip":
                outputs = {stem: path for stem, path in outputs.items() if path not in there}
                plot = None if plot in there else plot
                if not outputs and plot is None:
                    self._skip(source, there)
                    continue
                self.terminal.result(f"{source.shown}: kept {listed(there)}; --if-exists overwrite makes it again")
            jobs.append(Job(source, paths.get(source, source.path or Path()), outputs, plot))
        return jobs

    def _settle(self, job: Job, future: Future[Report]) -> None:
        try:
            report = future.result()
        except UmxError as error:
            self._fail(job.source.shown, error)
        except Exception as error:
            if self.terminal.verbose:
                traceback.print_exception(error, file=sys.stderr)
            self._fail(
                job.source.shown,
                UmxError(
                    f"{job.source.shown}: unexpected {type(error).__name__}: {error}; -v shows where, please report it"
                ),
            )
        else:
            self.succeeded += 1
            if self.arguments.json:
                self.terminal.record(as_record(job.source.shown, self.arguments.model or DEFAULT_MODEL, report))
            self.terminal.result(as_line(job.source.shown, report))

    def _skip(self, source: Source, there: Sequence[Path]) -> None:
        self.succeeded += 1
        if self.arguments.json:
            self.terminal.record({"input": source.shown, "status": "skipped", "outputs": [str(path) for path in there]})
        self.terminal.result(
            f"{source.shown}: skipped, {listed(there)} already there, perhaps made otherwise; --if-exists overwrite "
            "makes it again"
        )

    def _fail(self, shown: str, error: UmxError) -> None:
        self.failed[shown] = error.exit_code
        self.terminal.error(str(error))
        if self.arguments.json:
            self.terminal.record(
                {"input": shown, "status": "failed", "error": str(error), "exit_code": error.exit_code}
            )

    def _summary(self) -> int:
        if not self.failed:
            return 0
        if self.succeeded or len(self.failed) > 1:
            names = list(self.failed)
            more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            rest = "the others are done" if self.succeeded else "none is done"
            self.terminal.error(
                f"{len(names)} of {len(names) + self.succeeded} inputs failed, {rest}: "
                f"{', '.join(names[:MOST_NAMED])}{more}"
            )
        codes = set(self.failed.values())
        return codes.pop() if len(codes) == 1 and not self.succeeded else UmxError.exit_code
