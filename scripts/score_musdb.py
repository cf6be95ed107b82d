"""Score a model on MUSDB18's 7-second sample: python scripts/score_musdb.py DATA [--subset test] [--model NAME]

DATA holds `musdb18-7/`. Median over songs of the median over one-second frames of BSS Eval v4's SDR (which is museval's
exactly), with trivial and oracle rows from the same code. With `--subset test` and the default model the table goes
into `docs/scores.json` and the README; choices (such as the filter's iterations) are made with `--subset valid` only.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tables import machine, publish, render
from torch import Tensor

import umx_ext
from umx_ext.corpora import find_songs, targets
from umx_ext.evaluation.oracles import BASELINES
from umx_ext.evaluation.sdr import median_sdr

Estimate = tuple[Tensor, Tensor]


def centre_cancel(mixture: Tensor, *_: Tensor) -> Estimate:
    """The karaoke button: the channels' mean counts as the voice, half their difference, on both channels, as the rest.

    With opposite signs on the channels the rest would be what BSS Eval takes for silence.
    """
    left, right = mixture
    return ((left + right) / 2).expand_as(mixture), ((left - right) / 2).expand_as(mixture)


def baseline(name: str) -> Callable[..., Estimate]:
    def run(mixture: Tensor, vocals: Tensor, rest: Tensor) -> Estimate:
        estimates = BASELINES[name](mixture, {"vocals": vocals, "accompaniment": rest}, 44100)
        return estimates["vocals"], estimates["accompaniment"]

    return run


def vocals_left_db(rest: Tensor, vocals: Tensor) -> float:
    """Level of the true vocals in the estimated accompaniment: its projection on the true stem, dB."""
    share = float((rest * vocals).sum() / vocals.square().sum())
    return 20 * math.log10(max(abs(share), 1e-6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--subset", choices=["valid", "test"], default="test")
    parser.add_argument("--model", default=None)
    arguments = parser.parse_args()
    model = umx_ext.load(arguments.model)

    def ours(niter: int) -> Callable[..., Estimate]:
        def run(mixture: Tensor, *_: Tensor) -> Estimate:
            stems = model.separate(mixture, 44100, umx_ext.Options(niter=niter))
            return stems["vocals"], stems["accompaniment"]

        return run

    default = model.config.niter
    systems: dict[str, Callable[..., Estimate]] = {
        "mixture / 2 (trivial)": baseline("mixture/2"),
        "centre cancel (trivial)": centre_cancel,
        **{
            f"umx_ext, {'plain mask' if niter == 0 else f'{niter} Wiener iteration' + 's' * (niter > 1)}"
            + (" (default)" if niter == default else ""): ours(niter)
            for niter in (0, 1, 2)
        },
        "oracle: true magnitudes, 1 Wiener iteration": baseline("MWF"),
    }
    figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in systems}
    names = []
    for song in find_songs(arguments.data / "musdb18-7", arguments.subset):
        names.append(song.name)
        truth = song.read()
        mixture = truth.mixture
        vocals, rest = (targets(truth)[target] for target in ("vocals", "accompaniment"))
        for name, system in systems.items():
            vocals_hat, rest_hat = system(mixture, vocals, rest)
            figures[name].append(
                (
                    median_sdr(vocals, vocals_hat, 44100),
                    median_sdr(rest, rest_hat, 44100),
                    vocals_left_db(rest_hat, vocals),
                )
            )
        print(f"{len(names)} {names[-1]}", file=sys.stderr)
    rows = []
    for name, values in figures.items():
        medians, means = np.nanmedian(values, axis=0), np.nanmean(values, axis=0)
        rows.append([name, f"{medians[0]:.2f}", f"{medians[1]:.2f}", f"{means[0]:.2f}", f"{-medians[2]:.1f}"])
    worst = sorted(zip(next(v for k, v in figures.items() if "default" in k), names, strict=True))[:5]
    table = {
        "columns": [
            "estimate",
            "vocals SDR, dB",
            "accompaniment SDR, dB",
            "vocals SDR, mean over songs, dB",
            "true vocals in the accompaniment, dB down",
        ],
        "rows": rows,
        "note": f"{len(names)} seven-second songs of MUSDB18's {arguments.subset} part: median over one-second frames, "
        "then over songs (column 4: mean over songs). Not comparable with scores on full songs. The worst "
        "five of the default: " + ", ".join(f"{name} ({value[0]:.1f})" for value, name in worst) + ".",
        "songs": {name: values for name, values in zip(names, zip(*figures.values(), strict=True), strict=True)},
        "machine": machine(),
    }
    print(render(table))
    if arguments.subset == "test" and arguments.model is None:
        publish("scores", table)


if __name__ == "__main__":
    main()
