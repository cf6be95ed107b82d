"""Mix damaged vocals and compare with the original mixes: python scripts/score_mixing.py DATA [--subset test]

DATA holds `musdb18-7/` and `mir1k/`. The true vocal of each song is made raw again (`anchors.raw_take`: a random
equaliser, a random level, expanded dynamics; seeded by the song's name), mixed over the song's own accompaniment by
each system, and compared with the original sum: mean distance of the features of `umx_ext.mixing.features`, group by
group. A mix is first brought to the original's loudness, since the master's gain is anybody's choice.

Takes of 7 s have no loudness range, so the compressor is judged on whole takes: the songs of MIR-1K, clips on end.
With `--subset test` the tables go into `docs/mixing.json`, `docs/mixing_takes.json` and the README; choices are made
with `valid` and `train`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tables import machine, publish, render
from torch import Tensor

from umx_ext import audio, levels
from umx_ext.corpora import find_songs, targets
from umx_ext.mixing.anchors import random_mix, raw_take
from umx_ext.mixing.features import compare
from umx_ext.mixing.settings import PRESETS, Settings
from umx_ext.mixing.vocal import mixdown, plan
from umx_ext.stems import Stems

LONG_S = 30.0
LEAST_CLIPS = 5  # of 4 to 13 s each, named <singer>_<song>_<clip>
STUDIO = PRESETS["studio"]
LEVEL_ONLY = replace(STUDIO, highpass_hz=None, tone=False, equalise=False, compress=False, reverb=False)
EVERYTHING = replace(STUDIO, highpass_hz=80.0, tone=True, equalise=True, compress=True, reverb=True)
FIGURES = ("loudness, dB", "spectral, dB", "spectral, %", "panning, %", "dynamics, dB")
COUNTED = ("spectral, dB", "spectral, %", "dynamics, dB")
BASE = "level balance alone"
Mix = Callable[[Stems, Stems, np.random.Generator], Tensor]
Scores = dict[str, dict[str, list[float]]]  # song -> system -> figures


# ---------------------------------------------------------------------------------------------------------- the systems


def by(settings: Settings) -> Mix:
    def mix(raw: Stems, original: Stems, generator: np.random.Generator) -> Tensor:
        return mixdown(raw, plan(raw, settings)[0])

    return mix


def of_the_true_vocal(raw: Stems, original: Stems, generator: np.random.Generator) -> Tensor:
    """What the level alone costs: the song's own vocal, balanced."""
    return by(LEVEL_ONLY)(original, original, generator)


def unprocessed(raw: Stems, original: Stems, generator: np.random.Generator) -> Tensor:
    return raw["vocals"] + raw["accompaniment"]


def at_random(raw: Stems, original: Stems, generator: np.random.Generator) -> Tensor:
    return random_mix(raw, generator)


SYSTEMS: dict[str, Mix] = {
    "studio": by(STUDIO),
    "studio with every stage": by(EVERYTHING),
    "studio without tone": by(replace(STUDIO, tone=False)),
    "studio without equalisation": by(replace(STUDIO, equalise=False)),
    "studio without compression": by(replace(STUDIO, compress=False)),
    "studio with high-pass": by(replace(STUDIO, highpass_hz=80.0)),
    "studio with reverberation": by(replace(STUDIO, reverb=True)),
    BASE: by(LEVEL_ONLY),
    "level balance and tone": by(replace(LEVEL_ONLY, tone=True)),
    "level balance and equalisation": by(replace(LEVEL_ONLY, equalise=True)),
    "level balance and compression": by(replace(LEVEL_ONLY, compress=True)),
    "level balance and high-pass": by(replace(LEVEL_ONLY, highpass_hz=80.0)),
    "level balance and reverberation": by(replace(LEVEL_ONLY, reverb=True)),
    "poster": by(PRESETS["poster"]),
    "unprocessed sum": unprocessed,
    "random mix": at_random,
    "true vocal, level balance alone": of_the_true_vocal,
}


# ------------------------------------------------------------------------------------------------------------ the songs


def seeded(name: str, *more: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(name.encode()), *more])


def records(root: Path, subset: str) -> Iterator[tuple[str, Stems]]:
    for song in find_songs(root, subset):
        stems = song.read()
        parts = targets(stems)
        yield song.name, Stems({part: parts[part] for part in ("vocals", "accompaniment")}, stems.sample_rate)


def takes(root: Path, most: int) -> Iterator[tuple[str, Stems]]:
    """Songs of MIR-1K of 30 s or more, clips on end, evenly over the singers."""
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    songs = {name: list(clips) for name, clips in groupby(folders, key=lambda path: path.name.rpartition("_")[0])}
    wanted = [name for name, clips in songs.items() if len(clips) >= LEAST_CLIPS]
    for name in wanted[:: max(1, math.ceil(len(wanted) / most))] if most else ():
        parts = [[audio.read(clip / f"{stem}.opus") for stem in ("vocals", "accompaniment")] for clip in songs[name]]
        rate = parts[0][0][1]
        cut = [[waveform[:, : min(w.shape[1] for w, _ in pair)] for waveform, _ in pair] for pair in parts]
        vocals, backing = (torch.cat([pair[at] for pair in cut], 1) for at in range(2))
        if vocals.shape[1] >= LONG_S * rate:
            yield name, Stems({"vocals": vocals, "accompaniment": backing}, rate)


def distances(mix: Tensor, original: Tensor, sample_rate: int) -> list[float]:
    """In the order of `FIGURES`."""
    gap_lu = levels.integrated_lufs(original, sample_rate) - levels.integrated_lufs(mix, sample_rate)
    groups = compare(mix * 10 ** (gap_lu / 20), original, sample_rate).groups
    return [
        groups["loudness"].mean_db,
        groups["spectral"].mean_db,
        100 * groups["spectral"].mean_mape,
        math.nan if torch.equal(*original) else 100 * groups["panning"].mean_mape,  # of no width there is no share
        groups["dynamics"].mean_db,
    ]


def judge(job: tuple[str, Stems, tuple[str, ...]]) -> tuple[str, dict[str, list[float]]] | None:
    name, original, systems = job
    torch.set_num_threads(1)
    if levels.active_fraction(original["vocals"], original.sample_rate) < 0.3:
        return None
    raw = raw_take(original, seeded(name))
    whole = levels.as_stereo(original["vocals"]) + levels.as_stereo(original["accompaniment"])
    found = {}
    for system in systems:
        mix = SYSTEMS[system](raw, original, seeded(name, 1))
        found[system] = distances(mix, whole, original.sample_rate)
    return name, found


def judged(songs: Iterator[tuple[str, Stems]], systems: tuple[str, ...], jobs: int) -> Scores:
    scores: Scores = {}
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for result in pool.map(judge, ((name, stems, systems) for name, stems in songs)):
            if result is not None:
                scores[result[0]] = result[1]
                print(f"{len(scores)} {result[0]}", file=sys.stderr)
    return scores


def tabled(scores: Scores) -> list[list[str]]:
    """Means over songs; and of how many songs each figure got better and worse than by level balance alone."""
    systems = list(next(iter(scores.values())))
    values = {system: np.array([song[system] for song in scores.values()]) for system in systems}
    rows = []
    for system in systems:
        row = [system, *("-" if math.isnan(mean) else f"{mean:.2f}" for mean in values[system].mean(axis=0))]
        for figure in COUNTED:
            at = FIGURES.index(figure)
            gain = values[BASE][:, at] - values[system][:, at]
            row.append("" if system == BASE else f"{int((gain > 1e-6).sum())} / {int((gain < -1e-6).sum())}")
        rows.append(row)
    return rows


COLUMNS = ["mix", *FIGURES, *(f"{figure.split(',')[0]}{figure.split(',')[1]}: better / worse" for figure in COUNTED)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--subset", choices=["valid", "train", "test"], default="test")
    parser.add_argument("--systems", default="", help="only those whose names contain this")
    parser.add_argument("--takes", type=int, default=20, help="of MIR-1K, at most")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    systems = tuple(name for name in SYSTEMS if arguments.systems in name or name == BASE)
    part = "test" if arguments.subset == "test" else "train"
    for key, songs, what in (
        (
            "mixing",
            records(arguments.data / "musdb18-7", arguments.subset),
            f"songs of 7 s of MUSDB18's {arguments.subset} part",
        ),
        (
            "mixing_takes",
            takes(arguments.data / "mir1k" / part, arguments.takes),
            f"takes of 30 s or more of MIR-1K's {part} part (dry, 16 kHz)",
        ),
    ):
        scores = judged(songs, systems, arguments.jobs)
        if not scores:
            continue
        table: dict[str, Any] = {
            "columns": COLUMNS,
            "rows": tabled(scores),
            "note": f"{len(scores)} {what}: mean distance from the original mix, at its loudness; better and worse are "
            "counted against level balance alone.",
            "songs": json.loads(json.dumps(scores).replace("NaN", "null")),
            "machine": machine(),
        }
        print(render(table), end="\n\n", flush=True)
        if arguments.subset == "test" and not arguments.systems:
            publish(key, table)


if __name__ == "__main__":
    main()
