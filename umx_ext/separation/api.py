"""The three lines most people need: `load`, `separate`, `models`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from umx_ext.errors import AudioError, UsageError
from umx_ext.separation.pretrained import load, models
from umx_ext.separation.separator import Options, Separator
from umx_ext.stems import Stems

if TYPE_CHECKING:
    import numpy as np

__all__ = ["load", "models", "separate"]


def separate(
    source: str | os.PathLike[str] | Tensor | np.ndarray,
    sample_rate: int | None = None,
    *,
    model: str | os.PathLike[str] | Separator | None = None,
    options: Options | None = None,
    device: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> Stems:
    """Take a song apart.

    Args:
        source: the path of a file, a tensor `(channels, samples)` or `(batch, channels, samples)`, or a numpy array
            `(samples, channels)` or `(samples,)` as soundfile reads it.
        sample_rate: of a tensor or array, Hz; a file knows its own.
        model: name, path, or a loaded `Separator`; None: the default model.
        options: see `Options`.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"``; not together with a loaded model. None: ``"auto"``.
        progress: called with the share that is done, 0 to 1.

    Returns:
        `Stems` at the source's own rate, channels and length.

    Raises:
        AudioError: the source is not audio that can be read.
        ModelError: the model cannot be loaded.
        UsageError: arguments that contradict each other.

    >>> import torch, umx_ext
    >>> tiny = umx_ext.Separator(umx_ext.Config(hidden=8, n_fft=512, hop=128, n_mels=8))
    >>> stems = umx_ext.separate(torch.randn(2, 8000), 44100, model=tiny)
    >>> list(stems), stems["vocals"].shape
    (['vocals', 'accompaniment'], torch.Size([2, 8000]))
    """
    if isinstance(model, Separator):
        if device is not None:
            raise UsageError("a loaded model has its device already; call model.to(device), or leave out device=")
        separator = model
    else:
        separator = load(model, device=device or "auto")
    if isinstance(source, (str, os.PathLike)):
        if sample_rate is not None:
            raise UsageError(f"the sample rate of the file {os.fspath(source)!r} is its own; leave out sample_rate=")
        from umx_ext import audio

        waveform, sample_rate = audio.read(source)
    elif sample_rate is None:
        raise UsageError("a waveform never travels without its rate; pass sample_rate= in Hz")
    elif isinstance(source, Tensor):
        waveform = source
    else:
        waveform = torch.from_numpy(_channels_first(source))
    return separator.separate(waveform, sample_rate, options, progress=progress)


def _channels_first(array: np.ndarray) -> np.ndarray:
    import numpy as np

    array = np.asarray(array)
    if array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.floating):
        raise AudioError(
            f"expected an array (samples,) or (samples, channels) of floats, got {array.shape} of {array.dtype}"
        )
    # A copy in float32: the caller's array is neither changed nor shared.
    return np.array(np.atleast_2d(array.T), dtype=np.float32, order="C")
