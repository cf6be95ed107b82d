"""Whole-song metrics and bootstrap intervals, against closed forms, slow twins and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.peers import import_peer
from umx_ext.errors import AudioError, UsageError
from umx_ext.evaluation.metrics import bootstrap_interval, fit, si_sdr, song_sdr


def noise(seed: int, samples: int = 5000, channels: int = 2) -> torch.Tensor:
    return torch.randn(channels, samples, generator=torch.Generator().manual_seed(seed))


def orthogonal(reference: torch.Tensor, seed: int) -> torch.Tensor:
    """Noise that shares nothing with the reference, as loud as it."""
    other = noise(seed, reference.shape[1], reference.shape[0]).double()
    truth = reference.double()
    other = other - (other * truth).sum() / truth.square().sum() * truth
    return other * (truth.square().sum() / other.square().sum()).sqrt()


# -------------------------------------------------------------------------------------------------------------- SI-SDR


@pytest.mark.parametrize("level_db", [-20.0, 0.0, 13.0])
@pytest.mark.parametrize("gain", [0.1, 1.0, -3.0])
def test_si_sdr_of_a_scaled_source_and_orthogonal_noise_is_their_ratio(level_db: float, gain: float) -> None:
    reference = noise(0).double()
    estimate = gain * (reference + 10 ** (-level_db / 20) * orthogonal(reference, 1))
    assert si_sdr(reference, estimate) == pytest.approx(level_db, abs=1e-9)


def test_si_sdr_counts_a_wrong_balance_of_the_channels_as_an_error() -> None:
    channel = noise(2, channels=1)
    reference, estimate = torch.cat([channel, channel]), torch.cat([channel, 0 * channel])
    # <e, s> / <s, s> = 1/2, so the target is s / 2 (energy E / 2) and so is the error.
    assert si_sdr(reference, estimate) == pytest.approx(0.0, abs=1e-9)
    assert si_sdr(reference[:1], estimate[:1]) > 250


def test_si_sdr_keeps_the_mean_unless_told_otherwise() -> None:
    reference = noise(3).double()
    reference -= reference.mean(dim=-1, keepdim=True)
    offset = reference.square().mean().sqrt()
    assert si_sdr(reference, reference + offset) == pytest.approx(0.0, abs=1e-9)
    assert si_sdr(reference, reference + offset, remove_mean=True) > 250


def test_si_sdr_equals_its_definition_with_numpy_in_double_precision() -> None:
    truth, guess = noise(4), noise(4) + 0.3 * noise(5)
    s, e = truth.double().numpy().ravel(), guess.double().numpy().ravel()
    scaled = np.dot(e, s) / np.dot(s, s) * s
    expected = 10 * math.log10(np.sum(scaled**2) / np.sum((e - scaled) ** 2))
    assert si_sdr(truth, guess) == pytest.approx(expected, abs=1e-9)


def test_si_sdr_of_silence_is_nan_and_of_a_copy_infinite() -> None:
    signal, silence = noise(6), torch.zeros(2, 5000)
    assert math.isnan(si_sdr(silence, signal))
    assert math.isnan(si_sdr(signal, silence))
    assert math.isnan(si_sdr(silence, silence))
    assert si_sdr(signal, signal) == math.inf
    assert si_sdr(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])) == -math.inf


# ----------------------------------------------------------------------------------------------------------- song SDR


def test_song_sdr_equals_the_challenges_formula() -> None:
    truth, guess = noise(7), noise(7) + 0.1 * noise(8)
    s, e = truth.double().numpy(), guess.double().numpy()
    expected = 10 * math.log10((np.sum(s**2) + 1e-7) / (np.sum((s - e) ** 2) + 1e-7))
    assert song_sdr(truth, guess) == pytest.approx(expected, abs=1e-9)


def test_song_sdr_is_finite_for_silence() -> None:
    signal, silence = noise(9), torch.zeros(2, 5000)
    energy = float(signal.double().square().sum())
    assert song_sdr(silence, silence) == 0.0
    assert song_sdr(silence, signal) == pytest.approx(10 * math.log10(1e-7 / (energy + 1e-7)), abs=1e-9)
    assert song_sdr(signal, signal) == pytest.approx(10 * math.log10((energy + 1e-7) / 1e-7), abs=1e-9)


def test_song_sdr_of_one_second_is_the_frames_sdr() -> None:
    from umx_ext.evaluation.sdr import frame_sdr

    truth, guess = noise(10), noise(10) + 0.5 * noise(11)
    assert song_sdr(truth, guess) == pytest.approx(float(frame_sdr(truth, guess, 5000)[0]), abs=1e-6)


# ------------------------------------------------------------------------------------------------------------- lengths


@pytest.mark.parametrize("metric", [si_sdr, song_sdr])
def test_short_estimates_are_padded_and_long_ones_cut(metric) -> None:
    truth, guess = noise(12), noise(12) + 0.2 * noise(13)
    padded = torch.cat([guess[:, :4000], torch.zeros(2, 1000)], dim=1)
    assert metric(truth, guess[:, :4000]) == metric(truth, padded) < metric(truth, guess)
    assert metric(truth, torch.cat([guess, 100 * noise(14)], dim=1)) == metric(truth, guess)
    assert fit(guess, 4000).shape == (2, 4000)
    assert not fit(guess, 6000)[:, 5000:].any()


@pytest.mark.parametrize("metric", [si_sdr, song_sdr])
def test_the_callers_tensors_are_untouched_and_channels_must_agree(metric) -> None:
    truth, guess = 40 * noise(15), 40 * noise(16)
    copies = truth.clone(), guess.clone()
    metric(truth, guess[:, :3000])
    assert torch.equal(truth, copies[0])
    assert torch.equal(guess, copies[1])
    with pytest.raises(AudioError, match=r"\(2, 5000\) and \(1, 5000\)"):
        metric(truth, guess[:1])


# ----------------------------------------------------------------------------------------------------------- bootstrap


def test_the_interval_of_a_median_has_the_exact_quantiles_of_its_bootstrap_distribution() -> None:
    """Of an odd number m of values, the median of a resampling is at most the k-th smallest with the probability that
    a binomial variable (m, k/m) is at least (m + 1) / 2: so the interval's ends are known without drawing."""
    m = 31
    values = np.sort(np.random.default_rng(0).normal(size=m))
    at_most = [
        sum(math.comb(m, i) * (k / m) ** i * (1 - k / m) ** (m - i) for i in range((m + 1) // 2, m + 1))
        for k in range(1, m + 1)
    ]
    low, high = (values[next(k for k, share in enumerate(at_most) if share >= p)] for p in (0.025, 0.975))
    for seed in range(3):
        # Near the ends the distribution has no step within sampling error of 2.5 %, so the values are met exactly.
        assert bootstrap_interval(values, n=20000, seed=seed) == (low, high)


def test_the_interval_of_a_mean_agrees_with_scipys() -> None:
    stats = import_peer("scipy.stats")
    values = np.random.default_rng(1).gamma(2.0, size=40)
    peer = stats.bootstrap(
        (values,), np.mean, n_resamples=20000, method="percentile", random_state=np.random.default_rng(2)
    ).confidence_interval
    assert bootstrap_interval(values, np.mean, n=20000, seed=3) == pytest.approx((peer.low, peer.high), abs=0.02)


def test_a_lower_confidence_gives_a_narrower_interval() -> None:
    values = np.random.default_rng(4).normal(size=50)
    low, high = bootstrap_interval(values, np.mean, confidence=0.95)
    inner_low, inner_high = bootstrap_interval(values, np.mean, confidence=0.5)
    assert low < inner_low < inner_high < high


def test_the_interval_depends_on_its_seed_alone() -> None:
    values = np.random.default_rng(5).normal(size=30)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    first = bootstrap_interval(values, np.mean, seed=1)
    np.random.seed(0)
    assert np.array_equal(np.random.get_state()[1], before)
    bootstrap_interval(values, np.mean, seed=2)
    assert np.array_equal(np.random.get_state()[1], before)
    assert bootstrap_interval(values, np.mean, seed=1) == first != bootstrap_interval(values, np.mean, seed=2)


def test_values_that_are_not_finite_are_left_out_of_the_interval() -> None:
    values = list(np.random.default_rng(6).normal(size=20))
    assert bootstrap_interval([math.nan, *values, math.inf]) == bootstrap_interval(values)
    assert all(math.isnan(end) for end in bootstrap_interval([1.0, math.nan]))
    assert bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)


@pytest.mark.parametrize("options", [{"n": 0}, {"confidence": 1.0}])
def test_impossible_intervals_are_refused(options) -> None:
    with pytest.raises(UsageError, match="n must be positive"):
        bootstrap_interval([1.0, 2.0], **options)
