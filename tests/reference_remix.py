"""Slow, obvious twins of the remixes: plain loops over the published formulas, in double precision.

`wsj0_mix` restates `dynamic_mixing.py` of speechbrain's recipe WSJ0Mix with its `rescale(..., scale="dB")`;
`audiosep_mix` the `SegmentMixer` of AudioSep's `waveform_mixers.py`. Both are told what was drawn. `first_draw` is how
examples were drawn when the first model was trained; its log is replayed with today's code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from umx_ext.training.gains import active_level

STEMS = ("vocals", "drums", "bass", "other")


def wsj0_mix(sources: Sequence[np.ndarray], gains_db: Sequence[float]) -> tuple[np.ndarray, list[np.ndarray]]:
    """(mixture, sources) of mono signals `(samples,)` that were given the levels `gains_db`."""
    scaled = []
    for source, gain_db in zip(sources, gains_db, strict=True):
        total = 0.0
        for value in source:
            total += abs(float(value))
        amplitude = total / len(source) + 1e-14
        scaled.append(source.astype(np.float64) / amplitude * 10 ** (gain_db / 20))
    mixture = sum(scaled)
    highest = max(abs(mixture).max(), *(abs(source).max() for source in scaled))
    return mixture / highest * 0.9, [source / highest * 0.9 for source in scaled]


def audiosep_mix(
    segment: np.ndarray, interferers: Sequence[np.ndarray], drawn_db: Sequence[int], sum_db: int
) -> tuple[np.ndarray, np.ndarray]:
    """(mixture, segment) as AudioSep mixes them, whatever the number of channels."""

    def matched(audio: np.ndarray, db: int) -> np.ndarray:
        ratio = math.sqrt(np.mean(audio**2) / max(np.mean(segment**2), 1e-10))
        return audio / min(max(ratio, 0.02), 50.0) * 10 ** (db / 20)

    noise = sum(matched(audio.astype(np.float64), db) for audio, db in zip(interferers, drawn_db, strict=True))
    noise = matched(noise, sum_db)
    mixture = segment + noise
    highest = abs(mixture).max()
    if highest > 1:
        return mixture * 0.9 / highest, segment * 0.9 / highest
    return mixture, segment


def first_draw(pack, rng: np.random.Generator, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """(mixture, vocals) as the remixer of the first model drew them, with its shares."""
    songs = {source: list(pack.songs("train", source).values()) for source in ("musdb18", "mir1k")}

    def song(source):
        return songs[source][int(rng.integers(len(songs[source])))]

    def start(entry):
        return int(rng.integers(0, max(0, entry.samples - samples) + 1))

    def read(entry, first, swap):
        waveform = pack.read(entry, first, samples)
        return np.repeat(waveform, 2, axis=0) if len(waveform) == 1 else waveform[::-1] if swap else waveform

    stems = {}
    if rng.random() < 0.06:
        clip = song("mir1k")
        first = start(clip["vocals"])
        stems = {"vocals": read(clip["vocals"], first, False), "other": read(clip["accompaniment"], first, False)}
    else:
        base = song("musdb18")
        first = start(base["vocals"])
        swap = rng.random() < 0.5
        kind = rng.random()
        for name in STEMS:
            if kind < 0.25 or (name != "vocals" and kind < 0.55):
                stems[name] = read(base[name], first, swap)
                continue
            entry = song("musdb18")[name]
            if name == "vocals" and rng.random() < 0.15:
                entry = song("mir1k")["vocals"]
            own = start(entry)
            stems[name] = read(entry, own, rng.random() < 0.5)
        if rng.random() < 0.03:
            stems["vocals"] = np.zeros_like(stems["vocals"])
    level_db = np.clip(rng.normal(-27.43, 2.57), -45, 0)
    gains_db = [level_db, *np.clip(level_db + rng.normal(-2.51, 2.66, len(stems) - 1), -45, 0)]
    for (name, stem), gain_db in zip(stems.items(), gains_db, strict=True):
        level, active = active_level(stem, pack.sample_rate)
        if active >= 0.05:
            stems[name] = stem * 10 ** (gain_db / 20) / level
    mixture = sum(stems.values())
    highest = max(np.abs(signal).max() for signal in (mixture, *stems.values()))
    return mixture * 0.9 / highest, stems["vocals"] * 0.9 / highest
