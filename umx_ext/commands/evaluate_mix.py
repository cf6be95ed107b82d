"""`umx-ext evaluate-mix`: how far a mix is from a reference mix of the same song."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from umx_ext.commands.terminal import Terminal
from umx_ext.errors import AudioError, UsageError

if TYPE_CHECKING:
    from umx_ext.mixing.features import FeatureReport

__all__ = ["app", "evaluate_mix"]

EXAMPLE = """\
umx-ext evaluate-mix mine.wav original.wav                 loudness, spectrum, panning, dynamics
umx-ext evaluate-mix mine.wav original.wav --table csv     the same for a spreadsheet
umx-ext evaluate-mix mine.wav original.wav --mode compat   automix-toolkit's formulas
"""

app = App(
    name="evaluate-mix",
    help_prologue=EXAMPLE,
    usage="Usage: umx-ext evaluate-mix MIX REFERENCE [OPTIONS]",
    help_format="plaintext",
    version_flags=(),
)
app["--help"].show = False


@app.default
def evaluate_mix(
    mix: Annotated[str, Parameter(name="MIX", help="The mix to judge: a file of any common format, mono or stereo.")],
    reference: Annotated[str, Parameter(name="REFERENCE", help="A mix of the same song that begins at the same time.")],
    /,
    *,
    mode: Annotated[
        Literal["strict", "compat"],
        Parameter(help="strict: dB are compared in dB. compat: percentages of dB, as published tables have them."),
    ] = "strict",
    json: Annotated[
        bool, Parameter(name="--json", negative="", show_default=False, help="One line of JSON with everything.")
    ] = False,
    table: Annotated[
        Literal["md", "csv", "json"] | None,
        Parameter(help="Markdown, CSV (figures alone) or JSON, instead of columns for a terminal."),
    ] = None,
) -> int:
    """Compare a mix with a reference mix: loudness, spectrum, panning and dynamics.

    Each feature is followed over time, smoothed over 40 frames, and compared; what comes out is the mean distance. A
    large distance from one human mix is not a bad mix.
    """
    if json and table not in (None, "json"):
        raise UsageError(f"--json and --table {table} contradict each other; give one of them")
    from umx_ext.mixing.features import DISCLAIMER

    terminal = Terminal(verbose=True)
    report = _compare(mix, reference, mode)
    if json or table == "json":
        terminal.record({"mix": mix, "reference": reference, **report.to_dict()})
        return 0
    for line in report.table(table or "text").rstrip("\n").split("\n"):
        terminal.result(line)
    if table == "csv":
        # Standard output holds the figures alone, so that a program can read them.
        for sentence in (*report.notes, DISCLAIMER):
            terminal.detail(sentence)
    return 0


def _compare(mix: str, reference: str, mode: str) -> FeatureReport:
    from umx_ext import audio
    from umx_ext.mixing import features

    theirs, rate = audio.read(reference)
    ours, own_rate = audio.read(mix)
    for path, waveform in ((mix, ours), (reference, theirs)):
        if waveform.shape[0] > 2:
            raise AudioError(f"{path} has {waveform.shape[0]} channels; give a mono or stereo file")
    report = features.compare(audio.resample(ours, own_rate, rate), theirs, rate, mode)
    if own_rate == rate:
        return report
    note = f"The mix was resampled from {own_rate} to {rate} Hz, the rate of the reference."
    return dataclasses.replace(report, notes=(note, *report.notes))
