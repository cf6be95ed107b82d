"""Addresses and element strides; what they must point to is in dense.py."""

LAYOUT: int
WIDE: int
USABLE: int

def product(
    rows: int,
    row_stride: int,
    panels: int,
    bias: int,
    result: int,
    result_stride: int,
    count: int,
    inputs: int,
    outputs: int,
    add: int,
    then: int,
    /,
) -> None: ...
def lstm(
    gates: int,
    gates_lane_stride: int,
    gates_step_stride: int,
    panels: int,
    hidden: int,
    cell: int,
    result: int,
    result_lane_stride: int,
    result_step_stride: int,
    steps: int,
    lanes: int,
    kept: int,
    size: int,
    /,
) -> None: ...
