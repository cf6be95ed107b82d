"""A few threads that each compute with one torch thread.

torch's own parallelism splits every small product over all cores and waits for it; a worker a core, each with whole
tasks, is faster and gives the same numbers whatever their number. Python's share of a task is small, and torch releases
the interpreter lock within its operations.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

import torch

from umx_ext.separation.stages import stage

__all__ = ["Cancelled", "Workers"]

Result = TypeVar("Result")

_AHEAD = 1  # tasks a worker may have started or finished before the caller takes their results, which wait in memory

# Only one set of workers starts at a time: they briefly change a number that belongs to the whole process.
_starting = threading.Lock()


class Cancelled(BaseException):
    """Raised within a task whose result nobody waits for any more; it never reaches the caller."""


class Workers:
    """A context with `count` threads; leaving it ends them.

    torch keeps its thread count per thread, and one more that threads started later inherit. Setting a worker's sets
    both, so a thread that never computes reads the latter before the workers start and puts it back when they have:
    neither the caller's count nor that of threads it starts later changes.

    The threads are daemons, so a process never waits for them to exit.
    """

    def __init__(self, count: int) -> None:
        self._condition = threading.Condition()
        self._tasks: Sequence[Callable[[], object]] = ()
        self._results: dict[int, object] = {}
        self._error: BaseException | None = None
        self._next = self._busy = self._limit = 0
        self._closed = self._stopped = False
        self._ready = threading.Semaphore(0)
        self._threads = [
            threading.Thread(
                target=contextvars.copy_context().run,  # each its own: they report to whom the caller reports
                args=(self._work,),
                name=f"umx-ext worker {number}",
                daemon=True,
            )
            for number in range(count)
        ]

    def __enter__(self) -> Workers:
        with _starting:
            starter = threading.Thread(target=self._start, name="umx-ext starter", daemon=True)
            try:
                starter.start()
                starter.join()
            except BaseException:  # an interrupt: workers that have started, or will, end by themselves
                self._closed = True
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._condition:
            self._closed = self._stopped = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()

    def run(self, tasks: Sequence[Callable[[], Result]]) -> Iterator[Result]:
        """Do all tasks and yield their results in the tasks' order.

        While the caller works on a result the next ones are made, but only a few: it need not be the fastest.

        The first error of a task is raised here. After it, or when the caller stops listening (an error of its own, an
        interrupt), no further task starts, running ones stop at their next `check`, and this waits for them.
        """
        with self._condition:
            self._tasks, self._results, self._error = tasks, {}, None
            self._next, self._stopped = 0, False
            self._allow(0)
        try:
            for index in range(len(tasks)):
                with self._condition:
                    while index not in self._results and self._error is None:
                        self._condition.wait()
                    if self._error is not None:
                        raise self._error
                    result = self._results.pop(index)
                    self._allow(index + 1)
                yield result  # type: ignore[misc]
        finally:
            with self._condition:
                self._stopped = True
                while self._busy:
                    self._condition.wait()
                self._tasks, self._results, self._error, self._limit = (), {}, None, 0

    def _allow(self, taken: int) -> None:
        """Let workers start the tasks that may be made ahead of the first `taken` results."""
        self._limit = min(taken + _AHEAD * len(self._threads), len(self._tasks))
        self._condition.notify_all()

    def check(self) -> None:
        """To be called by long tasks now and then: raises `Cancelled` when the result is not wanted any more."""
        if self._stopped:
            raise Cancelled

    def _start(self) -> None:
        inherited = torch.get_num_threads()
        try:
            for thread in self._threads:
                thread.start()
            for _ in self._threads:
                self._ready.acquire()
        finally:
            torch.set_num_threads(inherited)

    def _work(self) -> None:
        try:
            torch.get_num_threads()  # the first use adopts the inherited count: later, that would undo the next line
            torch.set_num_threads(1)
        finally:
            self._ready.release()
        while True:
            with self._condition:
                with stage("wait"):
                    while not self._closed and (self._stopped or self._next >= self._limit):
                        self._condition.wait()
                if self._closed:
                    return
                index, self._next = self._next, self._next + 1
                task = self._tasks[index]
                self._busy += 1
            result: object = None
            error: BaseException | None = None
            try:
                with torch.inference_mode():
                    result = task()
            except BaseException as caught:
                error = caught
            del task  # with what it holds in memory
            with self._condition:
                self._busy -= 1
                if error is None:
                    self._results[index] = result
                elif not isinstance(error, Cancelled):
                    self._stopped = True
                    self._error = self._error or error
                self._condition.notify_all()
            del result, error
