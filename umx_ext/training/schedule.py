"""Learning rates and early stopping, as functions of the step and of the validations so far: nothing to save."""

from __future__ import annotations

import math
from collections.abc import Sequence

from umx_ext.training.options import TrainOptions

__all__ = ["learning_rate", "worn_out"]

RISE = 0.3  # share of a one-cycle run
PLATEAU_FACTOR = 0.3
PLATEAU_COOLDOWN = 1  # validations after a cut that are not counted


def learning_rate(options: TrainOptions, step: int, scores: Sequence[float]) -> float:
    """Adam's rate at a step, given the scores of the validations before it (higher is better)."""
    rise = min(1.0, (step + 1) / max(1, options.warmup))
    return options.learning_rate * rise * _shape(options, step, scores)


def _shape(options: TrainOptions, step: int, scores: Sequence[float]) -> float:
    if options.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * step / options.steps))
    if options.schedule == "one-cycle":
        top = RISE * options.steps
        if step < top:
            return 0.04 + 0.96 * 0.5 * (1.0 - math.cos(math.pi * step / top))
        return 0.5 * (1.0 + math.cos(math.pi * (step - top) / (options.steps - top)))
    if options.schedule == "plateau":
        return PLATEAU_FACTOR ** _cuts(scores, options.plateau_patience)
    return 1.0


def _cuts(scores: Sequence[float], patience: int) -> int:
    """How often the rate has been cut: whenever more than `patience` validations in a row brought nothing better."""
    best, bad, resting, cuts = -math.inf, 0, 0, 0
    for score in scores:
        bad += 1
        if score > best:
            best, bad = score, 0
        if resting > 0:
            resting, bad = resting - 1, 0
        if bad > patience:
            cuts, bad, resting = cuts + 1, 0, PLATEAU_COOLDOWN
    return cuts


def worn_out(scores: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` validations brought nothing better than one before them (0: never)."""
    if patience == 0 or len(scores) <= patience:
        return False
    # A nan is no score: a run whose validations are nan ends.
    ranked = [score if math.isfinite(score) else -math.inf for score in scores]
    return max(ranked[-patience:]) <= max(ranked[:-patience])
