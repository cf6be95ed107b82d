"""A corpus through systems: models, the estimates of other tools, trivial estimates and oracles, side by side.

Scores are kept as `evaldir/<system>/<subset>/<track>.json`, each written when it is known, so a run that was stopped
goes on where it was: a file is taken as it is if it was made from the same song and system and has the metrics asked
for. `museval.MethodStore().add_eval_dir(evaldir / system)` reads them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from umx_ext import __version__
from umx_ext.codecs.formats import shown
from umx_ext.corpora import Song, find_songs
from umx_ext.errors import MissingExtraError, UmxError, UsageError
from umx_ext.evaluation.estimates import EstimateFiles, find_estimates
from umx_ext.evaluation.judge import STAGES, Failure, Judge, Outcome, Plan, Task, in_processes, in_turn, on_dask
from umx_ext.evaluation.oracles import BASELINES
from umx_ext.evaluation.report import Table, plot, summarise
from umx_ext.evaluation.scores import METRICS, Rows, TrackScores, check_metrics
from umx_ext.evaluation.store import SUBSETS, compare, directory, merge_files, read_file, score_path, write_scores
from umx_ext.separation.modelfile import weights_sha256
from umx_ext.separation.pretrained import DEFAULT_MODEL, MODELS, load
from umx_ext.separation.separator import Separator

__all__ = ["ALWAYS", "Benchmark", "Failure", "Step", "benchmark", "check_baselines", "merge", "stored", "system_label"]

ALWAYS = ("mixture/2", "MWF")  # without a floor and a ceiling no figure means anything
MUSDB_TEST_SONGS = 50
EXCERPT_S = 30  # MUSDB18's songs are minutes long, its sample's 7 s

Model = str | os.PathLike[str] | Separator


class Step(NamedTuple):
    """One song is done.

    Attributes:
        done, total: songs.
        track: its name.
        scores: system -> scores, those that were kept from an earlier run too.
        kept: the systems that were kept.
        failures: what could not be scored.
    """

    done: int
    total: int
    track: str
    scores: Mapping[str, TrackScores]
    kept: tuple[str, ...]
    failures: Sequence[Failure]


@dataclass
class Benchmark:
    """Scores of systems on the songs of a corpus.

    Attributes:
        systems: name -> scores, a song each in the corpus' order; systems without any are left out. Baselines come
            last.
        metrics: those asked for.
        failures: what could not be scored.
        seconds: stage ("read", "separate", "oracles", "score") -> seconds, summed over all workers.
        kept: how many score files of an earlier run were taken.
        notes: what has to be known about the run, in words.
    """

    systems: dict[str, list[TrackScores]]
    metrics: tuple[str, ...]
    failures: list[Failure] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    kept: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def targets(self) -> list[str]:
        """The stems that the systems give, baselines aside if there is any other."""
        judged = {name: scores for name, scores in self.systems.items() if name not in BASELINES} or self.systems
        has = {target for scores in judged.values() for track in scores for target in track.targets}
        return [target for target in ("vocals", "drums", "bass", "other", "accompaniment") if target in has]

    @property
    def comparable(self) -> bool:
        """Whether the songs are all of MUSDB18's test part, at full length, as those of published figures are."""
        tracks = {track.track: track for scores in self.systems.values() for track in scores}
        lengths = [len(metrics.get("SDR", ())) for track in tracks.values() for metrics in track.frames.values()]
        return (
            len(tracks) == MUSDB_TEST_SONGS
            and self._musdb
            and all(track.subset in ("test", "") for track in tracks.values())
            and statistics.median(lengths) > EXCERPT_S
        )

    @property
    def _musdb(self) -> bool:
        corpora = {track.corpus for scores in self.systems.values() for track in scores}
        return corpora <= {"musdb18", "musdb18-hq", ""}

    def table(self) -> Table:
        """The figures of all systems, side by side with SiSEC's where the corpus is a MUSDB18.

        Raises:
            UsageError: nothing was scored.
        """
        comparable = self.comparable
        return summarise(
            self.systems, targets=self.targets, metrics=self.metrics, comparable=comparable, sisec=self._musdb
        )

    def plot(self, path: str | os.PathLike[str]) -> None:
        """A picture of the tracks' SDR and of its course in some of them; errors as of `report.plot`."""
        plot(self.systems, path, targets=self.targets)

    def rows(self) -> dict[str, Rows]:
        """System -> every value; `.frame()` of one makes a table of pandas."""
        return {name: Rows(row for track in scores for row in track.rows()) for name, scores in self.systems.items()}


# ------------------------------------------------------------------------------------------------------------- systems


def system_label(model: str | os.PathLike[str]) -> str:
    """What a model is called in tables and folders: a registered name itself, of a path the last part."""
    path = Path(model)
    return path.stem if path.suffix in (".safetensors", ".pth") else path.resolve().name


def check_baselines(names: Iterable[str]) -> tuple[tuple[str, ...], str]:
    """The baselines to score, those of `ALWAYS` included; the name ``all`` stands for every one that can be computed
    here. With it comes a sentence about what is left out, or none.

    Raises:
        UsageError: there is no such baseline.
        MissingExtraError: one that is asked for by name needs a package that is not installed.
    """
    asked = [name.strip() for name in names]
    known = {name.lower(): name for name in BASELINES}
    unknown = [name for name in asked if name.lower() not in known and name != "all"]
    if unknown:
        raise UsageError(f"no baseline named {', '.join(unknown)}; known: {', '.join(BASELINES)}, or all")
    chosen = {*ALWAYS, *(known[name.lower()] for name in asked if name != "all")}
    notes = []
    for name in BASELINES:
        if name in ALWAYS or not (name in chosen or "all" in asked):
            continue
        try:
            noise = torch.rand(2, 2, 4096) - 0.5
            BASELINES[name](noise.sum(0), {"vocals": noise[0], "accompaniment": noise[1]}, 44100)  # a rehearsal
            chosen.add(name)
        except MissingExtraError as error:
            if name in chosen:
                raise
            notes.append(f"left out: {error}")
    return tuple(name for name in BASELINES if name in chosen), "; ".join(notes)


def _models(model: Model | Sequence[Model] | None, estimates: Sequence[Path], device: str) -> dict[str, Separator]:
    """System name -> loaded model, so that what is wrong with one is known before any song is read."""
    if model is None:
        chosen: list[Model] = [] if estimates else [DEFAULT_MODEL]
    else:
        chosen = [model] if isinstance(model, (str, os.PathLike, Separator)) else list(model)
    loaded: dict[str, Separator] = {}
    for one in chosen:
        name = one.metadata.get("name", "model") if isinstance(one, Separator) else system_label(one)
        if name in loaded:
            raise UsageError(f"two models would both be called {name}; rename a file, or do them in two runs")
        loaded[name] = one if isinstance(one, Separator) else load(one, device=device)
    return loaded


def _sources(model: Model | Sequence[Model] | None) -> dict[str, str]:
    """System name -> what a worker, whose current folder may be another, loads it by."""
    chosen = [DEFAULT_MODEL] if model is None else [model] if isinstance(model, (str, os.PathLike)) else model
    if isinstance(chosen, Separator) or any(isinstance(one, Separator) for one in chosen):
        raise UsageError("a loaded model cannot be sent to other processes: give its name or path, or jobs=1")
    paths = [os.fspath(one) for one in chosen if not isinstance(one, Separator)]
    return {system_label(path): path if path in MODELS else os.path.abspath(path) for path in paths}


# ----------------------------------------------------------------------------------------------------------- benchmark


def benchmark(
    root: str | os.PathLike[str],
    model: Model | Sequence[Model] | None = None,
    *,
    subset: str = "test",
    tracks: str = "*",
    estimates: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    evaldir: str | os.PathLike[str] | None = None,
    jobs: int = 1,
    if_exists: str = "skip",
    metrics: Sequence[str] = METRICS,
    baselines: Sequence[str] = (),
    engine: str = "own",
    shard: tuple[int, int] = (1, 1),
    dask: str | None = None,
    device: str = "auto",
    progress: Callable[[Step], None] | None = None,
) -> Benchmark:
    """Separate the songs of a corpus and score the results, by museval's protocol.

    The mixture that is separated is the corpus' own where it has one, else the sum of the stems. A model's
    accompaniment is the mixture minus its vocals.

    Args:
        root: folder of a MUSDB18, a MUSDB18-HQ, its 7-second sample, or of `<track>/<stem>.wav`.
        model: name, path or loaded `Separator`, or several; None: the default model, or none if there are `estimates`.
        subset: ``"test"``, ``"train"`` or ``"valid"``.
        tracks: pattern of the songs' names.
        estimates: one or more folders of estimates, `<track>/<stem>.wav` or `<subset>/<track>/<stem>.wav`.
        evaldir: folder of the results; None: nothing is written.
        jobs: songs at a time, each in its own process with its own models.
        if_exists: ``"skip"`` takes score files that are there already, ``"overwrite"`` makes all anew.
        metrics: any of `METRICS`; SDR, SI-SDR and uSDR alone take no distortion filters and hardly any time.
        baselines: more of `oracles.BASELINES` than those of `ALWAYS`, or ``"all"``.
        engine: ``"own"`` or ``"museval"``.
        shard: (i, n): every nth song from the ith, counted from 1.
        dask: address of a Dask scheduler, instead of `jobs`.
        device: as of `umx_ext.load`.
        progress: called for each song.

    Raises:
        UsageError, AudioError: arguments or folders that make no sense. What is wrong with a single song is among the
            result's failures.
        ModelError: a model cannot be loaded.
        OutputError: a score file cannot be written.
        MissingExtraError: museval, norbert or distributed is needed and not installed.
    """
    asked = check_metrics(metrics)
    chosen, note = check_baselines(baselines)
    if if_exists not in ("skip", "overwrite"):
        raise UsageError(f"if_exists is {if_exists!r}; known: skip, overwrite")
    if jobs < 1 or (dask is not None and jobs > 1):
        raise UsageError(f"jobs is {jobs}; give 1 or more, and no jobs where Dask shares out the work")
    if not 1 <= shard[0] <= shard[1]:
        raise UsageError(f"shard is {shard}; give (i, n) with i from 1 to n")
    _check_engine(engine)
    given = [estimates] if isinstance(estimates, (str, os.PathLike)) else estimates
    folders = [Path(folder).absolute() for folder in given]
    base = Path(root).absolute()
    songs = find_songs(base, subset, tracks)[shard[0] - 1 :: shard[1]]
    known = _known(base) if folders else {}
    found = {folder.resolve().name: find_estimates(folder, songs, known) for folder in folders}
    sources = {} if jobs == 1 and dask is None else _sources(model) if model is not None or not folders else {}
    separators = _models(model, folders, device)
    _require_distinct([*separators, *(folder.resolve().name for folder in folders), *chosen])
    result = Benchmark({}, asked, notes=[note] if note else [])
    if not songs:
        result.notes.append(f"nothing to do: there is no song for shard {shard[0]}/{shard[1]}")
    run = _Run(result, Path(evaldir) if evaldir is not None else None, engine, songs, subset, if_exists, progress)
    run.plan_systems(separators, found, chosen)
    tasks = run.tasks(found)
    plan = Plan(tuple(sources.items()), device, asked, engine)
    if dask is not None or (jobs > 1 and len(tasks) > 1):
        separators.clear()  # the workers have their own
        work = on_dask(plan, tasks, dask) if dask is not None else in_processes(plan, tasks, jobs)
    else:
        work = in_turn(Judge(plan, separators), tasks)
    with contextlib.closing(work):  # type: ignore[type-var]
        for task, outcome in work:
            run.settle(task, outcome)
    run.finish()
    return result


def _check_engine(engine: str) -> None:
    if engine not in ("own", "museval"):
        raise UsageError(f"no engine named {engine!r}; known: own, museval")
    if engine == "museval":
        from umx_ext.evaluation import bsseval

        noise = np.random.default_rng(0).standard_normal((2, 1024, 1))
        bsseval.evaluate(noise, noise[::-1], 1024, engine="museval")  # a rehearsal: better now than at each song


def _known(root: Path) -> dict[str, set[str]]:
    """Subset -> names of all its songs; a subset that is not there has none."""
    known = {}
    for subset in SUBSETS:
        with contextlib.suppress(UmxError):
            known[subset] = {song.name for song in find_songs(root, subset)}
    return known


def _require_distinct(names: Sequence[str]) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(f"two systems would both be called {', '.join(sorted(twice))}; rename a folder or file")


class _Run:
    """One call of `benchmark`: what is there already, what is to be done, what became of it."""

    def __init__(
        self,
        result: Benchmark,
        evaldir: Path | None,
        engine: str,
        songs: Sequence[Song],
        subset: str,
        if_exists: str,
        progress: Callable[[Step], None] | None,
    ) -> None:
        self.result, self.evaldir, self.engine, self.songs = result, evaldir, engine, songs
        self.subset, self.if_exists, self.progress = subset, if_exists, progress
        self.systems: dict[str, str] = {}  # name -> identity
        self.single_stems = False
        self.scores: dict[str, dict[str, TrackScores]] = {}  # track -> system -> scores
        self.kept: dict[str, tuple[str, ...]] = {}
        self.made_from: dict[tuple[str, str], str] = {}
        self.done = 0

    def plan_systems(
        self, separators: Mapping[str, Separator], found: Mapping[str, EstimateFiles], baselines: Sequence[str]
    ) -> None:
        for name, separator in separators.items():
            self.systems[name] = f"model {weights_sha256(separator.state_dict())} {separator.config}"
        for name, files in found.items():
            self.systems[name] = f"estimates {name}"
            self.result.failures += [Failure(name, track, error) for track, error in files.problems.items()]
        given = {stem for separator in separators.values() for stem in separator.stems}
        given |= {stem for files in found.values() for stems in files.files.values() for stem in stems}
        self.single_stems = bool(given & {"drums", "bass", "other"})
        for name in baselines:
            self.systems[name] = f"baseline {name} {self.single_stems}"

    def tasks(self, found: Mapping[str, EstimateFiles]) -> list[Task]:
        """What is left to do; songs with nothing left are settled."""
        tasks = []
        for song in self.songs:
            files = {name: estimates.files[song.name] for name, estimates in found.items()
                     if song.name in estimates.files}  # fmt: skip
            wanted = [name for name in self.systems if name not in found or name in files]
            kept = {}
            for name in wanted:
                self.made_from[song.name, name] = self._hash(song, name, files.get(name, {}))
                scores = self._kept(song, name)
                if scores is not None:
                    kept[name] = scores
            self.scores[song.name], self.kept[song.name] = dict(kept), tuple(kept)
            self.result.kept += len(kept)
            left = [name for name in wanted if name not in kept]
            if left:
                models = tuple(name for name in left if name not in found and name not in BASELINES)
                baselines = tuple(name for name in left if name in BASELINES)
                own = {name: stems for name, stems in files.items() if name in left}
                tasks.append(Task(song, models, own, baselines, self.single_stems))
            else:
                self._step(song, [])
        return tasks

    def _hash(self, song: Song, system: str, estimates: Mapping[str, Path]) -> str:
        facts: list[object] = [__version__, self.engine, self.systems[system], song.corpus]
        facts += [[stem, path.name, stream, _size(path)[0]] for stem, (path, stream) in sorted(song.files.items())]
        # Estimates of another version have the same size, so their time counts as well.
        facts += [[stem, path.name, *_size(path)] for stem, path in sorted(estimates.items())]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def _kept(self, song: Song, system: str) -> TrackScores | None:
        """Scores of an earlier run, if they are what this run would make."""
        if self.evaldir is None or self.if_exists == "overwrite":
            return None
        path = score_path(self.evaldir / directory(system), self._subset(song), song.name)
        if not path.is_file():
            return None
        try:
            scores = read_file(path, song.name, song.subset)
        except UmxError as error:
            self.result.notes.append(f"{error}: scored again")
            return None
        lacking = [metric for metric in self.result.metrics if metric not in scores.metrics]
        alone = len(scores.targets) == 1 and not set(lacking) & {"SI-SDR", "uSDR"}  # has no other metrics
        if lacking and not alone:
            return None
        if scores.made_from and scores.made_from != self.made_from[song.name, system]:
            self.result.notes.append(f"{shown(path)} was made from another song, system or version: scored again")
            return None
        return scores

    def _subset(self, song: Song) -> str:
        """The folder that museval's stores look into is ``test``: a corpus without subsets goes there."""
        return song.subset or self.subset

    def settle(self, task: Task, outcome: Outcome) -> None:
        song = task.song
        for stage, seconds in outcome.seconds.items():
            self.result.seconds[stage] += seconds
        for name, scores in outcome.scores.items():
            scores.made_from = self.made_from[song.name, name]
            if self.evaldir is not None:
                write_scores(scores, self.evaldir / directory(name), self._subset(song))
        self.scores[song.name].update(outcome.scores)
        self.result.failures += outcome.failures
        self._step(song, outcome.failures)

    def _step(self, song: Song, failures: Sequence[Failure]) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(
                Step(self.done, len(self.songs), song.name, self.scores[song.name], self.kept[song.name], failures)
            )

    def finish(self) -> None:
        for system in self.systems:
            scores = [self.scores[song.name][system] for song in self.songs if system in self.scores[song.name]]
            if scores:
                self.result.systems[system] = scores


def _size(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:  # reading it will say so, with more to it
        return 0, 0
    return status.st_size, status.st_mtime_ns


def merge(evaldirs: Sequence[str | os.PathLike[str]], target: str | os.PathLike[str]) -> Benchmark:
    """Bring the scores of several runs, such as shards, together in one folder; what is there already stays.

    Returns:
        All scores that the folder then has.

    Raises:
        UsageError: a folder has no scores, or two disagree about a song.
        OutputError: the folder cannot be written.
    """
    merge_files(evaldirs, target)
    return stored([target])


def stored(evaldirs: Sequence[str | os.PathLike[str]]) -> Benchmark:
    """A benchmark of scores that were stored, baselines last; arguments and errors as of `store.compare`."""
    systems = compare(evaldirs)
    metrics = {metric for scores in systems.values() for track in scores for metric in track.metrics}
    ordered = [*(name for name in systems if name not in BASELINES), *(name for name in BASELINES if name in systems)]
    return Benchmark({name: systems[name] for name in ordered}, check_metrics(metrics))
