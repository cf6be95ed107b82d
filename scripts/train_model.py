"""Train the embedded model: python scripts/train_model.py DATA RUN_FOLDER [--network unet]

DATA holds `musdb18-7/` (MUSDB18, its 7-second sample) and `mir1k/`. The model's first network has two runs, one after
the other: the first from random weights; the second goes on from its averaged weights, with more singers of MIR-1K and
the loss that the SDR is made of. Its second, with `--network unet`, has three: one with those singers and that loss,
and two that go on with songs that are more often whole, faster or slower, equalised, wider or narrower. RUN_FOLDER
gets the decoded audio and a folder for each run. Killed and started again with the same command, it goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from pathlib import Path

import torch
from torch import nn

from umx_ext.cli import keep_memory
from umx_ext.separation.config import Config
from umx_ext.training.fit import Progress, fit, replay
from umx_ext.training.options import TrainOptions
from umx_ext.training.tracks import Pack, pack

SPEEDS = (0.92, 1.0, 1.087)  # about a semitone and a half either way
CONFIG = Config(branches=("linear-log", "mel"), hidden=256, mask="sigmoid")
FIRST = TrainOptions(steps=2600, precision="float32"), {"mir1k_vocals": 0.15}
PLANNED, SHORTENED_AT = 4200, 1500  # the first run was to be longer; what it had learnt until then is part of the model
SECOND = (
    TrainOptions(steps=2600, loss="error-energy", learning_rate=7e-4, seed=1, precision="float32"),
    {"mir1k_vocals": 0.4},
)
VARIED = {"mir1k_vocals": 0.4, "own_song": 0.4, "augment": {"speed": 0.7, "eq": 0.3, "width": 0.3, "reverb": 0.3}}
AGAIN = TrainOptions(steps=1500, loss="error-energy", network="unet", learning_rate=7e-4)
CONVOLUTIONAL = {  # folder -> run; each goes on from the averaged weights that the one before ended with
    "unet": (TrainOptions(steps=3000, loss="error-energy", network="unet", seed=2), {"mir1k_vocals": 0.4}),
    "unet-2": (dataclasses.replace(AGAIN, seed=3), VARIED),
    "unet-3": (dataclasses.replace(AGAIN, seed=4), VARIED),
}


class Enough(Exception):
    """Raised to end a run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--network",
        default="umx_ext",
        choices=("umx_ext", "unet", "openunmix"),
        help="openunmix: the real one, the same steps at twice the rate, to compare",
    )
    parser.add_argument("--replay", type=int, metavar="N", help="print the losses of its first N steps, and no more")
    arguments = parser.parse_args()
    keep_memory()

    store = arguments.run / "pack"
    if not (store / "index.json").exists():
        roots = [arguments.data / "musdb18-7", arguments.data / "mir1k"]
        pack(roots, store, speeds=SPEEDS, progress=lambda done, total: show(f"decoding {done}/{total}"))
    packed, config = Pack(store), CONFIG
    (options, draws), (further, other_draws) = FIRST, SECOND
    if arguments.network == "unet":
        train_unet(packed, arguments.run, arguments.replay)
        return
    if arguments.network == "openunmix":  # whose best rate is twice ours, by the ablation
        config = dataclasses.replace(CONFIG, branches=("linear",), mask="relu")
        options, further = (
            dataclasses.replace(one, network="openunmix", learning_rate=2 * one.learning_rate)
            for one in (options, further)
        )
    planned = dataclasses.replace(options, steps=PLANNED)
    if arguments.replay is not None:
        print_steps(replay(packed, config, planned, arguments.replay, draws=draws))
        return
    first, second = arguments.run / "first", arguments.run / "second"
    if steps_done(first) < SHORTENED_AT:
        with contextlib.suppress(Enough):
            fit(packed, config, planned, first, draws=draws, progress=Line(until=SHORTENED_AT))
    print("\nfirst run:", fit(packed, config, options, first, draws=draws, progress=Line()))
    start = start_as(first / "last.pt")
    best = fit(packed, config, further, second, draws=other_draws, initial=start, progress=Line())
    print("\nsecond run:", best)


def train_unet(packed: Pack, folder: Path, steps: int | None) -> None:
    config = dataclasses.replace(CONFIG, branches=("linear-log",))
    if steps is not None:
        options, draws = CONVOLUTIONAL["unet"]
        print_steps(replay(packed, config, options, steps, draws=draws))
        return
    start = None
    for name, (options, draws) in CONVOLUTIONAL.items():
        best = fit(packed, config, options, folder / name, draws=draws, initial=start, progress=Line())
        print(f"\n{name}:", best)
        start = start_as(folder / name / "last.pt")


def steps_done(folder: Path) -> int:
    checkpoint = folder / "last.pt"
    return torch.load(checkpoint, weights_only=True)["step"] if checkpoint.exists() else 0


def start_as(checkpoint: Path):
    """What gives a network the averaged weights that a run ended with."""

    def load(net: nn.Module) -> None:
        net.load_state_dict(torch.load(checkpoint, weights_only=True)["averaged"])

    return load


def print_steps(losses: list[float]) -> None:
    print("step,loss", *(f"{step},{loss:.6f}" for step, loss in enumerate(losses, start=1)), sep="\n")


class Line:
    """A line that tells of the run, written over by the next."""

    def __init__(self, until: int | None = None) -> None:
        self.started, self.first, self.until = time.monotonic(), -1, until

    def __call__(self, now: Progress) -> None:
        self.first = now.step if self.first < 0 else self.first
        seconds = (time.monotonic() - self.started) / (now.step - self.first + 1)
        left = (now.steps - now.step) * seconds / 60
        show(f"step {now.step}/{now.steps}  loss {now.loss:.4f}  {seconds:.2f} s/step  {left:.0f} min left")
        if now.score is not None:
            print(f"\nvalid: vocals {now.score.target_sdr_db:.3f} dB, accompaniment {now.score.rest_sdr_db:.3f} dB")
        if now.step == self.until:
            raise Enough


def show(line: str) -> None:
    print(f"\r{line:<100}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
