"""Learning rates by hand, and open-unmix's rule against torch's own scheduler."""

import math
from dataclasses import replace

import pytest
import torch

from umx_ext.errors import UsageError
from umx_ext.training.options import SCHEDULES, TrainOptions
from umx_ext.training.schedule import learning_rate, worn_out

OPTIONS = TrainOptions(steps=1000, warmup=0, learning_rate=2.0)


@pytest.mark.parametrize(("step", "rate"), [(0, 2.0), (500, 1.0), (999, 0.0)])
def test_a_cosine_falls_from_the_top_to_zero(step, rate):
    assert learning_rate(OPTIONS, step, []) == pytest.approx(rate, abs=1e-3)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.08), (150, 1.04), (300, 2.0), (650, 1.0), (999, 0.0)])
def test_one_cycle_rises_and_falls(step, rate):
    assert learning_rate(replace(OPTIONS, schedule="one-cycle"), step, []) == pytest.approx(rate, abs=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_is_warmed_up(schedule):
    warm = replace(OPTIONS, schedule=schedule, warmup=10)
    for step in (0, 4, 9, 10):
        whole = learning_rate(replace(warm, warmup=0), step, [])
        assert learning_rate(warm, step, []) == pytest.approx(whole * min(1, (step + 1) / 10))


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_the_plateau_rule_is_torchs(patience):
    generator = torch.Generator().manual_seed(patience)
    scores = torch.randn(60, generator=generator).cumsum(0).tolist()
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    torchs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, mode="max", factor=0.3, patience=patience, cooldown=1, threshold=0, min_lr=0, eps=0
    )
    options = replace(OPTIONS, schedule="plateau", plateau_patience=patience, learning_rate=1.0)
    for seen in range(1, len(scores) + 1):
        torchs.step(scores[seen - 1])
        assert learning_rate(options, 0, scores[:seen]) == pytest.approx(optimiser.param_groups[0]["lr"]), seen


def test_a_run_ends_when_it_is_worn_out():
    assert not worn_out([1, 2, 3, 2, 2], 3)
    assert worn_out([1, 2, 3, 2, 2, 3], 3)  # as good is not better
    assert not worn_out([3, 2, 1], 0)
    assert not worn_out([3.0, 2.0], 3)
    assert worn_out([1.0, math.nan, math.nan], 2)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 0}, "steps"),
        ({"batch": 1.5}, "batch"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"ema": 1.0}, "ema"),
        ({"schedule": "stairs"}, "known: cosine"),
        ({"precision": "int8"}, "known: auto"),
        ({"network": "demucs"}, "known: umx_ext"),
        ({"clip": -1.0}, "clip"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, said):
    with pytest.raises(UsageError, match=said):
        TrainOptions(**wrong)
