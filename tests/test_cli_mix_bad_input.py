"""The command `umx-ext mix` on what it cannot do: one line on standard error that names the path and a remedy, the
documented exit code, nothing half written, nothing of the user's touched."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from tests.takes import (
    RATE,
    Answer,
    Run,
    band,
    caller,
    everything_below,
    expect_one_line,
    nothing,
    pair,
    process,
    voice,
    write,
)
from umx_ext.mixing import picture, vocal


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    return caller(tmp_path, monkeypatch, capfd)


# ------------------------------------------------------------------------------------------------ inputs that are none


def text(name: str) -> None:
    Path(name).write_text("la la la\n" * 1000)


def empty(name: str) -> None:
    Path(name).write_bytes(b"")


def not_finite(value: float) -> Callable[[str], None]:
    def make(name: str) -> None:
        wave = voice().numpy().T.copy()
        wave[12345] = value
        soundfile.write(name, wave, RATE, subtype="FLOAT")

    return make


def cut_short(name: str) -> None:
    write(name, voice(), bits="16")
    whole = Path(name).read_bytes()
    Path(name).write_bytes(whole[: len(whole) // 2])


BAD_FILES: dict[str, tuple[Callable[[str], Any] | None, tuple[str, ...]]] = {
    "missing.wav": (None, ()),
    "text.wav": (text, ()),
    "empty.flac": (empty, ()),
    "nan.wav": (not_finite(np.nan), ("nan", "repair")),
    "inf.wav": (not_finite(np.inf), ("inf", "repair")),
    "cut short.wav": (cut_short, ("cut short",)),
    "silent.wav": (lambda name: write(name, torch.zeros(1, RATE)), ("is silent;",)),
    "offset alone.wav": (lambda name: write(name, torch.full((2, RATE), 0.3)), ("is silent;",)),
    "three.wav": (lambda name: write(name, voice(channels=3)), ("has 3 channels; give a mono or stereo file",)),
    "telephone.wav": (lambda name: write(name, voice(rate=6000), 6000), ("has 6000 Hz", "8000", "higher rate")),
}


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("place", ["take", "backing"])
def test_a_file_that_cannot_be_mixed_is_one_line_and_code_4(run, name, place):
    make, phrases = BAD_FILES[name]
    if make is not None:
        make(name)
    write("good.wav", band())
    before = everything_below()
    words = (name, "good.wav") if place == "take" else ("good.wav", name)
    expect_one_line(run(*words, "-o", "new/m.wav", "--report", "new/r.json"), 4, name, *phrases)
    assert everything_below() == before


def test_a_song_to_compare_with_that_is_none_is_code_4(run):
    text("song.wav")
    expect_one_line(run(*pair(), "-o", "m.wav", "--song", "song.wav"), 4, "song.wav")
    expect_one_line(run(*pair(), "-o", "m.wav", "--song", "none.wav"), 4, "none.wav")


BAD_CHAINS = {
    "words": ("make it loud", "not JSON"),
    "number": ("3", "object of chains"),
    "unknown effect": ('[{"kind": "autotune"}]', "autotune"),
    "unknown field": ('[{"kind": "gain", "loudness": 3}]', "loudness"),
    "unit out of range": ('[{"kind": "reverb", "t60_s": 1500}]', "t60_s"),
    "text for a number": ('{"mix": [{"kind": "gain", "gain_db": "loud"}]}', "gain_db"),
    "unknown place": ('{"drums": []}', "drums"),
    "no effect": ("[3]", "effect"),
}


@pytest.mark.parametrize("name", BAD_CHAINS)
def test_a_chain_file_that_makes_no_sense_is_one_line_and_code_2(run, name):
    content, phrase = BAD_CHAINS[name]
    Path("chain.json").write_text(content)
    expect_one_line(run(*pair(), "-o", "m.wav", "--chain", "chain.json"), 2, "chain.json", phrase)
    assert not Path("m.wav").exists()


def test_a_chain_file_that_cannot_be_read_is_code_2(run):
    files = pair()
    expect_one_line(run(*files, "--chain", "none.json"), 2, "none.json", "--save-chain")
    expect_one_line(run(*files, "--chain", "."), 2, "--save-chain")
    expect_one_line(run(*files, "--chain", "take.wav"), 2, "take.wav")


def test_a_chain_that_makes_no_sense_at_this_rate_names_its_file(run):
    Path("c.json").write_text('[{"kind": "parametric_eq", "bands": [{"frequency_hz": 15000, "gain_db": 3}]}]')
    files = write("t.wav", voice(rate=8000), 8000), write("b.wav", band(rate=8000), 8000)
    expect_one_line(run(*files, "-o", "m.wav", "--chain", "c.json"), 2, "c.json", "15000")


# ------------------------------------------------------------------------------------------------ calls without sense


@pytest.mark.parametrize(
    "words, phrase",
    [
        (("--preset", "loud"), "studio or poster"),
        (("--lufs", "3"), "--lufs takes -70 to 0 LUFS"),
        (("--lufs", "nan"), "--lufs"),
        (("--true-peak", "1"), "--true-peak takes -60 to 0 dBTP"),
        (("--vocal-db", "100"), "--vocal-db takes -60 to 60 dB"),
        (("--reverb-db", "20"), "--reverb-db takes -60 to 12 dB"),
        (("--bpm", "0"), "--bpm takes 20 to 400 beats a minute"),
        (("--bpm", "fast"), "--bpm"),
        (("--offset", "late"), "--offset takes milliseconds or auto, not late"),
        (("--offset", "nan"), "--offset"),
        (("--offset", "3000"), "--offset 3000 is where backing.wav has ended"),
        (("--offset=-3000",), "--offset -3000 leaves nothing of take.wav"),
        (("--offset", "20", "--song", "song.wav"), "--song is for --offset auto"),
        (("--chain", "c.json", "--preset", "poster", "--bpm", "90"), "--preset, --bpm"),
        (("--plot", "m.svg"), ".png"),
        (("-o", "m"), "m has no suffix of a format"),
        (("-o", "m.wav", "--format", "flac"), "m.wav and --format flac contradict"),
        (("--format", "xyz"), "xyz"),
        (("-o", "m.mp3", "--bits", "16"), "mp3"),
        (("-q", "-v"), "-q and -v"),
        (("--loud",), "--loud"),
        (("third.wav",), "third.wav"),
    ],
)
def test_a_call_that_makes_no_sense_is_one_line_and_code_2(run, words, phrase):
    expect_one_line(run(*pair(), *words), 2, phrase)
    assert everything_below() == ["backing.wav", "take.wav"]


def test_a_call_without_a_backing_is_code_2(run):
    expect_one_line(run(pair()[0]), 2, "see umx-ext mix --help")


@pytest.mark.parametrize("option", ["-o", "--report", "--save-chain"])
@pytest.mark.parametrize("name", ["take.wav", "backing.wav", "./take.wav", "link.wav"])
def test_an_input_is_never_an_output(run, option, name):
    files = pair()
    os.symlink("take.wav", "link.wav")
    before = [path.read_bytes() for path in files]
    expect_one_line(run(*files, option, name, "--if-exists", "overwrite"), 2, name.removeprefix("./"), "is an input")
    assert [path.read_bytes() for path in files] == before


def test_two_outputs_are_never_one_file(run):
    expect_one_line(run(*pair(), "-o", "m.wav", "--report", "x", "--save-chain", "./x"), 2, "x would be both the")


# ------------------------------------------------------------------------------------------------ outputs


@pytest.mark.parametrize("option", ["-o", "--report", "--save-chain", "--plot"])
def test_an_output_below_a_file_or_on_a_folder_is_code_6(run, option):
    files = pair()
    Path("file").write_text("mine")
    Path("folder.png").mkdir()
    suffix = {"-o": "wav", "--plot": "png"}.get(option, "json")
    expect_one_line(run(*files, option, f"file/below.{suffix}"), 6, f"file/below.{suffix}", "not a folder")
    expect_one_line(run(*files, option, "folder.png"), 6, "folder.png")
    assert Path("file").read_text() == "mine"
    assert everything_below() == ["backing.wav", "file", "folder.png", "take.wav"]


def test_a_disk_that_fills_up_is_code_6_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pair(seconds=4.0)
    nothing()
    before = everything_below(tmp_path)
    done = process("take.wav", "backing.wav", "-o", "new/m.wav", "--chain", "nothing.json", "--report", "new/r.json",
                   cwd=tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)))
    out, err = done.communicate()
    expect_one_line(Answer(done.returncode, out, err), 6, "new/m.wav")
    assert everything_below(tmp_path) == before


def test_a_failure_at_the_end_leaves_none_of_the_files(run, monkeypatch):
    pytest.importorskip("matplotlib")

    def fail(*_: object, **__: object) -> bytes:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(picture, "draw", fail)
    files = pair()
    words = ("-o", "new/m.wav", "--report", "r.json", "--save-chain", "c.json", "--plot", "p.png")
    expect_one_line(run(*files, *words), 1, "ZeroDivisionError")
    assert everything_below() == ["backing.wav", "take.wav"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory_is_code_5(run, monkeypatch, error):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(vocal, "plan", fail)
    expect_one_line(run(*pair(), "-o", "m.wav"), 5, "take.wav", "out of memory")
    assert everything_below() == ["backing.wav", "take.wav"]


def test_a_failure_is_a_record_too(run):
    answer = run("none.wav", write("b.wav", band()), "-o", "m.wav", "--json")
    assert answer.code == 4 and answer.record["status"] == "failed" and answer.record["exit_code"] == 4
    assert "none.wav" in answer.record["error"] and answer.err.count("\n") == 1


def catches(pid: int, number: signal.Signals) -> bool:
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc, which this system has not")
@pytest.mark.parametrize("moment", ["at once", "working", "SIGTERM"])
def test_an_interrupt_at_any_moment_is_code_130_and_leaves_no_half_file(tmp_path, monkeypatch, moment):
    monkeypatch.chdir(tmp_path)
    pair(seconds=40.0)
    before = everything_below(tmp_path)
    running = process("take.wav", "backing.wav", "-o", "new/m.wav", "--report", "new/r.json", "-v", cwd=tmp_path)
    assert running.stderr is not None
    if moment == "at once":
        while not catches(running.pid, signal.SIGTERM):
            time.sleep(0.001)
    else:
        while "deciding" not in running.stderr.readline():
            assert running.poll() is None
    running.send_signal(signal.SIGTERM if moment == "SIGTERM" else signal.SIGINT)
    sent = time.monotonic()
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert time.monotonic() - sent < 20
    assert err.splitlines()[-1].startswith("umx-ext: interrupted") and out == ""
    assert everything_below(tmp_path) == before
