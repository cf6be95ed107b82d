"""Separation of audio that arrives in blocks: rate, channels, block plan, overlap-add, exact sums."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from umx_ext.errors import AudioError, UsageError
from umx_ext.separation.batches import RESIDUAL, Block, Recipe
from umx_ext.separation.stages import stage
from umx_ext.separation.unet import GRID
from umx_ext.spectral import frame_count, hann, overlap_add
from umx_ext.stems import Stems

if TYPE_CHECKING:
    from umx_ext.audio import Resampler
    from umx_ext.separation.separator import Options, Separator

__all__ = ["stream"]

MIN_CONTEXT_FRAMES = 4  # the outermost frames of a block see a mirrored signal and must not be kept


def stream(separator: Separator, blocks: Iterable[Tensor], sample_rate: int, options: Options) -> Iterator[Stems]:
    """See `Separator.stream`."""
    plan = _Plan(separator, options)
    separator.prepare(plan.recipe)
    lane: _Lane | None = None
    for block in blocks:
        if block.ndim != 2 or not block.is_floating_point():
            raise AudioError(f"expected blocks (channels, samples) of floats, got {tuple(block.shape)} {block.dtype}")
        if lane is None:
            lane = _Lane(separator, plan, sample_rate, block.shape[0])
        elif block.shape[0] != lane.channels:
            raise AudioError(f"expected {lane.channels} channels as in the first block, got {block.shape[0]}")
        yield from lane.push(block)
    if lane is None or lane.received == 0:
        raise AudioError("expected audio, got no samples; nothing to separate")
    yield from lane.finish()


class _Plan:
    """Which networks run, and which stems come out of what they give."""

    def __init__(self, separator: Separator, options: Options) -> None:
        config = separator.config
        known = (*config.stems, "accompaniment") if "vocals" in config.stems else config.stems
        self.wanted = options.stems if options.stems is not None else separator.stems
        unknown = [stem for stem in self.wanted if stem not in known]
        if unknown or not self.wanted:
            missing = ", ".join(unknown) or "(none asked for)"
            raise UsageError(f"this model has no stem {missing}; it has {', '.join(known)}")
        self.options = options
        exact = options.accompaniment == "mixture"
        needed = {"vocals" if stem == "accompaniment" else stem for stem in self.wanted}
        everything = needed == set(config.stems) and len(config.stems) > 1
        self.nets = tuple(stem for stem in config.stems if stem in needed)
        self.residual = not everything
        # The stem that takes what is left of the mixture, so that a complete set adds up to it.
        self.remainder = "other" if everything and exact and "other" in self.wanted else None
        self.exact_accompaniment = exact
        # What the separator has to give: nothing that is formed by subtraction anyway.
        sources = (*self.nets, *([RESIDUAL] if self.residual else []))
        self.sources = tuple(stem for stem in self.nets if stem != self.remainder) if exact else sources
        self.recipe = Recipe(
            stems=self.nets,
            niter=config.niter if options.niter is None else options.niter,
            wiener_win_len=options.wiener_win_len,
            residual=self.residual,
            wanted=self.sources,
            fast=options.fast,
        )

    def stems(self, estimates: Tensor, mixture: Tensor, sample_rate: int) -> Stems:
        """Stems out of the estimates `(sources, channels, samples)`, in the mixture's rate and channels."""
        named = dict(zip(self.sources, estimates, strict=True))
        if self.remainder is not None:
            named[self.remainder] = mixture - estimates.sum(dim=0)
        if "accompaniment" in self.wanted:
            if self.exact_accompaniment:
                named["accompaniment"] = mixture - named["vocals"]
            else:
                rest = [estimate for source, estimate in named.items() if source != "vocals"]
                named["accompaniment"] = torch.stack(rest).sum(dim=0)
        return Stems({stem: named[stem] for stem in self.wanted}, sample_rate, mixture)


class _Lane:
    """One signal on its way: input samples in, Stems out, everything in between queued as little as possible."""

    def __init__(self, separator: Separator, plan: _Plan, sample_rate: int, channels: int) -> None:
        if not 1 <= channels <= 8:
            raise AudioError(f"expected 1 to 8 channels, got {channels}; pass (channels, samples)")
        if sample_rate <= 0:
            raise AudioError(f"expected a sample rate above 0 Hz, got {sample_rate}")
        config = separator.config
        self.plan, self.config, self.sample_rate, self.channels = plan, config, sample_rate, channels
        self.received = 0
        self._given = 0  # samples that have left
        self._mixture = _Tape()
        self._estimates = _Tape()
        self._mixture.release(self, 0)  # from now on this is a reader of it
        # A mono model hears every channel of the front pair on its own, a stereo model both at once.
        front = list(range(min(channels, 2)))
        self._groups = [[channel] for channel in front] if config.channels == 1 else [front]
        # A stereo signal at the model's rate is what the network hears: it is kept once.
        self._direct = sample_rate == config.sample_rate and channels == config.channels and len(self._groups) == 1
        shape = _Shape.of(separator, plan)
        self._blocks = [
            _Blocks(separator, plan, shape, self._mixture if self._direct else _Tape()) for _ in self._groups
        ]
        self._in: Resampler | None = None
        self._back: Resampler | None = None
        if sample_rate != config.sample_rate:
            from umx_ext.audio import Resampler  # only here: soxr is not needed at the model's own rate

            self._in = Resampler(sample_rate, config.sample_rate, channels)
            self._back = Resampler(config.sample_rate, sample_rate, len(plan.sources) * min(channels, 2))

    def push(self, block: Tensor) -> Iterator[Stems]:
        block = block.detach().to(device="cpu", dtype=torch.float32)
        low, high = torch.aminmax(block) if block.numel() else (block.sum(), block.sum())  # nan goes through both
        if not torch.isfinite(high - low):
            at = self.received + int((~torch.isfinite(block)).any(dim=0).nonzero()[0, 0])
            raise AudioError(
                f"expected finite samples, got nan or inf at {at / self.sample_rate:.3f} s (sample {at}); "
                "repair the audio"
            )
        self.received += block.shape[-1]
        self._mixture.push(block)
        with stage("resample"):
            inside = block if self._in is None else self._in.push(block)
        yield from self._advance(inside, end=False)

    def finish(self) -> Iterator[Stems]:
        rest = self._in.flush() if self._in is not None else torch.zeros(self.channels, 0)
        yield from self._advance(rest, end=True)

    def _advance(self, block: Tensor, *, end: bool) -> Iterator[Stems]:
        if not self._direct:
            for blocks, group in zip(self._blocks, self._groups, strict=True):
                blocks.tape.push(self._to_model(block, group))
        per_group = [blocks.advance(end=end) for blocks in self._blocks]
        for parts in zip(*per_group, strict=True):  # each (sources, model channels, samples)
            estimates = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
            if self.channels == 1:
                estimates = estimates.mean(dim=1, keepdim=True)
            if self._back is not None:
                with stage("resample"):
                    estimates = self._back.push(estimates.flatten(0, 1)).unflatten(0, estimates.shape[:2])
            self._estimates.push(estimates)
            yield from self._ready()
        if end:
            if self._back is not None:
                self._estimates.push(self._back.flush().unflatten(0, (len(self.plan.sources), -1)))
            missing = self._mixture.stop - self._estimates.stop
            if missing > 0:  # rounding of a rate: at most a sample
                self._estimates.push(torch.zeros(len(self.plan.sources), min(self.channels, 2), missing))
            yield from self._ready()

    def _to_model(self, block: Tensor, group: list[int]) -> Tensor:
        chosen = block[group]
        return chosen.expand(self.config.channels, -1) if len(group) < self.config.channels else chosen

    def _ready(self) -> Iterator[Stems]:
        begin, end = self._given, min(self._mixture.stop, self._estimates.stop)
        samples = end - begin
        if samples == 0:
            return
        mixture, estimates = self._mixture.read(begin, end), self._estimates.read(begin, end)
        self._given = end
        self._estimates.release(self, end)
        self._mixture.release(self, end)
        behind = self.channels - estimates.shape[1]
        if behind:  # channels behind the front pair are not separated: they stay whole in what is left
            others = estimates.new_zeros(estimates.shape[0], behind, samples)
            for rest in (RESIDUAL, "other"):
                if rest in self.plan.sources:
                    others[self.plan.sources.index(rest)] = mixture[-behind:]
                    break
            estimates = torch.cat([estimates, others], dim=1)
        yield self.plan.stems(estimates, mixture, self.sample_rate)


class _Core(NamedTuple):
    """The frames from `first` to `stop`; with the last ones, how many samples there are in `total`."""

    first: int
    stop: int
    total: int | None


class _Shape(NamedTuple):
    """How a signal is cut, in frames.

    Attributes:
        core: of a block; None: one block.
        context: at least so much is shown on both sides of a core.
        length: of a block with its context, where the audio allows it; 0: as it comes.
        abreast: how many are started together.
    """

    core: int | None
    context: int
    length: int
    abreast: int

    @classmethod
    def of(cls, separator: Separator, plan: _Plan) -> _Shape:
        config, options = separator.config, plan.options
        window = options.wiener_win_len
        frames_per_s = config.sample_rate / config.hop
        core = max(1, math.ceil(options.segment_s * frames_per_s / window)) * window
        context = max(MIN_CONTEXT_FRAMES, math.ceil(options.overlap_s * frames_per_s))
        context += -context % GRID  # a U-Net then sees in every block what it sees in the whole song
        if not options.split:
            return cls(None, context, 0, 1)
        length = core + 2 * context
        return cls(
            core, context, length * separator.even, separator.abreast(len(plan.nets), length * config.hop)
        )


class _Blocks:
    """Cuts a signal at the model's rate into blocks and overlap-adds the cores' frames."""

    def __init__(self, separator: Separator, plan: _Plan, shape: _Shape, tape: _Tape) -> None:
        self._separator, self._plan, self._shape, self.tape = separator, plan, shape, tape
        tape.release(self, 0)  # from now on it is a reader
        self._config = separator.config
        self._next = 0  # first frame of the next core
        self._tail: Tensor | None = None  # sums that the next core's frames complete
        self._cut: list[tuple[_Core, Block]] = []  # not yet started
        self._started: Iterator[tuple[_Core, Iterator[Tensor]]] = iter(())  # not yet asked for

    def advance(self, *, end: bool) -> Iterator[Tensor]:
        """Estimates of all samples that can be finished now; with `end`, of all samples."""
        core = self._shape.core
        while core is not None and self.tape.stop >= self._until(self._next + core):
            yield from self._process(self._next + core, end=False)
        if end:
            frames = frame_count(self.tape.stop, self._config.hop)
            while core is not None and frames - self._next > core:
                yield from self._process(self._next + core, end=False)
            yield from self._process(frames, end=True)

    def _until(self, stop: int) -> int:
        """The sample up to which a block is heard whose core ends with that frame."""
        return max(stop + self._shape.context, self._shape.length) * self._config.hop

    def _process(self, stop: int, *, end: bool) -> Iterator[Tensor]:
        """Cut out the core from `_next` to `stop` (frames), start it when there are enough, yield what is finished."""
        hop, shape = self._config.hop, self._shape
        first, total = self._next, self.tape.stop
        until = total if end else min(total, self._until(stop))
        begin = max(0, first - shape.context)
        if not shape.length:
            begin -= begin % GRID
        if shape.length:  # the last ones hear more of what is before them
            begin = min(begin, max(0, until // hop - shape.length))
        # What waits for others must not keep all that comes after it.
        heard = self.tape.read(begin * hop, until, copied=self._separator.works_ahead)
        self._cut.append((_Core(first, stop, total if end else None), Block(heard, first - begin, stop - begin)))
        self._next = stop
        self.tape.release(self, max(0, stop - max(shape.context + GRID, shape.length)) * hop)
        if len(self._cut) < shape.abreast and not end:
            return
        cores, blocks = zip(*self._cut, strict=True)
        earlier, self._cut = self._started, []
        self._started = zip(cores, self._separator.start(blocks, self._plan.recipe), strict=True)
        yield from self._finish(earlier)  # while the device works on those that have just been started
        if end or not self._separator.works_ahead:
            yield from self._finish(self._started)

    def _finish(self, started: Iterator[tuple[_Core, Iterator[Tensor]]]) -> Iterator[Tensor]:
        for core, pieces in started:
            yield from self._joined(core, pieces)

    def _joined(self, core: _Core, pieces: Iterator[Tensor]) -> Iterator[Tensor]:
        """The samples of a core that are complete with it."""
        hop, half = self._config.hop, self._config.n_fft // 2
        before, after = self._tail, []  # what the core before reaches into this one, and this one into the next
        begin = core.first * hop - half  # half a window before the first frame; what lies before sample 0 is padding
        complete = core.stop * hop - half if core.total is None else core.total
        frames = None if core.total is None else core.stop
        for piece in pieces:
            if before is not None:
                shared = min(piece.shape[-1], before.shape[-1])
                piece[..., :shared] += before[..., :shared]
                before = before[..., shared:] if before.shape[-1] > shared else None
            a, b = max(begin, 0), min(begin + piece.shape[-1], complete)
            if a < b:
                done = piece[..., a - begin : b - begin]
                with stage("inverse STFT"):
                    done /= self._weight(a, b, frames, piece)
                yield done
            begin += piece.shape[-1]
            if begin > complete:  # an empty view would keep the whole piece alive
                after.append(piece[..., max(complete - begin, -piece.shape[-1]) :])
        self._tail = torch.cat(after, dim=-1) if core.total is None else None

    def _weight(self, begin: int, end: int, frames: int | None, like: Tensor) -> Tensor:
        """Sum of the squared windows over samples `begin` to `end`, if there are so many frames (None: no end)."""
        n_fft, hop = self._config.n_fft, self._config.hop
        first = max(0, (begin - n_fft // 2) // hop)
        last = (end + n_fft // 2) // hop + 1
        last = last if frames is None else min(last, frames)
        window = hann(n_fft, like)
        weight = overlap_add((window * window).expand(last - first, n_fft), hop)
        skip = begin - (first * hop - n_fft // 2)
        return weight[skip : skip + end - begin].clamp_min(1e-11)


class _Tape:
    """Samples that are written at one end and read by position, and forgotten when all readers have released them."""

    def __init__(self) -> None:
        self._parts: deque[Tensor] = deque()
        self._start = 0  # position of the first part
        self.stop = 0  # samples written so far
        self._released: dict[object, int] = {}

    def push(self, part: Tensor) -> None:
        if part.shape[-1]:
            self._parts.append(part)
            self.stop += part.shape[-1]

    def read(self, begin: int, end: int, *, copied: bool = False) -> Tensor:
        """Samples from one position to another.

        A view; parts that lie in between are joined, for good. Or a copy.
        """
        if copied:
            found, at = [], self._start
            for part in self._parts:
                found.append(part[..., max(begin - at, 0) : max(end - at, 0)])
                at += part.shape[-1]
            return torch.cat(found, dim=-1)
        joined: list[Tensor] = []
        while self._parts and self._start + sum(part.shape[-1] for part in joined) < end:
            joined.append(self._parts.popleft())
        self._parts.appendleft(torch.cat(joined, dim=-1) if len(joined) > 1 else joined[0])
        return self._parts[0][..., begin - self._start : end - self._start]

    def release(self, reader: object, position: int) -> None:
        """This reader needs nothing before that position any more."""
        self._released[reader] = position
        position = min(self._released.values())
        while self._parts and self._start + self._parts[0].shape[-1] <= position:
            self._start += self._parts.popleft().shape[-1]
        # Only the last bit of a part is worth a copy of its own, such as what the next block hears of the last one.
        if self._parts and position - self._start > self._parts[0].shape[-1] * 3 // 4:
            self._parts[0] = self._parts[0][..., position - self._start :].clone()
            self._start = position
