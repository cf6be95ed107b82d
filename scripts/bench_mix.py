"""Time and memory of mixing a song: python scripts/bench_mix.py TAKE_STEMS [--minutes 4] [--rounds 3]

TAKE_STEMS is a folder with `vocals.wav` and `accompaniment.wav`, such as `umx-ext separate` writes; they are tiled to
four minutes. Measured are the command, each time as a process of its own (wall time from its start, peak resident set),
with either preset, and the effects of a whole chain on a stereo vocal of that length. Writes `docs/mix_speed.json` and
the README's table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from processes import measured
from tables import machine, publish, render

from umx_ext import audio
from umx_ext.mixing.effects import Band, Compressor, Gain, HighPass, ParametricEq, Reverb

TRACKS = ("vocals", "accompaniment")
CHAIN = {
    "high-pass": HighPass(80.0),
    "equaliser, four bands": ParametricEq(tuple(Band(hz, 3.0, 1.4) for hz in (250.0, 1000.0, 4000.0, 8000.0))),
    "compressor": Compressor(threshold_db=-24.0, ratio=4.0),
    "reverberation, delay network": Reverb(engine="fdn", t60_s=1.7, dry_wet=0.2),
    "reverberation, noise": Reverb(engine="noise", t60_s=1.7, dry_wet=0.2),
    "gain": Gain(-3.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stems", type=Path)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for track in TRACKS:
            waveform, rate = audio.read(arguments.stems / f"{track}.wav")
            samples = round(arguments.minutes * 60 * rate)
            tiled = waveform.repeat(1, -(-samples // waveform.shape[1]))[:, :samples]
            audio.write(Path(folder, f"{track}.wav"), tiled, rate)
        for preset in ("studio", "poster"):
            found = [run(Path(folder), preset) for _ in range(arguments.rounds)]
            seconds = [took for took, _ in found]
            rows.append([f"umx-ext mix, {preset}", spread(seconds), f"{max(peak for _, peak in found):.0f}"])
        vocals, rate = audio.read(Path(folder, "vocals.wav"))
        vocals = vocals.expand(2, -1)
        for name, effect in CHAIN.items():
            seconds = []
            for _ in range(arguments.rounds):
                started = time.perf_counter()
                effect(vocals, rate)
                seconds.append(time.perf_counter() - started)
            rows.append([f"one effect: {name}", spread(seconds), ""])
    table = {
        "columns": ["what", "seconds", "peak memory of the process, MB"],
        "rows": rows,
        "note": f"{arguments.minutes:g} minutes of {rate} Hz stereo, {torch.get_num_threads()} threads, median (range) "
        f"of {arguments.rounds} rounds. {machine()}.",
    }
    print(render(table))
    publish("mix_speed", table)


def spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


def run(folder: Path, preset: str) -> tuple[float, float]:
    """Seconds and peak MB of the command in a process of its own."""
    command = ["-m", "umx_ext", "mix", *(str(folder / f"{track}.wav") for track in TRACKS)]
    return measured([*command, "-o", str(folder / "mix.wav"), "--preset", preset, "--if-exists", "overwrite", "-q"])


if __name__ == "__main__":
    main()
