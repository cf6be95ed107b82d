"""Where a training step's time goes: python scripts/bench_train.py STORE [--steps N] [--hidden N] [--batch N]

STORE is what `umx-ext data pack` made. Prints and writes `docs/training_speed.json`: milliseconds of each part of a
step (drawing runs beside the others, in a thread of its own), and the share of the step spent waiting for data. The
parts are timed one after the other in the same process, `--steps` times in turn; the whole step as the trainer does it.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from umx_ext.cli import keep_memory
from umx_ext.separation.config import Config
from umx_ext.training.fit import Progress, batch_of, fit
from umx_ext.training.losses import LOSSES
from umx_ext.training.options import TrainOptions
from umx_ext.training.remix import Remixer
from umx_ext.training.tracks import Pack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()
    keep_memory()
    from tables import machine, publish, render

    config = Config(branches=("linear-log", "mel"), hidden=arguments.hidden, mask="sigmoid")
    options = TrainOptions(steps=arguments.steps + 2, batch=arguments.batch, every=10**6)
    pack = Pack(arguments.store)
    parts = in_parts(pack, config, options, arguments.steps)
    seconds, waited = whole(pack, config, options)
    rows = [[name, f"{1000 * statistics.median(values):.0f}"] for name, values in parts.items()]
    rows.append(["**whole step, as the trainer does it**", f"**{1000 * statistics.median(seconds):.0f}**"])
    table = {
        "columns": ["part of a step", "milliseconds"],
        "rows": rows,
        "note": f"{options.batch} examples of {options.excerpt_s:g} s, hidden {config.hidden}, linear + mel; "
        f"medians of {arguments.steps} steps; {100 * sum(waited) / sum(seconds):.1f} % of the step is spent waiting "
        f"for data, {options.batch / statistics.median(seconds):.1f} examples a second. {machine()}.",
    }
    print(render(table))
    publish("training_speed", table)


def in_parts(pack: Pack, config: Config, options: TrainOptions, steps: int) -> dict[str, list[float]]:
    from umx_ext.separation.masknet import MaskNet

    torch.manual_seed(0)
    net = MaskNet(config)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-4)
    remixer = Remixer(pack, samples=round(options.excerpt_s * config.sample_rate))
    parts: dict[str, list[float]] = {
        name: [] for name in ("draw (beside the rest)", "STFT", "forward", "loss", "backward", "optimiser")
    }
    last = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        parts[name].append(now - last)
        last = now

    for step in range(steps):
        last = time.perf_counter()
        drawn = [remixer.draw(np.random.default_rng([0, step, item])) for item in range(options.batch)]
        signals = torch.from_numpy(np.stack([np.stack(example) for example in drawn]))
        lap("draw (beside the rest)")
        batch = batch_of(signals, config)
        lap("STFT")
        mask = net.mask(batch.magnitude)
        lap("forward")
        numerator, denominator = LOSSES[options.loss](mask, batch)
        loss = numerator / denominator
        lap("loss")
        loss.backward()
        lap("backward")
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        lap("optimiser")
    return parts


def whole(pack: Pack, config: Config, options: TrainOptions) -> tuple[list[float], list[float]]:
    import tempfile

    seconds: list[float] = []
    waited: list[float] = []

    class Enough(Exception):
        pass

    def see(now: Progress) -> None:
        if now.step > 1:  # the first waits for its data, and for everything to be set up
            seconds.append(now.seconds)
            waited.append(now.waited_s)
        if now.step == options.steps - 1:
            raise Enough

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        fit(pack, config, options, Path(folder), progress=see)
    return seconds, waited


if __name__ == "__main__":
    main()
