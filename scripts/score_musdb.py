"""Score a model on MUSDB18's 7-second sample and on MIR-1K: python scripts/score_musdb.py DATA [--beside LABEL=MODEL]

DATA holds `musdb18-7/` and `mir1k/`. For each song the median over its seconds of BSS Eval v4's SDR (which is museval's
exactly); over songs the median, its 95 % bootstrap interval and the mean; trivial and oracle rows from the same code,
the model with its mel branch switched off, its two networks alone, and other models with --beside (that of the README
is made by `scripts/train_model.py` with `--network openunmix`, and `scripts/export_run.py`). With `--subset test` and
the default model the table goes into `docs/scores.json` and the README; choices are made with `--subset valid` only,
where MIR-1K has no songs.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure_pair import with_share
from tables import machine, publish, render
from torch import Tensor

import umx_ext
from umx_ext.corpora import Song, find_songs, targets
from umx_ext.evaluation.metrics import bootstrap_interval
from umx_ext.evaluation.oracles import BASELINES
from umx_ext.evaluation.sdr import median_sdr

Estimate = tuple[Tensor, Tensor]
System = Callable[[Tensor, Tensor, Tensor, int], Estimate]


def centre_cancel(mixture: Tensor, *_: object) -> Estimate:
    """The karaoke button: the channels' mean counts as the voice, half their difference, on both channels, as the rest.

    With opposite signs on the channels the rest would be what BSS Eval takes for silence.
    """
    left, right = mixture
    return ((left + right) / 2).expand_as(mixture), ((left - right) / 2).expand_as(mixture)


def baseline(name: str) -> System:
    def run(mixture: Tensor, vocals: Tensor, rest: Tensor, rate: int) -> Estimate:
        estimates = BASELINES[name](mixture, {"vocals": vocals, "accompaniment": rest}, rate)
        return estimates["vocals"], estimates["accompaniment"]

    return run


def separated(model: umx_ext.Separator, niter: int | None = None) -> System:
    def run(mixture: Tensor, vocals: Tensor, rest: Tensor, rate: int) -> Estimate:
        stems = model.separate(mixture, rate, umx_ext.Options(niter=niter))
        return stems["vocals"], stems["accompaniment"]

    return run


def without_mel(model: umx_ext.Separator) -> umx_ext.Separator:
    """The same model with the gain of its mel branch at zero."""
    made = copy.deepcopy(model).train(False)  # which also drops the weights that an engine may have folded
    for net in made.nets.values():
        with torch.no_grad():
            net.gains[list(net.config.branches).index("mel") - 1] = 0.0  # type: ignore[index, union-attr]
    return made


def vocals_left_db(rest: Tensor, vocals: Tensor) -> float:
    """Level of the true vocals in the estimated accompaniment: its projection on the true stem, dB."""
    share = float((rest * vocals).sum() / vocals.square().sum())
    return 20 * math.log10(max(abs(share), 1e-6))


def scored(song: Song, systems: dict[str, System]) -> dict[str, tuple[float, float, float]]:
    """Of each system: SDR of the vocals, of the accompaniment, and how much of the voice is left in it."""
    truth = song.read()
    vocals, rest = (targets(truth)[target] for target in ("vocals", "accompaniment"))
    figures = {}
    for name, system in systems.items():
        vocals_hat, rest_hat = system(truth.mixture, vocals, rest, truth.sample_rate)
        figures[name] = (
            median_sdr(vocals, vocals_hat, truth.sample_rate),
            median_sdr(rest, rest_hat, truth.sample_rate),
            vocals_left_db(rest_hat, vocals),
        )
    return figures


def row(corpus: str, name: str, values: list[tuple[float, float, float]]) -> list[str]:
    cells = [corpus, name]
    vocals, rest, left = (np.array(column) for column in zip(*values, strict=True))
    for column in (vocals, rest):
        low, high = bootstrap_interval(column)
        cells += [f"{np.nanmedian(column):.2f} ({low:.2f} to {high:.2f})", f"{np.nanmean(column):.2f}"]
    return [*cells, f"{-np.median(left):.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--subset", choices=["valid", "test"], default="test")
    parser.add_argument("--model", default=None)
    parser.add_argument("--beside", action="append", default=[], metavar="LABEL=MODEL", help="another model to score")
    arguments = parser.parse_args()
    model = umx_ext.load(arguments.model)
    default = model.config.niter
    other = 0 if default else 1
    systems: dict[str, System] = {
        "mixture / 2 (trivial)": baseline("mixture/2"),
        "centre cancel (trivial)": centre_cancel,
        "**umx_ext**": separated(model),
        f"umx_ext, {'one Wiener iteration' if other else 'plain mask'}": separated(model, other),
    }
    if "mel" in model.config.branches[1:]:
        systems["umx_ext, mel branch off"] = separated(without_mel(model))
    if model.config.second and len(model.nets) == 1:
        kinds = {"blstm": "BLSTM", "unet": "U-Net"}
        for share, kind, which in ((0.0, model.config.network, "first"), (1.0, model.config.second_network, "second")):
            systems[f"umx_ext's {kinds[kind]} alone (the pair's {which})"] = separated(with_share(model, share))
    for other_model in arguments.beside:
        label, _, name = other_model.rpartition("=")
        systems[label] = separated(umx_ext.load(name))
    systems["oracle: true magnitudes, one Wiener iteration"] = baseline("MWF")
    rows, songs = [], {}
    for corpus in ("musdb18-7", "mir1k"):
        if corpus == "mir1k":
            if arguments.subset == "valid":
                continue
            del systems["centre cancel (trivial)"]  # it is mono
        figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in systems}
        for song in find_songs(arguments.data / corpus, arguments.subset):
            found = scored(song, systems)
            songs[f"{corpus}/{song.name}"] = found["**umx_ext**"]
            for name, values in found.items():
                figures[name].append(values)
            print(f"{len(songs)} {corpus}/{song.name} {found['**umx_ext**'][0]:.2f}", file=sys.stderr)
        rows += [row(f"{corpus}, {len(values)} songs", name, values) for name, values in figures.items()]
    named = [(values[0], name) for name, values in songs.items() if name.startswith("musdb")]
    table = {
        "columns": [
            f"{arguments.subset} part of",
            "estimate",
            "vocals SDR, median (95 % interval), dB",
            "mean, dB",
            "accompaniment SDR, median (95 % interval), dB",
            "mean, dB",
            "true vocals in the accompaniment, dB down",
        ],
        "rows": rows,
        "note": "MUSDB18's 7-second sample, MIR-1K's mono clips: median over one-second frames, then over songs. Not "
        "comparable with scores on full songs. The worst five of MUSDB18: "
        + ", ".join(f"{name.partition('/')[2]} ({value:.1f})" for value, name in sorted(named)[:5])
        + ".",
        "songs": songs,
        "machine": machine(),
    }
    print(render(table))
    if arguments.subset == "test" and arguments.model is None:
        publish("scores", table)


if __name__ == "__main__":
    main()
