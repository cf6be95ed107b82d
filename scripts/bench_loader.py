"""Training examples per second by source: python scripts/bench_loader.py MUSDB18 [--songs N] [--examples N]

The same songs of MUSDB18's training part as .stem.mp4, as wav, and packed (`umx-ext data pack`); an example is a remix
of four stems of different songs, `--seconds` long. In turn, one thread: ours from each source, and open-unmix's own
dataset (`FixedSourcesTrackFolderDataset`, random chunks and random tracks, its two augmentations) from the wav. It
calls functions that torchaudio no longer has, so it is given soundfile's, which are faster than those were. Writes
`docs/loader_speed.json`. Needs the extra `research`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch

from umx_ext import audio
from umx_ext.cli import keep_memory
from umx_ext.corpora import find_songs
from umx_ext.training.remix import Remixer
from umx_ext.training.tracks import Pack, pack

STEMS = ("vocals", "drums", "bass", "other")
RATE = 44100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--songs", type=int, default=12)
    parser.add_argument("--examples", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    arguments = parser.parse_args()
    from tables import machine, publish, render

    keep_memory()  # as `umx-ext train` does, for all of them
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root, wav, store = Path(folder, "mp4"), Path(folder, "wav"), Path(folder, "store")
        songs = find_songs(arguments.root, "train")[: arguments.songs - 1]
        songs += find_songs(arguments.root, "valid")[:1]
        (root / "train").mkdir(parents=True)
        for song in songs:
            (root / "train" / song.path.name).symlink_to(song.path.resolve())
            (wav / "train" / song.name).mkdir(parents=True)
            stems = song.read()
            for stem in STEMS:
                path = wav / "train" / song.name / f"{stem}.wav"
                soundfile.write(path, stems[stem].mT.numpy(), RATE, subtype="PCM_16")
        pack([root], store)
        samples = round(arguments.seconds * RATE)
        sources = {
            "umx_ext, packed store": packed(store, samples),
            "umx_ext's reader, wav": loose(sorted((wav / "train").iterdir()), samples),
            "umx_ext's reader, .stem.mp4": stem_files(sorted((root / "train").iterdir()), samples),
            "open-unmix's dataset, wav": open_unmix(wav, arguments.seconds),
        }
        speeds: dict[str, list[float]] = {name: [] for name in sources}
        for turn in range(arguments.rounds):
            for name, draw in sources.items():
                count = max(3, arguments.examples // 20) if "mp4" in name else arguments.examples
                draw(10**6 + turn)  # files are in the system's cache for everybody
                started = time.perf_counter()
                for item in range(count):
                    draw(turn * count + item)
                speeds[name].append(count / (time.perf_counter() - started))
    theirs = statistics.median(speeds["open-unmix's dataset, wav"])
    table = {
        "columns": ["source", "examples a second", "times real time", "beside open-unmix's"],
        "rows": [
            [
                name,
                f"{statistics.median(found):.1f} ({min(found):.1f} to {max(found):.1f})",
                f"{arguments.seconds * statistics.median(found):.0f}x",
                f"{statistics.median(found) / theirs:.1f}x",
            ]
            for name, found in speeds.items()
        ],
        "note": f"One thread, examples of {arguments.seconds:g} s remixed from {len(songs)} songs, {arguments.rounds} "
        f"rounds in turn: median (range). {machine()}.",
    }
    print(render(table))
    publish("loader_speed", table)


def packed(store: Path, samples: int) -> Callable[[int], object]:
    remixer = Remixer(Pack(store), samples=samples, mir1k_whole=0.0, mir1k_vocals=0.0)
    return lambda item: remixer.draw(np.random.default_rng([0, item]))


def loose(folders: list[Path], samples: int) -> Callable[[int], object]:
    """Four excerpts read where they lie, added up."""

    def draw(item: int) -> torch.Tensor:
        rng = np.random.default_rng([1, item])
        stems = []
        for stem in STEMS:
            path = folders[int(rng.integers(len(folders)))] / f"{stem}.wav"
            with soundfile.SoundFile(path) as file:
                file.seek(int(rng.integers(0, file.frames - samples)))
                stems.append(file.read(samples, dtype="float32").T)
        return torch.from_numpy(np.stack(stems)).sum(0)

    return draw


def stem_files(paths: list[Path], samples: int) -> Callable[[int], object]:
    def draw(item: int) -> torch.Tensor:
        rng = np.random.default_rng([2, item])
        stems = []
        for stream in (4, 1, 2, 3):
            waveform, _ = audio.read(paths[int(rng.integers(len(paths)))], stream=stream)
            start = int(rng.integers(0, waveform.shape[1] - samples))
            stems.append(waveform[:, start : start + samples])
        return torch.stack(stems).sum(0)

    return draw


def open_unmix(wav: Path, seconds: float) -> Callable[[int], object]:
    from openunmix import data

    def info(path: Path) -> dict[str, float]:
        found = soundfile.info(path)
        return {"samplerate": found.samplerate, "samples": found.frames, "duration": found.frames / found.samplerate}

    def load(path: Path, start: float = 0.0, dur: float | None = None) -> tuple[torch.Tensor, int]:
        with soundfile.SoundFile(path) as file:
            file.seek(int(start * file.samplerate))
            frames = -1 if dur is None else int(dur * file.samplerate)
            return torch.from_numpy(file.read(frames, dtype="float32", always_2d=True).T), file.samplerate

    data.load_info, data.load_audio = info, load
    random.seed(0)
    dataset = data.FixedSourcesTrackFolderDataset(
        root=str(wav),
        split="train",
        target_file="vocals.wav",
        interferer_files=["drums.wav", "bass.wav", "other.wav"],
        seq_duration=seconds,
        random_chunks=True,
        random_track_mix=True,
        source_augmentations=data.aug_from_str(["gain", "channelswap"]),
    )
    return lambda item: dataset[item % len(dataset)]


if __name__ == "__main__":
    main()
