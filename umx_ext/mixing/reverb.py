"""Reverberation: one set of parameters, two engines that render it as an impulse response.

The parameters are those of the IEM FdnReverb plug-in, in which the two shelves are not equalisers: they change how fast
the sound *decays*, so their gains are in dB per second. The decay rate is

    D(f) = -60 / t60 + low_gain S_low(f) + high_gain S_high(f)      in dB/s, at most -3; T60(f) = -60 / D(f)

where S is the response in dB of a second-order shelf per dB of its gain, for small gains: 1 on its side of the
cut-off, 1/2 at it, 0 on the other side. That is what a delay line of tau seconds sums up to when, at each turn, it
carries the two shelves with their gains times tau.

- ``fdn``: a feedback delay network of 16 lines with mutually prime lengths, mixed by a Hadamard matrix. Because it is
  linear it is rendered once, at the output of one impulse, and then convolved.
- ``noise``: Gaussian noise in nine octave bands, each with its own decay. Denser, and made of operations that have
  gradients.

Both start when the first of the room's echoes arrives, give two channels that are not correlated, and are scaled to
unit energy (mean over the channels): white noise comes out wet as loud as it went in dry.

Source: J.-M. Jot, A. Chaigne, "Digital delay networks for designing artificial reverberators", AES 90 (1991); names,
ranges and defaults of the parameters: IEM Plug-in Suite, FdnReverb.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from umx_ext.errors import UsageError
from umx_ext.mixing.effect import Effect, choice, number, require_rate

__all__ = ["CENTRES_HZ", "Reverb", "convolve", "decay_db_per_s", "impulse_response", "noise_response"]

CENTRES_HZ = (63.0, 125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16000.0)

LINES = 16
SLOWEST_DB_PER_S = -3.0  # a T60 of 20 s
LONGEST_S = 10.0
SPEED_OF_SOUND = 343.0  # m/s

# Delays of the lines, as multiples of the mean one: a factor of 2.7 between the shortest and the longest.
_SPREAD = (0.6, 1.6)

_NEPER = math.log(10) / 20  # per dB


@dataclass(frozen=True)
class Reverb(Effect):
    """Artificial reverberation. Channel by channel: ``(1 - dry_wet) x + dry_wet (h * x)``.

    The left (or only) channel is convolved with one response, the right one with another, so a doubled mono voice
    becomes wide. The same settings always give the same response.

    Attributes:
        t60_s: 0.1 to 9 s, time in which the reverberation falls by 60 dB where the shelves do nothing.
        room_size: 1 to 30 metres between two reflections, on average: the lengths of the delay lines.
        fade_in_s: 0 to 8.9 s, below `t60_s`. The envelope is exp(-6.91 t / t60) - exp(-6.91 t / fade_in).
        low_cut_hz, low_gain_db_per_s, low_q: low shelf of the decay rate; 20 to 20000 Hz, -80 to 6 dB/s, 0.01 to 0.9.
        high_cut_hz, high_gain_db_per_s, high_q: high shelf; 20 to 20000 Hz, -80 to 4 dB/s, 0.01 to 0.9.
        dry_wet: 0 (dry) to 1 (reverberation alone), linear.
        engine: "fdn" or "noise".
        seed: draws the signs and lengths of the network, or the noise.
    """

    kind: ClassVar[str] = "reverb"
    t60_s: float = number(5.0, 0.1, 9, "s")
    room_size: float = number(20.0, 1, 30)
    fade_in_s: float = number(0.0, 0, 8.9, "s")
    low_cut_hz: float = number(100.0, 20, 20000, "Hz")
    low_gain_db_per_s: float = number(1.0, -80, 6, "dB/s")
    low_q: float = number(0.5, 0.01, 0.9)
    high_cut_hz: float = number(2000.0, 20, 20000, "Hz")
    high_gain_db_per_s: float = number(-10.0, -80, 4, "dB/s")
    high_q: float = number(0.5, 0.01, 0.9)
    dry_wet: float = number(0.5, 0, 1)
    engine: str = choice("fdn", "fdn", "noise")
    seed: int = number(0, 0, 2**32 - 1, whole=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fade_in_s >= self.t60_s:
            raise UsageError(
                f"reverb: expected fade_in_s ({self.fade_in_s:g} s) below t60_s ({self.t60_s:g} s): "
                "the reverberation cannot rise more slowly than it falls"
            )

    @classmethod
    def neutral(cls) -> Reverb:
        return cls(dry_wet=0.0)

    @property
    def is_neutral(self) -> bool:
        return self.dry_wet == 0

    def _process(self, waveform: Tensor, sample_rate: int) -> Tensor:
        wet = convolve(waveform, impulse_response(self, sample_rate)[: waveform.shape[-2]].to(waveform.dtype))
        return wet.mul_(self.dry_wet).add_(waveform, alpha=1 - self.dry_wet)

    def decay_db_per_s(self, frequency_hz: Tensor, sample_rate: int) -> Tensor:
        """D(f), dB per second, -3 or less. Shape: as `frequency_hz`. ``-60 / D(f)`` is the reverberation time."""
        shelves = {name: torch.tensor(value, dtype=torch.float64) for name, value in _shelves(self).items()}
        t60_s = torch.tensor(self.t60_s, dtype=torch.float64)
        return decay_db_per_s(frequency_hz.double(), sample_rate, t60_s=t60_s, **shelves)


def _shelves(reverb: Reverb) -> dict[str, float]:
    sides = [f"{side}_{name}" for side in ("low", "high") for name in ("cut_hz", "gain_db_per_s", "q")]
    return {name: getattr(reverb, name) for name in sides}


def _shelf(frequency_hz: Tensor, cut_hz: Tensor, q: Tensor, sample_rate: int) -> Tensor:
    """Response in dB of a low shelf per dB of its gain, in the limit of small gains; one minus it is the high shelf's.

    The derivative of the cookbook's low shelf with respect to its gain, at none; frequencies are warped as by the
    bilinear transform.
    """
    # A cut-off beyond what the rate can carry stands at its end.
    cut = torch.tan(math.pi * cut_hz.clamp(max=0.49 * sample_rate) / sample_rate)
    ratio = (torch.tan(math.pi * frequency_hz.clamp(max=0.4999 * sample_rate) / sample_rate) / cut) ** 2
    return 0.5 + 0.5 * (1 - ratio**2) / ((1 - ratio) ** 2 + ratio / q**2)


def decay_db_per_s(
    frequency_hz: Tensor,
    sample_rate: int,
    *,
    t60_s: Tensor,
    low_cut_hz: Tensor,
    low_gain_db_per_s: Tensor,
    low_q: Tensor,
    high_cut_hz: Tensor,
    high_gain_db_per_s: Tensor,
    high_q: Tensor,
) -> Tensor:
    """The decay rate D(f) in dB per second, at most -3; differentiable, all shapes broadcast."""
    low = low_gain_db_per_s * _shelf(frequency_hz, low_cut_hz, low_q, sample_rate)
    high = high_gain_db_per_s * (1 - _shelf(frequency_hz, high_cut_hz, high_q, sample_rate))
    return (low + high - 60 / t60_s).clamp(max=SLOWEST_DB_PER_S)


def impulse_response(reverb: Reverb, sample_rate: int) -> Tensor:
    """The reverberation alone (wet), without `dry_wet`.

    As long as 1.2 times the longest reverberation time, at most 10 s; where that cuts sound off, the last second fades.

    Args:
        reverb: the settings.
        sample_rate: Hz.

    Returns:
        float32 `(2, samples)` of unit energy (mean over the channels). The first sample is the time of the dry sound.
    """
    require_rate(sample_rate)
    return _rendered(replace(reverb, dry_wet=1.0), sample_rate).clone()


@functools.lru_cache(maxsize=4)
def _rendered(reverb: Reverb, sample_rate: int) -> Tensor:
    samples = response_length(reverb, sample_rate)
    if reverb.engine == "fdn":
        response = torch.from_numpy(network_response(reverb, sample_rate, samples))
        if samples >= int(LONGEST_S * sample_rate):
            response[:, -sample_rate:] *= torch.linspace(1, 0, sample_rate, dtype=response.dtype)
        return (response / response.square().sum(dim=-1).mean().sqrt()).float()
    values = {"t60_s": reverb.t60_s, "fade_in_s": reverb.fade_in_s, **_shelves(reverb)}
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    return noise_response(reverb, sample_rate, tensors).float()


def response_length(reverb: Reverb, sample_rate: int) -> int:
    """Samples of the response: 1.2 times the longest reverberation time and the first echo's delay, at most 10 s."""
    slowest = float(reverb.decay_db_per_s(_grid(sample_rate), sample_rate).max())
    return int(min(1.2 * 60 / -slowest + delay_s(reverb)[0], LONGEST_S) * sample_rate)


def _grid(sample_rate: int) -> Tensor:
    return torch.logspace(1, math.log10(sample_rate / 2), 400, dtype=torch.float64)


def delay_s(reverb: Reverb) -> tuple[float, float]:
    """Delays of the shortest and the longest line, nominal."""
    mean_s = reverb.room_size / SPEED_OF_SOUND
    return _SPREAD[0] * mean_s, _SPREAD[1] * mean_s


# ---------------------------------------------------------------------------------------------- feedback delay network


def line_lengths(reverb: Reverb, sample_rate: int, generator: np.random.Generator) -> list[int]:
    """16 different primes: one in each of 16 equal steps (in ratio) between the shortest and the longest delay."""
    shortest, longest = (delay * sample_rate for delay in delay_s(reverb))
    steps = (np.arange(LINES) + generator.uniform(0.1, 0.9, LINES)) / LINES
    lengths: list[int] = []
    for wanted in shortest * (longest / shortest) ** steps:
        candidate = max(2, round(wanted))
        # Downwards would end at 2 in small rooms; a prime is never far above.
        while candidate in lengths or not _is_prime(candidate):
            candidate += 1
        lengths.append(candidate)
    return lengths


def _is_prime(value: int) -> bool:
    return value >= 2 and all(value % divisor for divisor in range(2, math.isqrt(value) + 1))


def network_shelves(reverb: Reverb, sample_rate: int) -> tuple[float, float]:
    """Gains of the two shelves in dB/s, reduced where they would let some frequency decay by less than 3 dB/s.

    A shelf that rings on is turned down first; one that damps is touched only where the slight overshoot of its other
    side (a high Q) is what goes too far.
    """
    # Below what can be heard too: with a low Q a shelf reaches its gain only there, and would ring on for ever.
    frequency_hz = torch.cat([torch.zeros(1), torch.logspace(-2, 1, 200), _grid(sample_rate)])
    value = {name: torch.tensor(number, dtype=torch.float64) for name, number in _shelves(reverb).items()}
    low = _shelf(frequency_hz, value["low_cut_hz"], value["low_q"], sample_rate)
    high = 1 - _shelf(frequency_hz, value["high_cut_hz"], value["high_q"], sample_rate)
    shapes = torch.stack([low, high]).numpy()  # (shelves, frequencies)
    gains = np.array([reverb.low_gain_db_per_s, reverb.high_gain_db_per_s])
    for moves in (gains > 0, np.array([True, True])):
        moved = (gains * moves) @ shapes
        room = SLOWEST_DB_PER_S + 60 / reverb.t60_s - (gains * ~moves) @ shapes
        beyond = moved > np.maximum(room, 0.0) + 1e-9
        if beyond.any():
            gains = np.where(moves, gains * max(0.0, float((room / moved)[beyond].min())), gains)
    return float(gains[0]), float(gains[1])


def network_response(reverb: Reverb, sample_rate: int, samples: int) -> np.ndarray:
    """Impulse response of the feedback delay network, not scaled. Double precision `(2, samples)`."""
    response = _network(reverb, sample_rate, samples, reverb.t60_s)
    if reverb.fade_in_s > 0:
        # A second network that dies within the fade-in takes away what the first one starts with.
        slowest = float(reverb.decay_db_per_s(_grid(sample_rate), sample_rate).max())
        faster = slowest + 60 / reverb.t60_s - 60 / reverb.fade_in_s
        short = min(samples, int((100 / -faster + delay_s(reverb)[1]) * sample_rate) + 1)  # to -100 dB
        response[:, :short] -= _network(reverb, sample_rate, short, reverb.fade_in_s)
    return response


def _network(reverb: Reverb, sample_rate: int, samples: int, t60_s: float) -> np.ndarray:
    from scipy.signal import sosfilt

    from umx_ext.mixing.equaliser import sections

    generator = np.random.default_rng(reverb.seed)
    lengths = line_lengths(reverb, sample_rate, generator)
    signs_in = generator.choice([-1.0, 1.0], LINES) / math.sqrt(LINES)
    hadamard = functools.reduce(np.kron, [np.array([[1.0, 1.0], [1.0, -1.0]])] * 4) / math.sqrt(LINES)
    taps = hadamard[[1, 2]]  # alternating signs: + - + - on the left, + + - - on the right

    gains = network_shelves(reverb, sample_rate)
    filters, states, scalars = [], [], []
    for length in lengths:
        delay = length / sample_rate
        # On equal terms with `_shelf`: a cut-off beyond what the rate can carry stands at its end.
        shelves = [
            ("low-shelf", min(reverb.low_cut_hz, 0.49 * sample_rate), gains[0] * delay, reverb.low_q),
            ("high-shelf", min(reverb.high_cut_hz, 0.49 * sample_rate), gains[1] * delay, reverb.high_q),
        ]
        active = [shelf for shelf in shelves if shelf[2]]
        filters.append(sections(active, sample_rate) if active else None)
        states.append(np.zeros((len(active), 2)))
        scalars.append(10 ** (-3 * delay / t60_s))

    # Nothing that leaves a line can come back sooner than after the shortest line, so that many samples at once.
    lines = np.zeros((LINES, samples + max(lengths)))  # what enters each line; time starts after the longest delay
    origin = max(lengths)
    output = np.zeros((2, samples))
    for start in range(0, samples, min(lengths)):
        count = min(min(lengths), samples - start)
        heard = np.empty((LINES, count))
        for line, length in enumerate(lengths):
            first = origin + start - length
            segment = lines[line, first : first + count] * scalars[line]
            if filters[line] is not None:
                segment, states[line] = sosfilt(filters[line], segment, zi=states[line])
            heard[line] = segment
        output[:, start : start + count] = taps @ heard
        lines[:, origin + start : origin + start + count] = hadamard @ heard
        if start == 0:
            lines[:, origin] += signs_in
    return output


# --------------------------------------------------------------------------------------------------------------- noise


def noise_response(reverb: Reverb, sample_rate: int, values: Mapping[str, Tensor]) -> Tensor:
    """Impulse response of the noise engine for one set of values; differentiable in all of them.

    Args:
        reverb: gives `room_size` (when the noise starts), `seed`, and the length of the response.
        sample_rate: Hz.
        values: ``t60_s``, ``fade_in_s`` and the six values of the shelves, as scalars; optionally ``band_gain_db``
            `(9,)`, levels of the octave bands at the start, 0 dB where it is missing.

    Returns:
        `(2, samples)` of unit energy (mean over the channels), in the dtype of ``t60_s``.
    """
    t60_s, fade_in_s = values["t60_s"], values["fade_in_s"]
    dtype = t60_s.dtype
    samples = response_length(reverb, sample_rate)
    centres = torch.tensor([centre for centre in CENTRES_HZ if centre < sample_rate / 2], dtype=dtype)
    shelves = {name: values[name] for name in _shelves(reverb)}
    decay = decay_db_per_s(centres, sample_rate, t60_s=t60_s, **shelves)  # (bands,)
    band_gain_db = values.get("band_gain_db")

    first = round(delay_s(reverb)[0] * sample_rate)
    time_s = torch.arange(samples - first, dtype=dtype) / sample_rate
    size = 1 << (len(time_s) - 1).bit_length()
    generator = np.random.default_rng(reverb.seed)
    noise = torch.fft.rfft(torch.from_numpy(generator.standard_normal((2, size))).to(dtype))
    octave = torch.log2(torch.fft.rfftfreq(size, 1 / sample_rate, dtype=dtype).clamp_min(1.0) / centres[0])
    octave = octave.clamp(0, len(centres) - 1)  # the outer bands reach to 0 Hz and to half the rate

    response = torch.zeros(2, len(time_s), dtype=dtype)
    for band, rate in enumerate(decay):
        # Squared cosines over the logarithm of frequency: neighbouring bands add up to one.
        window = torch.cos((octave - band).clamp(-1, 1) * (math.pi / 2)).square()
        envelope = torch.exp(_NEPER * rate * time_s)
        if float(fade_in_s.detach()) > 0:
            envelope = envelope - torch.exp(_NEPER * (rate + 60 / t60_s - 60 / fade_in_s) * time_s)
        if band_gain_db is not None:
            envelope = envelope * 10 ** (band_gain_db[band] / 20)
        response = response + torch.fft.irfft(noise * window, n=size)[:, : len(time_s)] * envelope
    if samples >= int(LONGEST_S * sample_rate):
        faded = torch.linspace(1, 0, sample_rate, dtype=dtype)
        response = torch.cat([response[:, :-sample_rate], response[:, -sample_rate:] * faded], dim=1)
    response = response / response.square().sum(dim=-1).mean().sqrt()
    return torch.nn.functional.pad(response, (first, 0))


# --------------------------------------------------------------------------------------------------------- convolution


def convolve(waveform: Tensor, response: Tensor) -> Tensor:
    """Convolution with a response, channel by channel, cut to the waveform's length; blocks of FFTs, overlap and add.

    Args:
        waveform: `(..., channels, samples)`.
        response: `(channels, taps)` in the waveform's dtype.

    Returns:
        A new tensor `(..., channels, samples)`.
    """
    samples, taps = waveform.shape[-1], min(response.shape[-1], waveform.shape[-1])
    response = response[..., :taps]
    size = 1 << (max(2 * taps, 1 << 16) - 1).bit_length()
    step = size - taps + 1
    spectrum = torch.fft.rfft(response, n=size)
    out = torch.zeros_like(waveform)
    for start in range(0, samples, step):
        block = waveform[..., start : start + step]
        if not block.any():  # silence adds nothing
            continue
        piece = torch.fft.irfft(torch.fft.rfft(block, n=size) * spectrum, n=size)
        end = min(samples, start + block.shape[-1] + taps - 1)
        out[..., start:end] += piece[..., : end - start]
    return out
