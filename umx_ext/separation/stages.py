"""Where the time of a separation goes.

Code that takes time says so with ``with stage("Wiener"):``. Whoever wants to know listens::

    with Stages() as stages:
        umx_ext.separate("song.wav")
    stages.seconds  # {"load": 0.1, "resample": 0.2, ...}

Nobody pays for it otherwise. Who listens is part of the context (`contextvars`): two threads that separate at the same
time do not hear each other, and the threads that work for one of them are told whom they work for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TypeVar

__all__ = ["Stages", "stage", "staged"]

Item = TypeVar("Item")

_listener: ContextVar[Stages | None] = ContextVar("umx_ext stages", default=None)


class Stages:
    """Adds up the seconds of each stage, over all threads; a stage within a stage counts for the inner one alone.

    Attributes:
        seconds: by the stage's name, in the order in which they first ended.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._lock = threading.Lock()
        self._open = threading.local()  # the stages that this thread is in
        self._token: Token[Stages | None] | None = None

    def __enter__(self) -> Stages:
        self._token = _listener.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._token is not None
        _listener.reset(self._token)

    def begin(self, name: str) -> None:
        """This thread enters a stage."""
        now, names = self._clock(), self._names()
        if names:
            self._add(names[-1], now - self._open.since)
        names.append(name)
        self._open.since = now

    def end(self) -> None:
        """This thread leaves the stage that it entered last."""
        now, names = self._clock(), self._names()
        self._add(names.pop(), now - self._open.since)
        self._open.since = now

    def _names(self) -> list[str]:
        if not hasattr(self._open, "names"):
            self._open.names = []
        names: list[str] = self._open.names
        return names

    def _add(self, name: str, seconds: float) -> None:
        with self._lock:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds


class stage:
    """A context: what is done in it counts for this stage, if somebody listens."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stages: Stages | None = None

    def __enter__(self) -> None:
        self._stages = _listener.get()
        if self._stages is not None:
            self._stages.begin(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stages is not None:
            self._stages.end()


def staged(name: str, items: Iterable[Item]) -> Iterator[Item]:
    """The items; making each of them counts for this stage, and what is done with them does not."""
    iterator = iter(items)
    while True:
        with stage(name):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item
