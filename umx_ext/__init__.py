"""umx_ext takes a song apart into stems, puts stems together into a song, and judges both.

    >>> import umx_ext                                        # doctest: +SKIP
    >>> stems = umx_ext.separate("song.wav")                  # doctest: +SKIP
    >>> stems["vocals"], stems["accompaniment"]               # doctest: +SKIP

Importing this module imports nothing else; each name is loaded at its first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umx_ext.errors import (
        AudioError,
        MissingExtraError,
        ModelError,
        OutOfMemoryError,
        OutputError,
        UmxError,
        UsageError,
    )
    from umx_ext.evaluation.benchmark import benchmark
    from umx_ext.evaluation.scores import evaluate
    from umx_ext.separation.api import load, models, separate
    from umx_ext.separation.config import Config
    from umx_ext.separation.separator import Options, Separator
    from umx_ext.stems import Stems
    from umx_ext.training.fit import fit

__version__ = "0.1.0"

_HOMES = {
    "separate": "umx_ext.separation.api",
    "load": "umx_ext.separation.api",
    "models": "umx_ext.separation.api",
    "evaluate": "umx_ext.evaluation.scores",
    "benchmark": "umx_ext.evaluation.benchmark",
    "fit": "umx_ext.training.fit",
    "Separator": "umx_ext.separation.separator",
    "Options": "umx_ext.separation.separator",
    "Config": "umx_ext.separation.config",
    "Stems": "umx_ext.stems",
    "AudioError": "umx_ext.errors",
    "MissingExtraError": "umx_ext.errors",
    "ModelError": "umx_ext.errors",
    "OutOfMemoryError": "umx_ext.errors",
    "OutputError": "umx_ext.errors",
    "UmxError": "umx_ext.errors",
    "UsageError": "umx_ext.errors",
}

__all__ = [
    "AudioError",
    "Config",
    "MissingExtraError",
    "ModelError",
    "Options",
    "OutOfMemoryError",
    "OutputError",
    "Separator",
    "Stems",
    "UmxError",
    "UsageError",
    "__version__",
    "benchmark",
    "evaluate",
    "fit",
    "load",
    "models",
    "separate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'umx_ext' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
