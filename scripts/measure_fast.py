"""What the fast mode changes: python scripts/measure_fast.py DATA [--beside LABEL=MODEL ...]

DATA holds `musdb18-7/` and `songs/`. Each model separates every test song of the former and every whole song of the
latter, exactly (`Options()`) and with `Options(fast=True)`. Where this processor has no fast mode the two are the same,
and the script says so instead of writing figures. Whole songs are also made almost silent (-90 dB) and loud (peaks at
8 and at 100 times full scale), and cut into blocks, which is the other thing that a run by default does differently
from one with `--exact --no-split`. Writes `docs/fast.json` and the table.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tables import machine, publish, render
from torch import Tensor

import umx_ext
from umx_ext import audio
from umx_ext.corpora import find_songs, targets
from umx_ext.evaluation.sdr import median_sdr
from umx_ext.separation import dense
from umx_ext.separation.separator import Options, Separator

EMBEDDED = "the embedded model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--beside", action="append", default=[], metavar="LABEL=MODEL")
    arguments = parser.parse_args()
    if not dense.compiled():
        parser.error("there is no fast mode on this processor, or the package's loops were not compiled")
    models = {EMBEDDED: umx_ext.load()}
    for word in arguments.beside:
        label, _, name = word.partition("=")
        models[label] = umx_ext.load(name)
    rows = [row for label, model in models.items() for row in measured(label, model, arguments.data)]
    table = {
        "columns": ["model", "songs", "fast beside exact, dB of the mixture", "largest change of a song's SDR, dB"],
        "rows": rows,
        "note": "The largest over songs and over both stems: of the RMS of the difference beside the mixture's, and of "
        "the change of the median SDR over a song's seconds, vocals / accompaniment. `segments` is not the fast mode "
        f"but the default's blocks of {Options().segment_s:g} s with {Options().overlap_s:g} s of context beside the "
        f"whole song at once, both exact. {machine()}.",
    }
    print(render(table))
    publish("fast", table)


def measured(label: str, model: Separator, data: Path) -> Iterator[list[str]]:
    apart_db, changes = [], {"vocals": [], "accompaniment": []}
    songs = find_songs(data / "musdb18-7", "test")
    for song in songs:
        truth = song.read()
        exact, fast = (model.separate(truth.mixture, 44100, Options(fast=fast)) for fast in (False, True))
        apart_db.append(difference_db(exact, fast, truth.mixture))
        for name, found in changes.items():
            reference = targets(truth)[name]
            found.append(median_sdr(reference, fast[name], 44100) - median_sdr(reference, exact[name], 44100))
        print(label, song.name, f"{apart_db[-1]:.1f} dB", file=sys.stderr)
    largest = [max(abs(change) for change in found if math.isfinite(change)) for found in changes.values()]
    yield [
        label, f"{len(songs)} test songs of MUSDB18's sample", f"{max(apart_db):.1f}",
        f"{largest[0]:.4f} / {largest[1]:.4f}",
    ]  # fmt: skip
    peaks = {"whole songs": None, "the same at -90 dB": None, "the same, peaks at 8": 8.0, "peaks at 100": 100.0}
    kinds: dict[str, list[float]] = {kind: [] for kind in peaks}
    cut = []
    for path in sorted(path for path in (data / "songs").iterdir() if path.suffix in (".ogg", ".mp3")):
        waveform, rate = audio.read(path)
        peak = waveform.abs().max()
        for kind, level in peaks.items():
            scale = level / float(peak) if level else 10 ** (-90 / 20) if "-90" in kind else 1.0
            given = waveform * scale
            exact, fast = (model.separate(given, rate, Options(fast=fast, split=False)) for fast in (False, True))
            kinds[kind].append(difference_db(exact, fast, given))
        cut.append(difference_db(model.separate(waveform, rate, Options(split=False)),
                                 model.separate(waveform, rate, Options()), waveform))  # fmt: skip
        print(label, path.name, *(f"{found[-1]:.1f}" for found in kinds.values()), f"{cut[-1]:.1f}", file=sys.stderr)
    for kind, found in kinds.items():
        yield [label, f"{len(found)} {kind}" if kind == "whole songs" else kind, f"{max(found):.1f}", ""]
    yield [label, "segments: whole songs in blocks", f"{max(cut):.1f}", ""]


def difference_db(first: umx_ext.Stems, second: umx_ext.Stems, mixture: Tensor) -> float:
    power = torch.stack([(first[name] - second[name]).square().mean() for name in first]).max()
    return 10 * math.log10(float(power / mixture.square().mean()) + 1e-30)


if __name__ == "__main__":
    main()
