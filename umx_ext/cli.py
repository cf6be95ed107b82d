"""The command `umx-ext`: dispatch, exit codes and signals. Only this layer prints and exits.

    0    all done
    1    some inputs failed; the others are done and a summary names the failures
    2    the call itself makes no sense, or an optional package is missing
    3    a model cannot be found, downloaded, verified or built
    4    nothing could be decoded
    5    out of memory
    6    an output cannot be written
    130  interrupted (Ctrl-C or SIGTERM); no half written file is left

This module is what answers `umx-ext --help`, so it imports nothing slow: no torch, no cyclopts, no rich. Each command
lives in a module of `umx_ext.commands` that is imported when it is called.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from umx_ext import __version__
from umx_ext.commands import interrupts
from umx_ext.commands.terminal import Terminal
from umx_ext.errors import OutputError, UmxError, UsageError

__all__ = ["COMMANDS", "main", "run"]

INTERRUPTED = 130

COMMANDS = {
    "separate": "take songs apart: vocals and accompaniment, or a karaoke track",
    "mix": "mix a vocal take over a backing track: equaliser, compressor, reverb, level",
    "evaluate": "score separations by MUSDB18's protocol, beside rows that calibrate the figures",
    "evaluate-mix": "how far a mix is from a reference mix: loudness, spectrum, panning, dynamics",
    "mixstats": "measure the constants of mixing on a corpus: relative loudness, loudness range, level",
    "data": "decode songs with known stems once, for training",
    "train": "train a network on remixed stems, in a run that survives being killed",
    "models": "list, show, fetch, locate, verify and export the models",
    "doctor": "what is installed, which device would be used and why, and what mends what is missing",
}

_OVERVIEW = """\
umx-ext separate song.mp3              writes separated/<model>/song/vocals.wav and accompaniment.wav
umx-ext separate --karaoke song.mp3    writes song.karaoke.wav beside the song
umx-ext mix take.wav song.karaoke.wav  mixes a voice over it, as take.mix.wav
umx-ext evaluate --root musdb18        separates the test songs and scores the result

umx-ext takes songs apart into their stems, puts stems together into a song, and judges both.

Usage: umx-ext COMMAND [OPTIONS]

Commands:
{commands}

Options:
  -h, --help    this text; `umx-ext COMMAND --help` explains a command
  --version     the version

Environment:
  UMX_EXT_DEVICE     the device where --device is not given: auto, cpu, cuda, cuda:1, mps
  UMX_EXT_CACHE      folder of downloaded models, instead of torch.hub's
  UMX_EXT_OFFLINE    1: never download
  NO_COLOR           no colours

Exit codes: 0 all done, 1 some inputs failed, 2 usage, 3 model or download, 4 nothing decodable, 5 out of memory,
6 output not writable, 130 interrupted.
"""


def overview() -> str:
    """The text of `umx-ext --help`."""
    return _OVERVIEW.format(commands="\n".join(f"  {name:<14}{says}" for name, says in COMMANDS.items()))


def run() -> NoReturn:
    """The process's entry point: `main`, then exit with its code."""
    collect_seldom()
    if sys.argv[1:2] in (["separate"], ["mix"]):
        share_one_heap()
        if sys.argv[1] == "separate":
            wait_asleep()
    elif sys.argv[1:2] == ["train"]:
        keep_memory()
    code = main()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    if code == INTERRUPTED:
        # Workers may be deep inside a matrix product; everything on disk is already in order.
        os._exit(code)
    sys.exit(code)


def share_one_heap() -> None:
    """Have glibc give all threads one heap instead of one each, where what one thread frees no other can use.

    Measured on 5 minutes with two workers: peak memory 553 MB instead of 699, in the same time. And what is freed stays
    in the heap, but for the largest, that the next window of a song does not fault its pages in again: 4 minutes take a
    tenth less of the system's time, and no more memory. A library must not do this to its caller's process, so it is
    done here, and only where the process is ours.
    """
    _mallopt(-8, 1)  # M_ARENA_MAX of malloc.h
    _mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
    _mallopt(-1, 64 << 20)  # M_TRIM_THRESHOLD


def wait_asleep() -> None:
    """Have OpenMP's threads sleep between torch's parallel loops; by default they run on in circles for a while.

    The workers that take a song apart need the cores: 4 minutes take a sixth less time. For our own process only, as
    above, and before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def collect_seldom() -> None:
    """Have Python look for garbage in circles after 50 000 new objects, not some hundreds or thousands.

    Each look at all that torch has made takes a tenth of a second, and an import is followed by several. What songs
    leave behind is in no circle. For our own process only, as above.
    """
    import gc

    gc.set_threshold(50_000, 20, 100)


def keep_memory() -> None:
    """Have glibc keep what is freed: giving back the large temporaries of every training step, and asking for them
    again, costs more time than the mathematics. For our own process only, as above.
    """
    _mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
    _mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def _mallopt(parameter: int, value: int) -> None:
    import ctypes

    with contextlib.suppress(OSError, AttributeError, TypeError):  # not glibc: nothing to set
        ctypes.CDLL(None).mallopt(parameter, value)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit code; nothing is raised.

    Args:
        argv: arguments without the program's name; default `sys.argv[1:]`.
    """
    tokens = list(sys.argv[1:] if argv is None else argv)
    interrupts.arrived.clear()
    with _signals():
        return _answer(tokens)


def _answer(tokens: list[str]) -> int:
    terminal = Terminal()
    verbose = bool({"-v", "--verbose"} & set(tokens))
    try:
        with warnings.catch_warnings():
            if not verbose:
                # A dependency's warning is not the one line that a person gets to read.
                warnings.simplefilter("ignore")
            code = _dispatch(tokens)
            interrupts.heed()
            return code
    except BaseException as error:
        if interrupts.arrived.is_set() or isinstance(error, KeyboardInterrupt):
            # Whatever a library made of the interrupt that landed in it, it was an interrupt.
            terminal.error("interrupted; files already finished are kept, no half written file is left")
            return INTERRUPTED
        if isinstance(error, SystemExit):
            return error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error, BrokenPipeError):
            # Whoever read our output has left; writing to them again at exit would complain a second time.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return OutputError.exit_code
        if verbose and not isinstance(error, UmxError):
            import traceback

            traceback.print_exc()
        terminal.error(explain(error))
        return exit_code(error)


def exit_code(error: BaseException) -> int:
    """The exit code that an exception stands for."""
    return error.exit_code if isinstance(error, UmxError) else UmxError.exit_code


def explain(error: BaseException) -> str:
    """One sentence about an exception, ours or not."""
    if isinstance(error, UmxError):
        return str(error)
    return f"unexpected {type(error).__name__}: {error}; -v shows where, please report it"


def _dispatch(tokens: list[str]) -> int:
    if not tokens or tokens[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return 0
    if tokens[0] in ("--version", "-V"):
        sys.stdout.write(f"umx-ext {__version__}\n")
        return 0
    name, rest = tokens[0], tokens[1:]
    if name not in COMMANDS:
        raise UsageError(_unknown_command(name))
    command = importlib.import_module(f"umx_ext.commands.{name.replace('-', '_')}")
    prepare = getattr(command, "prepare", None)
    return _parse_and_run(command.app, rest if prepare is None else prepare(rest))


def _parse_and_run(app: Any, tokens: list[str]) -> int:
    """Run a cyclopts app on the tokens; its complaints become `UsageError`, of one line."""
    import cyclopts

    try:
        code = app(
            told_apart(tokens),
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except cyclopts.CycloptsError as error:
        sentence = " ".join(str(error).split())
        raise UsageError(f"{sentence.rstrip('.')}; see umx-ext {app.name[0]} --help") from error
    return int(code or 0)


def told_apart(tokens: list[str]) -> list[str]:
    """The tokens without `--`: names behind it that begin with a dash get a `./`, so that none looks like an option.

    Raises:
        UsageError: a file's name stands where it is read as options: `-dash.wav` is `-d ash.wav`.
    """
    at = tokens.index("--") if "--" in tokens else len(tokens)
    for token in tokens[:at]:
        if token.startswith("-") and "." in token and os.path.isfile(token):
            raise UsageError(f"{token} is read as options; for the file of that name, write ./{token}")
    return tokens[:at] + [f"./{name}" if name.startswith("-") else name for name in tokens[at + 1 :]]


def _unknown_command(name: str) -> str:
    if os.path.exists(name):
        return f"{name} is no command; did you mean: umx-ext separate {name}"
    close = [command for command in COMMANDS if len(name) > 1 and command.startswith(name)]
    close = close or difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"; did you mean {close[0]}?" if close else ";"
    return f"{name} is no command{hint} Commands are {', '.join(COMMANDS)}; see umx-ext --help"


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGINT and SIGTERM both raise KeyboardInterrupt in the main thread, once; the old handlers come back."""

    def stop(signum: int, frame: object) -> None:
        for number in old:
            signal.signal(number, signal.SIG_IGN)  # tidying up is not to be interrupted
        interrupts.arrived.set()
        raise KeyboardInterrupt

    old: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            old[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
