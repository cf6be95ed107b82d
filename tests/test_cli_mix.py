"""The command `umx-ext mix` on takes that are as they should be, or nearly."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch

from tests.takes import (
    RATE,
    ROOT,
    Answer,
    Run,
    band,
    caller,
    everything_below,
    expect_one_line,
    nothing,
    pair,
    voice,
    write,
)
from umx_ext import audio, cli, levels
from umx_ext.commands import mix as command
from umx_ext.commands.mix_arguments import Arguments
from umx_ext.mixing import vocal
from umx_ext.mixing.effects import Compressor, Gain, HighPass, ParametricEq, Reverb, apply
from umx_ext.mixing.settings import PRESETS
from umx_ext.stems import Stems


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    return caller(tmp_path, monkeypatch, capfd)


# ------------------------------------------------------------------------------------------------ help


def flat(text: str) -> str:
    """Help without its boxes and line breaks."""
    return " ".join(re.sub(r"[─-╿]", " ", text).split())


def test_help_begins_with_an_example_and_names_every_option_preset_and_unit(run):
    answer = run("--help")
    says = flat(answer.out)
    assert answer.code == 0 and answer.err == "" and answer.out.startswith("umx-ext mix take.wav ")
    for field in dataclasses.fields(Arguments):
        assert f"--{field.name.replace('_', '-')}" in says
    studio = PRESETS["studio"]
    for phrase in (*PRESETS, f"the preset's, {studio.vocal_db:g}", f"[default: {studio.true_peak_db:g}]",
                   f"none of studio and {PRESETS['poster'].reverb_lu:g} of poster"):  # fmt: skip
        assert phrase in says, phrase
    assert says.count("default: studio") == 1 and "milliseconds" in says and "Beats a minute" in says


def test_help_imports_no_torch():
    program = "import sys; from umx_ext.cli import main; main(['mix', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize("name", ["mix", "evaluate-mix", "mixstats"])
def test_every_command_of_mixing_is_reached_by_its_name(name, capsys):
    assert cli.main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"umx-ext {name} ")


# ------------------------------------------------------------------------------------------------ what is written


def test_the_file_holds_what_the_library_mixes(run):
    take, backing = pair()
    assert run(take, backing, "-o", "mix.wav").code == 0
    stems = Stems({"vocals": voice(channels=2), "accompaniment": band()}, RATE)
    chains, _ = vocal.plan(stems)
    mixed, rate = audio.read("mix.wav")
    assert rate == RATE and torch.allclose(mixed, vocal.mixdown(stems, chains), atol=1e-6)


def test_the_line_says_where_what_and_how_loud(run):
    answer = run(*pair(), "-o", "mix.wav", "--save-chain", "chain.json")
    assert answer.err == "" and answer.out.count("\n") == 1
    line = answer.out
    assert line.startswith("take.wav over backing.wav: mix.wav; chain chain.json; ")
    chain = vocal.chains_from_json(Path("chain.json").read_text())["vocals"]
    for effect in chain:
        if isinstance(effect, ParametricEq):
            assert all(f"{move.gain_db:+.1f} dB at " in line for move in effect.bands)
        if isinstance(effect, Reverb):
            assert f"reverb {effect.t60_s:.1f} s" in line
    compressed = [effect for effect in chain if isinstance(effect, Compressor)]
    assert (f"compressed {compressed[0].ratio:g}:1" if compressed else "not compressed") in line
    mixed, rate = audio.read("mix.wav")
    assert f"{levels.integrated_lufs(mixed, rate):.1f} LUFS, true peak {levels.true_peak_db(mixed, rate):.1f}" in line
    assert "the voice 1.8 LU below the backing" in line and "3.0 s of audio in " in line


def test_a_saved_chain_gives_the_same_file_again_and_can_be_edited(run):
    files = pair()
    assert run(*files, "-o", "mix.wav", "--save-chain", "chain.json", "--lufs", "-23").code == 0
    assert run(*files, "-o", "again.wav", "--chain", "chain.json").code == 0
    assert Path("again.wav").read_bytes() == Path("mix.wav").read_bytes()
    chains = dict(vocal.chains_from_json(Path("chain.json").read_text()))
    chains["vocals"] = (*chains["vocals"], Gain(-6.0))
    Path("chain.json").write_text(vocal.chains_to_json(chains))
    record = run(*files, "-o", "quieter.wav", "--chain", "chain.json", "--json").record
    assert record["vocals_minus_backing_lu"] == pytest.approx(PRESETS["studio"].vocal_db - 6, abs=0.1)


def test_the_same_input_gives_the_same_report(run):
    files = pair()
    texts = []
    for _ in range(2):
        assert run(*files, "-o", "m.wav", "--report", "r.json", "--if-exists", "overwrite").code == 0
        texts.append(Path("r.json").read_text())
    assert texts[0] == texts[1]
    report = json.loads(texts[0])
    assert report["take"] == "take.wav" and report["decided"]["settings"] == PRESETS["studio"].to_dict()
    assert report["chains"]["vocals"] and report["samples"] == 3 * RATE


@pytest.mark.parametrize("wanted", [-8.0, 0.0, 3.0])
def test_the_voice_is_as_loud_as_asked_for(run, wanted):
    """Measured on the two tracks that the saved chain makes, which add up to the file."""
    take, backing = write("take.wav", 0.01 * voice()), write("backing.wav", band())
    assert run(take, backing, "-o", "m.wav", "--save-chain", "c.json", "--vocal-db", str(wanted)).code == 0
    stems = Stems({"vocals": 0.01 * voice(channels=2), "accompaniment": band()}, RATE)
    after = vocal.processed(stems, vocal.chains_from_json(Path("c.json").read_text()))
    loud = {name: levels.integrated_lufs(after[name], RATE) for name in after}
    assert loud["vocals"] - loud["accompaniment"] == pytest.approx(wanted, abs=0.1)
    assert torch.allclose(audio.read("m.wav")[0], after["vocals"] + after["accompaniment"], atol=1e-6)


def test_the_mix_is_as_loud_as_asked_for(run):
    assert run(*pair(), "-o", "m.wav", "--lufs", "-23").code == 0
    assert levels.integrated_lufs(*audio.read("m.wav")) == pytest.approx(-23, abs=0.05)


def test_where_loudness_and_true_peak_conflict_the_peak_wins_and_line_and_report_say_so(run):
    answer = run(*pair(), "-o", "m.wav", "--lufs", "-5", "--true-peak", "-2", "--report", "r.json")
    mixed, rate = audio.read("m.wav")
    assert levels.true_peak_db(mixed, rate) == pytest.approx(-2, abs=0.01)
    loud = levels.integrated_lufs(mixed, rate)
    assert loud < -6
    (note,) = [note for note in json.loads(Path("r.json").read_text())["notes"] if "true peak" in note]
    assert f"{loud:.1f} LUFS instead of -5" in note and "-2 dBTP" in note and note in answer.out


def test_presets_are_known_by_name(run):
    files = pair()
    poster = run(*files, "-o", "p.wav", "--preset", "poster", "--report", "r.json", "--bpm", "120")
    assert poster.code == 0
    settings = json.loads(Path("r.json").read_text())["decided"]["settings"]
    assert settings == {**PRESETS["poster"].to_dict(), "bpm": 120.0}


def test_reverberation_is_added_where_it_is_asked_for_as_long_as_the_tempo_has_it(run):
    files, times_s = pair(), []
    for bpm in (60, 180):
        words = ("-o", "m.wav", "--if-exists", "overwrite", "--save-chain", "c.json", "--reverb-db", "-9")
        assert run(*files, *words, "--bpm", bpm).code == 0
        chain = vocal.chains_from_json(Path("c.json").read_text())["vocals"]
        times_s += [effect.t60_s for effect in chain if isinstance(effect, Reverb)]
    assert times_s == [PRESETS["studio"].slow_t60_s, PRESETS["studio"].fast_t60_s]


def test_a_tempo_without_reverberation_is_said_to_change_nothing(run):
    assert not PRESETS["studio"].reverb
    assert "--bpm changes nothing" in run(*pair(), "-o", "m.wav", "--bpm", "100").out


def test_no_mix_ever_clips(run):
    take, backing = write("take.wav", voice(level=3.0)), write("backing.wav", band(level=2.0))  # floats beyond 1
    for name, words in (("planned", ()), ("given", ("--chain", nothing(Gain(20.0))))):
        answer = run(take, backing, "-o", f"{name}.wav", "--bits", "16", *words)
        mixed, rate = audio.read(f"{name}.wav")
        assert levels.true_peak_db(mixed, rate) <= -0.98
        assert answer.code == 0
    assert "dB quieter: it would have peaked at +" in answer.out


def test_everything_is_at_the_backings_rate(run):
    """A take of another rate is the same take: its tone is where it was."""
    time_s = torch.arange(2 * 48000) / 48000
    take = write("take.wav", 0.1 * torch.sin(2 * torch.pi * 1000 * time_s)[None], 48000)
    backing = write("backing.wav", band(2.0, rate=16000), 16000)
    answer = run(take, backing, "-o", "m.wav", "--chain", nothing())
    mixed, rate = audio.read("m.wav")
    assert (rate, tuple(mixed.shape)) == (16000, (2, 32000))
    tone = mixed - band(2.0, rate=16000)
    assert int(torch.fft.rfft(tone[0]).abs().argmax()) * 16000 / 32000 == 1000
    assert "brought from 48000 to 16000 Hz" in answer.out and "above 8 kHz is gone" in answer.out


@pytest.mark.parametrize("channels", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_mono_and_stereo_go_together_and_the_mix_is_stereo(run, channels):
    take, backing = write("t.wav", voice(channels=channels[0])), write("b.wav", band(channels=channels[1]))
    assert run(take, backing, "-o", "m.wav", "--chain", nothing()).code == 0
    expected = voice(channels=channels[0]).expand(2, -1) + band(channels=channels[1]).expand(2, -1)
    assert torch.allclose(audio.read("m.wav")[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    "seconds, says",
    [(2.0, "The take ends 1.0 s before the backing"), (4.5, "The take ends 1.5 s after the backing"), (3.0, "")],
)
def test_the_shorter_one_gets_silence_and_it_is_said(run, seconds, says):
    take, backing = write("t.wav", voice(seconds)), write("b.wav", band(3.0))
    answer = run(take, backing, "-o", "m.wav", "--chain", nothing())
    mixed = audio.read("m.wav")[0]
    expected = torch.zeros(2, round(max(seconds, 3.0) * RATE))
    expected[:, : 3 * RATE] += band(3.0)
    expected[:, : round(seconds * RATE)] += voice(seconds)
    assert torch.allclose(mixed, expected, atol=1e-6)
    assert says in answer.out and ("silence" in answer.out) == bool(says)


@pytest.mark.parametrize("offset_ms", [250, -250, 0.5])
def test_an_offset_above_0_is_later(run, offset_ms):
    take, backing = pair()
    answer = run(take, backing, "-o", "m.wav", "--chain", nothing(), f"--offset={offset_ms}", "--json")
    shift = round(offset_ms * RATE / 1000)
    alone = audio.read("m.wav")[0][0, : 3 * RATE] - band()[0]
    expected = torch.nn.functional.pad(voice()[0], (max(shift, 0), 0))[max(-shift, 0) :][: 3 * RATE]
    assert torch.allclose(alone[: len(expected)], expected, atol=1e-6)
    assert answer.record["offset_ms"] == offset_ms and answer.record["offset_confidence"] is None


def test_auto_without_the_song_does_not_shift_and_says_so(run):
    answer = run(*pair(), "-o", "m.wav", "--chain", nothing(), "--offset", "auto")
    assert answer.code == 0 and "not shifted" in answer.out and "--song ORIGINAL" in answer.out
    assert torch.allclose(audio.read("m.wav")[0], voice().expand(2, -1) + band(), atol=1e-6)


def test_a_late_take_is_moved_to_where_the_song_sings(run, data):
    """A real song; the take is the song through a bad telephone, and lacks its first 1.3 s."""
    song = data / "songs" / "lets_go_fishin.ogg"
    whole, rate = audio.read(song, start_s=10, duration_s=24)
    write("song.wav", whole, rate, bits="16")
    telephone = apply((HighPass(400), Gain(-20)), whole.mean(0, keepdim=True), rate)
    write("take.wav", telephone[:, round(1.3 * rate) :], rate)
    answer = run("take.wav", "song.wav", "-o", "m.wav", "--chain", nothing(), "--song", "song.wav", "--json")
    assert answer.code == 0
    assert answer.record["offset_ms"] == pytest.approx(1300, abs=5) and answer.record["offset_confidence"] > 0.4


def test_a_take_of_something_else_is_not_moved(run, data):
    song = data / "songs" / "lets_go_fishin.ogg"
    whole, rate = audio.read(song, start_s=10, duration_s=12)
    write("song.wav", whole, rate, bits="16")
    write("take.wav", torch.randn(1, 8 * rate, generator=torch.Generator().manual_seed(0)) * 0.05, rate)
    answer = run("take.wav", "song.wav", "-o", "m.wav", "--chain", nothing(), "--offset", "auto", "--song", "song.wav")
    assert answer.code == 0 and "The take is not shifted: it fits the song's voice nowhere clearly" in answer.out


def test_a_dc_offset_is_removed_and_said(run):
    take, backing = write("t.wav", voice() - voice().mean() + 0.05), write("b.wav", band() - 0.1)
    answer = run(take, backing, "-o", "m.wav", "--chain", nothing())
    mixed = audio.read("m.wav")[0]
    assert mixed.mean(1).abs().max() < 1e-5
    assert "The take had a DC offset of 5 % of full scale: removed." in answer.out
    assert "The backing had a DC offset of 10 % of full scale: removed." in answer.out


def test_a_clipped_take_is_noted_once_and_a_loud_one_not(run):
    backing = write("b.wav", band())
    clipped = write("clipped.wav", (40 * voice()).clamp(-1, 1), bits="16")
    answer = run(clipped, backing, "-o", "m.wav")
    assert answer.code == 0 and answer.out.count("clipped in ") == 1 and answer.out.count("is clipped") == 1
    loud = write("loud.wav", 0.99 * voice() / voice().abs().max(), bits="16")
    assert "clipped" not in run(loud, backing, "-o", "m2.wav").out


@pytest.mark.parametrize("name", ["m.flac", "m.mp3", "m.ogg", "m.m4a", "m.WAV"])
def test_the_suffix_chooses_the_format(run, name):
    assert run(*pair(), "-o", name, "--chain", nothing()).code == 0
    info = audio.probe(name)
    assert info.format == name.lower().split(".")[1] and info.samples == 3 * RATE


def test_bits_are_the_backings_unless_asked_for(run):
    take, backing = write("t.wav", voice()), write("b.wav", band(), bits="24")
    assert run(take, backing, "-o", "as_it_is.wav", "--chain", nothing()).code == 0
    assert run(take, backing, "-o", "sixteen.flac", "--bits", "16", "--chain", nothing()).code == 0
    assert soundfile.info("as_it_is.wav").subtype == "PCM_24" and soundfile.info("sixteen.flac").subtype == "PCM_16"


def test_without_a_name_the_mix_is_beside_the_take(run):
    Path("takes").mkdir()
    write("takes/one.wav", voice()), write("b.wav", band())
    assert run("takes/one.wav", "b.wav", "--chain", nothing()).code == 0
    assert run("takes/one.wav", "b.wav", "--chain", nothing(), "--format", "flac").code == 0
    assert everything_below(Path("takes")) == ["one.mix.flac", "one.mix.wav", "one.wav"]


def test_what_is_there_is_kept_unless_overwriting_is_asked_for(run):
    words = (*pair(), "-o", "m.wav", "--chain", nothing())
    assert run(*words).code == 0
    before = Path("m.wav").read_bytes()
    answer = run(*words, "--offset", "100")
    assert answer.code == 0 and "skipped, m.wav there" in answer.out and "--if-exists overwrite" in answer.out
    assert run(*words, "--json").record["status"] == "skipped"
    expect_one_line(run(*words, "--if-exists", "error"), 6, "m.wav", "--if-exists")
    beside = run(*words, "--report", "r.json")
    assert beside.code == 0 and "kept m.wav" in beside.out and Path("r.json").is_file()
    assert Path("m.wav").read_bytes() == before
    assert run(*words, "--offset", "100", "--if-exists", "overwrite").code == 0
    assert Path("m.wav").read_bytes() != before


def test_quiet_says_nothing_json_is_one_record_and_verbose_says_more_on_standard_error(run):
    words = (*pair(), "-o", "m.wav", "--if-exists", "overwrite")
    assert run(*words, "-q") == Answer(0, "", "")
    loud = run(*words, "-v")
    assert loud.out.count("\n") == 1 and "mixing" in loud.err and "deciding" in loud.err
    answer = run(*words, "--json")
    record = answer.record
    assert answer.err == "" and record["status"] == "done" and record["outputs"] == {"mix": "m.wav"}
    mixed, rate = audio.read("m.wav")
    assert record["integrated_lufs"] == pytest.approx(levels.integrated_lufs(mixed, rate), abs=0.05)
    assert record["true_peak_dbtp"] == pytest.approx(levels.true_peak_db(mixed, rate), abs=0.05)


def test_progress_is_shown_once_it_takes_longer_than_two_seconds(monkeypatch):
    class Screen:
        bars = 0
        shares: list[float] = []  # noqa: RUF012 - one test's

        def bar(self, name: str, total: int) -> int:
            self.bars += 1
            return 1

        def advance(self, bar: int | None, done: int, total: int) -> None:
            if bar is not None:
                self.shares.append(done / total)

        def detail(self, says: str) -> None:
            pass

    screen, clock = Screen(), [0.0]
    monkeypatch.setattr(command.time, "monotonic", lambda: clock[0])
    running = command._Run(screen)  # type: ignore[arg-type]
    for clock[0], share in ((0.0, 0.0), (1.9, 0.2), (2.1, 0.4), (5.0, 0.9)):
        running._step("take.wav", "deciding", share)
    assert screen.bars == 1 and screen.shares == [0.4, 0.9]
