"""`umx-ext mix`: a vocal take over a backing track.

The work is done in a worker thread: a signal then always lands in the main thread, which does nothing but wait.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from umx_ext.commands.mix_arguments import Arguments
from umx_ext.commands.terminal import Terminal, one_line
from umx_ext.errors import OutputError, UmxError, UsageError

if TYPE_CHECKING:
    from umx_ext.commands.take import Job, Result
    from umx_ext.mixing.settings import Settings

__all__ = ["app", "mix"]

PATIENCE_S = 2.0  # a person waits this long without asking what goes on
STEPS = 1000  # of the progress bar

EXAMPLE = """\
umx-ext mix take.wav song.karaoke.wav -o mix.wav
umx-ext mix take.wav song.karaoke.wav -o wet.wav --reverb-db -12
umx-ext mix take.wav song.karaoke.wav -o moved.wav --song song.mp3
                        moves the take to where the song's own singer sings
umx-ext mix take.wav backing.wav -o one.wav --save-chain chain.json --plot one.png
umx-ext mix take.wav backing.wav -o two.wav --chain chain.json
                        once you have changed in it what you want otherwise
"""

app = App(
    name="mix",
    help_prologue=EXAMPLE,
    usage="Usage: umx-ext mix TAKE BACKING [OPTIONS]",
    help_format="plaintext",
    version_flags=(),
)
app["--help"].show = False


@app.default
def mix(
    take: Annotated[str, Parameter(name="TAKE", help="The voice, as recorded: a mono or stereo file of any format.")],
    backing: Annotated[
        str,
        Parameter(name="BACKING", help="What it was sung over, such as a karaoke track. The mix has its sample rate."),
    ],
    /,
    *,
    arguments: Arguments = Arguments(),  # noqa: B008 - frozen
) -> int:
    """Mix a vocal take over a backing track.

    The take loses what coloured its tone, gets room where it and the backing
    hide each other, an even loudness, reverberation of the song's tempo where
    that is asked for, and its level. The backing is left as it is. The mix
    never clips. One line on standard output says what was done.
    """
    arguments.check()
    outputs = arguments.outputs(take)
    arguments.check_files(take, backing, outputs)
    kind = arguments.chosen_format(outputs.mix)
    terminal = Terminal(
        quiet=arguments.quiet or arguments.json,
        verbose=arguments.verbose,
        progress=not (arguments.no_progress or arguments.quiet),
    )
    with terminal:
        files, kept = _left_to_do(outputs.named(), arguments.if_exists)
        shown = f"{take} over {backing}"
        if kept:
            there = ", ".join(str(path) for path in kept.values())
            remedy = "--if-exists overwrite makes it again"
            terminal.result(f"{shown}: {'kept' if files else 'skipped,'} {there}{'' if files else ' there'}; {remedy}")
        if not files:
            if arguments.json:
                outputs_there = {name: str(path) for name, path in kept.items()}
                terminal.record({"take": take, "backing": backing, "status": "skipped", "outputs": outputs_there})
            return 0
        from umx_ext.commands.mix_report import as_line, as_record

        try:
            job = _job(arguments, take, backing, files, kind)
            result = _Run(terminal).do(job, shown)
        except UmxError as error:
            if arguments.json:
                fields = {"status": "failed", "error": str(error), "exit_code": error.exit_code}
                terminal.record({"take": take, "backing": backing, **fields})
            raise
        if arguments.json:
            terminal.record(as_record(job, result))
        terminal.result(f"{shown}: {as_line(job, result)}")
    return 0


def _left_to_do(outputs: Mapping[str, Path], policy: str) -> tuple[dict[str, Path], dict[str, Path]]:
    """What --if-exists leaves to write, and what it keeps."""
    there = {name: path for name, path in outputs.items() if os.path.lexists(path)}
    if there and policy == "error":
        first = next(iter(there.values()))
        raise OutputError(f"{first} is already there; give --if-exists skip or overwrite, or another name")
    if policy == "overwrite":
        return dict(outputs), {}
    return {name: path for name, path in outputs.items() if name not in there}, there


def _job(arguments: Arguments, take: str, backing: str, files: Mapping[str, Path], kind: str) -> Job:
    if "plot" in files:
        from umx_ext.plot import require_matplotlib

        require_matplotlib()
    from umx_ext.commands.take import Job, read_chains

    settings = _settings(arguments)
    return Job(
        take=take,
        backing=backing,
        song=arguments.song,
        outputs=files,
        format=kind,
        bits=arguments.bits,
        settings=settings if arguments.chain is None else None,
        chains=None if arguments.chain is None else read_chains(arguments.chain),
        chain_file=arguments.chain,
        ceiling_db=settings.true_peak_db,
        offset_ms=arguments.offset_ms,
        auto=arguments.auto,
        device=arguments.device,
        overwrite=arguments.if_exists == "overwrite",
    )


def _settings(arguments: Arguments) -> Settings:
    """The preset, with what the call says instead."""
    import dataclasses

    from umx_ext.mixing.settings import PRESETS

    name = arguments.preset or "studio"
    if name not in PRESETS:
        raise UsageError(f"--preset takes {' or '.join(PRESETS)}, not {name}")
    said = {
        "vocal_db": arguments.vocal_db,
        "reverb": None if arguments.reverb_db is None else True,
        "reverb_lu": arguments.reverb_db,
        "bpm": arguments.bpm,
        "lufs": arguments.lufs,
        "true_peak_db": arguments.true_peak,
    }
    changes: dict[str, Any] = {field: value for field, value in said.items() if value is not None}
    return dataclasses.replace(PRESETS[name], **changes)


class _Run:
    """One mix in its thread, with its progress bar."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.begin = time.monotonic()
        self.bar: int | None = None
        self.said = ""

    def do(self, job: Job, shown: str) -> Result:
        from umx_ext.commands.outputs import Files
        from umx_ext.commands.song import out_of_memory_as_ours
        from umx_ext.commands.take import mix

        if job.auto and job.song is not None:
            self._fetch_model()
        cancelled = threading.Event()
        files = Files(cancelled)

        def work() -> Result:
            with out_of_memory_as_ours(shown, "close other programs, or mix a shorter piece"):
                return mix(job, files, progress=lambda says, share: self._step(shown, says, share))

        executor = ThreadPoolExecutor(1, thread_name_prefix="mix")
        try:
            result = executor.submit(work).result()
        except BaseException:
            cancelled.set()
            files.discard()
            executor.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            self.terminal.end(self.bar)
        executor.shutdown()
        return result

    def _fetch_model(self) -> None:
        from umx_ext.commands.fetching import Downloads
        from umx_ext.separation.pretrained import DEFAULT_MODEL, pull

        with Downloads(self.terminal) as progress:
            pull(DEFAULT_MODEL, progress)

    def _step(self, shown: str, says: str, share: float) -> None:
        if says != self.said:
            self.said = says
            self.terminal.detail(f"{time.monotonic() - self.begin:6.1f} s  {says}")
        if self.bar is None and time.monotonic() - self.begin > PATIENCE_S:
            self.bar = self.terminal.bar(one_line(shown), STEPS)
        self.terminal.advance(self.bar, round(share * STEPS), STEPS)
