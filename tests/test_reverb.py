"""The reverberation: its decay, measured on what was rendered; its network, against a loop over samples."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.signal import butter, fftconvolve, sosfiltfilt
from torch import Tensor

from tests import reference_effects
from umx_ext.errors import AudioError, UsageError
from umx_ext.mixing import reverb as module
from umx_ext.mixing.differentiable import apply_differentiable
from umx_ext.mixing.equaliser import biquad, response
from umx_ext.mixing.reverb import LINES, Reverb, convolve, impulse_response

RATE = 44100
ENGINES = ("fdn", "noise")
PLAIN = Reverb(low_gain_db_per_s=0, high_gain_db_per_s=0)


def octave(waveform: np.ndarray, centre_hz: float, rate: int) -> np.ndarray:
    edges = [centre_hz / math.sqrt(2), min(centre_hz * math.sqrt(2), 0.49 * rate)]
    return sosfiltfilt(butter(4, edges, "bandpass", fs=rate, output="sos"), waveform, axis=-1)


def schroeder_t60(response_: Tensor, centre_hz: float, rate: int = RATE) -> float:
    """Reverberation time from the backward integral's slope between -5 and -30 dB, both channels together."""
    energy = np.square(octave(response_.double().numpy(), centre_hz, rate)).sum(0)
    decay_db = 10 * np.log10(np.cumsum(energy[::-1])[::-1] / energy.sum() + 1e-30)
    part = np.flatnonzero((decay_db < -5) & (decay_db > -30))
    slope = np.polyfit(part / rate, decay_db[part], 1)[0]
    return -60 / slope


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("t60_s", [0.5, 1.7, 4.0])
def test_the_reverberation_time_is_the_one_that_was_asked_for(engine, t60_s):
    rendered = impulse_response(replace(PLAIN, t60_s=t60_s, engine=engine), RATE)
    assert schroeder_t60(rendered, 1000) == pytest.approx(t60_s, rel=0.1)
    default = impulse_response(Reverb(t60_s=1.7, engine=engine), RATE)
    assert schroeder_t60(default, 1000) == pytest.approx(1.7, rel=0.1)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rate", [16000, 44100])
def test_each_octave_decays_as_its_rate_says(engine, rate):
    reverb = Reverb(1.5, 12, 0, 200, -25, 0.6, 3000, -40, 0.6, engine=engine)
    rendered = impulse_response(reverb, rate)
    for centre in (125.0, 500.0, 1000.0, 2000.0, 5000.0):
        expected = -60 / float(reverb.decay_db_per_s(torch.tensor([centre]), rate)[0])
        assert schroeder_t60(rendered, centre, rate) == pytest.approx(expected, rel=0.12), centre


@pytest.mark.parametrize("engine", ENGINES)
def test_high_frequencies_die_sooner_by_default(engine):
    rendered = impulse_response(Reverb(t60_s=2, engine=engine), RATE)
    assert schroeder_t60(rendered, 8000) < 0.85 * schroeder_t60(rendered, 1000)
    assert schroeder_t60(rendered, 8000) == pytest.approx(60 / 40, rel=0.1)  # -30 dB/s and 10 more


def test_the_decay_rate_is_the_limit_of_what_a_line_with_the_cookbooks_shelves_does():
    reverb = Reverb(2, 20, 0, 300, 5, 0.7, 4000, -30, 0.4)
    n_fft, tau = 4096, 1e-6
    coefficients = [
        biquad(shape, *torch.tensor([cut, gain * tau, q], dtype=torch.float64), RATE)
        for shape, cut, gain, q in (("low-shelf", 300.0, 5.0, 0.7), ("high-shelf", 4000.0, -30.0, 0.4))
    ]
    b, a = (torch.stack(side) for side in zip(*coefficients, strict=True))
    per_second = 20 * torch.log10(response(b, a, n_fft).abs()) / tau - 60 / 2
    frequency = torch.arange(1, n_fft // 2, dtype=torch.float64) * RATE / n_fft
    assert torch.allclose(reverb.decay_db_per_s(frequency, RATE), per_second[1:-1].clamp(max=-3), atol=1e-3)


def test_the_network_equals_a_loop_over_samples():
    reverb = replace(PLAIN, t60_s=0.4, room_size=2, seed=5)
    generator = np.random.default_rng(5)
    lengths = module.line_lengths(reverb, 8000, generator)
    signs = generator.choice([-1.0, 1.0], LINES) / 4
    hadamard = np.array([[(-1.0) ** bin(i & j).count("1") for j in range(16)] for i in range(16)]) / 4
    scalars = [10 ** (-3 * length / 8000 / 0.4) for length in lengths]
    slow = reference_effects.network(lengths, scalars, hadamard, signs, hadamard[[1, 2]], 3000)
    assert np.abs(module.network_response(reverb, 8000, 3000) - slow).max() < 1e-12


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 96000])
@pytest.mark.parametrize("room_size", [1, 20, 30])
def test_line_lengths_are_different_primes_around_the_rooms_size(rate, room_size):
    lengths = module.line_lengths(Reverb(room_size=room_size), rate, np.random.default_rng(0))
    assert len(set(lengths)) == LINES
    assert all(length > 1 and all(length % d for d in range(2, length)) for length in lengths)
    if rate * room_size > 40000:
        mean = float(np.mean(lengths)) / rate * 343
        assert mean == pytest.approx(room_size, rel=0.15)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_larger_room_answers_later(engine):
    first = [
        int(impulse_response(replace(PLAIN, t60_s=0.4, room_size=size, engine=engine), RATE).abs().sum(0).nonzero()[0])
        for size in (3, 10, 30)
    ]
    assert first[0] < first[1] < first[2]
    assert first[2] == pytest.approx(0.6 * 30 / 343 * RATE, rel=0.08)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_fade_in_delays_the_maximum_of_the_energy_to_where_the_envelope_has_it(engine):
    def loudest_s(fade_in_s: float) -> float:
        reverb = replace(PLAIN, t60_s=2, room_size=4, fade_in_s=fade_in_s, engine=engine)
        energy = impulse_response(reverb, RATE).square().sum(0).numpy()
        smooth = np.convolve(energy, np.hanning(RATE // 10), "same")
        return float(smooth.argmax()) / RATE

    slow, fast = 3 * math.log(10) / 2, 3 * math.log(10) / 0.8
    expected = math.log(fast / slow) / (fast - slow)  # where exp(-slow t) - exp(-fast t) is largest: 0.18 s
    assert loudest_s(0) < 0.08
    assert loudest_s(0.8) == pytest.approx(expected, abs=0.07)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "reverb",
    [
        Reverb(9, 30, 0, 20000, 6, 0.9, 20, 4, 0.9),  # both shelves ring on, everywhere
        Reverb(9, 10, 0, 300, 6, 0.9, 3000, 4, 0.9),
        Reverb(9, 10, 0, 1000, -80, 0.9, 1000, -80, 0.9),  # only their overshoot does
        Reverb(9, 10, 2, 20, 6, 0.01, 20000, 4, 0.01),
        Reverb(0.1, 30, 0.09, 20, -80, 0.01, 20000, -80, 0.01),
    ],
)
def test_no_setting_is_unstable(engine, reverb):
    rate = 8000
    reverb = replace(reverb, engine=engine)
    rendered = impulse_response(reverb, rate)
    assert rendered.isfinite().all() and rendered.shape[1] <= 10 * rate
    assert float(rendered.square().sum(-1).mean()) == pytest.approx(1, abs=1e-4)
    if engine == "fdn":
        # Far beyond the 10 s that are used, its energy still falls, by 3 dB a second or more.
        long = module.network_response(reverb, rate, 16 * rate)
        energy = np.square(long).sum(0).reshape(-1, 2 * rate).sum(1)
        ratio = energy[2:] / np.maximum(energy[1:-1], 1e-200)
        assert (10 * np.log10(ratio[energy[1:-1] > 1e-20]) < -5).all()


def test_positive_shelves_are_turned_down_only_where_they_must_be():
    assert module.network_shelves(Reverb(2, low_gain_db_per_s=6, high_gain_db_per_s=4), RATE) == (6, 4)
    low, high = module.network_shelves(Reverb(9, low_gain_db_per_s=6, high_gain_db_per_s=-20), RATE)
    assert low == pytest.approx(60 / 9 - 3, rel=0.05) and high == -20


@pytest.mark.parametrize("engine", ENGINES)
def test_channels_are_not_correlated_and_seeds_differ(engine):
    one = impulse_response(Reverb(1.5, engine=engine), RATE)
    other = impulse_response(Reverb(1.5, engine=engine, seed=1), RATE)
    assert abs(float((one[0] * one[1]).sum() / one[0].norm() / one[1].norm())) < 0.2
    assert abs(float((one * other).sum() / one.norm() / other.norm())) < 0.2


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_settings_are_rendered_the_same_after_being_forgotten(engine):
    reverb = Reverb(0.7, engine=engine)
    first = impulse_response(reverb, 16000)
    first.mul_(0)  # a copy: the next caller gets the response as it was
    again = impulse_response(replace(reverb, dry_wet=0.2), 16000)
    assert float(again.abs().max()) > 0
    module._rendered.cache_clear()
    assert torch.equal(impulse_response(reverb, 16000), again)


def test_noise_is_as_loud_wet_as_it_was_dry():
    x = torch.randn(2, 4 * RATE, generator=torch.Generator().manual_seed(0))
    for engine in ENGINES:
        wet = Reverb(0.5, engine=engine, dry_wet=1)(x, RATE)[:, RATE:]
        assert 20 * math.log10(float(wet.norm() / x[:, RATE:].norm())) == pytest.approx(0, abs=0.5)


def test_dry_and_wet_are_mixed_linearly():
    x = torch.randn(2, 9000, generator=torch.Generator().manual_seed(0))
    wet = Reverb(0.5, dry_wet=1)(x, RATE)
    assert torch.allclose(Reverb(0.5, dry_wet=0.3)(x, RATE), 0.7 * x + 0.3 * wet, atol=1e-5)
    assert Reverb(0.5, dry_wet=1)(torch.nn.functional.pad(torch.ones(2, 1), (0, 999)), RATE)[:, :999].abs().sum() == 0


@pytest.mark.parametrize("samples, taps", [(5, 9), (9, 5), (1, 1), (200_000, 1000), (150_000, 90_000)])
def test_convolution_in_blocks_is_a_convolution(samples, taps):
    generator = np.random.default_rng(0)
    x, h = generator.standard_normal((2, samples)), generator.standard_normal((2, taps))
    x[:, samples // 3 : samples * 4 // 5] = 0
    expected = fftconvolve(x, h, axes=-1)[:, :samples]
    assert np.abs(convolve(torch.from_numpy(x), torch.from_numpy(h)).numpy() - expected).max() < 1e-9


def test_one_channel_gets_the_left_response():
    x = torch.randn(1, 9000, generator=torch.Generator().manual_seed(0))
    reverb = Reverb(0.5)
    assert torch.allclose(reverb(x, RATE), reverb(x.expand(2, -1), RATE)[:1], atol=1e-6)


def test_a_fade_in_that_outlasts_the_reverberation_is_refused():
    with pytest.raises(UsageError, match=r"expected fade_in_s \(2 s\) below t60_s \(1.5 s\)"):
        Reverb(t60_s=1.5, fade_in_s=2)
    with pytest.raises(AudioError, match="sample rate"):
        impulse_response(Reverb(), 0)


def test_gradient_descent_finds_a_reverberation_time():
    x = torch.zeros(2, 6000)
    x[:, 0] = 1.0
    target = Reverb(0.6, engine="noise", dry_wet=1.0)(x, 8000)
    t60_s = torch.tensor(0.9, requires_grad=True)
    optimiser = torch.optim.Adam([t60_s], lr=0.05)
    start = Reverb(0.9, engine="noise", dry_wet=1.0)
    for _ in range(50):
        optimiser.zero_grad()
        (apply_differentiable(start, x, 8000, t60_s=t60_s) - target).square().sum().backward()
        optimiser.step()
    assert float(t60_s.detach()) == pytest.approx(0.6, abs=0.03)
