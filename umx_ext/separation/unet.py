"""A convolutional network of one stem: a U-Net over time and frequency that sees what one branch shows it.

A BLSTM's first matrix has a weight for every bin; a convolution knows a sound again at another pitch, which is what
counts where there is little music to learn from. After A. Jansson et al., "Singing voice separation with deep U-Net
convolutional networks", ISMIR 2017, with residual convolutions (K. He et al., "Deep residual learning for image
recognition", CVPR 2016) and a bottleneck over all frequencies of a frame on the inner levels (W. Choi et al.,
"Investigating U-Nets with various intermediate blocks for spectrogram-based singing voice separation", ISMIR 2020).

What a frame's mask depends on ends `REACH` frames before it and after it. So a long spectrogram can be done in pieces,
each with that much beside what is kept of it, which begin at multiples of `GRID` frames: `Folded.mask`.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from umx_ext.errors import ModelError
from umx_ext.separation.branches import Branch, build_branch
from umx_ext.separation.config import Config
from umx_ext.separation.network import Network, in_half
from umx_ext.separation.norms import Norm2d, affine, plain

__all__ = ["GRID", "REACH", "Folded", "UNet", "folded"]

WIDTHS = (16, 32, 48, 64, 96)  # channels of each level, each of half the frequencies of the one above
TIMES = 3  # of the uppermost levels, which halve the frames as well
GRID = 2**TIMES
REACH = 104
NARROW = 8  # how many times narrower the bottlenecks over frequencies are
FINE = 8  # channels that reach the full resolution again
NEAR = 4  # frames that a kept one depends on in the uppermost level
STEP = 4  # frames of that level for one of the level below
AT_ONCE = 24  # rows of the level below that are done there at a time
ABREAST = 8  # bins that the last convolution makes as if they were one: libraries fill few outputs up to 8 or 16


class Over(nn.Module):
    """A bottleneck over the frequencies of each frame and channel, added to what enters it."""

    def __init__(self, channels: int, frequencies: int) -> None:
        super().__init__()
        few = max(1, frequencies // NARROW)
        self.narrow = nn.Linear(frequencies, few, bias=False)
        self.norm1 = Norm2d(channels)
        self.wide = nn.Linear(few, frequencies, bias=False)
        self.norm2 = Norm2d(channels)

    def forward(self, values: Tensor) -> Tensor:
        """`(batch, channels, frames, frequencies)` -> the same shape."""
        # Channels are innermost in memory: a product from the left leaves them there.
        narrow, wide = self.narrow.weight, self.wide.weight
        if not torch.is_grad_enabled():  # a matrix that could have a gradient makes torch lay out everything anew
            narrow, wide = narrow.detach(), wide.detach()
        inner = torch.matmul(narrow, values.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        inner = torch.relu(self.norm1(inner)).permute(0, 2, 3, 1)
        outer = torch.matmul(wide, inner).permute(0, 3, 1, 2)
        return values + torch.relu(self.norm2(outer))


class Block(nn.Module):
    """Two convolutions, the second beside a way past it, and perhaps a bottleneck over frequencies."""

    def __init__(self, inputs: int, channels: int, frequencies: int, stride: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = Norm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = Norm2d(channels)
        self.over = Over(channels, frequencies)

    def forward(self, values: Tensor) -> Tensor:
        """`(batch, inputs, frames, frequencies)` -> `(batch, channels, ...)`, strided."""
        values = torch.relu(self.norm1(self.conv1(values)))
        values = values + torch.relu(self.norm2(self.conv2(values)))
        return self.over(values)


class UNet(Network):
    """Predicts the mask of one stem from the mixture's magnitudes.

    Args:
        config: with one branch that shows a feature for each bin. `hidden`, `layers`, `dropout` and `fusion` are a
            BLSTM's and not looked at; the mask is between 0 and 1.

    Attributes:
        mean: added to the features, `(features,)`; minus the training mean at first.
        scale: multiplied after that; one over the training deviation at first.

    Raises:
        ModelError: several branches, one of anything but bins, or another mask.
    """

    ramp: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if len(config.branches) != 1 or config.mask != "sigmoid":
            raise ModelError(
                f"a U-Net has one branch and the mask sigmoid, got {', '.join(config.branches)} and {config.mask}"
            )
        self.branch = build_branch(config.branches[0], config)
        features = self.branch.features
        if features != config.bandwidth_bins:
            raise ModelError(
                f"a U-Net needs a branch with a feature for each of the {config.bandwidth_bins} bins, such as "
                f"linear-log; {config.branches[0]} has {features}"
            )
        self.mean = nn.Parameter(torch.zeros(features))
        self.scale = nn.Parameter(torch.ones(features))
        depth = len(WIDTHS)
        self.wide = -(-features // 2**depth) * 2**depth  # features, and zeros up to what can be halved so often
        heights = [self.wide >> (level + 1) for level in range(depth)]
        strides = [(2 if level < TIMES else 1, 2) for level in range(depth)]
        self.stem = nn.Conv2d(config.channels + 1, WIDTHS[0], 5, stride=strides[0], padding=2, bias=False)
        self.stem_norm = Norm2d(WIDTHS[0])
        self.down = nn.ModuleList(
            Block(WIDTHS[level - 1], WIDTHS[level], heights[level], strides[level]) for level in range(1, depth)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(WIDTHS[level], WIDTHS[level - 1], strides[level], stride=strides[level], bias=False)
            for level in range(1, depth)
        )
        top = nn.Conv2d(2 * WIDTHS[0], WIDTHS[0], 3, padding=1, bias=False)
        self.merge = nn.ModuleList([nn.Sequential(top, Norm2d(WIDTHS[0]), nn.ReLU())])
        self.merge.extend(Block(2 * WIDTHS[level], WIDTHS[level], heights[level]) for level in range(1, depth - 1))
        self.last = nn.ConvTranspose2d(WIDTHS[0], FINE, strides[0], stride=strides[0])
        self.out = nn.Conv2d(FINE + config.channels, config.channels, 3, padding=1)
        self.register_buffer("ramp", torch.linspace(-1, 1, self.wide), persistent=False)  # where in the spectrum

    def mask(self, magnitude: Tensor, *, half: bool = False) -> Tensor:
        """As `Network.mask`; 0 above the bandwidth. Half precision only where the branch is one of logarithms."""
        self.require(magnitude)
        _, count, _, bins = magnitude.shape
        seen = view(self.branch(magnitude), self.mean, self.scale, self.ramp, -(-count // GRID) * GRID)
        half = half and bool(getattr(self.branch, "log", False))
        with in_half(magnitude.device) if half else nullcontext():
            values = self._decided(seen)
        features = self.branch.features
        values = torch.sigmoid(values[:, :, :count, :features].to(magnitude.dtype)).permute(0, 2, 1, 3)
        return functional.pad(values, (0, bins - features))

    def _decided(self, seen: Tensor) -> Tensor:
        """`(batch, channels + 1, frames, wide)` -> `(batch, channels, frames, wide)`, before the sigmoid."""
        levels = [torch.relu(self.stem_norm(self.stem(seen)))]
        for block in self.down:
            levels.append(block(levels[-1]))
        values = levels.pop()
        for up, merge, skip in zip(reversed(self.up), reversed(self.merge), reversed(levels), strict=True):
            values = merge(torch.cat([up(values), skip], dim=1))
        values = torch.relu(self.last(values))
        return cast(Tensor, self.out(torch.cat([values, seen[:, :-1].to(values.dtype)], dim=1)))


def view(features: Tensor, mean: Tensor, scale: Tensor, ramp: Tensor, frames: int) -> Tensor:
    """What the first convolution sees: features `(batch, count, channels, features)`, standardised, and the ramp.

    Returns:
        `(batch, channels + 1, frames, wide)`, zero where there are no features, channels innermost in memory.
    """
    batch, count, channels, width = features.shape
    seen = features.new_zeros(batch, frames, len(ramp), channels + 1)
    seen[:, :count, :width, :channels] = ((features + mean) * scale).transpose(2, 3)
    seen[..., channels] = ramp
    return seen.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Conv:
    """A convolution with the batch norm after it folded in: torch's weight and bias, and the stride."""

    weight: Tensor
    bias: Tensor
    stride: tuple[int, int] = (1, 1)

    def __call__(self, values: Tensor) -> Tensor:
        around = self.weight.shape[-2] // 2
        return functional.conv2d(values, self.weight, self.bias, self.stride, around)


@dataclass(frozen=True)
class FoldedOver:
    """An `Over`: two matrices, `(outputs, inputs)`, and for each channel what follows the first and the second.

    The second's factor stands in the first's: channels share the matrices, and a factor passes through both.
    """

    narrow: Tensor
    factor: Tensor
    offset: Tensor
    wide: Tensor
    further: Tensor
    last: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """Adds to the values, `(batch, channels, frames, frequencies)`, channels innermost in memory."""
        rows = values.permute(0, 2, 3, 1)
        inner = torch.matmul(self.narrow, rows).mul_(self.factor).add_(self.offset).relu_().mul_(self.further)
        rows += torch.matmul(self.wide, inner).add_(self.last).relu_()
        return values


@dataclass(frozen=True)
class FoldedBlock:
    """A `Block`, of which the second convolution and what follows may be missing."""

    conv1: Conv
    conv2: Conv | None = None
    over: FoldedOver | None = None

    def __call__(self, values: Tensor) -> Tensor:
        return self.finished(self.conv1(values).relu_())

    def finished(self, values: Tensor) -> Tensor:
        """What follows the first convolution; the values are written over."""
        if self.conv2 is not None:
            values += self.conv2(values).relu_()
        return values if self.over is None else self.over(values)


@dataclass(frozen=True)
class Folded:
    """A network ready for inference on the CPU, without its batch norms; `abreast` is `out` for several bins."""

    branch: Branch
    name: str
    mean: Tensor
    scale: Tensor
    ramp: Tensor
    stem: FoldedBlock
    down: list[FoldedBlock]
    up: list[Conv]
    merge: list[FoldedBlock]
    last: Conv
    out: Conv
    abreast: Conv

    def mask(self, features: Tensor, frames: int, keep: slice) -> Tensor:
        """Masks of some frames in the midst of others.

        Args:
            features: the branch's, `(count, channels, features)`. The first frame is the song's first, or a multiple
                of `GRID` after it and at least `REACH` before what is kept.
            frames: a multiple of `GRID`: of the song from the first frame on, filled up to that, or at least `REACH`
                more than what is kept.
            keep: which to return.

        Returns:
            `(kept, channels, features)`.
        """
        heights = frames // STEP
        rows = [self._coarser(features, frames, a, min(a + AT_ONCE, heights)) for a in range(0, heights, AT_ONCE)]
        levels = [self.down[0].finished(torch.cat(rows, dim=2))]
        del rows
        for block in self.down[1:]:
            levels.append(block(levels[-1]))
        values = levels.pop()
        for level in reversed(range(1, len(self.down))):
            values = self._merged(level, values, levels)
        mask = features.new_empty(keep.stop - keep.start, *features.shape[1:])
        for first in range(keep.start, keep.stop, STEP * AT_ONCE):
            last = min(first + STEP * AT_ONCE, keep.stop)
            found = self._finest(values, features, frames, first, last)
            mask[first - keep.start : last - keep.start] = found[..., : features.shape[-1]]
        return mask

    # The uppermost level, a few frames at a time, so that they fit the cache. Its first convolution is done twice,
    # which is cheaper than to keep it.

    def _seen(self, features: Tensor, first: int, last: int) -> Tensor:
        """What the first convolution sees of some frames."""
        return view(features[None, first:last], self.mean, self.scale, self.ramp, last - first)

    def _coarser(self, features: Tensor, frames: int, first: int, last: int) -> Tensor:
        """Of the level below, after its first convolution, the rows from `first` to `last`: each stands for `STEP`."""
        a, b = max(0, first - 1), min(last + 1, frames // STEP)
        values = self.down[0].conv1(self.stem(self._seen(features, STEP * a, STEP * b))).relu_()
        return values[:, :, first - a : last - a]

    def _merged(self, level: int, values: Tensor, levels: list[Tensor]) -> Tensor:
        """The level above, with the last of these, which is taken out: nothing large is held longer than it must be."""
        up, merge = self.up[level], self.merge[level]
        values = functional.conv_transpose2d(values, up.weight, up.bias, up.stride)
        values = torch.cat([values, levels.pop()], dim=1)
        values = merge.conv1(values).relu_()
        return merge.finished(values)

    def _finest(self, values: Tensor, features: Tensor, frames: int, first: int, last: int) -> Tensor:
        """Masks `(last - first, channels, wide)`, of the level below."""
        a, b = max(0, (first - NEAR) // STEP), min(-(-(last + NEAR) // STEP), frames // STEP)
        # The outermost frames of the first convolution are not right, but for the song's.
        c, d = max(0, a - 1), min(b + 1, frames // STEP)
        seen = self._seen(features, STEP * c, STEP * d)
        skip = self.stem(seen)[:, :, 2 * (a - c) : 2 * (b - c)]
        values = self._merged(0, values[:, :, a:b], [skip])
        values = functional.conv_transpose2d(values, self.last.weight, self.last.bias, self.last.stride).relu_()
        values = self.abreast(torch.cat([values, seen[:, :-1, STEP * (a - c) : STEP * (b - c)]], dim=1))
        kept = values[0, :, first - STEP * a : last - STEP * a].sigmoid()
        return kept.unflatten(0, (ABREAST, -1)).permute(2, 1, 3, 0).flatten(2)


@torch.no_grad()
def folded(net: UNet) -> Folded:
    """A network as it is now, in evaluation, in float32 on the CPU."""

    def conv(of: nn.Module, norm: nn.Module | None = None) -> Conv:
        assert isinstance(of, nn.Conv2d | nn.ConvTranspose2d)
        weight, stride = of.weight.double(), cast(tuple[int, int], of.stride)
        if norm is None:
            outputs = of.out_channels
            bias = weight.new_zeros(outputs) if of.bias is None else of.bias
        else:
            factor, bias = affine(cast(Norm2d, norm))
            weight = weight * factor[:, None, None, None]
        return Conv(plain(weight).to(memory_format=torch.channels_last), plain(bias), stride)

    def over(of: Over) -> FoldedOver:
        (factor, offset), (further, last) = affine(of.norm1), affine(of.norm2)
        values = of.narrow.weight, factor, offset, of.wide.weight, further, last
        return FoldedOver(*(plain(value) for value in values))

    def block(of: Block) -> FoldedBlock:
        return FoldedBlock(conv(of.conv1, of.norm1), conv(of.conv2, of.norm2), over(of.over))

    def abreast(of: Conv) -> Conv:
        outputs, inputs, high, wide = of.weight.shape
        weight = of.weight.new_zeros(ABREAST, outputs, inputs, high, wide + ABREAST - 1)
        for number in range(ABREAST):
            weight[number, ..., number : number + wide] = of.weight
        weight = weight.flatten(0, 1).to(memory_format=torch.channels_last)
        return Conv(weight, of.bias.repeat(ABREAST), (1, ABREAST))

    top, *inner = net.merge
    assert isinstance(top, nn.Sequential)
    return Folded(
        branch=copy.deepcopy(net.branch).to(device="cpu", dtype=torch.float32).eval(),
        name=net.config.branches[0],
        mean=plain(net.mean),
        scale=plain(net.scale),
        ramp=plain(net.ramp),
        stem=FoldedBlock(conv(net.stem, net.stem_norm)),
        down=[block(cast(Block, one)) for one in net.down],
        up=[conv(one) for one in net.up],
        merge=[FoldedBlock(conv(top[0], top[1])), *(block(cast(Block, one)) for one in inner)],
        last=conv(net.last),
        out=conv(net.out),
        abreast=abreast(conv(net.out)),
    )
