"""What the embedded model makes of things it never saw: python scripts/measure_odd_inputs.py DATA

DATA holds `musdb18-7/` and `songs/`. Speech is a paragraph said by espeak-ng, a synthetic voice, where that program is
installed; alone, and 5 dB above the songs without their vocals. Each row is one input and how far below it, in RMS,
the vocals lie that the model finds: much of a singer alone, little of music without one. Writes
`docs/odd_inputs.json` and the tables.
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from tables import machine, publish, render
from torch import Tensor

import umx_ext
from umx_ext import audio
from umx_ext.corpora import find_songs, targets

RATE = 44100
SAID = (
    "The trains to the coast leave every half hour, except on Sundays. If you would like to take a bicycle, please use "
    "the last carriage, and mind the gap when you get off. There is a small cafe in the second carriage, which sells "
    "coffee, sandwiches and the morning's papers. Thank you for travelling with us, and have a pleasant journey."
)


def inputs(data: Path) -> dict[str, tuple[Tensor, int, str]]:
    """What goes in, its rate, and what is to be hoped for."""
    songs = [song.read() for song in find_songs(data / "musdb18-7", "valid")]
    vocals, rest = (torch.cat([targets(song)[name] for song in songs], dim=1) for name in ("vocals", "accompaniment"))
    drums, song = (audio.read(data / "songs" / name) for name in ("choice_drum_bass.ogg", "lets_go_fishin.ogg"))
    other = audio.read(data / "songs" / "example_mono.mp3")
    generator = torch.Generator().manual_seed(0)
    mixture = vocals + rest
    speech = spoken()
    said: dict[str, tuple[Tensor, int, str]] = {}
    if speech is not None:
        behind = rest[:, : speech.shape[-1]]
        behind = behind * (speech.square().mean() / behind.square().mean()).sqrt() * 10 ** (-5 / 20)
        said = {
            "speech (espeak-ng)": (speech, RATE, "a voice"),
            "speech over music": (speech + behind, RATE, f"a voice, {below_db(speech, speech + behind)}"),
        }
    return {
        **said,
        "silence": (torch.zeros(2, 10 * RATE), RATE, "nothing"),
        "noise, -20 dBFS": (0.1 * torch.randn(2, 10 * RATE, generator=generator), RATE, "nothing"),
        "drum and bass, no singer (`choice_drum_bass.ogg`)": (*drums, "nothing"),
        "the 14 validation songs without their vocals": (rest, RATE, "nothing"),
        "their vocals alone": (vocals, RATE, "everything"),
        "the songs as they are": (mixture, RATE, f"the vocals, {below_db(vocals, mixture)}"),
        "in mono": (mixture.mean(dim=0, keepdim=True), RATE, "as before"),
        "through a telephone (8 kHz, mono)": (telephone(mixture), 8000, "as before"),
        "32-bit float, 40 dB above full scale": (100 * mixture / mixture.abs().max(), RATE, "as before"),
        "-80 dBFS": (1e-4 * mixture / mixture.abs().max(), RATE, "as before"),
        "a whole song (`lets_go_fishin.ogg`)": (*song, "a voice"),
        "another, in mono (`example_mono.mp3`)": (*other, "a voice"),
    }


def spoken() -> Tensor | None:
    """A paragraph in a synthetic voice, `(2, samples)`; None where espeak-ng is not installed."""
    if shutil.which("espeak-ng") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "said.wav")
        subprocess.run(["espeak-ng", "-w", str(path), SAID], check=True)
        waveform, rate = audio.read(path)
    return audio.resample(waveform, rate, RATE).expand(2, -1)


def telephone(waveform: Tensor) -> Tensor:
    return audio.resample(waveform.mean(dim=0, keepdim=True), RATE, 8000)


def below_db(vocals: Tensor, whole: Tensor) -> str:
    level = float(vocals.square().mean()) / max(float(whole.square().mean()), 1e-30)
    return f"{-10 * math.log10(level):.1f} dB below" if level > 0 else "silence"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    arguments = parser.parse_args()
    model = umx_ext.load()
    rows = []
    for name, (waveform, rate, hoped) in inputs(arguments.data).items():
        found = model.separate(waveform, rate)["vocals"]
        if not found.isfinite().all():
            raise SystemExit(f"{name}: the vocals are not finite")
        rows.append([name, hoped, below_db(found, waveform)])
        print(rows[-1])
    table = {
        "columns": ["input", "vocals to be found", "vocals found, RMS beside the input's"],
        "rows": rows,
        "note": f"Default settings. {machine()}.",
    }
    print(render(table))
    publish("odd_inputs", table)


if __name__ == "__main__":
    main()
