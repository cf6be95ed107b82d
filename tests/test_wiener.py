"""The Wiener filter: against a slow twin, against openunmix and norbert, and against what must hold for any mixture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import reference_wiener
from tests.peers import import_peer
from umx_ext.errors import UsageError
from umx_ext.separation import wiener as module
from umx_ext.separation.wiener import filter_window, parts, shares, wiener
from umx_ext.spectral import stft

CASES = [  # channels, sources, residual
    (1, 1, True),
    (1, 2, False),
    (2, 1, True),
    (2, 2, False),
    (2, 3, True),
    (2, 4, False),
]


def scene(channels: int, sources: int, *, frames: int = 24, bins: int = 17, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Magnitudes and a mixture in double precision whose bins differ by up to 80 dB, none of them zero."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    mixture = torch.randn(frames, channels, bins, generator=generator, dtype=torch.complex128)
    mixture = mixture * 10 ** (4 * uniform(frames, 1, bins) - 2)
    return uniform(sources, frames, channels, bins) * mixture.abs(), mixture


def nearly_mono(mixture: Tensor) -> Tensor:
    return mixture[..., :1, :] + 1e-3 * mixture


def relative_db(difference: Tensor, reference: Tensor) -> float:
    return 10 * math.log10(float(difference.abs().square().mean() / reference.abs().square().mean()) + 1e-40)


def openunmix_wiener(magnitudes: Tensor, mixture: Tensor, *, niter: int, residual: bool) -> Tensor:
    """openunmix's filter in the arguments' precision: its constants (pi, eps) have torch's default one."""
    filtering = import_peer("openunmix.filtering")
    planes = torch.view_as_real(mixture).permute(0, 2, 1, 3).clone()  # a copy: openunmix writes into it
    before = torch.get_default_dtype()
    torch.set_default_dtype(magnitudes.dtype)
    try:
        estimates = filtering.wiener(magnitudes.permute(1, 3, 2, 0), planes, niter, residual=residual)
    finally:
        torch.set_default_dtype(before)
    return torch.view_as_complex(estimates.permute(4, 0, 2, 1, 3).contiguous())


@pytest.fixture(scope="module")
def song(data: Path) -> Tensor:
    """50 frames of a real song, complex `(frames, channels, bins)`."""
    soundfile = import_peer("soundfile")
    samples, _ = soundfile.read(
        data / "songs" / "lets_go_fishin.ogg", start=30 * 44100, frames=49 * 1024, dtype="float32"
    )
    return stft(torch.from_numpy(samples.T.copy()), 4096, 1024).permute(2, 0, 1)


def masks(mixture: Tensor, sources: int) -> Tensor:
    """Magnitudes as networks give them: smooth masks, some of them zero, times the mixture's magnitude."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(sources, 1, 20, 40, generator=generator).clamp_min(0.0)
    frames, channels, bins = mixture.shape
    smooth = torch.nn.functional.interpolate(coarse, (frames, bins), mode="bilinear")
    return smooth.movedim(1, 2).expand(-1, -1, channels, -1) * mixture.abs()


# Independent truth


@pytest.mark.parametrize("niter", [0, 1, 3])
@pytest.mark.parametrize("channels, sources, residual", CASES)
def test_it_equals_the_slow_twin(channels: int, sources: int, residual: bool, niter: int) -> None:
    magnitudes, mixture = scene(channels, sources)
    mixture[3], mixture[:, 0, 5] = 0, 0  # zeros are no exception here
    fast = wiener(magnitudes, mixture, niter=niter, window=10, residual=residual)
    slow = reference_wiener.wiener(magnitudes.numpy(), mixture.numpy(), niter=niter, window=10, residual=residual)
    torch.testing.assert_close(fast, torch.from_numpy(slow), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("niter", [0, 1, 3])
@pytest.mark.parametrize("channels, sources, residual", CASES)
@pytest.mark.parametrize("gain", [1e-4, 1.0, 1e3])
def test_it_equals_openunmix(channels: int, sources: int, residual: bool, niter: int, gain: float) -> None:
    magnitudes, mixture = (gain * part for part in scene(channels, sources))
    peer = openunmix_wiener(magnitudes, mixture, niter=niter, residual=residual)
    ours = wiener(magnitudes, mixture, niter=niter, residual=residual)
    torch.testing.assert_close(ours / gain, peer / gain, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("channels, sources", [(1, 2), (2, 2), (2, 4)])
def test_it_equals_norbert(channels: int, sources: int) -> None:
    norbert = import_peer("norbert")
    magnitudes, mixture = (100 * part for part in scene(channels, sources))
    peer = norbert.wiener(
        magnitudes.permute(1, 3, 2, 0).numpy(),
        mixture.transpose(1, 2).numpy().copy(),  # a copy: norbert scales it in place
        iterations=1,
        use_softmask=False,
        eps=1e-10,
    )
    ours = wiener(magnitudes, mixture, window=None)
    # norbert adds eps once more before it inverts a scalar, beside sqrt(eps): 1e-5 of it in the faintest bins.
    rtol = 1e-6 if channels == 2 else 2e-5
    torch.testing.assert_close(ours, torch.from_numpy(peer).permute(3, 0, 2, 1), rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("sources, residual", [(1, True), (4, False)])
def test_single_precision_is_as_exact_as_openunmix_on_a_song(song: Tensor, sources: int, residual: bool) -> None:
    magnitudes = masks(song, sources)
    truth = wiener(magnitudes.double(), song.to(torch.complex128), residual=residual)
    ours = relative_db(wiener(magnitudes, song, residual=residual) - truth, truth)
    theirs = relative_db(openunmix_wiener(magnitudes, song, niter=1, residual=residual) - truth, truth)
    assert ours <= theirs + 0.5 and ours < -115  # float32 rounds at -144 dB; products and their sums collect some of it


@pytest.mark.parametrize("sources, residual", [(1, True), (2, False), (4, False)])
def test_single_precision_keeps_its_digits_where_the_channels_are_nearly_equal(sources: int, residual: bool) -> None:
    _, mixture = scene(2, sources, frames=100)
    mixture = nearly_mono(mixture).to(torch.complex64)
    generator = torch.Generator().manual_seed(2)
    tilt = 1 + 1e-3 * torch.rand(sources, 100, 2, 17, generator=generator)
    magnitudes = torch.rand(sources, 100, 1, 17, generator=generator) * tilt * mixture.abs()
    truth = openunmix_wiener(magnitudes.double(), mixture.to(torch.complex128), niter=1, residual=residual)
    ours = relative_db(wiener(magnitudes, mixture, residual=residual) - truth, truth)
    theirs = relative_db(openunmix_wiener(magnitudes, mixture, niter=1, residual=residual) - truth, truth)
    assert ours < -90 < -40 < theirs


# What must hold for any mixture


def law_the_arguments_are_untouched(function) -> None:
    magnitudes, mixture = (1000 * part for part in scene(2, 2))  # loud, so that it is scaled down
    mixture[0] = 0  # openunmix writes a 1 into bins that are zero
    before = magnitudes.clone(), mixture.clone()
    function(magnitudes, mixture)
    assert torch.equal(magnitudes, before[0]) and torch.equal(mixture, before[1])


def law_zeros_stay_zero(function) -> None:
    magnitudes, mixture = scene(2, 2)
    magnitudes = magnitudes + 0.1
    mixture[3], mixture[:, :, 5] = 0, 0
    estimates = function(magnitudes, mixture)
    assert torch.isfinite(torch.view_as_real(estimates)).all()
    assert (estimates[:, 3] == 0).all() and (estimates[..., 5] == 0).all() and (estimates[..., 4] != 0).any()


def law_loud_sources_add_up_to_the_mixture(function) -> None:
    magnitudes, mixture = scene(2, 3)
    mixture = 10 * mixture / mixture.abs()  # every bin far above the regularisation
    magnitudes = magnitudes / magnitudes.sum(0) * 10
    assert relative_db(function(magnitudes, mixture).sum(0) - mixture, mixture) < -50


def _scales_in_place(magnitudes: Tensor, mixture: Tensor) -> Tensor:
    mixture /= (mixture.abs().max() / 10).clamp_min(1.0)
    return wiener(magnitudes, mixture)


def _gives_zero_bins_a_phase(magnitudes: Tensor, mixture: Tensor) -> Tensor:
    return magnitudes * torch.polar(torch.ones_like(mixture.real), mixture.angle())


def _forgets_a_source(magnitudes: Tensor, mixture: Tensor) -> Tensor:
    return wiener(magnitudes, mixture)[:-1]


LAWS = [law_the_arguments_are_untouched, law_zeros_stay_zero, law_loud_sources_add_up_to_the_mixture]
LIARS = list(zip(LAWS, [_scales_in_place, _gives_zero_bins_a_phase, _forgets_a_source], strict=True))


@pytest.mark.parametrize("niter", [1, 2])
@pytest.mark.parametrize("law", LAWS)
def test_the_filter_obeys(law, niter: int) -> None:
    law(lambda magnitudes, mixture: wiener(magnitudes, mixture, niter=niter))


@pytest.mark.parametrize("law, liar", LIARS)
def test_a_law_catches_its_liar(law, liar) -> None:
    with pytest.raises(AssertionError):
        law(liar)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("niter", [0, 1, 2])
def test_silence_gives_silence(channels: int, niter: int) -> None:
    mixture = torch.zeros(7, channels, 5, dtype=torch.complex64)
    for magnitudes in (torch.zeros(2, 7, channels, 5), torch.ones(2, 7, channels, 5)):
        assert (wiener(magnitudes, mixture, niter=niter, residual=True) == 0).all()


@pytest.mark.parametrize("niter", [1, 3])
def test_extremes_stay_finite(niter: int) -> None:
    square = torch.where(torch.arange(10000) // 50 % 2 == 0, 1.0, -1.0).expand(2, -1)
    full_scale = stft(square, 512, 128).permute(2, 0, 1)
    for mixture in (full_scale, full_scale * 32768, full_scale * 1e-12, nearly_mono(full_scale)):
        for share in (0.0, 0.5, 1.0, 3.0):  # 1 leaves a residual that is nothing but rounding
            estimates = wiener(share * mixture.abs()[None], mixture, niter=niter, residual=True)
            assert torch.isfinite(torch.view_as_real(estimates)).all()
            assert estimates.abs().max() <= 10 * mixture.abs().max()


def test_no_iteration_is_the_mixtures_phase_and_the_residual_completes_it() -> None:
    magnitudes, mixture = scene(2, 2)
    estimates = wiener(magnitudes, mixture, niter=0, residual=True)
    torch.testing.assert_close(estimates[:2].abs(), magnitudes)
    torch.testing.assert_close(estimates[0].angle(), mixture.angle())
    torch.testing.assert_close(estimates.sum(0), mixture)


def test_windows_know_nothing_of_each_other() -> None:
    magnitudes, mixture = (100 * part for part in scene(2, 2))
    pieces = [wiener(magnitudes[:, a : a + 10], mixture[a : a + 10], window=None) for a in (0, 10, 20)]
    assert torch.equal(wiener(magnitudes, mixture, window=10), torch.cat(pieces, dim=1))
    assert not torch.allclose(wiener(magnitudes, mixture, window=None), torch.cat(pieces, dim=1))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("niter", [0, 1, 2])
@pytest.mark.parametrize("window, frames", [(40, 217), (150, 320), (10, 9)])
def test_windows_side_by_side_are_those_one_after_the_other(monkeypatch, channels, niter, window, frames) -> None:
    """As a GPU has them: in groups, the last one shorter, each with a scale of its own."""
    magnitudes, mixture = scene(channels, 2, frames=frames)
    louder = torch.linspace(0, 4, frames).exp()[:, None, None]  # no window has the next one's peak
    magnitudes, mixture = magnitudes * louder, mixture * louder
    expected = wiener(magnitudes, mixture, niter=niter, window=window, residual=True)
    calls = []
    original = module.filter_window

    def noting(*arguments, windows, **options):
        calls.append(windows)
        return original(*arguments, windows=windows, **options)

    monkeypatch.setattr(module, "filter_window", noting)
    monkeypatch.setattr(module, "_together", lambda device: 2)
    found = wiener(magnitudes, mixture, niter=niter, window=window, residual=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert calls == {217: [2, 2, 1, 1], 320: [2, 1], 9: [1]}[frames]


def test_a_batch_equals_a_loop() -> None:
    scenes = [scene(2, 2, seed=seed) for seed in range(4)]
    magnitudes = torch.stack([50 * part for part, _ in scenes]).view(2, 2, 2, 24, 2, 17)
    mixture = torch.stack([50 * part for _, part in scenes]).view(2, 2, 24, 2, 17)
    batch = wiener(magnitudes, mixture, residual=True)
    for a in range(2):
        for b in range(2):
            assert torch.equal(batch[a, b], wiener(magnitudes[a, b], mixture[a, b], residual=True))


def test_empty_input_gives_empty_output() -> None:
    assert wiener(torch.zeros(2, 0, 2, 5), torch.zeros(0, 2, 5, dtype=torch.complex64)).shape == (2, 0, 2, 5)
    assert wiener(torch.zeros(0, 2, 3, 2, 5), torch.zeros(0, 3, 2, 5, dtype=torch.complex64)).shape == (0, 2, 3, 2, 5)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "_PLANE", 17 * 5)
    yield


def test_working_in_small_pieces_changes_nothing(small_chunks: None) -> None:
    magnitudes, mixture = scene(2, 2)
    small = wiener(magnitudes, mixture, niter=2, residual=True)
    recorded = wiener(magnitudes.requires_grad_(), mixture, niter=2, residual=True)  # recording works in one piece
    torch.testing.assert_close(small, recorded.detach(), rtol=1e-12, atol=1e-12)


def test_wanted_sources_are_those_of_all() -> None:
    magnitudes, mixture = scene(2, 3)
    ratios = magnitudes / mixture.abs()

    def masks(rows: slice) -> list[Tensor]:
        return list(ratios[:, rows])

    every = [planes for _, planes in filter_window(masks, parts(mixture), niter=2)]
    some = [planes for _, planes in filter_window(masks, parts(mixture), niter=2, wanted=[2, 0])]
    for of_all, of_some in zip(every, some, strict=True):
        assert torch.equal(torch.stack(of_some[0]), torch.stack(of_all[2]))
        assert torch.equal(torch.stack(of_some[1]), torch.stack(of_all[0])) and len(of_some) == 2


@pytest.mark.parametrize("channels, niter", [(1, 0), (1, 2), (2, 1), (2, 2)])
def test_it_is_differentiable(channels: int, niter: int) -> None:
    magnitudes, mixture = scene(channels, 1, frames=3, bins=1)
    magnitudes, mixture = 0.2 + magnitudes / magnitudes.max(), mixture / mixture.abs()
    arguments = magnitudes.requires_grad_(), mixture.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda m, x: torch.view_as_real(wiener(m, x, niter=niter, residual=True, window=2)), arguments
    )


def test_gradients_of_silence_are_finite() -> None:
    magnitudes = torch.zeros(2, 4, 2, 5, requires_grad=True)
    estimates = wiener(magnitudes, torch.zeros(4, 2, 5, dtype=torch.complex64), residual=True)
    estimates.abs().square().sum().backward()
    assert magnitudes.grad is not None and torch.isfinite(magnitudes.grad).all()


@pytest.mark.parametrize(
    "magnitudes, mixture, options, words",
    [
        (torch.zeros(1, 3, 2, 5), torch.zeros(3, 2, 5), {}, "complex mixture"),
        (torch.zeros(1, 3, 2, 5).double(), torch.zeros(3, 2, 5).cfloat(), {}, "one precision"),
        (torch.zeros(3, 2, 5), torch.zeros(3, 2, 5).cfloat(), {}, "(3, 2, 5)"),
        (torch.zeros(1, 3, 2, 6), torch.zeros(3, 2, 5).cfloat(), {}, "(1, 3, 2, 6)"),
        (torch.zeros(0, 3, 2, 5), torch.zeros(3, 2, 5).cfloat(), {}, "(0, 3, 2, 5)"),
        (torch.zeros(1, 3, 3, 5), torch.zeros(3, 3, 5).cfloat(), {}, "3: filter pairs"),
        (torch.zeros(1, 3, 2, 5), torch.zeros(3, 2, 5).cfloat(), {"niter": -1}, "-1"),
        (torch.zeros(1, 3, 2, 5), torch.zeros(3, 2, 5).cfloat(), {"window": 0}, "and 0"),
    ],
)
def test_an_error_says_what_came(magnitudes: Tensor, mixture: Tensor, options: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("(", r"\(").replace(")", r"\)")):
        wiener(magnitudes, mixture, **options)


def test_shares_are_masks_to_a_power_and_what_they_leave() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.rand(3, 5, generator=generator)
    magnitudes = whole * torch.rand(2, 3, 5, generator=generator)
    for power in (1.0, 0.5, 0.3):
        found = shares(magnitudes, whole, power, residual=True)
        left = (1 - magnitudes[0] / whole - magnitudes[1] / whole).clamp_min(0)
        for source, mask in zip(found, (magnitudes[0] / whole, magnitudes[1] / whole, left), strict=True):
            torch.testing.assert_close(source, whole * mask**power, atol=1e-6, rtol=1e-5)
    assert shares(magnitudes, whole, 1.0) is magnitudes
    silent = shares(torch.zeros(1, 4), torch.zeros(4), 0.5, residual=True)
    assert silent.isfinite().all() and silent.max() < 1e-30
