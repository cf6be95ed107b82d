"""Our BSS Eval against museval 0.4.1, in turn: python scripts/bench_bsseval.py MUSDB18

MUSDB18 is its root (its 7-second sample will do). Four minutes of stereo are made of its test songs one after the
other, with oracle masks of the mixture as estimates: two targets and four. Each run is a process of its own with two
threads; time counts from the arrays in memory (and from WAV files) to the figures, memory is the peak resident set of
the whole process.
Needs the extra `research`. Writes `docs/bsseval.json` and the README's table.

With --agreement, every test song by itself instead: vocals and accompaniment as our model separates them, and four
stems by masks. Prints and writes (`docs/bsseval_agreement.json`) the largest differences in dB.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SECONDS, RATE, THREADS = 240, 44100, 2
STEMS = ("vocals", "drums", "bass", "other")
STREAMS = {"mixture": 0, "drums": 1, "bass": 2, "other": 3, "vocals": 4}
ROUND_OFF_DB = 80  # above, museval's figures are rounding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--agreement", action="store_true")
    parser.add_argument("--child", nargs=2, metavar=("ENGINE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        engine, folder = arguments.child
        child(engine, Path(folder))
    elif arguments.agreement:
        agreement(arguments.data)
    else:
        benchmark(arguments.data, arguments.rounds)


def benchmark(data: Path, rounds: int) -> None:
    from tables import machine, publish, render

    rows, detail = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        make_tracks(data, Path(temporary))
        for job in ("2 targets", "4 targets"):
            folder = Path(temporary, job)
            runs: dict[str, list[dict[str, float]]] = {"museval": [], "own": [], "files": []}
            for turn in range(rounds):
                for engine in runs:
                    runs[engine].append(run(engine, folder))
                    print(f"{job} {turn + 1}/{rounds} {engine}: {runs[engine][-1]}", file=sys.stderr)
            for engine, title in (("museval", "museval 0.4.1"), ("own", "umx_ext"), ("files", "umx_ext, WAV files")):
                largest, missing = compare(load(folder, engine), load(folder, "museval"))
                pairs = zip(runs[engine], runs["museval"], strict=True)
                ratios = [theirs["seconds"] / ours["seconds"] for ours, theirs in pairs]
                seconds = [result["seconds"] for result in runs[engine]]
                rows.append(
                    [
                        job,
                        title,
                        f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})",
                        "1" if engine == "museval" else f"**{statistics.median(ratios):.1f}x**",
                        f"{statistics.median(result['peak_mb'] for result in runs[engine]):.0f}",
                        "" if engine == "museval" else f"{max(largest.values()):.0e}",
                    ]
                )
                detail[f"{job}, {title}"] = {
                    "runs": runs[engine],
                    "largest_difference_db": largest,
                    "frames_of_which_only_one_is_nan": missing,
                }
    table = {
        "columns": ["job", "system", "seconds", "speed", "peak memory, MB", "largest difference, dB"],
        "rows": rows,
        "note": f"Four minutes of stereo at 44.1 kHz, {THREADS} threads, {rounds} runs each in turn; seconds are "
        "medians (range), speed is the median ratio of paired runs, memory the peak of the whole process, input "
        f"included (float32 arrays, or slices of WAV files as they are needed), the difference that of all figures "
        f"below {ROUND_OFF_DB} dB. {machine()}.",
        "runs": detail,
    }
    print(render(table))
    publish("bsseval", table)


def run(engine: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, str(folder), "--child", engine, str(folder)]
    environment = os.environ | {name: str(THREADS) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(output.splitlines()[-1])


def child(engine: str, folder: Path) -> None:
    import numpy as np
    import torch

    from umx_ext import audio
    from umx_ext.evaluation import bsseval

    torch.set_num_threads(THREADS)
    roles = ("references", "estimates")
    if engine == "files":
        files = [sorted(folder.glob(f"{role}*.wav")) for role in roles]
        references, estimates = ([audio.Samples(path) for path in paths] for paths in files)
    else:
        references, estimates = (np.load(folder / f"{role}.npy") for role in roles)
    if engine == "museval":
        museval = bsseval._museval_metrics()  # without the package around it, which wants to see FFmpeg
        started = time.perf_counter()
        values = museval.bss_eval(references, estimates, window=RATE, hop=RATE)[:4]
    else:
        started = time.perf_counter()
        values = list(bsseval.evaluate(references, estimates, RATE).values())
    seconds = time.perf_counter() - started
    np.save(folder / f"{engine}.npy", np.stack(values))
    # Not getrusage: its peak includes what the process was before it became this program, a copy of its parent.
    peak_mb = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
    print(json.dumps({"seconds": round(seconds, 3), "peak_mb": round(peak_mb, 1)}))


def load(folder: Path, engine: str) -> dict:
    import numpy as np

    from umx_ext.evaluation.bsseval import METRICS

    return dict(zip(METRICS, np.load(folder / f"{engine}.npy"), strict=True))


def compare(ours: dict, theirs: dict) -> tuple[dict[str, float], int]:
    """Largest difference of each metric where museval is below round-off, and the number of frames where only one is
    nan, or only one beyond it."""
    import numpy as np

    largest, missing = {}, 0
    for metric, values in theirs.items():
        low = values < ROUND_OFF_DB
        missing += int(((np.isnan(ours[metric]) != np.isnan(values)) | (~low & (ours[metric] < ROUND_OFF_DB))).sum())
        largest[metric] = float(np.abs(ours[metric] - values)[low].max(initial=0))
    return largest, missing


def songs(data: Path) -> list[Path]:
    return sorted((data / "test").glob("*.stem.mp4"))


def read(path: Path) -> dict:
    from umx_ext import audio

    return {name: audio.read(path, stream=stream)[0] for name, stream in STREAMS.items()}


def masked(mixture, stems: list) -> list:
    """Estimates by the ratio of the stems' powers."""
    import torch

    window = torch.hann_window(4096)

    def stft(waveform):
        return torch.stft(waveform, 4096, 1024, window=window, return_complex=True)

    powers = [stft(stem).abs().square() for stem in stems]
    ratio = stft(mixture) / (sum(powers) + 1e-10)
    return [torch.istft(power * ratio, 4096, 1024, window=window, length=mixture.shape[-1]) for power in powers]


def layout(waveforms: list):
    """museval's: (targets, samples, channels)."""
    import torch

    return torch.stack(waveforms).mT.contiguous().numpy()


def make_tracks(data: Path, folder: Path) -> None:
    import numpy as np
    import torch

    from umx_ext import audio

    parts: dict[str, list] = {name: [] for name in STREAMS}
    paths, length = songs(data), 0
    while length < SECONDS * RATE:
        turn, number = divmod(len(parts["mixture"]), len(paths))
        for name, waveform in read(paths[number]).items():
            parts[name].append(waveform * 0.9**turn)
        length += parts["mixture"][-1].shape[-1]
    track = {name: torch.cat(waveforms, dim=1)[:, : SECONDS * RATE] for name, waveforms in parts.items()}
    stems = [track[stem] for stem in STEMS]
    estimates = masked(track["mixture"], stems)
    for job, targets in {"2 targets": 2, "4 targets": 4}.items():
        (folder / job).mkdir()
        for role, four in (("references", stems), ("estimates", estimates)):
            waveforms = four if targets == 4 else [four[0], sum(four[1:])]
            np.save(folder / job / f"{role}.npy", layout(waveforms))
            for number, waveform in enumerate(waveforms):
                audio.write(folder / job / f"{role}{number}.wav", waveform, RATE, bits="32f")


def agreement(data: Path) -> None:
    import numpy as np
    import torch
    from tables import machine, publish, render

    import umx_ext
    from umx_ext.evaluation.bsseval import evaluate

    torch.set_num_threads(THREADS)
    if not hasattr(np.linalg, "linalg"):
        np.linalg.linalg = np.linalg  # where museval looks for LinAlgError; NumPy 2.4 has dropped the name
    model = umx_ext.load()
    worst: dict[str, dict[str, tuple[float, str]]] = {}
    frames, differing, seconds = 0, 0, {"museval": 0.0, "own": 0.0}
    for path in songs(data):
        sound = read(path)
        stems = [sound[stem] for stem in STEMS]
        separated = model.separate(sound["mixture"], RATE)
        jobs = {
            "2 targets": ([stems[0], sum(stems[1:])], [separated["vocals"], separated["accompaniment"]]),
            "4 targets": (stems, masked(sound["mixture"], stems)),
        }
        for job, (references, estimates) in jobs.items():
            values = {}
            for engine in seconds:
                started = time.perf_counter()
                values[engine] = evaluate(layout(references), layout(estimates), RATE, engine=engine)
                seconds[engine] += time.perf_counter() - started
            largest, missing = compare(values["own"], values["museval"])
            frames += values["own"]["SDR"].size
            differing += missing
            for metric, value in largest.items():
                found = worst.setdefault(job, {})
                found[metric] = max(found.get(metric, (0.0, "")), (value, path.name))
            print(job, path.name, {metric: f"{value:.0e}" for metric, value in largest.items()}, missing, flush=True)
    table = {
        "columns": ["largest difference, dB", "SDR", "ISR", "SIR", "SAR"],
        "rows": [[job, *(f"{value:.0e}" for value, _ in found.values())] for job, found in worst.items()],
        "note": f"{len(songs(data))} songs of {data.name}, {frames} frames of targets, museval's figures below "
        f"{ROUND_OFF_DB} dB; {differing} frames of which only one is nan or above that. {machine()}.",
        "worst": worst,
        "seconds": seconds,
    }
    print(render(table), seconds)
    publish("bsseval_agreement", table)


if __name__ == "__main__":
    main()
