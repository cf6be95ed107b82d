"""One direction of one layer of an LSTM over a long sequence, in lanes: a quarter of the steps or little more.

A step multiplies one vector with a matrix that no core's cache holds, so the machine waits for memory; four vectors
cost little more than one. The sequence is therefore cut into four lanes that run abreast. All but the first start from
nothing, some frames before their own: an LSTM soon forgets where it came from. Whether it has is not assumed but
checked: a lane stands only if the state with which it reaches its first own frame is the one that the lane before it
ends with. If it is not, the lane is run again from the right state, alone, until it meets what it had found before. So
the result is that of a single run, to the rounding of its products, for whatever weights; a network that forgets
slowly only costs more time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["lstm_direction"]

_LANES = 4
_WARM = 300  # frames, at least, that a lane runs before its own
_SHORTEST = 2400  # frames from which lanes are sooner done than one run
_CHUNK = 1024  # frames, of all lanes together, between two looks at whether the result is still wanted; bounds memory

# Largest difference between two states that are the same: roundings leave some 1e-7, and what differs by this decays.
_SAME = 2e-6

State = tuple[Tensor, Tensor]  # output and cell, each (1, lanes, hidden)


def lstm_direction(
    weights: list[Tensor], values: Tensor, target: Tensor, *, reverse: bool, check: Callable[[], None]
) -> None:
    """Run one direction of one layer.

    Args:
        weights: torch's four: ``weight_ih, weight_hh, bias_ih, bias_hh``.
        values: `(frames, inputs)`.
        target: `(frames, hidden)`, written over.
        reverse: from the last frame to the first.
        check: called now and then; may raise to end the run.
    """
    frames = len(values)
    lanes = _LANES if frames >= _SHORTEST else 1
    stride = (frames - _WARM) // lanes if lanes > 1 else 0
    length = frames - (lanes - 1) * stride
    warm = length - stride if lanes > 1 else 0  # lane k has the frames k * stride to k * stride + length of its way

    def row(first: int, last: int, lanes: int) -> int:
        return frames - last - (lanes - 1) * stride if reverse else first

    def turned(steps: Tensor) -> Tensor:
        """From the order of rows to the order of the way, and back."""
        return steps.flip(0, 1) if reverse else steps

    def run(first: int, last: int, state: State, lanes: int, kept: int) -> State:
        """These frames of the way, and in other lanes those a stride, two strides... on; the first few are kept."""
        check()
        steps = turned(_lanes(values, row(first, last, lanes), last - first, stride, lanes))
        output, hidden, cell = torch.lstm(steps, list(state), weights, True, 1, 0.0, False, False, False)
        _lanes(target, row(first, last, kept), last - first, stride, kept).copy_(turned(output[:, :kept]))
        return hidden, cell

    hidden = target.shape[-1]
    state = (values.new_zeros(1, lanes, hidden), values.new_zeros(1, lanes, hidden))
    before, own = _cuts(0, warm, _CHUNK // lanes), _cuts(warm, length, _CHUNK // lanes)
    passed: dict[int, State] = {}  # where all lanes were after that many frames of theirs
    for first, last in before + own:
        state = run(first, last, state, lanes, 1 if last <= warm else lanes)
        passed[last] = state

    true = _of(state, 0)
    for lane in range(1, lanes):
        if not _same(true, _of(passed[warm], lane)):
            for first, last in own:
                true = run(lane * stride + first, lane * stride + last, true, 1, 1)
                if _same(true, _of(passed[last], lane)):
                    break
            else:
                continue  # it never met what it had found: `true` is this lane's end
        true = _of(state, lane)


def _cuts(first: int, last: int, length: int) -> list[tuple[int, int]]:
    return [(at, min(at + length, last)) for at in range(first, last, length)]


def _lanes(rows: Tensor, first: int, frames: int, stride: int, lanes: int) -> Tensor:
    """A view `(frames, lanes, values)`: lane k begins `stride * k` rows after the first."""
    row, value = rows.stride()
    offset = rows.storage_offset() + first * row
    return rows.as_strided((frames, lanes, rows.shape[1]), (row, stride * row, value), offset)


def _of(state: State, lane: int) -> State:
    return state[0][:, lane : lane + 1].contiguous(), state[1][:, lane : lane + 1].contiguous()


def _same(state: State, other: State) -> bool:
    return all(bool(((a - b).abs() <= _SAME * b.abs().clamp_min(1.0)).all()) for a, b in zip(state, other, strict=True))
