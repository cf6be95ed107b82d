"""Reading ahead: the same blocks in the same order, no more of them than was agreed, and no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from umx_ext.commands.ahead import Ahead


def numbered(count: int, made: list[int], samples: int = 10) -> Iterator[Tensor]:
    for number in range(count):
        made.append(number)
        yield torch.full((2, samples), float(number))


def running() -> bool:
    return any(thread.name == "read ahead" for thread in threading.enumerate())


@pytest.mark.parametrize("most", [1, 25, 10**6])
def test_the_same_blocks_in_order(most):
    with Ahead(numbered(50, []), most) as blocks:
        assert [float(block[0, 0]) for block in blocks] == list(range(50))
        assert list(blocks) == []
    assert not running()


def test_no_more_than_agreed_is_read_before_it_is_asked_for():
    made: list[int] = []
    full = threading.Event()

    def watched() -> Iterator[Tensor]:
        for block in numbered(50, made):
            if len(made) > 3:
                full.set()
            yield block

    with Ahead(watched(), 30) as blocks:
        assert not full.wait(0.2) and made == [0, 1, 2]  # 30 samples wait
        next(blocks)
        assert full.wait(10) and len(made) == 4


def test_leaving_early_ends_the_thread():
    made: list[int] = []
    with Ahead(numbered(1000, made), 30) as blocks:
        next(blocks)
    assert not running() and len(made) < 10


def test_an_error_comes_after_the_blocks_before_it():
    def failing() -> Iterator[Tensor]:
        yield from numbered(2, [])
        raise OSError("the disk is gone")

    taken = []
    with pytest.raises(OSError, match="the disk is gone"), Ahead(failing(), 1000) as blocks:
        for block in blocks:
            taken.append(block)
    assert len(taken) == 2 and not running()


def test_an_error_of_the_reader_that_waits_is_not_lost():
    with pytest.raises(ZeroDivisionError), Ahead(numbered(1000, []), 30) as blocks:
        next(blocks)
        raise ZeroDivisionError
    assert not running()
