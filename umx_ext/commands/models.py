"""`umx-ext models`: what models there are, where they are, and whether they are whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from umx_ext.codecs.formats import shown
from umx_ext.commands.fetching import Downloads, ask_for_acceptance
from umx_ext.commands.terminal import Terminal
from umx_ext.errors import ModelError
from umx_ext.separation import pretrained

if TYPE_CHECKING:
    from torch import Tensor

    from umx_ext.separation.config import Config

__all__ = ["app"]

CHECKED_S = 60.0  # of a song, that an exported file is checked on

EXAMPLE = """\
umx-ext models list           which there are, and which are here already
umx-ext models pull umxhq     fetch one before going offline
umx-ext models export umxhq   write its networks as an ONNX file
"""

app = App(
    name="models",
    help_prologue=EXAMPLE,
    usage="Usage: umx-ext models COMMAND [OPTIONS]",
    help="The models: list, show, pull, path, verify, export.",
    help_format="plaintext",
    version_flags=(),
)
app["--help"].show = False

Name = Annotated[str, Parameter(name="MODEL", help="A name from `umx-ext models list`.")]
Accept = Annotated[
    bool,
    Parameter(
        name="--accept-license",
        negative="",
        show_default=False,
        help="Agree to the terms of a model that asks; once a model.",
    ),
]
Quiet = Annotated[bool, Parameter(name=("-q", "--quiet"), negative="", show_default=False, help="No progress bars.")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", show_default=False, help="One line of JSON a model.")]


def _command(name: str, example: str, takes: str = "") -> App:
    usage = f"Usage: umx-ext models {name} {takes}".rstrip()
    child = App(name=name, help_prologue=f"{example}\n", usage=usage, help_format="plaintext", version_flags=())
    child["--help"].show = False
    app.command(child)
    return child


@_command("list", "umx-ext models list", "[--json]").default
def list_(*, as_json: AsJson = False) -> int:
    """Which models there are, and which are here already; the first is the default."""
    terminal = Terminal()
    rows = [("model", "here", "size", "licence", "stems", "")]
    for info in pretrained.models():
        if as_json:
            terminal.record(
                {
                    "name": info.name,
                    "description": info.description,
                    "stems": list(info.stems),
                    "license": info.license,
                    "default": info.default,
                    "embedded": info.embedded,
                    "available": info.available,
                    "paths": [str(path) for path in info.paths],
                    "size_bytes": info.size_bytes,
                }
            )
        size = "" if info.size_bytes is None else f"{info.size_bytes / 1e6:.0f} MB"
        here = "yes" if info.available else "missing" if info.embedded else "no"
        rows.append((info.name, here, size, info.license, ",".join(info.stems), info.description))
    if not as_json:
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            terminal.result("  ".join([*cells, row[-1]]).rstrip())
    return 0


@_command("show", "umx-ext models show umxl", "MODEL").default
def show(
    model: Annotated[str, Parameter(name="MODEL", help="A name from `umx-ext models list`, or a .safetensors file.")], /
) -> int:
    """Everything known about a model: what it separates, how it was made, its terms."""
    terminal = Terminal()
    if model not in pretrained.MODELS and Path(model).is_file():
        text = json.dumps(pretrained.read_metadata(model), indent=2, ensure_ascii=False)
    else:
        text = f"{pretrained.card(model).rstrip()}\n\n## Terms of the weights\n\n{pretrained.license(model).rstrip()}"
    for line in text.splitlines():
        terminal.result(line)
    return 0


@_command("pull", "umx-ext models pull umxhq", "MODEL [OPTIONS]").default
def pull(model: Name, /, *, accept_license: Accept = False, quiet: Quiet = False) -> int:
    """Fetch a model and check it; does nothing where it is here already. Prints its files."""
    if model in pretrained.MODELS:
        ask_for_acceptance(model, accepted=accept_license)
    with Terminal(progress=not quiet) as terminal, Downloads(terminal) as progress:
        paths = pretrained.pull(model, progress)
    for path in paths:
        terminal.result(str(path))
    return 0


@_command("path", "umx-ext models path umxhq", "MODEL").default
def path(model: Name, /) -> int:
    """Where a model's files are, or will be once they are fetched, one a line."""
    terminal = Terminal()
    for file in pretrained.path(model):
        terminal.result(str(file))
    return 0


@_command("verify", "umx-ext models verify umxhq", "[MODEL...]").default
def verify(
    models: Annotated[
        tuple[str, ...],
        Parameter(name="MODEL", negative="", show_default=False, help="Names [default: every model that is here]."),
    ] = (),
    /,
) -> int:
    """Read the files of models again and compare their SHA-256; exit code 3 where one is missing or damaged."""
    terminal = Terminal()
    bad = []
    here = [info.name for info in pretrained.models() if info.available]
    if not models and not here:
        terminal.result("no model is here yet")
    for model in models or here:
        for check in pretrained.verify(model):
            state = "ok     " if check.ok else "FAILED "
            terminal.result(f"{state} {model}  {check.path}  {check.actual or check.note}")
            if not check.ok:
                bad.append(f"{model} ({check.path}: {check.note})")
    if bad:
        from umx_ext.commands.doctor import AGAIN

        raise ModelError(
            f"not as it should be: {', '.join(bad)}; fetch it again with umx-ext models pull, or, if it came with "
            f"umx-ext, {AGAIN}"
        )
    return 0


@_command("export", "umx-ext models export umxhq --song song.wav", "MODEL [OPTIONS]").default
def export(
    model: Annotated[
        str, Parameter(name="MODEL", help="A name from `umx-ext models list`, or a model's file or folder.")
    ],
    /,
    *,
    to: Annotated[Literal["onnx"], Parameter(name="--to", help="Format.")] = "onnx",
    output: Annotated[
        Path | None,
        Parameter(name=("-o", "--output"), help="File to write [default: <model>.onnx].", show_default=False),
    ] = None,
    song: Annotated[
        Path | None,
        Parameter(name="--song", help="Song to check the file on [default: synthesised sound].", show_default=False),
    ] = None,
    if_exists: Annotated[
        Literal["error", "overwrite"], Parameter(name="--if-exists", help="What to do about a file that is there.")
    ] = "error",
    accept_license: Accept = False,
    quiet: Quiet = False,
) -> int:
    """Write a model's networks as an ONNX file: magnitude spectrogram in, stems' magnitudes out.

    The file is run by onnxruntime on a minute of your song, or on some synthesised sound, before it is kept, and must
    find there what the model finds.
    """
    from umx_ext import audio
    from umx_ext.separation import onnx_file

    path, overwrite = output or Path(f"{Path(model).stem or model}.{to}"), if_exists == "overwrite"
    onnx_file.require(path, overwrite=overwrite)
    if model in pretrained.MODELS:
        ask_for_acceptance(model, accepted=accept_license)
    with Terminal(progress=not quiet) as terminal, Downloads(terminal) as progress:
        if song is not None:
            audio.probe(song)
        separator = pretrained.load(model, progress=progress)
        waveform = _excerpt(song, separator.config)
        found = onnx_file.export(separator, path, waveform, overwrite=overwrite)
    on = "synthesised sound" if song is None else shown(song)
    seconds = waveform.shape[-1] / separator.config.sample_rate
    terminal.result(
        f"{shown(path)}  {path.stat().st_size / 1e6:.1f} MB, {found:.0f} dB off the model on {seconds:.0f} s of {on}"
    )
    return 0


def _excerpt(song: Path | None, config: Config) -> Tensor:
    """`(channels, samples)` to check a file on: what lies around the middle of a song, or something like one."""
    from umx_ext import audio
    from umx_ext.resampling import resample
    from umx_ext.training.validation import as_channels

    if song is None:
        return _made_up(config)
    length = audio.probe(song).duration_s or 0.0
    waveform, rate = audio.read(song, start_s=max(0.0, (length - CHECKED_S) / 2), duration_s=CHECKED_S)
    return as_channels(resample(waveform, rate, config.sample_rate), config.channels)


def _made_up(config: Config) -> Tensor:
    """Ten seconds: harmonic tones that glide, swell and pause, over a little noise."""
    import torch

    rate = config.sample_rate
    time = torch.arange(10 * rate, dtype=torch.float64) / rate
    phase = 2 * torch.pi * torch.cumsum(220 * 2 ** (torch.sin(2 * torch.pi * time / 3) / 2), 0) / rate
    tones = sum(torch.sin(order * phase) / order for order in range(1, 12))
    swell = torch.sin(2 * torch.pi * time / 4).clamp_min(0)
    noise = torch.randn(config.channels, len(time), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (0.2 * swell * tones + 0.01 * noise).float()
