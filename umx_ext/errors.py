"""Every error umx_ext raises on purpose.

All of them are `UmxError`. Each says in one sentence what came, what was expected and what to do, and carries the
exit code that the command line answers with.

    UmxError                1   some inputs failed
      UsageError            2   the call itself makes no sense (also a ValueError)
      ModelError            3   a model cannot be found, downloaded, verified or built (also a ValueError)
      AudioError            4   this is not audio that can be read or used (also a ValueError)
      OutOfMemoryError      5   the machine's memory is too small for the settings (also a MemoryError)
      OutputError           6   a file cannot be written (also an OSError)
      MissingExtraError     2   an optional package is not installed (also an ImportError)
"""

from __future__ import annotations

__all__ = [
    "AudioError",
    "MissingExtraError",
    "ModelError",
    "OutOfMemoryError",
    "OutputError",
    "UmxError",
    "UsageError",
]


class UmxError(Exception):
    """Base of all errors raised by umx_ext on purpose."""

    exit_code = 1


class UsageError(UmxError, ValueError):
    """The arguments contradict each other or name something that does not exist."""

    exit_code = 2


class ModelError(UmxError, ValueError):
    """A model is unknown, damaged, of another architecture, or could not be downloaded."""

    exit_code = 3


class AudioError(UmxError, ValueError):
    """A file or an array is not audio that can be processed."""

    exit_code = 4


class OutOfMemoryError(UmxError, MemoryError):
    """Memory ran out; the message names the setting that needs less."""

    exit_code = 5


class OutputError(UmxError, OSError):
    """An output could not be written; nothing half written is left behind."""

    exit_code = 6


class MissingExtraError(UmxError, ImportError):
    """An optional package is missing or broken; the message is the command that mends it."""

    exit_code = 2
