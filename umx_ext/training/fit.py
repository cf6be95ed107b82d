"""A small trainer: remixed examples in, a vocals network out; resumable to the bit.

The network is laid out frames-major and the loss uses real arithmetic only. All randomness of step n follows from
(seed, n), so a run that was killed goes on from its last checkpoint exactly as it would have.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umx_ext.errors import UsageError
from umx_ext.evaluation.sdr import median_sdr
from umx_ext.separation.config import Config
from umx_ext.separation.masknet import Encoder, MaskNet
from umx_ext.spectral import istft, stft
from umx_ext.training.remix import Remixer
from umx_ext.training.tracks import Pack

__all__ = ["Progress", "TrainOptions", "fit", "phase_sensitive_target", "validate"]

STATISTICS_EXAMPLES = 64
CHECKPOINT_VERSION = 1


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        steps: optimiser steps of the whole run; the learning rate falls to zero over them by a half cosine.
        batch: examples a step.
        excerpt_s: length of an example, seconds.
        learning_rate: Adam's, after `warmup` steps.
        warmup: steps of linear rise.
        weight_decay: Adam's.
        clip: largest gradient norm.
        ema: decay of the averaged weights, which are what is validated and shipped.
        seed: of everything.
        every: steps between validations (each writes a checkpoint).
        remix: gain law, a name in `umx_ext.training.remix.REMIXES`.
    """

    steps: int = 4200
    batch: int = 16
    excerpt_s: float = 4.0
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 1e-5
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    every: int = 250
    remix: str = "wsj0"


@dataclass(frozen=True)
class Progress:
    """What `fit` reports after every step: the loss, and the validation SDR where one was just made."""

    step: int
    steps: int
    loss: float
    vocals_sdr_db: float | None
    accompaniment_sdr_db: float | None


def phase_sensitive_target(target: Tensor, mixture: Tensor, magnitude: Tensor) -> Tensor:
    """``|S| cos(angle S - angle X)``, limited to 0 ... |X|: the best magnitude under the mixture's phase.

    Source: Erdogan et al., ICASSP 2015. Everything `(batch, frames, channels, bins)`.
    """
    projected = (target.real * mixture.real + target.imag * mixture.imag) / magnitude.clamp_min(1e-8)
    return torch.minimum(projected.clamp_min(0.0), magnitude)


def fit(
    pack: Pack,
    config: Config,
    options: TrainOptions,
    folder: Path,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> Path:
    """Train a vocals network, or go on with the run that lies in `folder`.

    Args:
        pack: decoded stems.
        config: what to train; must have the one stem ``vocals``.
        options: how to train. A run can only be continued with the options it was started with, except for `steps`: a
            run may be made shorter or longer on the way, and keeps account of it.
        folder: gets ``last.pt`` (resumable), ``best.pt`` (averaged weights with the best validation SDR) and
            ``log.csv``.
        progress: called after every step.

    Returns:
        The path of ``best.pt``: a dict with ``config``, ``options``, ``data``, ``step``, ``schedule`` (at which step
        the run's length was set to what), ``state`` and ``sdr_db``.

    Raises:
        UsageError: the folder holds a run with another configuration.
    """
    if config.stems != ("vocals",):
        raise UsageError(f"this trainer trains a vocals network, the config has the stems {', '.join(config.stems)}")
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        return _fit(pack, config, options, folder, progress)


def _fit(
    pack: Pack, config: Config, options: TrainOptions, folder: Path, report: Callable[[Progress], None] | None
) -> Path:
    torch.manual_seed(options.seed)  # of the forked generator, not the caller's
    remixer = Remixer(pack, remix=options.remix, samples=round(options.excerpt_s * config.sample_rate))
    net = MaskNet(config)
    averaged = copy.deepcopy(net)
    optimiser = torch.optim.Adam(net.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    done, best, log = 0, -math.inf, []
    schedule: list[list[int]] = []
    last = folder / "last.pt"
    identity = {"config": config.to_dict(), "options": dataclasses.asdict(options), "data": pack.data_sha256}
    if last.exists():
        state = torch.load(last, weights_only=True)
        if _without_steps(state["identity"]) != _without_steps(identity):
            raise UsageError(f"{folder} holds a run with other settings or data; give another folder, or delete it")
        net.load_state_dict(state["net"])
        averaged.load_state_dict(state["averaged"])
        optimiser.load_state_dict(state["optimiser"])
        done, best, log = state["step"], state["best"], state["log"]
        schedule = state.get("schedule") or [[0, state["identity"]["options"]["steps"]]]
    else:
        _standardise(net, remixer, options, config)
        averaged.load_state_dict(net.state_dict())

    if not schedule or schedule[-1][1] != options.steps:
        schedule.append([done, options.steps])
    losses = []
    started = time.monotonic()
    for step, (mixture, target) in _batches(remixer, config, options, done):
        torch.manual_seed(_seed(options.seed, step))  # dropout
        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(options, step)
        net.train()
        magnitude = mixture.abs()
        goal = phase_sensitive_target(target, mixture, magnitude)
        loss = (net.mask(magnitude) * magnitude - goal).abs().mean() / magnitude.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), options.clip)
        optimiser.step()
        optimiser.zero_grad()
        _average(averaged, net, min(options.ema, (1 + step) / (10 + step)))
        losses.append(float(loss.detach()))

        vocals_sdr_db = accompaniment_sdr_db = None
        done = step + 1
        if done % options.every == 0 or done == options.steps:
            vocals_sdr_db, accompaniment_sdr_db = validate(averaged, pack, config)
            log.append(
                [done, sum(losses) / len(losses), vocals_sdr_db, accompaniment_sdr_db, time.monotonic() - started]
            )
            losses = []
            if vocals_sdr_db > best:
                best = vocals_sdr_db
                origin = identity | {"step": done, "schedule": schedule}
                _save(folder / "best.pt", origin | {"state": averaged.state_dict(), "sdr_db": best})
            _save(
                last,
                {"version": CHECKPOINT_VERSION, "identity": identity, "step": done, "best": best, "log": log}
                | {"schedule": schedule}
                | {"net": net.state_dict(), "averaged": averaged.state_dict(), "optimiser": optimiser.state_dict()},
            )
            _write_log(folder / "log.csv", log)
        if report is not None:
            report(Progress(done, options.steps, float(loss.detach()), vocals_sdr_db, accompaniment_sdr_db))
    return folder / "best.pt"


def validate(net: MaskNet, pack: Pack, config: Config) -> tuple[float, float]:
    """Median over the validation songs of MUSDB18 of the median frame SDR of (vocals, accompaniment), plain mask.

    Never remixed: the mixture is the sum of the song's stems.
    """
    net.eval()
    vocals_sdr, accompaniment_sdr = [], []
    for song in pack.songs("valid", "musdb18").values():
        stems = {name: torch.from_numpy(pack.read(entry)) for name, entry in song.items()}
        mixture = torch.stack(list(stems.values())).sum(dim=0)
        with torch.no_grad():
            spectrum = stft(mixture, config.n_fft, config.hop)
            magnitude = spectrum.abs()
            mask = net(magnitude[None])[0] / magnitude.clamp_min(1e-8)
            vocals = istft(spectrum * mask, config.n_fft, config.hop, mixture.shape[-1])
        vocals_sdr.append(median_sdr(stems["vocals"], vocals, config.sample_rate))
        accompaniment_sdr.append(median_sdr(mixture - stems["vocals"], mixture - vocals, config.sample_rate))
    return float(np.nanmedian(vocals_sdr)), float(np.nanmedian(accompaniment_sdr))


def _batches(
    remixer: Remixer, config: Config, options: TrainOptions, first: int
) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """(step, (mixture, vocals) spectra, frames-major) from `first` on; the next batch is drawn while one is used.

    The transform stays in the caller's thread: two threads that both run parallel kernels get in each other's way.
    """

    def draw(step: int) -> Tensor:
        examples = [remixer.draw(np.random.default_rng([options.seed, step, item])) for item in range(options.batch)]
        return torch.from_numpy(np.stack([np.stack(example) for example in examples]))

    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(draw, first)
        for step in range(first, options.steps):
            signals = waiting.result()  # (batch, mixture and vocals, channels, samples)
            waiting = ahead.submit(draw, min(step + 1, options.steps - 1))
            spectra = stft(signals, config.n_fft, config.hop, center=False).permute(0, 1, 4, 2, 3)
            yield step, (spectra[:, 0], spectra[:, 1])  # each (batch, frames, channels, bins)


def _without_steps(identity: dict[str, Any]) -> dict[str, Any]:
    return identity | {"options": identity["options"] | {"steps": None}}


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _learning_rate(options: TrainOptions, step: int) -> float:
    rise = min(1.0, (step + 1) / max(1, options.warmup))
    return options.learning_rate * rise * 0.5 * (1.0 + math.cos(math.pi * step / options.steps))


def _standardise(net: MaskNet, remixer: Remixer, options: TrainOptions, config: Config) -> None:
    """Set each encoder's mean and scale from remixed training examples, per feature, channels together."""
    encoders = {name: encoder for name, encoder in net.encoders.items() if isinstance(encoder, Encoder)}
    totals: dict[str, list[Tensor]] = {name: [] for name in config.branches}
    for item in range(STATISTICS_EXAMPLES):
        mixture, _ = remixer.draw(np.random.default_rng([options.seed, 2**31, item]))
        magnitude = stft(torch.from_numpy(mixture), config.n_fft, config.hop, center=False).abs().permute(2, 0, 1)
        for name, encoder in encoders.items():
            totals[name].append(encoder.branch(magnitude[None]).flatten(0, 2).double())
    for name, encoder in encoders.items():
        features = torch.cat(totals[name])
        deviation = features.std(dim=0)
        deviation = deviation.clamp_min(1e-4 * float(deviation.max()))
        with torch.no_grad():
            encoder.mean.copy_(-features.mean(dim=0))
            encoder.scale.copy_(1.0 / deviation)


@torch.no_grad()
def _average(averaged: MaskNet, net: MaskNet, decay: float) -> None:
    for old, new in zip(averaged.state_dict().values(), net.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1.0 - decay)
        else:
            old.copy_(new)


def _save(path: Path, state: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def _write_log(path: Path, log: list[list[float]]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss", "valid_vocals_sdr_db", "valid_accompaniment_sdr_db", "seconds"])
        writer.writerows([[row[0], *(f"{value:.4f}" for value in row[1:])] for row in log])
    os.replace(temporary, path)
