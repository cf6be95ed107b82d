"""Scores of a song: museval's protocol, museval's files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

import umx_ext
from tests.corpus import FOUR, RATE, wave
from tests.peers import import_peer
from umx_ext.errors import AudioError, OutputError, UsageError
from umx_ext.evaluation import bsseval
from umx_ext.evaluation.scores import FRAME_METRICS, METRICS, Row, TrackScores, check_metrics, evaluate, frame, score
from umx_ext.evaluation.store import read_scores, write_scores

ALL, PAIR = (*FOUR, "accompaniment"), ("vocals", "accompaniment")


def tensor(samples: np.ndarray) -> Tensor:
    return torch.from_numpy(samples.T.copy()).float()


@pytest.fixture(scope="module")
def truth() -> dict[str, Tensor]:
    """Three seconds, of one channel because museval takes its time; in the last one `other` is silent."""
    stems = {stem: tensor(wave(seed, 3.0)) for seed, stem in enumerate(FOUR)}
    stems["other"][:, 2 * RATE :] = 0
    return {**stems, "accompaniment": stems["drums"] + stems["bass"] + stems["other"]}


@pytest.fixture(scope="module")
def guess(truth: dict[str, Tensor]) -> dict[str, Tensor]:
    return {stem: truth[stem] + 0.4 * tensor(wave(50 + seed, 3.0)) for seed, stem in enumerate(ALL)}


def museval_of(truth: dict[str, Tensor], guess: dict[str, Tensor], folder: Path | None = None):
    """museval's own function for a track of musdb."""
    museval = import_peer("museval")
    targets = {stem: SimpleNamespace(audio=truth[stem].numpy().T.astype(np.float64)) for stem in truth}
    track = SimpleNamespace(targets=targets, name="Ann - One", rate=RATE, subset="test")
    estimates = {stem: guess[stem].numpy().T.astype(np.float64) for stem in guess}
    return museval.eval_mus_track(track, estimates, output_dir=folder)


@pytest.fixture(scope="module")
def of_all(truth, guess, tmp_path_factory: pytest.TempPathFactory):
    """museval's scores of all five, and the folder it has written them to."""
    folder = tmp_path_factory.mktemp("museval")
    return museval_of(truth, guess, folder), folder


def values_of(store) -> dict[tuple[str, str], np.ndarray]:
    return {
        (target["name"], metric): np.array([float(frame["metrics"][metric]) for frame in target["frames"]])
        for target in store.scores["targets"]
        for metric in FRAME_METRICS
    }


# ------------------------------------------------------------------------------------------------------- the protocol


@pytest.mark.parametrize(
    ("engine", "stems"),
    [("own", ALL), ("own", ("drums", "bass")), ("own", (*PAIR, "bass")), ("museval", (*PAIR, "bass"))],
    ids=str,
)
def test_a_song_scores_as_with_museval(truth, guess, of_all, stems, engine) -> None:
    guess = {stem: guess[stem] for stem in stems}
    expected = values_of(of_all[0] if stems == ALL else museval_of(truth, guess))
    ours = score(truth, guess, RATE, track="Ann - One", engine=engine)
    assert {target for target, _ in expected} == set(ours.targets)
    for (target, metric), values in expected.items():
        np.testing.assert_allclose(ours.frames[target][metric], values, atol=1.1e-4, err_msg=f"{target} {metric}")


def test_vocals_come_from_the_evaluation_with_the_accompaniment(truth, guess) -> None:
    scores = score(truth, guess, RATE, track="t", metrics=["SDR", "SIR"])
    # `other` is silent in the third second, so there is no figure among four sources, but there is one among two.
    assert np.isnan(scores.frames["drums"]["SDR"][2]) and np.isfinite(scores.frames["vocals"]["SDR"][2])
    pair = {stem: guess[stem] for stem in PAIR}
    assert np.array_equal(scores.frames["vocals"]["SIR"], score(truth, pair, RATE, track="t").frames["vocals"]["SIR"])
    alone = score(truth, {stem: guess[stem] for stem in FOUR}, RATE, track="t")
    assert np.isnan(alone.frames["vocals"]["SDR"][2])


def test_sdr_alone_computes_no_filters_and_is_the_same(truth, guess, monkeypatch: pytest.MonkeyPatch) -> None:
    full = score(truth, guess, RATE, track="t")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("filters were computed")

    monkeypatch.setattr(bsseval, "evaluate", never)
    quick = score(truth, guess, RATE, track="t", metrics=["SDR", "SI-SDR", "uSDR"])
    assert quick.targets == full.targets and quick.metrics == ("SDR", "SI-SDR", "uSDR")
    for target in quick.targets:
        np.testing.assert_allclose(quick.frames[target]["SDR"], full.frames[target]["SDR"], atol=1.1e-5)
    with pytest.raises(AssertionError, match="filters"):
        score(truth, guess, RATE, track="t", metrics=["SIR"])


def test_museval_computes_sdr_too_where_it_is_asked_for(truth, guess, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = []

    def spy(references, estimates, sample_rate, *, engine):
        engines.append(engine)
        return {"SDR": np.zeros((len(references), 3))}

    monkeypatch.setattr(bsseval, "evaluate", spy)
    score(truth, guess, RATE, track="t", metrics=["SDR"], engine="museval")
    assert engines == ["museval", "museval"]


@pytest.mark.parametrize("change", [-700, 900])
def test_other_lengths_are_padded_and_cut_as_museval_does_and_it_is_said(truth, guess, change: int) -> None:
    samples = 3 * RATE + change
    odd = {stem: torch.nn.functional.pad(guess[stem], (0, 900))[:, :samples] for stem in PAIR}
    if change > 0:
        odd = {stem: torch.cat([sound[:, : 3 * RATE], torch.ones(1, change)], 1) for stem, sound in odd.items()}
    expected = values_of(museval_of(truth, odd))
    ours = score(truth, odd, RATE, track="t")
    for (target, metric), values in expected.items():
        np.testing.assert_allclose(ours.frames[target][metric], values, atol=1.1e-4)
    word = "cut" if change > 0 else "padded"
    assert [word in note and str(abs(change)) in note for note in ours.notes] == [True, True]


def test_of_one_estimate_there_is_sdr_and_a_sentence_about_the_rest(truth, guess) -> None:
    scores = score(truth, {"drums": guess["drums"]}, RATE, track="t")
    assert scores.metrics == ("SDR", "SI-SDR", "uSDR")
    assert len(scores.notes) == 1 and "need two estimates" in scores.notes[0]
    both = score(truth, {stem: guess[stem] for stem in ("drums", "bass")}, RATE, track="t")
    np.testing.assert_array_equal(scores.frames["drums"]["SDR"], both.frames["drums"]["SDR"])
    assert score(truth, {"drums": guess["drums"]}, RATE, track="t", metrics=["SDR"]).notes == []


def test_less_than_a_second_is_one_frame_as_in_museval(truth, guess) -> None:
    short = {stem: sound[:, :5000] for stem, sound in truth.items()}
    parts = {stem: guess[stem][:, :5000] for stem in PAIR}
    expected = values_of(museval_of(short, parts))
    for metrics in (["SDR"], METRICS):
        ours = score(short, parts, RATE, track="t", metrics=metrics).frames["vocals"]["SDR"]
        np.testing.assert_allclose(ours, expected["vocals", "SDR"], atol=1.1e-5)


def test_a_perfect_estimate_has_no_sdr_as_museval_stores_it(truth) -> None:
    scores = score(truth, {"vocals": truth["vocals"]}, RATE, track="t", metrics=["SDR", "SI-SDR"])
    assert np.isnan(scores.frames["vocals"]["SDR"]).all() and math.isnan(scores.median("vocals", "SDR"))
    assert math.isnan(scores.song["vocals"]["SI-SDR"])


def test_a_reference_that_is_silent_throughout_is_said(truth, guess) -> None:
    silent = {**truth, "bass": torch.zeros_like(truth["bass"])}
    scores = score(silent, {stem: guess[stem] for stem in ("drums", "bass")}, RATE, track="t")
    assert np.isnan(scores.frames["drums"]["SDR"]).all()
    assert any("reference of bass is silent" in note for note in scores.notes)


def test_estimates_are_not_changed_and_need_no_grad(truth, guess) -> None:
    estimate = guess["vocals"].clone().requires_grad_()
    score(truth, {"vocals": estimate, "accompaniment": guess["accompaniment"]}, RATE, track="t")
    assert torch.equal(estimate, guess["vocals"])


def test_what_cannot_be_compared_is_refused(truth, guess) -> None:
    with pytest.raises(AudioError, match=r"song: .* vocals has 2 channels, its reference 1 channel \(mono"):
        score(truth, {"vocals": guess["vocals"].expand(2, -1)}, RATE, track="song")
    with pytest.raises(AudioError, match="no estimate has a reference"):
        score(truth, {"flute": guess["vocals"]}, RATE, track="song")
    with pytest.raises(AudioError, match=r"\(channels, samples\)"):
        score(truth, {"vocals": guess["vocals"][0]}, RATE, track="song")
    with pytest.raises(UsageError, match="no metric named PESQ; known: SDR"):
        score(truth, guess, RATE, track="song", metrics=["PESQ"])
    with pytest.raises(UsageError, match="no engine named 'mir_eval'"):
        score(truth, guess, RATE, track="song", engine="mir_eval")


def test_metrics_are_put_in_order_whatever_their_case() -> None:
    assert check_metrics(["usdr", " sir", "SDR", "SIR"]) == ("SDR", "SIR", "uSDR")
    with pytest.raises(UsageError, match="none given"):
        check_metrics([])


# ----------------------------------------------------------------------------------------------------------- the files


def test_our_json_obeys_musevals_schema_and_its_stores_read_it(truth, guess, tmp_path: Path) -> None:
    museval = import_peer("museval")
    jsonschema = import_peer("jsonschema")
    scores = score(truth, guess, RATE, track="Ann - One")
    path = write_scores(scores, tmp_path / "mine", "test")
    assert path == tmp_path / "mine" / "test" / "Ann - One.json"
    schema = json.loads((Path(museval.__path__[0]) / "musdb.schema.json").read_text())
    jsonschema.validate(json.loads(path.read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):  # the schema can refuse
        jsonschema.validate({"targets": [{"name": 1}]}, schema)

    store = museval.EvalStore()
    store.add_eval_dir(tmp_path / "mine")
    medians = store.agg_frames_scores()
    for target in scores.targets:
        for metric in FRAME_METRICS:
            assert medians["Ann - One", target, metric] == pytest.approx(scores.median(target, metric), abs=1e-9)
    methods = museval.MethodStore()
    methods.add_eval_dir(tmp_path / "mine")
    assert set(methods.df["method"]) == {"mine"}
    assert len(methods.df) == len(ALL) * len(FRAME_METRICS) * 3


def test_sdr_alone_can_be_read_by_museval_too(truth, guess, tmp_path: Path) -> None:
    museval = import_peer("museval")
    scores = score(truth, guess, RATE, track="t", metrics=["SDR"])
    write_scores(scores, tmp_path, "test")
    store = museval.EvalStore()
    store.add_eval_dir(tmp_path)
    assert store.agg_frames_scores()["t", "drums", "SDR"] == pytest.approx(scores.median("drums", "SDR"), abs=1e-9)
    assert math.isnan(store.agg_frames_scores()["t", "drums", "SIR"])
    assert read_scores(tmp_path)[0].metrics == ("SDR",)


def test_musevals_own_json_is_read(of_all) -> None:
    expected = values_of(of_all[0])
    (scores,) = read_scores(of_all[1])
    assert (scores.track, scores.subset, scores.engine, scores.made_from) == ("Ann - One", "test", "museval", "")
    assert scores.metrics == FRAME_METRICS
    for (target, metric), values in expected.items():
        np.testing.assert_array_equal(scores.frames[target][metric], values)


def test_what_is_read_back_is_what_was_computed(truth, guess, tmp_path: Path) -> None:
    scores = score(truth, guess, RATE, track="Ann - One")
    scores.made_from, scores.subset, scores.corpus = "abc", "test", "folder"
    scores.notes.append("ä note")
    write_scores(scores, tmp_path, "test")
    (back,) = read_scores(tmp_path)
    assert back.rows() == scores.rows() or str(back.rows()) == str(scores.rows())  # nan is not equal to itself
    assert (back.made_from, back.subset, back.corpus, back.notes) == ("abc", "test", "folder", scores.notes)
    assert back.metrics == scores.metrics == METRICS
    assert not list(tmp_path.rglob(".*"))


def test_null_and_infinity_in_a_file_are_no_values() -> None:
    frames = [{"time": 0, "duration": 1, "metrics": {"SDR": value, "ISR": 1.0}} for value in (None, math.inf, 3.0)]
    scores = TrackScores.from_json(json.dumps({"targets": [{"name": "vocals", "frames": frames}]}), "t")
    np.testing.assert_array_equal(scores.frames["vocals"]["SDR"], [math.nan, math.nan, 3.0])
    assert scores.metrics == ("SDR", "ISR") and scores.median("vocals", "SDR") == 3.0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"targets": 3}', '{"targets": [{"name": "vocals"}]}', "null"])
def test_a_file_that_is_no_scores_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "test" / "song.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(UsageError, match=r"song\.json holds no scores in museval's format"):
        read_scores(tmp_path)


def test_a_folder_without_scores_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        read_scores(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="holds no scores"):
        read_scores(tmp_path)


def test_scores_that_cannot_be_written_leave_nothing(truth, guess, tmp_path: Path) -> None:
    scores = score(truth, guess, RATE, track="t", metrics=["SDR"])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        write_scores(scores, tmp_path / "file", "test")
    (tmp_path / "test" / "t.json").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"t\.json cannot be written"):
        write_scores(scores, tmp_path, "test")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "t.json", "test"]


# ------------------------------------------------------------------------------------------------------------ the rows


def test_evaluate_gives_a_row_for_every_value(truth, guess) -> None:
    stems = umx_ext.Stems({stem: truth[stem] for stem in FOUR}, RATE)
    rows = umx_ext.evaluate(stems, guess, track="Ann - One")
    scores = score(truth, guess, RATE, track="Ann - One")
    assert str(rows) == str(scores.rows()) and len(rows) == 5 * (4 * 3 + 2)
    assert rows[0] == Row("Ann - One", "drums", "SDR", 0.0, scores.frames["drums"]["SDR"][0])
    whole = [row for row in rows if row.second is None]
    assert {row.metric for row in whole} == {"SI-SDR", "uSDR"}


def test_rows_become_a_table_of_pandas(truth, guess) -> None:
    import_peer("pandas")
    rows = evaluate(truth, guess, RATE, track="t", metrics=["SDR", "uSDR"])
    table = rows.frame()
    assert list(table.columns) == ["track", "stem", "metric", "second", "value"]
    assert len(table) == len(rows) and table["value"].dtype == np.float64
    assert table["second"].isna().sum() == 5
    assert frame(rows).equals(table)


def test_a_waveform_never_travels_without_its_rate(truth, guess) -> None:
    with pytest.raises(UsageError, match="sample_rate="):
        evaluate(truth, guess)
    with pytest.raises(AudioError, match="8000 Hz, 48000 Hz"):
        evaluate(umx_ext.Stems({"vocals": truth["vocals"]}, RATE), umx_ext.Stems({"vocals": guess["vocals"]}, 48000))
