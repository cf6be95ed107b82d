"""The command `umx-ext` on what it cannot do: one line on standard error that names the path and a remedy, the
documented exit code, nothing half written, nothing of the user's touched."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from umx_ext import audio, cli
from umx_ext.separation import pretrained
from umx_ext.separation.config import Config
from umx_ext.separation.separator import Separator

ROOT = Path(__file__).resolve().parent.parent
RATE = 44100


@dataclass
class Answer:
    code: int
    out: str
    err: str


Run = Callable[..., Answer]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(1)
    config = Config(stems=("vocals",), hidden=16, layers=1, n_fft=1024, hop=256, mask="sigmoid")
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    pretrained.save(Separator(config), path, metadata={})
    return str(path)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Call the command in this process, in an empty folder. What libraries write to the descriptors counts too."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("UMX_EXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UMX_EXT_OFFLINE", "1")
    monkeypatch.delenv("UMX_EXT_DEVICE", raising=False)

    def call(*words: str | Path) -> Answer:
        capfd.readouterr()
        code = cli.main([str(word) for word in words])
        captured = capfd.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


def process(*words: str | Path, cwd: Path, **how: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "umx_ext", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "UMX_EXT_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


def noise(seconds: float, channels: int = 2, rate: int = RATE) -> np.ndarray:
    return 0.1 * np.random.default_rng(3).standard_normal((round(seconds * rate), channels))


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def expect_one_line(answer: Answer, code: int, *phrases: str) -> None:
    assert answer.code == code, answer
    assert len(answer.err.splitlines()) == 1, answer.err
    for phrase in phrases:
        assert phrase in answer.err, answer.err
    assert answer.out == ""


# ------------------------------------------------------------------------------------------------ inputs that are none


def text(path: Path) -> None:
    path.write_text("la la la\n" * 1000)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_samples(path: Path) -> None:
    soundfile.write(path, np.zeros((0, 2)), RATE)


def not_finite(value: float) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        wave = noise(0.5)
        wave[12345, 1] = value
        soundfile.write(path, wave, RATE, subtype="FLOAT")

    return make


def cut_short(path: Path) -> None:
    audio.write(path, torch.from_numpy(noise(3.0).T).float(), RATE)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])


BAD_FILES: list[tuple[str, Callable[[Path], None] | None]] = [
    ("missing.wav", None),
    ("text.wav", text),
    ("text.mp3", text),
    ("empty.flac", empty),
    ("no samples.wav", no_samples),
    ("nan.wav", not_finite(np.nan)),
    ("inf.wav", not_finite(np.inf)),
    ("cut short.wav", cut_short),
    ("cut short.mp3", cut_short),
    ("cut short.m4a", cut_short),
    ("two\nlines.wav", text),
    ("gesungen 歌 🎤.wav", text),
]


@pytest.mark.parametrize("name, make", BAD_FILES, ids=[name for name, _ in BAD_FILES])
def test_a_file_that_is_no_whole_song_is_one_line_and_code_4(
    run: Run, model: str, name: str, make: Callable[[Path], None] | None
) -> None:
    if make is not None:
        make(Path(name))
    before = everything_below(Path())
    answer = run("separate", name, "-n", model)
    expect_one_line(answer, 4, name.replace("\n", "\\n"))
    assert len(answer.err) > len(name) + 20  # more than the name: what it is, and what to do
    assert everything_below(Path()) == before


def test_an_earlier_result_survives_an_input_that_fails(run: Run, model: str) -> None:
    Path("separated/tiny/song").mkdir(parents=True)
    earlier = Path("separated/tiny/song/vocals.wav")
    earlier.write_text("the old one")
    cut_short(Path("song.mp3"))
    expect_one_line(run("separate", "song.mp3", "-n", model, "--if-exists", "overwrite"), 4, "song.mp3")
    assert earlier.read_text() == "the old one"
    assert everything_below(Path("separated")) == ["tiny", "tiny/song", "tiny/song/vocals.wav"]


def test_a_start_past_the_end_is_code_4(run: Run, model: str) -> None:
    soundfile.write("song.wav", noise(0.5), RATE)
    expect_one_line(run("separate", "song.wav", "-n", model, "--start", "7"), 4, "song.wav", "0.5", "start")
    assert everything_below(Path()) == ["song.wav"]


def test_a_folder_without_audio_is_code_4_and_without_r_code_2(run: Run, model: str) -> None:
    Path("album").mkdir()
    text(Path("album/cover.txt"))
    expect_one_line(run("separate", "-r", "album", "-n", model), 4, "album", ".flac")
    expect_one_line(run("separate", "album", "-n", model), 2, "album", "-r")


def test_a_pattern_that_matches_nothing_is_code_4(run: Run, model: str) -> None:
    expect_one_line(run("separate", "*.wav", "-n", model), 4, "*.wav")


def test_standard_input_that_is_no_song_is_called_standard_input(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=BytesIO(b"words" * 99), isatty=lambda: False))
    answer = run("separate", "-", "-n", model)
    expect_one_line(answer, 4, "standard input")
    assert "umx-ext-" not in answer.err


def test_the_keyboard_is_no_song(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=BytesIO(), isatty=lambda: True))
    expect_one_line(run("separate", "-", "-n", model), 2, "standard input")


def test_some_failures_are_code_1_and_a_summary_names_them(run: Run, model: str) -> None:
    soundfile.write("good.wav", noise(0.3), RATE)
    text(Path("bad.wav"))
    answer = run("separate", "missing.wav", "bad.wav", "good.wav", "-n", model)
    assert answer.code == 1 and answer.out.startswith("good.wav: ")
    first, second, summary = answer.err.splitlines()
    assert "missing.wav" in first and "bad.wav" in second
    assert "2 of 3" in summary and "missing.wav" in summary and "bad.wav" in summary
    assert run("separate", "missing.wav", "bad.wav", "-n", model).code == 4


# ------------------------------------------------------------------------------------------------ odd, but songs


def written(folder: Path, track: str = "song") -> list[np.ndarray]:
    return [
        soundfile.read(folder / "separated" / "tiny" / track / f"{stem}.wav", dtype="int32", always_2d=True)[0].astype(
            int
        )
        for stem in ("vocals", "accompaniment")
    ]


ODD_SONGS = {
    "one sample": np.full((1, 2), 0.25),
    "shorter than a frame": noise(0.01),
    "silence": np.zeros((RATE, 2)),
    "full-scale square wave": np.where(np.arange(RATE) // 50 % 2, 32767 / 32768, -1.0)[:, None].repeat(2, 1),
    "eight channels": noise(0.3, 8),
    "mono": noise(0.3, 1),
}


@pytest.mark.parametrize("name", ODD_SONGS)
def test_an_odd_song_comes_out_as_long_as_it_went_in_and_adds_up(run: Run, model: str, name: str) -> None:
    soundfile.write("song.wav", ODD_SONGS[name], RATE)
    answer = run("separate", "song.wav", "-n", model)
    assert (answer.code, answer.err) == (0, "")
    given = soundfile.read("song.wav", dtype="int32", always_2d=True)[0].astype(int)
    vocals, rest = written(Path())
    assert vocals.shape == given.shape
    np.testing.assert_array_equal(vocals + rest, given)
    if name == "silence":
        assert not vocals.any() and "no voice" in answer.out


@pytest.mark.parametrize("rate", [8000, 192000])
def test_odd_rates_come_back(run: Run, model: str, rate: int) -> None:
    soundfile.write("song.wav", noise(0.3, rate=rate), rate)
    assert run("separate", "song.wav", "-n", model).code == 0
    assert soundfile.info("separated/tiny/song/vocals.wav").samplerate == rate


@pytest.mark.parametrize("name", ["two\nlines.wav", "gesungen 歌 🎤.wav", "-dash.wav", "{braces} %s.wav", "-"])
def test_odd_names_are_names(run: Run, model: str, name: str) -> None:
    with open(f"./{name}", "wb") as stream:
        soundfile.write(stream, noise(0.2), RATE, format="WAV")
    answer = run("separate", "-n", model, "--", name)
    assert (answer.code, answer.err) == (0, "") and len(answer.out.splitlines()) == 1
    assert Path("separated/tiny", Path(name).stem, "vocals.wav").is_file()


def test_a_name_that_begins_with_a_dash_is_told_how_to_be_given(run: Run, model: str) -> None:
    soundfile.write("./-dash.wav", noise(0.2), RATE)
    expect_one_line(run("separate", "-dash.wav", "-n", model), 2, "./-dash.wav")


# ------------------------------------------------------------------------------------------------ usage


@pytest.mark.parametrize(
    "words, phrase",
    [
        (["separate"], "INPUT"),
        (["separate", "song.wav", "--nitre", "2"], "--niter"),
        (["separate", "song.wav", "--niter", "two"], "--niter"),
        (["separate", "song.wav", "--niter", "-1"], "--niter"),
        (["separate", "song.wav", "--format", "mp5"], "mp3"),
        (["separate", "song.wav", "--format", "mp3", "--bits", "16"], "mp3"),
        (["separate", "song.wav", "--flac", "--float32"], "24"),
        (["separate", "song.wav", "--flac", "--mp3"], "--format"),
        (["separate", "song.wav", "--flac", "--mp3-bitrate", "128"], "lossless"),
        (["separate", "song.wav", "--bits", "12"], "--bits"),
        (["separate", "song.wav", "--stems", "violin"], "vocals"),
        (["separate", "song.wav", "--stems", "vocals", "--two-stems"], "--two-stems"),
        (["separate", "song.wav", "--karaoke", "--two-stems"], "--karaoke"),
        (["separate", "song.wav", "--guide-db", "6"], "--karaoke"),
        (["separate", "song.wav", "--filename", "{artist}.{ext}"], "{track}"),
        (["separate", "song.wav", "--filename", "{track}.{ext}"], "{stem}"),
        (["separate", "song.wav", "--filename", "{track}{stem}"], "{ext}"),
        (["separate", "song.wav", "--filename", "/{track}{stem}.{ext}"], "--out"),
        (["separate", "song.wav", "--start", "-1"], "--start"),
        (["separate", "song.wav", "--duration", "0"], "--duration"),
        (["separate", "song.wav", "--segment", "nan"], "--segment"),
        (["separate", "song.wav", "--no-split", "--segment", "9"], "--no-split"),
        (["separate", "song.wav", "--rate", "fast"], "--rate"),
        (["separate", "song.wav", "--channels", "3"], "--channels"),
        (["separate", "song.wav", "--shard", "3/2"], "--shard"),
        (["separate", "song.wav", "-j", "0"], "-j"),
        (["separate", "song.wav", "-q", "-v"], "-q"),
        (["separate", "song.wav", "-d", "abacus"], "abacus"),
        (["separate", "song.wav", "vocals", "--if-exists", "ask"], "overwrite"),
        (["song.wav"], "umx-ext separate song.wav"),
        (["seperate", "song.wav"], "separate"),
        (["models", "lst"], "list"),
        (["models", "show"], "MODEL"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_call_that_makes_no_sense_is_one_line_and_code_2(run: Run, model: str, words: list[str], phrase: str) -> None:
    soundfile.write("song.wav", noise(0.1), RATE)
    if words[0] == "separate":
        words = [*words, "-n", model]
    expect_one_line(run(*words), 2, phrase)
    assert everything_below(Path()) == ["song.wav"]


def test_two_inputs_for_one_output_are_refused_before_any_work(run: Run, model: str) -> None:
    for name in ("other.wav", "a/song.wav", "b/song.flac"):
        Path(name).parent.mkdir(exist_ok=True)
        soundfile.write(name, noise(0.1), RATE)
    before = everything_below(Path())
    expect_one_line(
        run("separate", "other.wav", "a/song.wav", "b/song.flac", "-n", model), 2, "a/song.wav", "b/song.flac"
    )
    assert everything_below(Path()) == before


def test_an_input_is_never_an_output(run: Run, model: str) -> None:
    soundfile.write("song.wav", noise(0.1), RATE)
    before = Path("song.wav").read_bytes()
    words = ("--stems", "vocals", "--filename", "{track}.{ext}", "-o", ".", "--if-exists", "overwrite")
    expect_one_line(run("separate", "song.wav", "-n", model, *words), 2, "song.wav")
    assert Path("song.wav").read_bytes() == before


# ------------------------------------------------------------------------------------------------ models


def truncated(path: Path, model: str) -> None:
    path.write_bytes(Path(model).read_bytes()[:5000])


def flipped(path: Path, model: str) -> None:
    whole = bytearray(Path(model).read_bytes())
    whole[-3] ^= 255
    path.write_bytes(whole)


def foreign(path: Path, model: str) -> None:
    from safetensors.torch import save_file

    save_file({"conv.weight": torch.zeros(3, 3)}, path)


def other_architecture(path: Path, model: str) -> None:
    whole = Path(model).read_bytes()
    assert b'\\"hidden\\": 16' in whole
    path.write_bytes(whole.replace(b'\\"hidden\\": 16', b'\\"hidden\\": 32'))


def words_instead(path: Path, model: str) -> None:
    path.write_text("a model, honestly")


@pytest.mark.parametrize("make", [None, truncated, flipped, foreign, other_architecture, words_instead])
def test_a_model_that_is_none_is_one_line_and_code_3(
    run: Run, model: str, make: Callable[[Path, str], None] | None
) -> None:
    soundfile.write("song.wav", noise(0.1), RATE)
    if make is not None:
        make(Path("bad.safetensors"), model)
    expect_one_line(run("separate", "song.wav", "-n", "bad.safetensors"), 3, "bad.safetensors")
    assert not Path("separated").exists()


def test_an_unknown_model_is_code_3_and_the_known_ones_are_named(run: Run) -> None:
    soundfile.write("song.wav", noise(0.1), RATE)
    expect_one_line(run("separate", "song.wav", "-n", "umxx"), 3, "umxx", "umxhq")


def test_a_model_that_would_have_to_be_fetched_offline_is_code_3(run: Run) -> None:
    soundfile.write("song.wav", noise(0.1), RATE)
    expect_one_line(run("separate", "song.wav", "-n", "umxhq"), 3, "UMX_EXT_OFFLINE")


# ------------------------------------------------------------------------------------------------ machine


@pytest.mark.parametrize("out", ["file", "file/below", "file/far/below"])
def test_an_output_below_a_file_is_code_6(run: Run, model: str, out: str) -> None:
    soundfile.write("song.wav", noise(0.1), RATE)
    Path("file").write_text("mine")
    expect_one_line(run("separate", "song.wav", "-n", model, "-o", out), 6, "file", "--out")
    assert everything_below(Path()) == ["file", "song.wav"] and Path("file").read_text() == "mine"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to"),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_code_5_and_names_the_flag_that_helps(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> Iterator[None]:
        raise error

    soundfile.write("song.wav", noise(0.1), RATE)
    monkeypatch.setattr(Separator, "stream", fail)
    expect_one_line(run("separate", "song.wav", "-n", model), 5, "song.wav", "--segment")
    assert everything_below(Path()) == ["song.wav"]


def test_a_mistake_of_ours_is_one_line_and_leaves_nothing(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Iterator[None]:
        raise ZeroDivisionError("oh")

    soundfile.write("song.wav", noise(0.1), RATE)
    monkeypatch.setattr(Separator, "stream", fail)
    expect_one_line(run("separate", "song.wav", "-n", model), 1, "song.wav", "ZeroDivisionError")
    assert everything_below(Path()) == ["song.wav"]
    assert "Traceback" in run("separate", "song.wav", "-n", model, "-v").err


@pytest.mark.parametrize("mode", ["rescale", "clamp"])  # with and without the temporary file
def test_a_disk_that_fills_up_is_code_6_and_leaves_nothing(tmp_path: Path, model: str, mode: str) -> None:
    soundfile.write(tmp_path / "song.wav", noise(5), RATE)  # 882 kB a stem
    done = process(
        "separate", "song.wav", "-n", model, "--segment", "1", "--clip-mode", mode, cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, 700_000)),
    )  # fmt: skip
    out, err = done.communicate()
    expect_one_line(Answer(done.returncode, out, err), 6, "separated")
    assert everything_below(tmp_path) == ["song.wav"]


def test_a_missing_file_as_a_real_process(tmp_path: Path) -> None:
    done = process("separate", "missing.wav", cwd=tmp_path)
    out, err = done.communicate()
    expect_one_line(Answer(done.returncode, out, err), 4, "missing.wav")


def test_a_reader_that_leaves_gets_no_traceback(tmp_path: Path) -> None:
    done = process("models", "list", cwd=tmp_path, bufsize=0)
    assert done.stdout is not None and done.stderr is not None
    done.stdout.close()
    assert done.stderr.read() == ""
    assert done.wait() == 6


def catches(pid: int, number: signal.Signals) -> bool:
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc, which this system has not")
@pytest.mark.parametrize("moment", ["at once", "importing", "writing", "SIGTERM"])
def test_an_interrupt_at_any_moment_is_code_130_and_leaves_no_half_file(
    tmp_path: Path, model: str, moment: str
) -> None:
    soundfile.write(tmp_path / "song.wav", noise(60), RATE)
    slowly = ("--segment", "1", "--overlap", "20")  # it must not be done before the signal comes, on a busy machine
    running = process("separate", "song.wav", "-n", model, *slowly, "-j", "2", cwd=tmp_path)
    if moment == "at once":
        while not catches(running.pid, signal.SIGTERM):  # which Python does not do by itself: now it is our code
            time.sleep(0.001)
    elif moment == "importing":
        time.sleep(1.0)
    else:
        while not list(tmp_path.rglob("*.part")):
            assert running.poll() is None, running.communicate()
            time.sleep(0.005)
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM if moment == "SIGTERM" else signal.SIGINT)
    sent = time.monotonic()
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert time.monotonic() - sent < 20
    assert len(err.splitlines()) == 1 and "interrupted" in err and out == ""
    assert everything_below(tmp_path) == ["song.wav"]
