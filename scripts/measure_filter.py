"""What the Wiener filter adds to the embedded model's mask: python scripts/measure_filter.py DATA [--model NAME]

DATA holds `musdb18-7/`. The number of iterations and the exponent of the masks that the filter starts from
(`Config.filter_power`) are chosen by the validation songs; the test songs stand beside them and choose nothing. Medians
over songs of the median SDR over their seconds, and means over songs. Writes `docs/filter.json` and the tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
from tables import machine, publish, render

import umx_ext
from umx_ext.corpora import find_songs, targets
from umx_ext.evaluation.sdr import median_sdr
from umx_ext.separation.separator import Separator

WAYS = [(0, 1.0), (1, 1.0), (1, 0.5), (1, 0.4), (1, 0.3), (2, 0.5), (2, 0.4)]


def named(way: tuple[int, float]) -> str:
    niter, power = way
    return "plain mask" if niter == 0 else f"{niter} iteration{'s' * (niter > 1)}, masks to the power {power:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default=None)
    arguments = parser.parse_args()
    model = umx_ext.load(arguments.model)
    separators = {
        way: Separator(dataclasses.replace(model.config, niter=way[0], filter_power=way[1]), model.nets)  # type: ignore[arg-type]
        for way in WAYS
    }
    figures: dict[tuple[int, float], dict[str, list[tuple[float, float]]]] = {
        way: {"valid": [], "test": []} for way in WAYS
    }
    for subset in ("valid", "test"):
        for song in find_songs(arguments.data / "musdb18-7", subset):
            truth = song.read()
            for way, separator in separators.items():
                stems = separator.separate(truth.mixture, 44100)
                figures[way][subset].append(
                    tuple(median_sdr(targets(truth)[name], stems[name], 44100) for name in ("vocals", "accompaniment"))
                )
            print(subset, song.name, file=sys.stderr)
    chosen = (model.config.niter, model.config.filter_power if model.config.niter else 1.0)
    counts = {subset: len(found) for subset, found in figures[WAYS[0]].items()}
    best = max(WAYS, key=lambda way: float(np.nanmean(figures[way]["valid"])))
    rows = []
    for way, found in figures.items():
        cells = [named(way) + " (default)" * (way == chosen)]
        for subset in ("valid", "test"):
            medians, means = np.nanmedian(found[subset], axis=0), np.nanmean(found[subset], axis=0)
            cells += [f"{medians[0]:.2f} / {medians[1]:.2f}", f"{means[0]:.2f} / {means[1]:.2f}"]
        rows.append(cells)
    table = {
        "columns": [
            "Wiener filter",
            "validation, median: vocals / accompaniment, dB",
            "mean, dB",
            "test, median, dB",
            "mean, dB",
        ],
        "rows": rows,
        "note": f"{counts['valid']} validation and {counts['test']} test songs of MUSDB18's 7-second sample. The "
        f"highest mean of both stems over the validation songs: {named(best)}. {machine()}.",
    }
    print(render(table))
    if arguments.model is None:
        publish("filter", table)


if __name__ == "__main__":
    main()
