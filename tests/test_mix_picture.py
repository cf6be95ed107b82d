"""The picture of a mix."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.takes import (
    RATE,
    Run,
    band,
    caller,
    everything_below,
    expect_one_line,
    nothing,
    pair,
    voice,
)
from umx_ext import levels
from umx_ext.mixing import picture, vocal
from umx_ext.mixing.effects import Compressor, Gain, ParametricEq, Reverb, gain_reduction_db
from umx_ext.stems import Stems


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    return caller(tmp_path, monkeypatch, capfd)


# ------------------------------------------------------------------------------------------------ the picture


def test_the_picture_is_a_png_of_what_was_done(run):
    pytest.importorskip("matplotlib")
    chain = nothing(ParametricEq.from_dict({"kind": "parametric_eq", "bands": [{"frequency_hz": 900, "gain_db": 4}]}),
                    Compressor(threshold_db=-30), Reverb(t60_s=1.0, dry_wet=0.2))  # fmt: skip
    answer = run(*pair(), "-o", "m.wav", "--plot", "m.png", "--chain", chain)
    assert answer.code == 0 and "plot m.png" in answer.out
    from matplotlib.image import imread

    image = imread("m.png")
    assert image.shape[0] > 800 and image.shape[1] > 1200 and image[..., :3].std() > 0.05


@pytest.mark.parametrize(
    "seconds, rate, loud, chain",
    [
        (0.3, 8000, 1, ()),
        (2.0, 16000, 0, (Compressor(threshold_db=-40), Reverb(dry_wet=1.0))),
        (35.0, 16000, 1, (Compressor(threshold_db=20), Reverb(t60_s=0.3))),
    ],
)
def test_a_picture_can_be_drawn_of_anything(seconds, rate, loud, chain):
    pytest.importorskip("matplotlib")
    before = Stems({"vocals": loud * voice(seconds, rate, 2), "accompaniment": band(seconds, rate)}, rate)
    after = vocal.processed(before, {"vocals": chain})
    png = picture.draw(before, after, {"vocals": chain}, title="$a_b$", subtitle="$x")
    assert png.startswith(b"\x89PNG")


def test_the_gain_reduction_that_is_drawn_is_that_of_the_sound_at_the_compressor():
    take, squeeze = voice(channels=2), Compressor(threshold_db=-30, ratio=4)
    drawn = picture._squeezed(take, (Gain(20.0), squeeze, Gain(-20.0), squeeze), RATE)
    total = gain_reduction_db(squeeze, 10 * take, RATE)
    total += gain_reduction_db(squeeze, 0.1 * squeeze(10 * take, RATE), RATE)
    assert drawn is not None and drawn.most_db == pytest.approx(float(total.max()), abs=1e-3)
    assert drawn.highest.max() == pytest.approx(drawn.most_db) and (drawn.mean <= drawn.highest + 1e-6).all()
    assert picture._squeezed(take, (Gain(3.0),), RATE) is None


def test_the_reverberation_is_drawn_as_far_below_the_voice_as_noise_finds_it():
    reverb = Reverb(t60_s=1.2, dry_wet=0.25)
    sound = torch.randn(1, 6 * RATE, generator=torch.Generator().manual_seed(1)).repeat(2, 1)
    wet = reverb(sound, RATE) - (1 - reverb.dry_wet) * sound
    tail = slice(3 * RATE, None)
    measured_db = levels.rms_db(wet[:, tail]) - levels.rms_db((1 - reverb.dry_wet) * sound[:, tail])
    assert picture._wet_db(reverb, RATE) == pytest.approx(measured_db, abs=0.7)


def test_a_picture_without_matplotlib_is_refused_before_the_work(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    before = pair()
    expect_one_line(run(*before, "-o", "m.wav", "--plot", "m.png"), 2, "pip install matplotlib")
    assert everything_below() == ["backing.wav", "take.wav"]
