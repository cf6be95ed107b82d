"""Addresses and element strides; what they must point to is in dense.py."""

LAYOUT: int
MOST: int  # the largest integer
BEST: int  # outputs of a panel, 0 if torch is better
AVX2: int  # the same of the loops with AVX2, 0 if they do not run here

def product(
    panels: int,
    factors: int,
    steps: int,
    inputs: int,
    outputs: int,
    wide: int,
    rows: int,
    row_stride: int,
    bias: int,
    result: int,
    result_stride: int,
    count: int,
    add: int,
    then: int,
    /,
) -> None: ...
def lstm(
    panels: int,
    factors: int,
    steps_of_integers: int,
    inputs: int,
    outputs: int,
    wide: int,
    gates: int,
    gates_lane_stride: int,
    gates_step_stride: int,
    hidden: int,
    cell: int,
    result: int,
    result_lane_stride: int,
    result_step_stride: int,
    steps: int,
    lanes: int,
    kept: int,
    /,
) -> None: ...
