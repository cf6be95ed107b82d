"""How much context does the model need at a cut? python scripts/measure_context.py DATA

A recording is separated as a whole (exact) and in blocks with less and less context on both sides. Printed are the RMS
of the vocals' difference beside the exact vocals, the largest difference of a second, and the change of the vocals SDR:
for a real song, and for the songs of MUSDB18's validation split, 7 s each, joined to one recording (much harsher: every
cut falls beside other music). Writes `docs/context.json` and the README's table.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from tables import machine, publish, render

import umx_ext
from umx_ext import audio
from umx_ext.corpora import find_songs
from umx_ext.evaluation.sdr import frame_sdr

CONTEXTS_S = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)
CORE_S = 13.9  # two Wiener windows: far more cuts than the default has


def differences_db(blocks: torch.Tensor, exact: torch.Tensor, rate: int) -> tuple[str, str]:
    """RMS of the difference beside the exact vocals': of all, and of the worst second."""
    seconds = exact.shape[-1] // rate
    error = (blocks - exact).square()
    by_second = error[:, : seconds * rate].unflatten(-1, (seconds, rate)).mean(dim=(0, 2))
    values = (error.mean(), by_second.max())
    whole, worst = (f"{10 * math.log10(float(value / exact.square().mean()) + 1e-30):.0f}" for value in values)
    return whole, worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default=None)
    arguments = parser.parse_args()
    model = umx_ext.load(arguments.model)
    songs = [song.read() for song in find_songs(arguments.data / "musdb18-7", "valid")]
    joined = torch.cat([song.mixture for song in songs], dim=1)
    vocals = torch.cat([song["vocals"] for song in songs], dim=1)
    song, song_rate = audio.read(arguments.data / "songs" / "lets_go_fishin.ogg")

    def separated(mixture: torch.Tensor, rate: int, context_s: float | None) -> torch.Tensor:
        split = {"split": False} if context_s is None else {"segment_s": CORE_S, "overlap_s": context_s}
        return model.separate(mixture, rate, umx_ext.Options(**split))["vocals"]

    exact, exact_song = separated(joined, 44100, None), separated(song, song_rate, None)
    exact_sdr = frame_sdr(vocals, exact, 44100)
    rows = []
    for context_s in CONTEXTS_S:
        blocks = separated(joined, 44100, context_s)
        change = (frame_sdr(vocals, blocks, 44100) - exact_sdr).abs()
        change = change[torch.isfinite(change)]
        rows.append(
            [
                f"{context_s:g}" + (" (default)" if context_s == umx_ext.Options().overlap_s else ""),
                *differences_db(separated(song, song_rate, context_s), exact_song, song_rate),
                *differences_db(blocks, exact, 44100),
                f"{float(change.max()):.3f}",
                f"{float(np.median(change)):.4f}",
            ]
        )
    table = {
        "columns": [
            "context on each side, s",
            "real song: vocals' difference from the exact, dB",
            "in its worst second, dB",
            "joined songs: difference, dB",
            "in the worst second, dB",
            "largest change of a second's SDR, dB",
            "median change, dB",
        ],
        "rows": rows,
        "note": f"Cores of {CORE_S} s, an eighth of the default's. Real song: {song.shape[-1] / song_rate:.0f} s. "
        f"Joined songs: the {len(songs)} validation songs of the 7-second sample in one recording "
        f"({joined.shape[-1] / 44100:.0f} s), where every cut falls beside other music. {machine()}.",
    }
    print(render(table))
    if arguments.model is None:
        publish("context", table)


if __name__ == "__main__":
    main()
