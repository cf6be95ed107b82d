"""What torch.hub's entry points return: a separator with its settings held, called as open-unmix's are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from umx_ext.separation.separator import Separator, require_two_sources

__all__ = ["Unmix"]


class Unmix(nn.Module):
    """Mixture in, all stems out, both `(batch, ..., channels, samples)`, in plain differentiable torch.

    Args:
        separator: networks and config.
        residual: one more stem at the end: all that no network claims.
        niter: iterations of the Wiener filter.
        wiener_win_len: its window, frames; None for all.

    Attributes:
        stems: names of the outputs in order; the residual of ``vocals`` alone is the ``accompaniment``.
        sample_rate: of input and output, Hz, a tensor as in open-unmix.

    Raises:
        UsageError: the filter would have a single source, and give back the mixture.
    """

    sample_rate: Tensor

    def __init__(
        self, separator: Separator, *, residual: bool, niter: int = 1, wiener_win_len: int | None = 300
    ) -> None:
        super().__init__()
        targets = separator.config.stems
        require_two_sources(targets, niter, residual)
        rest = ("accompaniment" if targets == ("vocals",) else "residual",) if residual else ()
        self.separator = separator
        self.residual = residual
        self.niter = niter
        self.wiener_win_len = wiener_win_len
        self.stems = (*targets, *rest)
        self.register_buffer("sample_rate", torch.as_tensor(float(separator.config.sample_rate)), persistent=False)
        self.train(separator.training)

    def forward(self, audio: Tensor) -> Tensor:
        """`(batch, channels, samples)` at `sample_rate` -> `(batch, stems, channels, samples)`.

        Raises:
            AudioError: another number of axes or channels, or no samples.
        """
        return self.separator(audio, niter=self.niter, wiener_win_len=self.wiener_win_len, residual=self.residual)

    def freeze(self) -> None:
        """Evaluation mode, and no gradients for the weights."""
        self.requires_grad_(False)
        self.eval()

    def to_dict(
        self, estimates: Tensor, aggregate_dict: Mapping[str, Sequence[str]] | None = None
    ) -> dict[str, Tensor]:
        """Name the stems of an output: stem -> `(batch, channels, samples)`.

        Args:
            estimates: what `forward` gave.
            aggregate_dict: new name -> stems to add up, instead of the stems themselves.
        """
        named = dict(zip(self.stems, estimates.unbind(1), strict=True))
        if aggregate_dict is None:
            return named
        return {name: torch.stack([named[stem] for stem in stems]).sum(dim=0) for name, stems in aggregate_dict.items()}
