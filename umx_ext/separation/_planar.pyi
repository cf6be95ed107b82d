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
    of_magnitudes: bool,
    tiny: float,
    powers: int,
    sums: int,
    threads: int,
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
    source_stride: int,
    channel_stride_of_estimates: int,
    row_stride_of_estimates: int,
    following: int,
    sums: int,
    threads: int,
    /,
) -> None: ...
def magnitude(spectrum: int, result: int, count: int, /) -> None: ...
def split(
    spectrum: int,
    spectrum_row_stride: int,
    spectrum_channel_stride: int,
    rows: int,
    channels: int,
    bins: int,
    result: int,
    channel_stride: int,
    part_stride: int,
    row_stride: int,
    threads: int,
    /,
) -> None: ...
def add(frames: int, window: int, sums: int, rows: int, size: int, hop: int, /) -> None: ...
