"""How a run is done: the one place where a setting of the trainer is named, explained, defaulted and checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from umx_ext.errors import UsageError

__all__ = ["PRECISIONS", "SCHEDULES", "TrainOptions"]

SCHEDULES = ("cosine", "one-cycle", "plateau", "constant")
PRECISIONS = ("auto", "float32", "bf16", "fp16")
NETWORKS = ("umx_ext", "unet", "openunmix")


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        steps: optimiser steps of the whole run.
        batch: examples a step, of all processes together.
        excerpt_s: length of an example, seconds.
        remix: draw policy and gain law: wsj0, wsj0-literal, wsj0-bus, musdb, umx, libri, distance, random-audiosep, or
            another in `umx_ext.training.remix.REMIXES`.
        loss: phase-sensitive, mse, log, complex, error-energy, waveform, multi-resolution, or another in
            `umx_ext.training.losses.LOSSES`.
        network: ``"umx_ext"``; ``"unet"``, a convolutional one (`umx_ext.separation.unet`); or ``"openunmix"``: the
            real `openunmix.model.OpenUnmix` (extra `research`).
        learning_rate: Adam's, at its highest.
        schedule: ``"cosine"`` falls to zero by half a cosine over the run; ``"one-cycle"`` rises over its first 30 %
            and falls to zero; ``"plateau"`` is multiplied by 0.3 when `plateau_patience` validations brought nothing
            better (open-unmix's rule); ``"constant"``.
        warmup: steps of linear rise, whatever the schedule.
        weight_decay: Adam's.
        clip: largest gradient norm; 0 for none.
        ema: decay of the averaged weights, which are what is validated and shipped; 0 for none.
        precision: ``"auto"`` is bf16 where the device computes in it, and float32 elsewhere.
        every: steps between validations; each writes a checkpoint.
        plateau_patience: validations without a better one before the plateau schedule acts.
        patience: validations without a better one before the run ends; 0 to go through to the last step.
        examples: validation songs whose separation is kept as audio and picture at every validation.
        seed: of everything.
    """

    steps: int = 4200
    batch: int = 16
    excerpt_s: float = 4.0
    remix: str = "wsj0"
    loss: str = "phase-sensitive"
    network: str = "umx_ext"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 100
    weight_decay: float = 1e-5
    clip: float = 1.0
    ema: float = 0.999
    precision: str = "auto"
    every: int = 250
    plateau_patience: int = 8
    patience: int = 0
    examples: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "every", "plateau_patience"):
            _require(name, getattr(self, name), 1)
        for name in ("warmup", "patience", "examples", "seed"):
            _require(name, getattr(self, name), 0)
        for name in ("excerpt_s", "learning_rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"expected {name} above 0, got {value}")
        for name in ("weight_decay", "clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"expected {name} of 0 or more, got {value}")
        if not 0 <= self.ema < 1:
            raise UsageError(f"expected ema from 0 (none) to below 1, got {self.ema}")
        for name, known in (("schedule", SCHEDULES), ("precision", PRECISIONS), ("network", NETWORKS)):
            if getattr(self, name) not in known:
                raise UsageError(f"no {name} named {getattr(self, name)!r}; known: {', '.join(known)}")


def _require(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"expected {name} to be a whole number of at least {least}, got {value!r}")
