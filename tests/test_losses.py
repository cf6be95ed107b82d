"""Every loss against its definition, written out; all are ratios of sums, which is what many processes rely on."""

import numpy as np
import pytest
import torch
from torch import Tensor

from umx_ext.separation.config import Config
from umx_ext.spectral import stft
from umx_ext.training.losses import LOSSES, Batch, Ratio

CONFIG = Config(n_fft=512, hop=128, sample_rate=8000, bandwidth_hz=3500.0)


def batch(examples: int = 3, seed: int = 0, scale: float = 0.2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    signals = scale * torch.randn(2, examples, 2, 9000, generator=generator)
    mixture, target = stft(signals, CONFIG.n_fft, CONFIG.hop, center=False).permute(0, 1, 4, 2, 3)
    mixture = mixture + target
    return Batch(mixture, target, mixture.abs(), CONFIG)


def part(whole: Batch, rows: slice) -> Batch:
    return Batch(whole.mixture[rows], whole.target[rows], whole.magnitude[rows], whole.config)


def some_mask(like: Batch) -> Tensor:
    return torch.rand(like.magnitude.shape, generator=torch.Generator().manual_seed(9))


def value(ratio: Ratio) -> float:
    return float(ratio[0] / ratio[1])


def of_parts(loss, mask: Tensor, whole: Batch) -> float:
    """What two processes make of it: sums over their shares, added up."""
    shares = [loss(mask[rows], part(whole, rows)) for rows in (slice(0, 1), slice(1, None))]
    return float(sum(share[0] for share in shares) / sum(share[1] for share in shares))


def law_of_sums(loss) -> None:
    whole = batch()
    mask = some_mask(whole)
    assert of_parts(loss, mask, whole) == pytest.approx(value(loss(mask, whole)), rel=1e-5)


def law_of_finite_gradients(loss) -> None:
    for scale in (0.2, 0.0):
        whole = batch(scale=scale)
        mask = some_mask(whole).requires_grad_()
        loss(mask, whole)[0].backward()
        assert mask.grad is not None and mask.grad.isfinite().all()


def law_of_the_right_direction(loss) -> None:
    """Nearer to the target is less."""
    whole = batch()
    ideal = torch.rand(whole.magnitude.shape, generator=torch.Generator().manual_seed(4))
    whole = Batch(whole.mixture, ideal * whole.mixture, whole.magnitude, whole.config)
    wrong = 1 - ideal
    losses = [value(loss(ideal + share * (wrong - ideal), whole)) for share in (0.0, 0.3, 1.0)]
    assert losses[0] < losses[1] < losses[2]


LAWS = (law_of_sums, law_of_finite_gradients, law_of_the_right_direction)


def a_ratio_of_means(mask: Tensor, batch: Batch) -> Ratio:
    """Right in one process; in two, a share of one example weighs as much as a share of ten."""
    louder = torch.arange(1.0, len(mask) + 1)[:, None, None, None] ** 4 if len(mask) > 1 else 1.0
    return (louder * (mask * batch.magnitude - batch.target.abs()).abs()).mean(), batch.magnitude.mean()


def a_root_at_zero(mask: Tensor, batch: Batch) -> Ratio:
    return (mask * batch.magnitude - batch.target.abs()).square().sum().sqrt(), batch.magnitude.sum()


def one_that_knows_no_better(mask: Tensor, batch: Batch) -> Ratio:
    return mask.square().sum(), batch.magnitude.sum()


LIARS = tuple(zip(LAWS, (a_ratio_of_means, a_root_at_zero, one_that_knows_no_better), strict=True))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_obeys(name, law):
    law(LOSSES[name])


@pytest.mark.parametrize(("law", "liar"), LIARS)
def test_a_law_catches_its_liar(law, liar):
    with pytest.raises(AssertionError):
        law(liar)


def test_each_is_what_its_definition_says():
    whole = batch()
    mask = some_mask(whole)
    mixture, target, m = whole.mixture.numpy(), whole.target.numpy(), mask.numpy()
    magnitude = np.abs(mixture)
    goal = np.clip(np.abs(target) * np.cos(np.angle(target) - np.angle(mixture)), 0, magnitude)
    error = np.square(np.abs(m * mixture - target)).sum(axis=(1, 2, 3))
    expected = {
        "error-energy": np.sqrt(error / (np.square(magnitude).sum(axis=(1, 2, 3)) + 1) + 1e-4).mean(),
        "phase-sensitive": np.abs(m * magnitude - goal).mean() / magnitude.mean(),
        "mse": np.square(m * magnitude - np.abs(target)).mean(),
        "log": np.abs(np.log(m * magnitude + 1e-2) - np.log(np.abs(target) + 1e-2)).mean(),
        "complex": (np.abs((m * mixture - target).real) + np.abs((m * mixture - target).imag)).mean()
        / magnitude.mean(),
    }
    for name, right in expected.items():
        assert value(LOSSES[name](mask, whole)) == pytest.approx(right, rel=1e-4), name


@pytest.mark.parametrize("name", ["waveform", "multi-resolution", "complex"])
def test_a_perfect_estimate_has_no_loss_where_the_phase_is_right(name):
    whole = batch()
    same = Batch(whole.mixture, whole.mixture, whole.magnitude, whole.config)
    assert value(LOSSES[name](torch.ones_like(whole.magnitude), same)) < 1e-5
    assert value(LOSSES[name](torch.zeros_like(whole.magnitude), same)) == pytest.approx(
        4 / np.pi if name == "complex" else 1.0, rel=0.01
    )
