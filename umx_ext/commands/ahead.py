"""Reading ahead: a file is decoded while what was read before is being separated."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType

from torch import Tensor

__all__ = ["Ahead"]


class Ahead:
    """The blocks of an iterable, made in a thread of its own, a limited number of samples before they are asked for.

    A context: when it is left no thread reads any more, and what the blocks come from can be closed. An error of the
    iterable is raised where its block would have come.

    Args:
        blocks: `(channels, samples)` each.
        most: samples, about, that may wait.
    """

    def __init__(self, blocks: Iterable[Tensor], most: int) -> None:
        self._blocks, self._most = blocks, most
        self._condition = threading.Condition()
        self._waiting: deque[Tensor] = deque()
        self._samples = 0  # of what waits
        self._error: BaseException | None = None
        self._ended = self._left = False
        # It reports to whom its maker reports (see `umx_ext.separation.stages`).
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._read,), name="read ahead", daemon=True
        )

    def __enter__(self) -> Iterator[Tensor]:
        self._thread.start()
        return self._taken()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._condition:
            self._left = True
            self._condition.notify_all()
        self._thread.join()

    def _taken(self) -> Iterator[Tensor]:
        while True:
            with self._condition:
                while not self._waiting and not self._ended:
                    self._condition.wait()
                if not self._waiting:
                    if self._error is not None:
                        raise self._error
                    return
                block = self._waiting.popleft()
                self._samples -= block.shape[-1]
                self._condition.notify_all()
            yield block

    def _read(self) -> None:
        try:
            for block in self._blocks:
                with self._condition:
                    self._waiting.append(block)
                    self._samples += block.shape[-1]
                    self._condition.notify_all()
                    while self._samples >= self._most and not self._left:
                        self._condition.wait()
                    if self._left:
                        return
        except BaseException as error:
            self._error = error
        finally:
            with self._condition:
                self._ended = True
                self._condition.notify_all()
