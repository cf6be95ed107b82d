"""Batch norms, which training can spread over processes (`umx_ext.training.parallel`) and inference folds away."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Norm", "Norm2d", "affine", "plain"]


class Norm(nn.BatchNorm1d):
    """A batch norm that can be asked for another weight and bias than its own."""

    def normalised(self, values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """`(batch, features)` -> the same shape."""
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        mean, variance, momentum = self.running_mean, self.running_var, self.momentum
        return functional.batch_norm(values, mean, variance, weight, bias, self.training, momentum or 0.0, self.eps)

    def forward(self, values: Tensor) -> Tensor:
        """`(batch, features)` -> the same shape."""
        return self.normalised(values, self.weight, self.bias)


class Norm2d(Norm):
    """A batch norm of `(batch, channels, frames, frequencies)`, fastest with channels innermost in memory."""

    def forward(self, values: Tensor) -> Tensor:
        """The same shape."""
        rows = values.movedim(1, -1)
        return super().forward(rows.flatten(0, -2)).view(rows.shape).movedim(-1, 1)


def affine(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """A batch norm in evaluation, as factor and offset, in double precision."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return factor, norm.bias.double() - norm.running_mean.double() * factor


def plain(values: Tensor) -> Tensor:
    """Weights for inference on the CPU: float32, contiguous, and nothing of a graph."""
    return values.detach().to(device="cpu", dtype=torch.float32).contiguous()
