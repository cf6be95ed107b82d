"""The Wiener filter beside open-unmix's: python scripts/bench_wiener.py [--threads 2] [--rounds 15]

One window of 300 frames of stereo noise with n_fft 4096, float32: `umx_ext.separation.wiener.wiener`, with its compiled
loops and in torch alone, against `openunmix.filtering.wiener` (extra `research`). All are given the same numbers in
their own layout and measured in turn; the median ratio of paired rounds counts. The error is the distance from
open-unmix in float64. As in the command `umx-ext`, memory that is freed is kept for the next call, of all alike: else
the time is that in which a machine hands out pages. Before each call there is a pause, in which threads that the last
one left waiting go to sleep. Writes `docs/wiener_speed.json` and the README's table.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from openunmix.filtering import wiener as openunmix_wiener
from tables import machine, publish, render
from torch import Tensor

from umx_ext.cli import keep_memory
from umx_ext.separation import planar
from umx_ext.separation.wiener import wiener

PAUSE_S = 0.05
FRAMES, CHANNELS, BINS = 300, 2, 2049
CASES = {  # sources, residual, iterations
    "2 sources (vocals + residual)": (1, True, 1),
    "4 sources": (4, False, 1),
    "5 sources (4 + residual)": (4, True, 1),
    "2 sources, 2 iterations": (1, True, 2),
}


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
    time.sleep(PAUSE_S)
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def error_db(estimates: Tensor, truth: Tensor) -> float:
    return 10 * math.log10(float((estimates - truth).abs().square().mean() / truth.abs().square().mean()))


def in_torch_alone(function: Callable[[], Tensor]) -> Tensor:
    loops, planar._planar = planar._planar, None
    try:
        return function()
    finally:
        planar._planar = loops


@torch.no_grad()
def measure(sources: int, residual: bool, niter: int, rounds: int) -> list[dict[str, float | str]]:
    magnitudes, mixture = scene(sources)
    theirs = openunmix_arguments(magnitudes, mixture)

    def ours() -> Tensor:
        return wiener(magnitudes, mixture, residual=residual, niter=niter)

    calls: dict[str, Callable[[], Tensor]] = {
        "open-unmix 1.3.0": lambda: openunmix_wiener(*theirs, niter, residual=residual),
        "umx_ext, torch alone": lambda: in_torch_alone(ours),
    }
    if planar.compiled():
        calls["umx_ext"] = ours
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            times[name].append(seconds(call))
    times = {name: values[1:] for name, values in times.items()}  # the first round warms up

    torch.set_default_dtype(torch.float64)  # openunmix's constants follow it
    exact = openunmix_wiener(
        *openunmix_arguments(magnitudes.double(), mixture.to(torch.complex128)), niter, residual=residual
    )
    torch.set_default_dtype(torch.float32)
    rows: list[dict[str, float | str]] = []
    for name, call in calls.items():
        found = call()
        if name.startswith("umx_ext"):
            found = torch.view_as_real(found).permute(1, 3, 2, 4, 0)
        pairs = zip(times["open-unmix 1.3.0"], times[name], strict=True)
        rows.append(
            {
                "system": name,
                "ms": 1000 * statistics.median(times[name]),
                "faster": statistics.median(other / own for other, own in pairs),
                "error_db": error_db(found, exact),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="torch threads (2)")
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds (15)")
    options = parser.parse_args()
    keep_memory()
    torch.set_num_threads(options.threads)
    rows = []
    for case, settings in CASES.items():
        for row in measure(*settings, options.rounds):
            ratio = "1" if row["system"].startswith("open") else f"**{row['faster']:.1f}x**"
            rows.append([case, row["system"], f"{row['ms']:.0f}", ratio, f"{row['error_db']:.0f}"])
    table = {
        "columns": ["one window of 7 s", "system", "ms", "speed", "error, dB"],
        "rows": rows,
        "note": f"{FRAMES} frames of stereo noise, n_fft 4096, float32, {options.threads} threads, {options.rounds} "
        "rounds in turn, freed memory kept for the next call: median time, median ratio of paired rounds; the error is "
        "beside open-unmix in float64. "
        f"{machine()}.",
    }
    print(render(table))
    publish("wiener_speed", table)


if __name__ == "__main__":
    main()
