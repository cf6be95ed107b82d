"""Songs with known stems: what is found, that it is what musdb reads, and what bad folders are told."""

from __future__ import annotations

import hashlib
import json
import pickle
import platform
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import soundfile
import torch

from tests.peers import import_peer
from umx_ext import Stems, audio
from umx_ext.corpora import FOUR, MUSDB_STREAMS, MUSDB_VALID, Song, find_songs, targets
from umx_ext.errors import AudioError, UsageError

STORED = json.loads((Path(__file__).parent / "vectors" / "musdb_decoding.json").read_text())
HAS_FFMPEG = shutil.which("ffmpeg") and shutil.which("ffprobe")


def write_song(folder: Path, stems: dict[str, int] | list[str], *, rate: int = 8000, channels: int = 2) -> Path:
    """`<folder>/<stem>.wav` (or the file name given), noise of 400 samples or of the length given."""
    folder.mkdir(parents=True)
    for seed, stem in enumerate(stems):
        length = stems[stem] if isinstance(stems, dict) else 400
        noise = np.random.default_rng(seed).uniform(-0.5, 0.5, (length, channels))
        soundfile.write(folder / (stem if "." in stem else f"{stem}.wav"), noise, rate, subtype="PCM_16")
    return folder


def steps(waveform: torch.Tensor) -> np.ndarray:
    """(samples, channels) in 16-bit steps; fails for what is not made of them."""
    scaled = (waveform.mT.double() * 32768).numpy()
    whole = np.rint(scaled).astype("<i4", order="C")
    assert np.array_equal(whole, scaled)
    return whole


def everything(song: Song) -> dict[str, torch.Tensor]:
    stems = song.read()
    assert stems.sample_rate == 44100
    return {"mixture": stems.mixture, **targets(stems)}


# ------------------------------------------------------------------------------------------------- decoding as musdb's


@pytest.mark.parametrize("name", STORED["songs"])
def test_stem_files_decode_to_what_musdb_decoded_with_ffmpeg(data, name):
    (song,) = find_songs(data / "musdb18-7", "test", name)
    stored, waveforms = STORED["songs"][name], everything(song)
    assert waveforms.keys() == stored["streams"].keys() == {*MUSDB_STREAMS, "accompaniment"}
    decoder = (".".join(map(str, av.library_versions["libavcodec"])), platform.machine())
    for stem, theirs in stored["streams"].items():
        ours = steps(waveforms[stem])
        assert ours.shape == (theirs["samples"], 2), stem
        reach = 3 if stem == "accompaniment" else 1  # steps: of each stem in the sum one
        assert abs(ours[stored["positions"]] - theirs["values"]).max() <= reach, stem
        halves = np.array_split(ours.astype(np.int64), range(22050, len(ours), 22050))
        assert [int((half**2).sum()) for half in halves] == pytest.approx(theirs["energy"], rel=1e-5, abs=1000), stem
        assert len(theirs["by"]) < 1e-3 * ours.size and max(map(abs, theirs["by"]), default=0) <= reach
        if decoder == (STORED["ours"]["libavcodec"], STORED["ours"]["machine"]):
            # To the last bit, but for the samples half way between two steps that two versions of FFmpeg round to
            # different ones; which those are is known for this version.
            ours.ravel()[theirs["differs_at"]] += np.array(theirs["by"], "<i4")
            assert hashlib.sha256(ours.tobytes()).hexdigest() == theirs["sha256_int32"], stem


@pytest.mark.skipif(not HAS_FFMPEG, reason="ffmpeg is not installed")
@pytest.mark.parametrize("name", [next(iter(STORED["songs"])), "Side Effects Project - Sing With Me"])
def test_stem_files_decode_to_what_musdb_decodes_here(data, tmp_path, name):
    musdb = import_peer("musdb")
    (tmp_path / "test").mkdir()  # of one song: musdb calls ffprobe for each
    (tmp_path / "test" / f"{name}.stem.mp4").symlink_to(data / "musdb18-7" / "test" / f"{name}.stem.mp4")
    (song,) = find_songs(tmp_path)
    (track,) = musdb.DB(root=str(tmp_path), subsets="test")
    waveforms = everything(song)
    theirs = {
        **dict(zip(MUSDB_STREAMS, track.stems, strict=True)),
        "accompaniment": track.targets["accompaniment"].audio,
    }
    assert waveforms.keys() == theirs.keys()
    for stem, waveform in waveforms.items():
        assert waveform.mT.shape == theirs[stem].shape, stem
        apart = abs(steps(waveform) - np.rint(theirs[stem] * 32768))
        assert apart.max() <= (3 if stem == "accompaniment" else 1), stem
        assert (apart > 0).mean() < 2e-3, stem


def test_musdb_finds_the_same_songs(data):
    """musdb's own selection by names; its loading is kept from calling ffmpeg."""
    musdb = import_peer("musdb")
    for subset, split in (("test", None), ("train", "train"), ("train", "valid")):
        theirs = musdb.DB.__new__(musdb.DB)
        theirs.root, theirs.is_wav, theirs.sample_rate = str(data / "musdb18-7"), False, None
        yaml = import_peer("yaml")
        theirs.setup = yaml.safe_load((Path(musdb.__path__[0]) / "configs" / "mus.yaml").read_text())
        with pytest.MonkeyPatch.context() as patch:
            nothing = dict.fromkeys(("samples", "duration", "rate"), lambda stream: 0)
            patch.setattr(musdb.audio_classes.stempeg, "Info", lambda path, nothing=nothing: SimpleNamespace(**nothing))
            tracks = theirs.load_mus_tracks([subset], split)
        ours = find_songs(data / "musdb18-7", split or subset)
        assert [song.name for song in ours] == [track.name for track in tracks]
        assert {song.subset for song in ours} == {split or subset}
        assert all(MUSDB_STREAMS[name] == source.stem_id for name, source in tracks[0].sources.items())


def test_the_accompaniment_is_musdbs_target():
    musdb = import_peer("musdb")
    setup = import_peer("yaml").safe_load((Path(musdb.__path__[0]) / "configs" / "mus.yaml").read_text())
    generator = torch.Generator().manual_seed(0)
    stems = {name: torch.randint(-32768, 32768, (2, 5000), generator=generator) / 32768 for name in FOUR}
    track = musdb.MultiTrack(path="", name="A - B")
    track.sources = {name: musdb.Source(track, name=name) for name in FOUR}
    for name, source in track.sources.items():
        source.audio = stems[name].double().numpy().T
    theirs = musdb.DB.create_targets(SimpleNamespace(setup=setup), track)
    ours = targets(Stems(stems, 44100))
    assert list(ours) == [name for name in theirs if name != "linear_mixture"]
    for name, waveform in ours.items():
        np.testing.assert_array_equal(waveform.double().numpy().T, theirs[name].audio, err_msg=name)


# ------------------------------------------------------------------------------------------------------ what is found


def test_the_sample_has_its_subsets(data):
    subsets = {subset: find_songs(data / "musdb18-7", subset) for subset in ("train", "valid", "test")}
    assert [len(songs) for songs in subsets.values()] == [80, 14, 30]
    assert {song.name for song in subsets["valid"]} == MUSDB_VALID
    assert not {song.name for song in subsets["train"]} & MUSDB_VALID
    assert {song.corpus for songs in subsets.values() for song in songs} == {"musdb18"}
    assert pickle.loads(pickle.dumps(subsets["test"])) == subsets["test"]


def test_musdb18_hq_gives_the_files_values_and_musdbs_split(tmp_path):
    valid = min(MUSDB_VALID)
    for name in (valid, "Other - Song"):
        write_song(tmp_path / "train" / name, list(MUSDB_STREAMS), rate=44100)
    write_song(tmp_path / "test" / "A - B", list(MUSDB_STREAMS), rate=44100)
    (song,) = find_songs(tmp_path)
    assert (song.name, song.subset, song.corpus) == ("A - B", "test", "musdb18-hq")
    assert song.path == tmp_path / "test" / "A - B"
    assert [[song.name for song in find_songs(tmp_path, subset)] for subset in ("train", "valid")] == [
        ["Other - Song"],
        [valid],
    ]
    stems = song.read()
    assert list(stems) == list(FOUR) and stems.sample_rate == 44100
    for name, waveform in {**stems, "mixture": stems.mixture}.items():
        truth = soundfile.read(tmp_path / "test" / "A - B" / f"{name}.wav", dtype="int16")[0]
        np.testing.assert_array_equal(steps(waveform), truth)


def test_clips_of_two_mono_stems_are_read(data):
    songs = find_songs(data / "mir1k", "test")
    assert len(songs) == 132 and {(song.corpus, song.subset) for song in songs} == {("folder", "test")}
    stems = songs[0].read()
    assert list(stems) == ["vocals", "accompaniment"] == list(targets(stems)) and stems.sample_rate == 16000
    truth = audio.read(data / "mir1k" / "test" / songs[0].name / "vocals.opus")[0]
    assert truth.shape[0] == 1 and torch.equal(stems["vocals"], truth)
    assert torch.equal(stems.mixture, stems["vocals"] + stems["accompaniment"])


def test_a_folder_of_songs_needs_no_subfolders(tmp_path):
    write_song(tmp_path / "b", ["Vocals.flac", "accompaniment.wav", "notes.wav", "mixture.aiff"])
    write_song(tmp_path / "a", [*FOUR, "accompaniment"], channels=1)
    write_song(tmp_path / "only a mixture", ["mixture"])
    write_song(tmp_path / ".hidden", list(FOUR))
    (tmp_path / "a" / "._vocals.wav").write_bytes(b"what macOS leaves")
    (tmp_path / "a" / "vocals.txt").write_text("words")
    first, second = find_songs(tmp_path)
    assert [(song.name, song.subset, song.corpus) for song in (first, second)] == [
        ("a", "", "folder"),
        ("b", "", "folder"),
    ]
    stems = first.read()
    assert list(stems) == list(FOUR), "a set of four has its accompaniment from them"
    assert stems["vocals"].shape == (1, 400)
    assert torch.equal(targets(stems)["accompaniment"], stems["drums"] + stems["bass"] + stems["other"])
    assert list(second.read()) == ["vocals", "accompaniment"] and set(second.files) == {*second.read(), "mixture"}
    mixture = soundfile.read(tmp_path / "b" / "mixture.aiff", dtype="int16")[0]
    np.testing.assert_array_equal(steps(second.read().mixture), mixture)


def test_a_folder_named_valid_is_the_valid_subset_and_train_keeps_all(tmp_path):
    for name in ("train/x", f"train/{min(MUSDB_VALID)}", "valid/y"):
        write_song(tmp_path / name, ["vocals", "accompaniment"])
    assert [song.name for song in find_songs(tmp_path, "valid")] == ["y"]
    assert [song.name for song in find_songs(tmp_path, "train")] == [min(MUSDB_VALID), "x"]


def test_a_pattern_chooses_songs_as_a_shell_does(data):
    names = [song.name for song in find_songs(data / "musdb18-7", "test", "T*[!s]")]
    assert names == [
        "The Doppler Shift - Atrophy",
        "The Easton Ellises - Falcon 69",
        "The Sunshine Garcia Band - For I Am The Moon",
        "Triviul feat. The Fiend - Widow",
    ]


# ---------------------------------------------------------------------------------------------------------- bad input


def refused(error: type[Exception], *words: object):
    """The message is one line and holds all of the words."""
    return pytest.raises(
        error, match="".join(rf"(?=.*{part})" for part in (re.escape(str(word)) for word in words)) + r"[^\n]*\Z"
    )


@pytest.mark.parametrize(
    "subset, make, error, words",
    [
        ("test", lambda root: None, UsageError, ["does not exist", "root"]),
        ("test", lambda root: root.write_text("x"), UsageError, ["is a file"]),
        ("dev", lambda root: root.mkdir(), UsageError, ["'dev'", "train, valid, test"]),
        (
            "test",
            lambda root: root.mkdir(),
            AudioError,
            [".stem.mp4", "{mixture,drums", "flac", "no folder train", "found nothing"],
        ),
        (
            "test",
            lambda root: [write_song(root / f"{n}", ["piano"]) for n in "abcdef"],
            AudioError,
            ["no songs with stems in", "found a/, b/, c/, d/ and 2 more"],
        ),
        (
            "test",
            lambda root: write_song(root / "musdb" / "test" / "s", list(FOUR)),
            AudioError,
            ["no songs", "found musdb/", "did you mean", "root/musdb?"],
        ),
        ("test", lambda root: (root / "test").mkdir(parents=True), AudioError, ["no songs", "root/test"]),
        (
            "test",
            lambda root: write_song(root / "train" / "s", list(FOUR)),
            UsageError,
            ["no folder 'test'", "subsets: train"],
        ),
        ("train", lambda root: write_song(root / "s", list(FOUR)), UsageError, ["not parted into subsets", "'test'"]),
        ("valid", lambda root: write_song(root / "train" / "s", list(FOUR)), UsageError, ["no valid songs", "none of"]),
        (
            "train",
            lambda root: write_song(root / "train" / min(MUSDB_VALID), list(FOUR)),
            UsageError,
            ["no train songs", "each of"],
        ),
        (
            "test",
            lambda root: (write_song(root / "s", list(FOUR)).parent / "t.stem.mp4").write_bytes(b"x"),
            AudioError,
            ["two kinds", "t.stem.mp4", "folder s "],
        ),
    ],
)
def test_a_root_that_cannot_be_used_is_told_in_one_sentence(tmp_path, subset, make, error, words):
    root = tmp_path / "root"
    make(root)
    with refused(error, *words):
        find_songs(root, subset)


def test_a_pattern_that_fits_nothing_is_told(data):
    with refused(UsageError, "'Nobody*'", "30", "Al James"):
        find_songs(data / "musdb18-7", "test", "Nobody*")


def damage(path: Path, content: bytes = b"not sound") -> None:
    path.write_bytes(content)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda song: write_song(song, ["vocals", "drums", "bass"]), ["lacks other", "vocals and accompaniment"]),
        (lambda song: write_song(song, ["drums", "bass", "other", "mixture"]), ["lacks vocals"]),
        (lambda song: write_song(song, ["vocals", "mixture"]), ["lacks accompaniment"]),
        (lambda song: write_song(song, ["accompaniment"]), ["lacks vocals", "expected"]),
        (lambda song: write_song(song, [*FOUR, "bass.flac"]), ["twice", "bass.flac and bass.wav"]),
        (lambda song: write_song(song, {"vocals": 400, "accompaniment": 401}), ["lengths", "vocals 400", "401"]),
        (lambda song: write_song(song, {**dict.fromkeys(FOUR, 400), "mixture": 399}), ["lengths", "mixture 399"]),
        (
            lambda song: (
                write_song(song, ["vocals"], rate=16000),
                soundfile.write(song / "accompaniment.wav", np.ones((400, 2)), 8000),
            ),
            ["sample rates", "16000", "8000"],
        ),
        (
            lambda song: (
                write_song(song, ["vocals"], channels=1),
                soundfile.write(song / "accompaniment.wav", np.ones((400, 2)), 8000),
            ),
            ["channels", "vocals 1", "accompaniment 2"],
        ),
        (lambda song: damage(write_song(song, list(FOUR)) / "bass.wav"), ["bass.wav", "decode"]),
        (lambda song: damage(write_song(song, list(FOUR)) / "bass.wav", b""), ["bass.wav", "empty"]),
    ],
)
def test_a_song_that_cannot_be_read_names_its_path_and_leaves_the_others(tmp_path, make, words):
    make(tmp_path / "root" / "broken")
    write_song(tmp_path / "root" / "whole", list(FOUR))
    broken, whole = find_songs(tmp_path / "root")
    with refused(AudioError, tmp_path / "root" / "broken", *words):
        broken.read()
    assert list(whole.read()) == list(FOUR)


def test_musdb_songs_are_complete_and_stereo(tmp_path):
    write_song(tmp_path / "test" / "a", list(MUSDB_STREAMS))
    write_song(tmp_path / "test" / "b", [*FOUR])
    write_song(tmp_path / "test" / "c", list(MUSDB_STREAMS), channels=1)
    whole, without_mixture, mono = find_songs(tmp_path)
    assert {song.corpus for song in (whole, without_mixture, mono)} == {"musdb18-hq"}
    assert whole.read()["vocals"].shape == (2, 400)
    with refused(AudioError, tmp_path / "test" / "b", "lacks mixture"):
        without_mixture.read()
    with refused(AudioError, tmp_path / "test" / "c", "1 channel", "stereo"):
        mono.read()


def write_packed(path: Path, streams: int, channels: int = 2, lengths: int | None = None) -> None:
    """AAC streams in one mp4; the last one is `lengths` samples longer."""
    layout = {1: "mono", 2: "stereo"}[channels]
    with av.open(str(path), "w", format="mp4") as container:
        made = [container.add_stream("aac", rate=44100, layout=layout) for _ in range(streams)]
        for number, stream in enumerate(made):
            length = 8192 + (lengths or 0) * (number == streams - 1)
            noise = np.random.default_rng(number).uniform(-0.3, 0.3, (channels, length)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(noise, format="fltp", layout=layout)
            frame.sample_rate = 44100
            container.mux([*stream.encode(frame), *stream.encode(None)])


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda path: write_packed(path, 4), ["4 audio stream", "has 5", "mixture, drums, bass, other, vocals"]),
        (lambda path: write_packed(path, 5, channels=1), ["1 channel", "stereo"]),
        (lambda path: write_packed(path, 5, lengths=4096), ["lengths", "vocals 13312", "other 9216"]),
        (lambda path: damage(path), ["not sound", "cut short"]),
        (lambda path: damage(path, b""), ["empty"]),
    ],
)
def test_a_stem_file_that_is_not_musdbs_names_itself(tmp_path, make, words):
    make(tmp_path / "x.stem.mp4")
    (song,) = find_songs(tmp_path)
    assert (song.name, song.subset, song.corpus) == ("x", "", "musdb18")
    with refused(AudioError, tmp_path / "x.stem.mp4", *words):
        song.read()


@pytest.mark.parametrize("kept", [0.5, 0.98])
def test_a_stem_file_cut_short_is_told(data, tmp_path, kept):
    whole = next((data / "musdb18-7" / "test").glob("Zeno*")).read_bytes()
    (tmp_path / "x.stem.mp4").write_bytes(whole[: int(len(whole) * kept)])
    (song,) = find_songs(tmp_path)
    with refused(AudioError, "x.stem.mp4", "cut short"):
        song.read()


def test_targets_of_another_set_are_refused():
    with refused(AudioError, "expected the stems", "got vocals, drums"):
        targets(Stems(dict.fromkeys(["vocals", "drums"], torch.zeros(2, 3)), 8000))


def test_a_stem_file_that_decodes_to_nan_is_told(data, monkeypatch):
    (song,) = find_songs(data / "musdb18-7", "test", "Zeno*")
    block = np.full((300032, 2), np.nan, np.float32)
    monkeypatch.setattr("umx_ext.corpora.AvSource.read", lambda source, samples: block)
    with refused(AudioError, song.path, "NaN", "stream 0"):
        song.read()
