"""What became of a song: one line for a person, one record for a program."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umx_ext.commands.song import Report

__all__ = ["as_line", "as_record", "listed"]

HARDLY_ANY_DB = -20.0  # vocals this far below the song are crumbs of other instruments rather than a voice


def as_line(shown: str, report: Report) -> str:
    """How far the voice came down, where the files are, how long it took."""
    parts = [_voice(report)]
    if report.gain_db:
        parts.append(f"all {-report.gain_db:.2f} dB quieter so that nothing clips")
    parts.append(listed(list(report.outputs.values())))
    if report.plot is not None:
        parts.append(f"picture {report.plot}")
    parts += [_time(report), *report.notes]
    return f"{shown}: " + "; ".join(part for part in parts if part)


def _voice(report: Report) -> str:
    level, down = report.vocals_level_db, report.voice_down_db
    if level is None:
        return "no voice found"
    if level < HARDLY_ANY_DB:
        return f"hardly any voice found ({-level:.0f} dB below the song)"
    relative = f"vocals {abs(level):.1f} dB {'below' if level <= 0 else 'above'} the song"
    return relative if down is None else f"the voice it found is down by about {down:.0f} dB ({relative})"


def _time(report: Report) -> str:
    speed = report.duration_s / report.seconds if report.seconds > 0 else 0.0
    return f"{report.duration_s:.1f} s of audio in {report.seconds:.1f} s ({speed:.3g}x real time)"


def listed(paths: Sequence[Path]) -> str:
    """Paths in as few characters as a shell would expand: `folder/{vocals,accompaniment}.wav`."""
    if not paths:
        return ""
    folder, suffix = paths[0].parent, paths[0].suffix
    if len(paths) == 1 or any((path.parent, path.suffix) != (folder, suffix) for path in paths):
        return ", ".join(str(path) for path in paths)
    return os.path.join(folder, f"{{{','.join(path.stem for path in paths)}}}{suffix}")


def as_record(shown: str, model: str, report: Report) -> dict[str, Any]:
    """Ready for JSON; a level that does not exist is null."""
    return {
        "input": shown,
        "status": "done",
        "model": model,
        "outputs": {stem: str(path) for stem, path in report.outputs.items()},
        "plot": None if report.plot is None else str(report.plot),
        "sample_rate": report.sample_rate,
        "channels": report.channels,
        "samples": report.samples,
        "duration_s": round(report.duration_s, 6),
        "seconds": round(report.seconds, 3),
        "vocals_level_db": _rounded(report.vocals_level_db),
        "voice_down_db": _rounded(report.voice_down_db),
        "gain_db": round(report.gain_db, 4),
        "notes": report.notes,
    }


def _rounded(level_db: float | None) -> float | None:
    return None if level_db is None else round(level_db, 2)
