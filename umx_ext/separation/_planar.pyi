"""Addresses and element strides; what they must point to is in planar.py."""

LAYOUT: int

def moments(
    mixture: int,
    channel_stride: int,
    part_stride: int,
    row_stride: int,
    rows: int,
    bins: int,
    left_masks: tuple[int, ...],
    right_masks: tuple[int, ...],
    mask_strides: tuple[int, ...],
    residual: int,
    powers: int,
    sums: int,
    /,
) -> float: ...
def gains(
    mixture: int,
    channel_stride: int,
    part_stride: int,
    row_stride: int,
    rows: int,
    bins: int,
    sources: int,
    powers: int,
    basis: int,
    rotated: int,
    back: int,
    wanted: tuple[int, ...],
    noise: float,
    estimates: int,
    /,
) -> None: ...
