"""`umx-ext evaluate`: a corpus through models or a folder of estimates, and the figures as a table."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from umx_ext.commands.evaluate_arguments import Arguments, TableKind
from umx_ext.commands.fetching import Downloads, ask_for_acceptance
from umx_ext.commands.options import defaulted, option
from umx_ext.commands.terminal import Terminal, one_line
from umx_ext.errors import UmxError, UsageError
from umx_ext.separation.pretrained import DEFAULT_MODEL, MODELS, pull

if TYPE_CHECKING:
    from umx_ext.evaluation.benchmark import Benchmark, Failure, Step
    from umx_ext.evaluation.report import Table
    from umx_ext.evaluation.scores import TrackScores

__all__ = ["app", "evaluate", "merge", "prepare"]

MOST_NAMED = 10  # in a summary
PICTURES = (".png", ".svg", ".pdf")

EXAMPLE = """\
umx-ext evaluate --root musdb18          separate the test songs with the
                                         default model and score them
umx-ext evaluate --root musdb18 --estimates mine
                                         score mine/<track>/<stem>.wav
umx-ext evaluate --compare scores/a b    a table of what was scored before
umx-ext evaluate merge part1 part2 --evaldir all
                                         bring together what shards scored
"""

app = App(
    name="evaluate",
    help_prologue=EXAMPLE,
    usage="Usage: umx-ext evaluate --root DIR [OPTIONS]",
    help_format="plaintext",
    version_flags=(),
)
app["--help"].show = False

merging = App(
    name="merge",
    help_prologue="umx-ext evaluate merge part1 part2 --evaldir all\n",
    usage="Usage: umx-ext evaluate merge EVALDIR... --evaldir OUT [OPTIONS]",
    help_format="plaintext",
    version_flags=(),
)
merging["--help"].show = False
app.command(merging)


def prepare(tokens: Sequence[str]) -> list[str]:
    """The command line with the value that `--baselines` has when it stands alone."""
    prepared = []
    for at, token in enumerate(tokens):
        prepared.append(token)
        if token == "--baselines" and (at + 1 == len(tokens) or tokens[at + 1].startswith("-")):
            prepared.append("all")
    return prepared


class _Terminal(Terminal):
    """With lines on standard error for people: progress where there is no bar, and what has to be known."""

    def __enter__(self) -> _Terminal:
        return self

    def note(self, line: str) -> None:
        if not self.quiet:
            self._write(sys.stderr, one_line(line))

    def show(self, line: str) -> None:
        """A line of the table, which is the result also of a quiet run."""
        self._write(sys.stdout, one_line(line))


@app.default
def evaluate(*, arguments: Arguments = Arguments()) -> int:  # noqa: B008 - frozen
    """Score separations of MUSDB18, or of any songs with known stems.

    The protocol is museval's: medians over the seconds of a song, then over the songs. In every table stand rows to
    calibrate it: a trivial estimate, an oracle, and for MUSDB18 published figures. Scores are kept, one JSON file a
    song and system, so that a stopped run goes on when it is called again.
    """
    arguments.check()
    terminal = _Terminal(quiet=arguments.quiet, verbose=arguments.verbose, progress=not arguments.json)
    with terminal:
        return _Run(arguments, terminal).do()


class _Run:
    """One call of the command."""

    def __init__(self, arguments: Arguments, terminal: _Terminal) -> None:
        self.arguments = arguments
        self.terminal = terminal
        self.bar: int | None = None
        self.said: set[int] = set()  # failures, by identity

    def do(self) -> int:
        from umx_ext.evaluation.benchmark import stored

        arguments = self.arguments
        _check_plot(arguments.plot)
        others = stored(arguments.compare) if arguments.compare else None
        if arguments.root is not None:
            result = self._benchmark(arguments.root)
            if others is not None:
                _add(result, others, self.terminal)
        else:
            assert others is not None  # `check` has seen to it
            result = others
        for failure in result.failures:
            self._fail(failure)
        for note in [*result.notes, *_grouped_notes(result)]:
            self.terminal.note(note)
        if result.systems:
            _show(result, arguments.table, arguments.json, self.terminal)
            if arguments.plot is not None:
                result.plot(arguments.plot)
                self.terminal.note(f"picture: {arguments.plot}")
        if arguments.root is not None:
            self._say_what_was_done(result)
        return self._summary(result)

    def _benchmark(self, root: str) -> Benchmark:
        from umx_ext.evaluation.benchmark import benchmark

        arguments = self.arguments
        names = arguments.model or (() if arguments.estimates else (DEFAULT_MODEL,))
        for name in names:
            if name in MODELS:
                ask_for_acceptance(name, accepted=arguments.accept_license)
                with Downloads(self.terminal) as progress:
                    pull(name, progress)
        return benchmark(
            root,
            arguments.model or None,
            subset=arguments.subset,
            tracks=arguments.tracks,
            estimates=arguments.estimates,
            evaldir=arguments.evaldir,
            jobs=arguments.jobs,
            if_exists=arguments.if_exists,
            metrics=arguments.metrics.split(","),
            baselines=arguments.baselines.split(",") if arguments.baselines else (),
            engine=arguments.engine,
            shard=arguments.shard_of,
            dask=arguments.dask,
            device=arguments.device,
            progress=self._step,
        )

    def _step(self, step: Step) -> None:
        if self.bar is None:
            self.bar = self.terminal.bar("songs", step.total)
        self.terminal.advance(self.bar, step.done, step.total)
        for failure in step.failures:
            self._fail(failure)
        if self.bar is None:
            self.terminal.note(f"{step.done}/{step.total} {step.track}: {_in_short(step)}")
        if self.arguments.json:
            for system, scores in step.scores.items():
                self.terminal.record(_as_record(system, scores, kept=system in step.kept))

    def _fail(self, failure: Failure) -> None:
        if id(failure) in self.said:
            return
        self.said.add(id(failure))
        self.terminal.error(str(failure.error))
        if self.arguments.json:
            self.terminal.record(
                {
                    "track": failure.track,
                    "system": failure.system or None,
                    "status": "failed",
                    "error": str(failure.error),
                    "exit_code": failure.error.exit_code,
                }
            )

    def _say_what_was_done(self, result: Benchmark) -> None:
        if result.kept:
            self.terminal.note(
                f"{result.kept} scores were there already in {self.arguments.evaldir}; --if-exists overwrite makes "
                "them again"
            )
        stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in result.seconds.items())
        together = " in all processes together" if self.arguments.jobs > 1 or self.arguments.dask else ""
        self.terminal.note(f"time{together}: {stages}")

    def _summary(self, result: Benchmark) -> int:
        from umx_ext.evaluation.oracles import BASELINES

        failures = result.failures
        if not failures:
            return 0
        scored = any(name not in BASELINES for name in result.systems)
        tracks = list(dict.fromkeys(failure.track for failure in failures))
        if scored or len(failures) > 1:
            rest = "all else is scored" if scored else "nothing is scored"
            self.terminal.error(f"{len(tracks)} track{'s' * (len(tracks) != 1)} failed, {rest}: {_listed(tracks)}")
        codes = {failure.error.exit_code for failure in failures}
        return codes.pop() if len(codes) == 1 and not scored else UmxError.exit_code


def _check_plot(path: str | None) -> None:
    """What would make the picture fail is known before the work."""
    if path is not None:
        from umx_ext.plot import require_matplotlib

        if Path(path).suffix.lower() not in PICTURES:
            raise UsageError(f"--plot takes a file ending in {', '.join(PICTURES)}, not {path}")
        require_matplotlib()


def _add(result: Benchmark, others: Benchmark, terminal: _Terminal) -> None:
    """Put stored scores of the songs of this run before its baselines."""
    from umx_ext.evaluation.oracles import BASELINES

    own = result.systems
    tracks = {track.track for scores in own.values() for track in scores}
    added: dict[str, list[TrackScores]] = {}
    for name, scores in others.systems.items():
        same = [track for track in scores if track.track in tracks]
        if not same:
            terminal.note(f"{name}: none of its {len(scores)} songs is among those of this run; left out")
        elif not (name in BASELINES and name in own):
            added[f"{name} (compared)" if name in own else name] = same
    result.systems = {
        **{name: scores for name, scores in own.items() if name not in BASELINES},
        **added,
        **{name: scores for name, scores in own.items() if name in BASELINES},
    }


def _in_short(step: Step) -> str:
    from umx_ext.evaluation.oracles import BASELINES

    parts = []
    for system, scores in step.scores.items():
        if system not in BASELINES:
            figures = ", ".join(f"{target} {scores.median(target, 'SDR'):.2f}" for target in scores.targets)
            parts.append(f"{system} SDR {figures} dB")
    return "; ".join(parts) or ("failed" if step.failures else "baselines only")


def _as_record(system: str, scores: TrackScores, *, kept: bool) -> dict[str, Any]:
    """Ready for JSON; what has no value is null."""
    medians = {
        target: {metric: _rounded(scores.median(target, metric)) for metric in scores.metrics}
        for target in scores.targets
    }
    status = "kept" if kept else "scored"
    return {"track": scores.track, "system": system, "status": status, "medians": medians, "notes": scores.notes}


def _rounded(value: float) -> float | None:
    return round(value, 5) if value == value else None


def _grouped_notes(result: Benchmark) -> list[str]:
    """What was done to estimates or left out, each sentence once with the songs that it is about."""
    about: dict[str, dict[str, None]] = {}
    for scores in result.systems.values():
        for track in scores:
            for note in track.notes:
                about.setdefault(note, {})[track.track] = None
    return [f"{_listed(list(tracks))}: {note}" for note, tracks in about.items()]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _show(result: Benchmark, kind: str, as_json: bool, terminal: _Terminal) -> None:
    import json

    table: Table = result.table()
    if as_json:
        terminal.record({"status": "table", **json.loads(table.json())})
        return
    width = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100
    text = {"md": lambda: table.markdown(width), "csv": table.csv, "json": table.json}[kind]()
    for line in text.rstrip("\n").split("\n"):
        terminal.show(line)


@merging.default
def merge(
    evaldirs: Annotated[
        list[str], Parameter(name="EVALDIR", help="Folders that runs of `umx-ext evaluate` have written.")
    ],
    /,
    *,
    evaldir: Annotated[str, option("--evaldir", metavar="OUT", help="Where all scores go, together with those there.")],
    table: Annotated[TableKind, defaulted("--table", help="The table on standard output.")] = "md",
    plot: Annotated[str | None, option("--plot", metavar="FILE", help="Also a picture.")] = None,
    as_json: Annotated[bool, option("--json", help="The table as one line of JSON.")] = False,
    quiet: Annotated[bool, option("-q", "--quiet", help="The table and errors, nothing else.")] = False,
) -> int:
    """Bring together what shards have scored, and show the table of all of it.

    Nothing that is there is replaced: scores that differ for the same song are refused.
    """
    from umx_ext.evaluation.benchmark import merge as bring_together

    _check_plot(plot)
    with _Terminal(quiet=quiet) as terminal:
        result = bring_together(evaldirs, evaldir)
        counts: Mapping[str, int] = {name: len(scores) for name, scores in result.systems.items()}
        terminal.note(f"{evaldir}: " + ", ".join(f"{name} {count} songs" for name, count in counts.items()))
        _show(result, table, as_json, terminal)
        if plot is not None:
            result.plot(plot)
    return 0
