"""One take, from its file and the backing's to the files of the mix."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from umx_ext import __version__, audio, levels
from umx_ext.codecs.formats import shown
from umx_ext.commands.mix_arguments import MOST_SHIFT_S
from umx_ext.commands.mix_report import beginning, finite, loudness, measured
from umx_ext.commands.outputs import Files
from umx_ext.commands.song import nearest_bits
from umx_ext.errors import AudioError, UsageError
from umx_ext.mixing import vocal
from umx_ext.mixing.effects import Gain
from umx_ext.mixing.settings import Settings
from umx_ext.stems import Stems

__all__ = ["Job", "Result", "mix", "read_chains"]

VOCALS, BACKING = "vocals", "accompaniment"

DC_SHARE = 0.02  # of the RMS: no microphone and no song has that much; a faulty sound card does
FLAT = 4  # equal samples at the very top: a sine at 100 Hz has two there, a clipped one more
FLAT_PLACES = 5  # one or two are chance
LOUDEST_DB = 80.0  # above full scale: no float recording, but 16-bit integers in a float file
HEARD_S = 0.001  # differences in length below this are not worth a word
TOLERANCE_DB = 0.005  # of the true peak: what a chain of our own may be beside its ceiling

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
        take, backing, song: paths; song is None where there is nothing to align with.
        outputs: the files to write, by what they hold: "mix", "chain", "report", "plot".
        format: key of `audio.FORMATS`; bits: ``"16"``, ``"24"``, ``"32f"`` or None for the backing's.
        settings: what to aim for; chains: what to do instead of deciding, and chain_file, where they are from; one of
            the two is None.
        ceiling_db: the highest true peak, dBTP.
        offset_ms: by which the take begins later; auto: it is to be found.
        device: for the separation of the song.
        overwrite: files that are there are replaced.
    """

    take: str
    backing: str
    song: str | None
    outputs: Mapping[str, Path]
    format: str
    bits: str | None
    settings: Settings | None
    chains: vocal.Chains | None
    chain_file: str | None
    ceiling_db: float
    offset_ms: float
    auto: bool
    device: str
    overwrite: bool


@dataclass
class Result:
    """What became of it. Loudness is -inf where nothing is loud enough to count."""

    outputs: Mapping[str, Path]
    chains: vocal.Chains
    decided: Mapping[str, Any] | None = None
    sample_rate: int = 0
    samples: int = 0
    seconds: float = 0.0
    offset_ms: float = 0.0
    confidence: float | None = None
    vocal_db: float = 0.0
    lufs: float = 0.0
    true_peak_db: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def duration_s(self) -> float:
        return self.samples / self.sample_rate


def read_chains(path: str) -> vocal.Chains:
    """The chains of a file that `--save-chain` or a person wrote.

    Raises:
        UsageError: it cannot be read, or is no set of chains; one sentence that opens with the path.
    """
    try:
        return vocal.chains_from_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"{shown(path)} cannot be read ({reason}); give the file that --save-chain wrote") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{shown(path)} is no text; give the file that --save-chain wrote") from error
    except UsageError as error:
        raise UsageError(f"{shown(path)}: {error}") from error


def mix(job: Job, files: Files, *, progress: Progress) -> Result:
    """Mix a take over its backing and write what is asked for.

    Args:
        progress: called with what is being done and the share of all that is done, 0 to 1.

    Raises:
        UmxError: with the path in the message. Nothing has been written then.
    """
    begin = time.perf_counter()
    notes: list[str] = []
    if job.settings is not None and job.settings.bpm is not None and not job.settings.reverb:
        notes.append("--bpm changes nothing: it is for the reverberation, and there is none; add --reverb-db -12.")

    def step(says: str, share: float) -> None:
        with files.alone():
            progress(says, share)

    _check_inputs(job)
    start = 0.5 if job.auto and job.song is not None else 0.0  # separating takes as long as all the rest

    def rest(says: str, share: float) -> None:
        step(says, start + (1 - start) * share)

    step("reading", 0.0)
    original = _voice_of(job, lambda share: step("listening to the song", start * share)) if start else None
    stems, offset_ms, confidence = _prepared(job, original, notes)
    del original
    rest("listening", 0.1)
    chains, decided = job.chains, None
    if chains is None:
        assert job.settings is not None
        chains, report = vocal.plan(stems, job.settings, progress=lambda _, share: rest("deciding", 0.1 + 0.6 * share))
        decided = report.to_dict()
        # Clipping has been looked for in the file itself, ahead of whatever bends its flat tops: said once is enough.
        said = any("take is clipped" in note for note in notes)
        notes += [note for note in report.notes if not (said and note.startswith("The vocal is clipped"))]
    rest("mixing", 0.7)
    after = _processed(stems, chains, job)
    result = Result(job.outputs, chains, decided, stems.sample_rate, after[VOCALS].shape[-1])
    result.offset_ms, result.confidence, result.notes = offset_ms, confidence, notes
    if "plot" not in job.outputs:
        del stems  # as large as all the rest
    if decided is None:
        rest("measuring", 0.8)
        result.vocal_db = _difference_lu(after)
    mixture = after[VOCALS] + after[BACKING]
    if "plot" not in job.outputs:
        del after
    down_db = _levels_of(mixture, job, result)
    if down_db:
        mixture *= 10 ** (down_db / 20)
    rest("writing", 0.9)
    _write(job, files, mixture, result)
    if "plot" in job.outputs:
        from umx_ext.mixing.picture import draw

        del mixture
        rest("drawing", 0.95)
        title = f"{Path(job.take).stem} over {Path(job.backing).stem}"
        subtitle = "; ".join(part for part in (_clock(result.duration_s), loudness(result), beginning(result)) if part)
        after = _processed(stems, result.chains, job) if down_db else after
        drawn = draw(stems, after, result.chains, title=title, subtitle=subtitle)
        files.put(job.outputs["plot"], drawn)
    files.commit(overwrite=job.overwrite)
    result.seconds = time.perf_counter() - begin
    return result


def _processed(stems: Stems, chains: vocal.Chains, job: Job) -> Stems:
    try:
        return vocal.processed(stems, chains)
    except UsageError as error:  # an effect that makes no sense at this sample rate
        raise error if job.chain_file is None else UsageError(f"{shown(job.chain_file)}: {error}") from error


# ------------------------------------------------------------------------------------------------ what comes in


def _check_inputs(job: Job) -> None:
    """What can be refused before minutes of sound are decoded."""
    for path in (job.take, job.backing):
        info = audio.probe(path)
        if info.channels > 2:
            raise AudioError(f"{shown(path)} has {info.channels} channels; give a mono or stereo file")
        if info.sample_rate < levels.LOWEST_RATE_HZ:
            raise AudioError(
                f"{shown(path)} has {info.sample_rate} Hz, and {levels.LOWEST_RATE_HZ} is the least that can be mixed; "
                "give a recording of a higher rate"
            )


def _prepared(job: Job, original: Tensor | None, notes: list[str]) -> tuple[Stems, float, float | None]:
    """Both tracks at one rate, of one length and one number of channels; the offset, and how sure it is."""
    backing, rate = _sound(job.backing, "backing", notes)
    take, own_rate = _sound(job.take, "take", notes)
    if own_rate != rate:
        lost = f" What it had above {rate / 2000:g} kHz is gone." if own_rate > rate else ""
        notes.append(f"The take was brought from {own_rate} to {rate} Hz, the rate of the backing.{lost}")
        take = audio.resample(take, own_rate, rate)
    offset_ms, confidence = job.offset_ms, None
    if job.auto:
        offset_ms, confidence = _found(take, original, rate, notes)
    take, backing = _laid(take, backing, offset_ms, job, rate, notes)
    if take.shape[0] != backing.shape[0]:
        take, backing = levels.as_stereo(take), levels.as_stereo(backing)
    return Stems({VOCALS: take, BACKING: backing}, rate), offset_ms, confidence


def _sound(path: str, what: str, notes: list[str]) -> tuple[Tensor, int]:
    """A file, without a constant offset and with notes about what is odd."""
    waveform, rate = audio.read(path)
    if (over_db := levels.peak_db(waveform)) > LOUDEST_DB:
        raise AudioError(
            f"{shown(path)} is {over_db:.0f} dB above full scale; it was probably written as floats at an integer "
            "scale: export it again"
        )
    mean = waveform.mean(1, dtype=torch.float64)
    if float(mean.abs().max()) > DC_SHARE * 10 ** (levels.rms_db(waveform) / 20):
        waveform -= mean.float()[:, None]
        notes.append(f"The {what} had a DC offset of {_percent(float(mean.abs().max()))} of full scale: removed.")
    if levels.is_silent(waveform):
        remedy = "check the microphone and record it again" if what == "take" else "choose another file"
        raise AudioError(f"{shown(path)} is silent; {remedy}")
    places = _flat_places(waveform)
    if what == "take" and places >= FLAT_PLACES:
        notes.append(f"The take is clipped in {places} places, which no mix mends: record it again with less gain.")
    return waveform, rate


def _flat_places(waveform: Tensor) -> int:
    """How often the sound stays at its very top or bottom for several samples, as a clipped recording does."""
    count = 0
    for channel in waveform:
        low, high = torch.aminmax(channel)
        for sign, top in ((1.0, float(high)), (-1.0, -float(low))):
            if top <= 0:
                continue
            at = torch.nonzero(channel * sign >= top * (1 - 1e-4))[:, 0]
            together = at[FLAT - 1 :] - at[: len(at) - FLAT + 1] == FLAT - 1 if len(at) >= FLAT else at[:0]
            begins = torch.nonzero(together)[:, 0]  # of every run, as often as it has FLAT samples in a row
            count += int((begins.diff() > 1).sum()) + 1 if len(begins) else 0
    return count


def _laid(
    take: Tensor, backing: Tensor, offset_ms: float, job: Job, rate: int, notes: list[str]
) -> tuple[Tensor, Tensor]:
    """Both of one length, the take shifted: the shorter gets silence."""
    most = take.shape[1] + backing.shape[1]
    shift = round(min(max(offset_ms * rate / 1000, -most), most))
    if shift < 0:
        if -shift >= take.shape[1]:
            raise UsageError(f"--offset {offset_ms:g} leaves nothing of {shown(job.take)}; give a smaller one")
        take = take[:, -shift:]
    elif shift >= backing.shape[1]:
        raise UsageError(
            f"--offset {offset_ms:g} is where {shown(job.backing)} has ended; give milliseconds within it"
        )
    shift = max(shift, 0)
    samples = max(backing.shape[1], shift + take.shape[1])
    over_s = (shift + take.shape[1] - backing.shape[1]) / rate
    if over_s >= HEARD_S:
        notes.append(f"The take ends {_seconds(over_s)} after the backing, which got silence there.")
    elif over_s <= -HEARD_S:
        notes.append(f"The take ends {_seconds(-over_s)} before the backing and got silence there.")
    pad = torch.nn.functional.pad
    return pad(take, (shift, samples - shift - take.shape[1])), pad(backing, (0, samples - backing.shape[1]))


# ------------------------------------------------------------------------------------------------ where the take begins


def _voice_of(job: Job, progress: Callable[[float], None]) -> Tensor:
    """The vocals of the original song, (1, samples), at the backing's rate."""
    from umx_ext.separation.pretrained import load
    from umx_ext.separation.separator import Options

    assert job.song is not None
    separator = load(None, stems=(VOCALS,), device=job.device)
    parts = []
    with audio.AudioReader(job.song) as reader:
        done = 0
        for stems in separator.stream(reader, reader.sample_rate, Options(stems=(VOCALS,))):
            parts.append(stems[VOCALS].mean(0, keepdim=True))
            done += parts[-1].shape[1]
            progress(min(done / reader.samples, 1.0) if reader.samples else 0.5)
        rate = reader.sample_rate
    return audio.resample(torch.cat(parts, 1), rate, audio.probe(job.backing).sample_rate)


def _found(take: Tensor, original: Tensor | None, rate: int, notes: list[str]) -> tuple[float, float | None]:
    """The offset in ms and how sure it is; 0 where it is not sure, which the notes tell."""
    from umx_ext.mixing.align import SURE, offset_s

    if original is None:
        notes.append("The take is not shifted: --offset auto has nothing to compare it with; add --song ORIGINAL.")
        return 0.0, None
    found_s, confidence = offset_s(take, original, rate, most_s=MOST_SHIFT_S)
    if confidence < SURE:
        notes.append(
            f"The take is not shifted: it fits the song's voice nowhere clearly within {MOST_SHIFT_S:g} s; give "
            "--offset in milliseconds if it has to be."
        )
        return 0.0, confidence
    return 1000 * found_s, confidence


# ------------------------------------------------------------------------------------------------ what goes out


def _levels_of(mixture: Tensor, job: Job, result: Result) -> float:
    """Note the levels of the mix, and return the gain in dB, 0 or less, that it still needs so as not to be too loud.

    What was planned was measured on the way; a given chain was made for another take, or by a person.
    """
    if result.decided is not None:
        master, balance = result.decided["master"], result.decided["balance"]
        known = (master["lufs"], master["true_peak_db"], balance["difference_lu"])
        result.lufs, result.true_peak_db, result.vocal_db = (math.nan if value is None else value for value in known)
        if levels.peak_db(mixture) <= job.ceiling_db:
            return 0.0
    rate = result.sample_rate
    peak_db, result.lufs = levels.true_peak_db(mixture, rate), levels.integrated_lufs(mixture, rate)
    down_db = min(0.0, job.ceiling_db - peak_db)
    if down_db < -TOLERANCE_DB:
        result.chains = {**result.chains, "mix": (*result.chains.get("mix", ()), Gain(down_db))}
        result.notes.append(f"The mix is {-down_db:.1f} dB quieter: it would have peaked at {peak_db:+.1f} dBTP.")
    result.lufs, result.true_peak_db = result.lufs + down_db, peak_db + down_db
    return down_db


def _difference_lu(after: Stems) -> float:
    """Loudness of the vocals minus the backing's; nan where one has none."""
    voice, backing = (levels.integrated_lufs(after[name], after.sample_rate) for name in (VOCALS, BACKING))
    return voice - backing if math.isfinite(voice) and math.isfinite(backing) else math.nan


def _write(job: Job, files: Files, mixture: Tensor, result: Result) -> None:
    if "mix" in job.outputs:
        bits = job.bits or nearest_bits(audio.probe(job.backing).bits, job.format)
        writer = files.put_sound(
            job.outputs["mix"], mixture, result.sample_rate, format=job.format, bits=bits, overwrite=job.overwrite
        )
        if writer.note:
            result.notes.append(f"{writer.note[0].upper()}{writer.note[1:]}.")
    if "chain" in job.outputs:
        files.put(job.outputs["chain"], vocal.chains_to_json(result.chains).encode())
    if "report" in job.outputs:
        files.put(job.outputs["report"], _report(job, result).encode())


def _report(job: Job, result: Result) -> str:
    """Everything that was measured and decided, as JSON; the same input gives the same text."""
    what = {
        "umx_ext": __version__,
        "take": job.take,
        "backing": job.backing,
        "song": job.song,
        "sample_rate": result.sample_rate,
        "samples": result.samples,
        **measured(result),
        "decided": result.decided,
    }
    return json.dumps(finite(what), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
