"""The trainer: remixed examples in, a network out; resumable to the bit, in one process or many.

The network is laid out frames-major and the losses use real arithmetic only. All randomness of step n follows from
(seed, n), so a run that was killed goes on from its last checkpoint exactly as it would have.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import os
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from umx_ext.errors import ModelError, UsageError
from umx_ext.separation.config import Config
from umx_ext.separation.masknet import Encoder, MaskNet
from umx_ext.separation.unet import UNet
from umx_ext.spectral import stft
from umx_ext.training.journal import Journal, save_atomically
from umx_ext.training.losses import LOSSES, Batch
from umx_ext.training.options import TrainOptions
from umx_ext.training.parallel import Group, joined, own_device, with_global_norms
from umx_ext.training.remix import Remixer
from umx_ext.training.schedule import learning_rate, worn_out
from umx_ext.training.tracks import Pack
from umx_ext.training.validation import Score, as_channels, peak_memory_mb, validate, validation_songs

__all__ = ["DryRun", "Progress", "batch_of", "build_network", "dry_run", "fit", "replay"]

STATISTICS_EXAMPLES = 64
LEAST_SUM = 1e-8
CHECKPOINT_VERSION = 3
DRY_STEPS = 3

Draws = Mapping[str, Any]


@dataclass(frozen=True)
class Progress:
    """What `fit` reports after every step.

    Attributes:
        step: steps done.
        steps: of the whole run.
        loss: of this step's batch.
        score: of the validation that this step ended with, if any.
        seconds: of this step, data included.
        waited_s: of these, for data.
        examples: of this step, of all processes.
    """

    step: int
    steps: int
    loss: float
    score: Score | None
    seconds: float
    waited_s: float
    examples: int


@dataclass(frozen=True)
class DryRun:
    """What a run would take.

    Attributes:
        parameters: of the network.
        step_s: median seconds of a step.
        validation_s: seconds of one validation.
        run_s: of the whole run, validations included.
        peak_mb: peak memory so far: of the device, or of the process where that is the CPU.
        device: where, in words.
        precision: in which the products are made.
    """

    parameters: int
    step_s: float
    validation_s: float
    run_s: float
    peak_mb: float
    device: str
    precision: str


def fit(
    pack: Pack,
    config: Config,
    options: TrainOptions,
    folder: str | os.PathLike[str],
    *,
    draws: Draws | None = None,
    initial: Callable[[nn.Module], None] | None = None,
    device: str = "cpu",
    tensorboard: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Path:
    """Train the network of one stem, or go on with the run that lies in `folder`.

    Under `torchrun` the processes do one run together: each step is the one that a single process would have done
    (dropout draws other numbers).

    Args:
        pack: decoded stems.
        config: what to train; must have one stem.
        options: how to train. A run can only be continued with the options it was started with, except for `steps`: a
            run may be made shorter or longer on the way, and keeps account of it.
        folder: gets ``last.pt`` (resumable), ``best.pt`` (averaged weights with the best validation SDR) and
            ``log.csv``.
        draws: further settings of the `Remixer`, by name.
        initial: changes the network before the first step of a new run: loads weights to start from.
        device: torch's name of the device.
        tensorboard: write its events below the folder as well (extra `research`).
        progress: called after every step, in the process that leads.

    Returns:
        The path of ``best.pt``: a dict with ``config``, ``options``, ``data``, ``step``, ``schedule`` (at which step
        the run's length was set to what), ``state`` and ``sdr_db``.

    Raises:
        UsageError: the folder holds a run with another configuration, or a setting makes no sense.
        ModelError: a checkpoint that cannot be read.
        OutputError: the folder cannot be written; what was saved before is whole.
    """
    place, folder = own_device(torch.device(device)), Path(folder)
    with _own_random_numbers(place), joined(place) as group:
        run = _Run(pack, config, options, folder, draws or {}, initial, place, group)
        with Journal(folder, pack, config, options, tensorboard=tensorboard and group.leads) as journal:
            if group.leads and run.state.log:
                journal.keep(run.state.log)  # a run may have been killed between its checkpoint and its table
            run.go(journal, progress)
    return folder / "best.pt"


def dry_run(
    pack: Pack,
    config: Config,
    options: TrainOptions,
    *,
    draws: Draws | None = None,
    initial: Callable[[nn.Module], None] | None = None,
    device: str = "cpu",
) -> DryRun:
    """A few steps and one validation, of which nothing is kept: time and memory of the run.

    Raises:
        UsageError: as `fit`.
    """
    place = torch.device(device)
    with _own_random_numbers(place):
        run = _Run(pack, config, options, None, draws or {}, initial, place, Group())
        batches = run.batches(0)
        seconds = []
        for step in range(DRY_STEPS):
            started = time.perf_counter()
            run.step(step, next(batches))
            seconds.append(time.perf_counter() - started)
        batches.close()
        started = time.perf_counter()
        run.validate()
        validation_s = time.perf_counter() - started
    step_s = float(np.median(seconds))
    validations = math.ceil(options.steps / options.every)
    return DryRun(
        parameters=sum(parameter.numel() for parameter in run.net.parameters()),
        step_s=step_s,
        validation_s=validation_s,
        run_s=options.steps * step_s + validations * validation_s,
        peak_mb=peak_memory_mb(place),
        device=str(place),
        precision=run.precision,
    )


def replay(
    pack: Pack,
    config: Config,
    options: TrainOptions,
    steps: int,
    *,
    draws: Draws | None = None,
    initial: Callable[[nn.Module], None] | None = None,
    device: str = "cpu",
) -> list[float]:
    """The losses of a run's first steps, of which nothing is kept: what a log of it must begin with.

    Nothing is validated, so what depends on scores (the schedule ``"plateau"``) is as before the first of them.

    Raises:
        UsageError: as `fit`, or the run has no so many steps.
    """
    if not 1 <= steps <= options.steps:
        raise UsageError(f"expected 1 to {options.steps} steps, which the run has, got {steps}")
    with _own_random_numbers(torch.device(device)):
        run = _Run(pack, config, options, None, draws or {}, initial, torch.device(device), Group())
        with contextlib.closing(run.batches(0)) as batches:
            return [run.step(step, next(batches)) for step in range(steps)]


def _own_random_numbers(place: torch.device) -> AbstractContextManager[None]:
    """The caller's generators are left as they are."""
    return torch.random.fork_rng(devices=[place] if place.type == "cuda" else [])


@dataclass
class _State:
    """What of a run changes, apart from tensors."""

    done: int = 0
    best: float = -math.inf
    log: list[list[float]] = field(default_factory=list)  # step, loss, vocals' and rest's SDR, seconds
    schedule: list[list[int]] = field(default_factory=list)

    @property
    def scores(self) -> list[float]:
        return [row[2] for row in self.log]


class _Run:
    """One run: its network and its state."""

    def __init__(
        self,
        pack: Pack,
        config: Config,
        options: TrainOptions,
        folder: Path | None,
        draws: Draws,
        initial: Callable[[nn.Module], None] | None,
        device: torch.device,
        group: Group,
    ) -> None:
        _check(pack, config, options)
        if options.batch < group.size:
            raise UsageError(f"expected a batch of at least one example a process ({group.size}), got {options.batch}")
        self.pack, self.config, self.options, self.folder = pack, config, options, folder
        self.device, self.group = device, group
        self.precision = _precision(options, device)
        torch.manual_seed(options.seed)  # of the forked generator, not the caller's
        samples = round(options.excerpt_s * config.sample_rate)
        self.remixer = Remixer(pack, remix=options.remix, samples=samples, **draws)
        self.net = build_network(config, options)
        self.averaged = copy.deepcopy(self.net)
        self.identity = {
            "config": config.to_dict(),
            "options": dataclasses.asdict(options),
            "draws": dict(draws),
            "data": pack.data_sha256,
            "store": pack.identity,
            "initial": initial is not None,
        }
        self.state = _State()
        self.waited_s = 0.0  # for the last batch's examples to be drawn
        saved = None if folder is None else _read(folder / "last.pt", self.identity)
        if saved is None:
            _standardise(self.net, self.remixer, options, config)
            if initial is not None:
                initial(self.net)
            self.averaged.load_state_dict(self.net.state_dict())
        self.net.to(device)
        self.averaged.to(device)
        if group.size > 1:
            with_global_norms(self.net)
        self.optimiser = torch.optim.Adam(
            self.net.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        if saved is not None:
            self._resume(saved)
        if not self.state.schedule or self.state.schedule[-1][1] != options.steps:
            self.state.schedule.append([self.state.done, options.steps])

    def _resume(self, saved: dict[str, Any]) -> None:
        self.net.load_state_dict(saved["net"])
        self.averaged.load_state_dict(saved["averaged"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.scaler.load_state_dict(saved["scaler"])
        self.state = _State(saved["step"], saved["best"], saved["log"], saved["schedule"])

    def go(self, journal: Journal, report: Callable[[Progress], None] | None) -> None:
        options, state = self.options, self.state
        losses: list[float] = []
        started = time.monotonic()
        batches = self.batches(state.done)
        while state.done < options.steps and not worn_out(state.scores, options.patience):
            begin = time.perf_counter()
            loss = self.step(state.done, next(batches))
            if not math.isfinite(loss):
                raise UsageError(
                    f"the loss of step {state.done + 1} is {loss}; what was saved before is whole: go on from there in "
                    f"a new folder with a learning rate below {options.learning_rate:g}"
                )
            losses.append(loss)
            state.done += 1
            score = None
            if state.done % options.every == 0 or state.done == options.steps:
                score = self.group.agree(self.validate() if self.group.leads else None)
                state.log.append(
                    [state.done, float(np.mean(losses)), *dataclasses.astuple(score), time.monotonic() - started]
                )
                losses = []
                better = score.target_sdr_db > state.best
                if better:
                    state.best = score.target_sdr_db
                if self.group.leads:
                    self._save(better)
                    journal.validated(state.log, self.averaged, self.device)
            if self.group.leads:
                journal.stepped(state.done, loss, self._rate(state.done - 1))
                if report is not None:
                    seconds = time.perf_counter() - begin
                    report(Progress(state.done, options.steps, loss, score, seconds, self.waited_s, options.batch))
        batches.close()

    def _rate(self, step: int) -> float:
        return learning_rate(self.options, step, self.state.scores)

    def step(self, step: int, batch: Batch) -> float:
        """One step of the optimiser; the loss of the whole batch."""
        options = self.options
        torch.manual_seed(_seed(options.seed, step, self.group.rank) if self.group.rank else _seed(options.seed, step))
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = self._rate(step)
        self.net.train()
        with self._autocast():
            mask = self.net.mask(batch.magnitude)  # type: ignore[operator]
        numerator, denominator = LOSSES[options.loss](mask.float(), batch)
        whole = self.group.total(denominator).clamp_min(LEAST_SUM)  # a batch of silence has nothing to be relative to
        self.scaler.scale(numerator / whole).backward()
        self.group.add_gradients(self.net)
        self.scaler.unscale_(self.optimiser)
        if options.clip:
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), options.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad()
        _average(self.averaged, self.net, min(options.ema, (1 + step) / (10 + step)) if options.ema else 0.0)
        return float(self.group.total(numerator.detach()) / whole)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16 if self.precision == "bf16" else torch.float16)

    def validate(self) -> Score:
        return validate(self.averaged, self.pack, self.config, self.device)

    def _save(self, better: bool) -> None:
        assert self.folder is not None
        state = self.state
        if better:
            origin = self.identity | {"step": state.done, "schedule": state.schedule}
            weights = {"state": self.averaged.state_dict(), "sdr_db": state.best}
            save_atomically(self.folder / "best.pt", origin | weights)
        save_atomically(
            self.folder / "last.pt",
            {
                "version": CHECKPOINT_VERSION,
                "identity": self.identity,
                "step": state.done,
                "best": state.best,
                "log": state.log,
                "schedule": state.schedule,
                "net": self.net.state_dict(),
                "averaged": self.averaged.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "scaler": self.scaler.state_dict(),
            },
        )

    def batches(self, first: int) -> Generator[Batch, None, None]:
        """This process' share of every batch from `first` on; the next is drawn while one is used.

        The transform stays in the caller's thread: two threads that both run parallel kernels get in each other's way.
        """
        options, config = self.options, self.config
        mine = range(self.group.rank, options.batch, self.group.size)

        def draw(step: int) -> Tensor:
            drawn = [self.remixer.draw(np.random.default_rng([options.seed, step, item])) for item in mine]
            return torch.from_numpy(np.stack([np.stack(example) for example in drawn]))

        with ThreadPoolExecutor(1, thread_name_prefix="draw") as ahead:
            waiting = ahead.submit(draw, first)
            for step in range(first, options.steps):
                begin = time.perf_counter()
                signals = waiting.result()  # (batch, mixture and target, channels, samples)
                self.waited_s = time.perf_counter() - begin
                waiting = ahead.submit(draw, min(step + 1, options.steps - 1))
                yield batch_of(signals.to(self.device), config)


def batch_of(signals: Tensor, config: Config) -> Batch:
    """Spectra of examples `(batch, mixture and target, any channels, samples)`."""
    spectra = stft(as_channels(signals, config.channels), config.n_fft, config.hop, center=False)
    mixture, target = spectra.permute(1, 0, 4, 2, 3)  # each (batch, frames, channels, bins)
    squares = torch.view_as_real(mixture).square()  # several times faster than `abs`, which minds overflow
    return Batch(mixture, target, (squares[..., 0] + squares[..., 1]).sqrt_(), config)


def _check(pack: Pack, config: Config, options: TrainOptions) -> None:
    if config.stems != ("vocals",):
        raise UsageError(f"this trainer trains a vocals network, the config has the stems {', '.join(config.stems)}")
    if options.loss not in LOSSES:
        raise UsageError(f"no loss named {options.loss!r}; known: {', '.join(LOSSES)}")
    if round(options.excerpt_s * config.sample_rate) < config.n_fft:
        raise UsageError(
            f"expected excerpts of at least one window, {config.n_fft / config.sample_rate:.3f} s, got "
            f"{options.excerpt_s:g} s"
        )
    if not validation_songs(pack):
        raise UsageError("the store holds no song to validate with: pack the songs again with some in a folder valid")
    if pack.sample_rate != config.sample_rate:
        raise UsageError(
            f"the store is at {pack.sample_rate} Hz and the network at {config.sample_rate} Hz: pack the songs again "
            f"with --rate {config.sample_rate}"
        )


def build_network(config: Config, options: TrainOptions) -> nn.Module:
    """The network of a run, with first weights drawn from torch's generator."""
    if config.network != "blstm":
        raise UsageError(f"the options name the network to train: leave out network {config.network!r} in the config")
    if config.second:
        raise UsageError("the two networks of a pair are trained one by one: leave out `second` in the config")
    if options.network == "openunmix":
        from umx_ext.training.baseline import OpenUnmixNet

        return OpenUnmixNet(config)
    if options.network == "unet":
        if len(config.branches) != 1 or config.mask != "sigmoid":
            raise UsageError("a U-Net has one branch and the mask sigmoid: give --branches linear-log --mask sigmoid")
        return UNet(config)
    return MaskNet(config)


def _precision(options: TrainOptions, device: torch.device) -> str:
    """What `auto` means on this device; fp16 is for GPUs."""
    asked = options.precision
    if asked == "fp16" and device.type == "cpu":
        raise UsageError("fp16 is for GPUs: give precision float32, bf16 or auto on a CPU")
    # cuDNN's LSTM makes float16 of it, whose gradients nothing scales; our own network steps out of it there.
    foreign = device.type == "cuda" and options.network == "openunmix"
    if asked == "bf16" and foreign:
        raise UsageError("open-unmix's network is not trained in bf16 on a GPU: give precision float32, fp16 or auto")
    if asked != "auto":
        return asked
    if foreign:
        return "float32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "float32"
    # Emulated where the CPU has no units for it, which is slower than float32.
    asks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return "bf16" if device.type == "cpu" and any(ask is not None and ask() for ask in asks) else "float32"


def _read(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
        version, theirs = saved["version"], saved["identity"]
    except Exception as error:  # torch raises a dozen kinds
        raise ModelError(f"{path} is no checkpoint of this trainer, or damaged; delete it to start anew") from error
    if version != CHECKPOINT_VERSION:
        raise ModelError(f"{path} was written by another version of the trainer; give another folder, or delete it")
    for part in identity:
        ours, other = identity[part], theirs.get(part)
        if part == "options":
            ours, other = ours | {"steps": None}, other | {"steps": None}
        if ours != other:
            raise UsageError(
                f"{path.parent} holds a run with other settings or data: {_difference(part, ours, other)}; give "
                "another folder, or delete it"
            )
    return saved


def _difference(part: str, ours: Any, theirs: Any) -> str:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in [*ours, *theirs]:
            if ours.get(name) != theirs.get(name):
                return f"{name} is {ours.get(name)!r} and was {theirs.get(name)!r}"
    return f"its {part} differ"


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _standardise(net: nn.Module, remixer: Remixer, options: TrainOptions, config: Config) -> None:
    """Set each encoder's mean and scale from remixed training examples, per feature, channels together."""
    found = {"": net} if isinstance(net, UNet) else getattr(net, "encoders", {})
    encoders = {name: encoder for name, encoder in found.items() if isinstance(encoder, Encoder | UNet)}
    totals: dict[str, list[Tensor]] = {name: [] for name in encoders}
    magnitudes = []
    for item in range(STATISTICS_EXAMPLES):
        mixture, _ = remixer.draw(np.random.default_rng([options.seed, 2**31, item]))
        waveform = as_channels(torch.from_numpy(mixture), config.channels)
        magnitude = stft(waveform, config.n_fft, config.hop, center=False).abs().permute(2, 0, 1)
        magnitudes.append(magnitude.flatten(0, 1))
        for name, encoder in encoders.items():
            totals[name].append(encoder.branch(magnitude[None]).flatten(0, 2).double())
    for name, encoder in encoders.items():
        mean, deviation = _statistics(torch.cat(totals[name]))
        with torch.no_grad():
            encoder.mean.copy_(-mean)
            encoder.scale.copy_(1.0 / deviation)
    standardise = getattr(net, "standardise", None)
    if standardise is not None:
        standardise(*_statistics(torch.cat(magnitudes).double()))


def _statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every feature, the latter not below a small part of the largest."""
    deviation = features.std(dim=0)
    return features.mean(dim=0), deviation.clamp_min(max(1e-4 * float(deviation.max()), 1e-8))


@torch.no_grad()
def _average(averaged: nn.Module, net: nn.Module, decay: float) -> None:
    for old, new in zip(averaged.state_dict().values(), net.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1.0 - decay)
        else:
            old.copy_(new)
