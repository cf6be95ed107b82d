"""Several processes that do one run: every step of theirs is the step that one process would have done.

Each takes some examples of every batch. What is a sum over examples in one process is added up over all: statistics of
batch norms, denominators of losses, gradients. Started by `torchrun`, which tells each who it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from umx_ext.separation.norms import Norm, Norm2d

__all__ = ["GlobalBatchNorm", "Group", "joined", "own_device", "with_global_norms"]


@dataclass(frozen=True)
class Group:
    """Who this process is: number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process validates, writes and reports."""
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes, without gradient."""
        if self.size == 1:
            return value
        value = value.detach().clone()
        torch.distributed.all_reduce(value)
        return value

    def add_gradients(self, net: nn.Module) -> None:
        """Replace every gradient by the sum over all processes."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        joined_up = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(joined_up)
        for gradient, part in zip(gradients, joined_up.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def agree(self, value: Any) -> Any:
        """The leader's value, in every process."""
        if self.size == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]


def own_device(device: torch.device) -> torch.device:
    """Of several GPUs the one of this process, where `torchrun` started one for each and none is named."""
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


@contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """The group that `torchrun` started this process in, or a group of one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or not torch.distributed.is_available():
        yield Group()
        return
    ours = not torch.distributed.is_initialized()
    if ours:
        # While one validates the others wait, which must not look like a process that hangs.
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():  # where objects are sent from
            yield Group(torch.distributed.get_rank(), torch.distributed.get_world_size())
            torch.distributed.barrier()  # nobody leaves while another may still talk to it
    finally:
        if ours:
            torch.distributed.destroy_process_group()


class GlobalBatchNorm(Norm):
    """A batch norm whose batch is that of all processes. (torch's own synchronised one works on GPUs only.)"""

    def normalised(self, values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """`(batch, features)` -> the same shape."""
        if not self.training:
            return super().normalised(values, weight, bias)
        from torch.distributed.nn.functional import all_reduce

        wide = values.float()
        count = all_reduce(wide.new_tensor([float(len(wide))]))
        mean = all_reduce(wide.sum(0)) / count
        variance = all_reduce((wide - mean).square().sum(0)) / count
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                share = self.momentum if self.momentum is not None else 1.0 / (float(self.num_batches_tracked) + 1)
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean.detach(), share)
                self.running_var.lerp_(variance.detach() * (count / (count - 1)), share)
        normal = (wide - mean) * (variance + self.eps).rsqrt()
        return (normal * weight + bias).to(values.dtype)


class GlobalBatchNorm2d(Norm2d, GlobalBatchNorm):
    """The same of `(batch, channels, frames, frequencies)`."""


def with_global_norms(net: nn.Module) -> nn.Module:
    """Let all batch norms of a network look at the batch of all processes; parameters stay the same objects."""
    for module in net.modules():
        if type(module) in (nn.BatchNorm1d, Norm):
            module.__class__ = GlobalBatchNorm
        elif type(module) is Norm2d:
            module.__class__ = GlobalBatchNorm2d
    return net
