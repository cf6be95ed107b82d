"""The separator: waveform in, Stems out; for an array, a song, and hours of audio by the same code.

Long audio is cut into blocks. Each block's *core* is a whole number of Wiener windows; *context* on both sides is shown
to the network and thrown away. Frames of all cores are overlap-added into one signal, so that a cut is no seam.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from umx_ext.errors import AudioError, ModelError, UsageError
from umx_ext.separation.batches import Block, Recipe, abreast, filter_input, in_batches
from umx_ext.separation.config import Config
from umx_ext.separation.dense import compiled
from umx_ext.separation.engine import Engine
from umx_ext.separation.masknet import Net, build_net
from umx_ext.separation.stages import stage, staged
from umx_ext.separation.streaming import stream
from umx_ext.separation.wiener import wiener
from umx_ext.spectral import istft, stft
from umx_ext.stems import Stems

__all__ = ["ACCOMPANIMENTS", "Options", "Separator"]

ACCOMPANIMENTS = ("mixture", "wiener")


_making = threading.Lock()  # several songs at a time need one engine


@dataclass(frozen=True)
class Options:
    """How to separate.

    Attributes:
        stems: which stems to return; None: all that the model has, and the accompaniment if it has vocals alone.
        niter: iterations of the Wiener filter; 0 is the network's magnitude with the mixture's phase; None: what suits
            the model (``config.niter``).
        wiener_win_len: frames over which the filter's spatial covariances are shared.
        accompaniment: ``"mixture"``: the accompaniment is the mixture minus the vocals (and the stem ``other`` of a
            model of four stems the mixture minus the rest), so that the stems add up; ``"wiener"``: the filter's own.
        segment_s: core of a block, seconds, rounded up to whole Wiener windows.
        overlap_s: context on each side of a block, seconds.
        split: False: no blocks, the network sees everything at once; memory then grows with the length.
        fast: round what goes into the networks' products: on a CPU to integers of 12 bits where that is faster, which
            is where the package's compiled loops are used (a U-Net's convolutions stay float32); on CUDA devices to
            half precision. On a CPU it changes stems by -65 dB of the mixture or less, by -57 dB where that lies 40 dB
            above full scale (docs/performance.md). Without, BLSTMs and convolutions on a CUDA device still have what
            ``torch.backends.cudnn`` allows, which by torch's default is TF32.
    """

    stems: tuple[str, ...] | None = None
    niter: int | None = None
    wiener_win_len: int = 300
    accompaniment: str = "mixture"
    segment_s: float = 110.0
    overlap_s: float = 8.0
    split: bool = True
    fast: bool = False

    def __post_init__(self) -> None:
        if self.niter is not None and self.niter < 0:
            raise UsageError(f"expected niter of 0 or more, got {self.niter}")
        if self.wiener_win_len < 1:
            raise UsageError(f"expected a wiener_win_len of at least 1 frame, got {self.wiener_win_len}")
        if self.accompaniment not in ACCOMPANIMENTS:
            raise UsageError(f"expected accompaniment {' or '.join(ACCOMPANIMENTS)}, got {self.accompaniment!r}")
        if not (math.isfinite(self.segment_s) and self.segment_s > 0):
            raise UsageError(f"expected segment_s in seconds above 0, got {self.segment_s}")
        if not (math.isfinite(self.overlap_s) and self.overlap_s >= 0):
            raise UsageError(f"expected overlap_s in seconds of 0 or more, got {self.overlap_s}")


def require_two_sources(stems: Sequence[str], niter: int, residual: bool) -> None:
    """Raise a `UsageError` where the filter would have a single source, and give back the mixture."""
    if len(stems) == 1 and not residual and niter > 0:
        raise UsageError(
            f"the Wiener filter needs two sources, and {stems[0]} is the only target; "
            "pass residual=True, or niter=0, or more targets"
        )


class Separator(nn.Module):
    """A frozen `Config` and one network a stem.

    Args:
        config: what the networks are.
        nets: stem -> network; new networks with random weights when left out.

    Raises:
        ModelError: the networks' names are not the config's stems.
    """

    def __init__(self, config: Config, nets: Mapping[str, Net] | None = None) -> None:
        super().__init__()
        self.config = config
        self.nets = nn.ModuleDict(nets if nets is not None else {stem: build_net(config) for stem in config.stems})
        if tuple(self.nets) != config.stems:
            raise ModelError(f"expected networks for {', '.join(config.stems)}, got {', '.join(self.nets)}")
        self.metadata: dict[str, str] = {}
        self._engines: dict[bool, Engine] = {}  # exact and fast, made when they are needed
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def stems(self) -> tuple[str, ...]:
        """What `separate` returns by default."""
        return (*self.config.stems, "accompaniment") if self.config.stems == ("vocals",) else self.config.stems

    def train(self, mode: bool = True) -> Separator:
        """As `torch.nn.Module.train`; the prepared inference weights are dropped, since they may change now."""
        self._engines = {}
        super().train(mode)
        return self

    def load_state_dict(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        """As `torch.nn.Module.load_state_dict`."""
        self._engines = {}
        return super().load_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Without the prepared inference weights, which are for this processor."""
        return {**self.__dict__, "_engines": {}}

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        self._engines = {}
        return super()._apply(fn, recurse)

    def forward(self, waveform: Tensor, *, niter: int = 1, wiener_win_len: int = 300, residual: bool = False) -> Tensor:
        """The networks and the Wiener filter in plain differentiable torch: the definition of what `separate` does.

        Args:
            waveform: `(batch, channels, samples)` at the config's rate and channels.
            niter: iterations of the Wiener filter.
            wiener_win_len: its window, frames.
            residual: add what no network claims as one more stem, at the end.

        Returns:
            `(batch, stems, channels, samples)` in the order of ``config.stems``.

        Raises:
            UsageError: the filter would have a single source, and give back the mixture.
            AudioError: another number of axes or channels, or no samples.
        """
        self._check(waveform, batched=True)
        config = self.config
        require_two_sources(config.stems, niter, residual)
        spectrum = stft(waveform, config.n_fft, config.hop)
        magnitude = spectrum.abs()
        magnitudes = torch.stack([net(magnitude) for net in self.nets.values()])
        magnitudes, residual = filter_input(magnitudes, magnitude, config.filter_power, niter, residual)
        estimates = wiener(
            magnitudes.permute(1, 0, 4, 2, 3),
            spectrum.permute(0, 3, 1, 2),
            niter=niter,
            window=wiener_win_len,
            residual=residual,
        ).permute(0, 1, 3, 4, 2)
        return istft(estimates, config.n_fft, config.hop, waveform.shape[-1])

    def separate(
        self,
        waveform: Tensor,
        sample_rate: int,
        options: Options | None = None,
        *,
        progress: Callable[[float], None] | None = None,
    ) -> Stems:
        """Take a waveform apart.

        Args:
            waveform: `(channels, samples)` or `(batch, channels, samples)`, floating point, at most 8 channels. It is
                not changed.
            sample_rate: its rate, Hz; the stems come back at it.
            options: how; the defaults when left out.
            progress: called with the share that is done, 0 to 1.

        Returns:
            `Stems` of the waveform's shape, on the CPU.

        Raises:
            AudioError: wrong axes, no samples, nan or inf.
            UsageError: a stem that this model does not have.
        """
        if waveform.ndim == 3:
            count = len(waveform)
            parts = []
            for index, item in enumerate(waveform):

                def report(share: float, index: int = index) -> None:
                    if progress is not None:
                        progress((index + share) / count)

                parts.append(self.separate(item, sample_rate, options, progress=report))
            if not parts:
                raise AudioError("expected at least one waveform in the batch, got none")
            stacked = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
            return Stems(stacked, sample_rate, waveform.float().cpu())
        self._check(waveform, batched=False)
        total = waveform.shape[-1]
        pieces: dict[str, list[Tensor]] = {}
        done = 0
        for stems in self.stream([waveform], sample_rate, options):
            for name, piece in stems.items():
                pieces.setdefault(name, []).append(piece)
            done += stems.mixture.shape[-1]
            if progress is not None:
                progress(done / total)
        joined = {name: torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0] for name, parts in pieces.items()}
        return Stems(joined, sample_rate, waveform.float().cpu())

    def stream(self, blocks: Iterable[Tensor], sample_rate: int, options: Options | None = None) -> Iterator[Stems]:
        """Take a waveform apart that arrives in blocks; memory is bounded by the settings, not by the length.

        On a CPU results come when a segment and its context have arrived; on a CUDA device, which takes some minutes of
        segments at a time, when the next such batch has been started.

        Args:
            blocks: `(channels, samples)` each, of any lengths, one after the other.
            sample_rate: their rate, Hz.
            options: how; the defaults when left out.

        Yields:
            `Stems` that follow each other without gap; together as long as the input. Their `mixture` is the input.

        Raises:
            AudioError: wrong axes, no samples at all, nan or inf.
            UsageError: a stem that this model does not have.
        """
        return stream(self, blocks, sample_rate, options or Options())

    def start(self, blocks: Sequence[Block], recipe: Recipe) -> Iterator[Iterator[Tensor]]:
        """Begin with some blocks.

        On an accelerator all of it is in the device's queue when this returns, and only who asks for results waits. On
        a CPU a block is worked on when its results are asked for.

        Returns:
            For each block in turn its estimates, windowed and overlap-added, not yet divided by the squared windows'
            sum: `(wanted, channels, samples)` on the CPU, one after the other, ``(last - first - 1) * hop + n_fft``
            samples in all; the first is sample ``first * hop - n_fft / 2`` of the block.
        """
        if self.device.type == "cpu":
            return self._one_by_one(blocks, recipe)
        with stage(f"separate on {self.device.type}"):
            batches = in_batches(self.nets, self.config, self.device, blocks, recipe)  # type: ignore[arg-type]
        results = chain.from_iterable(batch.results() for batch in batches)
        return map(iter, ([result] for result in staged("wait", results)))

    @property
    def works_ahead(self) -> bool:
        """Whether what `start` began goes on by itself."""
        return self.device.type == "cuda"

    @property
    def even(self) -> bool:
        """Whether blocks that are started together must have one length."""
        return self.device.type != "cpu"

    def abreast(self, stems: int, samples: int) -> int:
        """How many blocks of so many samples to start together, for so many stems."""
        return abreast(self.config, stems, samples, self.device)

    def prepare(self, recipe: Recipe) -> None:
        """Make what `start` will need, for instance while the audio is still being read; else it is made there."""
        if self.device.type == "cpu":
            self._engine(recipe.fast)

    def _engine(self, fast: bool) -> Engine:
        fast = fast and compiled()  # elsewhere both are the same
        with _making:
            engine = self._engines.get(fast)
            if engine is None:
                engine = self._engines[fast] = Engine(self.nets, self.config, fast=fast)  # type: ignore[arg-type]
        return engine

    def _one_by_one(self, blocks: Sequence[Block], recipe: Recipe) -> Iterator[Iterator[Tensor]]:
        settings = dict(vars(recipe))
        engine = self._engine(settings.pop("fast"))
        for block in blocks:
            yield engine.pieces(block.waveform, block.first, block.last, **settings)

    def _check(self, waveform: Tensor, *, batched: bool) -> None:
        axes = "(batch, channels, samples)" if batched else "(channels, samples)"
        if not isinstance(waveform, Tensor):
            raise AudioError(f"expected a tensor {axes}, got {type(waveform).__name__}; use torch.from_numpy")
        if waveform.ndim != (3 if batched else 2):
            raise AudioError(f"expected {axes}, got {tuple(waveform.shape)}")
        if not waveform.is_floating_point():
            raise AudioError(f"expected a floating point waveform with full scale 1.0, got {waveform.dtype}")
        if batched and waveform.shape[1] != self.config.channels:
            raise AudioError(f"expected {axes} with {self.config.channels} channels, got {tuple(waveform.shape)}")
        if waveform.shape[-1] == 0:
            raise AudioError(f"expected at least one sample, got {tuple(waveform.shape)}")
        if waveform.shape[-2] > 8:
            raise AudioError(
                f"expected {axes} with at most 8 channels, got {tuple(waveform.shape)}; "
                "from soundfile or numpy, pass waveform.T"
            )
