"""Peak memory of the command on long recordings: python scripts/bench_memory.py SONG [--minutes 10 60 180]

SONG is tiled. Each run is the real command in a process of its own; memory is the peak resident set of that process.
Writes `docs/memory.json` and the README's table.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from processes import measured
from tables import machine, publish, render

WRITE = """
import sys
from umx_ext import audio
song, target, minutes = sys.argv[1], sys.argv[2], int(sys.argv[3])
waveform, rate = audio.read(song)
left = minutes * 60 * rate
with audio.AudioWriter(target, rate, len(waveform)) as writer:
    while left > 0:
        writer.write(waveform[:, :left])
        left -= min(left, waveform.shape[-1])
    writer.commit()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("song", type=Path)
    parser.add_argument("--minutes", type=int, nargs="+", default=[10, 60, 180])
    arguments = parser.parse_args()
    rows = []
    for minutes in arguments.minutes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "long.wav")
            # In a process of its own: the peak of a command includes the size of the process that started it.
            subprocess.run([sys.executable, "-c", WRITE, arguments.song, path, str(minutes)], check=True)
            seconds, peak_mb = measured(["-m", "umx_ext", "separate", "-q", "-o", folder, str(path)])
        rows.append([f"{minutes} min", f"{peak_mb:.0f}", f"{seconds:.0f}", f"{minutes * 60 / seconds:.0f}x"])
        print(rows[-1], file=sys.stderr)
    table = {
        "columns": ["length", "peak memory of the process, MB", "seconds", "real time"],
        "rows": rows,
        "note": f"The command with the default model, one WAV in, two WAVs out. {machine()}.",
    }
    print(render(table))
    publish("memory", table)


if __name__ == "__main__":
    main()
