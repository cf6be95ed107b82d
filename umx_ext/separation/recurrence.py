"""One direction of one layer of an LSTM over a long sequence, in lanes: a quarter of the steps or less.

A step multiplies one vector with a matrix that no core's cache holds, so the machine waits for memory; several vectors
cost little more than one. The sequence is therefore cut into a few lanes that run abreast. All but the first start from
nothing, some frames before their own: an LSTM soon forgets where it came from. Whether it has is not assumed but
checked: a lane stands only if the state with which it reaches its first own frame is the one that the lane before it
ends with. If it is not, the lane is run again from the right state, alone, until it meets what it had found before. So
the result is that of a single run, to the rounding of its products, for whatever weights; a network that forgets
slowly only costs more time. Of matrices that are rounded to integers states count as the same within `_ROUNDED_SAME`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from umx_ext.separation import dense
from umx_ext.separation.dense import Matrix

__all__ = ["Direction", "lstm_direction"]

_LANES = 4  # of torch's LSTM
_COMPILED_LANES = 6  # of `dense`, which multiplies six vectors at a time
_WARM = 300  # frames, at least, that a lane runs before its own
_SHORTEST = 2400  # frames from which lanes are sooner done than one run
_CHUNK = 1024  # frames, of all lanes together, between two looks at whether the result is still wanted; bounds memory

# Largest difference between two states that are the same: roundings leave some 1e-7, and what differs by this decays.
_SAME = 2e-6
_ROUNDED_SAME = 5e-4  # of matrices that are rounded to integers, which leaves some 1e-4

State = tuple[Tensor, Tensor]  # output and cell, each (lanes, hidden)


class Direction:
    """The weights of one direction of one layer.

    Args:
        weights: torch's four: ``weight_ih, weight_hh, bias_ih, bias_hh``. They are copied.
        rounded: as of `dense.Matrix`.
    """

    def __init__(self, weights: Sequence[Tensor], *, rounded: bool = False) -> None:
        inputs, hidden, bias, other_bias = weights
        self.compiled = dense.compiled() and hidden.shape[1] % dense.multiple() == 0
        self.lanes = _COMPILED_LANES if self.compiled else _LANES
        self.same = _ROUNDED_SAME if rounded and self.compiled else _SAME
        if self.compiled:
            self._inputs, self._hidden = Matrix(inputs.mT, rounded=rounded), Matrix(hidden.mT, rounded=rounded)
            self._bias = bias + other_bias
        else:
            self._weights = [part.clone() for part in weights]  # which may be those of a network that is trained on

    def space(self, frames: int, like: Tensor) -> Tensor:
        """What `run` needs for the gates of so many frames of all lanes: taken once, pieces would fray the heap."""
        return like.new_empty(frames * self._hidden.outputs if self.compiled else 0)

    def run(
        self,
        values: Tensor,
        target: Tensor,
        first: int,
        steps: int,
        stride: int,
        state: State,
        kept: int,
        reverse: bool,
        space: Tensor,
    ) -> State:
        """So many steps from that frame of the way on, and in further lanes those a stride, two strides... later.

        The way is that of the rows, or with `reverse` back from the last. The state has the lanes; of those the first
        `kept` write to the target. The state is not changed, and that after the last step returned.
        """
        lanes, frames = len(state[0]), len(values)

        def rows(of: Tensor, lane: int) -> Tensor:
            start = first + lane * stride
            return of[frames - start - steps : frames - start] if reverse else of[start : start + steps]

        if self.compiled:
            gates = space[: lanes * steps * self._hidden.outputs].view(lanes, steps, -1)
            for lane, of_lane in enumerate(gates):
                self._inputs.product(rows(values, lane), self._bias, out=of_lane)
            after = state[0].clone(), state[1].clone()
            begin = frames - 1 - first if reverse else first
            dense.lstm_steps(
                gates, self._hidden, after, target, first=begin, stride=stride, kept=kept, reverse=reverse
            )
            return after
        steps_in = torch.stack([rows(values, lane) for lane in range(lanes)], dim=1)
        initial = [part[None] for part in state]
        output, hidden, cell = torch.lstm(
            steps_in.flip(0) if reverse else steps_in, initial, self._weights, True, 1, 0.0, False, False, False
        )
        output = output.flip(0) if reverse else output
        for lane in range(kept):
            rows(target, lane).copy_(output[:, lane])
        return hidden[0], cell[0]


def lstm_direction(
    direction: Direction, values: Tensor, target: Tensor, *, reverse: bool, check: Callable[[], None]
) -> None:
    """Run one direction of one layer.

    Args:
        direction: its weights.
        values: `(frames, inputs)`.
        target: `(frames, hidden)`, written over.
        reverse: from the last frame to the first.
        check: called now and then; may raise to end the run.
    """
    frames = len(values)
    lanes = direction.lanes if frames >= _SHORTEST else 1
    stride = (frames - _WARM) // lanes if lanes > 1 else 0
    length = frames - (lanes - 1) * stride
    warm = length - stride if lanes > 1 else 0  # lane k has the frames k * stride to k * stride + length of its way

    space = direction.space(min(frames, _CHUNK), values)

    def run(first: int, last: int, state: State, kept: int) -> State:
        check()
        return direction.run(values, target, first, last - first, stride, state, kept, reverse, space)

    hidden = target.shape[-1]
    state = (values.new_zeros(lanes, hidden), values.new_zeros(lanes, hidden))
    before, own = _cuts(0, warm, _CHUNK // lanes), _cuts(warm, length, _CHUNK // lanes)
    passed: dict[int, State] = {}  # where all lanes were after that many frames of theirs
    for first, last in before + own:
        state = run(first, last, state, 1 if last <= warm else lanes)
        passed[last] = state

    true = _of(state, 0)
    for lane in range(1, lanes):
        if not _same(true, _of(passed[warm], lane), direction.same):
            for first, last in own:
                true = run(lane * stride + first, lane * stride + last, true, 1)
                if _same(true, _of(passed[last], lane), direction.same):
                    break
            else:
                continue  # it never met what it had found: `true` is this lane's end
        true = _of(state, lane)


def _cuts(first: int, last: int, length: int) -> list[tuple[int, int]]:
    return [(at, min(at + length, last)) for at in range(first, last, length)]


def _of(state: State, lane: int) -> State:
    return state[0][lane : lane + 1].contiguous(), state[1][lane : lane + 1].contiguous()


def _same(state: State, other: State, limit: float) -> bool:
    return all(bool(((a - b).abs() <= limit * b.abs().clamp_min(1.0)).all()) for a, b in zip(state, other, strict=True))
