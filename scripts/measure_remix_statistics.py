"""How loud are a song's stems beside its vocals? python scripts/measure_remix_statistics.py DATA

Over the training songs of DATA/musdb18-7 (MUSDB18, its 7-second sample), musdb's validation songs left out and `test`
never looked into: mean and standard deviation of stem minus vocals, in three measures, and the vocals' own level. The
remix `musdb` draws from the loudness column. Writes `docs/remix_statistics.json`, beside the figures that all 144
excerpts of the sample gave, validation and test songs among them.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tables import ROOT, machine, render, replace

from umx_ext import levels
from umx_ext.corpora import Song, find_songs, targets
from umx_ext.training.gains import active_level, rms_level

MEASURES = ("mean-abs dB (active)", "RMS dB (active)", "BS.1770 LU")
# Of all 144 excerpts: (mean, standard deviation) for each measure.
PUBLISHED = {
    "drums": ((-3.63, 4.73), (-1.75, 4.30), (-3.62, 3.77)),
    "bass": ((-1.34, 5.18), (-1.85, 5.12), (-4.39, 5.08)),
    "other": ((-0.67, 3.56), (-1.14, 3.52), (-1.52, 3.54)),
    "accompaniment": ((4.42, 2.86), (4.05, 2.76), (2.50, 2.65)),
    "vocals": ((-25.3, 3.2), (-22.6, 2.9), (-19.2, 2.9)),
}


def song_levels(song: Song) -> dict[str, list[float]]:
    """stem -> its level in each of the measures; -inf where it is silent."""
    stems = song.read()
    found = {}
    for name, waveform in targets(stems).items():
        amplitudes = [measure(waveform.numpy(), stems.sample_rate)[0] for measure in (active_level, rms_level)]
        decibels = [20 * math.log10(amplitude) if amplitude > 0 else -math.inf for amplitude in amplitudes]
        found[name] = [*decibels, levels.integrated_lufs(waveform, stems.sample_rate)]
    return found


def statistics(songs: Iterable[Song]) -> dict[str, list[tuple[float, float, int]]]:
    """stem -> (mean, standard deviation, songs) for each measure, beside the vocals; the vocals' own under theirs."""
    measured = [song_levels(song) for song in songs]
    result = {}
    for name in PUBLISHED:
        rows = []
        for place in range(len(MEASURES)):
            own = np.array([found[name][place] for found in measured])
            beside = own if name == "vocals" else own - np.array([found["vocals"][place] for found in measured])
            beside = beside[np.isfinite(beside)]  # a stem or a voice that is silent has no level
            rows.append((float(beside.mean()), float(beside.std(ddof=1)), len(beside)))
        result[name] = rows
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    songs = find_songs(parser.parse_args().data / "musdb18-7", "train")
    found = statistics(songs)
    rows = []
    for name, values in found.items():
        row = ["vocals themselves (dBFS, LUFS)" if name == "vocals" else f"{name} beside the vocals"]
        for (mean, spread, _), (all_mean, all_spread) in zip(values, PUBLISHED[name], strict=True):
            row.append(f"{mean:+.2f} ± {spread:.2f} ({all_mean:+.2f} ± {all_spread:.2f})")
        rows.append(row)
    fewest = min(count for values in found.values() for *_, count in values)
    silent = "" if fewest == len(songs) else f" (at least {fewest} where one of the two is silent)"
    table: dict[str, Any] = {
        "columns": ["level", *MEASURES],
        "rows": rows,
        "note": (
            f"Mean ± standard deviation over the {len(songs)} training songs{silent} of MUSDB18's 7-second sample, "
            f"validation songs left out; in brackets over all 144 excerpts. {machine()}."
        ),
        "songs": len(songs),
        "measures": MEASURES,
        "statistics": {name: [[mean, spread] for mean, spread, _ in values] for name, values in found.items()},
        "all_excerpts": PUBLISHED,
    }
    replace(ROOT / "docs" / "remix_statistics.json", json.dumps(table, indent=1) + "\n")
    print(render(table))


if __name__ == "__main__":
    main()
