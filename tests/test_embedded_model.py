"""The model that ships: where it comes from, how good it is, and what it does with things it never saw."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import umx_ext
from umx_ext import audio
from umx_ext.corpora import MUSDB_STREAMS, find_songs, targets
from umx_ext.evaluation.sdr import median_sdr
from umx_ext.separation import pretrained

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = Path(umx_ext.__file__).parent / "weights"
FILE = WEIGHTS / "umx_ext.safetensors"


@pytest.fixture(scope="module")
def model() -> umx_ext.Separator:
    return umx_ext.load()


def level_db(waveform: torch.Tensor) -> float:
    return 10 * math.log10(float(waveform.square().mean()) + 1e-30)


def test_it_is_small_and_says_where_it_comes_from(model):
    assert FILE.stat().st_size <= 20e6
    metadata = pretrained.read_metadata(FILE)
    for field in ("format_version", "config", "commit", "data_sha256", "steps", "seed"):
        assert metadata[field], field
    assert len(metadata["data_sha256"]) == 64
    assert [branch.split("-")[0] for branch in model.config.branches] == ["linear", "mel"]


def test_its_card_and_licence_are_shown():
    assert "MUSDB18" in pretrained.card("umx_ext") and "MIR-1K" in pretrained.card("umx_ext")
    assert "non-commercial" in pretrained.license("umx_ext")


def test_the_fast_mode_is_within_60_db_of_the_exact(model, data):
    """Of the mixture, on songs as they are and far above full scale, and no SDR changes by 0.02 dB."""
    songs = find_songs(data / "musdb18-7", "valid")[:5]
    assert len(songs) == 5
    for song in songs:
        stems = song.read()
        mixture, vocals = stems.mixture, targets(stems)["vocals"]
        for scale in (1.0, 100.0):
            exact, fast = (
                model.separate(mixture * scale, 44100, umx_ext.Options(fast=fast))["vocals"] for fast in (False, True)
            )
            assert level_db(fast - exact) - level_db(mixture * scale) < -60
            change = median_sdr(vocals, fast / scale, 44100) - median_sdr(vocals, exact / scale, 44100)
            assert abs(change) < 0.02


def test_it_meets_its_bar_on_the_30_test_songs(model, data):
    """Vocals 6.1 dB, accompaniment 10.2 dB (medians of one-second frames, then of songs), the voice 10 dB down."""
    vocals_sdr, rest_sdr, left_db, half = [], [], [], []
    names = (ROOT / "docs" / "musdb18_7_test.txt").read_text().splitlines()
    for path in (data / "musdb18-7" / "test" / f"{name}.stem.mp4" for name in names):
        mixture = audio.read(path, stream=0)[0]
        stems = {stem: audio.read(path, stream=index)[0] for stem, index in MUSDB_STREAMS.items() if stem != "mixture"}
        vocals = stems.pop("vocals")
        rest = torch.stack(list(stems.values())).sum(dim=0)
        estimate = model.separate(mixture, 44100)
        vocals_sdr.append(median_sdr(vocals, estimate["vocals"], 44100))
        rest_sdr.append(median_sdr(rest, estimate["accompaniment"], 44100))
        share = float((estimate["accompaniment"] * vocals).sum() / vocals.square().sum())
        left_db.append(20 * math.log10(abs(share)))
        half.append([median_sdr(vocals, mixture / 2, 44100), median_sdr(rest, mixture / 2, 44100)])
    assert len(vocals_sdr) == 30
    # The trivial row first: it shows that this is the protocol whose figures are known.
    assert np.median(half, axis=0) == pytest.approx([0.86, 4.38], abs=0.05)
    assert np.median(vocals_sdr) >= 6.1
    assert np.median(rest_sdr) >= 10.2
    assert np.median(left_db) <= -10.0


# SDR of the vocals and of the accompaniment, dB, of four seconds of three validation songs.
PINNED = {
    "Actions - One Minute Smile": (6.44, 8.88),
    "Fergessen - Nos Palpitants": (10.71, 8.49),
    "Young Griffo - Pennies": (8.95, 14.03),
}


@pytest.mark.parametrize("name", PINNED)
def test_its_scores_stay_what_they_were(model, data, name):
    path = data / "musdb18-7" / "train" / f"{name}.stem.mp4"
    stems = {stem: audio.read(path, stream=index, duration_s=4)[0] for stem, index in MUSDB_STREAMS.items()}
    estimate = model.separate(stems["mixture"], 44100)
    rest = stems["drums"] + stems["bass"] + stems["other"]
    found = (
        median_sdr(stems["vocals"], estimate["vocals"], 44100),
        median_sdr(rest, estimate["accompaniment"], 44100),
    )
    assert found == pytest.approx(PINNED[name], abs=0.05)


def test_without_its_mel_branch_it_is_worse(model, data):
    """The branch is not an ornament: with its gain at zero the same song loses more than half a dB, U-Net or not."""
    path = data / "musdb18-7" / "train" / "Young Griffo - Pennies.stem.mp4"
    mixture, vocals = (audio.read(path, stream=MUSDB_STREAMS[stem])[0] for stem in ("mixture", "vocals"))
    without = copy.deepcopy(model).train(False)  # and drop what its engine has folded
    for net in without.nets.values():
        with torch.no_grad():
            net.gains.zero_()
    scores = [median_sdr(vocals, one.separate(mixture, 44100)["vocals"], 44100) for one in (model, without)]
    assert scores[0] - scores[1] > 0.5


def test_the_voice_of_a_real_song_comes_down(model, data):
    """Where the singer sings (a third of the way in), the vocals hold real energy; the sum stays exact."""
    waveform, rate = audio.read(data / "songs" / "lets_go_fishin.ogg", start_s=10, duration_s=20)
    stems = model.separate(waveform, rate)
    assert -15 < level_db(stems["vocals"]) - level_db(waveform) < 0
    assert torch.equal(stems["accompaniment"], waveform - stems["vocals"])


def test_instrumental_music_leaves_most_in_the_accompaniment(model, data):
    waveform, rate = audio.read(data / "songs" / "choice_drum_bass.ogg", start_s=20, duration_s=30)
    stems = model.separate(waveform, rate)
    assert level_db(stems["vocals"]) - level_db(waveform) < -20


@pytest.mark.parametrize("kind", ["silence", "loud", "square", "telephone", "noise"])
def test_it_explodes_on_nothing(model, kind):
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(44100 * 2) / 44100
    waveform, rate = {
        "silence": (torch.zeros(2, 88200), 44100),
        "loud": (100 * torch.randn(2, 88200, generator=generator), 44100),
        "square": (torch.sign(torch.sin(2 * math.pi * 220 * time)).repeat(2, 1), 44100),
        "telephone": (0.3 * torch.randn(1, 16000, generator=generator), 8000),
        "noise": (0.1 * torch.randn(2, 88200, generator=generator), 44100),
    }[kind]
    vocals = model.separate(waveform, rate)["vocals"]
    assert torch.isfinite(vocals).all()
    assert float(vocals.abs().max()) <= 2 * float(waveform.abs().max())
