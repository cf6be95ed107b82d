"""The picture of a mix: loudness and gain reduction over time, spectra before and after, how the room rings.

Everything in it is measured from the sound and the chains, not taken from a plan: a chain that a person wrote is drawn
as well as one that was planned. matplotlib (extra `research`) is imported when the picture is drawn.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umx_ext.levels import active_frames, frame_lufs, integrated_lufs
from umx_ext.mixing.effects import (
    Chain,
    Compressor,
    HighPass,
    LowPass,
    ParametricEq,
    Reverb,
    apply,
    gain_reduction_db,
    impulse_response,
)
from umx_ext.plot import COLOURS, FAINT, INK, require_matplotlib
from umx_ext.stems import Stems

__all__ = ["draw"]

VOCALS, BACKING = "vocals", "accompaniment"
SQUEEZE, ROOM, GRID = "#b8860b", "#6a4c93", "#e6e8ec"
WIDTH_IN, HEIGHT_IN = 12.0, 9.3
LEFT, RIGHT = 0.06, 0.85  # of the width; what stands to the right of the curves names them

COLUMNS = 1500  # of what is drawn over time
LONG_S, WINDOWS_S = 30.0, (1.0, 3.0)  # loudness in windows of 3 s, of 1 s where the whole is shorter than 30 s
QUIETEST_LU = 30.0  # how far below the loudest moment the loudness is drawn
N_FFT = 8192
CHUNK = 128  # spectra computed at a time
LOWEST_HZ, HIGHEST_HZ = 40.0, 20000.0
OCTAVES = 1 / 6  # width of the bands that spectra are smoothed over
TICKS_HZ = (50, 100, 200, 500, 1000, 2000, 5000, 10000)
SPECTRUM_DB = 48.0
LEAST_LABEL_DB = 0.05  # of a move, to be written beside it
DECAYS_HZ = (125.0, 1000.0, 8000.0)


def draw(before: Stems, after: Stems, chains: Mapping[str, Chain], *, title: str = "", subtitle: str = "") -> bytes:
    """Draw a mix as PNG.

    Args:
        before: vocals and accompaniment as they went into the chains.
        after: both as they are in the mix: they add up to it.
        chains: what was done; those of the vocals are drawn.
        title, subtitle: stand above the picture.

    Raises:
        MissingExtraError: matplotlib is missing or broken.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rate = before.sample_rate
    chain = chains.get(VOCALS, ())
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    over_time = figure.add_gridspec(
        2, 1, height_ratios=[2.6, 1.0], left=LEFT, right=RIGHT, top=1 - 1.08 / HEIGHT_IN, bottom=4.75 / HEIGHT_IN,
        hspace=0.3,
    )  # fmt: skip
    reverb = next((effect for effect in chain if isinstance(effect, Reverb) and not effect.is_neutral), None)
    lower = {"top": 3.7 / HEIGHT_IN, "bottom": 0.55 / HEIGHT_IN}
    spectra = figure.add_gridspec(
        2, 1, height_ratios=[2.1, 1.0], left=LEFT, right=RIGHT if reverb is None else 0.635, hspace=0.1, **lower
    )
    loudness = figure.add_subplot(over_time[0])
    _draw_loudness(loudness, before, after)
    _draw_reduction(figure.add_subplot(over_time[1], sharex=loudness), before[VOCALS], chain, rate)
    upper = figure.add_subplot(spectra[0])
    _draw_spectra(upper, before, after)
    _draw_equaliser(figure.add_subplot(spectra[1], sharex=upper), chain, rate)
    if reverb is not None:
        ringing = figure.add_gridspec(1, 1, left=0.70, right=0.975, **lower)
        _draw_room(figure.add_subplot(ringing[0]), reverb, rate)
    figure.text(LEFT, 1 - 0.3 / HEIGHT_IN, title, fontsize=15, fontweight="bold", color=INK, va="center",
                parse_math=False)  # fmt: skip
    figure.text(LEFT, 1 - 0.6 / HEIGHT_IN, subtitle, fontsize=10, color=FAINT, va="center", parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------ over time


def _draw_loudness(axes: Any, before: Stems, after: Stems) -> None:
    rate = before.sample_rate
    seconds = before[VOCALS].shape[-1] / rate
    window_s = min(WINDOWS_S[seconds >= LONG_S], seconds)
    _, per_unit = _unit(seconds)
    curves = {name: frame_lufs(after[name], rate, window_s, 0.1).numpy() for name in (BACKING, VOCALS)}
    whole = {name: integrated_lufs(after[name], rate) for name in (BACKING, VOCALS)}
    louder_lu = whole[VOCALS] - integrated_lufs(before[VOCALS], rate)
    raw = frame_lufs(before[VOCALS], rate, window_s, 0.1).numpy() + louder_lu
    mix = integrated_lufs(after[BACKING] + after[VOCALS], rate)
    heard = np.concatenate([curve[np.isfinite(curve)] for curve in curves.values()])
    top = (float(heard.max()) if len(heard) else 0.0) + 2
    low = max(top - QUIETEST_LU, float(heard.min()) - 1 if len(heard) else -QUIETEST_LU)
    times = (np.arange(len(raw)) * 0.1 + window_s / 2) / per_unit
    clipped = {name: np.clip(np.nan_to_num(curve, neginf=-999.0), low - 5, None) for name, curve in curves.items()}
    axes.fill_between(times, low - 5, clipped[BACKING], color=COLOURS[BACKING], alpha=0.16, linewidth=0)
    axes.plot(times, clipped[BACKING], color=COLOURS[BACKING], linewidth=1.4)
    raw = np.where(np.isfinite(raw) & (raw > low - 5), raw, np.nan)
    axes.plot(times, raw, color=COLOURS[VOCALS], linewidth=0.9, linestyle=(0, (1.2, 1.2)), alpha=0.75)
    axes.plot(times, clipped[VOCALS], color=COLOURS[VOCALS], linewidth=1.9)
    axes.set_xlim(0, seconds / per_unit)
    axes.set_ylim(low, top)
    axes.tick_params(labelbottom=False)
    _plain(axes, "LUFS")
    axes.set_title(f"Loudness, in windows of {window_s:.2g} s", **_heading())
    difference = whole[VOCALS] - whole[BACKING]
    lines = [
        ("vocals", f"{whole[VOCALS]:.1f} LUFS", COLOURS[VOCALS], whole[VOCALS]),
        ("backing", f"{whole[BACKING]:.1f} LUFS", COLOURS[BACKING], whole[BACKING]),
    ]
    # Each name stands at its loudness; names less than 3.2 LU apart are pushed apart to stay readable.
    least = 0.15 * (top - low)
    middle, apart = (whole[VOCALS] + whole[BACKING]) / 2, abs(difference)
    if not math.isfinite(middle):
        middle = (top + low) / 2
        apart = 0.0
    for name, value, colour, loud in lines:
        up = 1 if loud == max(whole.values()) and (name == "vocals" or whole[VOCALS] != whole[BACKING]) else -1
        place = middle + up * max(apart, least) / 2
        place = min(max(place, low + 0.06 * (top - low)), top - 0.06 * (top - low))
        axes.annotate(f"{name}\n{value}", (1, place), xycoords=axes.get_yaxis_transform(), xytext=(9, 0),
                      textcoords="offset points", va="center", fontsize=9.5, color=colour, fontweight="bold",
                      linespacing=1.15, annotation_clip=False)  # fmt: skip
    if math.isfinite(difference):
        word = "above" if difference > 0 else "below"
        says = f"The voice is {abs(difference):.1f} LU {word} the backing; together {mix:.1f} LUFS"
        axes.set_title(says, loc="right", fontsize=9.5, color=INK, pad=6)
    axes.annotate("dotted: the take before,\nmade as loud", (1, 0), xycoords="axes fraction", xytext=(9, 2),
                  textcoords="offset points", va="bottom", fontsize=8, color=COLOURS[VOCALS], alpha=0.9,
                  annotation_clip=False)  # fmt: skip


def _draw_reduction(axes: Any, take: Tensor, chain: Chain, rate: int) -> None:
    seconds = take.shape[-1] / rate
    unit, per_unit = _unit(seconds)
    squeezed = _squeezed(take, chain, rate)
    axes.set_title("Gain reduction of the vocals", **_heading())
    _plain(axes, "dB")
    axes.set_xlabel(f"time, {unit}", fontsize=9, color=INK)
    if squeezed is None or squeezed.most_db < 0.05:
        axes.set_ylim(-6, 0)
        axes.set_yticks([])
        says = "no compressor in the chain" if squeezed is None else "the compressor never moves"
        axes.text(0.5, 0.5, says, transform=axes.transAxes, ha="center", va="center", fontsize=10, color=FAINT)
        return
    times = np.linspace(0, seconds / per_unit, len(squeezed.highest))
    axes.fill_between(times, -squeezed.highest, 0, color=SQUEEZE, alpha=0.3, linewidth=0)
    axes.fill_between(times, -squeezed.mean, 0, color=SQUEEZE, alpha=0.75, linewidth=0)
    axes.set_ylim(-max(3.0, 1.08 * squeezed.most_db), 0)
    axes.set_title(squeezed.says, loc="right", fontsize=9.5, color=INK, pad=6)
    axes.annotate(f"at most {squeezed.most_db:.1f} dB\n{squeezed.usual_db:.1f} dB while singing", (1, 0.5),
                  xycoords="axes fraction", xytext=(9, 0), textcoords="offset points", va="center", fontsize=9.5,
                  color=SQUEEZE, fontweight="bold", linespacing=1.25, annotation_clip=False)  # fmt: skip


@dataclass(frozen=True)
class _Squeezed:
    highest: np.ndarray  # (columns,) dB
    mean: np.ndarray
    most_db: float
    usual_db: float
    says: str


def _squeezed(take: Tensor, chain: Chain, rate: int) -> _Squeezed | None:
    """How far all compressors of a chain together turn the sound down, each on what it gets."""
    settings = [effect for effect in chain if isinstance(effect, Compressor) and effect.ratio > 1]
    if not settings:
        return None
    total, sound, begin = torch.zeros(take.shape[-1]), take, 0
    for place, effect in enumerate(chain):
        if isinstance(effect, Compressor) and effect.ratio > 1:
            sound = apply(chain[begin:place], sound, rate)
            begin = place
            total += gain_reduction_db(effect, sound, rate)
    size = max(1, math.ceil(len(total) / COLUMNS))
    columns = torch.nn.functional.pad(total, (0, -len(total) % size)).view(-1, size)
    active = active_frames(take, rate)
    frames = torch.nn.functional.interpolate(total[None, None], size=len(active))[0, 0]
    usual = float(frames[active].mean()) if bool(active.any()) else 0.0
    first = settings[0]
    says = f"above {first.threshold_db:.1f} dBFS, ratio {first.ratio:g} : 1"
    if len(settings) > 1:
        says = f"{len(settings)} compressors together"
    return _Squeezed(columns.amax(1).numpy(), columns.mean(1).numpy(), float(total.max()), usual, says)


# ------------------------------------------------------------------------------------------------ over frequency


def _draw_spectra(axes: Any, before: Stems, after: Stems) -> None:
    rate = before.sample_rate
    centres, bands = _bands(rate)
    active = active_frames(before[VOCALS], rate)
    curves = {
        "backing": _spectrum(after[BACKING], active, bands),
        "before": _spectrum(before[VOCALS], active, bands),
        "after": _spectrum(after[VOCALS], active, bands),
    }
    colour = COLOURS[VOCALS]
    top = max(float(curve.max()) for curve in curves.values()) + 3
    axes.fill_between(centres, -200, curves["backing"], color=COLOURS[BACKING], alpha=0.16, linewidth=0)
    axes.fill_between(centres, curves["before"], curves["after"], where=curves["after"] >= curves["before"],
                      color=colour, alpha=0.28, linewidth=0, interpolate=True)  # fmt: skip
    axes.fill_between(centres, curves["before"], curves["after"], where=curves["after"] <= curves["before"],
                      color=INK, alpha=0.2, linewidth=0, interpolate=True)  # fmt: skip
    axes.plot(centres, curves["before"], color=colour, linewidth=1.0, linestyle=(0, (1.2, 1.2)))
    axes.plot(centres, curves["after"], color=colour, linewidth=1.9)
    axes.set_ylim(top - SPECTRUM_DB, top)
    axes.set_title("Spectrum while the voice sings", **_heading())
    _plain(axes, "dB, each of its own whole")
    _frequency_axis(axes, centres)
    axes.tick_params(labelbottom=False)
    for place, (says, tint, style) in enumerate(
        [("vocals", colour, "bold"), ("dotted: before", colour, "normal"), ("backing", COLOURS[BACKING], "bold")]
    ):
        axes.text(0.985, 0.95 - 0.1 * place, says, transform=axes.transAxes, ha="right", va="top", fontsize=9,
                  color=tint, fontweight=style)  # fmt: skip


def _draw_equaliser(axes: Any, chain: Chain, rate: int) -> None:
    centres, _ = _bands(rate)
    moves = [effect for effect in chain if isinstance(effect, (ParametricEq, HighPass, LowPass))]
    frequencies, gains = _response_db(moves, rate)
    moved: dict[float, float] = {}  # several equalisers may move one frequency: they are told together
    for band in (band for effect in moves if isinstance(effect, ParametricEq) for band in effect.bands):
        moved[band.frequency_hz] = moved.get(band.frequency_hz, 0.0) + band.gain_db
    bands = [(frequency_hz, gain_db) for frequency_hz, gain_db in moved.items() if abs(gain_db) >= LEAST_LABEL_DB]
    inside = (frequencies >= centres[0]) & (frequencies <= centres[-1])
    reach = max([6.0, *(1.5 * abs(gain_db) + 1 for _, gain_db in bands)])
    curve = np.clip(gains[inside], -4 * reach, None)
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.fill_between(frequencies[inside], 0, curve, color=INK, alpha=0.12, linewidth=0)
    axes.plot(frequencies[inside], curve, color=INK, linewidth=1.5)
    axes.set_ylim(-reach, reach)
    _plain(axes, "equaliser, dB")
    _frequency_axis(axes, centres)
    for frequency_hz, gain_db in bands:
        up = gain_db > 0
        at = float(np.interp(frequency_hz, frequencies, gains))
        axes.plot(frequency_hz, at, marker="o", markersize=4.5, color=INK, markeredgewidth=0)
        axes.annotate(f"{gain_db:+.1f}", (frequency_hz, at), xytext=(0, 6 if up else -6),
                      textcoords="offset points", ha="center", va="bottom" if up else "top", fontsize=9,
                      fontweight="bold", color=INK)  # fmt: skip
    for effect in moves:
        if isinstance(effect, (HighPass, LowPass)) and effect.cutoff_hz is not None and not effect.is_neutral:
            low = isinstance(effect, HighPass)
            axes.text(min(max(effect.cutoff_hz * (1.12 if low else 0.9), 1.1 * centres[0]), 0.9 * centres[-1]),
                      -0.92 * reach, f"cut {'below' if low else 'above'} {_hertz(effect.cutoff_hz)}", fontsize=8,
                      color=INK, ha="left" if low else "right", va="bottom")  # fmt: skip
    if not moves or all(effect.is_neutral for effect in moves):
        axes.text(0.5, 0.62, "no equaliser", transform=axes.transAxes, ha="center", fontsize=10, color=FAINT)


def _response_db(moves: Sequence[ParametricEq | HighPass | LowPass], rate: int) -> tuple[np.ndarray, np.ndarray]:
    impulse = torch.zeros(1, 1 << 16, dtype=torch.float64)
    impulse[0, 0] = 1.0
    spectrum = torch.fft.rfft(apply(moves, impulse, rate)[0]).abs().numpy()
    return np.fft.rfftfreq(impulse.shape[-1], 1 / rate), 20 * np.log10(np.maximum(spectrum, 1e-9))


def _bands(rate: int) -> tuple[np.ndarray, Tensor]:
    """Centres in Hz, and (bands, bins) weights of bands of `OCTAVES`, three to a width; narrow ones are a bin wide."""
    top = min(HIGHEST_HZ, 0.5 * rate)
    count = max(2, round(3 * math.log2(top / LOWEST_HZ) / OCTAVES))
    centres = torch.logspace(math.log10(LOWEST_HZ), math.log10(top), count, dtype=torch.float64)
    bins = torch.arange(N_FFT // 2 + 1) * (rate / N_FFT)
    half = torch.clamp(centres * (2 ** (OCTAVES / 2) - 1) * 2, min=1.5 * rate / N_FFT)
    weights = (1 - (bins - centres[:, None]).abs() / half[:, None]).clamp_min(0)
    # A band's power, not its density: pink noise is level, as it sounds.
    return centres.numpy(), (weights / weights.sum(1, keepdim=True).clamp_min(1e-12) * centres[:, None]).float()


def _spectrum(waveform: Tensor, active: Tensor, bands: Tensor) -> np.ndarray:
    """dB by band, of the frames in which the voice is active; 0 dB is the sum of all."""
    window = torch.hann_window(N_FFT)
    mono = waveform if waveform.shape[0] == 1 else waveform[:2]
    if mono.shape[-1] < N_FFT:
        mono = torch.nn.functional.pad(mono, (0, N_FFT - mono.shape[-1]))
    power, frames = torch.zeros(N_FFT // 2 + 1), mono.unfold(1, N_FFT, N_FFT)
    # The active frames of 50 ms, at the rate of these.
    flags = torch.nn.functional.interpolate(active.float()[None, None], size=frames.shape[1])[0, 0] > 0
    if not bool(flags.any()):
        flags[:] = True
    chosen = torch.nonzero(flags)[:, 0]
    for part in chosen.split(CHUNK):
        power += torch.fft.rfft(frames[:, part] * window).abs().square().sum((0, 1))
    by_band = bands @ power
    return (10 * torch.log10((by_band / by_band.sum().clamp_min(1e-30)).clamp_min(1e-20))).numpy() + 10 * math.log10(
        3 / OCTAVES
    )


# ------------------------------------------------------------------------------------------------ the room


def _draw_room(axes: Any, reverb: Reverb, rate: int) -> None:
    """The voice as it stops, and the reverberation as it goes on, in three bands."""
    axes.set_title("Reverberation", **_heading())
    frequencies = torch.tensor([hz for hz in DECAYS_HZ if hz < 0.45 * rate], dtype=torch.float64)
    times_s = (-60 / reverb.decay_db_per_s(frequencies, rate)).tolist()
    wet_db = min(_wet_db(reverb, rate), 0.0)
    ends_s = [t60_s * (60 + wet_db) / 60 for t60_s in times_s]
    sung_s = 0.14 * max(ends_s)
    axes.fill([-sung_s, -sung_s, 0, 0], [-60, 0, 0, -60], color=COLOURS[VOCALS], alpha=0.28, linewidth=0)
    axes.text(-sung_s / 2, -1.5, "voice", rotation=90, ha="center", va="top", fontsize=9, fontweight="bold",
              color=COLOURS[VOCALS])  # fmt: skip
    for place, (hz, t60_s, end_s) in enumerate(zip(frequencies.tolist(), times_s, ends_s, strict=True)):
        weight = "bold" if hz == 1000 else "normal"
        axes.fill([0, 0, end_s], [-60, wet_db, -60], color=ROOM, alpha=0.14, linewidth=0)
        axes.plot([0, end_s], [wet_db, -60], color=ROOM, linewidth=1.9 if hz == 1000 else 1.0)
        for says, x, side in ((_hertz(hz), 0.74, "right"), (f"{t60_s:.1f} s", 0.985, "right")):
            axes.text(x, 0.955 - 0.062 * (place + 1), says, transform=axes.transAxes, ha=side, va="top", fontsize=9,
                      color=ROOM, fontweight=weight)  # fmt: skip
    axes.text(0.985, 0.955, "60 dB down after", transform=axes.transAxes, ha="right", va="top", fontsize=8, color=FAINT)
    axes.set_xlim(-sung_s, 1.06 * max(ends_s))
    axes.set_ylim(-60, 2)
    _plain(axes, "dB")
    axes.set_xlabel("s after the voice stops", fontsize=9, color=INK)
    axes.set_title(f"{-wet_db:.0f} dB under the voice" if wet_db < -0.5 else "as loud as the voice", loc="right",
                   fontsize=9.5, color=INK, pad=6)  # fmt: skip


def _wet_db(reverb: Reverb, rate: int) -> float:
    """Level of the reverberation of a sound that goes on, relative to the sound, for equal power at all frequencies."""
    if reverb.dry_wet == 1:
        return 0.0
    energy = float(impulse_response(reverb, rate).double().square().sum(-1).mean())
    return 20 * math.log10(reverb.dry_wet / (1 - reverb.dry_wet)) + 10 * math.log10(max(energy, 1e-12))


# ------------------------------------------------------------------------------------------------ small things


def _heading() -> dict[str, Any]:
    return {"loc": "left", "fontsize": 10.5, "fontweight": "bold", "color": INK, "pad": 6}


def _plain(axes: Any, unit: str) -> None:
    axes.tick_params(axis="both", colors=INK, labelsize=8, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_ylabel(unit, fontsize=9, color=INK)


def _frequency_axis(axes: Any, centres: np.ndarray) -> None:
    axes.set_xscale("log")
    axes.set_xlim(centres[0], centres[-1])
    ticks = [hz for hz in TICKS_HZ if centres[0] <= hz <= centres[-1]]
    axes.set_xticks(ticks, [_hertz(hz) for hz in ticks])
    axes.minorticks_off()
    axes.grid(axis="x", color=GRID, linewidth=0.7)


def _hertz(hz: float) -> str:
    return f"{hz / 1000:g} kHz" if hz >= 1000 else f"{hz:g} Hz"


def _unit(seconds: float) -> tuple[str, float]:
    return ("min", 60.0) if seconds > 180 else ("s", 1.0)
