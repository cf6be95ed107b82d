"""What a run writes beside its weights: a table, TensorBoard's events, and what the network makes of songs."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from torch import nn

from umx_ext import audio
from umx_ext.errors import MissingExtraError, OutputError
from umx_ext.plot import require_matplotlib
from umx_ext.separation.config import Config
from umx_ext.training.options import TrainOptions
from umx_ext.training.tracks import Pack
from umx_ext.training.validation import Song, separated_songs

__all__ = ["Journal", "save_atomically"]

COLUMNS = ("step", "loss", "valid_vocals_sdr_db", "valid_accompaniment_sdr_db", "seconds")


def save_atomically(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint under a temporary name and rename it.

    Raises:
        OutputError: the disk is full, or the folder cannot be written; what was there before stays.
    """
    _write(path, "wb", lambda file: torch.save(state, file))


def _write(path: Path, mode: str, write: Callable[[IO[Any]], None]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open(mode, newline="" if "b" not in mode else None) as file:
            write(file)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter
        temporary.unlink(missing_ok=True)
        why = getattr(error, "strerror", None) or "the disk may be full"
        raise OutputError(
            f"{path} cannot be written: {why}; make room and start the same command again, the run goes on from its "
            "last checkpoint"
        ) from error


class Journal:
    """A context that keeps account of a run.

    Args:
        folder: of the run.
        pack, config, options: of the run.
        tensorboard: write its events as well.

    Raises:
        MissingExtraError: TensorBoard was asked for, or pictures of examples, and their package is not installed.
        OutputError: the folder cannot be made.
    """

    def __init__(self, folder: Path, pack: Pack, config: Config, options: TrainOptions, *, tensorboard: bool) -> None:
        self.folder, self.pack, self.config, self.options = folder, pack, config, options
        if options.examples:
            require_matplotlib()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder} cannot be made ({error.strerror}); give one that can be written") from error
        self._events: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingExtraError(
                    "TensorBoard needs its package; in umx-ext's folder run: pip install '.[research]'"
                ) from error
            self._events = SummaryWriter(folder / "tensorboard")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._events is not None:
            self._events.close()

    def keep(self, log: Sequence[Sequence[float]]) -> None:
        """The table, of all validations so far."""

        def table(file: IO[str]) -> None:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows([[int(row[0]), *(f"{value:.4f}" for value in row[1:])] for row in log])

        _write(self.folder / "log.csv", "w", table)

    def stepped(self, step: int, loss: float, learning_rate: float) -> None:
        """After every step."""
        if self._events is not None:
            self._events.add_scalar("loss", loss, step)
            self._events.add_scalar("learning rate", learning_rate, step)

    def validated(self, log: Sequence[Sequence[float]], net: nn.Module, device: torch.device) -> None:
        """After every validation: the table so far, and some songs as the network separates them now."""
        self.keep(log)
        step, _, target, rest, _ = log[-1]
        if self._events is not None:
            self._events.add_scalar("valid/target SDR, dB", target, int(step))
            self._events.add_scalar("valid/rest SDR, dB", rest, int(step))
        if self.options.examples:
            for song in separated_songs(net, self.pack, self.config, device, most=self.options.examples):
                self._keep(song, int(step))

    def _keep(self, song: Song, step: int) -> None:
        """A song's stem as audio, and its spectrogram beside the true one's as a picture; the last step's stay."""
        from umx_ext.plot import Sketch

        folder = self.folder / "examples"
        rate = self.config.sample_rate
        stem = self.config.stems[0]
        audio.write(folder / f"{song.name}.{stem}.wav", song.estimate, rate)
        signals = {"mixture": song.mixture, f"true {stem}": song.target, f"{stem} found": song.estimate}
        sketch = Sketch(list(signals))
        sketch.add(signals)
        sketch.save(folder / f"{song.name}.png", title=f"{song.name}, step {step}", sample_rate=rate)
        if self._events is not None:
            self._events.add_audio(song.name, song.estimate.mean(0, keepdim=True), step, sample_rate=rate)
            self._events.add_image(song.name, _picture(folder / f"{song.name}.png"), step, dataformats="HWC")


def _picture(path: Path) -> Any:
    from matplotlib import image

    return image.imread(path)
