"""`umx-ext train`: a network from songs with known stems, in a run that survives being killed."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.config import Toml

from umx_ext.commands import interrupts
from umx_ext.commands.options import defaulted, option
from umx_ext.commands.terminal import Terminal, one_line
from umx_ext.errors import UsageError
from umx_ext.separation.config import Config
from umx_ext.training.options import TrainOptions

if TYPE_CHECKING:
    from umx_ext.training.fit import DryRun, Progress

__all__ = ["app", "prepare"]

EXAMPLE = """\
umx-ext data pack musdb18 packed                 decode the songs once
umx-ext train packed run --dry-run               what it would take
umx-ext train packed run                         train; killed and called
                                                 again, it goes on
umx-ext train my.toml packed run --batch 8       settings from a file, and
                                                 one of them otherwise
"""

app = App(
    name="train",
    help_prologue=EXAMPLE,
    usage="Usage: umx-ext train [CONFIG.toml] STORE RUN [OPTIONS]",
    help_format="plaintext",
    version_flags=(),
)
app["--help"].show = False

_NETWORK = Group("The network", sort_key=2)
_TRAINING = Group("The training", sort_key=3)
_EXAMPLES = Group("The examples", sort_key=4)

SHOWN_EVERY_S = 0.2
SMOOTH = 0.98  # of the loss in the progress line


@Parameter(name="*", group=_NETWORK, negative="")
@dataclass(frozen=True)
class Shape(Config):
    branches: tuple[str, ...] = ("linear-log", "mel")
    hidden: int = 256
    mask: str = "sigmoid"
    # The networks of a pair are trained one by one.
    second: Annotated[tuple[str, ...], Parameter(parse=False)] = ()
    second_mask: Annotated[str, Parameter(parse=False)] = "relu"
    second_share: Annotated[float, Parameter(parse=False)] = 0.0
    second_network: Annotated[str, Parameter(parse=False)] = "blstm"
    network: Annotated[str, Parameter(parse=False)] = "blstm"  # the options' --network says it


def readable(doc: str | None) -> str:
    """A docstring for a terminal: names without the marks that say they are code."""
    return re.sub(r'``"?(.*?)"?``|`(.*?)`', r"\1\2", doc or "")


Shape.__doc__ = readable(Config.__doc__)


@dataclass(frozen=True)
class Options(TrainOptions):
    pass


Options.__doc__ = readable(TrainOptions.__doc__)


@Parameter(name="*", group=_EXAMPLES, negative="")
@dataclass(frozen=True)
class Draws:
    """How examples are put together.

    Attributes:
        own_song: share of examples whose stems are all from one excerpt of one song.
        own_accompaniment: share in which drums, bass and other are one excerpt of one song, the vocals of another. In
            the rest every stem comes from a song of its own.
        mir1k_vocals: share of examples with loose vocals, or those of a pair, of those whose vocals are from a song of
            their own.
        mir1k_whole: share that is a pair of vocals and accompaniment.
        loose_accompaniments: share in which a loose accompaniment takes the place of drums, bass and other.
        no_vocals: share without vocals.
        swap_channels: chance to swap left and right, for each excerpt.
        p_remix: share of examples whose stems are chosen by the options of this group; the others are one excerpt of
            one song, in new levels.
        max_tries: how often an excerpt that hardly sounds is moved in its song.
        p_keep_silent_target: chance that an excerpt whose vocals hardly sound is kept all the same.
        augment: strength, 0 to 1, of an augmentation, as --augment.NAME STRENGTH: speed, eq, tilt, band, reverb, width,
            balance, swap, polarity, gain, or another in umx_ext.training.augment.AUGMENTATIONS.
    """

    own_song: float = 0.25
    own_accompaniment: float = 0.3
    mir1k_vocals: float = 0.4
    mir1k_whole: float = 0.06
    loose_accompaniments: float = 0.15
    no_vocals: float = 0.03
    swap_channels: float = 0.5
    p_remix: float = 1.0
    max_tries: int = 0
    p_keep_silent_target: float = 1.0
    augment: Annotated[dict[str, float], Parameter(show_default=False)] = field(default_factory=dict)


def prepare(tokens: Sequence[str]) -> list[str]:
    """The command line without a leading CONFIG.toml, whose settings become the defaults of this call."""
    app.config = ()
    if tokens and tokens[0].lower().endswith(".toml"):
        if not os.path.isfile(tokens[0]):
            raise UsageError(f"{tokens[0]} does not exist; expected a TOML file with settings such as: steps = 4000")
        config = Toml(tokens[0], use_commands_as_keys=False, allow_unknown=False)
        try:
            _ = config.config  # read here, where a mistake in it can be told from one on the command line
        except (ValueError, CycloptsError) as error:
            where = str(error).rpartition(": ")[2]
            raise UsageError(f"{tokens[0]} is not TOML ({where}); expected lines such as: steps = 4000") from error
        app.config = (config,)
        return list(tokens[1:])
    return list(tokens)


@app.default
def train(
    store: Annotated[str, Parameter(name="STORE", help="What umx-ext data pack made.", negative="")],
    run: Annotated[str, Parameter(name="RUN", help="The folder of the run; made if need be.", negative="")],
    *,
    shape: Shape = Shape(),
    options: Annotated[Options, Parameter(name="*", group=_TRAINING, negative="")] = Options(),
    draws: Draws = Draws(),
    init: Annotated[
        str | None, option("--init", metavar="MODEL", help="Start from the weights of a model or a file (umxhq, ...).")
    ] = None,
    import_: Annotated[
        tuple[str, ...],
        option("--import", metavar="MODULE", help="Import a module first that registers branches, remixes or losses."),
    ] = (),
    device: Annotated[str, defaulted("-d", "--device", help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    tensorboard: Annotated[bool, option("--tensorboard", help="Write events for TensorBoard as well.")] = False,
    dry_run: Annotated[
        bool, option("--dry-run", help="A few steps and one validation: time, memory, and how long the run would take.")
    ] = False,
    quiet: Annotated[bool, option("-q", "--quiet", help="No progress, no lines for people.")] = False,
) -> int:
    """Train a separator's network on remixed stems.

    Most examples are new songs made of excerpts of others; validation songs are never remixed. The run's folder gets
    last.pt, from which a run that was killed goes on to the bit, best.pt, the averaged weights with the best validation
    score, and log.csv. Under torchrun several processes do one run together.
    """
    from umx_ext.separation.pretrained import pick_device
    from umx_ext.training import fit as trainer
    from umx_ext.training.export import chosen_of, export
    from umx_ext.training.tracks import Pack

    for module in import_:
        _import(module)
    config = Config(**{field.name: getattr(shape, field.name) for field in dataclasses.fields(shape)})
    pack, place = Pack(Path(store)), str(pick_device(device))
    if place == "cpu":
        _require_cores(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # torchrun says how many processes it started here
    terminal = Terminal(quiet=quiet)
    initial = None if init is None else _initial(init)
    if dry_run:
        chosen = dataclasses.asdict(draws)
        _say(terminal, trainer.dry_run(pack, config, options, draws=chosen, initial=initial, device=place), options)
        return 0
    with _Line(options, quiet) as line:
        best = trainer.fit(
            pack,
            config,
            options,
            Path(run),
            draws=dataclasses.asdict(draws),
            initial=initial,
            device=place,
            tensorboard=tensorboard,
            progress=line.show,
        )
    if int(os.environ.get("RANK", "0")) == 0:
        model = best.with_name("model.safetensors")
        chosen = chosen_of(best.parent)
        export(chosen, model)
        terminal.result(
            f"{model}: {config.stems[0]} {chosen['sdr_db']:.2f} dB on the validation songs; use it with "
            f"umx-ext separate -n {model}"
        )
    return 0


def _require_cores(processes: int) -> None:
    cores = os.cpu_count() or 1
    if processes > cores:
        raise UsageError(
            f"{processes} processes on {cores} cores would only wait for each other; give torchrun "
            f"--nproc_per_node={cores} or less"
        )


def _import(module: str) -> None:
    sys.path.insert(0, os.getcwd())  # where `python -m` would look first
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{module} cannot be imported ({error}); give a module as in --import my_branch") from error
    finally:
        sys.path.remove(os.getcwd())


def _initial(name: str) -> Any:
    from umx_ext.separation.initial import init_from

    return lambda net: init_from(net, name)


def _say(terminal: Terminal, dry: DryRun, options: TrainOptions) -> None:
    terminal.result(
        f"{dry.parameters / 1e6:.1f} M parameters on {dry.device} in {dry.precision}; {dry.step_s:.2f} s a step of "
        f"{options.batch} examples ({options.batch / dry.step_s:.1f} a second), {dry.validation_s:.0f} s a validation; "
        f"{dry.peak_mb:.0f} MB; {options.steps} steps take {_duration(dry.run_s)}"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class _Line:
    """One line on standard error that is written over: step, loss, score, speed, time left."""

    def __init__(self, options: TrainOptions, quiet: bool) -> None:
        self.options, self.quiet = options, quiet
        self.best, self.any = float("-inf"), False
        self._loss = self._seconds = 0.0
        self._waited = self._spent = 0.0
        self._shown = 0.0
        self._seen = 0
        self._tty = sys.stderr.isatty()

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tty and not self.quiet and self._seen:
            sys.stderr.write("\n")

    def show(self, now: Progress) -> None:
        interrupts.heed()
        self._seen += 1
        keep = SMOOTH if self._seen > 1 else 0.0
        self._loss = keep * self._loss + (1 - keep) * now.loss
        if now.score is None:  # a validation is no part of a step
            self._waited += now.waited_s
            self._spent += now.seconds
        else:
            self.best, self.any = max(self.best, now.score.target_sdr_db), True
        if self.quiet:
            return
        if now.score is not None:
            self._write(
                f"step {now.step}: loss {self._loss:.4f}, vocals {now.score.target_sdr_db:.2f} dB, accompaniment "
                f"{now.score.rest_sdr_db:.2f} dB",
                stays=True,
            )
        elif self._tty and time.monotonic() - self._shown > SHOWN_EVERY_S and self._spent:
            self._shown = time.monotonic()
            step_s = self._spent / self._seen
            score = f"  best {self.best:.2f} dB" if self.any else ""
            self._write(
                f"step {now.step}/{now.steps}  loss {self._loss:.4f}{score}  {now.examples / step_s:.1f} examples/s  "
                f"{100 * self._waited / self._spent:.0f} % waiting  {_duration((now.steps - now.step) * step_s)} left"
            )

    def _write(self, line: str, *, stays: bool = False) -> None:
        if self._tty:
            line = f"\r{one_line(line):<110}"
        sys.stderr.write(line + ("\n" if stays or not self._tty else ""))
        sys.stderr.flush()
