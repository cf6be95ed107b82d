"""The network's matrices, laid out once for all the rows that will be multiplied with them.

A general product has to arrange its right side anew each time, which for a few rows costs more than multiplying them.
The weights do not change, so here that is done when they are read. The function that follows a product is applied while
its results are in registers, and an LSTM's steps run without the interpreter.

The loops are compiled with the package where a C compiler is to be had, for x86 processors with AVX2 or with AVX-512
and its VNNI, not on Windows. Elsewhere torch does it: the same numbers but for roundings.

The loops can also multiply integers, which is faster by half, with AVX-512 twice as fast, and takes half of the
memory's traffic. Both sides are rounded to 12 bits, sign included: the matrix in steps of each output's largest
weight / 2047, the rows in steps of each row's largest number / 2047, for 1024 inputs at a time (AVX-512: 512). So that
small inputs with large weights are not lost beside large inputs with small ones, each input is first multiplied by, and
its weights divided by, a factor: the root mean square of its weights. Sums of up to 512 products are exact. The error
is some -70 dB of a product.
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    from umx_ext.separation import _dense
except ImportError:  # not built here
    _dense = None  # type: ignore[assignment]

__all__ = ["FUNCTIONS", "Matrix", "compiled", "lstm_steps", "multiple"]

LAYOUT = 4  # of what the loops are given: one that was built for another is not used
FUNCTIONS = ("", "relu", "sigmoid", "tanh")  # that may follow a product


def compiled() -> bool:
    """Whether the loops were built with the package, with this version of it, and are for this processor."""
    return _wide() > 0


def multiple() -> int:
    """The width of the loops' vectors, of which an LSTM's hidden size has to be a multiple; 0 without the loops."""
    return _wide() // 2


def _wide() -> int:
    """Outputs of a panel; 0 without the loops."""
    return _dense.BEST if _dense is not None and getattr(_dense, "LAYOUT", 0) == LAYOUT else 0


class Matrix:
    """A matrix that rows are multiplied with, on the CPU.

    Args:
        values: float32 `(inputs, outputs)`, neither of them 0. They are copied, or kept as they are and not to be
            changed.
        rounded: multiply integers where the compiled loops are used. Elsewhere it changes nothing. The products of a
            row with something infinite in it are undefined then.

    Attributes: inputs; outputs.
    """

    def __init__(self, values: Tensor, *, rounded: bool = False) -> None:
        values = values.detach().resolve_neg()
        if values.dim() != 2 or not values.numel():
            raise ValueError(f"expected a matrix (inputs, outputs), got {tuple(values.shape)}")
        _require(values, *values.shape)
        self.inputs, self.outputs = values.shape
        self.panels: Tensor | None = None
        self._values: Tensor | None = None
        if not compiled():
            self._values = values
            return
        self.factors: Tensor | None = None
        self.steps: Tensor | None = None
        if rounded:
            values = self._rounded(values)
        rows, wide = len(values), _wide()
        full, rest = divmod(values.shape[1], wide)
        self.panels = values.new_zeros(full + (rest > 0), rows, wide)
        self.panels[:full] = values[:, : full * wide].unflatten(1, (full, wide)).transpose(0, 1)
        if rest:
            self.panels[full, :, :rest] = values[:, full * wide :]

    def _rounded(self, values: Tensor) -> Tensor:
        """The integers, of 16 bits, those of two inputs in one of 32: `(inputs / 2, outputs)`."""
        factors = values.double().square().mean(1).sqrt().float()
        scaled = values / torch.where(factors > 0, factors, 1)[:, None]
        steps = scaled.abs().amax(0) / _dense.MOST
        whole = (scaled / torch.where(steps > 0, steps, 1)).round().int()
        if self.inputs % 2:
            whole = torch.cat([whole, whole.new_zeros(1, self.outputs)])
        self.factors = factors  # 0 for an input that has no weight: it must not count as a row's largest
        self.steps = torch.nn.functional.pad(steps, (0, -self.outputs % _wide()))
        low, high = whole.unflatten(0, (-1, 2)).unbind(1)
        return (high << 16) | (low & 0xFFFF)

    def addresses(self) -> tuple[int, int, int, int, int, int]:
        """What the compiled loops are given of it."""
        if self.panels is None or self.panels.shape[-1] != _wide():  # it came from another machine
            raise ValueError("the matrix was laid out for loops that are not here; lay it out anew")
        factors = 0 if self.factors is None else self.factors.data_ptr()
        steps = 0 if self.steps is None else self.steps.data_ptr()
        return self.panels.data_ptr(), factors, steps, self.inputs, self.outputs, self.panels.shape[-1]

    def product(
        self, rows: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None, add: bool = False, then: str = ""
    ) -> Tensor:
        """``then(rows @ matrix + bias)``.

        Args:
            rows: float32 `(count, inputs)`.
            bias: float32 `(outputs,)`.
            out: where to put the result, float32 `(count, outputs)`; a new tensor when left out.
            add: add what `out` has held, before `then`.
            then: one of `FUNCTIONS`.

        Returns:
            `(count, outputs)`: `out`, when it was given.
        """
        function = FUNCTIONS.index(then)
        if self._values is not None:
            return self._by_torch(rows, bias, out, add, then)
        matrix = self.addresses()
        if rows.dim() != 2:
            raise ValueError(f"expected rows (count, {self.inputs}), got {tuple(rows.shape)}")
        _require(rows, len(rows), self.inputs)
        rows = rows.resolve_neg()
        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        if rows.stride(1) != 1:  # a column, which counts as contiguous with any stride
            rows = rows.clone(memory_format=torch.contiguous_format)
        if bias is not None:
            _require(bias[None], 1, self.outputs)
            bias = bias.resolve_neg().contiguous()  # kept until it has been read
        if out is None:
            out = rows.new_empty(len(rows), self.outputs)
        _require(out, len(rows), self.outputs)
        if out.stride(1) != 1:
            beside = out.new_empty(out.shape)
            return out.copy_(self.product(rows, bias, out=beside.copy_(out) if add else beside, add=add, then=then))
        _dense.product(
            *matrix,
            rows.data_ptr(),
            rows.stride(0),
            0 if bias is None else bias.data_ptr(),
            out.data_ptr(),
            out.stride(0),
            len(rows),
            int(add),
            function,
        )
        return out

    def _by_torch(self, rows: Tensor, bias: Tensor | None, out: Tensor | None, add: bool, then: str) -> Tensor:
        assert self._values is not None
        if add:
            assert out is not None
            result = out.addmm_(rows, self._values)
            if bias is not None:
                result += bias
        elif bias is None:
            result = torch.mm(rows, self._values, out=out)
        else:
            result = torch.addmm(bias, rows, self._values, out=out)
        return getattr(result, f"{then}_")() if then else result


def lstm_steps(
    gates: Tensor,
    weights: Matrix,
    state: tuple[Tensor, Tensor],
    target: Tensor,
    *,
    first: int,
    stride: int,
    kept: int,
    reverse: bool,
) -> None:
    """Steps of an LSTM in lanes abreast, by the compiled loops; see `umx_ext.separation.recurrence`.

    Args:
        gates: the inputs' part of the gates, biases included, float32 `(lanes, steps, 4 * hidden)`, contiguous, in the
            order of the rows; the four in torch's order. It is written over.
        weights: the hidden state's, `(hidden, 4 * hidden)`; hidden is a multiple of `multiple()`.
        state: hidden and cell state, contiguous float32 `(lanes, hidden)`. Written over with those after the last step.
        target: float32 `(frames, hidden)`.
        first: the row of the target for the first step of the first lane.
        stride: rows from one lane to the next.
        kept: of the first so many lanes the target gets the hidden states.
        reverse: from the last step's row to the first, and from the last lane's to the first.
    """
    matrix, lanes, steps, size = weights.addresses(), len(gates), gates.shape[1], weights.inputs
    hidden, cell = state
    for values in (hidden, cell):
        _require(values, lanes, size)
    _require(gates.view(lanes * steps, -1), lanes * steps, 4 * size)
    _require(target, len(target), size)
    sign = -1 if reverse else 1
    last = first + sign * ((kept - 1) * stride + steps - 1)
    if not (min(first, last) >= 0 and max(first, last) < len(target) and 0 < kept <= lanes):
        raise ValueError(f"rows {first} to {last} of {kept} in {lanes} lanes are not within the target's {len(target)}")
    beside = all(values.is_contiguous() for values in (gates, hidden, cell)) and target.stride(1) == 1
    if weights.outputs != 4 * size or size % multiple() or not beside:
        raise ValueError(
            f"expected weights (hidden, 4 * hidden), a multiple of {multiple()} units, and values beside each other"
        )
    row = target.stride(0)
    begin = gates[0, -1] if reverse else gates[0, 0]
    _dense.lstm(
        *matrix,
        begin.data_ptr(),
        gates.stride(0),
        sign * gates.stride(1),
        hidden.data_ptr(),
        cell.data_ptr(),
        target[first].data_ptr(),
        sign * stride * row,
        sign * row,
        steps,
        lanes,
        kept,
    )


def _require(values: Tensor, count: int, width: int) -> None:
    """Addresses are not checked by what uses them."""
    if values.shape != (count, width) or values.dtype != torch.float32 or values.device.type != "cpu":
        found = f"{values.dtype} {tuple(values.shape)} on {values.device}"
        raise ValueError(f"expected float32 ({count}, {width}) on the CPU, got {found}")
