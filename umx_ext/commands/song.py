"""One song, from its file to the files of its stems, in memory that its length does not change."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from umx_ext import audio
from umx_ext.commands.ahead import Ahead
from umx_ext.commands.levels import Levels
from umx_ext.commands.plan import STDIN_SHOWN, Job
from umx_ext.commands.spool import Spool
from umx_ext.commands.terminal import one_line
from umx_ext.errors import AudioError, OutOfMemoryError, UmxError, UsageError
from umx_ext.separation.stages import stage, staged

if TYPE_CHECKING:
    from umx_ext.plot import Sketch
    from umx_ext.separation.separator import Options, Separator

__all__ = ["Cancelled", "Files", "Recipe", "Report", "check_format", "out_of_memory_as_ours", "take_apart"]

MIXTURE, VOCALS, ACCOMPANIMENT = "mixture", "vocals", "accompaniment"
FLOAT = "32f"
AHEAD_S = 60.0  # of the input that is decoded while a block is separated: 21 MB of stereo
CHUNK_SAMPLES = 1 << 17  # mixed down and written at a time: a separator's block has minutes of sound


class Cancelled(Exception):
    """The run was interrupted while a worker was busy; nobody sees this."""


@dataclass(frozen=True)
class Recipe:
    """What is done to every song of a call.

    Attributes:
        stems: names of the files to write of each song, in order.
        asked: stems that the separator computes.
        drawn: stems of the picture.
        guide: amplitude of the voice that is left in the accompaniment, 0 to 1.
        remainders: stems that are the mixture minus others, and which.
        options: the separator's.
        format: key of `audio.FORMATS`.
        bits: ``"16"``, ``"24"``, ``"32f"`` or None for the input's.
        bitrate_kbps: of lossy formats; None: the format's default.
        clip_mode: ``"rescale"``, ``"clamp"`` or ``"none"``.
        rate_hz, channels: of the files; None for the input's.
        start_s, duration_s: part of the input to take; None to the end.
        keep_tags: title, artist and cover of the input go into what is written.
        overwrite: files that are there are replaced.
    """

    stems: tuple[str, ...]
    asked: tuple[str, ...]
    drawn: tuple[str, ...]
    guide: float
    remainders: Mapping[str, tuple[str, ...]]
    options: Options
    format: str
    bits: str | None
    bitrate_kbps: int | None
    clip_mode: str
    rate_hz: int | None
    channels: int | None
    start_s: float
    duration_s: float | None
    keep_tags: bool
    overwrite: bool


@dataclass
class Report:
    """What became of one song. Levels are None where there is nothing to measure (silence, no vocals)."""

    outputs: dict[str, Path]
    plot: Path | None = None
    sample_rate: int = 0
    channels: int = 0
    samples: int = 0
    duration_s: float = 0.0
    seconds: float = 0.0
    vocals_level_db: float | None = None
    voice_down_db: float | None = None
    gain_db: float = 0.0
    notes: list[str] = field(default_factory=list)


class Files:
    """The files being written for one song; another thread may take them away at any moment with `discard`."""

    def __init__(self, cancelled: threading.Event) -> None:
        self._cancelled = cancelled
        self._lock = threading.Lock()
        self._writers: dict[str, audio.AudioWriter] = {}
        self._new_folders: list[Path] = []
        self._pool = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="write")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._lock:
            if self._cancelled.is_set():
                raise Cancelled
            yield

    def open(self, name: str, path: Path, sample_rate: int, channels: int, **how: Any) -> audio.AudioWriter:
        """Begin a file; it appears under its name at `commit`."""
        with self._alone():
            self._new_folders += [folder for folder in path.parents if not folder.exists()]
            self._writers[name] = audio.AudioWriter(path, sample_rate, channels, **how)
            return self._writers[name]

    def write(self, blocks: Mapping[str, Tensor]) -> None:
        """Append a block, (channels, samples), to each open file; all are encoded at the same time."""
        with self._alone():
            writes = [self._pool.submit(writer.write, blocks[name]) for name, writer in self._writers.items()]
            wait(writes)
            for write in writes:
                write.result()

    def commit(self) -> list[str]:
        """Give every file its name: all of them, or none where the run was interrupted before.

        Returns:
            what the format could not hold, in words.
        """
        notes: dict[str, None] = {}
        with self._alone():
            for writer in self._writers.values():
                writer.commit()
                if writer.note:
                    notes[writer.note] = None
                if writer.clipped:
                    notes[f"{os.path.basename(writer.path)}: {writer.clipped} samples clipped"] = None
            self._writers = {}
            self._pool.shutdown()
        return list(notes)

    def save(self, picture: Sketch, path: Path, **what: Any) -> None:
        """Write the picture."""
        with self._alone():
            picture.save(path, **what)

    def discard(self) -> None:
        """Remove what is not committed; waits for a block that is being written this moment."""
        with self._lock:
            for writer in self._writers.values():
                writer.abort()
            self._writers = {}
            # A writer that failed by itself could not remove its folder while the others had files there.
            for folder in self._new_folders:
                with suppress(OSError):  # somebody else's by now
                    folder.rmdir()
            self._new_folders = []

    def check(self) -> None:
        """Raise `Cancelled` if the run was interrupted."""
        with self._alone():
            pass


def take_apart(
    job: Job, separator: Separator, recipe: Recipe, files: Files, *, progress: Callable[[int, int | None], None]
) -> Report:
    """Separate one song and write its stems.

    Args:
        progress: called with samples done and samples in all (None where the file does not say).

    Raises:
        UmxError: with the song's path in the message.
    """
    begin = time.perf_counter()
    shown = job.source.shown
    try:
        with out_of_memory_as_ours(shown, "use shorter blocks (--segment 10), fewer songs at a time (-j 1), or -d cpu"):
            report = _take_apart(job, separator, recipe, files, progress)
    except UmxError as error:
        files.discard()
        said = one_line(str(error))
        if job.source.path is None:  # nobody knows the temporary file that standard input was put into
            said = said.replace(str(job.path), STDIN_SHOWN)
        named = any(one_line(str(name)) in said for name in (shown, STDIN_SHOWN, *job.outputs.values()))
        raise type(error)(said if named else f"{shown}: {said}") from error
    except BaseException:
        files.discard()
        raise
    report.seconds = time.perf_counter() - begin
    return report


@contextmanager
def out_of_memory_as_ours(what: str, remedy: str) -> Iterator[None]:
    """Whatever says that memory ran out comes out as `OutOfMemoryError`."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error) and not isinstance(error, OutOfMemoryError):
            raise OutOfMemoryError(f"{what}: out of memory; {remedy}") from error
        raise


def _take_apart(
    job: Job, separator: Separator, recipe: Recipe, files: Files, progress: Callable[[int, int | None], None]
) -> Report:
    report = Report(dict(job.outputs), job.plot)
    levels = Levels()
    picture = _new_sketch(recipe) if job.plot is not None else None
    with _reader(job, recipe) as reader:
        shape = _Shape.of(reader, recipe)
        bounded = bool(job.outputs) and recipe.clip_mode == "rescale" and not shape.holds_any_level
        _open_files(files, job, recipe, shape)
        folder = next(iter(job.outputs.values())).parent if job.outputs else Path()
        # While nothing is too loud for the format the files are written at once. The stems are kept on disk beside
        # them, because the block that is too loud may be the last, and then all of them start again with a gain.
        with (
            Spool(folder, shape.channels) if bounded else nullcontext() as spool,
            closing(_separated(reader, separator, recipe, shape, progress)) as separated,  # it reads from the reader
        ):
            peak = 0.0
            for parts in separated:
                files.check()
                with stage("subtract"):
                    blocks = _mixdown(parts, recipe, shape)
                with stage("measure levels"):
                    levels.add(parts, blocks)
                if picture is not None:
                    with stage("draw"):
                        picture.add({MIXTURE: parts[MIXTURE], **{stem: blocks[stem] for stem in recipe.drawn}})
                report.samples += parts[MIXTURE].shape[-1]
                if spool is not None:
                    with stage("measure levels"):
                        loud = _mixdown(parts, recipe, shape, rounds=False)  # rounding also cuts, and hides what it cut
                        peak = max([peak, *(_peak(loud[stem]) for stem in job.outputs)])
                    with stage("keep for a gain"):
                        spool.append([parts[name] for name in recipe.asked])
                    if peak > 1.0:
                        files.discard()
                with stage("encode"):
                    files.write(blocks)
            if report.samples == 0:
                raise AudioError(_nothing_there(job, recipe))
            if spool is not None and peak > 1.0:
                gain = (1 - 2**-15) / peak  # 1 - 2**-15 is the largest number of a 16-bit file
                report.gain_db = 20 * math.log10(gain)
                _open_files(files, job, recipe, shape)
                for parts in _again(spool, job, recipe, shape):
                    files.check()
                    with stage("encode"):
                        files.write(_mixdown(parts, recipe, shape, gain))
    with stage("encode"):
        report.notes += files.commit()
    if picture is not None and job.plot is not None:
        with stage("draw"):
            files.save(picture, job.plot, title=job.source.track, sample_rate=shape.rate_hz)
    report.sample_rate, report.channels = shape.rate_hz, shape.channels
    report.duration_s = report.samples / shape.rate_hz
    report.vocals_level_db = levels.vocals_level_db
    report.voice_down_db = levels.voice_down_db if ACCOMPANIMENT in recipe.stems else None
    return report


def check_format(format: str, bits: str | None, bitrate_kbps: int | None) -> None:
    """Raise `UsageError` where the format is unknown or has no such setting."""
    if format not in audio.FORMATS:
        raise UsageError(f"no format named {format}; known: {', '.join(audio.FORMATS)}")
    known = audio.FORMATS[format].bits
    if bits is not None and bits not in known:
        lossy = not audio.FORMATS[format].lossless
        takes = "has no bits to choose; leave them out" if lossy else f"takes {' or '.join(known)}"
        raise UsageError(f"{format} {takes}, not {bits}")
    if bitrate_kbps is not None and audio.FORMATS[format].lossless:
        raise UsageError(f"{format} is lossless: leave out --mp3-bitrate, or give --format mp3")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, whatever its class, says that memory ran out."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said)


@dataclass(frozen=True)
class _Shape:
    """Rate, channels, bits and tags of what is written, and how a block of the input gets there."""

    from_hz: int
    rate_hz: int
    channels: int
    bits: str
    lossless: bool
    tags: Mapping[str, str] | None
    cover: bytes | None

    @classmethod
    def of(cls, reader: audio.AudioReader, recipe: Recipe) -> _Shape:
        info = reader.info
        return cls(
            reader.sample_rate,
            recipe.rate_hz or reader.sample_rate,
            recipe.channels or reader.channels,
            recipe.bits or nearest_bits(info.bits, recipe.format),
            audio.FORMATS[recipe.format].lossless,
            info.tags if recipe.keep_tags else None,
            audio.cover(reader.path) if recipe.keep_tags and info.has_cover and recipe.format != "wav" else None,
        )

    @property
    def holds_any_level(self) -> bool:
        """Whether the files are float: nothing clips in them."""
        return self.lossless and self.bits == FLOAT

    def converter(self) -> _Converter:
        return _Converter(self)


class _Converter:
    """Blocks of one stem to the channels and the rate of the file, in order."""

    def __init__(self, shape: _Shape) -> None:
        self._channels = shape.channels
        self._resampler = (
            None if shape.from_hz == shape.rate_hz else audio.Resampler(shape.from_hz, shape.rate_hz, shape.channels)
        )

    def push(self, block: Tensor) -> Tensor:
        block = to_channels(block, self._channels)
        return block if self._resampler is None else self._resampler.push(block)

    def flush(self) -> Tensor:
        return torch.zeros(self._channels, 0) if self._resampler is None else self._resampler.flush()


def to_channels(block: Tensor, channels: int) -> Tensor:
    """(channels, samples) to 1 channel (the mean) or 2 (the front pair, or mono twice); any other count is as it is."""
    if block.shape[0] == channels:
        return block
    if channels == 1:
        return block.mean(0, keepdim=True)
    return block.expand(channels, -1) if block.shape[0] == 1 else block[:channels]


def nearest_bits(bits: str, format: str) -> str:
    """The bits of the input, or the most that a lossless format has.

    >>> nearest_bits("16", "wav"), nearest_bits("32f", "flac"), nearest_bits("32f", "mp3")
    ('16', '24', '32f')
    """
    known = audio.FORMATS[format].bits
    return bits if bits in known or not known else known[-1]


def _reader(job: Job, recipe: Recipe) -> audio.AudioReader:
    return audio.AudioReader(job.path, start_s=recipe.start_s, duration_s=recipe.duration_s)


def _open_files(files: Files, job: Job, recipe: Recipe, shape: _Shape) -> None:
    for stem, path in job.outputs.items():
        files.open(
            stem,
            path,
            shape.rate_hz,
            shape.channels,
            format=recipe.format,
            bits=shape.bits,
            bitrate_kbps=recipe.bitrate_kbps,
            tags=shape.tags,
            cover=shape.cover,
            overwrite=recipe.overwrite,
        )


def _separated(
    reader: audio.AudioReader,
    separator: Separator,
    recipe: Recipe,
    shape: _Shape,
    progress: Callable[[int, int | None], None],
) -> Generator[dict[str, Tensor], None, None]:
    """Blocks of the mixture and of each stem asked for, as the files will have them: same samples in each block."""
    names = (MIXTURE, *recipe.asked)
    converters = {name: shape.converter() for name in names}
    done = 0
    with Ahead(staged("decode", reader), round(AHEAD_S * reader.sample_rate)) as blocks:
        for stems in separator.stream(blocks, reader.sample_rate, recipe.options):
            waveforms = {name: stems.mixture if name == MIXTURE else stems[name] for name in names}
            samples = stems.mixture.shape[-1]
            for begin in range(0, samples, CHUNK_SAMPLES):
                chunk = slice(begin, begin + CHUNK_SAMPLES)
                with stage("resample"):
                    parts = {name: converters[name].push(waveform[:, chunk]) for name, waveform in waveforms.items()}
                yield parts
            done += samples
            progress(done, reader.samples)
    yield {name: converters[name].flush() for name in names}


def _again(spool: Spool, job: Job, recipe: Recipe, shape: _Shape) -> Iterator[dict[str, Tensor]]:
    """What `_separated` gave, from the disk; the mixture is decoded a second time instead of kept."""
    spool.rewind()
    converter = shape.converter()
    with _reader(job, recipe) as reader:
        for block in chain((converter.push(block) for block in reader), (converter.flush() for _ in range(1))):
            stems = spool.read(len(recipe.asked), block.shape[-1])
            yield {MIXTURE: block, **dict(zip(recipe.asked, stems, strict=True))}


def _mixdown(
    parts: Mapping[str, Tensor], recipe: Recipe, shape: _Shape, gain: float = 1.0, *, rounds: bool = True
) -> dict[str, Tensor]:
    """The blocks to write, of each stem asked for and of the accompaniment.

    Stems are rounded to the file's bits before they are subtracted from the mixture, so that what stands in the files
    adds up to it to the last bit.
    """
    rounds = rounds and shape.lossless and shape.bits != FLOAT
    scaled = {name: part if gain == 1.0 else part * gain for name, part in parts.items()}
    blocks = {name: audio.quantize(scaled[name], shape.bits) if rounds else scaled[name] for name in recipe.asked}
    for name, others in recipe.remainders.items():
        blocks[name] = scaled[MIXTURE] - sum((blocks[other] for other in others[1:]), blocks[others[0]])
    if recipe.guide:
        blocks[ACCOMPANIMENT] = blocks[ACCOMPANIMENT] + recipe.guide * blocks[VOCALS]
    if recipe.clip_mode == "clamp" and shape.holds_any_level:  # other files do it by themselves, and count
        blocks = {name: block.clamp(-1.0, 1.0) for name, block in blocks.items()}
    return blocks


def _peak(block: Tensor) -> float:
    return float(block.abs().max()) if block.numel() else 0.0


def _nothing_there(job: Job, recipe: Recipe) -> str:
    if recipe.start_s > 0:
        return f"{job.source.shown}: nothing at --start {recipe.start_s:g}: the song ends before; give a smaller one"
    return f"{job.source.shown}: holds no samples; give a file with sound in it"


def _new_sketch(recipe: Recipe) -> Sketch:
    from umx_ext.plot import Sketch

    return Sketch((MIXTURE, *recipe.drawn))
