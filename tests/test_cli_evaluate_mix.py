"""The command `umx-ext evaluate-mix`."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from umx_ext import audio, cli
from umx_ext.commands import evaluate_mix
from umx_ext.mixing.features import DISCLAIMER, compare

RATE = 44100
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Exit code, standard output and standard error of a call."""
    monkeypatch.setattr(cli, "_dispatch", lambda tokens: cli._parse_and_run(evaluate_mix.app, tokens))

    def call(*tokens: object) -> tuple[int, str, str]:
        code = cli.main([str(token) for token in tokens])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def noise(seconds: float = 2.0, seed: int = 0, rate: int = RATE, channels: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(channels, round(seconds * rate), generator=generator)


def write(path: Path, waveform: torch.Tensor, rate: int = RATE) -> Path:
    audio.write(path, waveform, rate, bits="32f")
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "mine.wav", noise(seed=1)), write(tmp_path / "theirs.wav", noise())


def test_it_says_how_far_and_that_far_is_not_bad(run, files):
    code, out, err = run(*files)
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].split() == ["group", "feature", "mix", "reference", "difference"]
    assert {line.split()[0] for line in lines[1:21]} >= {"loudness", "spectral", "panning", "dynamics"}
    assert lines[-1] == DISCLAIMER


@pytest.mark.parametrize("mode", ["strict", "compat"])
@pytest.mark.parametrize("how", [("--json",), ("--table", "json"), ("--json", "--table", "json")])
def test_json_is_one_line_of_what_the_library_finds(run, files, mode, how):
    code, out, _ = run(*files, "--mode", mode, *how)
    record: dict[str, Any] = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    assert (record.pop("mix"), record.pop("reference")) == tuple(map(str, files))
    assert record == json.loads(json.dumps(compare(noise(seed=1), noise(), RATE, mode).to_dict()))


def test_csv_is_figures_alone_and_the_words_go_to_standard_error(run, files):
    code, out, err = run(*files, "--table", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and len(rows) == 21 and all(math.isfinite(float(row["error"])) for row in rows)
    assert DISCLAIMER in err


def test_markdown_is_a_table(run, files):
    _, out, _ = run(*files, "--table", "md")
    assert out.splitlines()[1] == "| --- | --- | ---: | ---: | ---: |"
    assert out.endswith(DISCLAIMER + "\n")


def test_a_mix_of_another_rate_is_resampled_to_the_references_and_the_report_says_so(run, tmp_path):
    t48, t44 = (torch.arange(2 * rate) / rate for rate in (48000, RATE))
    mix = write(tmp_path / "48.wav", torch.sin(2 * math.pi * 440 * t48)[None] * 0.3, 48000)
    reference = write(tmp_path / "44.wav", torch.sin(2 * math.pi * 440 * t44)[None] * 0.3)
    _, out, _ = run(mix, reference, "--json")
    record = json.loads(out)
    assert record["sample_rate"] == RATE
    assert record["notes"] == [
        "The mix was resampled from 48000 to 44100 Hz, the rate of the reference.",
        "The mix is mono: taken as the same sound in both channels.",
        "The reference is mono: taken as the same sound in both channels.",
    ]
    assert record["groups"]["loudness"]["members"]["lufs"]["error"] < 0.01
    assert record["groups"]["spectral"]["members"]["centroid"]["error"] < 0.02


def test_lengths_that_differ_are_noted(run, tmp_path, files):
    code, out, _ = run(write(tmp_path / "short.wav", noise(1.5)), files[1])
    assert code == 0 and "The mix ends 0.50 s before the reference does: compared as far as it goes." in out


def test_real_songs_of_any_format_are_read(run, data):
    song = data / "songs" / "example_stereo.mp3"
    code, out, _ = run(song, song, "--json")
    assert code == 0 and json.loads(out)["mean_db"] == 0


def refused(answer: tuple[int, str, str], code: int, sentence: str) -> None:
    found, out, err = answer
    assert (found, out) == (code, "") and sentence in err and err.count("\n") == 1, answer


def test_bad_files_are_one_sentence_and_exit_code_4(run, tmp_path, files):
    mine, theirs = files
    refused(run(tmp_path / "none.wav", theirs), 4, "none.wav")
    (tmp_path / "text.wav").write_text("no sound at all")
    refused(run(mine, tmp_path / "text.wav"), 4, "text.wav")
    refused(run(write(tmp_path / "silent.wav", torch.zeros(2, RATE)), theirs), 4, "the mix is silent")
    refused(run(mine, write(tmp_path / "zero.wav", torch.zeros(2, RATE))), 4, "the reference is silent")
    refused(run(write(tmp_path / "brief.wav", noise(0.1)), theirs), 4, "at least 0.400 s are needed")
    refused(run(mine, write(tmp_path / "three.wav", noise(channels=3))), 4, "three.wav has 3 channels; give a mono or")
    refused(run(mine, write(tmp_path / "phone.wav", noise(rate=6000), 6000)), 4, "the reference has 6000 Hz")
    broken = noise()
    broken[0, 1000] = math.nan
    soundfile.write(tmp_path / "nan.wav", broken.T.numpy(), RATE, subtype="FLOAT")
    refused(run(tmp_path / "nan.wav", theirs), 4, "nan.wav holds nan at sample 1000")


def test_a_call_without_sense_is_exit_code_2(run, files):
    refused(run(*files, "--mode", "loose"), 2, "loose")
    refused(run(*files, "--table", "html"), 2, "html")
    refused(run(*files, "--json", "--table", "md"), 2, "--json and --table md contradict each other")
    refused(run(files[0]), 2, "see umx-ext evaluate-mix --help")


def test_help_shows_examples_first(run):
    code, out, _ = run("--help")
    assert code == 0 and "umx-ext evaluate-mix mine.wav original.wav" in out and "--mode" in out
