"""Songs a minute on a GPU, and how much of the time it is busy: python scripts/bench_gpu.py SONG [--songs N]

SONG is tiled or cut to four minutes of 44.1 kHz stereo and written as N files, which the command takes apart, several
at a time, so that decoding and encoding go on beside the device. Each way of doing it is a process of its own, in turn,
three rounds, of all files and of four: what the others take is without imports and loading. A last one, of one file and
then of four, counts the time in which a kernel runs, from the four's first to their last. How far the results are from
those of the CPU stands beside it. Writes `docs/gpu.json` and the table; `--device cpu` tries the script without a GPU
and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SECONDS, RATE, ROUNDS = 240, 44100, 3
FEW = 4
WAYS = {
    "exact": ["--exact"],
    "fast, the default": [],
    "fast, blocks of 20 s": ["--segment", "20"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("song", type=Path)
    parser.add_argument("--songs", type=int, default=24)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--child", nargs=2, metavar=("WAY", "COUNT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.song, *arguments.child, arguments.device, arguments.jobs)
        return

    import soundfile
    import torch
    from bench_separate import difference_db
    from tables import machine, publish, render

    from umx_ext import audio

    if arguments.songs <= FEW:
        parser.error(f"expected more than {FEW} songs, got {arguments.songs}")
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu tries the script")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "songs")
        folder.mkdir()
        waveform, rate = audio.read(arguments.song)
        waveform = audio.resample(waveform, rate, RATE)[:2]
        waveform = waveform.repeat(2 // len(waveform), math.ceil(SECONDS * RATE / waveform.shape[-1]))
        first = folder / "000.wav"
        soundfile.write(first, waveform[:, : SECONDS * RATE].mT.numpy(), RATE, subtype="PCM_16")
        for number in range(1, arguments.songs):
            os.link(first, folder / f"{number:03}.wav")
        mixture = torch.from_numpy(soundfile.read(first, dtype="float32")[0]).mT

        def run(way: str, count: str, device: str = arguments.device) -> dict[str, float]:
            command = [sys.executable, __file__, str(folder), "--device", device, "--jobs", str(arguments.jobs)]
            done = subprocess.run([*command, "--child", way, count], check=True, capture_output=True, text=True)
            result = json.loads(done.stdout.splitlines()[-1])
            print(device, way, result, file=sys.stderr)
            return result

        def kept(place: str) -> Path:
            target = Path(name, place)
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(folder / "separated" / "000", target / "000")
            return target

        run("exact", "one", "cpu")
        truth = kept("cpu")
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        further: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(ROUNDS):
            for way in WAYS:
                seconds[way].append(run(way, "")["seconds"])
                further[way].append(seconds[way][-1] - run(way, "few")["seconds"])
        rows = []
        for way, found in seconds.items():
            busy = run(way, "busy")["busy"]
            own = kept(way)
            pairs = [(path, truth / path.relative_to(own)) for path in own.rglob("000/*.wav")]
            apart = max(difference_db(one, other, mixture) for one, other in pairs)
            a_minute = [60 * arguments.songs / each for each in found]
            more = statistics.median(60 * (arguments.songs - FEW) / each for each in further[way])
            low, high = min(a_minute), max(a_minute)
            songs = f"**{statistics.median(a_minute):.0f}** ({low:.0f} to {high:.0f})"
            rows.append([way, songs, f"{more:.0f}", f"{busy:.0%}", f"{apart:.0f}"])
    table = {
        "columns": [
            "umx-ext separate",
            "songs a minute",
            f"without the first {FEW}",
            "a kernel runs",
            "beside the CPU's --exact, dB",
        ],
        "rows": rows,
        "note": f"{arguments.songs} files of four minutes of stereo, 32-bit WAV out, -j {arguments.jobs}, the embedded "
        f"model; import and loading included; {ROUNDS} rounds in turn, medians (range). A kernel that runs need not "
        "fill the device. The last column is the RMS of the stems' difference beside the mixture's. "
        f"{device_name(arguments.device)}; {machine()}.",
    }
    print(render(table))
    if arguments.device != "cpu":
        publish("gpu", table)


def child(folder: Path, way: str, count: str, device: str, jobs: int) -> None:
    from umx_ext import cli

    cli.collect_seldom()  # this and what follows as the command does when it starts
    cli.share_one_heap()
    cli.wait_asleep()
    started = time.perf_counter()
    files = sorted(str(path) for path in folder.glob("*.wav"))[: {"one": 1, "busy": FEW, "few": FEW}.get(count)]
    how = ["-d", device, "-j", str(jobs), "-q", "--float32", "--if-exists", "overwrite", *WAYS[way]]
    how += ["--out", str(folder / "separated"), "--filename", "{track}/{stem}.{ext}"]
    busy = math.nan
    if count == "busy" and device != "cpu":
        import torch

        assert cli.main(["separate", files[0], *how]) == 0  # what is done once: the context, libraries, pinned memory
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            assert cli.main(["separate", *files, *how]) == 0
        spans = [
            (event.time_range.start, event.time_range.end)
            for event in profile.events() or []
            if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset"))
        ]
        if spans:
            busy = covered(spans) / (max(end for _, end in spans) - min(begin for begin, _ in spans))
    else:
        assert cli.main(["separate", *files, *how]) == 0
    print(json.dumps({"seconds": time.perf_counter() - started, "busy": busy}))


def covered(spans: list[tuple[float, float]]) -> float:
    """How long at least one of them lasts."""
    total, until = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


if __name__ == "__main__":
    main()
