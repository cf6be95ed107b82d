"""A convolutional network of one stem: a U-Net over time and frequency that sees what one branch shows it.

Unlike a BLSTM, whose first matrix has a weight for every bin, a convolution knows a sound again at another pitch, which
is what counts when there is little music to learn from. After Jansson et al., "Singing voice separation with deep U-Net
convolutional networks", ISMIR 2017, with residual convolutions (He et al., CVPR 2016) and, on the inner levels, a
bottleneck over all frequencies of a frame (Choi et al., "Investigating U-Nets with various intermediate blocks for
spectrogram-based singing voice separation", ISMIR 2020).

Frames are halved `TIMES` times and no frame sees far: a long spectrogram can be done in pieces that overlap and begin at
multiples of `GRID`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from umx_ext.errors import ModelError
from umx_ext.separation.branches import build_branch
from umx_ext.separation.config import Config
from umx_ext.separation.masknet import Norm

__all__ = ["GRID", "UNet"]

WIDTHS = (16, 32, 48, 64, 96)  # channels of each level, each of half the frequencies of the one above
TIMES = 3  # of the uppermost levels, which halve the frames as well
GRID = 2**TIMES  # frames
NARROW = 8  # how many times narrower the bottlenecks over frequencies are
FINE = 8  # channels that reach the full resolution again


class Norm2d(Norm):
    """A batch norm of `(batch, channels, frames, frequencies)`, fastest with channels innermost in memory."""

    def forward(self, values: Tensor) -> Tensor:
        """Any number of dimensions, channels the second -> the same shape."""
        rows = values.movedim(1, -1)
        return super().forward(rows.flatten(0, -2)).view(rows.shape).movedim(-1, 1)


class Over(nn.Module):
    """A bottleneck over the frequencies of each frame and channel, added to what enters it."""

    def __init__(self, channels: int, frequencies: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(frequencies, frequencies // NARROW, bias=False)
        self.norm1 = Norm2d(channels)
        self.wide = nn.Linear(frequencies // NARROW, frequencies, bias=False)
        self.norm2 = Norm2d(channels)

    def forward(self, values: Tensor) -> Tensor:
        """`(batch, channels, frames, frequencies)` -> the same shape."""
        # Channels are innermost in memory: a product from the left leaves them there.
        rows = values.permute(0, 2, 3, 1)
        inner = torch.matmul(self.narrow.weight, rows).permute(0, 3, 1, 2)
        inner = torch.relu(self.norm1(inner)).permute(0, 2, 3, 1)
        outer = torch.matmul(self.wide.weight, inner).permute(0, 3, 1, 2)
        return values + torch.relu(self.norm2(outer))


class Block(nn.Module):
    """Two convolutions, the second beside a way past it, and a bottleneck over frequencies."""

    def __init__(self, inputs: int, channels: int, frequencies: int, *, stride: tuple[int, int], over: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = Norm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = Norm2d(channels)
        self.over = Over(channels, frequencies) if over else nn.Identity()

    def forward(self, values: Tensor) -> Tensor:
        """`(batch, inputs, frames, frequencies)` -> `(batch, channels, ...)`, strided."""
        values = torch.relu(self.norm1(self.conv1(values)))
        values = values + torch.relu(self.norm2(self.conv2(values)))
        return self.over(values)


class UNet(nn.Module):
    """Predicts the mask of one stem from the mixture's magnitudes.

    Args:
        config: with one branch, a view of single bins; of the sizes, those of the transform alone count.

    Attributes:
        mean: added to the features, `(features,)`; minus the training mean at first.
        scale: multiplied after that; one over the training deviation at first.

    Raises:
        ModelError: several branches.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        if len(config.branches) != 1:
            raise ModelError(f"a U-Net has one branch, got {', '.join(config.branches)}")
        self.config = config
        self.branch = build_branch(config.branches[0], config)
        features = self.branch.features
        self.mean = nn.Parameter(torch.zeros(features))
        self.scale = nn.Parameter(torch.ones(features))
        depth = len(WIDTHS)
        wide = -(-features // 2**depth) * 2**depth
        self.wide = wide
        strides = [(2 if level < TIMES else 1, 2) for level in range(depth)]
        self.stem = nn.Conv2d(config.channels + 1, WIDTHS[0], 5, stride=strides[0], padding=2, bias=False)
        self.stem_norm = Norm2d(WIDTHS[0])
        self.down = nn.ModuleList(
            Block(WIDTHS[level - 1], WIDTHS[level], wide >> (level + 1), stride=strides[level], over=True)
            for level in range(1, depth)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(WIDTHS[level], WIDTHS[level - 1], strides[level], stride=strides[level], bias=False)
            for level in range(1, depth)
        )
        self.merge = nn.ModuleList(
            Block(2 * WIDTHS[level], WIDTHS[level], wide >> (level + 1), stride=(1, 1), over=level > 0)
            if level
            else nn.Sequential(nn.Conv2d(2 * WIDTHS[0], WIDTHS[0], 3, padding=1, bias=False), Norm2d(WIDTHS[0]), nn.ReLU())
            for level in range(depth - 1)
        )
        self.last = nn.ConvTranspose2d(WIDTHS[0], FINE, strides[0], stride=strides[0])
        self.out = nn.Conv2d(FINE + config.channels, config.channels, 3, padding=1)
        self.register_buffer("ramp", torch.linspace(-1, 1, wide), persistent=False)

    ramp: Tensor

    def mask(self, magnitude: Tensor) -> Tensor:
        """`(batch, frames, channels, bins)` -> the same shape, 0 to 1."""
        batch, count, channels, bins = magnitude.shape
        features = (self.branch(magnitude) + self.mean) * self.scale  # (batch, frames, channels, features)
        view = features.new_zeros(batch, -(-count // GRID) * GRID, self.wide, channels + 1)
        view[:, :count, : features.shape[-1], :channels] = features.transpose(2, 3)
        view[..., channels] = self.ramp
        values = view.permute(0, 3, 1, 2)  # channels innermost in memory
        first = values[:, :channels]
        values = torch.relu(self.stem_norm(self.stem(values)))
        levels = [values]
        for block in self.down:
            levels.append(block(levels[-1]))
        values = levels.pop()
        for level in reversed(range(len(levels))):
            values = self.merge[level](torch.cat([self.up[level](values), levels[level]], dim=1))
        values = self.out(torch.cat([torch.relu(self.last(values)), first.to(values.dtype)], dim=1))
        values = torch.sigmoid(values[:, :, :count, : features.shape[-1]].float()).permute(0, 2, 1, 3)
        return functional.pad(values, (0, bins - features.shape[-1]))
