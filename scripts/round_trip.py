"""Take a song apart, put it together again, and see how near it comes: python scripts/round_trip.py SONG [--start 30]

The song is separated by the default model. Its vocals are made raw again (a random equaliser, a random level, expanded
dynamics; `umx_ext.mixing.anchors.raw_take`), planned and mixed over the song's own accompaniment as
`umx-ext mix` would, and compared with the song: the loudness of the vocals over the accompaniment, and the distance of
the features of `umx-ext evaluate-mix`. A second row asks for the balance that was measured in the song. Two more tell
what the figures mean: the raw vocals merely added, and a mix of settings drawn at random. All are compared at the
song's loudness, and the figures are means over several raw takes.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

import umx_ext
from umx_ext import audio, levels
from umx_ext.mixing.anchors import random_mix, raw_take
from umx_ext.mixing.features import compare
from umx_ext.mixing.settings import PRESETS
from umx_ext.mixing.vocal import plan, processed
from umx_ext.stems import Stems


@dataclass(frozen=True)
class Row:
    """A way to mix the song, as means over raw takes.

    Attributes:
        off_lu: how far vocals minus accompaniment is from the song's own, either way.
        loudness_db, spectral_db, dynamics_db: distance of the features from the song's.
    """

    mix: str
    off_lu: float
    loudness_db: float
    spectral_db: float
    dynamics_db: float


def balance_lu(vocals: Tensor, accompaniment: Tensor, sample_rate: int) -> float:
    vocals, accompaniment = levels.as_stereo(vocals), levels.as_stereo(accompaniment)
    return levels.integrated_lufs(vocals, sample_rate) - levels.integrated_lufs(accompaniment, sample_rate)


def round_trip(
    song: str | os.PathLike[str],
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    preset: str = "studio",
    takes: int = 4,
) -> list[Row]:
    """The ways to mix, each as the mean over so many raw takes of the song's vocals."""
    waveform, rate = audio.read(song, start_s=start_s, duration_s=duration_s)
    original = levels.as_stereo(waveform)
    found = Stems(dict(umx_ext.separate(original, rate)), rate)
    own_lu = balance_lu(found["vocals"], found["accompaniment"], rate)
    rows: dict[str, list[list[float]]] = {}
    for seed in range(takes):
        for name, (mix, relative_lu) in mixes(found, own_lu, preset, seed).items():
            gap_lu = levels.integrated_lufs(original, rate) - levels.integrated_lufs(mix, rate)
            groups = compare(mix * 10 ** (gap_lu / 20), original, rate).groups
            distances = [groups[group].mean_db for group in ("loudness", "spectral", "dynamics")]
            rows.setdefault(name, []).append([abs(relative_lu - own_lu), *distances])
    return [Row(name, *np.mean(values, axis=0).tolist()) for name, values in rows.items()]


def mixes(found: Stems, own_lu: float, preset: str, seed: int) -> dict[str, tuple[Tensor, float]]:
    """Mixes of one raw take, and the balance in each."""
    rate = found.sample_rate
    raw = raw_take(found, np.random.default_rng(seed))
    backing = levels.as_stereo(raw["accompaniment"])
    random = random_mix(raw, np.random.default_rng([seed, 1]))
    done = {}
    # The vocals come with the song's own reverberation: a second one is not what is missing.
    settings = replace(PRESETS[preset], reverb=False)
    for name, wanted in ((preset, settings), (f"{preset}, song's balance", replace(settings, vocal_db=own_lu))):
        parts = processed(raw, plan(raw, wanted)[0])
        done[name] = parts.mixture, balance_lu(parts["vocals"], parts["accompaniment"], rate)
    return {
        **done,
        "unprocessed sum": (raw["vocals"] + backing, balance_lu(raw["vocals"], backing, rate)),
        "random mix": (random, balance_lu(random - backing, backing, rate)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("song", type=Path)
    parser.add_argument("--start", type=float, default=0.0, help="seconds")
    parser.add_argument("--duration", type=float, help="seconds; all of it if not given")
    parser.add_argument("--preset", choices=list(PRESETS), default="studio")
    parser.add_argument("--takes", type=int, default=4)
    arguments = parser.parse_args()
    rows = round_trip(
        arguments.song,
        start_s=arguments.start,
        duration_s=arguments.duration,
        preset=arguments.preset,
        takes=arguments.takes,
    )
    print(f"{'mix':<24}{'balance off, LU':>16}{'loudness, dB':>14}{'spectral, dB':>14}{'dynamics, dB':>14}")
    for row in rows:
        figures = (row.loudness_db, row.spectral_db, row.dynamics_db)
        print(f"{row.mix:<24}{row.off_lu:>16.2f}" + "".join(f"{figure:>14.2f}" for figure in figures))


if __name__ == "__main__":
    main()
