"""Separation of audio that arrives in blocks: rate, channels, block plan, overlap-add, exact sums."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from umx_ext.errors import AudioError, UsageError
from umx_ext.separation.engine import RESIDUAL
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
        self.niter = config.niter if options.niter is None else options.niter
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
        self._mixture = _Queue()
        self._estimates = _Queue()
        # A mono model hears every channel of the front pair on its own, a stereo model both at once.
        front = list(range(min(channels, 2)))
        self._groups = [[channel] for channel in front] if config.channels == 1 else [front]
        self._blocks = [_Blocks(separator, plan) for _ in self._groups]
        self._in: Resampler | None = None
        self._back: Resampler | None = None
        if sample_rate != config.sample_rate:
            from umx_ext.audio import Resampler  # only here: soxr is not needed at the model's own rate

            self._in = Resampler(sample_rate, config.sample_rate, channels)
            self._back = Resampler(config.sample_rate, sample_rate, len(plan.sources) * min(channels, 2))

    def push(self, block: Tensor) -> Iterator[Stems]:
        block = block.detach().to(device="cpu", dtype=torch.float32)
        finite = torch.isfinite(block)
        if not finite.all():
            at = self.received + int((~finite).any(dim=0).nonzero()[0, 0])
            raise AudioError(
                f"expected finite samples, got nan or inf at {at / self.sample_rate:.3f} s (sample {at}); "
                "repair the audio"
            )
        self.received += block.shape[-1]
        self._mixture.push(block)
        at_rate = block if self._in is None else self._in.push(block)
        yield from self._advance(at_rate, end=False)

    def finish(self) -> Iterator[Stems]:
        rest = self._in.flush() if self._in is not None else torch.zeros(self.channels, 0)
        yield from self._advance(rest, end=True)

    def _advance(self, block: Tensor, *, end: bool) -> Iterator[Stems]:
        per_group = [
            list(blocks.push(self._to_model(block, group), end=end))
            for blocks, group in zip(self._blocks, self._groups, strict=True)
        ]
        for parts in zip(*per_group, strict=True):  # each (sources, model channels, samples)
            estimates = torch.cat(parts, dim=1)
            if self.channels == 1:
                estimates = estimates.mean(dim=1, keepdim=True)
            if self._back is not None:
                estimates = self._back.push(estimates.flatten(0, 1)).unflatten(0, estimates.shape[:2])
            self._estimates.push(estimates)
            yield from self._ready(self._estimates.length)
        if end:
            if self._back is not None:
                self._estimates.push(self._back.flush().unflatten(0, (len(self.plan.sources), -1)))
            missing = self._mixture.length - self._estimates.length
            if missing > 0 and self._estimates.parts:  # rounding of a rate: at most a sample
                last = self._estimates.parts[-1]
                self._estimates.push(last.new_zeros(*last.shape[:-1], missing))
            yield from self._ready(self._mixture.length)

    def _to_model(self, block: Tensor, group: list[int]) -> Tensor:
        chosen = block[group]
        return chosen.expand(self.config.channels, -1) if len(group) < self.config.channels else chosen

    def _ready(self, samples: int) -> Iterator[Stems]:
        samples = min(samples, self._mixture.length)
        if samples == 0:
            return
        mixture = self._mixture.pull(samples)
        estimates = self._estimates.pull(samples)
        behind = self.channels - estimates.shape[1]
        if behind:  # channels behind the front pair are not separated: they stay whole in what is left
            others = estimates.new_zeros(estimates.shape[0], behind, samples)
            for rest in (RESIDUAL, "other"):
                if rest in self.plan.sources:
                    others[self.plan.sources.index(rest)] = mixture[-behind:]
                    break
            estimates = torch.cat([estimates, others], dim=1)
        yield self.plan.stems(estimates, mixture, self.sample_rate)


class _Blocks:
    """Cuts a signal at the model's rate into blocks and overlap-adds the cores' frames."""

    def __init__(self, separator: Separator, plan: _Plan) -> None:
        self._separator, self._plan = separator, plan
        config, options = separator.config, plan.options
        window = options.wiener_win_len
        frames_per_s = config.sample_rate / config.hop
        self._core = max(1, math.ceil(options.segment_s * frames_per_s / window)) * window
        self._context = max(MIN_CONTEXT_FRAMES, math.ceil(options.overlap_s * frames_per_s))
        self._split = options.split
        self._config = config
        self._queue = _Queue()  # samples from `_start` on
        self._start = 0
        self._next = 0  # first frame of the next core
        self._tail: tuple[Tensor, Tensor] | None = None  # sums not finished: signal, window weights

    def push(self, block: Tensor, *, end: bool) -> Iterator[Tensor]:
        self._queue.push(block)
        hop = self._config.hop
        while self._split and self._start + self._queue.length >= (self._next + self._core + self._context) * hop:
            yield self._process(self._next + self._core, end=False)
        if end:
            frames = frame_count(self._start + self._queue.length, hop)
            while self._split and frames - self._next > self._core:
                yield self._process(self._next + self._core, end=False)
            yield self._process(frames, end=True)

    def _process(self, stop: int, *, end: bool) -> Tensor:
        """Separate the core from `_next` to `stop` (frames) and return the samples that are complete now."""
        config, options = self._config, self._plan.options
        hop, half = config.hop, config.n_fft // 2
        total = self._start + self._queue.length
        until = total if end else min(total, (stop + self._context) * hop)
        segment = self._queue.peek(until - self._start)
        offset = self._start // hop
        sums = self._separator.overlap_added(
            segment,
            self._next - offset,
            stop - offset,
            stems=self._plan.nets,
            niter=self._plan.niter,
            wiener_win_len=options.wiener_win_len,
            residual=self._plan.residual,
            wanted=self._plan.sources,
        )
        window = hann(config.n_fft, sums)
        weight = overlap_add((window * window).expand(stop - self._next, config.n_fft), hop)
        if self._tail is not None:
            old_sums, old_weight = self._tail
            sums[..., : old_sums.shape[-1]] += old_sums
            weight[: len(old_weight)] += old_weight
        # `sums` begins half a window before the core's first frame; what lies before sample 0 is padding.
        skip = half if self._next == 0 else 0
        first_sample = max(0, self._next * hop - half)
        complete = (total - first_sample) if end else (stop * hop - half - first_sample)
        ready = sums[..., skip : skip + complete] / weight[skip : skip + complete].clamp_min(1e-11)
        if not end:
            self._tail = (sums[..., skip + complete :].clone(), weight[skip + complete :].clone())
        self._next = stop
        keep_from = max(0, (stop - self._context) * hop)
        self._queue.pull(keep_from - self._start)
        self._start = keep_from
        return ready


class _Queue:
    """Samples waiting, last axis first in first out."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self.length = 0

    def push(self, part: Tensor) -> None:
        if part.shape[-1] or not self.parts:
            self.parts.append(part)
            self.length += part.shape[-1]

    def peek(self, samples: int) -> Tensor:
        if len(self.parts) > 1:
            self.parts = [torch.cat(self.parts, dim=-1)]
        return self.parts[0][..., :samples]

    def pull(self, samples: int) -> Tensor:
        taken = self.peek(samples)
        # A copy, so that the queue's old memory is not held by a small rest.
        self.parts = [self.parts[0][..., samples:].clone()]
        self.length -= samples
        return taken
