"""Whether the command was interrupted.

An interrupt is an exception, and an exception can get lost: one that arrives while a compiled module is being imported
is cleared by some of them as if their own import had failed. So what is about to take long asks again.
"""

from __future__ import annotations

import threading

__all__ = ["arrived", "heed"]

arrived = threading.Event()


def heed() -> None:
    """Raise the interrupt that arrived and was lost, if there was one."""
    if arrived.is_set():
        raise KeyboardInterrupt
