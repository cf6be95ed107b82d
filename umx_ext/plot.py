"""The picture of a separation: waveforms and spectrograms of the mixture and its stems, one time axis.

A `Sketch` takes blocks as they come and keeps a few thousand columns, whatever the length: when it is full, pairs of
columns become one. matplotlib (extra `research`) is imported when the picture is drawn.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from umx_ext.errors import MissingExtraError, OutputError

__all__ = ["Sketch", "require_matplotlib"]

COLUMNS = 2048  # most columns kept: about twice the pixels of the picture's width
STEP = 1024  # samples of a column at first, and between spectra at least
SPECTRA = 4  # a column averages, when it has become longer
N_FFT = 4096
CHUNK = 256  # spectra computed at a time: 4 MB of samples

BANDS = 192
LOWEST_HZ, HIGHEST_HZ = 50.0, 16000.0
RANGE_DB = 80.0
TICKS_HZ = (100, 200, 500, 1000, 2000, 5000, 10000)

INK, FAINT = "#22252b", "#8a8f99"
COLOURS = {
    "mixture": "#5b6472",
    "vocals": "#d1495b",
    "accompaniment": "#2a7f9e",
    "drums": "#b8860b",
    "bass": "#6a4c93",
    "other": "#3c8d5a",
}


def require_matplotlib() -> None:
    """Raise `MissingExtraError` where no picture can be drawn; call it before the work that the picture is of."""
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingExtraError(f"a picture needs matplotlib ({error}); run: pip install matplotlib") from error


class Sketch:
    """Waveform envelopes and averaged spectra of signals that arrive in blocks.

    Args:
        names: of the signals, in the order of the picture from top to bottom; the first is what the others' colours are
            relative to.

    >>> sketch = Sketch(["mixture"])
    >>> sketch.add({"mixture": torch.zeros(2, 44100)})
    >>> sketch.seconds(44100)
    1.0
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._signals = {name: _Signal() for name in names}

    def add(self, blocks: Mapping[str, Tensor]) -> None:
        """Take in the next block of every signal, (channels, samples); the picture shows the mean of the channels."""
        for name, signal in self._signals.items():
            signal.add(blocks[name].detach().float().mean(0).cpu())

    def seconds(self, sample_rate: int) -> float:
        """How much has been taken in."""
        return next(iter(self._signals.values())).samples / sample_rate

    def png(self, *, sample_rate: int, title: str = "") -> bytes:
        """Draw the picture; nothing can be added after that. Arguments and errors as `save`'s."""
        require_matplotlib()
        for signal in self._signals.values():
            signal.finish()
        return _draw(self._signals, sample_rate, title)

    def save(self, path: str | os.PathLike[str], *, sample_rate: int, title: str = "") -> None:
        """Draw the picture and write it as PNG; nothing can be added after that.

        Args:
            path: the file; its folder is made, and it appears whole or not at all.
            sample_rate: of the signals, Hz.
            title: stands above the picture.

        Raises:
            MissingExtraError: matplotlib is missing or broken.
            OutputError: the file cannot be written.
        """
        png = self.png(sample_rate=sample_rate, title=title)
        target = Path(path)
        part = target.with_name(f".{target.name[:80]}.{os.getpid()}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                part.write_bytes(png)
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"{target} cannot be written ({error.strerror}); make room, or give another --out"
            ) from error


class _Signal:
    """One signal: extremes and power spectra by column, each column `self._length` samples."""

    def __init__(self) -> None:
        self.samples = 0
        self._length = STEP
        self._waiting = torch.zeros(0)
        self._low: list[Tensor] = []
        self._high: list[Tensor] = []
        self._power: list[Tensor] = []  # (columns, N_FFT // 2 + 1) until `finish`
        self._count = 0
        self._window = torch.hann_window(N_FFT)

    def add(self, block: Tensor) -> None:
        self.samples += block.shape[-1]
        self._waiting = torch.cat([self._waiting, block])
        self._advance()

    def _advance(self) -> None:
        # A column's last spectrum reaches N_FFT samples beyond the column, so those must be here.
        while (ready := (len(self._waiting) - N_FFT) // self._length) > 0:
            taken = min(ready, COLUMNS - self._count, max(1, CHUNK * STEP // self._length))
            self._take(taken)
            if self._count == COLUMNS:
                self._halve()

    def _take(self, columns: int) -> None:
        samples = columns * self._length
        shaped = self._waiting[:samples].view(columns, self._length)
        self._low.append(shaped.amin(1))
        self._high.append(shaped.amax(1))
        step = max(STEP, self._length // SPECTRA)
        frames = self._waiting[: samples - step + N_FFT].unfold(0, N_FFT, step)  # (columns * frames, N_FFT)
        power = torch.fft.rfft(frames * self._window).abs().square()
        self._power.append(power.view(columns, -1, power.shape[-1]).mean(1))
        self._count += columns
        self._waiting = self._waiting[samples:].clone()

    def _halve(self) -> None:
        self._low = [torch.cat(self._low).view(-1, 2).amin(1)]
        self._high = [torch.cat(self._high).view(-1, 2).amax(1)]
        self._power = [torch.cat(self._power).view(COLUMNS // 2, 2, -1).mean(1)]
        self._count //= 2
        self._length *= 2

    def finish(self) -> None:
        """The rest, with silence behind it."""
        columns = -(-len(self._waiting) // self._length)
        if columns:
            self._waiting = torch.cat([self._waiting, torch.zeros(columns * self._length - len(self._waiting) + N_FFT)])
            self._advance()

    def envelope(self) -> tuple[Any, Any]:
        """Lowest and highest sample of each column."""
        return torch.cat(self._low).numpy(), torch.cat(self._high).numpy()

    def spectrogram(self, bands: Tensor) -> Tensor:
        """Power by band and column, (bands, columns), with full scale about 1."""
        scale = (self._window.sum() / 2) ** 2
        return bands @ torch.cat(self._power).T / scale

    @property
    def drawn_samples(self) -> int:
        return self._count * self._length


def _bands(sample_rate: int) -> Tensor:
    """(bands, bins) triangles with equal steps of log frequency; low ones, narrower than a bin, interpolate."""
    bins = torch.arange(N_FFT // 2 + 1) * (sample_rate / N_FFT)
    centres = torch.logspace(math.log10(LOWEST_HZ), math.log10(_top_hz(sample_rate)), BANDS)
    half = torch.clamp(centres * (centres[1] / centres[0] - 1), min=sample_rate / N_FFT)
    weights = (1 - (bins - centres[:, None]).abs() / half[:, None]).clamp_min(0)
    return weights / weights.sum(1, keepdim=True).clamp_min(1e-12)


def _top_hz(sample_rate: int) -> float:
    return max(min(HIGHEST_HZ, sample_rate / 2), 2 * LOWEST_HZ)


def _draw(signals: Mapping[str, _Signal], sample_rate: int, title: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(signals)
    figure = Figure(figsize=(12.0, 1.1 + 2.6 * rows), dpi=120, facecolor="white")
    height = figure.get_figheight()
    grid = figure.add_gridspec(
        rows, 2, width_ratios=[1.0, 0.012], left=0.06, right=0.935, top=1 - 0.72 / height, bottom=0.5 / height,
        hspace=0.16, wspace=0.02,
    )  # fmt: skip
    bands = _bands(sample_rate)
    pictures = {name: signal.spectrogram(bands) for name, signal in signals.items()}
    loudest = max(float(next(iter(pictures.values())).max()), 1e-12)
    seconds = next(iter(signals.values())).samples / sample_rate
    peak = max(max(-float(low.min()), float(high.max())) for low, high in (s.envelope() for s in signals.values()))
    unit, per_unit = ("min", 60.0) if seconds > 180 else ("s", 1.0)
    image: Any = None
    for row, (name, signal) in enumerate(signals.items()):
        until = signal.drawn_samples / sample_rate / per_unit
        pair = grid[row, 0].subgridspec(2, 1, height_ratios=[1.0, 2.2], hspace=0.04)
        wave = figure.add_subplot(pair[0])
        image_axes = figure.add_subplot(pair[1], sharex=wave)
        _draw_wave(wave, name, signal, until, max(peak, 1e-3))
        image = _draw_spectrogram(image_axes, pictures[name], loudest, until, sample_rate)
        image_axes.set_xlim(0, max(seconds / per_unit, 1e-3))
        image_axes.tick_params(labelbottom=row == rows - 1)
    image_axes.set_xlabel(f"time, {unit}", color=INK, fontsize=10)
    scale = figure.colorbar(image, cax=figure.add_subplot(grid[:, 1]))
    scale.set_label(f"dB, loudest of the {next(iter(signals))} = 0", color=INK, fontsize=9)
    scale.outline.set_visible(False)
    _quiet_ticks(scale.ax)
    top = 1 - 0.26 / height
    figure.text(0.06, top, title, fontsize=14, fontweight="bold", color=INK, va="center", parse_math=False)
    says = f"{_clock(seconds)}, {sample_rate / 1000:g} kHz"
    figure.text(0.935, top, says, fontsize=10, color=FAINT, va="center", ha="right")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _draw_wave(axes: Any, name: str, signal: _Signal, until: float, peak: float) -> None:
    low, high = signal.envelope()
    times = torch.linspace(0, until, len(low) + 1)[:-1].numpy()
    colour = COLOURS.get(name, INK)
    axes.fill_between(times, low, high, color=colour, linewidth=0.4, step="post")
    axes.axhline(0, color=colour, linewidth=0.5)
    axes.set_ylim(-1.08 * peak, 1.08 * peak)
    axes.set_yticks([])
    axes.tick_params(labelbottom=False, bottom=False)
    for side in axes.spines.values():
        side.set_visible(False)
    # Above, where no wave can hide it.
    axes.text(0, 0.98, name, transform=axes.transAxes, va="bottom", fontsize=10, fontweight="bold", color=colour)


def _draw_spectrogram(axes: Any, power: Tensor, loudest: float, until: float, sample_rate: int) -> Any:
    decibels = 10 * torch.log10(power.clamp_min(1e-14) / loudest)
    low, high = math.log10(LOWEST_HZ), math.log10(_top_hz(sample_rate))
    image = axes.imshow(
        decibels.numpy(),
        origin="lower",
        aspect="auto",
        extent=(0, until, low, high),
        vmin=-RANGE_DB,
        vmax=0,
        cmap="magma",
        interpolation="antialiased",
    )
    ticks = [hz for hz in TICKS_HZ if math.log10(hz) < high]
    axes.set_yticks(
        [math.log10(hz) for hz in ticks], [f"{hz // 1000} kHz" if hz >= 1000 else f"{hz} Hz" for hz in ticks]
    )
    axes.set_ylim(low, high)
    _quiet_ticks(axes)
    for side in axes.spines.values():
        side.set_visible(False)
    return image


def _quiet_ticks(axes: Any) -> None:
    axes.tick_params(colors=INK, labelsize=8, length=2.5, width=0.6)


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
