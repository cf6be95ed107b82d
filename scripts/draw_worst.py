"""The embedded model's ten worst validation songs as pictures: python scripts/draw_worst.py DATA

DATA holds `musdb18-7/`. A row is a song, named with its vocals SDR: the mixture, the true vocals, the vocals found, and
where they differ: red is what was added, blue what was lost. 96 mel bands to 8 kHz, 60 dB below each song's loudest
band. Writes `docs/worst.jpg`. Needs the extra `research`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor

import umx_ext
from umx_ext.corpora import find_songs, targets
from umx_ext.evaluation.sdr import median_sdr
from umx_ext.spectral import mel_filters, stft

ROOT = Path(__file__).resolve().parent.parent
RATE, N_FFT, HOP, BANDS, TOP_HZ, RANGE_DB = 44100, 4096, 1024, 96, 8000.0, 60.0
WORST = 10


def bands_db(waveform: Tensor) -> Tensor:
    """`(channels, samples)` -> `(bands, frames)`."""
    power = stft(waveform, N_FFT, HOP).abs().square().mean(dim=0)
    return 10 * (mel_filters(N_FFT, RATE, BANDS, TOP_HZ).mT @ power + 1e-10).log10()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    arguments = parser.parse_args()
    from matplotlib.figure import Figure

    model = umx_ext.load()
    songs = []
    for song in find_songs(arguments.data / "musdb18-7", "valid"):
        truth = song.read()
        vocals, found = targets(truth)["vocals"], model.separate(truth.mixture, RATE)["vocals"]
        views = [bands_db(waveform) for waveform in (truth.mixture, vocals, found)]
        songs.append((median_sdr(vocals, found, RATE), song.name, views))
    songs = sorted(songs, key=lambda entry: entry[0])[:WORST]
    figure = Figure(figsize=(15, 1.9 * WORST), layout="constrained")
    axes = figure.subplots(WORST, 4, sharex="col")
    for row, (sdr, name, views) in zip(axes, songs, strict=True):
        top = float(views[0].max())
        shown = [view.clamp_min(top - RANGE_DB) for view in views]
        for axis, view in zip(row, shown, strict=False):
            axis.imshow(view, origin="lower", aspect="auto", vmin=top - RANGE_DB, vmax=top, cmap="magma")
        row[3].imshow(shown[2] - shown[1], origin="lower", aspect="auto", vmin=-30, vmax=30, cmap="RdBu_r")
        row[0].set_ylabel(f"{sdr:.1f} dB", fontsize=11)
        row[0].set_title(name[:44], fontsize=8, loc="left")
        for axis in row:
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0][1:], ("true vocals", "vocals found", "added (red), lost (blue)"), strict=True):
        axis.set_title(title, fontsize=9, loc="left")
    target = ROOT / "docs" / "worst.jpg"
    temporary = target.with_suffix(".tmp.jpg")
    figure.savefig(temporary, dpi=70, pil_kwargs={"quality": 80})
    temporary.replace(target)
    for sdr, name, _ in songs:
        print(f"{sdr:6.2f}  {name}")


if __name__ == "__main__":
    main()
