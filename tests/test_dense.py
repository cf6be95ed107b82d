"""Products with laid out matrices against float64, by the compiled loops, where there are any, and by torch."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import Tensor

from tests.loops import WIDES, use_loops
from umx_ext.separation import dense
from umx_ext.separation.dense import FUNCTIONS, Matrix, lstm_steps


@pytest.fixture(params=[*WIDES, "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    use_loops(monkeypatch, request.param)


@pytest.fixture(params=[*WIDES])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    use_loops(monkeypatch, request.param)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exactly(rows: Tensor, values: Tensor, bias: Tensor | None, before: Tensor | None, then: str) -> Tensor:
    found = rows.double() @ values.double()
    found = found if bias is None else found + bias.double()
    found = found if before is None else found + before.double()
    return getattr(torch, then)(found) if then else found


# More and fewer rows than six, than a block; more and fewer inputs than are summed or kept at a time; panels that end
# with the outputs and that do not.
SHAPES = [(1, 1, 1), (5, 3, 17), (6, 128, 16), (7, 129, 33), (193, 40, 15), (400, 513, 50), (14, 1100, 130)]


@pytest.mark.parametrize("count, inputs, outputs", SHAPES)
@pytest.mark.parametrize("then", FUNCTIONS)
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.usefixtures("way")
def test_a_product_is_what_float64_says(
    count: int, inputs: int, outputs: int, then: str, add: bool, biased: bool
) -> None:
    # Rows of wider tensors, as the engine has them.
    rows = drawn(count, inputs + 5)[:, 2 : inputs + 2]
    values, bias = drawn(inputs, outputs, seed=1) / math.sqrt(inputs), drawn(outputs, seed=2) if biased else None
    wide = drawn(count, outputs + 9, seed=3)
    out, beside = wide[:, 4 : outputs + 4], wide.clone()
    expected = exactly(rows, values, bias, out.clone() if add else None, then)
    kept = rows.clone(), values.clone()
    found = Matrix(values).product(rows, bias, out=out, add=add, then=then)
    assert found.data_ptr() == out.data_ptr()
    assert (found - expected).abs().max() < 4e-6
    assert torch.equal(rows, kept[0]) and torch.equal(values, kept[1])
    beside[:, 4 : outputs + 4] = out
    assert torch.equal(wide, beside)  # nothing beside its place is written
    if not add:
        torch.testing.assert_close(Matrix(values).product(rows, bias, then=then), found)


@pytest.mark.parametrize("inputs", [512, 2974])
@pytest.mark.usefixtures("way")
def test_roundings_are_no_larger_than_torch_s(inputs: int) -> None:
    rows, values = drawn(60, inputs), drawn(inputs, 256, seed=1)
    exact = exactly(rows, values, None, None, "")
    error = (Matrix(values).product(rows) - exact).square().mean().sqrt()
    assert error < 1.2 * (rows @ values - exact).square().mean().sqrt()


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("then", ["", "sigmoid"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.usefixtures("loops")
def test_a_row_does_not_depend_on_its_neighbours(rounded: bool, then: str, biased: bool, add: bool) -> None:
    rows, matrix = drawn(200, 1100), Matrix(drawn(1100, 40, seed=1), rounded=rounded)
    bias, before = drawn(40, seed=2) if biased else None, drawn(200, 40, seed=3)

    def product(first: int, last: int) -> Tensor:
        return matrix.product(rows[first:last], bias, out=before[first:last].clone(), add=add, then=then)

    whole = product(0, 200)
    for first, last in ((0, 1), (5, 9), (17, 150), (21, 26), (199, 200)):
        assert torch.equal(product(first, last), whole[first:last])


@pytest.mark.parametrize("then", ["relu", "sigmoid", "tanh"])
@pytest.mark.usefixtures("way")
def test_functions_are_right_everywhere(then: str) -> None:
    tails = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 88.0, -88.0, 1e4, -1e4, torch.inf, -torch.inf, torch.nan])
    bias = torch.cat([torch.linspace(-20, 20, 40001), torch.linspace(-1, 1, 9999), tails])
    found = Matrix(torch.zeros(1, len(bias))).product(torch.zeros(1, 1), bias, then=then)[0]
    exact = getattr(torch, then)(bias.double())
    assert torch.equal(found.isnan(), exact.isnan())
    error = (found - exact).abs().nan_to_num()
    assert error.max() < 1.2e-7
    assert (error <= 4e-7 * exact.abs().nan_to_num() + 1e-37).all()  # where the values are small, too


@pytest.mark.parametrize("then", FUNCTIONS)
@pytest.mark.usefixtures("way")
def test_values_may_lie_apart_and_be_negated_views(then: str) -> None:
    values, rows, bias = drawn(40, 33), drawn(21, 40, seed=1), drawn(33, seed=2)
    expected = exactly(rows, values, bias, None, then).float()
    for count in (21, 1):
        for given in (rows[:count].mT.contiguous().mT, torch._neg_view(-rows[:count])):
            for offset in (torch.stack([bias, bias], 1)[:, 0], torch._neg_view(-bias)):
                found = Matrix(values.mT.contiguous().mT).product(given, offset, then=then)
                torch.testing.assert_close(found, expected[:count], rtol=0, atol=4e-6)
        out, before = torch.zeros(33, count).mT, drawn(count, 33, seed=3)
        assert Matrix(torch._neg_view(-values)).product(rows[:count], bias, out=out, then=then) is out
        torch.testing.assert_close(out, expected[:count], rtol=0, atol=4e-6)
        out.copy_(before)
        Matrix(values).product(rows[:count], bias, out=out, add=True, then=then)
        exact = exactly(rows[:count], values, bias, before, then).float()
        torch.testing.assert_close(out, exact, rtol=0, atol=4e-6)
    column = torch.zeros(1, 21).mT  # which counts as contiguous, whatever its strides
    Matrix(values[:, :1]).product(rows, out=column)
    torch.testing.assert_close(column, rows @ values[:, :1], rtol=0, atol=4e-6)


@pytest.mark.usefixtures("way")
def test_a_matrix_is_float32_and_not_empty() -> None:
    for wrong in (drawn(8, 4).double(), drawn(8, 4).half(), torch.zeros(0, 4), torch.zeros(4, 0), drawn(8)):
        with pytest.raises(ValueError, match="expected"):
            Matrix(wrong)


@pytest.mark.usefixtures("loops")
def test_what_is_not_as_said_is_refused() -> None:
    matrix = Matrix(drawn(8, 32))
    for rows in (drawn(3, 9), drawn(3, 8).double(), drawn(8)[None].expand(3, 8, 8)):
        with pytest.raises((ValueError, IndexError)):
            matrix.product(rows)
    with pytest.raises(ValueError, match=r"\(3, 32\)"):
        matrix.product(drawn(3, 8), out=drawn(3, 31))
    with pytest.raises(ValueError, match=r"\(1, 32\)"):
        matrix.product(drawn(3, 8), drawn(31))
    with pytest.raises(ValueError):
        matrix.product(drawn(3, 8), then="softmax")


@pytest.mark.usefixtures("loops")
def test_steps_do_not_write_beyond_the_target() -> None:
    size = dense.multiple()
    weights, target = Matrix(drawn(size, 4 * size)), torch.zeros(20, size)

    def steps(**changed: object) -> None:
        state = (torch.zeros(2, size), torch.zeros(2, size))
        settings = {"first": 0, "stride": 10, "kept": 2, "reverse": False} | changed
        lstm_steps(torch.zeros(2, 10, 4 * size), weights, state, target, **settings)  # type: ignore[arg-type]

    steps()
    steps(first=19, reverse=True)
    beyond: list[dict[str, object]] = [{"first": 1}, {"stride": 11}, {"first": -1}, {"first": 18, "reverse": True}]
    for wrong in [*beyond, {"kept": 3}, {"kept": 0}]:
        with pytest.raises(ValueError, match="within the target"):
            steps(**wrong)
    state = (torch.zeros(2, size), torch.zeros(2, size))
    with pytest.raises(ValueError, match=rf"\(20, {4 * size}\)"):
        lstm_steps(torch.zeros(2, 10, 31), weights, state, target, first=0, stride=0, kept=1, reverse=False)
    with pytest.raises(ValueError, match="4 \\* hidden"):
        narrow = Matrix(drawn(size, 2 * size))
        lstm_steps(torch.zeros(2, 10, 4 * size), narrow, state, target, first=0, stride=0, kept=1, reverse=False)


@pytest.mark.usefixtures("loops")
def test_a_matrix_from_a_machine_with_loops_is_refused_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = pickle.loads(pickle.dumps(Matrix(drawn(8, 32))))
    monkeypatch.setattr(dense, "_dense", None)
    with pytest.raises(ValueError, match="lay it out anew"):
        matrix.product(drawn(3, 8))


@pytest.mark.usefixtures("loops")
def test_a_matrix_for_other_vectors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, wide = Matrix(drawn(8, 32)), dense._wide()
    monkeypatch.setattr(dense, "_wide", lambda: 48 - wide)
    with pytest.raises(ValueError, match="lay it out anew"):
        matrix.product(drawn(3, 8))


def test_loops_that_were_built_for_another_version_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        LAYOUT, BEST = dense.LAYOUT + 1, 16

    monkeypatch.setattr(dense, "_dense", Old)
    assert not dense.compiled()
    rows, values = drawn(3, 8), drawn(8, 5)
    torch.testing.assert_close(Matrix(values).product(rows), rows @ values)


def db(error: Tensor, beside: Tensor) -> float:
    return float(20 * (error.norm() / beside.norm()).log10())


@pytest.mark.parametrize("count, inputs, outputs", SHAPES)
@pytest.mark.parametrize("then", ["", "tanh"])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.usefixtures("way")
def test_a_rounded_product_is_near(count: int, inputs: int, outputs: int, then: str, add: bool) -> None:
    rows = drawn(count, inputs + 5)[:, 2 : inputs + 2]
    values, bias = drawn(inputs, outputs, seed=1) / math.sqrt(inputs), drawn(outputs, seed=2)
    wide = drawn(count, outputs + 9, seed=3)
    out, beside = wide[:, 4 : outputs + 4], wide.clone()
    expected = exactly(rows, values, bias, out.clone() if add else None, then)
    matrix = Matrix(values, rounded=True)
    matrix.product(rows, bias, out=out, add=add, then=then)
    assert db(out - expected, expected) < -60
    if dense.compiled() and inputs > 3:
        assert db(out - expected, expected) > -110  # it is not the other product
    beside[:, 4 : outputs + 4] = out
    assert torch.equal(wide, beside)  # nothing beside its place is written


@pytest.mark.parametrize("inputs", [1, 2, 511, 512, 513, 1024, 1025, 1100])
@pytest.mark.usefixtures("way")
def test_sums_of_integers_are_exact_also_of_the_largest(inputs: int) -> None:
    signs = drawn(inputs, 40, seed=1).sign()
    largest = torch.full((7, inputs), 2047.0)
    for values in (signs, torch.ones(inputs, 40), -torch.ones(inputs, 40)):  # each of them 2047 steps
        whole = (400 * drawn(7, inputs)).round().clamp(-2047, 2047)
        whole[:, :: min(inputs, 512)] = 2047  # in each part that has steps of its own
        for rows in (whole, largest):
            exact = rows.double() @ values.double()
            assert (Matrix(values, rounded=True).product(rows) - exact).abs().max() <= 1e-6 * exact.abs().max() + 1e-3


@pytest.mark.usefixtures("way")
def test_small_inputs_with_large_weights_are_not_rounded_away() -> None:
    # As magnitudes of low and of high frequencies are, with the standardisation in the weights.
    size = torch.logspace(3, -3, 600)
    rows, values = drawn(30, 600) * size, drawn(600, 50, seed=1) / size[:, None]
    exact = exactly(rows, values, None, None, "")
    assert db(Matrix(values, rounded=True).product(rows) - exact, exact) < -60


@pytest.mark.usefixtures("way")
def test_what_is_undefined_in_one_row_stays_there() -> None:
    rows, values, bias = drawn(9, 40), drawn(40, 33, seed=1), drawn(33, seed=2)
    matrix = Matrix(values, rounded=True)
    expected = matrix.product(rows, bias)
    rows[1, 3], rows[4, 39], rows[6] = torch.nan, torch.inf, 0.0
    found = matrix.product(rows, bias)
    assert found[1].isnan().all() and not found[4].isfinite().any()
    torch.testing.assert_close(found[6], bias)
    for row in (0, 2, 3, 5, 7, 8):
        assert torch.equal(found[row], expected[row])
    for scale in (1e-20, 1e20, 1e30):
        result = matrix.product(rows[7:] * scale) / scale
        assert (result - rows[7:] @ values).abs().max() < 0.02
    assert torch.equal(Matrix(torch.zeros(40, 33), rounded=True).product(rows[7:], bias), bias.expand(2, -1))


@pytest.mark.usefixtures("way")
def test_an_input_without_weight_does_not_count() -> None:
    values, rows = 0.01 * drawn(600, 50), drawn(30, 600, seed=1)
    values[7], rows[:, 7] = 0, 1e3
    exact = exactly(rows, values, None, None, "")
    assert db(Matrix(values, rounded=True).product(rows) - exact, exact) < -60
