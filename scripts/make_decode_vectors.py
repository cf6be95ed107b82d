"""Store what musdb decodes from songs of MUSDB18's 7-second sample: python scripts/make_decode_vectors.py DATA

DATA holds `musdb18-7/`; ffmpeg and ffprobe are on the path. Writes `tests/vectors/musdb_decoding.json`: for each stream
of some songs of the test part, and for musdb's accompaniment, the SHA-256 of its 16-bit samples, a few of them, and the
energy of every half second, with the versions of what decoded them; and, since the FFmpeg inside PyAV may be another
one, the samples at which our decoding differs, with the version of that. Prints how far the two are apart.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import av
import musdb
import numpy as np
from torch import Tensor

from umx_ext.corpora import MUSDB_STREAMS, find_songs, targets

TARGET = Path(__file__).resolve().parent.parent / "tests" / "vectors" / "musdb_decoding.json"
SONGS = ("Al James - Schoolboy Facination", "PR - Happy Daze", "Zeno - Signs")
HALF_SECOND = 22050


def steps(samples: np.ndarray | Tensor) -> np.ndarray:
    """Whole 16-bit steps; the sum of three stems goes beyond int16."""
    scaled = np.asarray(samples, np.float64) * 32768
    whole = np.rint(scaled).astype("<i4")
    assert np.array_equal(whole, scaled), "these are not 16-bit samples"
    return whole


def entry(theirs: np.ndarray, ours: np.ndarray, positions: np.ndarray) -> dict[str, object]:
    """Both (samples, channels), int32."""
    assert theirs.shape == ours.shape, (theirs.shape, ours.shape)
    differs = np.flatnonzero(theirs != ours)
    halves = np.array_split(theirs.astype(np.int64), range(HALF_SECOND, len(theirs), HALF_SECOND))
    return {
        "samples": len(theirs),
        "sha256_int32": hashlib.sha256(theirs.tobytes()).hexdigest(),
        "values": theirs[positions].tolist(),
        "energy": [int((half**2).sum()) for half in halves],
        "differs_at": differs.tolist(),
        "by": (theirs - ours).ravel()[differs].tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    root = parser.parse_args().data / "musdb18-7"
    ours = {song.name: song for song in find_songs(root, "test")}
    songs: dict[str, dict[str, object]] = {}
    worst, apart, total = 0, 0, 0
    for track in musdb.DB(root=str(root), subsets="test"):
        stems = ours[track.name].read()
        theirs = dict(zip(MUSDB_STREAMS, track.stems, strict=True))
        mine = {"mixture": stems.mixture, **stems}
        if track.name in SONGS:  # decodes three streams once more
            theirs["accompaniment"] = track.targets["accompaniment"].audio
            mine["accompaniment"] = targets(stems)["accompaniment"]
        decoded = {name: (steps(theirs[name]), steps(mine[name].mT)) for name in theirs}
        samples = len(decoded["mixture"][0])
        positions = np.sort(np.random.default_rng(0).choice(samples - 2, 30, replace=False))
        positions = np.concatenate([[0], positions, [samples - 2, samples - 1]])
        entries = {name: entry(*pair, positions) for name, pair in decoded.items()}
        for name, (their_steps, my_steps) in decoded.items():
            if name != "accompaniment":
                worst = max(worst, int(abs(their_steps - my_steps).max()))
                apart += int((their_steps != my_steps).sum())
                total += my_steps.size
        if track.name in SONGS:
            songs[track.name] = {"positions": positions.tolist(), "streams": entries}
    first = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    stored = {
        "made_by": "scripts/make_decode_vectors.py, from MUSDB18's 7-second sample",
        "theirs": {"ffmpeg": first, "stempeg": version("stempeg"), "musdb": version("musdb")},
        "ours": {
            "av": av.__version__,
            "libavcodec": ".".join(map(str, av.library_versions["libavcodec"])),
            "machine": platform.machine(),
        },
        "layout": "16-bit steps (1/32768), (samples, channels), interleaved, little-endian int32",
        "songs": songs,
    }
    TARGET.parent.mkdir(exist_ok=True)
    temporary = TARGET.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(stored, separators=(",", ":")).replace('"differs_at"', '\n"differs_at"') + "\n")
    os.replace(temporary, TARGET)
    print(f"{TARGET} ({TARGET.stat().st_size / 2**10:.0f} KiB)")
    print(f"{total} samples of {len(ours)} songs: {apart} differ ({apart / total:.2e}), by {worst} step at most")


if __name__ == "__main__":
    main()
