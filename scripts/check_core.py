"""The installed package with nothing but its core dependencies separates a song: python scripts/check_core.py

Run it from an empty directory with an interpreter in which umx_ext is installed. A song is taken from UMX_EXT_DATA if
that is set, otherwise made. Fails if a package of the research extra was imported or installed.
"""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import soundfile
import torch

RESEARCH = ("torchaudio", "openunmix", "librosa", "musdb", "museval", "norbert")


def main() -> None:
    present = [name for name in RESEARCH if importlib.util.find_spec(name)]
    assert not present, f"this environment has {present}: it does not show that the core stands alone"
    data = os.environ.get("UMX_EXT_DATA")
    song = Path("song.ogg" if data else "song.wav")
    if data:
        song.write_bytes((Path(data) / "songs" / "lets_go_fishin.ogg").read_bytes())
    else:
        time = torch.arange(5 * 44100) / 44100
        tone = 0.3 * torch.sin(2 * math.pi * 440 * time)
        soundfile.write(song, torch.stack([tone, tone], dim=1).numpy(), 44100)
    command = [sys.executable, "-m", "umx_ext", "separate", str(song)]
    subprocess.run(command, check=True)
    folder = Path("separated/umx_ext/song")
    vocals, rate = soundfile.read(folder / "vocals.wav", dtype="int16")
    accompaniment, _ = soundfile.read(folder / "accompaniment.wav", dtype="int16")
    mixture, _ = soundfile.read(song, dtype="float32")
    assert rate == soundfile.info(song).samplerate and len(vocals) == len(accompaniment) == len(mixture)
    total = (vocals.astype("int32") + accompaniment).astype("float64") / 32768
    apart = abs(total - mixture).max()
    print(f"core alone: {len(mixture) / rate:.0f} s separated; the sum is off by {apart * 32768:.2f} steps of 16 bits")
    assert apart <= 1.01 / 32768 or abs(mixture).max() > 1 - 1 / 32768
    import umx_ext

    umx_ext.load()
    imported = [name for name in RESEARCH if name in sys.modules]
    assert not imported, imported


if __name__ == "__main__":
    main()
