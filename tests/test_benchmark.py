"""A benchmark of tiny songs with a tiny model: what is scored, what is kept, what fails, and who does the work."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import umx_ext
from tests.corpus import FOUR, RATE, TWO, estimates_of, make_corpus, make_model, make_song, wave
from tests.peers import import_peer
from umx_ext.corpora import Song, find_songs, targets
from umx_ext.errors import AudioError, MissingExtraError, ModelError, UmxError, UsageError
from umx_ext.evaluation import benchmark as module
from umx_ext.evaluation.benchmark import Benchmark, benchmark, check_baselines, merge
from umx_ext.evaluation.judge import Plan, Task, in_processes
from umx_ext.evaluation.oracles import BASELINES
from umx_ext.evaluation.scores import TrackScores, score
from umx_ext.evaluation.store import compare
from umx_ext.separation.separator import Separator

QUICK = ("SDR", "SI-SDR")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), ("Ann - One", "Bob - Two", "Cee - Three"))


@pytest.fixture(scope="module")
def stereo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stereo")
    return make_corpus(root, ("Ann - One", "Bob - Two", "Cee - Three"), channels=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


def same(first: Benchmark, second: Benchmark) -> bool:
    """By their text: nan is not equal to itself."""
    return str(first.rows()) == str(second.rows())


def rows(result: Benchmark, system: str) -> str:
    return str(result.rows()[system])


def as_files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


# -------------------------------------------------------------------------------------------------------- what it does


def test_a_model_is_scored_as_by_hand(corpus: Path, model: str) -> None:
    result = umx_ext.benchmark(corpus, model, tracks="[BC]*")
    assert list(result.systems) == ["tiny", "mixture/2", "MWF"] and not result.failures
    assert [track.track for track in result.systems["tiny"]] == ["Bob - Two", "Cee - Three"]
    song = find_songs(corpus)[1]
    stems = song.read()
    separated = umx_ext.separate(stems.mixture, RATE, model=umx_ext.load(model))
    by_hand = score(targets(stems), separated, RATE, track=song.name)
    assert str(result.systems["tiny"][0].rows()) == str(by_hand.rows())
    assert result.targets == ["vocals", "accompaniment"]
    assert result.systems["MWF"][0].targets == ("vocals", "accompaniment")
    assert set(result.seconds) == {"read", "separate", "oracles", "score"} and min(result.seconds.values()) > 0
    assert len(result.rows()["tiny"]) == 2 * 2 * (4 * 2 + 2)


def test_the_trivial_row_is_what_its_definition_says(corpus: Path, model: str) -> None:
    result = benchmark(corpus, model, metrics=["uSDR"])
    stems = find_songs(corpus)[0].read()
    truth, half = targets(stems)["vocals"].double(), stems.mixture.double() / 2
    expected = 10 * torch.log10(truth.square().sum() / (truth - half).square().sum())
    assert result.systems["mixture/2"][0].song["vocals"]["uSDR"] == pytest.approx(float(expected), abs=1e-4)


def test_the_songs_own_mixture_is_separated(tmp_path: Path, model: str) -> None:
    make_song(tmp_path / "root" / "song", 1)
    other = wave(99)
    soundfile.write(tmp_path / "root" / "song" / "mixture.wav", other, RATE, subtype="FLOAT")
    result = benchmark(tmp_path / "root", model, metrics=["SDR"])
    references = targets(find_songs(tmp_path / "root")[0].read())
    estimate = umx_ext.separate(torch.from_numpy(other.T).float(), RATE, model=umx_ext.load(model))
    by_hand = score(references, estimate, RATE, track="song", metrics=["SDR"])
    assert str(result.systems["tiny"][0].rows()) == str(by_hand.rows())


def test_a_model_of_four_stems_is_scored_on_five_and_so_are_the_baselines(corpus: Path, tmp_path: Path) -> None:
    four = make_model(tmp_path / "four.safetensors", FOUR)
    result = benchmark(corpus, four, metrics=["SDR"], tracks="Ann*", baselines=["IRM1"])
    assert list(result.systems) == ["four", "mixture/2", "IRM1", "MWF"]
    for (scores,) in result.systems.values():
        assert set(scores.targets) == {*FOUR, "accompaniment"}
    stems = find_songs(corpus)[0].read()
    separated = umx_ext.separate(stems.mixture, RATE, model=umx_ext.load(four))
    rest = stems.mixture - separated["vocals"]
    by_hand = score(targets(stems), {**separated, "accompaniment": rest}, RATE, track="Ann - One", metrics=["SDR"])
    assert str(result.systems["four"][0].rows()) == str(by_hand.rows())


def test_several_models_and_estimates_stand_in_one_table(corpus: Path, model: str, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other.safetensors", seed=2)
    mine = estimates_of(corpus, tmp_path / "mine")
    result = benchmark(corpus, [model, other], estimates=mine, metrics=QUICK)
    assert list(result.systems) == ["tiny", "other", "mine", "mixture/2", "MWF"]
    assert result.systems["tiny"][0].rows() != result.systems["other"][0].rows()
    table = result.table()
    assert [row for row in table.rows if row.system == "mine" and row.target == "vocals" and row.metric == "SDR"]


def test_estimates_alone_are_scored_without_a_model(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    flat = estimates_of(corpus, tmp_path / "flat", FOUR)
    nested = estimates_of(corpus, tmp_path / "nested" / "test", FOUR).parent
    result = benchmark(corpus, estimates=[flat, nested], metrics=QUICK)
    assert list(result.systems) == ["flat", "nested", "mixture/2", "MWF"]
    assert rows(result, "flat") == rows(result, "nested")
    truth, _ = soundfile.read(corpus / "Ann - One" / "drums.wav")
    guess, _ = soundfile.read(flat / "Ann - One" / "drums.wav")
    energies = [(part**2).sum() for part in (truth[:RATE], (truth - guess)[:RATE])]
    first = result.systems["flat"][0].frames["drums"]["SDR"][0]
    assert first == pytest.approx(10 * np.log10(energies[0] / energies[1]), abs=1e-4)


@pytest.mark.parametrize("suffix", [".flac", ".WAV", ".ogg"])
def test_estimates_may_be_of_any_format_that_can_be_read(tmp_path: Path, suffix: str) -> None:
    make_song(tmp_path / "root" / "song", 1, TWO)
    make_song(tmp_path / "mine" / "song", 1, TWO, suffix=suffix)
    result = benchmark(tmp_path / "root", estimates=tmp_path / "mine", metrics=QUICK)
    assert not result.failures and result.systems["mine"][0].targets == TWO


def test_what_a_separator_named_after_the_stem_mp4_is_found(tmp_path: Path) -> None:
    make_song(tmp_path / "root" / "song", 1, TWO)
    make_song(tmp_path / "mine" / "song.stem", 1, TWO)
    assert not benchmark(tmp_path / "root", estimates=tmp_path / "mine", metrics=QUICK).failures


def test_all_baselines_can_be_asked_for(corpus: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import_peer("norbert")
    assert check_baselines(["all"]) == (tuple(BASELINES), "")
    result = benchmark(corpus, model, tracks="Ann*", metrics=["SDR"], baselines=["all"])
    assert list(result.systems) == ["tiny", *BASELINES]
    vocals = {name: scores[0].median("vocals", "SDR") for name, scores in result.systems.items()}
    assert vocals["IRM2"] > vocals["mixture/2"]

    def missing(*_: object) -> None:
        raise MissingExtraError("run: pip install norbert")

    monkeypatch.setitem(BASELINES, "MWF norbert", missing)
    assert check_baselines(["all"]) == (tuple(BASELINES)[:-1], "left out: run: pip install norbert")
    with pytest.raises(MissingExtraError):
        check_baselines(["MWF norbert"])
    assert check_baselines([]) == (("mixture/2", "MWF"), "")


def test_progress_names_each_song_and_what_it_scored(corpus: Path, model: str) -> None:
    steps: list[module.Step] = []
    benchmark(corpus, model, metrics=["SDR"], progress=steps.append)
    assert [(step.done, step.total, step.track) for step in steps] == [
        (1, 3, "Ann - One"),
        (2, 3, "Bob - Two"),
        (3, 3, "Cee - Three"),
    ]
    assert all(set(step.scores) == {"tiny", "mixture/2", "MWF"} and not step.kept for step in steps)


def test_a_loaded_model_will_do_in_this_process_and_no_other(corpus: Path, model: str, tmp_path: Path) -> None:
    loaded = umx_ext.load(model)
    result = benchmark(corpus, loaded, metrics=["SDR"])
    (name,) = set(result.systems) - set(BASELINES)
    assert rows(result, name) == rows(benchmark(corpus, model, metrics=["SDR"]), "tiny")
    with pytest.raises(UsageError, match="cannot be sent to other processes"):
        benchmark(corpus, loaded, jobs=2)


@pytest.mark.parametrize("lengths, count, corpus, comparable", [
    (200, 50, "musdb18", True), (200, 50, "musdb18-hq", True), (7, 50, "musdb18", False),
    (200, 30, "musdb18", False), (200, 50, "folder", False),
])  # fmt: skip
def test_only_all_whole_songs_of_musdbs_test_part_compare_with_published_figures(
    lengths: int, count: int, corpus: str, comparable: bool
) -> None:
    scores = [
        TrackScores(str(track), {"vocals": {"SDR": np.full(lengths, 1.0)}}, subset="test", corpus=corpus)
        for track in range(count)
    ]
    result = Benchmark({"system": scores}, ("SDR",))
    assert result.comparable == comparable
    sources = {row.source for row in result.table().rows}
    assert (len(sources) == 2) == (corpus != "folder")
    assert any("not comparable" in source for source in sources) == (corpus != "folder" and not comparable)


# ---------------------------------------------------------------------------------------------------- what it has kept


def test_scores_lie_where_musevals_store_finds_them(corpus: Path, model: str, tmp_path: Path) -> None:
    museval = import_peer("museval")
    result = benchmark(corpus, model, evaldir=tmp_path, metrics=["SDR", "SIR"])
    assert sorted(as_files(tmp_path))[:4] == [
        "MWF/test/Ann - One.json",
        "MWF/test/Bob - Two.json",
        "MWF/test/Cee - Three.json",
        "mixture-2/test/Ann - One.json",
    ]
    methods = museval.MethodStore()
    for system in ("tiny", "mixture-2", "MWF"):
        methods.add_eval_dir(tmp_path / system)
    medians = methods.agg_frames_tracks_scores()
    for name in result.systems:
        tracks = [track.median("vocals", "SIR") for track in result.systems[name]]
        assert medians[name.replace("/", "-"), "vocals", "SIR"] == pytest.approx(np.median(tracks), abs=1e-9)
    assert compare([tmp_path]).keys() == {"tiny", "mixture/2", "MWF"}


def count_separations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    separate = Separator.separate

    def counting(self, waveform, *rest, **more):
        calls.append(waveform.shape[-1])
        return separate(self, waveform, *rest, **more)

    monkeypatch.setattr(Separator, "separate", counting)
    return calls


def test_a_stopped_run_goes_on_where_it_was(
    corpus: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = benchmark(corpus, model, evaldir=tmp_path / "whole", metrics=QUICK)

    def stop(step: module.Step) -> None:
        if step.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benchmark(corpus, model, evaldir=tmp_path / "part", metrics=QUICK, progress=stop)
    assert len(as_files(tmp_path / "part")) == 6
    calls = count_separations(monkeypatch)
    goes_on = benchmark(corpus, model, evaldir=tmp_path / "part", metrics=QUICK)
    assert len(calls) == 1 and goes_on.kept == 6 and same(whole, goes_on)
    assert as_files(tmp_path / "part") == as_files(tmp_path / "whole")
    benchmark(corpus, model, evaldir=tmp_path / "part", metrics=QUICK)
    assert len(calls) == 1
    benchmark(corpus, model, evaldir=tmp_path / "part", metrics=QUICK, if_exists="overwrite")
    assert len(calls) == 4


def test_only_scores_of_the_same_thing_are_kept(
    corpus: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_separations(monkeypatch)
    scores = tmp_path / "scores"

    def again(root: Path = corpus, path: str = model, **more: object) -> Benchmark:
        calls.clear()
        return benchmark(root, path, evaldir=scores, tracks="Ann*", **{"metrics": QUICK, **more})

    again()
    assert again().kept == 3 and not calls
    assert again(metrics=["SDR"]).kept == 3  # fewer metrics than are there
    assert again(metrics=["SDR", "uSDR"]).kept == 0 and len(calls) == 1  # one that is not there
    (tmp_path / "elsewhere").mkdir()
    other = make_model(tmp_path / "elsewhere" / "tiny.safetensors", seed=5)
    result = again(path=other, metrics=["SDR"])  # another model of the same name
    assert len(calls) == 1 and result.kept == 2 and any("was made from another" in note for note in result.notes)
    longer = tmp_path / "longer"
    make_song(longer / "Ann - One", 0, seconds=3.5)  # another song of the same name
    assert again(root=longer, path=other, metrics=["SDR"]).kept == 0
    for path in scores.rglob("*.json"):
        path.write_text("{")
    result = again(root=longer, path=other, metrics=["SDR"])  # damaged
    assert result.kept == 0 and sum("scored again" in note for note in result.notes) == 3


def test_estimates_that_have_changed_are_scored_again(corpus: Path, tmp_path: Path) -> None:
    mine = estimates_of(corpus, tmp_path / "mine")
    first = benchmark(corpus, estimates=mine, evaldir=tmp_path / "scores", metrics=QUICK)
    assert benchmark(corpus, estimates=mine, evaldir=tmp_path / "scores", metrics=QUICK).kept == 9
    file = mine / "Bob - Two" / "vocals.wav"
    size = file.stat().st_size
    soundfile.write(file, soundfile.read(file)[0] * 0.5, RATE, subtype="FLOAT")
    assert file.stat().st_size == size
    os.utime(file, ns=(1, time.time_ns() + 10**9))
    again = benchmark(corpus, estimates=mine, evaldir=tmp_path / "scores", metrics=QUICK)
    assert again.kept == 8 and not same(first, again)


def test_a_single_estimate_is_kept_though_it_has_not_all_metrics(corpus: Path, tmp_path: Path) -> None:
    mine = estimates_of(corpus, tmp_path / "mine", ("vocals",))
    first = benchmark(corpus, estimates=mine, evaldir=tmp_path / "scores", metrics=["SDR", "SIR"])
    assert "need two estimates" in first.systems["mine"][0].notes[0]
    assert benchmark(corpus, estimates=mine, evaldir=tmp_path / "scores", metrics=["SDR", "SIR"]).kept == 9


def test_musevals_scores_that_are_there_are_taken(corpus: Path, tmp_path: Path) -> None:
    mine = estimates_of(corpus, tmp_path / "mine")
    frames = [{"time": 0.0, "duration": 1.0, "metrics": dict.fromkeys(("SDR", "ISR", "SIR", "SAR"), 7.0)}]
    text = json.dumps({"targets": [{"name": "vocals", "frames": frames}], "museval_version": "0.4.1"})
    (tmp_path / "scores" / "mine" / "test").mkdir(parents=True)
    (tmp_path / "scores" / "mine" / "test" / "Ann - One.json").write_text(text)
    result = benchmark(corpus, estimates=mine, evaldir=tmp_path / "scores", metrics=["SDR"])
    assert result.systems["mine"][0].median("vocals", "SDR") == 7.0 and result.kept == 1


# ---------------------------------------------------------------------------------------------------- who does the work


def test_processes_and_shards_give_the_same_numbers(corpus: Path, model: str, tmp_path: Path) -> None:
    alone = benchmark(corpus, model, evaldir=tmp_path / "alone", metrics=QUICK)
    together = benchmark(corpus, model, evaldir=tmp_path / "together", metrics=QUICK, jobs=2)
    assert same(alone, together) and as_files(tmp_path / "alone") == as_files(tmp_path / "together")
    assert not multiprocessing.active_children()
    for which in (1, 2):
        benchmark(corpus, model, evaldir=tmp_path / f"part{which}", shard=(which, 2), metrics=QUICK)
    songs = [{name.rpartition("/")[2] for name in as_files(tmp_path / part)} for part in ("part1", "part2")]
    assert songs == [{"Ann - One.json", "Cee - Three.json"}, {"Bob - Two.json"}]
    merged = merge([tmp_path / "part1", tmp_path / "part2"], tmp_path / "merged")
    assert as_files(tmp_path / "merged") == as_files(tmp_path / "alone") and same(alone, merged)
    assert list(merged.systems) == ["tiny", "mixture/2", "MWF"]
    assert same(merge([tmp_path / "part1"], tmp_path / "merged"), alone)  # what is there stays


def test_scores_that_disagree_are_not_merged(corpus: Path, tmp_path: Path) -> None:
    for part, error in (("one", 0.3), ("two", 0.5)):
        estimates_of(corpus, tmp_path / part / "mine", error=error)
        benchmark(corpus, estimates=tmp_path / part / "mine", evaldir=tmp_path / part / "scores", metrics=QUICK)
    with pytest.raises(UsageError, match="disagree about the same song"):
        merge([tmp_path / "one" / "scores", tmp_path / "two" / "scores"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_dask_workers_give_the_same_numbers(corpus: Path, model: str, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    alone = benchmark(corpus, model, evaldir=tmp_path / "alone", metrics=["SDR", "SIR"])
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        shared = benchmark(corpus, model, evaldir=tmp_path / "dask", metrics=["SDR", "SIR"], dask=address)
    assert same(alone, shared) and as_files(tmp_path / "alone") == as_files(tmp_path / "dask")


def test_a_cluster_that_is_not_there_is_named(corpus: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(MissingExtraError, match=r"pip install '.\[dask\]'"):
        benchmark(corpus, model, dask="tcp://127.0.0.1:1")


class Deadly(Song):
    """A song that kills whoever reads it, as one does that memory is too small for."""

    def read(self):
        os._exit(9)


def test_a_worker_that_dies_takes_no_other_song_with_it(corpus: Path) -> None:
    songs = find_songs(corpus)
    deadly = Deadly(**{**vars(songs[1]), "name": "deadly"})
    plan = Plan((), "cpu", ("SDR",), "own")
    tasks = [Task(song, (), {}, ("mixture/2",), False) for song in (deadly, songs[0], songs[2])]
    outcomes = {task.song.name: outcome for task, outcome in in_processes(plan, tasks, 2)}
    assert set(outcomes) == {"deadly", "Ann - One", "Cee - Three"}
    assert [len(outcomes[name].scores) for name in ("Ann - One", "Cee - Three")] == [1, 1]
    (failure,) = outcomes["deadly"].failures
    assert "deadly: the worker process died" in str(failure.error) and "-j" in str(failure.error)


class Sleepy(Song):
    """A song that takes its time."""

    def read(self):
        time.sleep(60)


def test_leaving_early_ends_the_workers_at_once(corpus: Path) -> None:
    song = find_songs(corpus)[0]
    tasks = [Task(each, (), {}, ("mixture/2",), False) for each in (Sleepy(**vars(song)), song)]
    outcomes = in_processes(Plan((), "cpu", ("SDR",), "own"), tasks, 2)
    assert next(outcomes)[0].song is song
    left = time.monotonic()
    outcomes.close()
    assert time.monotonic() - left < 20 and not multiprocessing.active_children()


def test_workers_elsewhere_are_given_absolute_paths(corpus: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def on_dask(plan: Plan, tasks: list[Task], address: str):
        given.extend([plan, *tasks])
        yield from ()

    mine = estimates_of(corpus, corpus.parent / "mine")
    monkeypatch.setattr(module, "on_dask", on_dask)
    monkeypatch.chdir(corpus.parent)
    benchmark(corpus.name, os.path.relpath(model), estimates=mine.name, dask="tcp://somewhere:1")
    plan, task, *_ = given
    paths = [plan.models[0][1], *(path for path, _ in task.song.files.values()), *task.estimates["mine"].values()]
    assert len(paths) == 1 + 4 + 2 and all(os.path.isabs(path) for path in paths)


# ------------------------------------------------------------------------------------------------------------ failures


def test_a_song_that_cannot_be_read_keeps_no_other_from_being_scored(tmp_path: Path, model: str) -> None:
    root = make_corpus(tmp_path / "root")
    (root / "Ann - One" / "drums.wav").write_bytes(b"no sound")
    result = benchmark(root, model, metrics=QUICK)
    ((system, track, error),) = result.failures
    assert (system, track) == ("", "Ann - One") and isinstance(error, AudioError) and "drums.wav" in str(error)
    assert [scores.track for scores in result.systems["tiny"]] == ["Bob - Two"]


def test_an_error_of_ours_is_a_failure_of_that_song(corpus: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def broken(self, waveform, *_):
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError("oops")
        if len(calls) == 3:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return umx_ext.Stems({"vocals": waveform, "accompaniment": waveform}, RATE)

    monkeypatch.setattr(Separator, "separate", broken)
    result = benchmark(corpus, model, metrics=QUICK)
    first, second = result.failures
    assert "Bob - Two: unexpected ZeroDivisionError: oops" in str(first.error)
    assert "Cee - Three: out of memory" in str(second.error) and second.error.exit_code == 5
    assert len(result.systems["tiny"]) == 1 and len(result.systems["MWF"]) == 3


def rename(name: str) -> object:
    return lambda mine: (mine / "Bob - Two").rename(mine / name)


def drop(mine: Path) -> None:
    (mine / "Bob - Two" / "accompaniment.wav").unlink()


def empty(mine: Path) -> None:
    for file in (mine / "Bob - Two").iterdir():
        file.unlink()


def twice(mine: Path) -> None:
    soundfile.write(mine / "Bob - Two" / "vocals.flac", wave(1), RATE)


def mono(mine: Path) -> None:
    soundfile.write(mine / "Bob - Two" / "vocals.wav", wave(1), RATE)


def rate(mine: Path) -> None:
    soundfile.write(mine / "Bob - Two" / "vocals.wav", wave(1, channels=2), 48000)


def unreadable(mine: Path) -> None:
    (mine / "Bob - Two" / "vocals.wav").write_text("la la la")


@pytest.mark.parametrize(
    ("change", "phrases"),
    [
        (rename("Bob - Tow"), ["has no estimates of Bob - Two", "no known song; did you mean Bob - Two?"]),
        (drop, ["has no accompaniment, which other songs have"]),
        (empty, ["has no estimates; expected files such as vocals.wav"]),
        (twice, ["has two estimates of vocals, vocals.flac and vocals.wav"]),
        (mono, ["vocals.wav has 1 channel (mono), its reference 2"]),
        (rate, ["vocals.wav has 48000 Hz, its reference 8000 Hz"]),
        (unreadable, ["vocals.wav"]),
    ],
)
def test_bad_estimates_fail_alone_and_in_a_sentence(stereo: Path, tmp_path: Path, change, phrases: list[str]) -> None:
    mine = estimates_of(stereo, tmp_path / "mine")
    change(mine)
    result = benchmark(stereo, estimates=mine, metrics=QUICK)
    assert len(result.failures) == len(phrases)
    for failure, phrase in zip(result.failures, phrases, strict=True):
        assert phrase in str(failure.error) and "\n" not in str(failure.error) and failure.system == "mine"
    assert [scores.track for scores in result.systems["mine"]] == ["Ann - One", "Cee - Three"]


def test_other_lengths_are_scored_and_said(corpus: Path, tmp_path: Path) -> None:
    mine = estimates_of(corpus, tmp_path / "mine")
    file = mine / "Bob - Two" / "vocals.wav"
    soundfile.write(file, soundfile.read(file)[0][:-100], RATE, subtype="FLOAT")
    result = benchmark(corpus, estimates=mine, metrics=QUICK)
    assert not result.failures
    assert result.systems["mine"][1].notes == [
        "the estimate of vocals is 100 samples shorter than its reference: padded with zeros"
    ]


def test_estimates_of_songs_that_are_not_asked_for_are_no_strangers(corpus: Path, tmp_path: Path) -> None:
    mine = estimates_of(corpus, tmp_path / "mine")
    assert not benchmark(corpus, estimates=mine, tracks="Bob*", metrics=QUICK).failures
    assert not benchmark(corpus, estimates=mine, shard=(2, 3), metrics=QUICK).failures


def test_a_call_that_makes_no_sense_is_refused_before_any_work(corpus: Path, model: str, tmp_path: Path) -> None:
    for error, phrase, more in [
        (UsageError, "no baseline named PRM; known: mixture/2", {"baselines": ["PRM"]}),
        (UsageError, "no metric named PESQ", {"metrics": ["PESQ"]}),
        (UsageError, "if_exists", {"if_exists": "append"}),
        (UsageError, "shard", {"shard": (3, 2)}),
        (UsageError, "jobs is 0", {"jobs": 0}),
        (UsageError, "Dask", {"jobs": 2, "dask": "tcp://x:1"}),
        (UsageError, "engine", {"engine": "bss"}),
        (UsageError, "two models would both be called tiny", {"model": [model, model]}),
        (ModelError, "nothing.safetensors", {"model": str(tmp_path / "nothing.safetensors")}),
        (AudioError, "no such folder of estimates", {"estimates": tmp_path / "nowhere"}),
        (AudioError, "estimates of none of the 3 songs", {"estimates": tmp_path}),
        (UmxError, "nothing here", {"tracks": "nothing here"}),
    ]:
        with pytest.raises(error, match=phrase.replace("/", ".")):
            benchmark(corpus, **{"model": model, **more})
    mine = estimates_of(corpus, tmp_path / "tiny")
    with pytest.raises(UsageError, match="two systems would both be called tiny"):
        benchmark(corpus, model, estimates=mine)


# ---------------------------------------------------------------------------------------------------------- real songs


def test_two_songs_of_musdb_score_as_museval_scores_them(data: Path) -> None:
    import_peer("museval")
    result = benchmark(data / "musdb18-7", tracks="A*", metrics=["SDR", "ISR", "SIR", "SAR"])
    assert not result.failures and [len(scores) for scores in result.systems.values()] == [2, 2, 2]
    assert not result.comparable
    own = result.systems["umx_ext"][0]
    assert (own.corpus, own.subset) == ("musdb18", "test")
    stems = find_songs(data / "musdb18-7", "test", "A*")[0].read()
    museval = score(targets(stems), umx_ext.separate(stems.mixture, 44100), 44100, track=own.track, engine="museval")
    for target in ("vocals", "accompaniment"):
        for metric in ("SDR", "ISR", "SIR", "SAR"):
            np.testing.assert_allclose(own.frames[target][metric], museval.frames[target][metric], atol=1.1e-4)
        assert own.median(target, "SDR") > result.systems["mixture/2"][0].median(target, "SDR")
