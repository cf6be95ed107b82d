"""What became of a take: one line for a person, one record for a program."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from umx_ext.mixing.effects import Compressor, Effect, HighPass, ParametricEq, Reverb
from umx_ext.mixing.vocal import chains_to_json

if TYPE_CHECKING:
    from umx_ext.commands.take import Job, Result

__all__ = ["as_line", "as_record", "beginning", "finite", "loudness", "measured"]


def as_line(job: Job, result: Result) -> str:
    """Where the files are, what was done to the voice, how loud it is, how long it took, what else to know."""
    parts = [str(path) if name == "mix" else f"{name} {path}" for name, path in result.outputs.items()]
    parts.append(_summary(job, result))
    parts.append(f"{result.duration_s:.1f} s of audio in {result.seconds:.1f} s")
    return " ".join(["; ".join(parts) + ("." if result.notes else ""), *result.notes])


def _summary(job: Job, result: Result) -> str:
    """What was done to the voice, and how loud it is."""
    voice = [effect for effect in result.chains.get("vocals", ()) if not effect.is_neutral]
    parts = ["the given chain"] if job.chains is not None else []
    parts += [_equaliser(voice), _compressor(voice, result.decided or {}), _room(voice), loudness(result)]
    return "; ".join(part for part in [*parts, beginning(result)] if part)


def beginning(result: Result) -> str:
    """When the take begins, where it was moved."""
    if not result.offset_ms:
        return ""
    later = "later" if result.offset_ms > 0 else "earlier"
    found = "" if result.confidence is None else f" (found; {100 * result.confidence:.0f} % sure)"
    return f"the take begins {abs(result.offset_ms):.0f} ms {later}{found}"


def _equaliser(voice: list[Effect]) -> str:
    bands = [band for effect in voice if isinstance(effect, ParametricEq) for band in effect.bands if band.gain_db]
    moves = [f"{band.gain_db:+.1f} dB at {_hertz(band.frequency_hz)}" for band in bands]
    cuts = [f"cut below {_hertz(effect.cutoff_hz)}" for effect in voice if isinstance(effect, HighPass)]
    return f"EQ {', '.join(moves + cuts)}" if moves or cuts else "no EQ"


def _compressor(voice: list[Effect], decided: Mapping[str, Any]) -> str:
    ratios = [f"{effect.ratio:g}:1" for effect in voice if isinstance(effect, Compressor)]
    if not ratios:
        return "not compressed"
    found = decided.get("compression", {})
    before, after = found.get("lra_before_lu"), found.get("lra_after_lu")
    how_far = "" if before is None or after is None else f" (loudness range {before:.1f} to {after:.1f} LU)"
    return f"compressed {' and '.join(ratios)}{how_far}"


def _room(voice: list[Effect]) -> str:
    times = [f"{effect.t60_s:.1f} s" for effect in voice if isinstance(effect, Reverb)]
    return f"reverb {' and '.join(times)}" if times else "no reverb"


def loudness(result: Result) -> str:
    """Of the voice relative to the backing, and of the mix."""
    whole = f"{result.lufs:.1f} LUFS, true peak {result.true_peak_db:.1f} dBTP"
    if math.isnan(result.vocal_db):
        return whole
    word = "above" if result.vocal_db > 0 else "below"
    return f"the voice {abs(result.vocal_db):.1f} LU {word} the backing; {whole}"


def _hertz(hz: float) -> str:
    return f"{hz / 1000:g} kHz" if hz >= 1000 else f"{hz:g} Hz"


def as_record(job: Job, result: Result) -> dict[str, Any]:
    """Ready for JSON; what has no value is null."""
    fields = {
        "take": job.take,
        "backing": job.backing,
        "status": "done",
        "outputs": {name: str(path) for name, path in result.outputs.items()},
        "sample_rate": result.sample_rate,
        "samples": result.samples,
        "duration_s": round(result.duration_s, 6),
        "seconds": round(result.seconds, 3),
        **measured(result),
        "decided": result.decided,
    }
    return dict(finite(fields))


def measured(result: Result) -> dict[str, Any]:
    """Offset, levels, chains and notes, as records and reports have them."""
    return {
        "offset_ms": round(result.offset_ms, 3),
        "offset_confidence": None if result.confidence is None else round(result.confidence, 3),
        "vocals_minus_backing_lu": _rounded(result.vocal_db),
        "integrated_lufs": _rounded(result.lufs),
        "true_peak_dbtp": _rounded(result.true_peak_db),
        "chains": json.loads(chains_to_json(result.chains)),
        "notes": list(result.notes),
    }


def _rounded(level: float) -> float | None:
    return round(level, 3) if math.isfinite(level) else None


def finite(value: Any) -> Any:
    """The same with null for numbers that JSON lacks."""
    if isinstance(value, Mapping):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
