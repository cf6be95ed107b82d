"""The family of effects: its laws, its JSON, and the members that are filters, gains and positions."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import reference_effects
from tests.effect_laws import EXAMPLES, LAWS, LIARS
from tests.peers import import_peer
from umx_ext.errors import AudioError, UsageError
from umx_ext.mixing.differentiable import DIFFERENTIABLE, apply_differentiable, parameters
from umx_ext.mixing.effects import (
    EFFECTS,
    Band,
    Compressor,
    Effect,
    Gain,
    HighPass,
    LowPass,
    Pan,
    ParametricEq,
    Reverb,
    apply,
    chain_from_json,
    chain_to_json,
    pan_gains,
)
from umx_ext.mixing.equaliser import biquad, filter_exactly, frequency_sampled, sections

SETTINGS = [effect for effects in EXAMPLES.values() for effect in effects]
WITH_GRADIENTS = [effect for effect in SETTINGS if getattr(effect, "engine", "noise") == "noise"]
RATE = 44100


def names(effect: Effect) -> str:
    return f"{effect.kind}-{getattr(effect, 'engine', getattr(effect, 'law', ''))}".rstrip("-")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def db(ratio: float) -> float:
    return 20 * math.log10(ratio)


# ---------------------------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("effect", SETTINGS, ids=names)
def test_every_effect_obeys(effect, law):
    law(effect)


@pytest.mark.parametrize("law, liar", LIARS, ids=lambda value: getattr(value, "__name__", type(value).__name__))
def test_law_catches_its_liar(law, liar):
    with pytest.raises(AssertionError):
        law(liar)


def test_every_law_has_its_liar_and_every_effect_its_example():
    assert {law for law, _ in LIARS} == set(LAWS)
    assert set(EXAMPLES) == set(EFFECTS) == set(DIFFERENTIABLE)
    assert all(effect.kind == kind for kind, effects in EXAMPLES.items() for effect in effects)


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "waveform, says",
    [
        (torch.zeros(100), "channels, samples"),
        (torch.zeros(3, 100), "one or two channels"),
        (torch.zeros(100, 2), "waveform.T"),
        (torch.full((2, 9), math.nan), "nan or inf"),
        (torch.tensor([[0.0, -math.inf]]), "nan or inf"),
        (torch.zeros(2, 9, dtype=torch.int16), "float32"),
    ],
)
def test_a_waveform_that_cannot_be_processed_is_refused_in_one_sentence(waveform, says):
    with pytest.raises(AudioError, match=says):
        Gain(-3)(waveform, RATE)


@pytest.mark.parametrize("rate", [0, -44100, math.nan])
def test_a_sample_rate_that_is_none_is_refused(rate):
    with pytest.raises(AudioError, match="sample rate"):
        Gain(-3)(torch.zeros(2, 9), rate)


@pytest.mark.parametrize("effect", [HighPass(8000), LowPass(9000), ParametricEq((Band(16000, 3),))])
def test_a_filter_beyond_half_the_sample_rate_is_refused_when_it_would_have_to_act(effect):
    with pytest.raises(UsageError, match=r"half the sample rate \(8000 Hz\)"):
        effect(torch.zeros(2, 9), 16000)
    assert ParametricEq((Band(16000, 0),))(torch.ones(2, 9), 16000).equal(torch.ones(2, 9))


def test_a_chain_does_its_effects_in_order_and_an_empty_one_copies():
    x = noise(2, 5000)
    chain = (Compressor(-30, 4, makeup_db=6), HighPass(200), Gain(-3))
    assert torch.equal(apply(chain, x, RATE), Gain(-3)(HighPass(200)(chain[0](x, RATE), RATE), RATE))
    assert not torch.allclose(apply(chain, x, RATE), apply(chain[::-1], x, RATE), atol=1e-4)
    assert torch.equal(apply((), x, RATE), x) and apply((), x, RATE).data_ptr() != x.data_ptr()
    with pytest.raises(AudioError):
        apply((), torch.zeros(5, 9), RATE)


# --------------------------------------------------------------------------------------------------------------- JSON


def test_a_chain_comes_back_from_json_as_it_was():
    chain = (*SETTINGS, *(member.neutral() for member in EFFECTS.values()), Gain(1 / 3), Reverb(t60_s=1 / 7))
    text = chain_to_json(chain)
    assert chain_from_json(text) == chain
    assert chain_to_json(chain_from_json(text)) == text
    assert chain_from_json("[]") == ()


def test_what_a_person_writes_is_read():
    text = '[{"kind": "gain", "gain_db": 3}, {"kind": "parametric_eq", "bands": [{"gain_db": -2}]}, {"kind": "reverb"}]'
    assert chain_from_json(text) == (Gain(3.0), ParametricEq((Band(1000, -2),)), Reverb())
    assert repr(chain_from_json(text)[0]) == "Gain(gain_db=3.0)"


@pytest.mark.parametrize(
    "text, says",
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"kind": "gain"}', "expected a chain as a JSON list of effects, got dict"),
        ("[3]", "effect 1 of the chain: expected an effect such as"),
        ('[{"gain_db": 3}]', "expected an effect such as"),
        (
            '[{"kind": "gain"}, {"kind": "gian"}]',
            "effect 2 of the chain: no effect named 'gian'; known: gain, high_pass",
        ),
        ('[{"kind": ["gain"]}]', "no effect named"),
        ('[{"kind": "gain", "gain": 3}]', "gain: no field named gain; known: gain_db"),
        (
            '[{"kind": "gain", "gain_db": 300}]',
            "gain: expected gain_db to be a number between -120 and 120 dB, got 300",
        ),
        ('[{"kind": "gain", "gain_db": NaN}]', "expected gain_db .* got nan"),
        ('[{"kind": "gain", "gain_db": 1e999}]', "expected gain_db .* got inf"),
        ('[{"kind": "gain", "gain_db": null}]', "expected gain_db .* got None"),
        ('[{"kind": "parametric_eq", "bands": [{"f": 3}]}]', "band: no field named f; known: frequency_hz"),
        ('[{"kind": "parametric_eq", "bands": [{"q": 0}]}]', "band: expected q to be a number between 0.05 and 40"),
        ('[{"kind": "reverb", "seed": 1.5}]', "expected seed to be a whole number"),
        ('[{"kind": "reverb", "engine": "hall"}]', "expected engine to be one of fdn, noise, got 'hall'"),
        ('[{"kind": "reverb", "t60_s": 1, "fade_in_s": 1}]', "expected fade_in_s .* below t60_s"),
    ],
)
def test_a_chain_that_makes_no_sense_is_refused_in_one_sentence(text, says):
    with pytest.raises(UsageError, match=says) as caught:
        chain_from_json(text)
    assert "\n" not in str(caught.value)


def test_an_effect_is_not_read_as_another_kind():
    assert Gain.from_dict(Gain(2).to_dict()) == Gain(2)
    with pytest.raises(UsageError, match="expected an effect of kind 'gain', got 'pan'"):
        Gain.from_dict(Pan().to_dict())


def test_effects_are_frozen_and_can_be_keys():
    with pytest.raises(AttributeError):
        Gain(3).gain_db = 4  # type: ignore[misc]
    assert len({*SETTINGS, *SETTINGS}) == len(SETTINGS)


# ------------------------------------------------------------------------------------------------------------- filters


def gain_at(effect: Effect, frequency_hz: float, sample_rate: int = RATE) -> float:
    """Gain in dB of the stationary part of a sine."""
    time = torch.arange(2 * sample_rate, dtype=torch.float64) / sample_rate
    carrier = torch.polar(torch.ones_like(time), 2 * math.pi * frequency_hz * time)
    out = effect(carrier.imag.expand(2, -1), sample_rate)[0]
    late = slice(sample_rate, None)  # whole periods, for whole frequencies
    return db(2 * float((out[late] * carrier[late].conj()).mean().abs()))


@pytest.mark.parametrize("rate", [16000, 44100, 96000])
def test_high_pass_and_low_pass_are_3_db_down_at_their_cutoff(rate):
    for effect in (HighPass(200), LowPass(200)):
        assert gain_at(effect, 200, rate) == pytest.approx(10 * math.log10(0.5), abs=1e-6)


def test_high_pass_and_low_pass_fall_by_12_db_an_octave():
    assert gain_at(HighPass(1000), 50) - gain_at(HighPass(1000), 25) == pytest.approx(12.04, abs=0.05)
    assert gain_at(LowPass(100), 1000) - gain_at(LowPass(100), 2000) == pytest.approx(12.04, abs=0.2)
    assert gain_at(HighPass(1000, 3), 1000) == pytest.approx(db(3), abs=1e-6)


@pytest.mark.parametrize("gain_db", [-15.0, -0.3, 6.0])
def test_a_peak_has_its_gain_at_its_centre_and_a_shelf_half_of_it_at_its_corner(gain_db):
    peak = ParametricEq((Band(1000, gain_db),))
    assert gain_at(peak, 1000) == pytest.approx(gain_db, abs=1e-6)
    assert gain_at(peak, 20) == pytest.approx(0, abs=0.01) and gain_at(peak, 22000) == pytest.approx(0, abs=0.01)
    low = ParametricEq((Band(500, gain_db, 0.7, "low-shelf"),))
    high = ParametricEq((Band(500, gain_db, 0.7, "high-shelf"),))
    assert gain_at(low, 500) == pytest.approx(gain_db / 2, abs=1e-6) == gain_at(high, 500)
    assert gain_at(low, 5) == pytest.approx(gain_db, abs=0.01) and gain_at(low, 22000) == pytest.approx(0, abs=0.01)
    assert gain_at(high, 22000) == pytest.approx(gain_db, abs=0.01) and gain_at(high, 5) == pytest.approx(0, abs=0.01)


def test_what_one_band_takes_the_opposite_band_gives_back():
    x = noise(2, 20000).double()
    for shape in ("peak", "low-shelf", "high-shelf"):
        there = ParametricEq((Band(300, 9, 0.8, shape), Band(300, -9, 0.8, shape)))
        assert (there(x, RATE) - x).abs().max() < 1e-10


def test_filters_agree_with_torchaudio():
    torchaudio = import_peer("torchaudio.functional")
    x = noise(2, 30000).double()
    peers = [
        (ParametricEq((Band(1234, 5.5, 1.7),)), torchaudio.equalizer_biquad(x, RATE, 1234, 5.5, 1.7)),
        (ParametricEq((Band(300, -7, 0.6, "low-shelf"),)), torchaudio.bass_biquad(x, RATE, -7, 300, 0.6)),
        (ParametricEq((Band(5000, 4, 0.9, "high-shelf"),)), torchaudio.treble_biquad(x, RATE, 4, 5000, 0.9)),
        (HighPass(90, 0.8), torchaudio.highpass_biquad(x, RATE, 90, 0.8)),
        (LowPass(9000, 0.8), torchaudio.lowpass_biquad(x, RATE, 9000, 0.8)),
    ]
    for effect, theirs in peers:
        assert (effect(x, RATE) - theirs).abs().max() < 1e-9, effect


def test_the_recursion_equals_a_loop_over_samples_and_blocks_leave_no_seam():
    sos = sections([("peak", 60.0, 9.0, 8.0), ("high-pass", 30.0, 0.0, 0.7)], 16000)
    x = noise(1, 70000).double()  # more than one block
    x[:, 30000:66000] = 0
    slow = x[0].numpy()
    for row in sos:
        slow = reference_effects.biquad(row[:3], row[3:], slow)
    assert np.abs(filter_exactly(sos, x)[0].numpy() - slow).max() < 1e-12


def test_a_filter_at_rest_is_silent_and_stays_exact():
    x = torch.zeros(2, 400_000)
    x[0, :10], x[0, -10:] = 1.0, 1.0
    out = HighPass(100)(x, RATE)
    assert out[1].abs().max() == 0 and torch.allclose(out[0, -10:], out[0, :10], atol=1e-7)
    denormal = (out != 0) & (out.abs() < 1e-37)
    assert not denormal[:, 200_000:].any()


def test_no_precision_is_lost_at_low_frequencies():
    effect = ParametricEq((Band(20, 12, 10), Band(63, -12, 10)))
    x = noise(2, 2 * 96000)
    assert (effect(x, 96000) - effect(x.double(), 96000)).abs().max() < 1e-6


# ------------------------------------------------------------------------------------------------------------- panning


@pytest.mark.parametrize(
    "law, centre_db, total_db",
    [("constant-power", -3.0103, 0), ("linear", -6.0206, -3.0103), ("-4.5", -4.5154, -1.5051)],
)
def test_panning_laws_at_the_centre_and_at_the_ends(law, centre_db, total_db):
    mono = noise(1, 1000).expand(2, -1)
    middle = Pan(0.5, law)(mono, RATE)
    assert db(float(middle[0].norm() / mono[0].norm())) == pytest.approx(centre_db, abs=1e-3)
    assert torch.allclose(middle[0], middle[1], atol=1e-7)
    assert db(float(middle.norm() / mono[0].norm())) == pytest.approx(total_db, abs=1e-3)
    for position, loud in ((0.0, 0), (1.0, 1)):
        out = Pan(position, law)(mono, RATE)
        assert torch.equal(out[loud], mono[loud]) and out[1 - loud].abs().max() == 0
    left, right = pan_gains(torch.linspace(0, 1, 101, dtype=torch.float64), law).unbind(-1)
    assert (left.diff() < 0).all() and (right.diff() > 0).all()
    assert torch.allclose(left, right.flip(0), atol=1e-12)
    with pytest.raises(UsageError, match="no panning law named 'sinus'; known: constant-power"):
        pan_gains(left, "sinus")


def test_constant_power_keeps_the_power_and_the_third_law_is_the_mean_of_the_other_two():
    position = torch.linspace(0, 1, 51, dtype=torch.float64)
    power = pan_gains(position, "constant-power").square().sum(-1)
    assert torch.allclose(power, torch.ones_like(power), atol=1e-12)
    product = pan_gains(position, "constant-power") * pan_gains(position, "linear")
    assert torch.allclose(pan_gains(position, "-4.5").square(), product, atol=1e-12)


def test_one_channel_has_no_position():
    with pytest.raises(AudioError, match="as_stereo"):
        Pan(0.2)(torch.ones(1, 9), RATE)


# ------------------------------------------------------------------------------------------------------- with gradients


@pytest.mark.parametrize("effect", WITH_GRADIENTS, ids=names)
def test_the_differentiable_path_agrees_with_the_exact_one(effect):
    x = 3 * noise(3, 2, 8192)
    x[1] = 0
    out = apply_differentiable(effect, x, 16000)
    assert out.dtype == x.dtype and (out - effect(x, 16000)).abs().max() < 1e-5
    neutral = replace(effect, dry_wet=0.0) if isinstance(effect, Reverb) else type(effect).neutral()
    assert (apply_differentiable(neutral, x, 16000) - x).abs().max() < 1e-5


@pytest.mark.parametrize("frequency_hz", [30.0, 63.0, 1000.0, 16000.0])
@pytest.mark.parametrize("q", [0.3, 1.4, 10.0])
def test_frequency_sampling_outlasts_the_slowest_pole(frequency_hz, q):
    x = noise(2, 8192)
    exact = ParametricEq((Band(frequency_hz, 15, q), Band(frequency_hz, -3, q, "low-shelf")))
    assert (apply_differentiable(exact, x, RATE) - exact(x, RATE)).abs().max() < 1e-5


def test_frequency_sampling_with_real_poles_outlasts_them_too():
    b, a = biquad("low-pass", *torch.tensor([[40.0], [0.0], [0.1]], dtype=torch.float64), RATE)
    x = 1 + noise(1, 3000).double()
    exact = filter_exactly(torch.cat([b, a], dim=-1).numpy(), x)
    assert (frequency_sampled(x, b, a) - exact).abs().max() < 1e-6


@pytest.mark.parametrize("effect", [one for one in WITH_GRADIENTS if getattr(one, "attack_ms", 1) > 0], ids=names)
def test_gradients_are_those_of_finite_differences(effect):
    """Of the effect's own numbers and of the waveform, in double precision. (A compressor whose attack and release take
    no time and whose knee is a corner has no slope there to compare.)"""
    x = (5 * noise(2, 10).double()).requires_grad_()
    settings = {name: value.requires_grad_() for name, value in parameters(effect).items()}
    rate = 1000 if effect.kind in ("compressor", "reverb") else 16000

    def run(waveform: Tensor, *values: Tensor) -> Tensor:
        return apply_differentiable(effect, waveform, rate, **dict(zip(settings, values, strict=True)))

    assert torch.autograd.gradcheck(run, (x, *settings.values()), eps=1e-6, atol=1e-5, rtol=1e-3)


def test_each_item_of_a_batch_may_have_values_of_its_own():
    x = noise(3, 2, 4000)
    gains = torch.tensor([-6.0, 0.0, 6.0])
    together = apply_differentiable(Gain(), x, RATE, gain_db=gains)
    assert torch.allclose(together, torch.stack([Gain(float(g))(item, RATE) for g, item in zip(gains, x, strict=True)]))
    thresholds = torch.tensor([-50.0, -30.0, -10.0])
    together = apply_differentiable(Compressor(ratio=4), x, RATE, threshold_db=thresholds)
    apart = [Compressor(float(t), 4)(item, RATE) for t, item in zip(thresholds, x, strict=True)]
    assert torch.allclose(together, torch.stack(apart), atol=1e-5)
    bands = torch.tensor([[1.0, -3.0], [6.0, 0.0], [-6.0, 2.0]])
    together = apply_differentiable(ParametricEq((Band(200), Band(3000))), x, RATE, gain_db=bands)
    apart = [
        ParametricEq((Band(200, float(g)), Band(3000, float(h))))(i, RATE) for (g, h), i in zip(bands, x, strict=True)
    ]
    assert torch.allclose(together, torch.stack(apart), atol=1e-5)
    positions = torch.tensor([0.1, 0.5, 0.9])
    together = apply_differentiable(Pan(), x, RATE, position=positions)
    assert torch.allclose(together, torch.stack([Pan(float(p))(i, RATE) for p, i in zip(positions, x, strict=True)]))


def test_gradient_descent_finds_the_settings_of_an_equaliser():
    x = noise(2, 2048)
    target = ParametricEq((Band(500, 5), Band(4000, -7)))(x, RATE)
    gains = torch.zeros(2, requires_grad=True)
    optimiser = torch.optim.Adam([gains], lr=0.7)
    for _ in range(100):
        optimiser.zero_grad()
        out = apply_differentiable(ParametricEq((Band(500), Band(4000))), x, RATE, gain_db=gains)
        (out - target).square().mean().mul(1e4).backward()
        optimiser.step()
    assert torch.allclose(gains.detach(), torch.tensor([5.0, -7.0]), atol=0.1)


def test_a_pan_at_the_end_has_a_gradient_that_is_finite():
    position = torch.tensor(1e-4, dtype=torch.float64, requires_grad=True)
    apply_differentiable(Pan(law="-4.5"), noise(2, 10).double(), RATE, position=position).sum().backward()
    assert position.grad is not None and position.grad.isfinite()


def test_what_cannot_be_learned_is_refused_by_name():
    with pytest.raises(UsageError, match="gain: nothing to learn named gain; known: gain_db"):
        apply_differentiable(Gain(), torch.zeros(2, 9), RATE, gain=torch.tensor(1.0))
    with pytest.raises(UsageError, match="only the noise engine has gradients"):
        apply_differentiable(Reverb(), torch.zeros(2, 9), RATE)
    with pytest.raises(AudioError):
        apply_differentiable(Gain(), torch.zeros(9), RATE)


def test_a_vocal_that_was_recorded_goes_through_the_whole_chain(data):
    from umx_ext import audio

    song = sorted((data / "mir1k" / "train").iterdir())[0]
    vocals, rate = audio.read(song / "vocals.opus")
    bands = tuple(Band(f, g) for f, g in ((250, -3), (500, -2), (2000, 2), (4000, 3)))
    chain = (HighPass(80), ParametricEq(bands), Compressor(-18, 4), Reverb(1.2, dry_wet=0.2), Gain(-3))
    before = vocals.clone()
    out = apply(chain_from_json(json.dumps([one.to_dict() for one in chain])), vocals, rate)
    assert torch.equal(vocals, before) and out.shape == vocals.shape and bool(out.isfinite().all())
    assert 0.1 < float(out.square().mean().sqrt() / vocals.square().mean().sqrt()) < 2
