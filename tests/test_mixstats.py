"""What mixes have in common: balances that are known because they were made, pyloudnorm, and the command."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from tests.corpus import make_corpus, make_model, make_song
from tests.peers import import_peer
from umx_ext import cli
from umx_ext.commands import mixstats
from umx_ext.corpora import find_songs, targets
from umx_ext.errors import AudioError, UsageError
from umx_ext.mixing import statistics
from umx_ext.mixing.statistics import MixLevels, SilentStemError, clips, measure, summarise
from umx_ext.stems import Stems

RATE = 16000
Measure = Callable[[Stems], MixLevels]
Run = Callable[..., tuple[int, str, str]]


def noise(seconds: float, seed: int = 0, channels: int = 2) -> Tensor:
    return 0.05 * torch.randn(channels, round(seconds * RATE), generator=torch.Generator().manual_seed(seed))


def gain(waveform: Tensor, db: float) -> Tensor:
    return waveform * 10 ** (db / 20)


def pair(vocals: Tensor, backing: Tensor) -> Stems:
    return Stems({"vocals": vocals, "accompaniment": backing}, RATE)


# ---------------------------------------------------------------------------------------------------------------- laws


def law_balance_is_vocals_minus_accompaniment(of: Measure) -> None:
    """A copy of the accompaniment, 3.5 dB quieter, is -3.5 LU: the sign, and the unit."""
    backing = noise(2)
    assert of(pair(gain(backing, -3.5), backing)).relative_lu == pytest.approx(-3.5, abs=1e-4)


def law_balance_does_not_know_how_loud_the_song_is(of: Measure) -> None:
    song = pair(gain(noise(2, 1), 2), noise(2, 2))
    quiet = pair(*(gain(song[part], -20) for part in ("vocals", "accompaniment")))
    assert of(quiet).relative_lu == pytest.approx(of(song).relative_lu, abs=1e-4)
    assert of(quiet).mix_lufs == pytest.approx(of(song).mix_lufs - 20, abs=1e-4)


def law_pauses_of_the_singer_do_not_make_her_quieter(of: Measure) -> None:
    vocals, backing = noise(8, 1), noise(8, 2)
    vocals[:, 4 * RATE :] = 0
    whole = pair(noise(8, 1), backing)
    assert of(pair(vocals, backing)).relative_lu == pytest.approx(of(whole).relative_lu, abs=0.2)


def law_mono_is_what_a_player_makes_of_it(of: Measure) -> None:
    one = noise(2, channels=1)
    assert of(pair(one, one)).relative_lu == 0
    songs = Stems({"vocals": one, "accompaniment": one}, RATE), pair(one.repeat(2, 1), one.repeat(2, 1))
    assert of(songs[0]) == of(songs[1])


def law_the_callers_stems_are_untouched(of: Measure) -> None:
    stems = pair(gain(noise(2, 1), 40), gain(noise(2, 2), 40))
    before = {part: stems[part].clone() for part in stems}
    of(stems)
    assert all(torch.equal(stems[part], before[part]) for part in stems)


def backwards(stems: Stems) -> MixLevels:
    return replace(measure(stems), relative_lu=-measure(stems).relative_lu)


def of_levels(stems: Stems) -> MixLevels:
    """RMS instead of gated loudness: as if pauses were quiet singing."""
    rms = [float(10 * stems[part].square().mean().log10()) for part in ("vocals", "accompaniment")]
    return replace(measure(stems), relative_lu=rms[0] - rms[1])


def against_full_scale(stems: Stems) -> MixLevels:
    return replace(measure(stems), relative_lu=measure(stems).mix_lufs)


def without_doubling(stems: Stems) -> MixLevels:
    if stems["vocals"].shape[0] == 2:
        return measure(stems)
    silent = torch.zeros_like(stems["vocals"])
    return measure(pair(*(torch.cat([stems[part], silent]) for part in ("vocals", "accompaniment"))))


def normalised_in_place(stems: Stems) -> MixLevels:
    for part in stems:
        stems[part].div_(stems[part].abs().max())
    return measure(stems)


LIARS = [
    (law_balance_is_vocals_minus_accompaniment, backwards),
    (law_balance_does_not_know_how_loud_the_song_is, against_full_scale),
    (law_pauses_of_the_singer_do_not_make_her_quieter, of_levels),
    (law_mono_is_what_a_player_makes_of_it, without_doubling),
    (law_the_callers_stems_are_untouched, normalised_in_place),
]


@pytest.mark.parametrize("law, liar", LIARS, ids=lambda value: value.__name__)
def test_a_balance_obeys_and_the_law_catches_its_liar(law, liar):
    law(measure)
    with pytest.raises(AssertionError):
        law(liar)


# ------------------------------------------------------------------------------------------------------------- figures


def test_a_song_made_of_steps_has_their_range_and_share():
    """20 s of singing, 20 s of it 10 dB quieter, 10 s of nothing."""
    vocals = torch.cat([noise(20, 1), gain(noise(20, 2), -10), torch.zeros(2, 10 * RATE)], 1)
    found = measure(pair(vocals, noise(50, 3)), "Ann - One")
    assert (found.name, found.start_s, found.duration_s) == ("Ann - One", 0.0, 50.0)
    assert found.active_share == pytest.approx(0.8)
    assert found.active_range_lu == pytest.approx(10, abs=0.3)
    assert found.range_lu > found.active_range_lu


def test_clicks_of_a_known_height_lie_that_far_above_the_loud_passages():
    """A sine with one sample in each 50 ms set to 20 dB above its own peak; K-weighting leaves 1 kHz where it is."""
    moments = torch.arange(10 * RATE, dtype=torch.float64) / RATE
    sine = (0.01 * torch.sin(2 * math.pi * 1000 * moments)).float().repeat(2, 1)
    found = measure(pair(sine, noise(10)))
    assert found.peaks_over_loudness_db == pytest.approx(0, abs=0.15)  # a stereo sine's LUFS are its peak's dBFS
    clicks = sine.clone()
    clicks[:, 400::800] = 0.1
    assert measure(pair(clicks, noise(10))).peaks_over_loudness_db < 20 - 1  # the clicks are loud, too
    assert measure(pair(clicks, noise(10))).peaks_over_loudness_db > 12


def test_a_voice_of_one_octave_is_in_that_octave():
    moments = torch.arange(4 * RATE, dtype=torch.float64) / RATE
    sine = (0.01 * torch.sin(2 * math.pi * 1000 * moments)).float().repeat(2, 1)
    found = measure(pair(sine, gain(sine, 6)))
    assert found.vocal_bands_db == pytest.approx(found.accompaniment_bands_db, abs=1e-3, nan_ok=True)
    # RMS of each channel's sine: 3.01 dB below its peak, which its LUFS in stereo are.
    assert found.vocal_bands_db[4] == pytest.approx(-3.01, abs=0.1)  # frames at the ends hold half of it
    assert max(found.vocal_bands_db[:4]) < -30 and math.isnan(found.vocal_bands_db[8])


def test_four_stems_are_two_and_the_mix_is_their_sum():
    parts = {name: noise(4, seed) for seed, name in enumerate(("vocals", "drums", "bass", "other"))}
    four = Stems(parts, RATE, mixture=torch.zeros(2, 4 * RATE))
    two = pair(parts["vocals"], parts["drums"] + parts["bass"] + parts["other"])
    assert measure(four) == measure(two)


@pytest.mark.parametrize("part", ["vocals", "accompaniment"])
def test_a_song_without_one_of_the_two_has_no_balance(part):
    stems = {"vocals": noise(4), "accompaniment": noise(4), part: torch.full((2, 4 * RATE), 1e-5)}
    with pytest.raises(SilentStemError, match=rf"the {part} of Bob - Two stay below -70 LUFS"):
        measure(Stems(stems, RATE), "Bob - Two")


def test_clips_are_cut_where_there_is_voice():
    vocals = noise(50)
    vocals[:, 10 * RATE : 18 * RATE] = 0  # of the second clip of 10 s two are left
    vocals[:, 20 * RATE : 26 * RATE] = 0  # of the third, four
    found = clips(pair(vocals, noise(50, 1)), 10.0)
    assert [start_s for start_s, _ in found] == [0.0, 20.0, 30.0, 40.0]
    assert torch.equal(found[1][1]["vocals"], vocals[:, 20 * RATE : 30 * RATE])
    assert len(clips(pair(noise(9.9), noise(9.9)), 10.0)) == 0
    with pytest.raises(UsageError, match=r"clips of at least 0.4 s, got 0.1"):
        clips(pair(vocals, vocals), 0.1)


def level(name: str = "", duration_s: float = 60.0, **values: float) -> MixLevels:
    fields = dict.fromkeys(MixLevels.__dataclass_fields__, 1.0)
    octaves = dict.fromkeys(("vocal_bands_db", "accompaniment_bands_db"), (-10.0,) * 8 + (math.nan,))
    return MixLevels(**{**fields, **octaves, "name": name, "duration_s": duration_s, **values})


def test_a_corpus_has_mean_deviation_and_median():
    values = [-5.0, -1.0, 0.5, 7.0]
    found = summarise(level(relative_lu=value) for value in values).statistics["relative_lu"]
    assert (found.mean, found.sd, found.median, found.count) == pytest.approx(
        (np.mean(values), np.std(values, ddof=1), np.median(values), 4)
    )
    assert found.published == -1.77
    one = summarise([level(relative_lu=3.0)]).statistics["relative_lu"]
    assert one.mean == one.median == 3.0 and math.isnan(one.sd)
    with pytest.raises(UsageError, match="at least one song"):
        summarise([])


def test_ranges_of_less_than_30_s_do_not_count_as_ranges_and_the_notes_say_so():
    songs = [level(duration_s=30.0, range_lu=9.0), level(duration_s=29.9, range_lu=2.0), level(range_lu=math.nan)]
    corpus = summarise(songs)
    assert (corpus.statistics["range_lu"].mean, corpus.statistics["range_lu"].count) == (9.0, 1)
    assert corpus.statistics["short_range_lu"].mean == 2.0
    assert corpus.notes[0].startswith("1 of 3 are shorter than 30 s")
    assert not any("shorter" in note for note in summarise([level()]).notes)


def test_tables_say_the_same_in_every_format():
    corpus = summarise([level("a", relative_lu=-2.0), level("b", relative_lu=-3.0, range_lu=math.nan)])
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(corpus.table("csv")))}
    assert list(rows) == list(statistics.FIGURES)
    assert (rows["relative_lu"]["mean"], rows["relative_lu"]["published"]) == ("-2.5", "-1.77")
    assert rows["short_range_lu"]["mean"] == ""
    record = json.loads(corpus.table("json"))
    assert record["statistics"][0]["mean"] == -2.5 and [song["name"] for song in record["songs"]] == ["a", "b"]
    assert record["songs"][1]["range_lu"] is None
    markdown = corpus.table("md").splitlines()
    assert markdown[2] == "| vocals minus accompaniment, LU | -2.50 | 0.71 | -2.50 | 2 | -1.77 |"
    assert "short" not in markdown[4] and markdown[-1] == corpus.notes[-1]
    text = corpus.table().splitlines()
    assert len({len(line) for line in text[: len(rows) + 1]}) == 1
    with pytest.raises(UsageError, match="'html'; known: text, md, csv, json"):
        corpus.table("html")


# ---------------------------------------------------------------------------------------------------------- real audio


def test_real_songs_are_balanced_as_pyloudnorm_says(data):
    pyloudnorm = import_peer("pyloudnorm")
    for song in find_songs(data / "musdb18-7", "valid")[:2]:
        stems = song.read()
        meter = pyloudnorm.Meter(stems.sample_rate, filter_class="DeMan")
        vocals, backing = (
            meter.integrated_loudness(targets(stems)[part].T.double().numpy()) for part in ("vocals", "accompaniment")
        )
        assert measure(stems).relative_lu == pytest.approx(vocals - backing, abs=1e-6), song.name


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Exit code, standard output and standard error of a call."""
    monkeypatch.setattr(cli, "_dispatch", lambda tokens: cli._parse_and_run(mixstats.app, tokens))

    def call(*tokens: object) -> tuple[int, str, str]:
        code = cli.main([str(token) for token in tokens])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def names_of(out: str) -> list[str]:
    return [song["name"] for song in json.loads(out)["songs"]]


def test_it_measures_every_song_of_a_folder(run, tmp_path):
    root = make_corpus(tmp_path / "songs", ("Ann - One", "Bob - Two", "Cy - Three"))
    code, out, err = run(root)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["figure", "mean"] and lines[1].startswith("vocals minus accompaniment, LU")
    code, out, _ = run(root, "--table", "json")
    songs = find_songs(root)
    assert names_of(out) == [song.name for song in songs]
    assert [song["relative_lu"] for song in json.loads(out)["songs"]] == [
        measure(song.read()).relative_lu for song in songs
    ]


def test_csv_is_figures_alone_and_quiet_is_without_notes(run, tmp_path):
    root = make_corpus(tmp_path / "songs")
    code, out, err = run(root, "--table", "csv")
    assert code == 0 and out.startswith("name,says,unit,mean,") and "Reverberation cannot be read" in err
    assert run(root, "--table", "csv", "-q") == (0, out, "")
    _, out, _ = run(root, "--table", "md")
    assert out.splitlines()[1].startswith("| --- | ---:")


def test_test_songs_are_measured_only_when_asked_for(run, tmp_path):
    for number, (subset, name) in enumerate((("train", "A"), ("valid", "B"), ("test", "C"))):
        make_song(tmp_path / subset / name, number, ("vocals", "accompaniment"))
    assert names_of(run(tmp_path, "--table", "json")[1]) == ["A", "B"]
    for subset, names in (("valid", ["B"]), ("test", ["C"]), ("all", ["A", "B", "C"])):
        assert names_of(run(tmp_path, "--subset", subset, "--table", "json")[1]) == names


def test_musdbs_training_songs_are_all_there_whichever_folder_is_named(run, data, monkeypatch):
    seen: list[str] = []

    def noted(self, songs):
        seen[:] = sorted(song.name for song in songs)
        yield level("x")

    monkeypatch.setattr(mixstats._Run, "measured", noted)
    for folder in (data / "musdb18-7", data / "musdb18-7" / "train"):
        assert run(folder)[0] == 0 and len(set(seen)) == 94


def test_songs_without_stems_are_separated_first(run, tmp_path):
    model = make_model(tmp_path / "model.safetensors")
    folder = tmp_path / "songs"
    folder.mkdir()
    for seed in range(2):
        make_song(tmp_path / "stems" / str(seed), seed)
        soundfile.write(folder / f"{seed}.wav", soundfile.read(tmp_path / "stems" / str(seed) / "other.wav")[0], 8000)
    code, out, _ = run(folder, "--model", model, "--table", "json")
    assert code == 0 and names_of(out) == ["0.wav", "1.wav"]
    assert json.loads(out)["notes"][0].startswith("The songs were separated first")


def test_clips_are_measured_one_by_one(run, tmp_path):
    root = make_corpus(tmp_path / "songs")  # of 2.5 s
    code, out, _ = run(root, "--clip", 1, "--table", "json")
    songs = json.loads(out)["songs"]
    assert code == 0 and [(song["start_s"], song["duration_s"]) for song in songs] == [(0.0, 1.0), (1.0, 1.0)] * 2
    code, out, err = run(root, "--clip", 3)
    assert (code, out) == (4, "") and "no song" in err and "in clips of 3 s" in err


def test_a_silent_song_is_left_out_and_a_broken_one_is_an_error_and_the_rest_is_measured(run, tmp_path):
    root = make_corpus(tmp_path / "songs")
    soundfile.write(root / "Ann - One" / "vocals.wav", np.zeros(20000), 8000)
    code, out, _ = run(root)
    assert code == 0 and "Left out: the vocals of Ann - One stay below -70 LUFS" in out
    (root / "Ann - One" / "vocals.wav").write_text("no sound")
    code, out, err = run(root, "--table", "json")
    assert code == 1 and names_of(out) == ["Bob - Two"]
    assert "vocals.wav" in err and err.count("\n") == 1


def test_a_call_without_sense_is_refused_in_one_sentence(run, tmp_path):
    root = make_corpus(tmp_path / "songs")
    (tmp_path / "empty").mkdir()
    for tokens, code, says in (
        ((tmp_path / "none",), 2, "does not exist; give a folder of songs"),
        ((root / "Ann - One" / "vocals.wav",), 2, "is a file; give a folder of songs"),
        ((tmp_path / "empty",), 4, "no songs with stems"),
        ((root, "--model", "umx"), 2, "have their stems: leave out --model umx"),
        ((root, "--clip", "0.1"), 2, "clips of at least 0.4 s, got 0.1"),
        ((root, "--subset", "some"), 2, "some"),
        ((), 2, "see umx-ext mixstats --help"),
    ):
        found, out, err = run(*tokens)
        assert (found, out) == (code, "") and says in err and err.count("\n") == 1, (tokens, err)


def test_help_shows_examples_first(run):
    code, out, _ = run("--help")
    assert code == 0 and out.startswith("umx-ext mixstats musdb18") and "--clip" in out


def test_other_stems_are_refused():
    with pytest.raises(AudioError, match="vocals and accompaniment, got drums"):
        measure(Stems({"drums": noise(1)}, RATE))
