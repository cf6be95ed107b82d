"""The command `umx-ext evaluate` on input that is as it should be."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.corpus import FOUR, TWO, estimates_of, make_corpus, make_model
from tests.peers import import_peer
from umx_ext import cli
from umx_ext.commands.evaluate_arguments import Arguments
from umx_ext.evaluation.oracles import BASELINES
from umx_ext.evaluation.scores import METRICS


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Answer]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UMX_EXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UMX_EXT_OFFLINE", "1")
    monkeypatch.delenv("UMX_EXT_DEVICE", raising=False)

    def call(*words: object) -> Answer:
        capsys.readouterr()
        code = cli.main(["evaluate", *map(str, words)])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


def figures(text: str) -> dict[tuple[str, str, str], float]:
    """(system, target, metric) -> median, of the table as CSV."""
    return {
        (row["system"], row["target"], row["metric"]): float(row["median"])
        for row in csv.DictReader(io.StringIO(text))
        if row["source"] == "scored"
    }


# ---------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("words", [[], ["merge"]])
def test_help_begins_with_an_example(run: Run, words: list[str]) -> None:
    answer = run(*words, "--help")
    assert answer.code == 0 and answer.out.startswith("umx-ext evaluate ")


def test_help_names_every_metric_baseline_and_option(run: Run) -> None:
    text = " ".join(run("--help").out.replace("│", " ").split())
    for word in (*METRICS, *BASELINES):
        assert word in text
    for field in Arguments.__dataclass_fields__:
        assert f"--{field.replace('_', '-')}" in text


def test_the_commands_defaults_are_the_librarys() -> None:
    assert tuple(Arguments().metrics.split(",")) == METRICS


# --------------------------------------------------------------------------------------------------------- the results


def test_a_model_is_scored_beside_rows_that_calibrate(run: Run, corpus: Path, model: str, tmp_path: Path) -> None:
    answer = run("--root", corpus, "-n", model)
    assert answer.code == 0
    for word in ("tiny", "mixture/2", "MWF", "vocals", "accompaniment", *METRICS):
        assert word in answer.out, word
    lines = answer.err.splitlines()
    assert lines[0].startswith("1/2 Ann - One: tiny SDR vocals ") and lines[1].startswith("2/2 Bob - Two: tiny")
    assert lines[-1].startswith("time: read ") and "separate " in lines[-1] and "score " in lines[-1]
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == ["MWF", "mixture-2", "tiny"]
    again = run("--root", corpus, "-n", model)
    assert again.code == 0 and again.out == answer.out
    assert "6 scores were there already in scores; --if-exists overwrite makes them again" in again.err


def test_the_table_comes_as_markdown_csv_or_json_with_the_same_figures(run: Run, corpus: Path, model: str) -> None:
    words = ("--root", corpus, "-n", model, "--metrics", "SDR")
    by_csv = figures(run(*words, "--table", "csv").out)
    table = json.loads(run(*words, "--table", "json").out)
    by_json = {tuple(row[:3]): row[3] for row in table["rows"]}
    assert by_csv == by_json and len(by_csv) == 3 * 2
    markdown = run(*words).out
    for value in by_csv.values():
        assert f" {value:.2f} " in markdown


def test_quiet_is_the_table_alone(run: Run, corpus: Path, model: str) -> None:
    words = ("--root", corpus, "-n", model, "--metrics", "sdr")
    loud, quiet = run(*words), run(*words, "-q")
    assert quiet.out == loud.out and loud.err and quiet.err == ""


def test_the_record_of_each_song_and_of_the_table(run: Run, corpus: Path, model: str) -> None:
    answer = run("--root", corpus, "-n", model, "--metrics", "SDR,SI-SDR", "--json")
    *songs, table = answer.records
    assert len(songs) == 2 * 3 and {song["status"] for song in songs} == {"scored"}
    first = songs[0]
    assert (first["track"], first["system"]) == ("Ann - One", "tiny")
    assert first["medians"].keys() == set(TWO) and first["medians"]["vocals"].keys() == {"SDR", "SI-SDR"}
    assert table["status"] == "table" and table["columns"][:3] == ["system", "target", "metric"]
    again = run("--root", corpus, "-n", model, "--metrics", "SDR", "--json").records
    assert {song["status"] for song in again[:-1]} == {"kept"}


def test_models_and_estimates_may_be_several(run: Run, corpus: Path, model: str, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other.safetensors", seed=2)
    mine = estimates_of(corpus, tmp_path / "mine")
    yours = estimates_of(corpus, tmp_path / "yours", error=0.6)
    words = ("--root", corpus, "-n", model, "--model", other, "--estimates", mine, "--estimates", yours)
    answer = run(*words, "--metrics", "SDR", "--table", "csv")
    assert answer.code == 0
    medians = figures(answer.out)
    assert {key[0] for key in medians} == {"tiny", "other", "mine", "yours", "mixture/2", "MWF"}
    assert medians["mine", "vocals", "SDR"] > medians["yours", "vocals", "SDR"]


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (["--baselines"], list(BASELINES)),
        (["--baselines", "-j", "1"], list(BASELINES)),
        (["--baselines", "IRM1,mixture/4"], ["mixture/2", "mixture/4", "IRM1", "MWF"]),
        (["--baselines=ibm"], ["mixture/2", "IBM", "MWF"]),
    ],
    ids=str,
)
def test_baselines_are_all_or_some(run: Run, corpus: Path, tmp_path: Path, words: list[str], rows: list[str]) -> None:
    import_peer("norbert")
    mine = estimates_of(corpus, tmp_path / "mine", FOUR)
    answer = run("--root", corpus, "--estimates", mine, "--metrics", "SDR", "--table", "csv", *words)
    assert answer.code == 0, answer.err
    assert list(dict.fromkeys(key[0] for key in figures(answer.out))) == ["mine", *rows]


def test_tracks_and_shards_choose_songs_and_merge_brings_them_together(run: Run, corpus: Path, tmp_path: Path) -> None:
    mine = estimates_of(corpus, tmp_path / "mine")
    words = ("--root", corpus, "--estimates", mine, "--metrics", "SDR,uSDR")
    whole = run(*words, "--table", "csv")
    only = run(*words, "--tracks", "B*", "--evaldir", "only")
    assert [path.stem for path in (tmp_path / "only" / "mine" / "test").iterdir()] == ["Bob - Two"] and only.code == 0
    for which in (1, 2):
        assert run(*words, "--shard", f"{which}/2", "--evaldir", f"part{which}").code == 0
    merged = run("merge", "part1", "part2", "--evaldir", "all", "--table", "csv")
    assert merged.code == 0 and merged.out == whole.out
    assert merged.err.startswith("all: mine 2 songs")
    assert run("merge", "part1", "part2", "--evaldir", "all", "-q").err == ""
    nothing = run(*words, "--shard", "5/5", "--evaldir", "none")
    assert nothing.code == 0 and nothing.out == "" and "no song" in nothing.err


def test_other_scores_stand_beside_this_runs(run: Run, corpus: Path, model: str, tmp_path: Path) -> None:
    mine = estimates_of(corpus, tmp_path / "mine")
    first = run("--root", corpus, "--estimates", mine, "--metrics", "SDR", "--evaldir", "old", "--table", "csv")
    words = ("--root", corpus, "-n", model, "--metrics", "SDR", "--table", "csv")
    for compared in (["--compare", "old"], ["--compare", "old/mine"], ["--compare", "old/MWF", "old/mine"]):
        answer = run(*words, *compared)
        assert list(dict.fromkeys(key[0] for key in figures(answer.out))) == ["tiny", "mine", "mixture/2", "MWF"]
        assert figures(answer.out)["mine", "vocals", "SDR"] == figures(first.out)["mine", "vocals", "SDR"]
    alone = run("--compare", "old", "scores/tiny", "--table", "csv")
    assert alone.code == 0 and not alone.err
    assert list(dict.fromkeys(key[0] for key in figures(alone.out))) == ["mine", "tiny", "mixture/2", "MWF"]


def test_scores_of_a_run_of_the_same_name_are_kept_apart(run: Run, corpus: Path, tmp_path: Path) -> None:
    mine = estimates_of(corpus, tmp_path / "mine")
    worse = estimates_of(corpus, tmp_path / "worse" / "mine", error=0.9)
    run("--root", corpus, "--estimates", worse, "--metrics", "SDR", "--evaldir", "old")
    answer = run("--root", corpus, "--estimates", mine, "--metrics", "SDR", "--compare", "old", "--table", "csv")
    systems = list(dict.fromkeys(key[0] for key in figures(answer.out)))
    assert systems == ["mine", "mine (compared)", "mixture/2", "MWF"]
    assert figures(answer.out)["mine", "vocals", "SDR"] > figures(answer.out)["mine (compared)", "vocals", "SDR"]


def test_the_picture_is_a_file(run: Run, corpus: Path, model: str, tmp_path: Path) -> None:
    import_peer("matplotlib")
    answer = run("--root", corpus, "-n", model, "--metrics", "SDR", "--plot", "out/tracks.png")
    assert answer.code == 0 and "picture: out/tracks.png" in answer.err
    assert (tmp_path / "out" / "tracks.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_done_to_estimates_is_said_once_with_the_songs(run: Run, corpus: Path, tmp_path: Path) -> None:
    mine = estimates_of(corpus, tmp_path / "mine", ("vocals",))
    answer = run("--root", corpus, "--estimates", mine)
    said = [line for line in answer.err.splitlines() if "need two estimates" in line]
    assert said == [
        "Ann - One, Bob - Two: ISR, SIR and SAR need two estimates and there is only vocals: they are left out, "
        "SDR stands"
    ]
    assert answer.code == 0


def test_several_processes_are_said_in_the_times(run: Run, corpus: Path, model: str) -> None:
    answer = run("--root", corpus, "-n", model, "--metrics", "SDR", "-j", "2")
    assert answer.code == 0 and "time in all processes together: read " in answer.err


def test_a_real_song_is_scored_with_the_model_that_is_built_in(run: Run, data: Path, tmp_path: Path) -> None:
    answer = run("--root", data / "musdb18-7", "--tracks", "Al*", "--metrics", "SDR", "--baselines")
    assert answer.code == 0, answer.err
    assert "SiSEC" in answer.out and "not comparable" in answer.out
    assert (tmp_path / "scores" / "umx_ext" / "test" / "Al James - Schoolboy Facination.json").is_file()
