"""A run of the trainer as a model file: python scripts/export_run.py RUN_FOLDER FILE.safetensors DATA

RUN_FOLDER is what `umx_ext.fit` or `scripts/train_model.py` wrote (of the latter `RUN/first`, `RUN/second` or
`RUN/unet`). Takes the averaged weights that the run ended with, and of the plain mask and one iteration of the Wiener
filter, from the masks or from their square roots, that which does best on the 14 validation songs in DATA (mean SDR of
the vocals).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from pathlib import Path

import umx_ext
from umx_ext.corpora import find_songs, targets
from umx_ext.evaluation.sdr import median_sdr
from umx_ext.training.export import chosen_of, export

FILTERS = ((0, 1.0), (1, 1.0), (1, 0.5))  # iterations, and the power of the masks that they start from


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("data", type=Path)
    arguments = parser.parse_args()
    chosen = chosen_of(arguments.run, last=True)
    export(chosen, arguments.file)
    model = umx_ext.load(arguments.file)
    songs = [song.read() for song in find_songs(arguments.data / "musdb18-7", "valid")]
    best = None
    for niter, power in FILTERS:
        model.config = dataclasses.replace(model.config, niter=niter, filter_power=power)
        model.train(False)  # the engine has the config, too
        found = []
        for stems in songs:
            estimates = model.separate(stems.mixture, stems.sample_rate)
            truth = targets(stems)
            found.append(
                [median_sdr(truth[name], estimates[name], stems.sample_rate) for name in ("vocals", "accompaniment")]
            )
        means = [statistics.fmean(column) for column in zip(*found, strict=True)]
        middle = [statistics.median(column) for column in zip(*found, strict=True)]
        print(f"niter {niter}, power {power}: mean {means[0]:.2f} / {means[1]:.2f} dB, ", end="")
        print(f"median {middle[0]:.2f} / {middle[1]:.2f} dB")
        best = max(best or (means[0], niter, power), (means[0], niter, power))
    assert best is not None
    export(chosen, arguments.file, niter=best[1], filter_power=best[2])
    print(f"{arguments.file}: step {chosen['step']}, niter {best[1]}, power {best[2]}")


if __name__ == "__main__":
    main()
