"""Is the vocal as loud over the backing as was set? python scripts/check_balance.py DATA [--jobs 2]

DATA holds `musdb18-7/` and `mir1k/`. Every song of MUSDB18's test part (true stems) and every clip of MIR-1K's is
planned and mixed with both presets, each time with other input gains (-60 dBFS to clipped), in mono or stereo and at
another sample rate from 16 to 96 kHz, in turn. The difference is that between the loudness of the finished vocal over
that of the backing and the setting. Writes `docs/balance.json` and the README's table; exits with 1 where any is above
0.1 LU.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch
from score_mixing import records
from tables import machine, publish, render

from umx_ext import audio, levels
from umx_ext.audio import resample
from umx_ext.mixing.effects import Gain
from umx_ext.mixing.settings import PRESETS
from umx_ext.mixing.vocal import plan, processed
from umx_ext.stems import Stems

GAINS_DB = [(0.0, 0.0), (-60.0, 0.0), (0.0, -60.0), (-60.0, -60.0), (25.0, -6.0), (-6.0, 25.0)]
RATES = [16000, 22050, 44100, 48000, 96000]
TRACKS = ("vocals", "accompaniment")
BAR_LU = 0.1


def pairs(root: Path) -> Iterator[tuple[str, str, Stems]]:
    """Corpus, name and tracks."""
    for name, stems in records(root / "musdb18-7", "test"):
        yield "MUSDB18, test part", name, stems
    for clip in sorted((root / "mir1k" / "test").iterdir()):
        read = [audio.read(clip / f"{stem}.opus") for stem in TRACKS]
        length = min(waveform.shape[1] for waveform, _ in read)
        tracks = {stem: waveform[:, :length] for stem, (waveform, _) in zip(TRACKS, read, strict=True)}
        yield "MIR-1K, test part", clip.name, Stems(tracks, read[0][1])


def off_lu(job: tuple[int, str, str, Stems]) -> tuple[str, str, float]:
    """Setting minus what a meter shows, the larger of both presets; nan where the vocal or the backing is silent."""
    number, corpus, name, stems = job
    torch.set_num_threads(1)
    if any(levels.is_silent(waveform) for waveform in stems.values()):
        return corpus, name, math.nan
    gains, rate = GAINS_DB[number % len(GAINS_DB)], RATES[number % len(RATES)]
    tracks = {}
    for stem, gain_db in zip(TRACKS, gains, strict=True):
        loud = (levels.as_stereo(stems[stem]) * 10 ** (gain_db / 20)).clamp(-1, 1)[: 1 + number // 30 % 2]
        tracks[stem] = resample(loud, stems.sample_rate, rate)
    found = []
    for preset in PRESETS.values():
        settings = replace(preset, bpm=100.0)
        done = processed(Stems(tracks, rate), plan(Stems(tracks, rate), settings)[0])
        lift = Gain(-1 - max(levels.peak_db(waveform) for waveform in done.values()))
        vocals, backing = (levels.integrated_lufs(lift(done[stem], rate), rate) for stem in TRACKS)
        found.append(abs(vocals - backing - settings.vocal_db))
    return corpus, name, max(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    jobs = ((number, *pair) for number, pair in enumerate(pairs(arguments.data)))
    found: dict[str, list[float]] = {}
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        for corpus, name, off in pool.map(off_lu, jobs):
            found.setdefault(corpus, []).append(off)
            print(f"{corpus}: {name}: {off:.3f} LU", file=sys.stderr)
    rows, worst = [], 0.0
    for corpus, values in found.items():
        known = [off for off in values if not math.isnan(off)]
        worst = max(worst, *known)
        silent = len(values) - len(known)
        rows.append([corpus, len(known), silent, f"{statistics.median(known):.4f}", f"{max(known):.4f}"])
    table = {
        "columns": ["songs", "mixed", "silent, left out", "median difference, LU", "largest difference, LU"],
        "rows": rows,
        "note": f"Input gains from -60 to 25 dB, mono and stereo, 16 to 96 kHz in turn; the larger of {len(PRESETS)} "
        f"presets. {machine()}.",
    }
    print(render(table))
    publish("balance", table)
    sys.exit(worst > BAR_LU)


if __name__ == "__main__":
    main()
