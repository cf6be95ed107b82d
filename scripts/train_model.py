"""Train the embedded model: python scripts/train_model.py DATA RUN_FOLDER [--steps N] [--hidden N]

DATA holds `musdb18-7/` (MUSDB18, its 7-second sample) and `mir1k/`. RUN_FOLDER gets the decoded audio, the checkpoints
and the log. Killed and started again with the same command, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from umx_ext.cli import keep_memory
from umx_ext.separation.config import Config
from umx_ext.training.fit import Progress, fit
from umx_ext.training.options import TrainOptions
from umx_ext.training.tracks import Pack, pack

SPEEDS = (0.92, 1.0, 1.087)  # about a semitone and a half either way
DRAWS = {"mir1k_vocals": 0.15}  # what the shipped model was made with; more of them gave no better validation scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=TrainOptions.steps)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--seed", type=int, default=TrainOptions.seed)
    arguments = parser.parse_args()
    keep_memory()

    store = arguments.run / "pack"
    if not (store / "index.json").exists():
        roots = [arguments.data / "musdb18-7", arguments.data / "mir1k"]
        pack(roots, store, speeds=SPEEDS, progress=lambda done, total: show(f"decoding {done}/{total}"))
    config = Config(branches=("linear-log", "mel"), hidden=arguments.hidden, mask="sigmoid")
    options = TrainOptions(steps=arguments.steps, seed=arguments.seed)
    started = time.monotonic()
    first: list[int] = []

    def progress(now: Progress) -> None:
        first.append(now.step) if not first else None
        seconds = (time.monotonic() - started) / (now.step - first[0] + 1)
        left = (now.steps - now.step) * seconds / 60
        show(f"step {now.step}/{now.steps}  loss {now.loss:.4f}  {seconds:.2f} s/step  {left:.0f} min left")
        if now.score is not None:
            print(f"\nvalid: vocals {now.score.target_sdr_db:.3f} dB, accompaniment {now.score.rest_sdr_db:.3f} dB")

    print("\nbest:", fit(Pack(store), config, options, arguments.run, draws=DRAWS, progress=progress))


def show(line: str) -> None:
    print(f"\r{line:<100}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
