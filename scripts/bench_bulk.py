"""Many short files beside one long one, and the start of the command: python scripts/bench_bulk.py SONG [--files N]

SONG is tiled and cut into N WAV files of six seconds, which go through `umx-ext separate -r FOLDER` with the embedded
model; the same minutes go through it as one file, in turn. What a file costs beside the work on its samples is the
difference of the two over N. The start is a file of one second, from the call of the command to its end. Each run is a
process of its own, with as many threads as torch takes. Writes `docs/bulk.json` and the tables.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from processes import measured
from tables import machine, publish, render

SECONDS, RATE = 6, 44100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("song", type=Path)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole, short, many = write(arguments.song, Path(folder), arguments.files)
        jobs = {
            "one file": [str(whole)],
            f"{arguments.files} files": ["-r", str(many)],
            f"{arguments.files} files, -j 2": ["-r", str(many), "-j", "2"],
            "a file of one second": [str(short)],
            "`import torch` alone": [],
        }
        seconds: dict[str, list[float]] = {name: [] for name in jobs}
        for turn in range(arguments.rounds):
            for name, words in jobs.items():
                out = Path(folder, "out", str(turn), name.replace(" ", "_"))
                separate = ["-m", "umx_ext", "separate", "-q", "-o", str(out), *words]
                command = separate if words else ["-c", "import torch"]
                seconds[name].append(measured(command)[0])
                shutil.rmtree(out, ignore_errors=True)
                print(f"{turn + 1}/{arguments.rounds} {name}: {seconds[name][-1]:.2f} s", file=sys.stderr)
    rows = []
    for name, taken in seconds.items():
        row = [name, f"{statistics.median(taken):.2f} ({min(taken):.2f} to {max(taken):.2f})", "", ""]
        if " files" in name:
            pairs = list(zip(taken, seconds["one file"], strict=True))
            row[2] = f"{statistics.median((ours - one) / arguments.files for ours, one in pairs) * 1000:.1f}"
            row[3] = f"{statistics.median(one / ours for ours, one in pairs):.0%}"
        rows.append(row)
    table = {
        "columns": ["job", "seconds", "overhead a file, ms", "throughput beside one file"],
        "rows": rows,
        "note": f"{arguments.files} stereo WAV files of {SECONDS} s at 44.1 kHz, or one of the same length; the whole "
        f"process, imports included; {arguments.rounds} runs each in turn, medians (range). {machine()}.",
    }
    print(render(table))
    publish("bulk", table)


def write(song: Path, folder: Path, files: int) -> tuple[Path, Path, Path]:
    """The whole, a second of it, and the folder of its parts. In a process of its own, which may be large."""
    import multiprocessing

    whole, short, many = folder / "whole.wav", folder / "short.wav", folder / "many"
    many.mkdir()
    writer = multiprocessing.get_context("spawn").Process(target=_write, args=(song, whole, short, many, files))
    writer.start()
    writer.join()
    if writer.exitcode:
        raise SystemExit(f"{song} could not be read or {folder} not be written")
    return whole, short, many


def _write(song: Path, whole: Path, short: Path, many: Path, files: int) -> None:
    import soundfile

    from umx_ext import audio

    waveform, rate = audio.read(song)
    waveform = audio.resample(waveform, rate, RATE)[:2]
    length = SECONDS * RATE
    waveform = waveform.repeat(2 // len(waveform), -(-files * length // waveform.shape[-1]))[:, : files * length]
    soundfile.write(whole, waveform.mT.numpy(), RATE, subtype="PCM_16")
    soundfile.write(short, waveform[:, :RATE].mT.numpy(), RATE, subtype="PCM_16")
    for number, part in enumerate(waveform.split(length, dim=1)):
        soundfile.write(many / f"{number:04}.wav", part.mT.numpy(), RATE, subtype="PCM_16")


if __name__ == "__main__":
    main()
