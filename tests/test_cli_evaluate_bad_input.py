"""The command `umx-ext evaluate` on what it cannot do: one line that names the path and a remedy, the documented exit
code, every other song scored, nothing finished lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import soundfile

from tests.corpus import RATE, estimates_of, make_corpus, make_model, make_song, wave
from umx_ext import cli

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("umx-ext:")]


Run = Callable[..., Answer]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    return make_corpus(root, ("Ann - One", "Bob - Two", "Cee - Three"), channels=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Call the command in this process, in an empty folder. What libraries write to the descriptors counts too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UMX_EXT_OFFLINE", "1")
    monkeypatch.setenv("UMX_EXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UMX_EXT_DEVICE", raising=False)

    def call(*words: object) -> Answer:
        capfd.readouterr()
        code = cli.main(["evaluate", *map(str, words)])
        captured = capfd.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


def process(*words: object, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "umx_ext", "evaluate", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "UMX_EXT_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, as a terminal gives to each command
    )


def expect_one_line(answer: Answer, code: int, *phrases: str) -> None:
    assert answer.code == code, answer
    assert len(answer.err.splitlines()) == 1 and len(answer.errors) == 1, answer.err
    for phrase in phrases:
        assert phrase in answer.err, answer.err
    assert answer.out == ""


# --------------------------------------------------------------------------------------------- the call makes no sense


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        ([], "--root names the folder of the corpus"),
        (["--root", "CORPUS", "--metrics", "PESQ"], "no metric named PESQ; known: SDR, ISR"),
        (["--root", "CORPUS", "--metrics", ""], "no metric"),
        (["--root", "CORPUS", "--baselines", "PRM"], "no baseline named PRM; known: mixture/2"),
        (["--root", "CORPUS", "--subset", "dev"], "--subset"),
        (["--root", "CORPUS", "--subset", "train"], "not parted into subsets"),
        (["--root", "CORPUS", "--shard", "0/2"], "--shard takes I/N"),
        (["--root", "CORPUS", "-j", "0"], "-j takes 1 or more"),
        (["--root", "CORPUS", "-j", "2", "--dask", "tcp://x:1"], "leave out -j"),
        (["--root", "CORPUS", "-q", "-v"], "contradict"),
        (["--root", "CORPUS", "--plot", "tracks.bmp"], "--plot takes a file ending in .png"),
        (["--root", "CORPUS", "--tracks", "Zoe*"], "Zoe*"),
        (["--root", "CORPUS", "--engine", "matlab"], "--engine"),
        (["--root", "CORPUS", "--if-exists", "error"], "--if-exists"),
        (["--root", "CORPUS", "--compare", "nowhere"], "nowhere: no such folder of scores"),
        (["--root", "CORPUS", "--model", "MODEL", "--model", "MODEL"], "two models would both be called tiny"),
        (["--root", "CORPUS", "-d", "cuda:77", "--model", "MODEL"], "cuda:77"),
        (["--root", "CORPUS", "--flac"], "--flac"),
        (["merge", "--evaldir", "all"], "EVALDIR"),
        (["merge", "part"], "--evaldir"),
        (["merge", "part", "--evaldir", "all"], "part: no such folder of scores"),
        (["--compare", "."], "holds no scores"),
    ],
    ids=str,
)
def test_a_call_that_makes_no_sense_is_one_line_and_code_2(
    run: Run, corpus: Path, model: str, words: list[str], phrase: str
) -> None:
    places = {"CORPUS": str(corpus), "MODEL": model}
    words = [places.get(word, word) for word in words]
    expect_one_line(run(*words), 2, phrase)


def test_a_root_that_is_no_corpus_is_one_line(run: Run, tmp_path: Path, model: str) -> None:
    expect_one_line(run("--root", "nowhere"), 2, "nowhere")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "cat.png").write_bytes(b"miaow")
    expect_one_line(run("--root", "pictures"), 4, "pictures", "expected MUSDB18", "cat.png")


def test_a_model_that_is_none_is_code_3(run: Run, corpus: Path) -> None:
    expect_one_line(run("--root", corpus, "-n", "umxxl"), 3, "no model named 'umxxl'")
    expect_one_line(run("--root", corpus, "-n", "nothing.safetensors"), 3, "nothing.safetensors")
    expect_one_line(run("--root", corpus, "-n", "umxhq"), 3, "UMX_EXT_OFFLINE")


def test_estimates_of_nothing_are_code_4(run: Run, corpus: Path, tmp_path: Path) -> None:
    expect_one_line(run("--root", corpus, "--estimates", "nowhere"), 4, "nowhere: no such folder of estimates")
    (tmp_path / "empty").mkdir()
    expect_one_line(run("--root", corpus, "--estimates", "empty"), 4, "estimates of none of the 3 songs", "<stem>.wav")


def test_scores_that_cannot_be_written_are_code_6(run: Run, corpus: Path, model: str, tmp_path: Path) -> None:
    (tmp_path / "scores").write_text("in the way")
    answer = run("--root", corpus, "-n", model, "--metrics", "SDR", "-q")
    expect_one_line(answer, 6, "cannot be written")


def test_a_picture_without_matplotlib_is_refused_before_the_work(
    run: Run, corpus: Path, model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    expect_one_line(run("--root", corpus, "-n", model, "--plot", "a.png"), 2, "pip install")
    assert not list(tmp_path.iterdir())


def test_dask_that_is_not_installed_is_one_line(
    run: Run, corpus: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    expect_one_line(run("--root", corpus, "-n", model, "--dask", "tcp://127.0.0.1:1"), 2, "pip install '.[dask]'")


# ------------------------------------------------------------------------------------------------------ some songs fail


def test_what_is_wrong_with_some_songs_is_said_and_the_others_are_scored(
    run: Run, corpus: Path, tmp_path: Path
) -> None:
    mine = estimates_of(corpus, tmp_path / "mine")
    soundfile.write(mine / "Ann - One" / "vocals.wav", wave(1), RATE)
    (mine / "Cee - Three").rename(mine / "Cee - There")
    file = mine / "Bob - Two" / "vocals.wav"
    soundfile.write(file, soundfile.read(file)[0][:-100], RATE)
    answer = run("--root", corpus, "--estimates", mine, "--metrics", "SDR")
    assert answer.code == 1
    assert len(answer.errors) == 4, answer.err
    for phrase in (
        "vocals.wav has 1 channel (mono), its reference 2",
        "has no estimates of Cee - Three",
        "no known song; did you mean Cee - Three?",
        "3 tracks failed, all else is scored: ",
    ):
        assert sum(phrase in line for line in answer.errors) == 1, (phrase, answer.err)
    assert all(name in answer.errors[-1] for name in ("Ann - One", "Cee - Three", "Cee - There"))
    assert "Bob - Two: the estimate of vocals is 100 samples shorter than its reference: padded" in answer.err
    assert "mine" in answer.out and (tmp_path / "scores" / "mine" / "test" / "Bob - Two.json").is_file()


def test_where_every_song_fails_alike_the_code_is_theirs(run: Run, tmp_path: Path, model: str) -> None:
    make_song(tmp_path / "root" / "song", 1)
    (tmp_path / "root" / "song" / "bass.wav").write_text("la la la")
    answer = run("--root", "root", "-n", model, "--metrics", "SDR", "-q")
    expect_one_line(answer, 4, "bass.wav")


def test_a_song_that_lacks_a_stem_is_named(run: Run, tmp_path: Path, model: str) -> None:
    make_corpus(tmp_path / "root")
    (tmp_path / "root" / "Ann - One" / "bass.wav").unlink()
    answer = run("--root", "root", "-n", model, "--metrics", "SDR", "--json")
    assert answer.code == 1 and "bass" in answer.errors[0] and "Ann - One" in answer.errors[0]
    records = [json.loads(line) for line in answer.out.splitlines()]
    (failed,) = [record for record in records if record["status"] == "failed"]
    assert failed["track"] == "Ann - One" and failed["system"] is None and failed["exit_code"] == 4


def test_a_damaged_score_file_is_scored_again(run: Run, corpus: Path, model: str, tmp_path: Path) -> None:
    words = ("--root", corpus, "-n", model, "--metrics", "SDR", "--table", "csv")
    first = run(*words)
    damaged = tmp_path / "scores" / "tiny" / "test" / "Bob - Two.json"
    whole = damaged.read_text()
    damaged.write_text(whole[:100])
    assert run(*words).out == first.out and damaged.read_text() == whole
    damaged.write_text(whole[:100])
    expect_one_line(run("--compare", "scores"), 2, "Bob - Two.json holds no scores in museval's format")


# -------------------------------------------------------------------------------------------------------- it is stopped


def scores_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.json"))


def wait_for(condition: Callable[[], object], running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert running.poll() is None and time.monotonic() < deadline, running.communicate()
        time.sleep(0.002)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc, which this system has not")
def test_an_interrupt_that_reaches_workers_while_they_import_is_left_to_the_first_process(
    tmp_path: Path, model: str
) -> None:
    make_corpus(tmp_path / "root", ("Ann - One", "Bob - Two"), ("vocals", "accompaniment"))
    running = process("--root", "root", "-n", model, "--metrics", "SDR", "-j", 2, cwd=tmp_path)
    wait_for(lambda: len(children_of(running.pid)) >= 2, running)
    for _ in range(20):  # over a second of their imports
        for worker in children_of(running.pid):
            os.kill(worker, signal.SIGINT)
        time.sleep(0.05)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    assert "Traceback" not in out + err and "died" not in err
    assert len(scores_in(tmp_path)) == 6


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc, which this system has not")
@pytest.mark.parametrize(
    ("number", "jobs"),
    [(signal.SIGTERM, 1), (signal.SIGINT, 2), (signal.SIGKILL, 2)],
    ids=["SIGTERM", "Ctrl-C in a terminal, which goes to the workers too", "SIGKILL"],
)
def test_a_run_that_is_stopped_leaves_whole_files_and_no_process_and_goes_on(
    tmp_path: Path, model: str, number: signal.Signals, jobs: int
) -> None:
    names = [f"Song {index:02}" for index in range(12)]
    make_corpus(tmp_path / "root", names, ("vocals", "accompaniment"))
    words = ("--root", "root", "-n", model, "--metrics", "SDR,SIR", "-j", jobs)
    running = process(*words, cwd=tmp_path)
    wait_for(lambda: len(scores_in(tmp_path)) > 1, running)
    workers = children_of(running.pid)
    assert (len(workers) >= jobs) == (jobs > 1)
    if number == signal.SIGINT:
        os.killpg(running.pid, number)
    else:
        running.send_signal(number)
    sent = time.monotonic()
    out, err = running.communicate(timeout=60)
    assert time.monotonic() - sent < 20
    if number == signal.SIGKILL:
        assert running.returncode == -9
    else:
        assert running.returncode == 130, err
        assert "interrupted" in err.splitlines()[-1] and out == "" and "Traceback" not in err
    deadline = time.monotonic() + 20
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.05)
    kept = scores_in(tmp_path)
    assert 1 < len(kept) < 36
    for path in kept:
        json.loads(path.read_text())
    if number == signal.SIGTERM:
        before = {path: path.stat().st_mtime_ns for path in kept}
        again = process(*words, cwd=tmp_path)
        _, err = again.communicate(timeout=120)
        assert again.returncode == 0, err
        assert len(scores_in(tmp_path)) == 36 and before == {path: path.stat().st_mtime_ns for path in kept}
