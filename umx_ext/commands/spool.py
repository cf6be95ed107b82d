"""Stems kept on disk until it is known whether they clip."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from umx_ext.errors import OutputError

__all__ = ["Spool"]


class Spool:
    """Blocks of stems on disk, float32, in a file without a name: it is gone with the process, however that ends."""

    def __init__(self, folder: Path, channels: int) -> None:
        self._folder = folder
        self._channels = channels
        try:
            self._file = tempfile.TemporaryFile(dir=folder, prefix=".umx-ext-")  # noqa: SIM115 - closed in __exit__
        except OSError as error:
            raise self._failed(error) from error

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what it held back of a full disk it cannot write now either
            self._file.close()

    def append(self, stems: Sequence[Tensor]) -> None:
        """Add the next samples of every stem, (channels, samples) each."""
        frames = torch.cat(list(stems)).t().contiguous().float().numpy()  # (samples, stems * channels)
        try:
            self._file.write(frames.data)
        except OSError as error:
            raise self._failed(error) from error

    def rewind(self) -> None:
        """Back to the first sample, for `read`."""
        try:
            self._file.seek(0)
        except OSError as error:
            raise self._failed(error) from error

    def read(self, count: int, samples: int) -> list[Tensor]:
        """The next samples of the `count` stems."""
        width = count * self._channels
        frames = np.frombuffer(self._file.read(4 * width * samples), np.float32).reshape(samples, width)
        return list(torch.from_numpy(frames.T.copy()).split(self._channels))

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self._folder}: no room for the temporary file that finds the common gain ({error.strerror}); make room, "
            "or give --clip-mode clamp, which needs none"
        )
