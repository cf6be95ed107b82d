"""What the embedded model's two networks give together: python scripts/measure_pair.py DATA

DATA holds `musdb18-7/`. The share of the second network in the mask is chosen by the validation songs; the test songs
stand beside them and choose nothing. Everything else, the filter too, is as the model has it. Medians over songs of the
median SDR over their seconds, and means over songs. Writes `docs/pair.json` and the table.
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
from umx_ext.separation.masknet import MaskPair, build_net
from umx_ext.separation.separator import Separator

SHARES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)


def with_share(model: Separator, share: float) -> Separator:
    """The model with so much of its second network's mask; with 0 or 1 one network alone."""
    (pair,) = model.nets.values()
    assert isinstance(pair, MaskPair)
    if 0 < share < 1:
        config, state = dataclasses.replace(model.config, second_share=share), pair.state_dict()
    elif share == 1:
        config, state = model.config.of_second, pair.second.state_dict()
    else:
        config = model.config.of_first
        state = {name: values for name, values in pair.state_dict().items() if not name.startswith("second.")}
    net = build_net(config)
    net.load_state_dict(state)
    return Separator(config, {config.stems[0]: net})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    arguments = parser.parse_args()
    model = umx_ext.load()
    separators = {share: with_share(model, share) for share in SHARES}
    figures: dict[float, dict[str, list[list[float]]]] = {share: {"valid": [], "test": []} for share in SHARES}
    for subset in ("valid", "test"):
        for song in find_songs(arguments.data / "musdb18-7", subset):
            truth = song.read()
            for share, separator in separators.items():
                stems = separator.separate(truth.mixture, 44100)
                figures[share][subset].append(
                    [median_sdr(targets(truth)[name], stems[name], 44100) for name in ("vocals", "accompaniment")]
                )
            print(subset, song.name, file=sys.stderr)
    rows = []
    for share, found in figures.items():
        cells = [f"{share:g}" + " (default)" * (share == model.config.second_share)]
        for subset in ("valid", "test"):
            medians, means = np.nanmedian(found[subset], axis=0), np.nanmean(found[subset], axis=0)
            cells += [f"{medians[0]:.2f} / {medians[1]:.2f}", f"{means[0]:.2f} / {means[1]:.2f}"]
        rows.append(cells)
    best = max(SHARES, key=lambda share: float(np.nanmean(figures[share]["valid"])))
    counts = {subset: len(found) for subset, found in figures[SHARES[0]].items()}
    table = {
        "columns": [
            "share of the second network's mask",
            "validation, median: vocals / accompaniment, dB",
            "mean, dB",
            "test, median, dB",
            "mean, dB",
        ],
        "rows": rows,
        "note": f"{counts['valid']} validation and {counts['test']} test songs of MUSDB18's 7-second sample. The "
        f"highest mean of both stems over the validation songs: {best:g}. {machine()}.",
    }
    print(render(table))
    publish("pair", table)


if __name__ == "__main__":
    main()
