"""The command `umx-ext` on input that is as it should be."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pty
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from umx_ext import __version__, audio, cli
from umx_ext.commands.arguments import Arguments
from umx_ext.separation import dense, pretrained
from umx_ext.separation.config import Config
from umx_ext.separation.separator import Options, Separator

ROOT = Path(__file__).resolve().parent.parent
RATE = 44100


@dataclasses.dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Answer]


def small_model(folder: Path, stems: tuple[str, ...]) -> Path:
    """Random weights, a mask near one half."""
    torch.manual_seed(1)
    config = Config(stems=stems, hidden=16, layers=1, n_fft=1024, hop=256, mask="sigmoid")
    path = folder / f"{'four' if len(stems) > 1 else 'tiny'}.safetensors"
    pretrained.save(Separator(config), path, metadata={"license": "none"})
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_model(tmp_path_factory.mktemp("model"), ("vocals",)))


@pytest.fixture(scope="session")
def model_of_four(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_model(tmp_path_factory.mktemp("four"), ("vocals", "drums", "bass", "other")))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command in this process, in an empty folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UMX_EXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UMX_EXT_OFFLINE", "1")
    monkeypatch.delenv("UMX_EXT_DEVICE", raising=False)

    def call(*words: str) -> Answer:
        capsys.readouterr()
        code = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


def song(
    path: Path, seconds: float = 1.5, *, rate: int = RATE, channels: int = 2, peak: float = 0.5, **how: Any
) -> Path:
    """A file with a chord and noise; on the 16-bit grid, so that a lossless file holds exactly this."""
    generator = np.random.default_rng(7)
    time_s = np.arange(round(seconds * rate))[:, None] / rate
    wave = np.sin(2 * np.pi * (220 * (1 + np.arange(channels))) * time_s) + 0.3 * generator.standard_normal(
        (len(time_s), channels)
    )
    wave = np.round(wave / np.abs(wave).max() * peak * 32768) / 32768
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, **how)
    return path


def stored(path: Path | str) -> np.ndarray:
    """What stands in the file, (samples, channels)."""
    return soundfile.read(path, dtype="float64", always_2d=True)[0]


def integers(path: Path | str) -> np.ndarray:
    """What stands in the file, left-justified in 32 bits."""
    return soundfile.read(path, dtype="int32", always_2d=True)[0].astype(np.int64)


# ------------------------------------------------------------------------------------------------ help


def in_a_process(*words: str, **how: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **how.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "umx_ext", *words], env=environment, capture_output=True, text=True, **how
    )


def test_help_answers_in_a_quarter_of_a_second() -> None:
    # Processor time, so that a machine that is busy with something else does not fail the test.
    times = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert in_a_process("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) <= 0.25, times


@pytest.mark.parametrize("words", [["--help"], ["--version"], []])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    heavy = "torch numpy soundfile av soxr safetensors rich cyclopts matplotlib"
    program = (
        f"import sys; from umx_ext.cli import main; code = main({words!r}); "
        f"loaded = [name for name in '{heavy}'.split() if name in sys.modules]; "
        "sys.exit(str(loaded) if loaded or code else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_commands_help_imports_no_torch() -> None:
    program = "import sys; from umx_ext.cli import main; main(['separate', '--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.returncode == 0


def test_version_is_the_packages(run: Run) -> None:
    assert run("--version") == Answer(0, f"umx-ext {__version__}\n", "")


def test_the_overview_begins_with_an_example_and_names_every_command(run: Run) -> None:
    answer = run("--help")
    assert answer.out.startswith("umx-ext separate ")
    assert all(re.search(rf"^  {name} +\w", answer.out, re.MULTILINE) for name in cli.COMMANDS)
    assert all(name in answer.out for name in ("UMX_EXT_DEVICE", "UMX_EXT_CACHE", "UMX_EXT_OFFLINE", "NO_COLOR", "130"))
    assert run().out == answer.out


HELPS = [
    ["separate"],
    ["doctor"],
    ["models"],
    *(["models", name] for name in ("list", "show", "pull", "path", "verify", "export")),
]


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_help_of_a_command_begins_with_an_example(run: Run, words: list[str]) -> None:
    answer = run(*words, "--help")
    assert answer.code == 0
    assert answer.out.startswith(f"umx-ext {' '.join(words)}")
    assert answer.err == ""


def flat(text: str) -> str:
    """Help without its boxes and line breaks."""
    return " ".join(re.sub(r"[─-╿]", " ", text).split())


def test_help_of_separate_has_units_and_the_defaults_that_are_used(run: Run) -> None:
    says = flat(run("separate", "--help").out)
    options = Options()
    for phrase in (
        f"Work in blocks of this many seconds; shorter needs less memory [default: {options.segment_s:g}]",
        f"Seconds heard on both sides of a block and discarded [default: {options.overlap_s:g}]",
        "0 is the plain mask [default: what suits the model]",
        f"spectrogram frames. [default: {options.wiener_win_len}]",
        "this many dB down",
        "Kilobits a second",
        f"{', '.join(list(audio.FORMATS)[:-1])} or {list(audio.FORMATS)[-1]} [default: wav]",
    ):
        assert phrase in says, phrase


def test_every_option_of_the_arguments_is_in_the_help(run: Run) -> None:
    says = run("separate", "--help").out
    for field in dataclasses.fields(Arguments):
        assert f"--{field.name.replace('_', '-')}" in says


def test_the_commands_defaults_are_the_librarys() -> None:
    arguments, options = Arguments(), Options()
    assert (arguments.niter, arguments.wiener_win_len) == (options.niter, options.wiener_win_len)
    assert arguments.accompaniment == options.accompaniment


# ------------------------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize("bits, subtype", [(16, "PCM_16"), (24, "PCM_24")])
@pytest.mark.parametrize("ext", ["wav", "flac"])
def test_the_stems_add_up_to_the_song_to_the_last_bit(
    run: Run, tmp_path: Path, model: str, bits: int, subtype: str, ext: str
) -> None:
    given = song(tmp_path / f"song.{ext}", subtype=subtype)
    answer = run("separate", given, "-n", model, "--format", ext)
    assert (answer.code, answer.err) == (0, "")
    folder = tmp_path / "separated" / "tiny" / "song"
    assert sorted(path.name for path in folder.iterdir()) == [f"accompaniment.{ext}", f"vocals.{ext}"]
    vocals, rest = integers(folder / f"vocals.{ext}"), integers(folder / f"accompaniment.{ext}")
    assert np.abs(vocals).max() > 1 << 26
    np.testing.assert_array_equal(vocals + rest, integers(given))
    assert soundfile.info(folder / f"vocals.{ext}").subtype == subtype  # the input's bits


def test_float_input_gives_float_files(run: Run, tmp_path: Path, model: str) -> None:
    given = song(tmp_path / "song.wav", subtype="FLOAT", peak=2.5)
    assert run("separate", given, "-n", model).code == 0
    folder = tmp_path / "separated" / "tiny" / "song"
    assert soundfile.info(folder / "vocals.wav").subtype == "FLOAT"
    np.testing.assert_allclose(
        stored(folder / "vocals.wav") + stored(folder / "accompaniment.wav"), stored(given), atol=1e-6
    )


@pytest.mark.parametrize("exact", [False, True])
def test_the_files_hold_what_the_library_separates(run: Run, tmp_path: Path, model: str, exact: bool) -> None:
    given, how = song(tmp_path / "song.wav"), ["--exact"] if exact else []
    how += ["--niter", "2", "--wiener-win-len", "100", "--no-split"]
    run("separate", given, "-n", model, "-d", "cpu", "--float32", *how)
    waveform, rate = audio.read(given)
    options = Options(niter=2, wiener_win_len=100, split=False, fast=not exact)
    stems = pretrained.load(model).separate(waveform, rate, options)
    for stem, expected in stems.items():
        written = stored(tmp_path / "separated" / "tiny" / "song" / f"{stem}.wav")
        np.testing.assert_allclose(written.T, expected.numpy(), atol=1e-6)


def test_the_command_is_fast_by_default_and_near_what_is_exact(run: Run, tmp_path: Path, model: str) -> None:
    given = song(tmp_path / "song.wav")
    for folder, how in (("fast", []), ("exact", ["--exact"])):
        assert run("separate", given, "-n", model, "-d", "cpu", "--float32", "-o", folder, *how).code == 0
    fast, exact = (stored(next(tmp_path.glob(f"{folder}/**/vocals.wav"))) for folder in ("fast", "exact"))
    apart = np.sqrt(np.mean((fast - exact) ** 2)) / np.sqrt(np.mean(stored(given) ** 2))
    assert apart < 10 ** (-50 / 20)
    assert (apart > 1e-6) == dense.compiled()


def test_what_would_clip_is_made_quieter_by_one_gain_that_is_reported(run: Run, tmp_path: Path, model: str) -> None:
    given = song(tmp_path / "song.wav", subtype="FLOAT", peak=3.0)
    loud = run("separate", given, "-n", model, "--float32", "-o", "float", "--json").records[0]
    peak = max(np.abs(stored(path)).max() for path in loud["outputs"].values())
    assert peak > 1 and loud["gain_db"] == 0

    safe = run("separate", given, "-n", model, "--bits", "16", "-o", "safe", "--json").records[0]
    gain = (1 - 2**-15) / peak
    assert safe["gain_db"] == pytest.approx(20 * math.log10(gain), abs=1e-3)
    parts = [stored(path) for path in safe["outputs"].values()]
    assert max(np.abs(part).max() for part in parts) <= 1
    # The sum is one rounding away from the scaled song.
    np.testing.assert_allclose(sum(parts), gain * stored(given), atol=1.01 * 2**-15)
    line = run("separate", given, "-n", model, "--bits", "16", "-o", "again").out
    assert f"{-20 * math.log10(gain):.2f} dB quieter" in line


def test_the_second_pass_writes_what_the_first_would_have_scaled(run: Run, tmp_path: Path, model: str) -> None:
    given = song(tmp_path / "song.wav", 2.0, rate=22050, subtype="FLOAT", peak=3.0)
    common = ("-n", model, "--rate", "16000", "--channels", "1", "--json")
    loud = run("separate", given, *common, "--float32", "-o", "float").records[0]
    safe = run("separate", given, *common, "--bits", "24", "-o", "safe").records[0]
    gain = 10 ** (safe["gain_db"] / 20)
    assert safe["gain_db"] < -1
    for stem in ("vocals", "accompaniment"):
        np.testing.assert_allclose(
            stored(safe["outputs"][stem]), gain * stored(loud["outputs"][stem]), atol=1e-4 * gain * 3
        )


@pytest.mark.parametrize("mode, bits", [("clamp", "16"), ("none", "16"), ("clamp", "32f")])
def test_clip_modes_without_a_gain_cut_at_full_scale(
    run: Run, tmp_path: Path, model: str, mode: str, bits: str
) -> None:
    given = song(tmp_path / "song.wav", subtype="FLOAT", peak=3.0)
    record = run("separate", given, "-n", model, "--bits", bits, "--clip-mode", mode, "--json").records[0]
    assert record["gain_db"] == 0
    peaks = [np.abs(stored(path)).max() for path in record["outputs"].values()]
    assert max(peaks) == pytest.approx(1, abs=1e-4)


def test_karaoke_is_one_file_beside_the_song_with_its_title(run: Run, tmp_path: Path, model: str) -> None:
    given = tmp_path / "music" / "song.flac"
    song(given)
    tags = {"title": "The Song", "artist": "Some One"}
    waveform, rate = audio.read(given)
    audio.write(given, waveform, rate, tags=tags)
    answer = run("separate", "--karaoke", given, "-n", model, "--mp3")
    assert (answer.code, answer.err) == (0, "")
    assert sorted(path.name for path in given.parent.iterdir()) == ["song.flac", "song.karaoke.mp3"]
    made = audio.probe(given.parent / "song.karaoke.mp3")
    assert {name: made.tags[name] for name in tags} == tags
    assert made.samples == waveform.shape[-1]


def test_a_guide_leaves_the_voice_that_many_db_down(run: Run, tmp_path: Path, model: str) -> None:
    given = song(tmp_path / "song.wav")
    run("separate", given, "-n", model, "--float32")
    run("separate", given, "-n", model, "--float32", "--karaoke", "--guide-db", "12", "-o", "guided")
    vocals = stored(tmp_path / "separated" / "tiny" / "song" / "vocals.wav")
    rest = stored(tmp_path / "separated" / "tiny" / "song" / "accompaniment.wav")
    np.testing.assert_allclose(
        stored(tmp_path / "guided" / "song.karaoke.wav"), rest + 10 ** (-12 / 20) * vocals, atol=1e-6
    )


def test_a_model_of_four_stems_gives_four_that_add_up(run: Run, tmp_path: Path, model_of_four: str) -> None:
    given = song(tmp_path / "song.wav")
    record = run("separate", given, "-n", model_of_four, "--json").records[0]
    assert list(record["outputs"]) == ["vocals", "drums", "bass", "other"]
    np.testing.assert_array_equal(sum(integers(path) for path in record["outputs"].values()), integers(given))
    assert record["voice_down_db"] is None and record["vocals_level_db"] is not None


@pytest.mark.parametrize(
    "words, stems",
    [
        (["--two-stems"], ["vocals", "accompaniment"]),
        (["--stems", "drums,bass"], ["drums", "bass"]),
        (["--stems", "accompaniment"], ["accompaniment"]),
    ],
)
def test_only_the_stems_asked_for_are_written(
    run: Run, tmp_path: Path, model_of_four: str, words: list[str], stems: list[str]
) -> None:
    record = run("separate", song(tmp_path / "song.wav"), "-n", model_of_four, *words, "--json").records[0]
    assert list(record["outputs"]) == stems
    assert sorted(path.stem for path in (tmp_path / "separated" / "four" / "song").iterdir()) == sorted(stems)


def test_the_wiener_accompaniment_is_another_file_with_nearly_the_same_sum(
    run: Run, tmp_path: Path, model: str
) -> None:
    given = song(tmp_path / "song.wav", 3.0)
    exact = run("separate", given, "-n", model, "--float32", "--json").records[0]
    filtered = run(
        "separate", given, "-n", model, "--float32", "--accompaniment", "wiener", "-o", "w", "--json"
    ).records[0]
    mixture = stored(given)
    vocals, rest = (stored(filtered["outputs"][stem]) for stem in ("vocals", "accompaniment"))
    assert np.abs(rest - stored(exact["outputs"]["accompaniment"])).max() > 0
    error = np.sum((vocals + rest - mixture) ** 2) / np.sum(mixture**2)
    assert 10 * np.log10(error) < -50


@pytest.mark.parametrize("ext", ["mp3", "ogg", "opus", "m4a"])
def test_lossy_formats_keep_the_length_and_say_what_they_cannot_hold(
    run: Run, tmp_path: Path, model: str, ext: str
) -> None:
    answer = run("separate", song(tmp_path / "song.wav"), "-n", model, "--format", ext)
    assert (answer.code, answer.err) == (0, "")
    made = audio.probe(tmp_path / "separated" / "tiny" / "song" / f"vocals.{ext}")
    assert made.sample_rate == (48000 if ext == "opus" else RATE)
    assert ("48000 Hz" in answer.out) == (ext == "opus")
    assert made.samples == math.ceil(1.5 * made.sample_rate)


@pytest.mark.parametrize("rate, channels", [(8000, 1), (48000, 2), (192000, 2), (44100, 8)])
def test_rate_channels_and_length_come_back_as_they_were(
    run: Run, tmp_path: Path, model: str, rate: int, channels: int
) -> None:
    given = song(tmp_path / "song.wav", 1.2345, rate=rate, channels=channels)
    assert run("separate", given, "-n", model).code == 0
    for stem in ("vocals", "accompaniment"):
        info = soundfile.info(tmp_path / "separated" / "tiny" / "song" / f"{stem}.wav")
        assert (info.samplerate, info.channels, info.frames) == (rate, channels, soundfile.info(given).frames)


def test_another_rate_and_channel_count_can_be_asked_for(run: Run, tmp_path: Path, model: str) -> None:
    given = song(tmp_path / "song.wav", rate=48000)
    record = run("separate", given, "-n", model, "--rate", "32000", "--channels", "1", "--json").records[0]
    for path in record["outputs"].values():
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.frames) == (32000, 1, 48000)
    assert (record["sample_rate"], record["channels"], record["samples"]) == (32000, 1, 48000)
    # Resampling and mixing down are linear, so the sum is still the song.
    mixture = audio.resample(torch.from_numpy(stored(given).T.copy()).float().mean(0, keepdim=True), 48000, 32000)
    total = sum(stored(path) for path in record["outputs"].values())
    np.testing.assert_allclose(total.T, mixture.numpy(), atol=2**-15)


def test_start_and_duration_take_that_part(run: Run, tmp_path: Path, model: str) -> None:
    given = song(tmp_path / "song.wav", 3.0)
    record = run("separate", given, "-n", model, "--start", "0.5", "--duration", "1.25", "--json").records[0]
    total = sum(integers(path) for path in record["outputs"].values())
    np.testing.assert_array_equal(total, integers(given)[RATE // 2 : RATE // 2 + round(1.25 * RATE)])


def test_the_name_of_a_file_is_the_template_filled_in(run: Run, tmp_path: Path, model: str) -> None:
    given = song(tmp_path / "song.wav")
    run("separate", given, "-n", model, "-o", "there", "--filename", "{track} ({model}) {stem}.{ext}", "--flac")
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == [
        "song (tiny) accompaniment.flac",
        "song (tiny) vocals.flac",
    ]


# ------------------------------------------------------------------------------------------------ many inputs


def test_folders_are_taken_with_r_and_keep_their_subfolders(run: Run, tmp_path: Path, model: str) -> None:
    for name in ("a/one.wav", "a/two.flac", "b/one.wav", "a/.hidden.wav", "a/text.txt"):
        path = tmp_path / "music" / name
        if path.suffix == ".txt":
            path.write_text("words")
        else:
            song(path, 0.2)
    answer = run("separate", "-r", "music", "-n", model, "--json")
    assert [record["input"] for record in answer.records] == ["music/a/one.wav", "music/a/two.flac", "music/b/one.wav"]
    assert (tmp_path / "separated" / "tiny" / "b" / "one" / "vocals.wav").is_file()


def test_our_own_results_are_no_input(run: Run, tmp_path: Path, model: str) -> None:
    song(tmp_path / "one.wav", 0.2)
    for words in ([], ["-o", "."], ["--karaoke"]):
        for _ in range(2):
            answer = run("separate", "-r", ".", "-n", model, *words, "--if-exists", "overwrite", "--json")
            assert [record["input"] for record in answer.records] == ["one.wav"], words
    assert (tmp_path / "one.karaoke.wav").is_file() and (tmp_path / "tiny").is_dir()


def test_patterns_are_expanded_when_the_shell_has_not(run: Run, tmp_path: Path, model: str) -> None:
    for name in ("a1.wav", "a2.wav", "b1.wav"):
        song(tmp_path / name, 0.2)
    assert [record["input"] for record in run("separate", "a*.wav", "-n", model, "--json").records] == [
        "a1.wav",
        "a2.wav",
    ]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(run: Run, tmp_path: Path, model: str) -> None:
    song(tmp_path / "song [live].wav", 0.2)
    assert [record["status"] for record in run("separate", "song [live].wav", "-n", model, "--json").records] == [
        "done"
    ]


def test_shards_are_disjoint_and_together_everything(run: Run, tmp_path: Path, model: str) -> None:
    names = [f"{index}.wav" for index in range(5)]
    for name in names:
        song(tmp_path / name, 0.1)
    shards = [
        [record["input"] for record in run("separate", *names, "-n", model, "--shard", f"{i}/3", "--json").records]
        for i in (1, 2, 3)
    ]
    assert shards == [["0.wav", "3.wav"], ["1.wav", "4.wav"], ["2.wav"]]
    empty = run("separate", "0.wav", "-n", model, "--shard", "2/2")
    assert (empty.code, empty.err) == (0, "") and "no input" in empty.out


def test_several_songs_at_a_time_give_the_same_files(
    run: Run, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{index}.wav" for index in range(3)]
    for index, name in enumerate(names):
        song(tmp_path / name, 0.4 + 0.1 * index)
    assert run("separate", *names, "-n", model, "-o", "one").code == 0

    meeting = threading.Barrier(3, timeout=30)  # nobody goes on before three are at work
    stream = Separator.stream
    monkeypatch.setattr(Separator, "stream", lambda *words: (meeting.wait(), stream(*words))[1])
    answer = run("separate", *names, "-n", model, "-o", "three", "-j", "3", "--json")
    assert sorted(record["input"] for record in answer.records) == names
    for path in (tmp_path / "one").rglob("*.wav"):
        assert path.read_bytes() == (tmp_path / "three" / path.relative_to(tmp_path / "one")).read_bytes()


def test_the_same_file_twice_is_one_input(run: Run, tmp_path: Path, model: str) -> None:
    song(tmp_path / "a.wav", 0.2)
    assert len(run("separate", "a.wav", "./a.wav", "-n", model, "--json").records) == 1


def test_what_is_there_is_kept_and_said_unless_overwriting_is_asked_for(run: Run, tmp_path: Path, model: str) -> None:
    given = song(tmp_path / "song.wav", 0.3)
    run("separate", given, "-n", model)
    folder = tmp_path / "separated" / "tiny" / "song"
    (folder / "vocals.wav").write_text("mine")
    answer = run("separate", given, "-n", model)
    assert answer.code == 0 and "skipped" in answer.out and (folder / "vocals.wav").read_text() == "mine"
    assert run("separate", given, "-n", model, "--json").records[0]["status"] == "skipped"

    # One is missing: that one is made, the other is still not ours to touch.
    (folder / "accompaniment.wav").unlink()
    answer = run("separate", given, "-n", model)
    assert (answer.code, answer.err) == (0, "") and "kept" in answer.out
    assert (folder / "vocals.wav").read_text() == "mine" and (folder / "accompaniment.wav").is_file()

    answer = run("separate", given, "-n", model, "--if-exists", "error")
    assert answer.code == 6 and len(answer.err.splitlines()) == 1 and (folder / "vocals.wav").read_text() == "mine"
    assert run("separate", given, "-n", model, "--if-exists", "overwrite").code == 0
    assert soundfile.info(folder / "vocals.wav").frames == soundfile.info(given).frames


# ------------------------------------------------------------------------------------------------ what is said


def test_a_line_for_a_person_says_level_place_and_time(run: Run, tmp_path: Path, model: str) -> None:
    song(tmp_path / "song.wav")
    answer = run("separate", "song.wav", "-n", model)
    assert re.fullmatch(
        r"song\.wav: the voice it found is down by about \d+ dB \(vocals \d+\.\d dB below the song\); "
        r"separated/tiny/song/\{vocals,accompaniment\}\.wav; 1\.5 s of audio in \d+\.\d s \(\S+x real time\)\n",
        answer.out,
    ), answer.out


def test_the_record_says_what_was_measured(run: Run, tmp_path: Path, model: str) -> None:
    given = song(tmp_path / "song.wav")
    record = run("separate", "song.wav", "-n", model, "--json", "--float32").records[0]
    mixture = stored(given)
    vocals, rest = (stored(record["outputs"][stem]) for stem in ("vocals", "accompaniment"))
    assert record["vocals_level_db"] == pytest.approx(10 * np.log10(np.sum(vocals**2) / np.sum(mixture**2)), abs=0.01)
    down = -20 * np.log10(abs(np.sum(rest * vocals)) / np.sum(mixture * vocals))
    assert record["voice_down_db"] == pytest.approx(down, abs=0.01)
    assert (record["status"], record["input"], record["model"]) == ("done", "song.wav", model)
    assert (record["samples"], record["duration_s"], record["sample_rate"]) == (len(mixture), 1.5, RATE)
    assert record["seconds"] > 0 and record["gain_db"] == 0 and record["notes"] == []


def test_the_voice_is_10_db_down_when_the_true_voice_is_left_at_that_level() -> None:
    from umx_ext.commands.levels import Levels

    time_s = torch.arange(RATE) / RATE
    voice, band = torch.sin(2 * torch.pi * 440 * time_s)[None], torch.sin(2 * torch.pi * 100 * time_s)[None]
    levels = Levels()
    for part in range(0, RATE, 4410):
        piece = slice(part, part + 4410)
        levels.add(
            {"vocals": voice[:, piece], "mixture": (voice + band)[:, piece]},
            {"accompaniment": (band + 10 ** (-10 / 20) * voice)[:, piece]},
        )
    assert levels.voice_down_db == pytest.approx(10, abs=0.01)
    assert levels.vocals_level_db == pytest.approx(-3.01, abs=0.01)


def test_quiet_says_nothing_and_verbose_says_more_on_standard_error(run: Run, tmp_path: Path, model: str) -> None:
    given = song(tmp_path / "song.wav", 0.3)
    assert run("separate", given, "-n", model, "-q") == Answer(0, "", "")
    answer = run("separate", given, "-n", model, "-v", "--if-exists", "overwrite")
    assert answer.code == 0 and "cpu" in answer.err and len(answer.out.splitlines()) == 1


def test_the_device_comes_from_the_environment_where_none_is_given(
    run: Run, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = song(tmp_path / "song.wav", 0.3)
    monkeypatch.setenv("UMX_EXT_DEVICE", "nonsense")
    answer = run("separate", given, "-n", model)
    assert answer.code == 2 and "nonsense" in answer.err
    assert run("separate", given, "-n", model, "-d", "cpu").code == 0


def in_a_terminal(words: Sequence[str], cwd: Path, **environment: str) -> tuple[str, str]:
    """Standard output, and what a terminal got on standard error."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "umx_ext", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", **environment},
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    seen = b""
    try:
        while piece := os.read(ours, 4096):
            seen += piece
    except OSError:  # how Linux says that the other side is closed
        pass
    out, _ = process.communicate()
    os.close(ours)
    return out, seen.decode()


def test_a_terminal_gets_a_bar_and_colours(tmp_path: Path, model: str) -> None:
    song(tmp_path / "song.wav", 1.0)
    out, seen = in_a_terminal(["separate", "song.wav", "nosuch.wav", "-n", model], tmp_path)
    assert "song.wav" in seen and "%" in seen and "\x1b[1;31m" in seen
    assert len(out.splitlines()) == 1 and "\x1b" not in out


@pytest.mark.parametrize("words", [["--no-progress"], ["-q"]])
def test_a_terminal_gets_neither_bar_nor_colours_if_told_so(
    run: Run, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    song(tmp_path / "song.wav", 0.3)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    answer = run("separate", "song.wav", "nosuch.wav", "-n", model, *words)
    assert "%" not in answer.err and "\x1b" not in answer.err
    assert len(answer.err.splitlines()) == 2  # the failure and the summary


def test_standard_input_is_a_song(tmp_path: Path, model: str) -> None:
    given = song(tmp_path / "song.flac", 0.5)
    with given.open("rb") as stream:
        done = in_a_process("separate", "-", "-n", model, cwd=tmp_path, stdin=stream, env={"TMPDIR": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")
    folder = tmp_path / "separated" / "tiny" / "stdin"
    np.testing.assert_array_equal(
        integers(folder / "vocals.wav") + integers(folder / "accompaniment.wav"), integers(given)
    )
    assert not list(tmp_path.glob("umx-ext-*"))


# ------------------------------------------------------------------------------------------------ picture


def test_the_picture_is_a_png_beside_the_stems(run: Run, tmp_path: Path, model: str) -> None:
    song(tmp_path / "song.wav", 0.7)
    record = run("separate", "song.wav", "-n", model, "--plot", "--json").records[0]
    assert record["plot"] == "separated/tiny/song/plot.png"
    head = (tmp_path / record["plot"]).read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(head[16:20], "big") > 1000 and int.from_bytes(head[20:24], "big") > 500
    assert "skipped" in run("separate", "song.wav", "-n", model, "--plot").out
    (tmp_path / record["plot"]).unlink()
    run("separate", "song.wav", "-n", model, "--plot")
    assert (tmp_path / record["plot"]).is_file()


def test_a_picture_without_matplotlib_is_refused_with_the_command_that_mends_it(
    run: Run, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    song(tmp_path / "song.wav", 0.3)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    answer = run("separate", "song.wav", "-n", model, "--plot")
    assert answer.code == 2 and "pip install matplotlib" in answer.err and not (tmp_path / "separated").exists()


def test_a_sketch_keeps_the_extremes_and_the_energy_whatever_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    from umx_ext import plot

    monkeypatch.setattr(plot, "COLUMNS", COLUMNS := 64)
    torch.manual_seed(0)
    samples = COLUMNS * plot.STEP * 13 + 777
    wave = torch.randn(samples)
    wave[123456], wave[-1] = 9.0, -8.0
    sketch = plot.Sketch(["mixture"])
    for block in wave.split(100_001):
        sketch.add({"mixture": block[None]})
    signal = sketch._signals["mixture"]
    signal.finish()
    low, high = signal.envelope()
    assert COLUMNS // 2 <= len(low) <= COLUMNS
    length = signal.drawn_samples // len(low)
    padded = torch.cat([wave, torch.zeros(len(low) * length - samples)]).view(-1, length)
    np.testing.assert_array_equal(high, padded.amax(1).numpy())
    np.testing.assert_array_equal(low, padded.amin(1).numpy())
    # White noise of power 1: every bin of a windowed spectrum has the power of the window.
    power = torch.cat(signal._power)[:-1, 1:-1]
    assert float(power.mean()) == pytest.approx(float(torch.hann_window(4096).square().sum()), rel=0.01)


def test_a_song_is_decoded_beside_its_separation(run: Run, tmp_path: Path, model: str, monkeypatch) -> None:
    song(tmp_path / "song.wav")
    threads = set()
    original = audio.AudioReader.__iter__

    def noting(reader):
        threads.add(threading.current_thread().name)
        yield from original(reader)

    monkeypatch.setattr(audio.AudioReader, "__iter__", noting)
    assert run("separate", "song.wav", "-n", model).code == 0
    assert threads == {"read ahead"}


def test_profile_says_where_the_time_went_and_leaves_standard_output_alone(
    run: Run, tmp_path: Path, model: str
) -> None:
    song(tmp_path / "song.wav")
    answer = run("separate", "song.wav", "-n", model, "--profile", "--json")
    assert answer.code == 0 and len(answer.records) == 1
    lines = answer.err.splitlines()
    assert lines[0].split() == ["stage", "seconds", "share"] and len({len(line) for line in lines}) == 1
    rows = {name: cells for name, *cells in (re.split(r"  +", line.strip()) for line in lines[1:])}
    stages = {name: float(cells[0]) for name, cells in rows.items() if len(cells) == 2}
    assert {"load the model", "decode", "STFT", "recurrence", "Wiener", "subtract", "encode", "wait"} <= set(stages)
    assert sum(stages.values()) == pytest.approx(float(rows["all threads"][0]), abs=0.001 * len(stages))
    shares = [float(rows[name][1].removesuffix(" %")) for name in stages]
    assert sum(shares) == pytest.approx(100, abs=0.1 * len(stages))
    assert run("separate", "missing.wav", "-n", model, "--profile").code == 4
    assert run("separate", "song.wav", "-n", model, "--if-exists", "overwrite").err == ""


# ------------------------------------------------------------------------------------------------ models, doctor


def test_models_list_names_every_registered_model(run: Run) -> None:
    answer = run("models", "list")
    assert (answer.code, answer.err) == (0, "")
    assert [line.split()[0] for line in answer.out.splitlines()[1:]] == list(pretrained.MODELS)
    assert [record["name"] for record in run("models", "list", "--json").records] == list(pretrained.MODELS)


def test_models_show_has_the_terms(run: Run, model: str) -> None:
    answer = run("models", "show", "umxl")
    assert answer.code == 0 and "CC BY-NC-SA 4.0" in answer.out and "umxl" in answer.out
    assert json.loads(run("models", "show", model).out)["config"]["hidden"] == 16


def test_models_path_is_in_the_cache(run: Run, tmp_path: Path) -> None:
    answer = run("models", "path", "umxhq")
    assert answer.code == 0
    assert [Path(line).parent for line in answer.out.splitlines()] == [tmp_path / "cache"] * 4


def test_models_verify_finds_a_damaged_file(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    for line in run("models", "path", "umxhq").out.splitlines():
        Path(line).write_bytes(b"not these weights")
    answer = run("models", "verify", "umxhq")
    assert answer.code == 3 and answer.out.count("FAILED") == 4 and len(answer.err.splitlines()) == 1


def test_pulling_offline_is_a_model_error_that_says_what_to_do(run: Run) -> None:
    answer = run("models", "pull", "umxhq")
    assert answer.code == 3 and "UMX_EXT_OFFLINE" in answer.err and len(answer.err.splitlines()) == 1


def test_models_export_checks_on_a_song_what_it_writes(run: Run, model: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    song(tmp_path / "song.wav", 1.0)
    answer = run("models", "export", model, "--to", "onnx", "--song", "song.wav", "-o", "out.onnx")
    assert (answer.code, answer.err) == (0, "")
    assert re.fullmatch(r"out\.onnx  0\.\d MB, -1\d\d dB off the model on 1 s of song\.wav\n", answer.out), answer.out
    assert run("models", "export", model, "-o", "out.onnx").code == 6
    answer = run("models", "export", model, "-o", "out.onnx", "--if-exists", "overwrite")
    assert answer.code == 0 and "10 s of synthesised sound" in answer.out
    assert run("models", "export", model, "--song", "none.wav", "-o", "other.onnx").code == 4
    assert run("models", "export", "nothing").code == 3
    assert run("models", "export", model, "-o", "no_folder/out.onnx").code == 6
    assert not (tmp_path / "other.onnx").exists()


def test_a_licence_is_asked_for_once(run: Run, tmp_path: Path) -> None:
    song(tmp_path / "song.wav", 0.2)
    for words in (["models", "pull", "umxl"], ["separate", "song.wav", "-n", "umxl"]):
        answer = run(*words)
        assert answer.code == 2 and "--accept-license" in answer.err and "CC BY-NC-SA" in answer.err
        assert len(answer.err.splitlines()) == 1
    # Accepted: now it is only the network that is missing, also the next time.
    assert run("models", "pull", "umxl", "--accept-license").code == 3
    assert run("separate", "song.wav", "-n", "umxl").code == 3


def test_doctor_names_versions_device_formats_and_caches(run: Run, tmp_path: Path) -> None:
    answer = run("doctor")
    assert (answer.code, answer.err) == (0, "")
    for phrase in (
        __version__,
        torch.__version__.split("+")[0],
        "chosen",
        "libsndfile",
        "FFmpeg",
        str(tmp_path / "cache"),
    ):
        assert phrase in answer.out, phrase
    assert "writes      " + ", ".join(audio.FORMATS) in answer.out


@pytest.mark.parametrize("error", [ImportError("no"), RuntimeError("CUDA 13.2 against 13.0"), OSError("libtorch.so")])
def test_doctor_survives_a_broken_extra_and_tells_what_mends_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from umx_ext.commands import doctor

    original = doctor.importlib.import_module

    def broken(name: str, *rest: Any) -> Any:
        if name == "torchaudio":
            raise error
        return original(name, *rest)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    answer = run("doctor")
    line = next(line for line in answer.out.splitlines() if "torchaudio" in line)
    assert answer.code == 0 and str(error) in line and "pip install '.[research]'" in line


# ------------------------------------------------------------------------------------------------ the real thing


def test_a_real_song_and_a_film_come_out_as_long_as_they_went_in(run: Run, data: Path, model: str) -> None:
    for given in (data / "songs" / "lets_go_fishin.ogg", next((data / "musdb18-7" / "test").glob("*.stem.mp4"))):
        record = run("separate", given, "-n", model, "--json", "--duration", "4").records[0]
        waveform, rate = audio.read(given, duration_s=4)
        total = sum(stored(path) for path in record["outputs"].values())
        assert record["sample_rate"] == rate
        np.testing.assert_allclose(
            total.T,
            10 ** (record["gain_db"] / 20) * waveform.numpy(),
            atol=1.01 * 2**-15 + 1e-4 * (record["gain_db"] < 0),
        )


@pytest.mark.parametrize("command", ["separate", "doctor"])
def test_garbage_is_looked_for_seldom_in_the_command_s_own_process_alone(command: str) -> None:
    code = (
        "import gc, sys; from umx_ext import cli; before = gc.get_threshold(); cli.main(['--version']);"
        "assert gc.get_threshold() == before;"
        "cli.main = lambda: print(gc.get_threshold()) or 0;"
        f"sys.argv = ['umx-ext', '{command}']; cli.run()"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "(50000, 20, 100)"


def test_openmp_sleeps_between_loops_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    cli.wait_asleep()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    cli.wait_asleep()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.mark.parametrize("command, policy", [("separate", "PASSIVE"), ("train", None)])
def test_only_the_process_of_the_command_separate_has_openmp_sleep(command: str, policy: str | None) -> None:
    code = (
        "import os, sys, umx_ext.cli as cli; "
        f"sys.argv = ['umx-ext', '{command}', '--help']; "
        "cli.main = lambda: print(os.environ.get('OMP_WAIT_POLICY')) or 0; cli.run()"
    )
    clean = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == str(policy)


@pytest.mark.parametrize(
    "word, hint", [("sep", "did you mean separate?"), ("seperate", "did you mean separate?"), ("xyz", "Commands are ")]
)
def test_the_beginning_of_a_command_is_enough_to_guess_it(run: Run, word: str, hint: str) -> None:
    answer = run(word, "song.wav")
    assert answer.code == 2 and hint in answer.err and ("did you mean" in answer.err) == ("did" in hint)
