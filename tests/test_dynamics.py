"""The compressor: against a loop over samples, and against what its settings promise."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import reference_effects
from umx_ext.errors import AudioError
from umx_ext.mixing.dynamics import Compressor, excess_db, gain_reduction_db, leaking_maximum
from umx_ext.mixing.effects import Gain

SETTINGS = [
    Compressor(-24, 4, 7.5, 400, 6, 3),
    Compressor(-40, 1000, 0.5, 30, 0, 0),
    Compressor(-30, 2, 0, 50, 12, -2),
    Compressor(-30, 8, 20, 0, 3),
    Compressor(-10, 3, 0, 0, 0),
    Compressor(-30, 8, 0.001, 0.002, 3),  # time constants below one sample
    Compressor(-20, 5, 300, 10000, 40),
]


def music(samples: int, sample_rate: int, seed: int = 0) -> Tensor:
    """Noise whose level jumps every 50 ms by up to 60 dB, with pauses. Double precision `(2, samples)`."""
    generator = torch.Generator().manual_seed(seed)
    frame = sample_rate // 20
    levels = 10 ** (-3 * torch.rand(samples // frame + 1, generator=generator, dtype=torch.float64))
    levels[::7] = 0
    envelope = levels.repeat_interleave(frame)[:samples]
    return envelope * torch.randn(2, samples, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("compressor", SETTINGS, ids=range(len(SETTINGS)))
def test_every_sample_equals_the_recursion_in_a_loop(compressor):
    x = music(40000, 16000)  # more than one block
    slow, reduction = reference_effects.compressor(x.numpy(), 16000, **asdict(compressor))
    assert np.abs(gain_reduction_db(compressor, x, 16000).numpy() - reduction).max() < 1e-10
    assert np.abs(compressor(x, 16000).numpy() - slow).max() < 1e-10
    assert (compressor(x.float(), 16000).double() - torch.from_numpy(slow)).abs().max() < 2e-5


def test_the_loops_are_equal_on_a_recorded_voice(data):
    from umx_ext import audio

    song = sorted((data / "mir1k" / "train").iterdir())[1]
    vocals, rate = audio.read(song / "vocals.opus")
    vocals = vocals[:, : 2 * rate]
    compressor = Compressor(-30, 6)
    slow, reduction = reference_effects.compressor(vocals.double().numpy(), rate, **asdict(compressor))
    assert reduction.max() > 5
    assert np.abs(compressor(vocals, rate).numpy() - slow).max() < 1e-6


@pytest.mark.parametrize("leak", [1e-30, 0.1, 0.9, 0.9999, 1 - 1e-9])
@pytest.mark.parametrize("before", [0.0, 5.0])
def test_a_leaking_maximum_equals_its_loop(leak, before):
    values = np.random.default_rng(3).standard_normal(3000) * np.repeat([1.0, 0.0, 1e-12, 30.0, 1.0], 600)
    z, slow = before, []
    for value in values:
        z = max(value, leak * z)
        slow.append(z)
    assert np.allclose(leaking_maximum(values, leak, before), slow, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("knee_db", [0.0, 6.0, 20.0])
@pytest.mark.parametrize("ratio", [1.0, 2.0, 1000.0])
def test_the_static_curve_is_the_one_of_three_cases(ratio, knee_db):
    levels = np.linspace(-60, 0, 601)
    three = [reference_effects.static_curve(level, -24, ratio, knee_db) for level in levels]
    assert np.abs(levels - excess_db(levels + 24, ratio, knee_db) - three).max() < 1e-12


@pytest.mark.parametrize("level_db", [-50, -27, -24, -21, -12, 0])
@pytest.mark.parametrize("knee_db", [0.0, 6.0])
def test_a_steady_sine_comes_out_on_the_static_curve(level_db, knee_db):
    rate = 44100
    time = torch.arange(3 * rate) / rate
    sine = 10 ** (level_db / 20) * torch.sin(2 * math.pi * 1000 * time).expand(2, -1)
    out = Compressor(-24, 4, knee_db=knee_db)(sine, rate)[:, -rate:]
    out_db = level_db + 20 * math.log10(float(out.norm() / sine[:, -rate:].norm()))
    assert out_db == pytest.approx(reference_effects.static_curve(level_db, -24, 4, knee_db), abs=0.1)


def test_closed_forms_of_the_knee():
    assert excess_db(np.array([0.0]), 4.0, 8.0)[0] == pytest.approx(0.75 * 8 / 8)  # (1 - 1/R) W / 8 at the threshold
    assert excess_db(np.array([0.0, 10.0]), 4.0, 0.0).tolist() == [0.0, 7.5]
    assert excess_db(np.array([-4.0, 4.0]), 4.0, 8.0).tolist() == pytest.approx([0.0, 3.0])  # meets both straight lines


def test_attack_and_release_take_their_time_to_63_percent():
    rate, attack_ms, release_ms = 48000, 10.0, 200.0
    compressor = Compressor(-40, 4, attack_ms, release_ms, 0)
    step = torch.full((1, 3 * rate), 1e-3)
    step[:, rate : 2 * rate] = 1.0  # 40 dB over: 30 dB of reduction
    curve = gain_reduction_db(compressor, step, rate)
    assert curve[:rate].max() < 1e-6 and float(curve[2 * rate - 1]) == pytest.approx(30, abs=1e-3)
    reached = int((curve[rate:] >= 30 * (1 - math.exp(-1))).nonzero()[0]) / rate
    left = int((curve[2 * rate :] <= 30 * math.exp(-1)).nonzero()[0]) / rate
    assert reached == pytest.approx(attack_ms / 1000, rel=0.02)
    # The release is smoothed by the attack once more: two one-pole filters one after the other.
    assert left == pytest.approx(release_ms / 1000, rel=0.1)
    assert left > release_ms / 1000


def test_both_channels_get_the_gain_of_the_louder_one():
    x = music(20000, 16000)
    x[1] *= 0.01
    compressor = Compressor(-30, 4)
    out = compressor(x, 16000)
    gain = 10 ** (-gain_reduction_db(compressor, x, 16000) / 20)
    assert torch.allclose(out, x * gain, atol=1e-12)
    assert torch.allclose(gain_reduction_db(compressor, x, 16000), gain_reduction_db(compressor, x.flip(0), 16000))


def test_a_doubled_mono_voice_is_not_louder_to_the_side_chain():
    x = music(20000, 16000)[:1]
    compressor = Compressor(-30, 4)
    assert torch.equal(compressor(x.expand(2, -1), 16000)[1:], compressor(x, 16000))


def test_ratio_one_is_the_identity_and_with_makeup_a_gain():
    x = music(20000, 16000).float()
    assert torch.equal(Compressor(-60, 1)(x, 16000), x)
    assert torch.allclose(Compressor(-60, 1, makeup_db=5)(x, 16000), Gain(5)(x, 16000), rtol=1e-6)


def test_what_stays_below_the_threshold_is_untouched_to_the_bit():
    x = music(20000, 16000).float()
    x = x * (0.1 / x.abs().max())
    assert torch.equal(Compressor(-19, 8, knee_db=0)(x, 16000), x)
    assert gain_reduction_db(Compressor(-19, 8, knee_db=0), x, 16000).max() < 1e-20


def test_silence_after_sound_ends_in_no_denormal_numbers():
    x = torch.zeros(2, 200_000)
    x[:, :1000] = 1.0
    curve = gain_reduction_db(Compressor(-40, 4, 0.1, 1), x.double(), 16000)
    assert curve.isfinite().all() and curve.min() > 1e-32
    assert curve[-1] < 1e-20


def test_gain_reduction_wants_one_waveform():
    with pytest.raises(AudioError, match="channels, samples"):
        gain_reduction_db(Compressor(), torch.zeros(2, 2, 9), 16000)
    assert gain_reduction_db(Compressor(), torch.zeros(2, 0), 16000).shape == (0,)
