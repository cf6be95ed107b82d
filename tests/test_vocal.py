"""Mixing a take over a backing: what is decided, that it is obeyed, and what bad input gives."""

from __future__ import annotations

import builtins
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import reference_vocal
from tests.peers import import_peer
from umx_ext import audio, levels
from umx_ext.corpora import find_songs, targets
from umx_ext.errors import AudioError, UsageError
from umx_ext.mixing import tempo, vocal
from umx_ext.mixing.effects import Compressor, Gain, HighPass, Reverb
from umx_ext.mixing.settings import PRESETS, Settings
from umx_ext.mixing.vocal import chains_from_json, chains_to_json, mixdown, plan, processed, tempo_bpm
from umx_ext.resampling import resample
from umx_ext.stems import Stems

STUDIO, POSTER = PRESETS["studio"], PRESETS["poster"]
EVERYTHING = replace(
    STUDIO, highpass_hz=80.0, tone=True, compress=True, lra_target_lu=3.0, least_take_s=0.0, reverb=True, bpm=120.0
)


def noise(seconds: float = 3.0, rate: int = 16000, channels: int = 1, seed: int = 0, peak: float = 0.5) -> Tensor:
    """Pink-ish noise in bursts: loud, soft, silent."""
    generator = torch.Generator().manual_seed(seed)
    sound = torch.randn(channels, max(1, int(seconds * rate)), generator=generator)
    sound[:, 1:] += 0.9 * sound[:, :-1]
    bursts = torch.tensor([1.0, 0.3, 0.6, 0.0]).repeat_interleave(rate // 3)
    sound = sound * bursts.repeat(sound.shape[1] // len(bursts) + 1)[: sound.shape[1]]
    return peak * sound / sound.abs().max()


def pair(vocals: Tensor, backing: Tensor, rate: int = 16000) -> Stems:
    return Stems({"vocals": vocals, "accompaniment": backing}, rate)


def example(**kwargs) -> Stems:
    return pair(noise(seed=1, **kwargs), noise(seed=2, **kwargs))


@pytest.fixture(scope="module")
def songs(data) -> list[Stems]:
    """Two records and an amateur over karaoke."""
    found = []
    for song in find_songs(data / "musdb18-7", "test")[3:5]:
        parts = targets(song.read())
        found.append(pair(parts["vocals"], parts["accompaniment"], 44100))
    clip = sorted((data / "mir1k" / "test").iterdir())[5]
    voice, backing = (audio.read(clip / f"{stem}.opus")[0] for stem in ("vocals", "accompaniment"))
    return [*found, pair(voice, backing, 16000)]


def difference_lu(stems: Stems) -> float:
    """Loudness of the vocals minus that of the backing as a meter shows it, the louder of them near full scale."""
    lift = Gain(-1 - max(levels.peak_db(waveform) for waveform in stems.values()))
    return levels.integrated_lufs(lift(stems["vocals"], stems.sample_rate), stems.sample_rate) - levels.integrated_lufs(
        lift(stems["accompaniment"], stems.sample_rate), stems.sample_rate
    )


# ---------------------------------------------------------------------------------------------------------- the balance


def is_balanced(stems: Stems, settings: Settings, decide=plan) -> None:
    """Law: the vocal is as loud over the backing as was set, within 0.1 LU."""
    chains = decide(stems, settings)[0]
    assert difference_lu(processed(stems, chains)) == pytest.approx(settings.vocal_db, abs=0.1)


GAINS = [(0.0, 0.0), (-60.0, 0.0), (0.0, -60.0), (-60.0, -60.0), (25.0, -6.0), (-6.0, 25.0)]
RATES = [16000, 22050, 44100, 48000, 96000, 32000]


@pytest.mark.parametrize(("gains_db", "rate"), list(zip(GAINS, RATES, strict=True)))
@pytest.mark.parametrize("channels", [1, 2])
def test_real_tracks_are_balanced_whatever_they_come_as(songs, gains_db, rate, channels):
    stems = songs[(rate // 1000 + channels) % 3]
    names = ("vocals", "accompaniment")
    loud = [(stems[name] * 10 ** (gain / 20)).clamp(-1, 1) for name, gain in zip(names, gains_db, strict=True)]
    vocals, backing = (resample(levels.as_stereo(x)[:channels], stems.sample_rate, rate) for x in loud)
    settings = replace((STUDIO, POSTER)[channels - 1], vocal_db=1.5 if rate == 16000 else -1.77, bpm=100.0)
    is_balanced(pair(vocals, backing, rate), settings)


def test_a_meter_of_others_agrees_on_the_balance(songs):
    pyloudnorm = import_peer("pyloudnorm")
    stems = songs[0]
    meter = pyloudnorm.Meter(stems.sample_rate, filter_class="DeMan")
    done = processed(stems, plan(stems, POSTER)[0])
    vocals, backing = (meter.integrated_loudness(done[name].T.double().numpy()) for name in ("vocals", "accompaniment"))
    assert vocals - backing == pytest.approx(-1.77, abs=0.1)


def test_the_law_of_balance_catches_a_fader_set_before_the_other_stages():
    def liar(stems: Stems, settings: Settings):
        chains = plan(stems, settings)[0]
        dry = plan(stems, replace(settings, tone=False, equalise=False, reverb=False, highpass_hz=None))[0]
        return {**chains, "vocals": (*chains["vocals"][:-1], dry["vocals"][-1])}, None

    settings = replace(EVERYTHING, reverb_lu=0.0)
    is_balanced(example(), settings)
    with pytest.raises(AssertionError):
        is_balanced(example(), settings, liar)


def test_a_quiet_take_and_a_loud_backing_are_balanced():
    take, backing = noise(seed=1, peak=0.001), noise(seed=2, peak=1.0)
    loud = pair(take, backing)
    is_balanced(loud, STUDIO)
    assert levels.true_peak_db(mixdown(loud, plan(loud, STUDIO)[0]), 16000) <= -1


def test_pauses_between_the_gates_count_at_the_level_they_will_have():
    """A hum 55 dB down passes the absolute gate or not, by the fader: -70 LUFS stays where it is."""
    time = torch.arange(20 * 16000) / 16000
    phrase = torch.sin(2 * math.pi * 440 * time) * torch.where(time % 4 < 0.5, 1.0, 0.0018)
    for wanted in (-1.77, -12.0):
        is_balanced(pair(phrase[None], noise(20, peak=0.3)), replace(POSTER, reverb=False, vocal_db=wanted))
    powers = np.array([1e-3, 1e-8, 2e-7, 0.0, 5e-5])
    blocks = -0.691 + 10 * np.log10(np.maximum(powers, 1e-30))
    for gain_db in (-30.0, -5.0, 0.0, 20.0):
        expected = reference_vocal.integrated_at(powers, gain_db)
        assert vocal._gated_lufs(blocks + gain_db) - gain_db == pytest.approx(expected, abs=1e-9)


def test_a_mono_take_is_a_take_with_two_equal_channels():
    mono = example()
    twice = pair(mono["vocals"].repeat(2, 1), mono["accompaniment"].repeat(2, 1))
    chains, report = plan(mono, EVERYTHING)
    again, same = plan(twice, EVERYTHING)
    assert chains == again and report == same
    assert torch.equal(mixdown(mono, chains), mixdown(twice, chains))


# ----------------------------------------------------------------------------------------------- deciding and obeying


def test_the_same_input_gives_the_same_report_to_the_letter():
    settings = replace(EVERYTHING, bpm=None)
    first, second = (plan(example(seconds=6.0), settings) for _ in range(2))
    text = json.dumps(first[1].to_dict(), allow_nan=False)
    assert text == json.dumps(second[1].to_dict(), allow_nan=False) and first[0] == second[0]
    assert Settings.from_dict(json.loads(text)["settings"]) == settings


def test_chains_read_from_json_give_the_same_mix_to_the_bit():
    stems = example(channels=2)
    chains = plan(stems, replace(EVERYTHING, target="both"))[0]
    again = chains_from_json(chains_to_json(chains))
    assert again == chains and torch.equal(mixdown(stems, again), mixdown(stems, chains))


def test_stages_stand_in_order_and_a_switched_off_one_is_missing():
    stems = example(seconds=16.0)
    stems["vocals"][:, : 8 * 16000] *= 0.1
    kinds = [effect.kind for effect in plan(stems, EVERYTHING)[0]["vocals"]]
    order = ["gain", "high_pass", "parametric_eq", "compressor", "reverb", "gain"]
    assert list(dict.fromkeys(kinds[:-1])) + kinds[-1:] == order
    bare = replace(EVERYTHING, highpass_hz=None, tone=False, equalise=False, compress=False, reverb=False)
    chains, report = plan(example(), bare)
    assert [effect.kind for effect in chains["vocals"]] == ["gain", "gain"] and chains["accompaniment"] == ()
    assert report.reverb.bypassed and report.compression.reason == report.tone.reason == "switched off"


def test_processed_tracks_add_up_to_the_mix_and_the_backing_is_left_alone():
    stems = example(channels=2, peak=0.1)
    chains = plan(stems, EVERYTHING)[0]
    done = processed(stems, chains)
    assert torch.equal(done["vocals"] + done["accompaniment"], mixdown(stems, chains))
    assert chains["mix"] == () and torch.equal(done["accompaniment"], stems["accompaniment"])


def test_the_callers_tracks_are_not_changed():
    stems = example(channels=2, peak=3.0)
    before = {name: waveform.clone() for name, waveform in stems.items()}
    mixdown(stems, plan(stems, replace(EVERYTHING, target="both", lufs=-14.0))[0])
    assert all(torch.equal(stems[name], waveform) for name, waveform in before.items())


def test_progress_names_the_stages_and_ends_at_one():
    seen = []
    plan(example(), progress=lambda stage, fraction: seen.append((stage, fraction)))
    assert [fraction for _, fraction in seen] == sorted(fraction for _, fraction in seen)
    assert seen[0] == ("levels", 0.0) and seen[-1] == ("done", 1.0) and len(seen) == 7


# --------------------------------------------------------------------------------------------- reverberation and tempo


def test_the_reverberation_is_as_loud_as_was_set():
    stems = example(channels=2, rate=44100)
    stems = pair(stems["vocals"], stems["accompaniment"], 44100)
    for wanted in (-12.0, -20.0):
        settings = replace(POSTER, equalise=False, compress=False, bpm=90.0, reverb_lu=wanted)
        chains, report = plan(stems, settings)
        reverb = next(effect for effect in chains["vocals"] if isinstance(effect, Reverb))
        dry = stems["vocals"] * 10 ** (-(1 + levels.peak_db(stems["vocals"])) / 20)
        wet = replace(reverb, dry_wet=1.0)(dry, 44100) * reverb.dry_wet
        found = levels.integrated_lufs(wet, 44100) - levels.integrated_lufs(dry * (1 - reverb.dry_wet), 44100)
        assert found == pytest.approx(wanted, abs=0.02) and report.reverb.wet_lu == pytest.approx(found, abs=0.02)
        assert (reverb.t60_s, report.reverb.bpm_from) == (2.1, "given")


def test_the_reverberation_time_falls_with_the_tempo_and_is_exact_at_the_corners():
    assert [tempo.t60_for(bpm, POSTER) for bpm in (60, 120, 180)] == [2.5, 1.7, 0.9]
    assert [tempo.t60_for(bpm, POSTER) for bpm in (20, 400)] == [2.5, 0.9]
    times = [tempo.t60_for(bpm, POSTER) for bpm in range(60, 181)]
    assert all(np.diff(times) < 0)


@pytest.mark.parametrize("with_librosa", [True, False])
def test_the_tempo_of_clicks_is_found(monkeypatch, with_librosa):
    if with_librosa:
        import_peer("librosa")
    else:
        without(monkeypatch, "librosa")
    for bpm, rate in ((80, 16000), (120, 44100), (150, 22050)):
        clicks = torch.zeros(2, 15 * rate)
        for beat in range(int(15 * bpm / 60)):
            at = round(beat * 60 / bpm * rate)
            clicks[:, at : at + rate // 50] = 0.3 * torch.randn(rate // 50, generator=torch.Generator().manual_seed(0))
        found, source = tempo.tempo(clicks, rate)
        assert source == ("librosa" if with_librosa else "onsets")
        assert found == pytest.approx(bpm, rel=0.04)


def without(monkeypatch, package: str) -> None:
    real = builtins.__import__

    def importing(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)


def test_tempi_are_folded_and_fall_back_to_120():
    assert [tempo.fold_bpm(bpm) for bpm in (30, 59.9, 60, 179.9, 180, 250)] == [60, 119.8, 60, 179.9, 90, 125]
    time = torch.arange(10 * 16000) / 16000
    for nothing in (torch.zeros(1, 160000), noise(4.9), torch.sin(2 * math.pi * 440 * time)[None]):
        assert tempo_bpm(nothing, 16000) == 120
    assert tempo.tempo(noise(4.9), 16000)[1] == "fallback"


# ----------------------------------------------------------------------------------------------------------- the master


def test_the_mix_has_the_loudness_that_was_asked_for():
    stems = example(channels=2, peak=0.01)
    chains, report = plan(stems, replace(STUDIO, lufs=-25.0))
    mix = mixdown(stems, chains)
    assert levels.integrated_lufs(mix, 16000) == pytest.approx(-25, abs=0.01)
    assert report.master.limited_by == "lufs" and report.master.lufs == pytest.approx(-25, abs=0.002)


def test_true_peak_wins_over_loudness_and_the_report_says_so():
    stems = example(channels=2)
    chains, report = plan(stems, replace(STUDIO, lufs=-5.0, true_peak_db=-2.0))
    mix = mixdown(stems, chains)
    assert -2.01 <= levels.true_peak_db(mix, 16000) <= -2.0
    assert report.master.limited_by == "true_peak" and any("-2 dBTP" in note for note in report.notes)
    assert report.master.lufs == pytest.approx(levels.integrated_lufs(mix, 16000), abs=0.01)


def test_without_a_loudness_the_backing_keeps_its_level_unless_peaks_forbid():
    for peak, gain in ((0.1, 0), (1.0, -1)):
        stems = example(channels=2, peak=peak)
        report = plan(stems, STUDIO)[1]
        assert (report.master.limited_by == "true_peak") == bool(gain) and (report.master.gain_db < 0) == bool(gain)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("settings", [EVERYTHING, STUDIO, POSTER, replace(STUDIO, lufs=-14.0)])
@pytest.mark.parametrize("silent", ["vocals", "accompaniment", "both"])
def test_silence_gives_what_is_left(settings, silent):
    sound = noise(channels=2)
    stems = pair(sound * (silent == "accompaniment"), sound * (silent == "vocals"))
    chains, report = plan(stems, settings)
    mix = mixdown(stems, chains)
    assert mix.isfinite().all() and levels.true_peak_db(mix, 16000) <= -1
    assert bool(mix.any()) == (silent != "both")
    assert sum("silent" in note for note in report.notes) == (2 if silent == "both" else 1)
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("samples", [1, 2, 50, 800, 6399, 6401])
def test_very_short_tracks_are_mixed(samples):
    stems = pair(noise()[:, :samples], noise(seed=3)[:, :samples])
    for settings in (EVERYTHING, POSTER, STUDIO):
        chains, report = plan(stems, settings)
        mix = mixdown(stems, chains)
        assert mix.shape == (2, samples) and mix.isfinite().all() and mix.abs().max() <= 0.9
        json.dumps(report.to_dict(), allow_nan=False)


def test_an_offset_is_taken_out_of_the_vocal_and_told():
    take = noise(6.0, peak=0.1)
    shifted = pair(take + 0.4, noise(6.0, seed=2))
    chains, report = plan(shifted, replace(POSTER, reverb=False))
    assert HighPass(20.0) in chains["vocals"] and any("offset" in note for note in report.notes)
    assert report.vocals.offset == pytest.approx(0.4, abs=0.01)
    vocals = processed(shifted, chains)["vocals"]
    assert abs(vocals[:, 8000:].mean()) < 1e-3
    is_balanced(shifted, STUDIO)
    assert plan(pair(0 * take + 0.4, take), STUDIO)[1].vocals.peak_db is None  # nothing but an offset


def test_a_clipped_take_is_mixed_and_told():
    clipped = (noise(4.0, rate=44100, peak=1.0) * 6).clamp(-1, 1)
    stems = pair(clipped, noise(4.0, rate=44100, seed=2), 44100)
    report = plan(stems, STUDIO)[1]
    assert report.vocals.clipped_samples > 100 and any("clipped" in note for note in report.notes)
    assert report.accompaniment.clipped_samples == 0
    is_balanced(stems, STUDIO)


BAD = {
    "nan": (pair(noise(), noise() * math.nan), "accompaniment: .*NaN"),
    "infinity": (pair(noise() / 0, noise()), "vocals: .*NaN or infinity"),
    "three channels": (pair(noise(channels=3), noise(channels=3)), "1 or 2 channels, got 3"),
    "four stems": (Stems({"vocals": noise(), "drums": noise()}, 16000), "vocals and accompaniment, got vocals, drums"),
    "integers": (pair(noise().int(), noise().int()), "float32"),
    "half precision": (pair(noise().half(), noise().half()), "float32"),
    "one axis": (pair(noise()[0], noise()[0]), "channels, samples"),
    "no samples": (pair(noise()[:, :0], noise()[:, :0]), "at least one sample"),
    "a low rate": (pair(noise(), noise(), 4000), "8000"),
}


@pytest.mark.parametrize("stems, words", BAD.values(), ids=BAD.keys())
def test_bad_tracks_are_refused_in_one_sentence(stems, words):
    for call in (lambda: plan(stems), lambda: mixdown(stems, {"vocals": ()})):
        with pytest.raises(AudioError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "not JSON"),
        ("3", "object of chains"),
        ('{"drums": []}', "no chain for 'drums'; known: vocals, accompaniment, mix"),
        ('{"vocals": {"kind": "gain"}}', "vocals: expected a chain as a JSON list"),
        ('{"mix": [{"kind": "exciter"}]}', "mix: effect 1 of the chain: no effect named 'exciter'"),
        ('[{"kind": "gain", "gain_db": 900}]', "vocals: effect 1 .*gain_db"),
        ('[{"kind": "gain", "gain_db": NaN}]', "vocals: effect 1 .*gain_db"),
    ],
)
def test_bad_chains_are_refused_in_one_sentence(text, words):
    with pytest.raises(UsageError, match=words) as caught:
        chains_from_json(text)
    assert "\n" not in str(caught.value)


def test_a_bare_list_is_the_vocals_chain():
    assert chains_from_json('[{"kind": "gain", "gain_db": 3}]') == {
        "vocals": (Gain(3.0),), "accompaniment": (), "mix": ()
    }  # fmt: skip


def test_chains_that_cannot_be_obeyed_are_refused():
    with pytest.raises(UsageError, match="no chain for 'drums'"):
        mixdown(example(), {"drums": ()})
    with pytest.raises(UsageError, match="compressor"):
        mixdown(example(), {"mix": (Compressor(),)})
    with pytest.raises(UsageError, match="half the sample rate"):
        mixdown(example(), {"vocals": (HighPass(9000),)})


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "fields",
    [
        {"vocal_db": math.nan}, {"vocal_db": "loud"}, {"lufs": 3}, {"true_peak_db": 1}, {"bpm": 0}, {"equalise": 1},
        {"ratios": ()}, {"ratios": (1.0,)}, {"ratios": "24"}, {"target": "drums"}, {"lra_domain": "all"},
        {"rank_threshold": 2.5}, {"highpass_hz": -1}, {"fade_in_s": 1.0}, {"no_such_field": 1},
    ],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range_are_refused(fields):
    with pytest.raises(UsageError, match=next(iter(fields))) as caught:
        Settings.from_dict(fields)
    assert "\n" not in str(caught.value)


def test_the_poster_has_the_sources_numbers():
    assert (POSTER.lra_target_lu, POSTER.lra_domain, POSTER.vocal_db) == (16.36, "ebu", -1.77)
    assert POSTER.highpass_hz is None and POSTER.equalise and POSTER.compress and POSTER.reverb and not POSTER.tone
    assert PRESETS["studio"] == Settings()
