"""`umx-ext data`: songs with known stems, decoded once for training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from umx_ext.commands.options import defaulted, option
from umx_ext.commands.terminal import Terminal
from umx_ext.errors import UsageError

__all__ = ["app"]

app = App(
    name="data",
    help_prologue="umx-ext data pack musdb18 mir1k packed    decode all songs once, for umx-ext train\n",
    usage="Usage: umx-ext data COMMAND [OPTIONS]",
    help="Songs with known stems, for training.",
    help_format="plaintext",
    version_flags=(),
)
app["--help"].show = False

packing = App(
    name="pack",
    help_prologue="umx-ext data pack musdb18 mir1k packed\n",
    usage="Usage: umx-ext data pack ROOT... OUT [OPTIONS]",
    help_format="plaintext",
    version_flags=(),
)
packing["--help"].show = False
app.command(packing)


@packing.default
def pack_(
    *folders: Annotated[
        str, Parameter(name="ROOT... OUT", help="Folders of songs with stems, and the folder to make.", negative="")
    ],
    vocals: Annotated[tuple[str, ...], option("--vocals", metavar="DIR", help="Loose vocals for other songs.")] = (),
    accompaniment: Annotated[
        tuple[str, ...], option("--accompaniment", metavar="DIR", help="Loose accompaniments for other vocals.")
    ] = (),
    rate: Annotated[int, defaulted("--rate", metavar="HZ", help="Sample rate of the store, Hz.")] = 44100,
    speed: Annotated[
        tuple[float, ...],
        defaulted(
            "--speed", metavar="FACTOR", help="Store each training song at this speed as well; may be given often."
        ),
    ] = (),
    quiet: Annotated[bool, option("-q", "--quiet", help="No progress, no lines for people.")] = False,
) -> int:
    """Decode songs once into one memory-mapped store, from which training examples are drawn many times faster.

    ROOT is a MUSDB18 (.stem.mp4), a MUSDB18-HQ (wav), its 7-second sample, MIR-1K, or a folder of <song>/<stem>.wav
    with or without subfolders train and valid. A folder test is never looked into. Songs that cannot be read are left
    out and named.
    """
    from umx_ext.training.tracks import pack

    if len(folders) < 2:
        raise UsageError("expected one folder of songs or more, and the folder to make: umx-ext data pack ROOT... OUT")
    *roots, out = folders
    if (Path(out) / "index.json").exists():
        raise UsageError(f"{out} is a store already; delete it to pack the songs again")
    with Terminal(quiet=quiet) as terminal:
        bar = terminal.bar("decoding", None)
        done = pack(
            [Path(root) for root in roots],
            Path(out),
            vocals=[Path(folder) for folder in vocals],
            accompaniments=[Path(folder) for folder in accompaniment],
            sample_rate=rate,
            speeds=tuple(dict.fromkeys((1.0, *speed))),
            progress=lambda number, total: terminal.advance(bar, number, total),
        )
        for name, why in done.skipped.items():
            terminal.error(f"left out: {name}: {why}")
        for note in done.notes:
            terminal.result(note)
        left_out = f", {len(done.skipped)} left out" if done.skipped else ""
        terminal.result(f"{out}: {done.tracks} songs, clips and loose stems{left_out}")
    return 1 if done.skipped else 0
