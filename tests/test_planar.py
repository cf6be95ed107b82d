"""The compiled loops of the Wiener filter, beside what torch alone makes and beside the slow twin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from tests import reference_wiener
from tests.test_wiener import nearly_mono, relative_db, scene
from umx_ext.separation import planar
from umx_ext.separation import wiener as module
from umx_ext.separation.wiener import filter_window, parts, wiener

FRAMES, BINS = 150, 261  # enough frames for both loops, and more bins than a block of theirs


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Which of the loops were run."""
    if not planar.compiled():
        pytest.skip("the loops were not compiled here")
    seen: list[str] = []
    for name in ("moments", "filtered", "reestimated"):
        original = getattr(planar, name)

        def noting(*arguments, name: str = name, original=original):
            seen.append(name)
            return original(*arguments)

        monkeypatch.setattr(planar, name, noting)
    yield seen


def without_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planar, "_planar", None)


def single(magnitudes: Tensor, mixture: Tensor) -> tuple[Tensor, Tensor]:
    return magnitudes.float(), mixture.to(torch.complex64)


@pytest.mark.parametrize("sources, residual, niter", [(1, True, 1), (2, False, 1), (4, False, 1), (3, True, 2)])
def test_they_equal_torch_and_the_slow_twin(calls, monkeypatch, sources, residual, niter):
    exact = scene(2, sources, frames=FRAMES, bins=BINS)
    magnitudes, mixture = single(*exact)
    before = magnitudes.clone(), mixture.clone()
    compiled = wiener(magnitudes, mixture, residual=residual, niter=niter)
    assert set(calls) == {"moments", "filtered"} | ({"reestimated"} if niter > 1 else set())
    assert torch.equal(magnitudes, before[0]) and torch.equal(mixture, before[1])
    calls.clear()
    without_loops(monkeypatch)
    plain = wiener(magnitudes, mixture, residual=residual, niter=niter)
    assert calls == []
    assert relative_db(compiled - plain, plain) < -110

    loudest = int(mixture.abs().amax((0, 1)).argmax())  # which decides the scale
    bins = [0, 7, 255, 256, BINS - 1, loudest]
    few = [np.ascontiguousarray(values[..., bins].numpy()) for values in exact]
    truth = torch.from_numpy(reference_wiener.wiener(*few, niter=niter, residual=residual))
    off = [relative_db(found[..., bins] - truth, truth) for found in (compiled, plain)]
    assert off[0] < max(-110, off[1] + 3)


def test_a_nearly_mono_mixture_keeps_its_digits(calls, monkeypatch):
    magnitudes, mixture = scene(2, 2, frames=FRAMES, bins=BINS)
    mixture = nearly_mono(mixture)
    exact = wiener(magnitudes, mixture)
    assert calls == []  # double precision is torch's
    compiled = wiener(*single(magnitudes, mixture))
    assert calls
    without_loops(monkeypatch)
    plain = wiener(*single(magnitudes, mixture))
    side = exact[..., 0, :] - exact[..., 1, :]
    off = [relative_db(found[..., 0, :] - found[..., 1, :] - side, side) for found in (compiled, plain)]
    assert off[0] < off[1] + 3


@pytest.mark.parametrize("level", [0.0, 1e-6, 1e4])
def test_silent_and_loud_mixtures(calls, monkeypatch, level):
    magnitudes, mixture = single(*(level * values for values in scene(2, 2, frames=FRAMES, bins=BINS)))
    compiled = wiener(magnitudes, mixture)
    assert torch.isfinite(torch.view_as_real(compiled)).all()
    without_loops(monkeypatch)
    plain = wiener(magnitudes, mixture)
    if level == 0:
        assert not compiled.any() and not plain.any()
    else:
        assert relative_db(compiled - plain, plain) < -110


def test_planes_that_are_parts_of_larger_ones(calls):
    """Rows, columns and channels of larger tensors, masks whose bins do not lie next to each other, some sources."""
    magnitudes, mixture = single(*scene(2, 3, frames=FRAMES, bins=BINS))
    ratios = magnitudes / mixture.abs()

    def estimates(mixture: Tensor, claims: Sequence[Tensor], wanted: Sequence[int]) -> list[Tensor]:
        pieces = [
            torch.stack([torch.stack(channels, dim=1) for channels in planes])
            for _, planes in filter_window(lambda rows: [claim[rows] for claim in claims], mixture, wanted=wanted)
        ]
        return list(torch.cat(pieces, dim=1))

    every = estimates(parts(mixture), list(ratios), range(3))
    wide = torch.randn(2, 2, FRAMES + 7, BINS + 5)
    wide[:, :, 3:-4, 2:-3] = parts(mixture)
    scattered = [claim.mT.contiguous().mT for claim in ratios]
    some = estimates(wide[:, :, 3:-4, 2:-3], scattered, [2, 0])
    assert torch.equal(some[0], every[2]) and torch.equal(some[1], every[0])


def test_small_pieces_give_the_same(calls, monkeypatch):
    magnitudes, mixture = single(*scene(2, 2, frames=FRAMES, bins=BINS))
    whole = wiener(magnitudes, mixture)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(module, "_PLANE", 17 * BINS)
    torch.testing.assert_close(wiener(magnitudes, mixture), whole, rtol=1e-4, atol=1e-6)
    assert len(calls) > 4


@pytest.mark.parametrize("niter", [0, 1, 2])
@pytest.mark.parametrize("loops", [True, False])
def test_estimates_are_written_where_they_shall_be(monkeypatch, loops, niter):
    """No copy of a result is made: what a chunk is yielded as lies in what was given."""
    if not loops:
        without_loops(monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(module, "_PLANE", 40 * BINS)
    magnitudes, mixture = single(*scene(2, 2, frames=FRAMES, bins=BINS))
    out = torch.full((2, FRAMES, 2, BINS), float("nan"), dtype=torch.complex64)
    chunks = 0
    for rows, planes in filter_window(
        lambda rows: list(magnitudes[:, rows]), parts(mixture), of_magnitudes=True, niter=niter, out=out
    ):
        chunks += 1
        for source, channels in enumerate(planes):
            for channel, plane in enumerate(channels):
                assert plane.data_ptr() == out[source, rows, channel].data_ptr()
    assert chunks > 1
    assert torch.equal(out, wiener(magnitudes, mixture, niter=niter))


@pytest.mark.parametrize("niter", [0, 1, 2])
def test_what_is_put_off_is_done_first(niter):
    """A conjugate, or a negative, is a mark on a tensor, of which its address knows nothing."""
    magnitudes, mixture = single(*scene(2, 1, frames=FRAMES, bins=9))
    expected = wiener(magnitudes, mixture.conj().resolve_conj(), niter=niter, residual=True)
    assert torch.equal(wiener(magnitudes, mixture.conj(), niter=niter, residual=True), expected)
    expected = wiener(magnitudes, -mixture, niter=niter, residual=True)
    assert torch.equal(wiener(magnitudes, torch._neg_view(mixture), niter=niter, residual=True), expected)
    negative = torch._neg_view(-magnitudes)
    expected = wiener(magnitudes, mixture, niter=niter, residual=True)
    assert torch.equal(wiener(negative, mixture, niter=niter, residual=True), expected)
    planes = parts(mixture)
    marked = torch._neg_view(-planes)
    asked = filter_window(lambda rows: list(magnitudes[:, rows]), marked, of_magnitudes=True, residual=True)
    found = torch.cat([torch.stack([torch.stack(one, 1) for one in chunk]) for _, chunk in asked], dim=1)
    torch.testing.assert_close(found, wiener(magnitudes, mixture, residual=True), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("niter", [0, 1])
def test_tensors_without_memory_are_torchs(channels, niter):
    from torch._subclasses.fake_tensor import FakeTensorMode

    magnitudes, mixture = single(*scene(channels, 2, frames=FRAMES, bins=9))
    with FakeTensorMode() as mode:
        found = wiener(mode.from_tensor(magnitudes), mode.from_tensor(mixture), niter=niter)
        assert found.shape == magnitudes.shape
    functional = torch.func.functionalize(lambda *arguments: wiener(*arguments, niter=niter))
    torch.testing.assert_close(functional(magnitudes, mixture), wiener(magnitudes, mixture, niter=niter))


def test_so_loud_that_cubes_are_infinite(calls, monkeypatch):
    magnitudes, mixture = single(*(1e15 * values for values in scene(2, 2, frames=FRAMES, bins=9)))
    compiled = wiener(magnitudes, mixture)
    without_loops(monkeypatch)
    plain = wiener(magnitudes, mixture)
    assert torch.isfinite(torch.view_as_real(plain)).all()
    assert relative_db(compiled - plain, plain) < -100


@pytest.mark.parametrize("threads", [2, 3, 40])
@pytest.mark.parametrize("bins", [5, BINS])
def test_threads_change_nothing(calls, monkeypatch, threads, bins):
    magnitudes, mixture = single(*scene(2, 2, frames=FRAMES, bins=bins))
    asked = []
    alone = wiener(magnitudes, mixture, residual=True, niter=2)

    def more(mixture: Tensor) -> int:
        asked.append(threads)
        return threads

    monkeypatch.setattr(planar, "_threads", more)
    shared = wiener(magnitudes, mixture, residual=True, niter=2)
    assert relative_db(shared - alone, alone) < -130  # a compiler may round a thread's last bins otherwise
    assert len(asked) >= 4  # planes, moments, moments again, gains


def test_no_more_threads_than_torch_has_nor_than_the_work_is_worth(calls, monkeypatch):
    few, many = torch.empty(2, 2, 10, 100), torch.empty(2, 2, 300, 2049)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert planar._threads(few) == 1 and planar._threads(many) == 4
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert planar._threads(many) == 1


@pytest.mark.parametrize("case", ["double", "mono", "gradients", "many"])
def test_what_they_cannot_do_is_torchs(calls, case):
    count = planar.MOST_SOURCES + 1 if case == "many" else 2
    exact = scene(1 if case == "mono" else 2, count, frames=FRAMES if count == 2 else 130, bins=5)
    magnitudes, mixture = exact if case == "double" else single(*exact)
    wiener(magnitudes.requires_grad_(case == "gradients"), mixture)
    assert calls == []


def test_wrong_numbers_of_planes_are_refused():
    if not planar.compiled():
        pytest.skip("the loops were not compiled here")
    with pytest.raises(ValueError, match="as many planes for each channel"):
        planar._planar.moments(0, 0, 0, 0, 0, 0, (1,), (1, 2), (1,), 0, False, 0.0, 0, 0, 1)
    with pytest.raises(ValueError, match="at most 32 sources, got 33"):
        planar._planar.gains(0, 0, 0, 0, 0, 0, 33, 0, 0, 0, 0, (0,) * 33, 0.0, 0, 0, 0, 0, 0, 0, 1)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_gradients_of_forward_mode_and_traces_are_torchs(calls):
    magnitudes, mixture = single(*scene(2, 1, frames=130, bins=5))
    _, slope = torch.func.jvp(lambda values: wiener(values, mixture).abs(), (magnitudes,), (magnitudes,))
    with forward_ad.dual_level():
        dual = wiener(forward_ad.make_dual(magnitudes, magnitudes), mixture).abs()
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, slope)
    traced = torch.jit.trace(lambda values: wiener(values, mixture, residual=0), (magnitudes,), check_trace=False)
    assert calls == []
    torch.testing.assert_close(traced(magnitudes), wiener(magnitudes, mixture), rtol=1e-3, atol=1e-5)
    assert calls


def test_another_default_device_or_type_is_the_callers(calls):
    magnitudes, mixture = single(*(1e4 * values for values in scene(2, 2, frames=FRAMES, bins=BINS)))
    expected = wiener(magnitudes, mixture)
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            assert torch.equal(wiener(magnitudes, mixture), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_wanted_is_checked_and_masks_that_do_not_fit_are_torchs(calls):
    magnitudes, mixture = single(*scene(2, 2, frames=FRAMES, bins=BINS))
    ratios = magnitudes / mixture.abs()

    def estimates(masks, wanted):
        pieces = filter_window(lambda rows: [mask[rows] for mask in masks], parts(mixture), wanted=wanted)
        return [planes for _, planes in pieces]

    last, first = estimates(ratios, [-1])[0][0], estimates(ratios, [np.int64(1)])[0][0]
    assert torch.equal(torch.stack(last), torch.stack(first))
    with pytest.raises(IndexError):
        estimates(ratios, [2])
    calls.clear()
    flat = ratios[:, :, :, :1]
    assert torch.isfinite(torch.view_as_real(estimates(flat, [0])[0][0][0])).all()
    assert "moments" not in calls
    with pytest.raises(RuntimeError):
        estimates(ratios[:, :, :, :-1], [0])


def test_a_nan_is_everywhere_as_with_torch(calls, monkeypatch):
    magnitudes, mixture = single(*scene(2, 2, frames=FRAMES, bins=BINS))
    mixture[3, 1, 7] = float("nan")
    assert torch.isnan(wiener(magnitudes, mixture).real).all()
    without_loops(monkeypatch)
    assert torch.isnan(wiener(magnitudes, mixture).real).all()


def test_loops_that_were_built_for_another_version_are_not_used(monkeypatch):
    class Old:
        pass

    monkeypatch.setattr(planar, "_planar", Old)
    assert not planar.compiled()
    assert torch.isfinite(wiener(*single(*scene(2, 2, frames=FRAMES, bins=5))).real).all()


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("frames, channels, bins", [(1, 1, 1), (3, 2, 17), (5, 2, 259)])
def test_magnitude_and_split(monkeypatch, loops, frames, channels, bins):
    if not loops:
        without_loops(monkeypatch)
    spectrum = torch.randn(frames, channels, bins, dtype=torch.complex64)
    found = torch.full((frames, channels, bins), -1.0)
    planar.magnitude(spectrum, found)
    torch.testing.assert_close(found, spectrum.abs(), rtol=1e-6, atol=1e-7)
    space = torch.full((channels, 2, frames + 4, bins), -1.0)
    planar.split(spectrum, space[:, :, 1:-3])
    assert torch.equal(space[:, :, 1:-3], torch.view_as_real(spectrum).permute(1, 3, 0, 2))
    assert (space[:, :, :1] == -1).all() and (space[:, :, -3:] == -1).all()


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("frames, size, hop", [(1, 8, 8), (7, 16, 4), (9, 64, 16), (3, 10, 4)])
def test_add(monkeypatch, loops, frames, size, hop):
    if not loops:
        without_loops(monkeypatch)
    values, window = torch.randn(frames, size), torch.rand(size)
    sums = torch.randn((frames - 1) * hop + size + 3)
    expected = sums.clone()
    for row in range(frames):
        expected[row * hop : row * hop + size] += values[row] * window
    planar.add(values, window, sums[: (frames - 1) * hop + size], hop)
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-6)
