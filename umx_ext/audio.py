"""All file I/O of sound: read, write, stream in blocks, resample. Waveforms are `(channels, samples)` float32,
full scale 1.0, and travel with their rate.

Decoding is libsndfile's (wav, flac, ogg, opus, mp3, aiff, w64, rf64, ...) or FFmpeg's (m4a, mp4, `.stem.mp4`, webm,
aac, video). The number of samples is what the file declares: encoder delay and padding of mp3 (LAME tag), opus
(pre-skip) and m4a (edit list) are taken off; without such a declaration (raw aac, mp3 without a LAME tag, webm) every
decoded sample counts and `samples` is None. Channels come in WAV's order (left, right, centre, low, ...) from all.

A file cut short raises AudioError, with the samples promised and found, unless only a part that is there is asked
for. An ogg or opus file and an mp3 without a Xing header promise nothing: what is there is read.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import threading
import weakref
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from umx_ext.codecs.decode import open_source, require_file
from umx_ext.codecs.encode import Sink, downmix, mp3_limits, open_sink
from umx_ext.codecs.files import discard, make_folder, rename
from umx_ext.codecs.formats import FORMATS, INPUT_SUFFIXES, AudioInfo, Format, format_of, shown
from umx_ext.codecs.tags import mime, read_tags, replace_tags, write_tags
from umx_ext.errors import AudioError, OutputError, UsageError
from umx_ext.resampling import Resampler, resample

__all__ = [
    "FORMATS",
    "INPUT_SUFFIXES",
    "AudioInfo",
    "AudioReader",
    "AudioWriter",
    "Format",
    "Resampler",
    "Samples",
    "copy_tags",
    "cover",
    "probe",
    "quantize",
    "read",
    "resample",
    "write",
]

BLOCK_SAMPLES = 1 << 18  # 2 MB of stereo: small beside a song, large beside the cost of a call


class AudioReader:
    """A file as blocks `(channels, up to block_samples)`; a context manager that can be iterated once.

    Args:
        start_s, duration_s: the part to read, in seconds, to the sample (`round(seconds * sample_rate)`); the end of
            the file ends it too.
        stream: which audio stream, from 0 (a `.stem.mp4` has five).

    Attributes: sample_rate; channels; samples (what iteration will give in all; None when the file does not tell).

    Raises AudioError, naming the path and a remedy: nothing there, no sound, no samples, a start past the end, cut
    short, NaN or infinity (with the position).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        start_s: float = 0.0,
        duration_s: float | None = None,
        stream: int = 0,
        block_samples: int = BLOCK_SAMPLES,
    ):
        if not (math.isfinite(start_s) and start_s >= 0):
            raise UsageError(f"start_s is {start_s}; give seconds from 0 on")
        if duration_s is not None and not duration_s > 0:
            raise UsageError(f"duration_s is {duration_s}; give seconds above 0, or None for all")
        if block_samples < 1:
            raise UsageError(f"block_samples is {block_samples}; give 1 or more")
        self.path = os.fsdecode(path)
        self._block = block_samples
        require_file(self.path)
        self._source = open_source(self.path, stream)
        try:
            self._plan(start_s, duration_s, stream)
        except BaseException:
            self.close()
            raise

    def _plan(self, start_s: float, duration_s: float | None, stream: int) -> None:
        source, name = self._source, shown(self.path)
        self.sample_rate, self.channels = source.sample_rate, source.channels
        if stream and source.streams == 1:
            raise AudioError(f"{name} has 1 audio stream, numbered from 0: no {stream}")
        claimed = source.samples if source.promised is None else source.promised
        if claimed == 0:
            raise AudioError(f"{name} has no samples; check that the file is complete")
        self._start = round(start_s * self.sample_rate)
        if claimed is not None and self._start >= claimed:
            raise AudioError(f"{name} ends at {claimed / self.sample_rate:.3f} s; give a start before {start_s} s")
        self._stop: int | None = claimed
        if duration_s is not None and math.isfinite(duration_s):
            stop = self._start + max(round(duration_s * self.sample_rate), 1)
            self._stop = stop if claimed is None else min(stop, claimed)
        elif claimed is not None and source.samples is None:
            raise self._cut_short(source.count())
        if claimed is not None and self._stop is not None:
            if source.samples is not None and self._stop > source.samples:
                raise self._cut_short(source.samples)
            self.samples: int | None = self._stop - self._start
        else:
            self.samples = None

    def _cut_short(self, found: int) -> AudioError:
        promised = self._source.promised or self._source.samples
        return AudioError(
            f"{shown(self.path)} is cut short or damaged: its header promises {promised} samples and {found} can be "
            f"read; get it again, or give a duration within its first {found / self.sample_rate:.2f} s"
        )

    @property
    def info(self) -> AudioInfo:
        """The whole file, tags included."""
        source = self._source
        tags, picture = read_tags(self.path)
        return AudioInfo(
            self.path,
            source.sample_rate,
            source.channels,
            source.samples,
            source.bits,
            source.format,
            tags,
            picture is not None,
            source.streams,
        )

    def __iter__(self) -> Iterator[Tensor]:
        for block in self._blocks():
            yield torch.from_numpy(np.array(block.T, np.float32, order="C"))

    def _blocks(self) -> Iterator[np.ndarray]:
        """(samples, channels), views that the next one overwrites. numpy takes channels apart far faster than torch."""
        position = self._start
        if position:
            self._source.skip(position)
        while self._stop is None or position < self._stop:
            size = self._block if self._stop is None else min(self._block, self._stop - position)
            block = self._source.read(size)
            if not len(block):
                break
            self._require_finite(block, position)
            yield block
            position += len(block)
        if self.samples is not None and position < self._start + self.samples:
            raise self._cut_short(position)
        if position == self._start:
            start_s = self._start / self.sample_rate
            raise AudioError(f"{shown(self.path)} ends before {start_s:.3f} s; give an earlier start")

    def _require_finite(self, block: np.ndarray, position: int) -> None:
        if math.isfinite(block.min()) and math.isfinite(block.max()):  # NaN goes through both
            return
        at, channel = np.argwhere(~np.isfinite(block))[0].tolist()
        raise AudioError(
            f"{shown(self.path)} holds {block[at, channel]} at sample {position + at} "
            f"({(position + at) / self.sample_rate:.3f} s), channel {channel + 1}; repair it or use another copy"
        )

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Samples:
    """A file as an array `(samples, channels)` that is read where it is sliced: for work on parts of long files.

    Args:
        path: a file in which a part can be had without what comes before it: wav, flac, aiff, w64, rf64.

    Attributes: shape; ndim; dtype (float32); sample_rate. ``samples[a:b]`` is a new array each time, from any thread.

    Raises AudioError: as `AudioReader` (NaN and infinity when they are read), or the format does not allow it.
    """

    ndim, dtype = 2, np.dtype(np.float32)

    def __init__(self, path: str | os.PathLike[str]):
        with AudioReader(path) as reader:  # it looks for what is damaged
            self.path, self.sample_rate, length = reader.path, reader.sample_rate, reader.samples
        self._source = open_source(self.path, 0)
        if length is None or not self._source.seeks:
            self._source.close()
            raise AudioError(
                f"{shown(self.path)} cannot be read in parts; convert it to one of the plain wav, flac and aiff files"
            )
        self._lock = threading.Lock()  # a file has one position
        self.shape = (length, self._source.channels)
        weakref.finalize(self, self._source.close)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> np.ndarray:
        if not isinstance(part, slice):
            raise TypeError(f"expected a slice of samples, got {part!r}")
        start, stop, step = part.indices(len(self))
        wanted = max(stop - start, 0)
        if step != 1:
            raise UsageError(f"expected a slice without a step, got one of {step}")
        if not wanted:
            return np.empty((0, self.shape[1]), np.float32)
        with self._lock:
            self._source.seek(start)
            found = self._source.read(wanted).copy()
        if len(found) < wanted:
            raise AudioError(
                f"{shown(self.path)} is cut short or damaged at sample {start + len(found)}; get it again"
            )
        if not (math.isfinite(found.min()) and math.isfinite(found.max())):
            at = start + int(np.argwhere(~np.isfinite(found))[0, 0])
            raise AudioError(f"{shown(self.path)} holds NaN or infinity at sample {at}; repair it or use another copy")
        return found

    def __iter__(self) -> Iterator[np.ndarray]:
        raise TypeError(f"{shown(self.path)} is one source: give a list of them")


def probe(path: str | os.PathLike[str]) -> AudioInfo:
    """What the file is, without decoding it (but for its first frame)."""
    require_file(os.fsdecode(path))
    with AudioReader(path, duration_s=1e-9) as reader:
        return reader.info


def read(
    path: str | os.PathLike[str], *, start_s: float = 0.0, duration_s: float | None = None, stream: int = 0
) -> tuple[Tensor, int]:
    """The whole file, or a part of it: `(channels, samples)` float32 and its rate in Hz. Errors as `AudioReader`'s."""
    with AudioReader(path, start_s=start_s, duration_s=duration_s, stream=stream) as reader:
        if reader.samples is None:
            return torch.cat(list(reader), 1), reader.sample_rate
        waveform, position = np.empty((reader.channels, reader.samples), np.float32), 0
        for block in reader._blocks():
            waveform[:, position : position + len(block)] = block.T
            position += len(block)
        return torch.from_numpy(waveform), reader.sample_rate


def cover(path: str | os.PathLike[str]) -> bytes | None:
    """The file's cover picture (JPEG or PNG bytes), if it has one."""
    return read_tags(os.fsdecode(path))[1]


# ------------------------------------------------------------------------------------------------------------- write


def quantize(block: Tensor, bits: str) -> Tensor:
    """The values that a lossless file of that depth holds: the nearest multiple of `2**(1 - bits)` (ties to even, no
    dither) from -1 to the last step below +1; "32f" changes nothing.

    A quantised block is written bit for bit, and what a file of that depth held comes back unchanged. The range is the
    format's own, not a symmetric one: a symmetric one could not copy a sample of -1.
    """
    if bits == "32f":
        return block.to(torch.float32)
    if bits not in ("16", "24"):
        raise UsageError(f"bits is {bits!r}; known: 16, 24, 32f")
    full = float(1 << (int(bits) - 1))
    return (block * full).round_().clamp_(-full, full - 1).div_(full).to(torch.float32)


class AudioWriter:
    """A file written block by block, whole or not at all: it grows under a temporary name in its own folder and gets
    its name from `commit()`, or at the end of a `with` block. An exception (Ctrl-C included), `abort()` or the end of
    the process removes it, and the folders that were made for it.

    Args:
        sample_rate, channels: of the blocks. Where the format cannot hold them they are resampled and mixed down here;
            the attributes `sample_rate` and `channels` then say what the file has, and `note` says it in words.
        format: a key of `FORMATS`; None: by the path's suffix.
        bits: of lossless formats: "16", "24" or "32f" (flac: 24 instead). Rounded as `quantize` does.
        bitrate_kbps: of lossy formats, all channels together; None: the format's default. Nominal for ogg. The low
            channel of m4a's 5.1 and 7.1 (the fourth) keeps only the lowest 120 Hz or so: AAC's rule.
        tags: see `AudioInfo.tags`. cover: bytes of a JPEG or PNG (not in wav).
        overwrite: whether a file that is there is replaced.

    Attributes: path; sample_rate; channels; note; clipped: how many values lay beyond full scale and were clamped to
    it ("32f" holds and keeps them). WAV becomes RF64 when it passes 4 GiB. Every format, lossy ones too, comes back
    with the number of samples that was written; resampled, with `ceil(samples * to_hz / from_hz)`.

    Raises OutputError (nothing is left behind) when it cannot be written, AudioError for blocks that are not
    `(channels, n)` or hold NaN or infinity.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sample_rate: int,
        channels: int,
        *,
        format: str | None = None,
        bits: str = "16",
        bitrate_kbps: int | None = None,
        tags: Mapping[str, str] | None = None,
        cover: bytes | None = None,
        overwrite: bool = True,
    ):
        self.path, self._overwrite = os.fsdecode(path), overwrite
        self._tags, self._cover = dict(tags or {}), cover
        self._in_channels, self.clipped, self._samples = channels, 0, 0
        if sample_rate < 1 or channels < 1 or int(sample_rate) != sample_rate:
            raise UsageError(f"cannot write {channels} channels at {sample_rate} Hz; give whole numbers from 1 on")
        if cover is not None and not mime(cover):
            raise UsageError("the cover is neither JPEG nor PNG; convert it, or leave it out")
        self._kind = kind = format_of(self.path, format)
        self._notes: list[str] = []
        self._bits, kbps = self._settle(kind, int(sample_rate), channels, bits, bitrate_kbps)
        self._sink: Sink | None = None
        self._leftovers: list[str] = []
        self._folders: list[str] = []
        # For a writer that is dropped without commit() or abort(), or alive when the process ends.
        self._finalizer = weakref.finalize(self, discard, self._leftovers, self._folders)
        with self._guarded():
            if os.path.isdir(self.path):
                raise OutputError(f"{shown(self.path)} is a folder; give the name of a file")
            if not overwrite and os.path.lexists(self.path):
                raise OutputError(f"{shown(self.path)} is there already; give another name or allow overwriting")
            folder = os.path.dirname(os.path.abspath(self.path))
            make_folder(folder, self._folders)
            self._leftovers.append(os.path.join(folder, f".{secrets.token_hex(8)}.part"))
            self._file = open(self._leftovers[0], "x+b")  # noqa: SIM115 (closed by commit and abort)
            self._sink = open_sink(
                self._file, self._leftovers[0], kind.name, self.sample_rate, self.channels, self._bits, kbps
            )

    def _settle(self, kind: Format, rate: int, channels: int, bits: str, kbps: int | None) -> tuple[str, int]:
        """What the format can hold of what is asked for: sets the attributes, returns bits and bit rate."""
        if bits not in FORMATS["wav"].bits:
            raise UsageError(f"bits is {bits!r}; known: {', '.join(FORMATS['wav'].bits)}")
        if kbps is not None and kbps < 1:
            raise UsageError(f"bitrate_kbps is {kbps}; give kilobits a second, 8 to 510")
        self.sample_rate, self.channels = kind.nearest_rate(rate), channels
        if channels > kind.max_channels:
            self.channels = min(kind.max_channels, 2)
            self._notes.append(f"{kind.name} holds no {channels} channels: mixed down to {self.channels}")
        if self.sample_rate != rate:
            self._notes.append(f"{kind.name} holds no {rate} Hz: resampled to {self.sample_rate} Hz")
        if kind.lossless and bits not in kind.bits:
            self._notes.append(f"{kind.name} holds no {bits}: written with {kind.bits[-1]} bits")
            bits = kind.bits[-1]
        if kind.name == "mp3" and kbps is not None:
            low, high = mp3_limits(self.sample_rate)
            if not low <= kbps <= high:
                self._notes.append(f"mp3 at {self.sample_rate} Hz holds {low} to {high} kbps, not {kbps}")
                kbps = min(max(kbps, low), high)
        self._gains = None
        if self.channels != channels:
            self._gains = torch.from_numpy(downmix(channels, self.channels))
        self._resampler = Resampler(rate, self.sample_rate, self.channels) if rate != self.sample_rate else None
        return bits, kind.default_kbps(self.channels) if kbps is None else kbps

    @property
    def note(self) -> str | None:
        """What of the input the format could not hold, in words; complete after commit()."""
        return "; ".join(self._notes) or None

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.abort()
            if isinstance(error, OSError) and not isinstance(error, OutputError):
                reason = (error.strerror or str(error)).lower()
                raise OutputError(
                    f"{shown(self.path)} cannot be written ({reason}); free space there or choose another folder"
                ) from error
            raise

    def write(self, block: Tensor) -> None:
        """Append (channels, n) float samples; the caller's block stays as it is."""
        if self._sink is None:
            raise UsageError(f"{shown(self.path)} is closed already; write before commit() and abort()")
        with self._guarded():
            if block.ndim != 2 or block.shape[0] != self._in_channels:
                raise AudioError(f"expected ({self._in_channels}, samples), got {tuple(block.shape)}")
            if not block.shape[1]:
                return
            block = block.detach().to("cpu", torch.float32)
            low, high = torch.aminmax(block)
            if not math.isfinite(float(low) + float(high)):
                raise AudioError(f"the sound for {shown(self.path)} holds NaN or infinity; nothing was written")
            if self._gains is not None:
                block = self._gains @ block
            self._put(self._resampler.push(block) if self._resampler else block)

    def _put(self, block: Tensor) -> None:
        if not block.shape[1] or self._sink is None:
            return
        if not (self._kind.lossless and self._bits == "32f"):
            low, high = torch.aminmax(block)
            if low < -1 or high > 1:
                self.clipped += int((block.abs() > 1).sum())
                block = block.clamp(-1, 1)
        self._sink.write(block.numpy().T)
        self._samples += block.shape[1]

    def commit(self) -> None:
        """Finish the file and give it its name; a second commit does nothing."""
        if self._sink is None:
            return
        with self._guarded():
            if self._resampler:
                self._put(self._resampler.flush())
            if not self._samples:
                raise OutputError(f"{shown(self.path)} would hold no samples; write some before commit()")
            self._sink.close()
            self._file.close()
            finished = self._leftovers[0]
            if self._tags or self._cover:
                self._leftovers.append(finished + "t")
                lost = write_tags(finished, finished + "t", self._kind.name, self._tags, self._cover)
                finished += "t"
                if lost:
                    self._notes.append(lost)
            rename(finished, self.path, self._overwrite)
            self._sink = None
            self._folders.clear()
            self._finalizer()

    def abort(self) -> None:
        """Remove what was written; does nothing after commit()."""
        if self._sink is not None:
            self._sink.drop()
            self._sink = None
        if hasattr(self, "_file"):
            self._file.close()
        self._finalizer()

    def __enter__(self) -> AudioWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.commit()
        else:
            self.abort()


def write(
    path: str | os.PathLike[str],
    waveform: Tensor,
    sample_rate: int,
    *,
    format: str | None = None,
    bits: str = "16",
    bitrate_kbps: int | None = None,
    tags: Mapping[str, str] | None = None,
    cover: bytes | None = None,
    overwrite: bool = True,
) -> None:
    """Write (channels, samples) in one go; arguments and errors as `AudioWriter`'s."""
    if waveform.ndim != 2 or not waveform.shape[0]:
        raise AudioError(f"expected (channels, samples), got {tuple(waveform.shape)}; from soundfile, pass waveform.T")
    with AudioWriter(
        path,
        sample_rate,
        waveform.shape[0],
        format=format,
        bits=bits,
        bitrate_kbps=bitrate_kbps,
        tags=tags,
        cover=cover,
        overwrite=overwrite,
    ) as writer:
        for block in waveform.split(BLOCK_SAMPLES, 1):
            writer.write(block)


def copy_tags(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> str | None:
    """Give `target` (of a format in `FORMATS`) the tags and the cover of `source`; its sound stays as it is, and so do
    tags that `source` lacks. Returns what could not be kept, in words, or None."""
    tags, picture = read_tags(os.fsdecode(source))
    if not tags and picture is None:
        return None
    path = os.fsdecode(target)
    kind = probe(path).format
    if kind not in FORMATS:
        raise UsageError(f"{shown(path)} is {kind}; tags are written to {', '.join(FORMATS)}")
    old_tags, old_picture = read_tags(path)
    return replace_tags(path, kind, {**old_tags, **tags}, picture or old_picture)
