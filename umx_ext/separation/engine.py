"""Inference on a CPU: the numbers of network, Wiener filter and inverse STFT one after the other, sooner and leaner.

A whole waveform goes through three passes, each cut into tasks for a few workers with one torch thread each:

1. *Encode*, some hundred frames a task: STFT, magnitude, branches, first matrix. Only `(frames, hidden)` is kept.
2. *Recur*: the BLSTM, one direction of one branch a task, in lanes (`recurrence`), and the matrix after it, which
   takes its place in memory.
3. *Decode*, some hundred frames a task: the STFT again (cheaper than keeping it), masks, Wiener filter, inverse STFT,
   overlap-add into the result.

A convolutional network needs neither of the first two: its mask is made in the third, from some frames more.

Standardisations and batch norms are folded into the three matrices. Everything is frames-major. Nothing depends on the
number of workers, to the last bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from umx_ext.errors import AudioError, UsageError
from umx_ext.separation import planar
from umx_ext.separation.batches import RESIDUAL
from umx_ext.separation.branches import Branch
from umx_ext.separation.config import Config
from umx_ext.separation.dense import Matrix
from umx_ext.separation.masknet import Encoder, MaskNet, Net, members
from umx_ext.separation.norms import affine, plain
from umx_ext.separation.recurrence import Direction, lstm_direction
from umx_ext.separation.stages import stage, staged
from umx_ext.separation.unet import GRID, REACH, UNet
from umx_ext.separation.unet import folded as folded_unet
from umx_ext.separation.wiener import WINDOW, filter_window
from umx_ext.separation.workers import Workers
from umx_ext.spectral import frame_count, hann

__all__ = ["RESIDUAL", "Chain", "Engine", "Head", "folded"]

Result = TypeVar("Result")

_TASK = 300  # frames of a decoding task: large enough for matrix products, small enough to stay lean
_CONVOLVED = 2 * _TASK  # the same where there are convolutions, which need frames around these; for long songs
_LONG = 4000  # frames, whatever the number of workers: shorter ones would have too few tasks
_LINE = 16  # numbers of a line of the cache
_CHUNK = 32  # frames that are transformed at a time: they fit the cache
_MOST_WORKERS = 8  # each needs some 50 MB, and a BLSTM has but two directions

_ENCODE, _RECUR = 0.15, 0.45  # rough shares of the time, for progress; the rest is for the last pass
_LESS = 0.4  # of those, where a convolutional network takes part in that


@dataclass(frozen=True)
class Chain:
    """One branch of one stem's network, folded.

    Attributes:
        name, branch: features of a magnitude spectrogram; chains with the same name have the same.
        weight, bias: standardisation, fc1 and bn1; `(channels * features, hidden)`, `(hidden,)`. This and all other
            matrices are `(inputs, outputs)`.
        layers: for each layer of the BLSTM, for each direction, torch's four tensors.
        skip, recurrent: this branch's part of fc2 and bn2, for the encoder's and for the BLSTM's output;
            `(hidden, hidden)`. No `skip` where the fusion leaves this branch's encoder output out.
    """

    name: str
    branch: Branch
    weight: Tensor
    bias: Tensor
    layers: list[list[list[Tensor]]]
    skip: Tensor | None
    recurrent: Tensor


@dataclass(frozen=True)
class Head:
    """A network's chains, and what follows their sum: the rest of bn2; fc3, bn3, the output scaling and the mask."""

    chains: list[Chain]
    bias2: Tensor
    weight3: Tensor
    bias3: Tensor
    mask: str


def _folded_chain(
    name: str, encoder: Encoder, gain: Tensor, fc2: Tensor, factor2: Tensor, channels: int, skips: bool
) -> Chain:
    factor, offset = affine(encoder.bn1)
    fc1 = encoder.fc1.weight.double() * factor[:, None]
    scale, mean = (values.double().repeat(channels) for values in (encoder.scale, encoder.mean))
    lstm = encoder.lstm
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    layers = [
        [[plain(getattr(lstm, f"{name}_l{layer}{suffix}")) for name in names] for suffix in ("", "_reverse")]
        for layer in range(lstm.num_layers)
    ]
    skip, recurrent = (fc2.double() * factor2[:, None] * gain.double()).chunk(2, dim=1)
    return Chain(
        name=name,
        branch=copy.deepcopy(encoder.branch).to(device="cpu", dtype=torch.float32).eval(),
        weight=plain((fc1 * scale).mT),
        bias=plain(fc1 @ (scale * mean) + offset),
        layers=layers,
        skip=plain(skip.mT) if skips else None,
        recurrent=plain(recurrent.mT),
    )


@torch.no_grad()
def folded(net: MaskNet, channels: int) -> Head:
    """One network; of a pair, the first."""
    factor2, bias2 = affine(net.bn2)
    gains = torch.cat([net.gains.new_ones(1), net.gains])
    encoders = [(name, encoder) for name, encoder in net.encoders.items() if isinstance(encoder, Encoder)]
    # Under every fusion fc2's product is a sum over branches, so each chain carries its own part of it.
    fusion, fc2 = net.config.fusion, net.fc2.weight
    fc2s = fc2.chunk(len(encoders), dim=1) if fusion == "concat" else (fc2,) * len(encoders)
    skips = [fusion != "lstm-add" or number == 0 for number in range(len(encoders))]
    factor3, offset3 = affine(net.bn3)
    scale, mean = (values.double().repeat(channels) for values in (net.output_scale, net.output_mean))
    return Head(
        chains=[
            _folded_chain(name, encoder, gain, part, factor2, channels, skip)
            for (name, encoder), gain, part, skip in zip(encoders, gains, fc2s, skips, strict=True)
        ],
        bias2=plain(bias2),
        weight3=plain((net.fc3.weight.double() * (factor3 * scale)[:, None]).mT),
        bias3=plain(offset3 * scale + mean),
        mask=net.config.mask,
    )


class _Chain:
    """A `Chain`, its matrices laid out."""

    def __init__(self, chain: Chain, *, fast: bool) -> None:
        self.name, self.branch = chain.name, chain.branch
        self.encoder, self.bias = Matrix(chain.weight, rounded=fast), chain.bias
        self.layers = [[Direction(weights, rounded=fast) for weights in layer] for layer in chain.layers]
        self.skip = None if chain.skip is None else Matrix(chain.skip, rounded=fast)
        self.recurrent = Matrix(chain.recurrent, rounded=fast)


class _Head:
    """A `Head`, its matrices laid out."""

    def __init__(self, head: Head, share: float, *, fast: bool) -> None:
        self.share, self.mask = share, head.mask
        self.chains = [_Chain(chain, fast=fast) for chain in head.chains]
        self.bias2, self.decoder, self.bias3 = head.bias2, Matrix(head.weight3, rounded=fast), head.bias3


class _Convolutional:
    """A U-Net, folded."""

    def __init__(self, net: UNet, share: float) -> None:
        self.share, self.net = share, folded_unet(net)


_Member: TypeAlias = _Head | _Convolutional  # of those whose masks are averaged


def _member(net: Net, channels: int, share: float, *, fast: bool) -> _Member:
    return _Convolutional(net, share) if isinstance(net, UNet) else _Head(folded(net, channels), share, fast=fast)


class Engine:
    """Inference for the networks of one separator, on the CPU, in float32.

    The weights are read once, here: an engine does not see what is done to the networks afterwards. Dropout is off and
    batch norms use their running statistics, whatever mode the networks are in.

    Args:
        nets: a network a stem, in order.
        config: what they were built from.
        threads: workers, at least 1; None for torch's count at the time of the call, but at most 8.
        fast: round the networks' matrices and what is multiplied with them to 12 bits, where that is faster
            (`umx_ext.separation.dense`). Elsewhere it changes nothing.

    Raises:
        UsageError: no network, one named ``"residual"``, or less than 1 thread.
    """

    def __init__(
        self, nets: Mapping[str, Net], config: Config, *, threads: int | None = None, fast: bool = False
    ) -> None:
        if not nets:
            raise UsageError("an engine needs at least one network, got none")
        if RESIDUAL in nets:
            raise UsageError(f"no stem can be named {RESIDUAL!r}: that is what the others leave")
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}")
        self.config = config
        self.stems = tuple(nets.keys())
        self.threads = threads
        self._heads = {
            stem: [_member(one, config.channels, share, fast=fast) for share, one in members(net)]
            for stem, net in nets.items()
        }

    def overlap_added(self, waveform: Tensor, first: int, last: int, **settings: Any) -> Tensor:
        """All `pieces` in one."""
        return torch.cat(list(self.pieces(waveform, first, last, **settings)), dim=-1)

    def pieces(
        self,
        waveform: Tensor,
        first: int,
        last: int,
        *,
        stems: Sequence[str] | None = None,
        niter: int = 1,
        wiener_win_len: int | None = WINDOW,
        residual: bool = False,
        wanted: Sequence[str] | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Iterator[Tensor]:
        """Some frames of the estimates, windowed and overlap-added, not yet divided by the squared windows' sum.

        The networks see the whole waveform; what follows them does no more than these frames.

        Args:
            waveform: `(channels, samples)`, real, at the config's rate and channels. Reflected at both ends.
            first: first frame, centred on sample ``first * hop``; windows of the Wiener filter are counted from it.
            last: frame after the last.
            stems: networks to run, in this order; None for all.
            niter: iterations of the Wiener filter; 0 gives the masked magnitudes the mixture's phase.
            wiener_win_len: frames of a window of the filter; None for all.
            residual: let the filter have one more source, ``"residual"``: the mixture minus the stems.
            wanted: sources to return, in this order; None for all. All take part in the filter.
            progress: called with the fraction done, 0 to 1, from the caller's thread.

        Yields:
            float32 `(wanted sources, channels, samples)`, one after the other, ``(last - first - 1) * hop + n_fft``
            samples in all; the first is sample ``first * hop - n_fft / 2`` of the waveform.

        Raises:
            AudioError: the waveform's shape or kind.
            UsageError: one of the other arguments.
        """
        config = self.config
        if waveform.dim() != 2 or waveform.shape[0] != config.channels or not waveform.is_floating_point():
            raise AudioError(
                f"expected a real waveform ({config.channels}, samples), got {waveform.dtype} {tuple(waveform.shape)}"
            )
        stems = self.stems if stems is None else tuple(stems)
        sources = (*stems, RESIDUAL) if residual else stems
        wanted = sources if wanted is None else tuple(wanted)
        unknown = [stem for stem in stems if stem not in self.stems] + [stem for stem in wanted if stem not in sources]
        if unknown or not stems or not wanted:
            raise UsageError(
                f"expected stems among {', '.join(self.stems)} and wanted sources among {', '.join(sources)}, "
                f"got {', '.join(unknown) or 'none'}"
            )
        frames = frame_count(waveform.shape[-1], config.hop)
        if not 0 <= first < last <= frames:
            raise UsageError(f"expected a range of the {frames} frames, got {first} to {last}")
        if niter < 0 or (wiener_win_len is not None and wiener_win_len < 1):
            raise UsageError(
                f"niter must be at least 0 and wiener_win_len at least 1 (or None), got {niter} and {wiener_win_len}"
            )
        count = self.threads or min(torch.get_num_threads(), _MOST_WORKERS)
        with Workers(count) as workers:
            heads = [self._heads[stem] for stem in stems]
            job = _Job(config, heads, waveform.detach().to("cpu", torch.float32), workers, count, progress)
            hidden = job.recur(job.encode())
            plan = _Plan(first, last, niter, wiener_win_len, residual, tuple(map(sources.index, wanted)))
            yield from job.decode(hidden, plan)


@dataclass(frozen=True)
class _Plan:
    """What the decoder shall do; see `Engine.pieces`."""

    first: int
    last: int
    niter: int
    window: int | None
    residual: bool
    wanted: tuple[int, ...]


class _Job:
    """One waveform on its way through the three passes."""

    def __init__(
        self,
        config: Config,
        stems: list[list[_Member]],
        waveform: Tensor,
        workers: Workers,
        count: int,
        progress: Callable[[float], None] | None,
    ) -> None:
        self.config = config
        self.stems = stems
        self.heads = [one for of_stem in stems for one in of_stem if isinstance(one, _Head)]
        self.convolutional = [one for of_stem in stems for one in of_stem if isinstance(one, _Convolutional)]
        self.workers = workers
        self.count = count
        self.progress = progress
        self.half = config.n_fft // 2
        self.shared = config.n_fft // config.hop - 1  # hops that a frame reaches beyond its first
        self.window = hann(config.n_fft, waveform)
        samples = waveform.shape[-1]
        self.frames = frame_count(samples, config.hop)
        if samples <= self.half:  # too short to be reflected; see `spectral.stft`
            waveform = nn.functional.pad(waveform, (0, self.half + 1 - samples))
        self.waveform = waveform
        less = _LESS if self.convolutional else 1.0
        self.encoding, self.recurring = (less * share * bool(self.heads) for share in (_ENCODE, _RECUR))

    def encode(self) -> list[list[Tensor]]:
        """For each network that has a BLSTM, for each chain, `(frames, hidden)`: what enters it."""
        if not self.heads:
            return []
        # One allocation for all: large enough to go back to the system when it is freed, which smaller ones do not.
        chains = [len(head.chains) for head in self.heads]
        space = torch.empty(sum(chains), self.frames, self.config.hidden)
        encoded = [list(of_head) for of_head in space.split(chains)]
        tasks = [partial(self._encode, first, last, encoded) for first, last in _cut(self.frames, _TASK)]
        self._all(tasks, 0.0, self.encoding)
        return encoded

    def recur(self, encoded: list[list[Tensor]]) -> list[Tensor]:
        """For each of those, `(frames, hidden)`: what enters the decoder, in the place of what was encoded."""
        if not encoded:
            return []
        chains = [
            (chain, values, of_head[0])
            for head, of_head in zip(self.heads, encoded, strict=True)
            for chain, values in zip(head.chains, of_head, strict=True)
        ]
        abreast = max(1, self.count // 2)  # with more, every worker would wait as long, and more memory be held
        share = self.recurring / len(chains)
        spaces = torch.empty(2, min(abreast, len(chains)), self.frames, self.config.hidden)
        for first in range(0, len(chains), abreast):
            group = chains[first : first + abreast]
            begin = self.encoding + first * share
            inputs = [values for _, values, _ in group]
            layers = len(group[0][0].layers)
            for layer in range(layers):
                outputs = list(spaces[layer % 2])
                tasks = [
                    partial(self._direction, weights, source, target, reverse)
                    for (chain, _, _), values, output in zip(group, inputs, outputs, strict=False)
                    for weights, source, target, reverse in zip(
                        chain.layers[layer], (values, values), output.chunk(2, dim=1), (False, True), strict=True
                    )
                ]
                step = share * len(group) / layers
                self._all(tasks, begin + layer * step, begin + (layer + 1) * step)
                inputs = outputs
            for (chain, values, total), output in zip(group, inputs, strict=False):
                parts = _cut(self.frames, _TASK)
                self._all([partial(self._project, chain, values, output, total, slice(a, b)) for a, b in parts])
        return [of_head[0] for of_head in encoded]

    def decode(self, hidden: list[Tensor], plan: _Plan) -> Iterator[Tensor]:
        """`(wanted sources, channels, samples)` as planned, piece by piece."""
        long = self.convolutional and plan.last - plan.first >= _LONG
        groups = _together(plan, _CONVOLVED if long else _TASK)
        tasks = [partial(self._decode, hidden, windows, plan) for windows in groups]
        reach: Tensor | None = None  # what the frames so far add to the blocks after them
        for blocks in self._do(tasks, self.encoding + self.recurring, 1.0):
            if reach is not None:
                with torch.inference_mode():  # as the worker made them
                    blocks[:, :, : reach.shape[2]] += reach
            done = blocks.shape[2] - self.shared
            yield blocks[:, :, :done].flatten(-2).clone()
            reach = blocks[:, :, done:].clone()
        if reach is not None:
            yield reach.flatten(-2)

    # Tasks, which workers run.

    def _encode(self, first: int, last: int, encoded: list[list[Tensor]]) -> None:
        magnitude = torch.empty(last - first, self.config.channels, self.config.bins)
        for rows, spectrum in staged("STFT", self._transformed(first, last)):
            with stage("STFT"):
                planar.magnitude(spectrum, magnitude[rows])
        features: dict[str, Tensor] = {}
        for head, values in zip(self.heads, encoded, strict=True):
            for chain, target in zip(head.chains, values, strict=True):
                self.workers.check()
                with stage(f"branch {chain.name}"):
                    if chain.name not in features:
                        features[chain.name] = chain.branch(magnitude[None])[0].flatten(1)
                    chain.encoder.product(features[chain.name], chain.bias, out=target[first:last], then="tanh")

    def _direction(self, weights: Direction, values: Tensor, target: Tensor, reverse: bool) -> None:
        """One direction of one layer: `(frames, hidden)` -> `(frames, hidden / 2)`."""
        with stage("recurrence"):
            lstm_direction(weights, values, target, reverse=reverse, check=self.workers.check)

    def _project(self, chain: _Chain, encoded: Tensor, recurrent: Tensor, total: Tensor, rows: slice) -> None:
        """A chain's part of fc2; the first chain's replaces what it had encoded, the others' are added there."""
        with stage("decoder"):
            product = chain.recurrent.product(recurrent[rows])
            if chain.skip is not None:
                chain.skip.product(encoded[rows], out=product, add=True)
            if total is not encoded:
                product += total[rows]
            total[rows] = product

    def _decode(self, hidden: list[Tensor], windows: list[tuple[int, int]], plan: _Plan) -> Tensor:
        """What these frames make, in blocks of a hop: `(wanted sources, channels, frames + shared, hop)`."""
        config = self.config
        first, last = windows[0][0], windows[-1][1]
        convolved = self._convolved(first, last)
        blocks = torch.zeros(len(plan.wanted), config.channels, last - first + self.shared, config.hop)
        # Masks to a power do not leave the residual that the filter would make of them: it has to come from here.
        power = config.filter_power if plan.niter else 1.0
        own = plan.residual and power != 1
        for a, b in windows:
            mixture = torch.empty(config.channels, 2, b - a, config.bins)
            for rows, values in staged("STFT", self._transformed(a, b)):
                with stage("STFT"):
                    planar.split(values, mixture[:, :, rows])
            filtered = filter_window(
                partial(
                    self._masks,
                    [values[a:b] for values in hidden],
                    [mask[a - first : b - first] for mask in convolved],
                    power,
                    own,
                ),
                mixture,
                niter=plan.niter,
                residual=plan.residual and not own,
                wanted=plan.wanted,
            )
            for chunk, estimates in staged("Wiener" if plan.niter else "masks", filtered):
                self.workers.check()
                with stage("inverse STFT"):
                    self._add(blocks, estimates, a - first + chunk.start)
        return blocks

    def _add(self, blocks: Tensor, estimates: list[list[Tensor]], first: int) -> None:
        """Add frames, windowed, where they belong among the blocks."""
        for sums, channels in zip(blocks, estimates, strict=True):
            for channel, plane in zip(sums, channels, strict=True):
                frames = torch.fft.irfft(plane, n=self.config.n_fft)  # (frames, n_fft)
                planar.add(
                    frames, self.window, channel[first : first + len(frames) + self.shared].view(-1), self.config.hop
                )

    # Pieces of those.

    def _transformed(self, first: int, last: int) -> Iterator[tuple[slice, Tensor]]:
        """The STFT, a few frames at a time: which of the asked frames, and complex `(frames, channels, bins)`."""
        config = self.config
        for a, b in _cut(last - first, _CHUNK):
            self.workers.check()
            samples = self._samples((first + a) * config.hop - self.half, (first + b - 1) * config.hop + self.half)
            frames = torch.empty(b - a, config.channels, config.n_fft)
            torch.mul(samples.unfold(-1, config.n_fft, config.hop).movedim(1, 0), self.window, out=frames)
            yield slice(a, b), torch.fft.rfft(frames)

    def _samples(self, begin: int, end: int) -> Tensor:
        """Samples of the waveform, reflected at its ends."""
        length = self.waveform.shape[-1]
        if begin >= 0 and end <= length:
            return self.waveform[:, begin:end]
        index = (length - 1) - (torch.arange(begin, end).abs() - (length - 1)).abs()
        return self.waveform[:, index]

    def _convolved(self, first: int, last: int) -> list[Tensor]:
        """Masks of each convolutional network, `(frames, channels, features)`."""
        config = self.config
        masks = [torch.empty(last - first, config.channels, one.net.branch.features) for one in self.convolutional]
        for a, b in ((first + a, first + b) for a, b in _cut(last - first, _CONVOLVED) if masks):
            # What they depend on, up to the end of the song, filled up as `UNet.mask` does.
            begin, end = max(0, a - REACH) // GRID * GRID, min(b + REACH + GRID, -(-self.frames // GRID) * GRID)
            end = begin + (end - begin) // GRID * GRID
            magnitude = torch.empty(min(end, self.frames) - begin, config.channels, config.bins)
            for rows, spectrum in staged("STFT", self._transformed(begin, begin + len(magnitude))):
                with stage("STFT"):
                    planar.magnitude(spectrum, magnitude[rows])
            features: dict[str, Tensor] = {}
            for net in (one.net for one in self.convolutional):
                self.workers.check()
                with stage(f"branch {net.name}"):
                    if net.name not in features:
                        features[net.name] = net.branch(magnitude[None])[0]
            del magnitude  # the next step is what needs the most memory
            for one, mask in zip(self.convolutional, masks, strict=True):
                self.workers.check()
                with stage("convolutions"):
                    kept = slice(a - begin, b - begin)
                    mask[a - first : b - first] = one.net.mask(features[one.net.name], end - begin, kept)
        return masks

    def _masks(
        self, hidden: list[Tensor], convolved: list[Tensor], power: float, residual: bool, rows: slice
    ) -> list[Tensor]:
        """Each stem's mask `(rows, channels, bins)` to a power, when the filter comes to them, and the residual's."""
        self.workers.check()
        with stage("decoder"):
            of_heads, of_convolutional = iter(hidden), iter(convolved)
            masks = [
                self._mean(
                    [(one, next(of_heads if isinstance(one, _Head) else of_convolutional)[rows]) for one in of_stem]
                )
                for of_stem in self.stems
            ]
            if residual:
                rest = 1 - masks[0]
                for mask in masks[1:]:
                    rest -= mask
                masks.append(rest.clamp_min_(0))
            return masks if power == 1 else [mask.pow_(power) for mask in masks]

    def _mean(self, found: list[tuple[_Member, Tensor]]) -> Tensor:
        """The mean of the masks of a stem's networks."""
        (first, values), *others = found
        mask = self._mask(first, values)
        if others:
            mask *= first.share
        for one, values in others:
            if isinstance(one, _Head):
                mask.add_(self._mask(one, values), alpha=one.share)
            else:  # which says nothing of what is above its bandwidth
                mask[..., : values.shape[-1]].add_(values, alpha=one.share)
        return mask

    def _mask(self, head: _Member, values: Tensor) -> Tensor:
        if isinstance(head, _Convolutional):
            return nn.functional.pad(values, (0, self.config.bins - values.shape[-1]))
        # Rows that begin where a line of the cache does, and not as many bytes apart as a page has.
        wide = values.new_empty(len(values), -(-head.decoder.outputs // _LINE) * _LINE)
        mask = wide[:, : head.decoder.outputs]
        head.decoder.product((values + head.bias2).relu_(), head.bias3, out=mask, then=head.mask)
        return mask.unflatten(1, (self.config.channels, self.config.bins))

    def _do(self, tasks: Sequence[Callable[[], Result]], begin: float = 0.0, end: float = 0.0) -> Iterator[Result]:
        """Run the tasks, yield their results in order and report progress."""
        for number, result in enumerate(self.workers.run(tasks), start=1):
            yield result
            if self.progress is not None and end:
                self.progress(begin + (end - begin) * number / len(tasks))

    def _all(self, tasks: Sequence[Callable[[], None]], begin: float = 0.0, end: float = 0.0) -> None:
        for _ in self._do(tasks, begin, end):
            pass


def _cut(frames: int, length: int) -> list[tuple[int, int]]:
    return [(first, min(first + length, frames)) for first in range(0, frames, length)]


def _together(plan: _Plan, frames: int) -> Iterator[list[tuple[int, int]]]:
    """Windows of the Wiener filter, each its first frame and the one after its last, so many frames together."""
    length = _TASK if plan.niter == 0 else (plan.window or plan.last - plan.first)
    windows = [(first, min(first + length, plan.last)) for first in range(plan.first, plan.last, length)]
    several = max(1, frames // length)
    for number in range(0, len(windows), several):
        yield windows[number : number + several]
