"""python scripts/bench_wiener.py [--threads 2] [--rounds 5] [--json FILE]

Times `umx_ext.separation.wiener.wiener` against `openunmix.filtering.wiener` (extra `research`): one window of 300
frames of stereo noise with n_fft 4096, one iteration, float32. Both are given the same numbers in their own layout and
measured in turn, A B A B; the fastest round of each counts. The error is the distance from openunmix in float64.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from openunmix.filtering import wiener as openunmix_wiener
from torch import Tensor

from umx_ext.separation.wiener import wiener

FRAMES, CHANNELS, BINS = 300, 2, 2049
CASES = {"2 sources (vocals + residual)": (1, True), "4 sources": (4, False), "5 sources (4 + residual)": (4, True)}


def scene(sources: int) -> tuple[Tensor, Tensor]:
    """Masked magnitudes `(sources, frames, channels, bins)` and a mixture that falls off as music does."""
    generator = torch.Generator().manual_seed(0)
    shape = (FRAMES, CHANNELS, BINS)
    slope = 300 / (1 + torch.arange(BINS) / 10)
    mixture = torch.randn(shape, generator=generator, dtype=torch.complex64) * slope
    return torch.rand(sources, *shape, generator=generator) * mixture.abs(), mixture


def openunmix_arguments(magnitudes: Tensor, mixture: Tensor) -> tuple[Tensor, Tensor]:
    planes = torch.view_as_real(mixture).permute(0, 2, 1, 3).contiguous()
    return magnitudes.permute(1, 3, 2, 0).contiguous(), planes


def seconds(function: Callable[[], Tensor]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def error_db(estimates: Tensor, truth: Tensor) -> float:
    return 10 * math.log10(float((estimates - truth).abs().square().mean() / truth.abs().square().mean()))


@torch.no_grad()
def measure(sources: int, residual: bool, rounds: int) -> dict[str, float]:
    magnitudes, mixture = scene(sources)
    theirs = openunmix_arguments(magnitudes, mixture)
    calls: dict[str, Callable[[], Tensor]] = {
        "openunmix": lambda: openunmix_wiener(*theirs, 1, residual=residual),
        "umx_ext": lambda: wiener(magnitudes, mixture, residual=residual),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            times[name].append(seconds(call))
    best = {name: min(values[1:]) for name, values in times.items()}  # the first round warms up

    torch.set_default_dtype(torch.float64)  # openunmix's constants follow it
    exact = openunmix_wiener(
        *openunmix_arguments(magnitudes.double(), mixture.to(torch.complex128)), 1, residual=residual
    )
    torch.set_default_dtype(torch.float32)
    return {
        "openunmix_ms": 1000 * best["openunmix"],
        "umx_ext_ms": 1000 * best["umx_ext"],
        "faster": best["openunmix"] / best["umx_ext"],
        "openunmix_error_db": error_db(calls["openunmix"](), exact),
        "umx_ext_error_db": error_db(torch.view_as_real(calls["umx_ext"]()).permute(1, 3, 2, 4, 0), exact),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="torch threads (2)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (5)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = {name: measure(*case, options.rounds) for name, case in CASES.items()}
    print(f"| one window, {options.threads} threads | openunmix | umx-ext | faster | error of openunmix | of umx-ext |")
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        print(
            f"| {name} | {row['openunmix_ms']:.0f} ms | {row['umx_ext_ms']:.0f} ms | {row['faster']:.1f}x "
            f"| {row['openunmix_error_db']:.0f} dB | {row['umx_ext_error_db']:.0f} dB |"
        )
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
