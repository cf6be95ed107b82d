"""How much context does the model need at a cut? python scripts/measure_context.py DATA

Songs of MUSDB18's validation split, 7 s each, are joined to one long recording. It is separated as a whole (exact) and
in blocks of 14 s with less and less context on both sides. Printed are the RMS of the vocals' difference beside the
exact vocals, the largest difference of a second, and the change of the vocals SDR. Writes `docs/context.json` and the
README's table.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from score_musdb import songs
from tables import machine, publish, render

import umx_ext
from umx_ext import audio
from umx_ext.evaluation.sdr import frame_sdr

CONTEXTS_S = (0.1, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0)
CORE_S = 13.9  # two Wiener windows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default=None)
    arguments = parser.parse_args()
    model = umx_ext.load(arguments.model)
    paths = songs(arguments.data, "valid")
    mixture = torch.cat([audio.read(path, stream=0)[0] for path in paths], dim=1)
    vocals = torch.cat([audio.read(path, stream=4)[0] for path in paths], dim=1)

    exact = model.separate(mixture, 44100, umx_ext.Options(split=False))["vocals"]
    exact_sdr = frame_sdr(vocals, exact, 44100)
    seconds = exact.shape[-1] // 44100
    rows = []
    for context_s in CONTEXTS_S:
        blocks = model.separate(mixture, 44100, umx_ext.Options(segment_s=CORE_S, overlap_s=context_s))["vocals"]
        difference = (blocks - exact).square()
        total_db = 10 * math.log10(float(difference.mean() / exact.square().mean()) + 1e-30)
        by_second = difference[:, : seconds * 44100].reshape(2, seconds, 44100).mean(dim=(0, 2))
        worst_db = 10 * math.log10(float(by_second.max() / exact.square().mean()) + 1e-30)
        change = (frame_sdr(vocals, blocks, 44100) - exact_sdr).abs()
        change = change[torch.isfinite(change)]
        rows.append(
            [
                f"{context_s:g}" + (" (default)" if context_s == umx_ext.Options().overlap_s else ""),
                f"{total_db:.0f}",
                f"{worst_db:.0f}",
                f"{float(change.max()):.3f}",
                f"{float(np.median(change)):.4f}",
            ]
        )
    table = {
        "columns": [
            "context on each side, s",
            "vocals' difference from the exact, dB",
            "in the worst second, dB",
            "largest change of a second's SDR, dB",
            "median change, dB",
        ],
        "rows": rows,
        "note": f"The {len(paths)} validation songs of the 7-second sample in one recording ({seconds} s), cores of "
        f"{CORE_S} s: a cut every two songs, so far harsher than the default core. {machine()}.",
    }
    print(render(table))
    if arguments.model is None:
        publish("context", table)


if __name__ == "__main__":
    main()
