"""The distortion filters of BSS Eval: least squares with 512 taps from references to estimates.

Where the references are independent of each other the normal equations have one answer, whoever solves them. In music
they often are not, as far as float64 can tell: AAC leaves nothing above 16 kHz, a quiet stem may have no highs at all.
The filters are then, in those bands, whatever the roundings of the correlations happen to be, and the edges of the
one-second frames, which are broad in frequency, carry that into SIR and SAR by up to several dB. museval's figures
for such songs (they move by 0.01 dB when a song is scaled by 0.3) can only be had with its very roundings. So dependent
references are solved again its way: FFTs of the whole track, a power of 2 long, by pocketfft (SciPy or NumPy 2), the
products in the same order, and elimination by the same LAPACK. That takes several times as long, and is what published
figures contain.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["TAPS", "Filters", "solve_filters"]

TAPS = 512  # of a distortion filter: 12 ms at 44.1 kHz

# Smallest eigenvalue of the normal equations, beside their diagonal's mean, from which on roundings do not show. On
# real songs they changed no figure by more than 1e-9 dB at 1e-7, by 2e-5 dB at 1e-10, by 2e-4 dB at 5e-12.
_INDEPENDENT = 1e-9

_EPS = float(np.finfo(np.float64).eps)  # museval adds it to the diagonal of the normal equations


class Filters(NamedTuple):
    together: Tensor  # `(targets, inputs, TAPS, channels)`: from all references to a target's estimate
    alone: Tensor  # `(targets, channels, TAPS, channels)`: from its own reference to it


def solve_filters(correlation: Tensor, targets: int, read: Callable[[int], np.ndarray]) -> Filters:
    """The filters that bring the references closest to each estimate.

    Args:
        correlation: `(inputs, 2 * inputs, TAPS)`, ``sum_t x_i(t) y_j(t + lag)`` over the whole track. The inputs are
            the channels of all references, one after the other; behind them among y come those of the estimates.
        targets: how many references there are.
        read: gives the samples, in float64, of the n-th of all channels y.
    """
    inputs = len(correlation)
    # A pair's lags from the largest to the smallest; its negative ones are the opposite pair's positive ones.
    among, between = correlation.split(inputs, dim=1)
    lags = torch.cat([among.flip(2), among.transpose(0, 1)[..., 1:]], dim=2)
    floor = _INDEPENDENT * float(among[:, :, 0].diagonal().mean())
    # No matrix has a smaller eigenvalue than a part of it, so a look at the small ones often saves the large one.
    factor = None
    if all(_factor(lags[channel, channel, None, None], floor) is not None for channel in range(inputs)):
        factor = _factor(lags, floor)
    if factor is not None:
        wanted = between.mT
        together = _solve(factor, wanted.reshape(inputs * TAPS, -1))
    else:
        lags, wanted = _museval_correlations(inputs, read)
        together = _by_elimination(_equations(lags), wanted.reshape(inputs * TAPS, -1), inputs // targets)
    return _filters(together, lags, wanted, targets)


def _filters(together: Tensor, lags: Tensor, wanted: Tensor, targets: int) -> Filters:
    inputs = len(lags)
    channels = inputs // targets
    together = together.reshape(inputs, TAPS, targets, channels).permute(2, 0, 1, 3).contiguous()
    if targets == 1:
        return Filters(together, together)
    alone = []
    for target in range(targets):
        own = slice(target * channels, (target + 1) * channels)
        right = wanted[own, :, own].reshape(channels * TAPS, channels)
        alone.append(_by_elimination(_equations(lags[own, own]), right, channels).view(channels, TAPS, channels))
    return Filters(together, torch.stack(alone))


def _equations(lags: Tensor) -> Tensor:
    """The matrix `(inputs * TAPS, inputs * TAPS)` for lags `(inputs, inputs, 2 * TAPS - 1)` from the largest to the
    smallest. Entry (i, a; j, b) is the correlation of i and j at lag a - b: each row of a block is a window into the
    same numbers."""
    inputs = len(lags)
    matrix = torch.empty(inputs, TAPS, inputs, TAPS, dtype=torch.float64)
    for row, windows in zip(matrix, lags.unfold(2, TAPS, 1), strict=True):
        row.copy_(windows.flip(1).transpose(0, 1))
    return matrix.view(inputs * TAPS, inputs * TAPS)


def _factor(lags: Tensor, floor: float) -> Tensor | None:
    """Cholesky factor of the matrix, unless its smallest eigenvalue is below that."""
    # In its own place, and transposed, as LAPACK has it: four stems' matrix takes 134 MB.
    matrix = _equations(lags).mT
    factor, failed = torch.linalg.cholesky_ex(matrix, out=(matrix, torch.empty((), dtype=torch.int32)))
    if failed:
        return None
    vector = torch.randn(len(factor), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(4):  # inverse iterations: from above, and close enough
        vector = _solve(factor, vector / vector.norm())
    return factor if float(1 / vector.norm()) > floor else None


def _solve(factor: Tensor, right: Tensor) -> Tensor:
    """As `torch.cholesky_solve`, which would copy the factor."""
    halfway = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mT, halfway, upper=True)


# What follows is museval's arithmetic, operation by operation.


def _by_elimination(matrix: Tensor, right: Tensor, together: int) -> Tensor:
    """Solve for as many columns at a time as are `together`: with more the substitutions round otherwise."""
    diagonal = matrix.diagonal()
    before = diagonal.clone()
    try:
        diagonal.add_(_EPS)
        solve = _solver(matrix.numpy())
        solved = [solve(part.numpy()) for part in right.split(together, dim=1)]
        return torch.from_numpy(np.concatenate(solved, axis=1))
    except np.linalg.LinAlgError:
        diagonal.copy_(before)
        return torch.from_numpy(np.linalg.lstsq(matrix.numpy(), right.numpy(), rcond=None)[0])


def _solver(matrix: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Solves as numpy.linalg.solve does, to the bit. SciPy can keep the elimination for several right sides."""
    lapack = _lapack()
    if lapack is None:
        return lambda right: np.linalg.solve(matrix, right)
    factor, pivots, failed = lapack.dgetrf(matrix)
    if failed:
        raise np.linalg.LinAlgError("singular matrix")
    return lambda right: lapack.dgetrs(factor, pivots, right)[0]


@functools.cache
def _lapack() -> Any:
    """SciPy's LAPACK, if it is there and rounds as NumPy's; each brings one of its own, mostly the same."""
    try:
        from scipy.linalg import lapack
    except ImportError:
        return None
    random = np.random.default_rng(0)
    matrix, right = random.standard_normal((700, 700)), random.standard_normal((700, 2))
    factor, pivots, _ = lapack.dgetrf(matrix)
    same = np.array_equal(lapack.dgetrs(factor, pivots, right)[0], np.linalg.solve(matrix, right))
    return lapack if same else None


def _museval_correlations(inputs: int, read: Callable[[int], np.ndarray]) -> tuple[Tensor, Tensor]:
    """The references' lags `(inputs, inputs, 2 * TAPS - 1)`, from the largest to the smallest, and their correlation
    with the estimates `(inputs, TAPS, inputs)`."""
    fft = _pocketfft()
    samples = len(read(0))
    size = 1 << int(np.ceil(np.log2(samples + TAPS - 1.0)))
    lags = torch.empty(inputs, inputs, 2 * TAPS - 1, dtype=torch.float64)
    wanted = torch.empty(inputs, TAPS, inputs, dtype=torch.float64)

    def spectrum(channel: int) -> np.ndarray:
        return fft.rfft(read(channel), n=size)

    def correlate(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        product = np.empty(size, dtype=np.complex128)
        half = product[: size // 2 + 1]
        np.conjugate(y, out=half)
        # Fused multiply-add makes the order of the factors matter. NumPy turns it round where it can write the result
        # of `x * conj(y)` into the temporary array of the conjugate, which it does from 256 kB on.
        if product.nbytes >= 1 << 18:
            np.multiply(half, x, out=half)
        else:
            np.multiply(x, half, out=half)
        np.conjugate(half[-2:0:-1], out=product[size // 2 + 1 :])
        return fft.ifft(product).real

    def among(pair: tuple[int, int]) -> None:
        first, second = pair
        found = torch.from_numpy(correlate(references[second], references[first]))
        line = torch.cat([found[:TAPS].flip(0), found[1 - TAPS :].flip(0)])
        lags[second, first] = line.flip(0)
        lags[first, second] = line

    def between(pair: tuple[int, int]) -> None:
        reference, estimate = pair
        found = torch.from_numpy(correlate(references[reference], estimates[estimate]))
        wanted[reference, 0, first + estimate] = found[0]
        wanted[reference, 1:, first + estimate] = found[1 - TAPS :].flip(0)

    # Each works on two arrays of `size` complex numbers: 0.5 GB for a song of 4 minutes.
    workers = max(1, min(torch.get_num_threads(), (1 << 25) // size))
    with ThreadPoolExecutor(workers) as pool:
        references = list(pool.map(spectrum, range(inputs)))
        list(pool.map(among, itertools.combinations_with_replacement(range(inputs), 2)))
        for first in range(0, inputs, 2):
            estimates = list(pool.map(spectrum, range(inputs + first, inputs + min(first + 2, inputs))))
            list(pool.map(between, itertools.product(range(inputs), range(len(estimates)))))
    return lags, wanted


def _pocketfft() -> Any:
    """SciPy's FFT is pocketfft; so is NumPy's, of which the same version is there from NumPy 2."""
    try:
        from scipy import fft
    except ImportError:
        from numpy import fft
    return fft
