"""A command's wall time and peak memory, for the benchmarks beside this file."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

__all__ = ["measured"]


def measured(arguments: Sequence[str]) -> tuple[float, float]:
    """Run Python with these arguments as a process of its own: seconds, and the largest resident set in MB.

    Raises:
        CalledProcessError: it failed.
        RuntimeError: it was never larger than this process has been. A new process counts as its own what it was
            before it became the command, a copy of this one, so such a figure would be ours.
    """
    command = [sys.executable, *arguments]
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    pid = os.posix_spawn(sys.executable, command, os.environ)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    if usage.ru_maxrss <= ours:
        raise RuntimeError(f"the command needs no more memory than this script has needed, {ours // 1024} MB")
    return seconds, usage.ru_maxrss / 1024
