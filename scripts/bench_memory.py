"""Peak memory of the command on long recordings: python scripts/bench_memory.py SONG [--minutes 10 60 180]

SONG is tiled. Each run is the real command in a process of its own; memory is the peak resident set of that process.
Writes `docs/memory.json` and the README's table.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tables import machine, publish, render

from umx_ext import audio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("song", type=Path)
    parser.add_argument("--minutes", type=int, nargs="+", default=[10, 60, 180])
    arguments = parser.parse_args()
    waveform, rate = audio.read(arguments.song)
    rows = []
    for minutes in arguments.minutes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "long.wav")
            wanted = minutes * 60 * rate
            with audio.AudioWriter(path, rate, len(waveform)) as writer:
                while wanted > 0:
                    writer.write(waveform[:, :wanted])
                    wanted -= min(wanted, waveform.shape[-1])
                writer.commit()
            command = [sys.executable, "-m", "umx_ext", "separate", "-q", "-o", folder, str(path)]
            started = time.perf_counter()
            pid = os.posix_spawn(sys.executable, command, os.environ)
            _, status, usage = os.wait4(pid, 0)
            seconds = time.perf_counter() - started
            if status:
                raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
        rows.append(
            [f"{minutes} min", f"{usage.ru_maxrss / 1024:.0f}", f"{seconds:.0f}", f"{minutes * 60 / seconds:.0f}x"]
        )
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
