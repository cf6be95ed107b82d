"""One song through all systems - read, separate, score - and the ways to do many: here, in processes, on a cluster.

A `Judge` is what a worker has: the plan and the loaded models. Workers give back scores, which are small, and write no
files; so what a killed worker leaves is nothing, and only one process needs the folder of the results.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from umx_ext.codecs.formats import shown
from umx_ext.corpora import Song, targets
from umx_ext.errors import MissingExtraError, OutOfMemoryError, UmxError, UsageError
from umx_ext.evaluation.estimates import read_estimates
from umx_ext.evaluation.oracles import BASELINES
from umx_ext.evaluation.scores import ACCOMPANIMENT, VOCALS, TrackScores, score
from umx_ext.separation.pretrained import load
from umx_ext.separation.separator import Separator

__all__ = ["Failure", "Judge", "Outcome", "Plan", "Task", "in_processes", "in_turn", "on_dask"]

STAGES = ("read", "separate", "oracles", "score")
MOST_DEATHS = 3  # of workers, one after the other: then it is not the songs


class Failure(NamedTuple):
    """What could not be scored and why; `system` is empty where the song itself cannot be read."""

    system: str
    track: str
    error: UmxError


@dataclass(frozen=True)
class Plan:
    """What holds for all songs. Values only, so that it can be sent to another process.

    Attributes:
        models: (name of the system, what `load` takes).
        device: as of `load`.
        metrics, engine: as of `score`.
    """

    models: tuple[tuple[str, str], ...]
    device: str
    metrics: tuple[str, ...]
    engine: str


@dataclass(frozen=True)
class Task:
    """What to do about one song.

    Attributes:
        models, baselines: names of the systems to score.
        estimates: name of a system -> stem -> file.
        single_stems: drums, bass and other are of interest, not only vocals and accompaniment.
    """

    song: Song
    models: tuple[str, ...]
    estimates: Mapping[str, Mapping[str, Path]]
    baselines: tuple[str, ...]
    single_stems: bool


@dataclass
class Outcome:
    """What became of a task: name of the system -> scores; failures; seconds by `STAGES`."""

    scores: dict[str, TrackScores] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))


class Judge:
    """Scores songs, with models that are loaded once.

    Args:
        plan: what to do.
        separators: models that are loaded already, by the system's name.
    """

    def __init__(self, plan: Plan, separators: Mapping[str, Separator] | None = None) -> None:
        self.plan = plan
        self._separators = dict(separators or {})
        self._loading = threading.Lock()

    def do(self, task: Task) -> Outcome:
        """Score one song. What fails is in the outcome, and keeps nothing else from being scored."""
        outcome = Outcome()
        song = task.song
        try:
            with _timed(outcome, "read"):
                stems = song.read()
                mixture, references, rate = stems.mixture, targets(stems), stems.sample_rate
                del stems
        except Exception as error:
            outcome.failures.append(Failure("", song.name, as_ours(error, song.name)))
            return outcome
        for system in (*task.models, *task.estimates, *task.baselines):
            try:
                if system in task.models:
                    with _timed(outcome, "separate"):
                        estimates = _separated(self._separator(system), mixture, rate)
                elif system in task.estimates:
                    with _timed(outcome, "read"):
                        estimates = read_estimates(task.estimates[system], references, rate)
                else:
                    with _timed(outcome, "oracles"):
                        estimates = _baseline(system, mixture, references, rate, single_stems=task.single_stems)
                with _timed(outcome, "score"):
                    plan = self.plan
                    scores = score(
                        references, estimates, rate, track=song.name, metrics=plan.metrics, engine=plan.engine
                    )
                scores.subset, scores.corpus = song.subset, song.corpus
                outcome.scores[system] = scores
            except Exception as error:
                outcome.failures.append(Failure(system, song.name, as_ours(error, song.name)))
        return outcome

    def _separator(self, system: str) -> Separator:
        with self._loading:  # the workers of a cluster may be threads
            if system not in self._separators:
                self._separators[system] = load(dict(self.plan.models)[system], device=self.plan.device)
            return self._separators[system]


def _separated(separator: Separator, mixture: Tensor, sample_rate: int) -> dict[str, Tensor]:
    """Estimates of a model's stems; of one with vocals also the accompaniment, as what vocals leave of the mixture."""
    estimates = dict(separator.separate(mixture, sample_rate))
    if VOCALS in estimates and ACCOMPANIMENT not in estimates:
        estimates[ACCOMPANIMENT] = mixture - estimates[VOCALS]
    return estimates


def _baseline(
    name: str, mixture: Tensor, references: Mapping[str, Tensor], sample_rate: int, *, single_stems: bool
) -> dict[str, Tensor]:
    pair = {stem: references[stem] for stem in (VOCALS, ACCOMPANIMENT) if stem in references}
    return BASELINES[name](mixture, references if single_stems or len(pair) < 2 else pair, sample_rate)


@contextlib.contextmanager
def _timed(outcome: Outcome, stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        outcome.seconds[stage] += time.perf_counter() - start


def as_ours(error: Exception, track: str) -> UmxError:
    """Any error as one of this package's, so that it can be counted and told in a sentence."""
    if isinstance(error, UmxError):
        return error
    full = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "allocate memory" in str(error)
    if full:
        return OutOfMemoryError(f"{shown(track)}: out of memory; take fewer jobs (-j), or -d cpu")
    return UmxError(f"{shown(track)}: unexpected {type(error).__name__}: {error}; please report it")


# ---------------------------------------------------------------------------------------------------------------- here


def in_turn(judge: Judge, tasks: Iterable[Task]) -> Iterator[tuple[Task, Outcome]]:
    """One song after the other in this process."""
    for task in tasks:
        yield task, judge.do(task)


# ----------------------------------------------------------------------------------------------------------- processes

_judge: Judge | None = None  # of a worker process


def in_processes(plan: Plan, tasks: Sequence[Task], jobs: int) -> Iterator[tuple[Task, Outcome]]:
    """Songs in `jobs` processes that each load the models once and have their share of the threads.

    Memory is that of `jobs` songs and models. A worker that dies (killed for its memory, say) takes no other song with
    it: those that were under way are tried again one at a time, so that the one that kills is known by name.
    """
    left = list(tasks)
    died = False
    with _pool(plan, min(jobs, len(left))) as pool:
        futures = {_submit(pool, task): task for task in left}
        for future in as_completed(futures):
            try:
                outcome = future.result()
            except BrokenProcessPool:
                died = True
                break
            left.remove(futures[future])
            yield futures[future], outcome
    if not died:
        return
    deaths = 0
    while left:
        with _pool(plan, 1) as pool:
            while left:
                task = left.pop(0)
                try:
                    outcome = _submit(pool, task).result()
                    deaths = 0
                except BrokenProcessPool:
                    deaths += 1
                    yield task, _died(task)
                    break
                yield task, outcome
        if deaths >= MOST_DEATHS:
            for task in left:
                yield task, _died(task)
            return


def _died(task: Task) -> Outcome:
    error = UmxError(
        f"{shown(task.song.name)}: the worker process died, perhaps for want of memory; give a smaller -j, and start "
        "scripts under if __name__ == '__main__'"
    )
    return Outcome(failures=[Failure("", task.song.name, error)])


@contextlib.contextmanager
def _pool(plan: Plan, jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Leaving it by an exception ends the workers at once; their songs are not wanted any more."""
    before = {child.pid for child in multiprocessing.active_children()}
    threads = max(1, torch.get_num_threads() // jobs)
    pool = ProcessPoolExecutor(
        jobs,
        # A fork would copy the locks of the caller's threads, held for ever.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(plan, threads),
    )
    try:
        yield pool
    except BaseException:
        for child in multiprocessing.active_children():
            if child.pid not in before:
                child.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, task: Task) -> Future[Outcome]:
    """Submits it, for which the pool may start a worker: that begins with SIGINT blocked, as this thread has it.

    Between its start and `_begin` a worker imports for seconds, and an interrupt would make it print a traceback. For
    this process that changes nothing: another thread takes the signal, or it is kept until the mask is put back.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return pool.submit(_work, task)
    resource_tracker.ensure_running()  # who starts it unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(_work, task)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(plan: Plan, threads: int) -> None:
    """Makes this process a worker."""
    global _judge
    # A terminal sends it to all of its processes; the first one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _judge = Judge(plan)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _work(task: Task) -> Outcome:
    assert _judge is not None
    return _judge.do(task)


# ------------------------------------------------------------------------------------------------------------- cluster


def on_dask(plan: Plan, tasks: Sequence[Task], address: str) -> Iterator[tuple[Task, Outcome]]:
    """Songs on the workers of a Dask cluster, which need umx_ext and the same paths.

    Raises:
        MissingExtraError: `distributed` is not installed.
        UsageError: nobody answers at the address.
    """
    try:
        import distributed
    except ImportError as error:
        raise MissingExtraError(
            f"--dask needs Dask ({error}); in umx-ext's folder run: pip install '.[dask]'"
        ) from error
    try:
        client = distributed.Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise UsageError(
            f"no Dask scheduler answers at {address} ({type(error).__name__}); start one with dask scheduler, and give "
            "its address, such as tcp://host:8786"
        ) from error
    with client:
        # pure=False: a song is scored when it is asked for, whatever the scheduler remembers.
        futures = {client.submit(_work_on_cluster, plan, task, pure=False): task for task in tasks}
        for future in distributed.as_completed(futures, loop=client.loop):
            task = futures[future]
            try:
                outcome = future.result()
            except Exception as error:  # a worker that died, or has another version of this package
                outcome = Outcome(failures=[Failure("", task.song.name, as_ours(error, task.song.name))])
            yield task, outcome


@functools.lru_cache(maxsize=1)
def _judge_of(plan: Plan) -> Judge:
    return Judge(plan)


def _work_on_cluster(plan: Plan, task: Task) -> Outcome:
    judge: Any = _judge_of(plan)
    outcome: Outcome = judge.do(task)
    return outcome
