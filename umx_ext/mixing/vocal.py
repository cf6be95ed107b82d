"""Mix a vocal take over a backing track: `plan` listens and decides, `mixdown` obeys.

The vocal goes through a high-pass, an equaliser that mends its tone and one that makes room where vocal and backing
hide each other, a compressor, a reverb, and a fader; the backing is a finished track and is left alone unless the
settings say otherwise. Each stage is decided on the sound that reaches it:

    level -> high-pass -> tone -> equalisation -> compression -> reverberation -> balance       the vocal
    level                                                                          vocal and backing together

Everything decided is an effect with its numbers (`umx_ext.mixing.effects`), so it can be printed, edited and used
again; everything measured is in the `Report`.

>>> generator = torch.Generator().manual_seed(0)
>>> take, backing = 0.01 * torch.randn(2, 2, 44100, generator=generator)
>>> stems = Stems({"vocals": take, "accompaniment": backing}, 44100)
>>> chains, report = plan(stems, Settings(vocal_db=0.0, tone=False, reverb=True, bpm=120))
>>> [effect.kind for effect in chains["vocals"]]
['gain', 'reverb', 'gain']
>>> mix = mixdown(stems, chains)
>>> bool(chains_from_json(chains_to_json(chains)) == chains), tuple(mix.shape)
(True, (2, 44100))
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from umx_ext import levels
from umx_ext.errors import AudioError, UsageError
from umx_ext.mixing.compression import Compression, compress
from umx_ext.mixing.effects import Chain, Effect, Gain, HighPass, apply, chain_from_json
from umx_ext.mixing.masking import Equalisation, equalise
from umx_ext.mixing.report import Balance, Input, Master, Report
from umx_ext.mixing.settings import PRESETS, Settings
from umx_ext.mixing.tempo import Reverberation, reverberate, tempo_bpm
from umx_ext.mixing.tone import Tone, correct
from umx_ext.stems import Stems

__all__ = [
    "Balance", "Chains", "Input", "Master", "Report",
    "chains_from_json", "chains_to_json", "mixdown", "plan", "processed", "tempo_bpm",
]  # fmt: skip

Chains: TypeAlias = Mapping[str, Chain]

TRACKS = ("vocals", "accompaniment")
PLACES = (*TRACKS, "mix")
HEADROOM_DB = -1.0  # levels are analysed at this peak, so that a quiet take is not below the gates
OFFSET_SHARE = 0.01  # of the peak: a mean beyond it is an offset, not sound
OFFSET_HZ = 20.0
MOST_GAIN_DB = 120.0
CLIPPED_RUN = 3  # samples in a row at the very peak
MANY_CLIPPED, CLIPPING_DB = 8, -20.0  # fewer, or of a quiet track, are the coarse steps of a 16-bit file
QUIET_LUFS = -40.0
NONLINEAR = ("compressor",)


def plan(
    stems: Stems, settings: Settings = PRESETS["studio"], *, progress: Callable[[str, float], None] | None = None
) -> tuple[Chains, Report]:
    """Listen to a vocal take and its backing, and decide how to mix them.

    Args:
        stems: "vocals" and "accompaniment", aligned, `(channels, samples)` with one or two channels, float, full scale
            1.0, at 8000 Hz or more. They are not changed.
        settings: see `umx_ext.mixing.settings`.
        progress: called ahead of each stage with its name and the fraction done, and with ("done", 1.0).

    Returns:
        The chains of "vocals", "accompaniment" and "mix" for `mixdown`, and the report.

    Raises:
        AudioError: other stems than those two, more than two channels, nan or inf, or a rate below 8000 Hz.
    """
    _check(stems)
    rate = stems.sample_rate
    report_stage = progress if progress is not None else _unwatched

    report_stage("levels", 0.0)
    take, backing = (levels.as_stereo(stems[name].detach()) for name in TRACKS)
    vocal_input, lead = _listen(take, rate)
    backing_input, _ = _listen(backing, rate)
    backing_lufs = -math.inf if backing_input.lufs is None else backing_input.lufs
    notes = _remarks(vocal_input, backing_input)
    chain: list[Effect] = [lead] if lead.gain_db else []
    sound = lead(take, rate)  # from here on, a tensor of our own

    highpass_hz = settings.highpass_hz
    if highpass_hz is None and _has_offset(vocal_input):
        highpass_hz = OFFSET_HZ
    if vocal_input.peak_db is None:
        highpass_hz = None
    if highpass_hz is not None:
        chain.append(HighPass(highpass_hz))
        sound = chain[-1](sound, rate)

    report_stage("equalisation", 0.1)
    off = "switched off" if vocal_input.peak_db is not None else "the vocal is silent"
    tone = Tone(off)
    if settings.tone and vocal_input.peak_db is not None:
        tone = correct(sound, rate, settings)
        chain += tone.filters()
        sound = apply(tone.filters(), sound, rate)
    equalisation = Equalisation(off)
    backing_chain: Chain = ()
    if settings.equalise and vocal_input.peak_db is not None:
        equalisation = equalise(sound, backing, rate, settings, backing_lufs)
        chain += equalisation.filters("vocals")
        sound = apply(equalisation.filters("vocals"), sound, rate)
        backing_chain = equalisation.filters("accompaniment")
        if backing_chain:
            backing = apply(backing_chain, backing, rate)
            backing_lufs = _lufs(backing, rate)

    report_stage("compression", 0.3)
    compression = Compression(True, off, settings.lra_target_lu, settings.lra_domain)
    if settings.compress and vocal_input.peak_db is not None:
        compressor, compression = compress(sound, rate, settings)
        if compressor is not None:
            chain.append(compressor)
            sound = compressor(sound, rate)

    report_stage("reverberation", 0.6)
    reverberation = Reverberation(True, off)
    if settings.reverb and vocal_input.peak_db is not None:
        reverb, sound, reverberation = reverberate(sound, backing, rate, settings)
        if reverb is not None:
            chain.append(reverb)

    report_stage("balance", 0.8)
    balance, fader = _balance(sound, rate, backing_input, backing_lufs, settings)
    if fader.gain_db:
        chain.append(fader)
        sound.mul_(10 ** (fader.gain_db / 20))

    report_stage("level of the mix", 0.9)
    master, gain = _master(sound.add_(backing), rate, settings)
    notes += _afterthoughts(compression, balance, master, vocal_input, highpass_hz, settings)
    chains = {
        "vocals": tuple(chain),
        "accompaniment": backing_chain,
        "mix": (gain,) if gain.gain_db else (),
    }
    report_stage("done", 1.0)
    return chains, Report(
        sample_rate=rate,
        duration_s=round(take.shape[1] / rate, 3),
        settings=settings,
        vocals=vocal_input,
        accompaniment=backing_input,
        highpass_hz=highpass_hz,
        tone=tone,
        equalisation=equalisation,
        compression=compression,
        reverb=reverberation,
        balance=balance,
        master=master,
        notes=tuple(notes),
    )


def mixdown(stems: Stems, chains: Chains) -> Tensor:
    """The mix: both tracks through their chains, added up, through the chain of the mix. A new tensor `(2, samples)`.

    Nothing is limited here: `plan` chooses the mix's gain so that its true peak stays where the settings want it, and
    a chain that was edited, or made for another take, may go beyond full scale.

    Raises:
        AudioError: as `plan`.
        UsageError: a chain for something else than "vocals", "accompaniment" and "mix", or an effect that makes no
            sense at this sample rate.
    """
    done = processed(stems, chains)
    return done["vocals"] + done["accompaniment"]


def processed(stems: Stems, chains: Chains) -> Stems:
    """The two tracks as they are in the mix, each `(2, samples)`: their sum is `mixdown`.

    The chain of the mix is run on each of them, which is the same as on their sum as long as it is linear: any gain
    and filter is, a compressor is not.

    Raises:
        AudioError, UsageError: as `mixdown`.
    """
    _check(stems)
    strangers = sorted(set(chains) - set(PLACES))
    if strangers:
        raise UsageError(f"no chain for {', '.join(map(repr, strangers))}; known: {', '.join(PLACES)}")
    nonlinear = [effect.kind for effect in chains.get("mix", ()) if effect.kind in NONLINEAR]
    if nonlinear:
        raise UsageError(
            f"the chain of the mix holds a {nonlinear[0]}, which would act on each track by itself; "
            "put it into the vocals' or the accompaniment's chain"
        )
    after = {
        name: apply((*chains.get(name, ()), *chains.get("mix", ())), levels.as_stereo(stems[name]), stems.sample_rate)
        for name in TRACKS
    }
    return Stems(after, stems.sample_rate)


def chains_to_json(chains: Chains) -> str:
    """A JSON object of lists of effects, for people to edit; `chains_from_json` is its exact inverse."""
    entries = {name: [effect.to_dict() for effect in chain] for name, chain in chains.items()}
    return json.dumps(entries, indent=2, allow_nan=False) + "\n"


def chains_from_json(text: str) -> Chains:
    """Read chains that `chains_to_json` or a person wrote. A bare list is the vocals' chain; what is missing is empty.

    Raises:
        UsageError: not JSON, a chain for something unknown, an unknown effect or field, or a value outside its range.
    """
    try:
        entries: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"expected chains of effects as JSON, and this is not JSON: {error}") from error
    if isinstance(entries, list):
        entries = {"vocals": entries}
    if not isinstance(entries, dict):
        raise UsageError(f"expected an object of chains ({', '.join(PLACES)}) or a list, got {type(entries).__name__}")
    strangers = sorted(set(entries) - set(PLACES))
    if strangers:
        raise UsageError(f"no chain for {', '.join(map(repr, strangers))}; known: {', '.join(PLACES)}")
    chains = {}
    for name in PLACES:
        try:
            chains[name] = chain_from_json(json.dumps(entries.get(name, [])))
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error
    return chains


# --------------------------------------------------------------------------------------------------------------- parts


def _unwatched(stage: str, fraction: float) -> None:
    """Where nobody asked for progress."""


def _check(stems: Stems) -> None:
    if set(stems) != set(TRACKS):
        raise AudioError(f"expected the stems vocals and accompaniment, got {', '.join(stems)}")
    for name, waveform in stems.items():
        if waveform.dtype not in (torch.float32, torch.float64):
            raise AudioError(f"{name}: expected float32 or float64 with full scale 1.0, got {waveform.dtype}")
        try:
            levels.as_stereo(waveform)
            levels.peak_db(waveform)
        except AudioError as error:
            raise AudioError(f"{name}: {error}") from error
    if not (stems.sample_rate % 1 == 0 and stems.sample_rate >= levels.LOWEST_RATE_HZ):
        raise AudioError(
            f"expected a rate in whole Hz, at least {levels.LOWEST_RATE_HZ}, got {stems.sample_rate}; resample first"
        )


def _listen(waveform: Tensor, sample_rate: int) -> tuple[Input, Gain]:
    """What a track is like as it comes, and the gain that brings its peak to -1 dBFS. `(2, samples)`."""
    means = waveform.mean(dim=1, dtype=torch.float64)
    offset = float(means[means.abs().argmax()])
    low, high = (float(extreme) for extreme in torch.aminmax(waveform))
    peak = max(-low, high)
    centred = waveform
    if abs(offset) > OFFSET_SHARE * peak:
        centred = waveform - means.to(waveform.dtype)[:, None]
    if levels.is_silent(centred):
        return Input(None, None, offset, 0), Gain(0.0)
    peak_db = levels.peak_db(centred)
    lead = Gain(round(HEADROOM_DB - peak_db, 3))
    lufs = levels.integrated_lufs(lead(centred, sample_rate), sample_rate) - lead.gain_db
    return Input(peak_db, lufs if math.isfinite(lufs) else None, offset, _clipped(waveform, peak)), lead


def _clipped(waveform: Tensor, peak: float) -> int:
    count = 0
    for channel in waveform:
        at_peak = (channel >= peak) | (channel <= -peak)
        runs = at_peak.clone()
        for shift in range(1, CLIPPED_RUN):
            runs[shift:] &= at_peak[:-shift]
            runs[:shift] = False
        whole = runs.clone()  # `runs` marks where a run is long enough; the samples before belong to it
        for shift in range(1, CLIPPED_RUN):
            whole[:-shift] |= runs[shift:]
        count += int(whole.sum())
    return count


def _has_offset(track: Input) -> bool:
    return track.peak_db is not None and abs(track.offset) > OFFSET_SHARE * 10 ** (track.peak_db / 20)


def _balance(
    sound: Tensor, sample_rate: int, backing: Input, backing_lufs: float, settings: Settings
) -> tuple[Balance, Gain]:
    """Levels of both tracks at the end of their chains, and the fader between them."""
    vocal_lufs = _lufs(sound, sample_rate)
    if backing.peak_db is None or not (math.isfinite(vocal_lufs) and math.isfinite(backing_lufs)):
        before, level = _known(vocal_lufs), _known(backing_lufs)
        return Balance(settings.vocal_db, before, 0.0, before, level, None), Gain(0.0)
    # The absolute gate of -70 LUFS stays where it is when a fader moves: pauses pass it, or do not, by the fader. So
    # the vocal is measured once more at the level that it will have beside a backing of -1 dBFS peak.
    blocks = levels.momentary_lufs(sound, sample_rate).numpy()
    lift = HEADROOM_DB - backing.peak_db
    wanted = backing_lufs + settings.vocal_db - vocal_lufs
    for _ in range(4 if len(blocks) else 0):
        measured = _gated_lufs(blocks + wanted + lift) - wanted - lift
        if not math.isfinite(measured) or measured == vocal_lufs:
            break
        vocal_lufs, wanted = measured, backing_lufs + settings.vocal_db - measured
    fader = Gain(round(min(max(wanted, -MOST_GAIN_DB), MOST_GAIN_DB), 3))
    after = vocal_lufs + fader.gain_db
    return Balance(settings.vocal_db, vocal_lufs, fader.gain_db, after, backing_lufs, after - backing_lufs), fader


def _gated_lufs(blocks: np.ndarray) -> float:
    """Integrated loudness of momentary ones, `(frames,)` in LUFS: the two gates of BS.1770-4."""
    loud = blocks[blocks >= levels.ABSOLUTE_GATE_LUFS]
    if not len(loud):
        return -math.inf
    loud = loud[loud > 10 * math.log10(np.mean(10 ** (loud / 10))) + levels.RELATIVE_GATE_LU]
    return 10 * math.log10(np.mean(10 ** (loud / 10)))


def _lufs(waveform: Tensor, sample_rate: int) -> float:
    """Integrated loudness, measured at a peak of -1 dBFS; ``-inf`` for silence."""
    if levels.is_silent(waveform):
        return -math.inf
    lead = Gain(HEADROOM_DB - levels.peak_db(waveform))
    return levels.integrated_lufs(lead(waveform, sample_rate), sample_rate) - lead.gain_db


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _master(mix: Tensor, sample_rate: int, settings: Settings) -> tuple[Master, Gain]:
    """Levels of the sum, and the gain that brings it to the loudness that is wanted, or as near as its peaks let it."""
    lufs, true_peak = _lufs(mix, sample_rate), levels.true_peak_db(mix, sample_rate)
    gain_db, limited_by = 0.0, ""
    if settings.lufs is not None and math.isfinite(lufs):
        gain_db, limited_by = settings.lufs - lufs, "lufs"
    if math.isfinite(true_peak) and true_peak + gain_db > settings.true_peak_db:
        gain_db, limited_by = settings.true_peak_db - true_peak, "true_peak"
    # Downwards: what is rounded up would be above the peak that was allowed.
    gain_db = math.floor(1000 * min(gain_db, MOST_GAIN_DB)) / 1000 if limited_by else 0.0
    levels_after = [_known(level + gain_db) for level in (lufs, true_peak)]
    return Master(
        before_lufs=_known(lufs),
        before_true_peak_db=_known(true_peak),
        gain_db=gain_db,
        lufs=levels_after[0],
        true_peak_db=levels_after[1],
        wanted_lufs=settings.lufs,
        most_true_peak_db=settings.true_peak_db,
        limited_by=limited_by,
    ), Gain(gain_db)


def _remarks(vocals: Input, backing: Input) -> list[str]:
    notes = []
    for name, track in (("vocal", vocals), ("backing", backing)):
        if track.peak_db is None:
            notes.append(f"The {name} is silent.")
            continue
        if _has_offset(track):
            notes.append(f"The {name} has an offset of {track.offset:.3g} of full scale; record it again without one.")
        if track.clipped_samples >= MANY_CLIPPED and track.peak_db > CLIPPING_DB:
            notes.append(
                f"The {name} is clipped ({track.clipped_samples} samples stand at its highest peak): nothing here "
                "brings back what was cut off."
            )
    return notes


def _afterthoughts(
    compression: Compression,
    balance: Balance,
    master: Master,
    vocals: Input,
    highpass_hz: float | None,
    settings: Settings,
) -> list[str]:
    notes = []
    if highpass_hz is not None and settings.highpass_hz is None:
        notes.append(f"A high-pass at {highpass_hz:g} Hz takes the offset out of the vocal.")
    if compression.converged is False:
        notes.append(
            f"No compressor that turns the singing down by {settings.singing_reduction_db:g} dB or less on average "
            f"brings the vocal's loudness range to {settings.lra_target_lu:g} LU; the nearest one brings it from "
            f"{compression.lra_before_lu:.1f} to {compression.lra_after_lu:.1f} LU."
        )
    if balance.difference_lu is None and vocals.peak_db is not None:
        notes.append("One of the tracks has no loudness to balance the other with; the vocal's fader stays at 0 dB.")
    if settings.lufs is not None and master.limited_by == "true_peak":
        notes.append(
            f"The mix has {master.lufs:.1f} LUFS instead of {settings.lufs:g}: louder, its true peak would exceed "
            f"{settings.true_peak_db:g} dBTP."
        )
    if settings.lufs is None and master.lufs is not None and master.lufs < QUIET_LUFS:
        notes.append(f"The mix is quiet ({master.lufs:.1f} LUFS), like its backing; ask for a loudness to raise it.")
    return notes
