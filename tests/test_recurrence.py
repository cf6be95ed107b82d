"""Lanes of an LSTM against torch's own single run, for networks that forget and for one that never does; both by the
compiled loops, where there are any, and by torch."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.loops import WIDES, use_loops
from umx_ext.separation import dense, recurrence
from umx_ext.separation.recurrence import Direction, lstm_direction


@pytest.fixture(autouse=True, params=[*WIDES, "torch"])
def lanes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many lanes there are."""
    use_loops(monkeypatch, request.param)
    return 4 if request.param == "torch" else 6


def network(forgetting: float, hidden: int = 32, inputs: int = 16) -> nn.LSTM:
    """A large bias of the forget gate keeps the cells for ever."""
    torch.manual_seed(5)
    lstm = nn.LSTM(inputs, hidden)
    with torch.no_grad():
        lstm.weight_hh_l0.mul_(0.5)
        lstm.bias_ih_l0[hidden : 2 * hidden] = forgetting
    return lstm.requires_grad_(False)


def in_lanes(lstm: nn.LSTM, values: Tensor, reverse: bool, *, rounded: bool = False) -> Tensor:
    # Rows of wider tensors, as the engine has them.
    wide, result = torch.zeros(len(values), 60), torch.full((len(values), 70), torch.nan)
    wide[:, 3 : 3 + values.shape[1]] = values
    source, target = wide[:, 3 : 3 + values.shape[1]], result[:, 9 : 9 + lstm.hidden_size]
    direction = Direction(lstm._flat_weights, rounded=rounded)
    lstm_direction(direction, source, target, reverse=reverse, check=lambda: None)
    assert result.isnan().sum() == len(values) * (70 - lstm.hidden_size)  # nothing beside its place is written
    return target


def alone(lstm: nn.LSTM, values: Tensor, reverse: bool) -> Tensor:
    output = lstm((values.flip(0) if reverse else values)[:, None])[0][:, 0]
    return output.flip(0) if reverse else output


def exactly(lstm: nn.LSTM, values: Tensor, reverse: bool) -> Tensor:
    return alone(copy.deepcopy(lstm).double(), values.double(), reverse)


def frames_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps of each run from here on."""
    steps: list[int] = []
    for module, name, axis in ((torch, "lstm", 0), (dense, "lstm_steps", 1)):
        original = getattr(module, name)

        def spy(values: Tensor, *rest: object, original=original, axis: int = axis, **named: object) -> object:
            steps.append(values.shape[axis])
            return original(values, *rest, **named)

        monkeypatch.setattr(module, name, spy)
    return steps


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("frames", [1, 7, 2399, 2400, 2401, 2402, 2403, 5399])
@pytest.mark.parametrize("forgetting", [-1.0, 4.0, 12.0])
def test_lanes_give_what_a_single_run_gives(forgetting: float, frames: int, reverse: bool) -> None:
    lstm, values = network(forgetting), torch.randn(frames, 16, generator=torch.Generator().manual_seed(1))
    found, plain, exact = in_lanes(lstm, values, reverse), alone(lstm, values, reverse), exactly(lstm, values, reverse)
    # Whoever never forgets gathers roundings: in a single run, too, of which these have up to 2e-4.
    gathered = 3e-4 if forgetting == 12.0 else 2e-6
    assert (found - exact).abs().max() < 3 * (plain - exact).abs().max() + gathered


def test_a_network_that_forgets_takes_little_more_than_its_lane_of_the_steps(
    monkeypatch: pytest.MonkeyPatch, lanes: int
) -> None:
    lstm, values = network(-1.0), torch.randn(10000, 16)
    steps = frames_run(monkeypatch)
    in_lanes(lstm, values, False)
    assert sum(steps) == 10000 - (lanes - 1) * ((10000 - 300) // lanes)


def test_a_network_that_never_forgets_is_run_again_and_would_be_wrong_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lstm, values = network(30.0), torch.randn(4000, 16, generator=torch.Generator().manual_seed(2))
    exact = exactly(lstm, values, False)
    steps = frames_run(monkeypatch)
    error = (in_lanes(lstm, values, False) - exact).abs().max()
    assert sum(steps) == 4000  # those of one lane abreast, and each of the others again
    monkeypatch.setattr(recurrence, "_SAME", torch.inf)  # the liar: takes every lane at its word
    assert (in_lanes(lstm, values, False) - exact).abs().max() > 100 * error


def test_a_lane_that_was_wrong_at_first_is_run_again_only_until_it_is_right(
    monkeypatch: pytest.MonkeyPatch, lanes: int
) -> None:
    lstm, values = network(3.2), torch.randn(12000, 16, generator=torch.Generator().manual_seed(3))
    steps = frames_run(monkeypatch)
    in_lanes(lstm, values, False)
    batched = 12000 - (lanes - 1) * ((12000 - 300) // lanes)
    assert batched < sum(steps) < batched + (lanes - 1) * 1100


def test_a_run_can_be_ended() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    values = torch.zeros(10, 16)
    with pytest.raises(KeyboardInterrupt):
        lstm_direction(Direction(network(0.0)._flat_weights), values, torch.zeros(10, 32), reverse=False, check=stop)


def test_a_direction_does_not_see_what_is_done_to_the_network_afterwards() -> None:
    lstm, values = network(0.0), torch.randn(50, 16)
    direction, expected, found = Direction(lstm._flat_weights), alone(lstm, values, False), torch.zeros(50, 32)
    with torch.no_grad():
        for weights in lstm.parameters():
            weights.mul_(0.5)
    lstm_direction(direction, values, found, reverse=False, check=lambda: None)
    assert (found - expected).abs().max() < 1e-6


def test_a_size_that_the_loops_do_not_take_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    lstm, values = network(0.0, hidden=12), torch.randn(50, 16)
    assert not Direction(lstm._flat_weights).compiled
    assert (in_lanes(lstm, values, True) - alone(lstm, values, True)).abs().max() < 1e-6


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("frames", [7, 2399, 5399])
@pytest.mark.parametrize("forgetting", [-1.0, 3.2, 4.0, 12.0])
def test_rounded_lanes_are_a_single_rounded_run(
    forgetting: float, frames: int, reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lstm, values = network(forgetting), torch.randn(frames, 16, generator=torch.Generator().manual_seed(1))
    found = in_lanes(lstm, values, reverse, rounded=True)
    if forgetting < 4:
        error = found - exactly(lstm, values, reverse)
        assert error.abs().max() < 0.02 and error.square().mean().sqrt() < 5e-4
    monkeypatch.setattr(recurrence, "_SHORTEST", 10**9)
    assert (found - in_lanes(lstm, values, reverse, rounded=True)).abs().max() < 2e-3


def test_rounded_lanes_would_be_wrong_if_each_were_taken_at_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    lstm, values = network(30.0), torch.randn(4000, 16, generator=torch.Generator().manual_seed(2))
    exact = exactly(lstm, values, False)
    error = (in_lanes(lstm, values, False, rounded=True) - exact).abs().max()
    for name in ("_SAME", "_ROUNDED_SAME"):  # the liar
        monkeypatch.setattr(recurrence, name, torch.inf)
    assert (in_lanes(lstm, values, False, rounded=True) - exact).abs().max() > 10 * error


def test_rounded_lanes_that_forget_are_taken_at_their_word_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch, lanes: int
) -> None:
    values = torch.randn(4000, 16, generator=torch.Generator().manual_seed(2))
    steps = frames_run(monkeypatch)
    in_lanes(network(-1.0), values, False, rounded=True)
    assert sum(steps) == 4000 - (lanes - 1) * ((4000 - 300) // lanes)
    steps.clear()
    in_lanes(network(30.0), values, False, rounded=True)
    assert sum(steps) == 4000
