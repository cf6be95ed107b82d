"""BSS Eval version 4: SDR, ISR, SIR and SAR of every second, equal to museval's and many times faster.

A target's estimate ``e`` is compared with its reference ``s`` by way of two projections: ``P``, the closest that
filters of 512 taps can bring all references (all their channels) to it, and ``P_s``, the closest that the target's own
reference can be brought. The filters are those of the whole track; the energies are those of one second at a time, the
references cut to it before they are filtered (so the projections are 511 samples longer than it).

    SDR = |s|^2 / |e - s|^2          all that is wrong
    ISR = |s|^2 / |P_s - s|^2        spatial distortion: the target itself, filtered
    SIR = |P_s|^2 / |P - P_s|^2      interference: the other references
    SAR = |P|^2 / |e - P|^2          artifacts: what no reference explains

Everything but SDR is a quadratic form in the filters, whose coefficients are the correlations of that second's signals
at lags up to 511. Summed over the seconds (and across their borders) the same correlations are the normal equations of
the filters. So the audio is read once, in short FFTs; the rest is small matrices. Forms in which rounding could show
are not used: those seconds are filtered in full.

Source: A. Liutkus, F.-R. Stöter, N. Ito, "The 2018 Signal Separation Evaluation Campaign", LVA/ICA (2018), as museval
0.4.1 defines it; E. Vincent, R. Gribonval, C. Févotte, "Performance measurement in blind audio source separation",
IEEE TASLP 14 (2006).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umx_ext.errors import AudioError, MissingExtraError, UsageError
from umx_ext.evaluation.distortion import TAPS, Filters, solve_filters

__all__ = ["ENGINES", "METRICS", "TAPS", "evaluate"]

METRICS = ("SDR", "ISR", "SIR", "SAR")
ENGINES = ("own", "museval")
# Long enough that little of it is padding (511), short enough that the spectra of one second stay in the cache.
_FFT = 2048
_BLOCK = _FFT - TAPS + 1
_PART = 1 << 20  # samples that are read at a time, where all of a channel is wanted

# Terms of a form are rounded to about 3e-16 of their bound; an energy above this much of the bounds' sum is right to
# better than 1e-5, whatever the signs of the roundings.
_TRUSTED = 3e-11


def evaluate(references: Any, estimates: Any, sample_rate: int, *, engine: str = "own") -> dict[str, np.ndarray]:
    """SDR, ISR, SIR and SAR of every second of every target, as ``museval.evaluate`` defines them.

    Equal to museval 0.4.1 (version 4, windows of 1 s) within 1e-4 dB wherever museval reads less than 80 dB; above, its
    figures are round-off and so are these. Computes in float64, with torch's threads. Beside its arguments it needs
    a fifth of their memory in float32, and a matrix of ``targets * channels * 512`` squared; references that
    depend on each other (see `umx_ext.evaluation.distortion`) take several times as long, and more memory.

    Args:
        references: `(targets, samples, channels)`, float32 or float64: one array or tensor, or a sequence of
            `(samples, channels)`. None is changed; views (a transposed `(channels, samples)`) are as good as copies.
            Of anything else with a shape (`umx_ext.audio.Samples`, say) slices are read when they are needed: twice,
            and once more for each channel where the references depend on each other.
        estimates: of the same targets in the same order. Longer than the references they are cut, shorter they are
            followed by silence.
        sample_rate: Hz; a frame is one second, a last partial frame is dropped. A track shorter than that is one frame.
        engine: ``"own"``, or ``"museval"`` for museval itself (extra `research`).

    Returns:
        The four metrics, each `(targets, frames)` in dB, float64. nan for all targets in a frame in which any reference
        or any estimate is silent: the sum of its channels is 0 throughout, so opposite channels count as silent, too.
        A source that is silent all the way (where museval raises ValueError) therefore makes every frame nan. inf where
        nothing is wrong.

    Raises:
        AudioError: the arrays are of other shapes, empty, or hold values that are not finite.
        UsageError: no such engine, or a sample rate that is no positive whole number.
        MissingExtraError: museval or scipy is not installed.
    """
    if engine not in ENGINES:
        raise UsageError(f"no BSS Eval engine named {engine!r}; known: {', '.join(ENGINES)}")
    if sample_rate != int(sample_rate) or sample_rate < 1:
        raise UsageError(f"expected a sample rate in Hz, a positive whole number, got {sample_rate!r}")
    track = _Track.of(references, estimates, int(sample_rate))
    audible = ~track.silent_frames()
    if not audible.any():
        return {metric: np.full((track.targets, track.frames), np.nan) for metric in METRICS}
    return (_own if engine == "own" else _museval)(track, audible)


@dataclass(frozen=True)
class _Track:
    """References and estimates, each `(samples, channels)`, and the cut into frames."""

    references: list[_Signal]
    estimates: list[_Signal]
    frame: int  # samples
    frames: int

    @classmethod
    def of(cls, references: Any, estimates: Any, sample_rate: int) -> _Track:
        both = [_signals(references, "references"), _signals(estimates, "estimates")]
        if len(both[0]) != len(both[1]):
            raise AudioError(f"expected an estimate for each reference, got {len(both[1])} for {len(both[0])}")
        (samples, channels), (_, found) = both[0][0].shape, both[1][0].shape
        if found != channels:
            raise AudioError(f"the references have {channels} channels and the estimates {found}: bring them to one")
        frame = min(sample_rate, samples)
        return cls(both[0], [signal.cut(samples) for signal in both[1]], frame, samples // frame)

    @property
    def targets(self) -> int:
        return len(self.references)

    @property
    def channels(self) -> int:
        return self.references[0].shape[1]

    @property
    def samples(self) -> int:
        return self.references[0].shape[0]

    def read(self, into: Tensor, start: int, stop: int) -> None:
        """Copy that part to the front of `(references' then estimates' channels, >= stop - start)`, zeros behind."""
        for at, signal in enumerate([*self.references, *self.estimates]):
            part = signal.part(start, stop).mT
            rows = into[at * self.channels : (at + 1) * self.channels]
            rows[:, : part.shape[1]] = part
            rows[:, part.shape[1] :] = 0

    def channel(self, number: int) -> np.ndarray:
        """All samples of one of the references' and then the estimates' channels, in float64."""
        source, channel = divmod(number, self.channels)
        signal = [*self.references, *self.estimates][source]
        samples = torch.zeros(self.samples, dtype=torch.float64)
        for start in range(0, signal.shape[0], _PART):
            part = signal.part(start, start + _PART)[:, channel]
            samples[start : start + len(part)] = part
        return samples.numpy()

    def silent_frames(self) -> Tensor:
        """`(frames,)`: whether any source is silent there."""
        silent = torch.zeros(self.frames, dtype=torch.bool)
        for signal in [*self.references, *self.estimates]:
            for frame in range(self.frames):
                # In the caller's precision and from left to right, as numpy adds them: other roundings could be 0.
                part = signal.part(frame * self.frame, (frame + 1) * self.frame)
                silent[frame] |= not reduce(torch.add, part.unbind(1)).any()
        return silent


@dataclass(frozen=True)
class _Signal:
    """One reference or estimate: a tensor `(samples, channels)`, or something of that shape whose slices are read."""

    source: Any
    shape: tuple[int, int]

    def part(self, start: int, stop: int) -> Tensor:
        """Those of the samples that there are."""
        samples = self.source[start : min(stop, self.shape[0])]
        samples = samples if isinstance(samples, Tensor) else torch.from_numpy(_shareable(samples))
        if samples.is_complex() or samples.dtype == torch.bool:
            raise AudioError(f"expected real numbers, got {samples.dtype}")
        return samples if samples.is_floating_point() else samples.double()

    def cut(self, samples: int) -> _Signal:
        return _Signal(self.source, (min(samples, self.shape[0]), self.shape[1]))

    def whole(self) -> np.ndarray:
        return self.part(0, self.shape[0]).numpy()


def _signals(sources: Any, role: str) -> list[_Signal]:
    found = []
    try:
        sources = list(sources)
    except TypeError as error:  # one that is read slice by slice
        raise AudioError(f"expected a list of {role}, one for each target, got {type(sources).__name__}") from error
    for source in sources:
        signal: Any
        if isinstance(source, Tensor):
            signal = source.detach().cpu()
        elif hasattr(source, "__array__") or not hasattr(source, "shape") or isinstance(source, memoryview):
            signal = torch.from_numpy(_shareable(source))
        else:
            signal = source  # read slice by slice
        kind = signal.dtype if isinstance(signal, Tensor) else None
        if kind is not None and (kind.is_complex or kind == torch.bool):
            raise AudioError(f"expected {role} of real numbers, got {kind}")
        if isinstance(signal, Tensor):
            signal = signal if signal.dim() != 1 else signal[:, None]
            signal = signal if signal.is_floating_point() else signal.double()
        if len(signal.shape) != 2 or 0 in signal.shape:
            raise AudioError(f"expected {role} (targets, samples, channels), got {tuple(signal.shape)} for one target")
        found.append(_Signal(signal, (int(signal.shape[0]), int(signal.shape[1]))))
    if not found:
        raise AudioError(f"there are no {role}: give at least one target")
    if len(shapes := {signal.shape for signal in found}) > 1:
        raise AudioError(f"expected {role} of one length and one number of channels, got {sorted(shapes)}")
    return found


def _shareable(source: Any) -> np.ndarray:
    """An array that torch can look at without a copy: not read-only, not running backwards."""
    array = np.asarray(source)
    return array if array.flags.writeable and all(step > 0 for step in array.strides) else array.copy()


# Museval itself.


def _museval(track: _Track, audible: Tensor) -> dict[str, np.ndarray]:
    metrics = _museval_metrics()
    references = np.stack([signal.whole() for signal in track.references])
    guesses = [signal.whole() for signal in track.estimates]
    estimates = np.zeros(references.shape, dtype=guesses[0].dtype)
    for row, guess in zip(estimates, guesses, strict=True):
        row[: len(guess)] = guess
    try:
        values = metrics.bss_eval(references, estimates, window=track.frame, hop=track.frame)
    except AttributeError as error:
        raise AudioError(
            "museval cannot solve for its filters: the references depend on each other, and what it tries next needs "
            f"numpy 1 ({error}); use the engine 'own'"
        ) from error
    return dict(zip(METRICS, values[:4], strict=True))


def _museval_metrics() -> ModuleType:
    """museval/metrics.py alone: the package around it refuses to be imported where there is no FFmpeg program."""
    spec = importlib.util.find_spec("museval")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("the engine 'museval' needs museval; run: pip install museval")
    file = Path(next(iter(spec.submodule_search_locations)), "metrics.py")
    inner = importlib.util.spec_from_file_location("museval_metrics", file)
    assert inner is not None and inner.loader is not None
    module = importlib.util.module_from_spec(inner)
    try:
        inner.loader.exec_module(module)
    except ImportError as error:
        raise MissingExtraError(f"the engine 'museval' needs scipy ({error}); run: pip install scipy") from error
    return module


# Our own.


def _own(track: _Track, audible: Tensor) -> dict[str, np.ndarray]:
    with torch.no_grad():
        moments = _moments(track, audible)
        if not torch.isfinite(moments.total[:, :, 0]).all():
            raise AudioError("expected finite samples, but a reference or an estimate holds nan or infinity")
        filters = solve_filters(moments.total, track.targets, track.channel)
        energies, trusted = _energies(moments, filters)
        doubtful = torch.nonzero(~trusted).flatten().tolist()
        _filter_in_full(track, filters, energies, [(frame, int(moments.frames[frame])) for frame in doubtful])
    true, wrong = moments.true, moments.wrong
    spatial, own, interference, projected, artifacts = energies
    found = {}
    for metric, numerator, denominator in (
        ("SDR", true, wrong),
        ("ISR", true, spatial),
        ("SIR", own, interference),
        ("SAR", projected, artifacts),
    ):
        values = np.full((track.targets, track.frames), np.nan)
        decibels = torch.where(denominator == 0, torch.inf, 10 * torch.log10(numerator / denominator))
        values[:, moments.frames.numpy()] = decibels.numpy()
        found[metric] = values
    return found


@dataclass
class _Moments:
    """What the audio is reduced to; `inputs` are the channels of all references, one after the other.

    A correlation `(inputs, 2 * inputs, TAPS)` holds ``sum_t x_i(t) y_j(t + lag)``, where x are the references'
    channels, and y those of the references and then of the estimates.
    """

    total: Tensor  # correlation of the whole track
    frames: Tensor  # indices of the audible frames
    among: Tensor  # `(frames, inputs, inputs, TAPS)`: the references' part of each of them
    between: Tensor  # `(frames, inputs, inputs, TAPS)`: the estimates' part
    estimated: Tensor  # `(targets, frames)`: energy of the estimates
    true: Tensor  # of the references
    wrong: Tensor  # of their difference


def _moments(track: _Track, audible: Tensor) -> _Moments:
    inputs = track.targets * track.channels
    blocks = -(-track.frame // _BLOCK)
    frames = torch.nonzero(audible).flatten()

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.float64)

    moments = _Moments(
        total=empty(inputs, 2 * inputs, TAPS).zero_(),
        frames=frames,
        among=empty(len(frames), inputs, inputs, TAPS),
        between=empty(len(frames), inputs, inputs, TAPS),
        estimated=empty(track.targets, len(frames)),
        true=empty(track.targets, len(frames)),
        wrong=empty(track.targets, len(frames)),
    )
    signals = torch.zeros(2 * inputs, blocks * _BLOCK + TAPS - 1, dtype=torch.float64)
    here = 0
    for start in range(0, track.samples, track.frame):  # the last may be a partial one, which only counts in the total
        stop = min(start + track.frame, track.samples)
        track.read(signals, start, stop)
        correlation = _correlate(
            signals[:inputs, : blocks * _BLOCK].unflatten(1, (blocks, _BLOCK)), signals.unfold(1, _FFT, _BLOCK)
        )
        moments.total += correlation
        if here < len(frames) and start == frames[here] * track.frame:
            moments.among[here], moments.between[here] = correlation.chunk(2, dim=1)
            reference, estimate = signals.view(2, track.targets, -1)
            moments.true[:, here] = reference.square().sum(1)
            moments.estimated[:, here] = estimate.square().sum(1)
            moments.wrong[:, here] = (estimate - reference).square().sum(1)
            here += 1
    moments.total += _across_borders(track)
    return moments


def _correlate(before: Tensor, after: Tensor) -> Tensor:
    """Sum over blocks of the correlations: `(inputs, blocks, n)` and `(outputs, blocks, m)` -> `(inputs, outputs,
    TAPS)`. Block by block, what comes before begins with what comes after it, and m >= n + TAPS - 1."""
    size = after.shape[-1]
    # One small matrix product a bin.
    left = torch.fft.rfft(before, n=size).conj().permute(2, 0, 1).resolve_conj().contiguous()
    right = torch.fft.rfft(after).permute(2, 1, 0).contiguous()
    return torch.fft.irfft(torch.bmm(left, right).permute(1, 2, 0).contiguous(), n=size)[..., :TAPS]


def _across_borders(track: _Track) -> Tensor:
    """Correlations of each frame's last samples with those that follow it, which the frames by themselves miss."""
    inputs, reach = track.targets * track.channels, TAPS - 1
    total = torch.zeros(inputs, 2 * inputs, TAPS, dtype=torch.float64)
    borders = range(track.frame, track.samples, track.frame)
    many = 64  # at a time; each takes some 200 kB of spectra
    for first in range(0, len(borders), many):
        some = borders[first : first + many]
        before = torch.zeros(2 * inputs, len(some), reach, dtype=torch.float64)
        after = torch.zeros(2 * inputs, len(some), 2 * TAPS, dtype=torch.float64)
        for at, border in enumerate(some):
            length = min(reach, track.frame)
            track.read(before[:, at, reach - length :], border - length, border)
            track.read(after[:, at, reach : 2 * reach], border, min(border + reach, track.samples))
        total += _correlate(before[:inputs], after)
    return total


def _energies(moments: _Moments, filters: Filters) -> tuple[Tensor, Tensor]:
    """From the correlations `(5, targets, frames)`: |P_s - s|^2, |P_s|^2, |P - P_s|^2, |P|^2 and |e - P|^2; and
    `(frames,)`: whether none of them is mostly rounding."""
    targets, _, _, channels = filters.together.shape
    amplitudes = moments.among[..., 0].diagonal(dim1=1, dim2=2).sqrt()  # (frames, inputs)
    flat = moments.among.flatten(1)
    energies = torch.empty(5, targets, len(flat), dtype=torch.float64)
    trusted = torch.ones(len(flat), dtype=torch.bool)
    for target in range(targets):
        together = filters.together[target]
        alone = torch.zeros_like(together)
        own = slice(target * channels, (target + 1) * channels)
        alone[own] = filters.alone[target]
        spatial = alone.clone()
        spatial[own, 0] -= torch.eye(channels, dtype=torch.float64)
        forms = torch.stack([_form(part) for part in (spatial, alone, together - alone, together)])
        energies[:4, target] = forms.flatten(1) @ flat.T
        bounds = torch.einsum("kij,fi,fj->kf", forms.abs().sum(3), amplitudes, amplitudes)

        estimated = moments.estimated[target]
        shared = moments.between[:, :, own].flatten(1) @ together.mT.flatten()
        energies[4, target] = estimated - 2 * shared + energies[3, target]
        reach = amplitudes @ together.abs().sum((1, 2))
        bounds = torch.cat([bounds, (estimated + 2 * reach * estimated.sqrt() + bounds[3])[None]])
        trusted &= (energies[:, target] > _TRUSTED * bounds).all(0)
    return energies, trusted


def _form(filters: Tensor) -> Tensor:
    """Weights `(inputs, inputs, TAPS)` of the inputs' correlations in the energy of what `(inputs, TAPS, outputs)`
    makes of them. A pair's negative lags are the other pair's positive ones, so lags above 0 count twice."""
    spectra = torch.fft.rfft(filters, n=2 * TAPS, dim=1)
    products = torch.einsum("ifo,jfo->ijf", spectra, spectra.conj())
    weights = torch.fft.irfft(products, n=2 * TAPS)[..., :TAPS]
    weights[..., 1:] *= 2
    return weights


def _filter_in_full(track: _Track, filters: Filters, energies: Tensor, places: Sequence[tuple[int, int]]) -> None:
    """Write the energies anew at these places, `(column of energies, frame)`, from the projections themselves."""
    if not places:
        return
    inputs, longer = track.targets * track.channels, track.frame + TAPS - 1
    size = _fast_size(longer)
    together, alone = torch.fft.rfft(filters.together, n=size, dim=2), torch.fft.rfft(filters.alone, n=size, dim=2)
    signals = torch.zeros(2 * inputs, size, dtype=torch.float64)
    for column, frame in places:
        track.read(signals, frame * track.frame, (frame + 1) * track.frame)
        spectra = torch.fft.rfft(signals[:inputs])
        sources = signals.view(2, track.targets, track.channels, size)[..., :longer]
        for target, (true, estimate) in enumerate(zip(*sources, strict=True)):
            mine = spectra.view(track.targets, track.channels, -1)[target]
            own = _filtered(mine, alone[target], size)[:, :longer]
            projected = _filtered(spectra, together[target], size)[:, :longer]
            parts = (own - true, own, projected - own, projected, estimate - projected)
            energies[:, target, column] = torch.stack([part.square().sum() for part in parts])


def _filtered(spectra: Tensor, filters: Tensor, size: int) -> Tensor:
    """`(inputs, bins)` through `(inputs, bins, outputs)`: `(outputs, samples)`."""
    return torch.fft.irfft((spectra[..., None] * filters).sum(0).mT, n=size)


def _fast_size(least: int) -> int:
    """The smallest even number from there on with no prime factor above 5, which FFTs like."""
    size = least + least % 2
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2
