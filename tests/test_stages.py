"""Where the time goes: seconds that add up, whoever spends them, and for nobody but who asked."""

from __future__ import annotations

import contextvars
import threading

import pytest
import torch

import umx_ext
from umx_ext.separation.stages import Stages, stage, staged
from umx_ext.separation.workers import Workers


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_stage_within_a_stage_counts_once():
    clock = Clock()
    with Stages(clock) as stages:
        with stage("outer"):
            clock.now += 1
            with stage("inner"):
                clock.now += 10
            clock.now += 2
        clock.now += 100  # in no stage
        with stage("inner"):
            clock.now += 20
    assert stages.seconds == {"outer": 3.0, "inner": 30.0}


def test_an_error_ends_its_stages():
    clock = Clock()
    with Stages(clock) as stages:
        with pytest.raises(ZeroDivisionError), stage("outer"), stage("inner"):
            clock.now += 1
            raise ZeroDivisionError
        with stage("after"):
            clock.now += 1
    assert stages.seconds == {"inner": 1.0, "outer": 0.0, "after": 1.0}


def test_making_items_counts_and_using_them_does_not():
    clock = Clock()

    def items():
        for number in range(3):
            clock.now += 1
            yield number

    with Stages(clock) as stages:
        for _ in staged("make", items()):
            clock.now += 100
    assert stages.seconds == {"make": 3.0}


def test_nobody_is_heard_who_does_not_work_for_the_listener():
    clock, other = Clock(), Clock()

    def someone_else() -> None:
        with Stages(other) as theirs, stage("theirs"):
            other.now += 5
        assert theirs.seconds == {"theirs": 5.0}

    with Stages(clock) as stages:
        thread = threading.Thread(target=contextvars.Context().run, args=(someone_else,))
        thread.start()
        thread.join()
        with stage("ours"):
            clock.now += 1
    with stage("afterwards"):
        clock.now += 1
    assert stages.seconds == {"ours": 1.0}


def test_workers_report_to_whom_the_caller_reports():
    def task() -> None:
        with stage("task"):
            threading.Event().wait(0.01)

    with Stages() as stages, Workers(2) as workers:
        list(workers.run([task] * 4))
    assert stages.seconds["task"] >= 0.04 and "wait" in stages.seconds
    with Workers(1) as workers:
        list(workers.run([task]))
    assert stages.seconds["task"] < 10


@pytest.mark.parametrize("niter", [0, 1])
def test_a_separation_names_its_stages_and_stays_the_same(niter):
    model = umx_ext.Separator(umx_ext.Config(branches=("linear", "mel"), hidden=8, n_fft=512, hop=128, n_mels=8))
    song = torch.randn(2, 20000, generator=torch.Generator().manual_seed(0))
    options = umx_ext.Options(niter=niter)
    alone = umx_ext.separate(song, 48000, model=model, options=options)
    with Stages() as stages:
        heard = umx_ext.separate(song, 48000, model=model, options=options)
    assert all(torch.equal(alone[stem], heard[stem]) for stem in alone)
    named = {"resample", "STFT", "branch linear", "branch mel", "recurrence", "decoder", "inverse STFT", "wait"}
    assert set(stages.seconds) == named | {"Wiener" if niter else "masks"}
    assert all(seconds >= 0 for seconds in stages.seconds.values())
