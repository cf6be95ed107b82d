"""Which branch, which remix: python scripts/ablation.py STORE MUSDB18 RUNS [--config FILE] [--jobs N] [--quick]

STORE is what `umx-ext data pack` made, MUSDB18 the corpus whose test songs are scored at the end (nothing is chosen by
them), RUNS a folder for the runs. Every row of the config is trained with every seed on the same number of steps and
examples; a run that was stopped goes on when the script is called again, one that is done is not repeated. Writes
`docs/<name of the config>.json` and the README's table: mean over seeds and their range. `--quick` shows the layout in
a minute: toy songs, a tiny network, nothing written.

A difference between two rows counts when it is larger than what chance does: the note states the smallest difference of
two means that these seeds can tell from none (two-sided, 5 %, deviation pooled over all rows).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomllib
import torch

from umx_ext.corpora import find_songs
from umx_ext.evaluation.sdr import median_sdr
from umx_ext.separation.config import Config
from umx_ext.training.fit import build_network, fit
from umx_ext.training.options import TrainOptions
from umx_ext.training.tracks import Entry, Pack
from umx_ext.training.validation import masked

COLUMNS = ["valid", "test", "accompaniment", "random"]
QUICK = {"hidden": 8, "steps": 20, "batch": 2, "excerpt_s": 0.5, "every": 10, "warmup": 2, "rates": [1e-3, 1e-2]}
QUICK_CONFIG = {"n_fft": 512, "hop": 128, "sample_rate": 8000, "bandwidth_hz": 3500.0, "n_mels": 16, "n_mfcc": 8}


@dataclass(frozen=True)
class Job:
    """One run: a row with one learning rate and one seed."""

    row: str
    rate: float
    seed: int
    identity: str  # of the row's settings and of the store: another's runs are not taken for these

    def folder(self, runs: Path) -> Path:
        name = "".join(c if c.isalnum() else "-" for c in self.row)
        return runs / f"{name}.{self.rate:g}.{self.seed}.{self.identity}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, nargs="?")
    parser.add_argument("corpus", type=Path, nargs="?")
    parser.add_argument("runs", type=Path, nargs="?")
    parser.add_argument("--config", type=Path, default=Path(__file__).with_suffix(".toml"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        train(arguments.store, arguments.runs, json.loads(arguments.child))
        return
    plan = tomllib.loads(arguments.config.read_text())
    if not arguments.quick:
        if arguments.runs is None:
            parser.error("expected STORE MUSDB18 RUNS, or --quick")
        songs = test_songs(arguments.corpus)
        report(plan, arguments.store, arguments.runs, songs, arguments.jobs, arguments.config.stem)
        return
    with tempfile.TemporaryDirectory() as folder:
        toys(Path(folder, "store"))
        plan["base"] |= QUICK | {"config": QUICK_CONFIG}
        plan["seeds"] = plan["seeds"][:2]
        store = Pack(Path(folder, "store"))
        songs = [
            {stem: torch.from_numpy(store.read(entry)) for stem, entry in song.items()}
            for song in store.songs("valid", "musdb18").values()
        ]
        report(plan, Path(folder, "store"), Path(folder, "runs"), songs, arguments.jobs, None)


def settings(plan: dict[str, Any], row: str) -> dict[str, Any]:
    base, own = plan["base"], plan["rows"][row]
    return base | own | {"draws": base.get("draws", {}) | own.get("draws", {})}


def built(chosen: dict[str, Any], rate: float, seed: int) -> tuple[Config, TrainOptions]:
    names = {field.name for field in dataclasses.fields(TrainOptions)}
    options = {name: value for name, value in chosen.items() if name in names}
    shapes = {field.name for field in dataclasses.fields(Config)}
    shape = {name: value for name, value in chosen.items() if name in shapes} | chosen.get("config", {})
    unknown = set(chosen) - names - shapes - {"rates", "follows", "config", "draws"}
    if unknown:
        raise SystemExit(f"no setting named {', '.join(sorted(unknown))}")
    return Config(**shape), TrainOptions(**options | {"learning_rate": rate, "seed": seed})


def train(store: Path, folder: Path, chosen: dict[str, Any]) -> None:
    """One run, in a process of its own."""
    from umx_ext.cli import keep_memory

    keep_memory()
    torch.set_num_threads(1)
    config, options = built(chosen["settings"], chosen["rate"], chosen["seed"])
    fit(Pack(store), config, options, folder, draws=chosen["settings"]["draws"])
    (folder / "done").touch()


def run_all(jobs: list[Job], plan: dict[str, Any], store: Path, runs: Path, abreast: int) -> None:
    def run(job: Job) -> None:
        folder = job.folder(runs)
        if (folder / "done").exists():
            return
        child = json.dumps({"settings": settings(plan, job.row), "rate": job.rate, "seed": job.seed})
        command = [sys.executable, __file__, str(store), "-", str(folder), "--child", child]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        print(f"{job.row}, rate {job.rate:g}, seed {job.seed}: {score_of(folder):.2f} dB", file=sys.stderr)

    with ThreadPoolExecutor(abreast) as pool:
        list(pool.map(run, jobs))


def score_of(folder: Path) -> float:
    """The best validation SDR of a run."""
    return float(torch.load(folder / "best.pt", weights_only=True)["sdr_db"])


def report(
    plan: dict[str, Any], store: Path, runs: Path, songs: list[dict[str, Any]], abreast: int, name: str | None
) -> None:
    from tables import machine, publish, render

    torch.set_num_threads(2)
    seeds, packed = plan["seeds"], Pack(store).identity

    def job(row: str, rate: float, seed: int) -> Job:
        described = json.dumps([settings(plan, row) | {"rates": None, "follows": None}, packed], sort_keys=True)
        return Job(row, rate, seed, hashlib.sha256(described.encode()).hexdigest()[:8])

    rates = {row: settings(plan, row)["rates"] for row, chosen in plan["rows"].items() if "follows" not in chosen}
    run_all([job(row, rate, seeds[0]) for row, tried in rates.items() for rate in tried], plan, store, runs, abreast)
    best = {row: max(tried, key=lambda r: score_of(job(row, r, seeds[0]).folder(runs))) for row, tried in rates.items()}
    best |= {row: best[chosen["follows"]] for row, chosen in plan["rows"].items() if "follows" in chosen}
    run_all([job(row, best[row], seed) for row in plan["rows"] for seed in seeds], plan, store, runs, abreast)

    figures: dict[str, list[list[float]]] = {}
    corpus = hashlib.sha256(b"".join(song["vocals"].numpy().tobytes() for song in songs)).hexdigest()[:8]
    for row in plan["rows"]:
        folders = [job(row, best[row], seed).folder(runs) for seed in seeds]
        figures[row] = [scores(folder, plan, row, songs, folder / f"scores.{corpus}.json") for folder in folders]
    rows = [[row, f"{best[row]:g}", *map(shown, zip(*of_seeds, strict=True))] for row, of_seeds in figures.items()]
    for row, values in calibration(songs, built(plan["base"], 1e-3, 0)[0].sample_rate).items():
        rows.append([row, "", "", *(f"{value:.2f}" for value in values)])
    base = plan["base"]
    if len(seeds) > 1:
        smallest = ", ".join(f"{value:.2f}" for value in detectable(figures, len(seeds)))
        chance = f"Smallest difference of two means that can be told from none: {smallest} dB in the four columns."
    else:
        chance = "One run each: differences of some tenths of a dB are chance."
    table = {
        "columns": [
            "row",
            "learning rate",
            "valid vocals, dB",
            "test vocals, dB",
            "test accompaniment, dB",
            "random mixes of test stems, vocals, dB",
        ],
        "rows": rows,
        "note": f"Hidden size {base['hidden']}, {base['steps']} steps of {base['batch']} examples of "
        f"{base['excerpt_s']:g} s, seeds {seeds}: mean (lowest to highest). SDR of the plain mask, median over "
        f"seconds, then over songs. {chance} {machine()}.",
        "figures": figures,
    }
    print(render(table))
    if name is not None:
        publish(name, table)


def shown(values: tuple[float, ...]) -> str:
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def detectable(figures: dict[str, list[list[float]]], seeds: int) -> list[float]:
    """For each column: t * s * sqrt(2 / n), with s pooled over rows."""
    from scipy.stats import t

    freedom = len(figures) * (seeds - 1)
    quantile = float(t.ppf(0.975, freedom))
    values = np.array(list(figures.values()))  # (rows, seeds, columns)
    pooled = np.sqrt(values.var(axis=1, ddof=1).mean(axis=0))
    return [quantile * float(deviation) * math.sqrt(2 / seeds) for deviation in pooled]


def scores(folder: Path, plan: dict[str, Any], row: str, songs: list[dict[str, Any]], kept: Path) -> list[float]:
    """Valid vocals, test vocals and accompaniment, vocals of random mixes, dB; kept in a file of the run."""
    from tables import replace

    if kept.exists():
        return json.loads(kept.read_text())
    config, options = built(settings(plan, row), 1e-3, 0)
    net = build_network(config, options)
    net.load_state_dict(torch.load(folder / "best.pt", weights_only=True)["state"])

    def ask(mixture: torch.Tensor, _: dict[str, Any]) -> torch.Tensor:
        return masked(net, mixture, config)

    found = [score_of(folder), *of_songs(ask, songs, config.sample_rate)]
    replace(kept, json.dumps(found))
    return found


def of_songs(ask: Any, songs: list[dict[str, Any]], rate: int) -> list[float]:
    vocals, rest, random = [], [], []
    generator = np.random.default_rng(0)
    for song in songs:
        mixture = song.get("mixture", sum(song[stem] for stem in ("vocals", "drums", "bass", "other")))
        estimate = ask(mixture, song)
        vocals.append(median_sdr(song["vocals"], estimate, rate))
        rest.append(median_sdr(mixture - song["vocals"], mixture - estimate, rate))
    for song in songs:
        drawn = {stem: songs[int(generator.integers(len(songs)))][stem] for stem in ("drums", "bass", "other")}
        length = min(signal.shape[-1] for signal in (song["vocals"], *drawn.values()))
        # Every stem with the energy of the vocals.
        parts = {"vocals": song["vocals"][:, :length]}
        for stem, signal in drawn.items():
            signal = signal[:, :length]
            parts[stem] = signal * (parts["vocals"].square().mean() / signal.square().mean().clamp_min(1e-12)).sqrt()
        mixture = sum(parts.values())
        mixture, truth = 0.9 * mixture / mixture.abs().max(), 0.9 * parts["vocals"] / mixture.abs().max()
        random.append(median_sdr(truth, ask(mixture, {"vocals": truth}), rate))
    return [float(np.nanmedian(values)) for values in (vocals, rest, random)]


def calibration(songs: list[dict[str, Any]], rate: int) -> dict[str, list[float]]:
    """Row -> test vocals and accompaniment, vocals of random mixes, dB."""
    from umx_ext.spectral import istft, stft

    def part(share: float) -> Any:
        return lambda mixture, _: mixture * share

    def oracle(mixture: torch.Tensor, song: dict[str, Any]) -> torch.Tensor:
        spectrum, truth = stft(mixture, 4096, 1024), stft(song["vocals"], 4096, 1024)
        phase = spectrum / spectrum.abs().clamp_min(1e-8)
        return istft(truth.abs() * phase, 4096, 1024, mixture.shape[-1])

    rows = {
        "mixture / 2 (trivial)": part(1 / 2),
        "mixture / 4 (trivial, SiSEC's MIX)": part(1 / 4),
        "nothing (trivial)": part(1e-4),
        "oracle: true magnitudes, the mixture's phase": oracle,
    }
    return {name: of_songs(ask, songs, rate) for name, ask in rows.items()}


def test_songs(root: Path) -> list[dict[str, Any]]:
    songs = []
    for song in find_songs(root, "test"):
        stems = song.read()
        songs.append({**stems, "mixture": stems.mixture})
    return songs


def toys(folder: Path) -> None:
    """Four songs of tones, noise and clicks."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    rate, entries, values, offset = 8000, [], [], 0
    seconds = np.arange(3 * rate) / rate
    for number, split in enumerate(("train", "train", "train", "valid")):
        vibrato = np.sin(2 * np.pi * (300 + 60 * number) * seconds + 2 * np.sin(2 * np.pi * 5 * seconds))
        sounds = {
            "vocals": 0.3 * vibrato,
            "drums": 0.3 * generator.standard_normal(len(seconds)) * (seconds % 0.5 < 0.05),
            "bass": 0.2 * np.sin(2 * np.pi * (60 + 10 * number) * seconds),
            "other": 0.2 * np.sign(np.sin(2 * np.pi * (200 + 30 * number) * seconds)),
        }
        for stem, sound in sounds.items():
            block = (np.stack([sound, 0.8 * sound], 1) * 32767).round().clip(-32768, 32767).astype("<i2")
            entries.append(Entry(f"toy {number}", split, "musdb18", stem, 1.0, 2, len(block), offset))
            values.append(block.ravel())
            offset += block.size
    clip = (0.2 * generator.standard_normal(3 * rate) * 32767).clip(-32768, 32767).astype("<i2")
    for stem in ("vocals", "accompaniment"):
        entries.append(Entry("clip", "train", "mir1k", stem, 1.0, 1, len(clip), offset))
        values.append(clip)
        offset += clip.size
    np.concatenate(values).tofile(folder / "audio.i16")
    index = {"sample_rate": rate, "data_sha256": "0" * 64, "entries": [vars(entry) for entry in entries]}
    (folder / "index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    main()
