"""The family of augmentations: its laws and their liars, what each member does, and the filters underneath."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from umx_ext.errors import UsageError
from umx_ext.training.augment import AUGMENTATIONS, Augmentation, Spectral, augmented
from umx_ext.training.filters import convolved, grid_hz, one_pole, reverberated, shaped, stretched
from umx_ext.training.remix import STEMS, Remixer
from umx_ext.training.tracks import Entry, Pack

RATE = 44100


def noise(*shape: int, seed: int = 0, peak: float = 0.5) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return values * np.float32(peak / np.abs(values).max())


def tone(hertz: float, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    return np.stack([wave, 0.5 * wave]).astype(np.float32)


def strongest_hz(waveform: np.ndarray, rate: int = RATE) -> float:
    spectrum = np.abs(np.fft.rfft(waveform[0] * np.hanning(waveform.shape[1]), 8 * waveform.shape[1]))
    return float(np.argmax(spectrum) * rate / (8 * waveform.shape[1]))


def energy(waveform: np.ndarray) -> float:
    return float(np.square(waveform, dtype=np.float64).sum())


def generator(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---------------------------------------------------------------------------------------------------------------- laws


def shape_and_type_are_kept(member: Augmentation) -> None:
    for shape in ((2, 1), (2, 7), (2, 4801), (1, 30000), (2, 30000)):
        for seed in range(3):
            out = member(noise(*shape), RATE, 1.0, generator(seed))
            assert out.shape == shape and out.dtype == np.float32


def results_are_finite(member: Augmentation) -> None:
    for peak in (1e-6, 1.0, 100.0):
        for seed in range(3):
            assert np.isfinite(member(noise(2, 9000, peak=peak), RATE, 1.0, generator(seed))).all()


def silence_stays_silence(member: Augmentation) -> None:
    for seed in range(5):
        assert not member(np.zeros((2, 9000), np.float32), RATE, 1.0, generator(seed)).any()


def the_same_generator_gives_the_same_result(member: Augmentation) -> None:
    waveform = noise(2, 9000)
    first = member(waveform, RATE, 0.7, generator(3))
    member(noise(2, 5000, seed=8), RATE, 0.7, generator(4))
    assert np.array_equal(first, member(waveform, RATE, 0.7, generator(3)))


def strength_0_is_the_identity(member: Augmentation) -> None:
    waveform, rng = noise(2, 9000), generator()
    out = member(waveform, RATE, 0.0, rng)
    assert np.array_equal(out, waveform) and not np.shares_memory(out, waveform)
    assert rng.random() == generator().random()


def little_strength_changes_little(member: Augmentation) -> None:
    waveform = tone(440)
    for seed in range(20):
        out = member(waveform, RATE, 1e-6, generator(seed))
        assert np.abs(out - waveform)[:, 2000:-2000].max() < 1e-3


def the_callers_waveform_is_untouched(member: Augmentation) -> None:
    for peak in (0.5, 50.0):
        waveform = noise(2, 9000, peak=peak)
        before = waveform.copy()
        for seed in range(3):
            member(waveform, RATE, 1.0, generator(seed))
        assert np.array_equal(waveform, before)


def full_strength_does_something_else_each_time(member: Augmentation) -> None:
    waveform = np.concatenate([noise(1, 9000), noise(1, 9000, seed=1)])
    results = {member(waveform, RATE, 0.9, generator(seed)).tobytes() for seed in range(40)}
    assert len(results) > 1


def strengths_outside_0_to_1_are_refused(member: Augmentation) -> None:
    for strength in (-0.1, 1.1, math.nan, "1", True):
        try:
            member(noise(2, 100), RATE, strength, generator())
        except UsageError as error:
            assert "from 0 to 1" in str(error)
        else:
            raise AssertionError("accepted")


LAWS = (
    shape_and_type_are_kept,
    results_are_finite,
    silence_stays_silence,
    the_same_generator_gives_the_same_result,
    strength_0_is_the_identity,
    little_strength_changes_little,
    the_callers_waveform_is_untouched,
    full_strength_does_something_else_each_time,
    strengths_outside_0_to_1_are_refused,
)


def in_place(waveform, rate, strength, rng):
    waveform *= np.float32(0.5 / max(0.5, np.abs(waveform).max()))
    return waveform * np.float32(1 + strength * rng.uniform(-0.1, 0.1))


class Always(Augmentation):
    """Does not look at its strength."""

    def __call__(self, waveform, sample_rate, strength, rng):
        return self.change(waveform, sample_rate, strength, rng)


def liar(change) -> Augmentation:
    return Augmentation(change, "a liar")


LIARS = (
    (shape_and_type_are_kept, liar(lambda x, rate, strength, rng: x.astype(np.float64))),
    (shape_and_type_are_kept, liar(lambda x, rate, strength, rng: x[:, : x.shape[1] // 2 * 2])),
    (results_are_finite, liar(lambda x, rate, strength, rng: np.exp(np.float32(10) * x))),
    (silence_stays_silence, liar(lambda x, rate, strength, rng: x + np.float32(1e-4))),
    (
        the_same_generator_gives_the_same_result,
        liar(lambda x, rate, strength, rng: x * np.random.default_rng().random()),
    ),
    (strength_0_is_the_identity, Always(lambda x, rate, strength, rng: x * np.float32(1 + 1e-6), "")),
    (strength_0_is_the_identity, Always(lambda x, rate, strength, rng: x, "")),
    (little_strength_changes_little, liar(lambda x, rate, strength, rng: -x)),
    (the_callers_waveform_is_untouched, liar(in_place)),
    (full_strength_does_something_else_each_time, liar(lambda x, rate, strength, rng: np.float32(0.5) * x)),
    (strengths_outside_0_to_1_are_refused, Always(lambda x, rate, strength, rng: x, "")),
)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_obeys(name, law):
    law(AUGMENTATIONS[name])


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(("law", "liar"), LIARS, ids=lambda one: getattr(one, "__name__", "liar"))
def test_every_law_catches_its_liar(law, liar):
    with pytest.raises(AssertionError):
        law(liar)


def test_no_law_is_without_a_liar():
    assert {law for law, _ in LIARS} == set(LAWS)


# --------------------------------------------------------------------------------------------------- what each one does


def test_speed_moves_a_tone_by_up_to_three_semitones_and_keeps_its_level():
    semitones = []
    for seed in range(40):
        out = AUGMENTATIONS["speed"](tone(1000), RATE, 1.0, generator(seed))
        inner = out[:, 2000:30000]
        semitones.append(12 * math.log2(strongest_hz(inner) / 1000))
        assert np.abs(inner[0]).max() == pytest.approx(0.3, rel=0.01)
    assert -3.02 < min(semitones) < -2 and 2 < max(semitones) < 3.02
    assert len({round(shift, 2) for shift in semitones}) > 30  # continuous


def test_a_faster_excerpt_is_whole_when_it_was_shown_its_reach():
    reach = AUGMENTATIONS["speed"].reach(1.0)
    shown = tone(1000, seconds=reach + 0.01)
    for seed in range(20):
        out = AUGMENTATIONS["speed"](shown, RATE, 1.0, generator(seed))[:, :RATE]
        assert np.abs(out[0, -100:]).max() > 0.25


def test_stretched_is_interpolation():
    for factor in (0.8, 1.0, 1.19):
        out = stretched(tone(500), factor, RATE)
        time_s = np.arange(out.shape[1]) / RATE
        expected = 0.3 * np.sin(2 * np.pi * 500 * factor * time_s)
        assert np.abs(out[0] - expected)[1000:35000].max() < 1e-3


def test_eq_changes_the_level_of_a_band_by_its_spread():
    gains_db = []
    for seed in range(300):
        gains = AUGMENTATIONS["eq"].change.gains(RATE, 0.5, generator(seed))
        gains_db.append(20 * np.log10(np.interp(1000.0, grid_hz(RATE), gains)))
    assert np.std(gains_db) == pytest.approx(3.0, rel=0.15) and abs(np.mean(gains_db)) < 0.6


def test_tilt_is_so_many_db_per_octave_around_1_khz():
    for seed in range(20):
        gains_db = 20 * np.log10(AUGMENTATIONS["tilt"].change.gains(RATE, 1.0, generator(seed)))
        at = {hertz: float(np.interp(hertz, grid_hz(RATE), gains_db)) for hertz in (500, 1000, 2000, 4000)}
        assert abs(at[1000]) < 0.01 and abs(at[2000]) <= 2.01
        assert at[4000] == pytest.approx(2 * at[2000], abs=0.02) and at[500] == pytest.approx(-at[2000], abs=0.02)


def test_band_takes_the_highs_and_leaves_the_lows():
    cut = 0
    for seed in range(60):
        low, high = (AUGMENTATIONS["band"](tone(hertz), RATE, 0.5, generator(seed)) for hertz in (2000, 19000))
        assert energy(low[:, 4000:-4000]) == pytest.approx(energy(tone(2000)[:, 4000:-4000]), rel=1e-3)
        cut += energy(high[:, 4000:-4000]) < 1e-4 * energy(tone(19000)[:, 4000:-4000])
    assert 18 <= cut <= 42


def test_reverb_decays_as_long_as_it_says():
    impulse = np.zeros((2, RATE), np.float32)
    impulse[:, 0] = 1.0
    out = reverberated(impulse, RATE, 0.5, 0.6, 0.02, generator())
    assert out[0, 0] == pytest.approx(0.5) and np.abs(out[:, 1 : int(0.02 * RATE)]).max() < 1e-8
    assert energy(out[:, 1:]) / 2 == pytest.approx(0.25, rel=1e-4)  # unit energy, mean over the channels
    assert abs(np.corrcoef(out[:, 900:9000])[0, 1]) < 0.1
    levels_db = [10 * math.log10(energy(out[:, start : start + 2205])) for start in (4410, 4410 + 8820)]
    # 0.2 s later; the lows fall by 100 dB/s, the highs four times as fast and are nearly gone by then.
    assert -26 < levels_db[1] - levels_db[0] < -18
    assert np.abs(out[:, int(0.63 * RATE) :]).max() < 1e-8


def test_reverb_is_for_dry_vocals_alone():
    assert [name for name, member in AUGMENTATIONS.items() if member.dry_only] == ["reverb"]


def test_width_leaves_the_middle_and_a_mono_sound():
    waveform = noise(2, 4000)
    for seed in range(10):
        out = AUGMENTATIONS["width"](waveform, RATE, 1.0, generator(seed))
        assert np.abs(out.sum(axis=0) - waveform.sum(axis=0)).max() < 1e-6
        ratio_db = 10 * math.log10(energy(out[:1] - out[1:]) / energy(waveform[:1] - waveform[1:]))
        assert -12.01 < ratio_db < 6.01
    mono = np.repeat(noise(1, 4000), 2, axis=0)
    assert np.abs(AUGMENTATIONS["width"](mono, RATE, 1.0, generator()) - mono).max() < 1e-7


def test_balance_turns_one_channel_up_as_far_as_the_other_down():
    apart_db = []
    for seed in range(100):
        out = AUGMENTATIONS["balance"](np.ones((2, 10), np.float32), RATE, 1.0, generator(seed))
        assert out[0, 0] * out[1, 0] == pytest.approx(1.0, rel=1e-6)
        apart_db.append(20 * math.log10(out[0, 0] / out[1, 0]))
    assert -6.01 < min(apart_db) < -5 and 5 < max(apart_db) < 6.01


def test_swap_and_polarity_come_as_often_as_asked():
    waveform = noise(2, 50)
    for name, changed in (("swap", waveform[::-1]), ("polarity", -waveform)):
        found = [AUGMENTATIONS[name](waveform, RATE, 0.3, generator(seed)) for seed in range(400)]
        times = sum(np.array_equal(one, changed) for one in found)
        assert times + sum(np.array_equal(one, waveform) for one in found) == 400
        assert 0.23 < times / 400 < 0.37


def test_gain_is_within_6_db_and_comes_after_the_levels():
    gains_db = [
        20 * math.log10(AUGMENTATIONS["gain"](np.ones((2, 3), np.float32), RATE, 1.0, generator(seed))[0, 0])
        for seed in range(200)
    ]
    assert -6.01 < min(gains_db) < -5.5 and 5.5 < max(gains_db) < 6.01
    assert [name for name, member in AUGMENTATIONS.items() if member.after] == ["gain"]


def test_spectral_changes_in_a_row_are_one_filter():
    names = ("eq", "tilt", "band", "polarity")
    chosen = [(AUGMENTATIONS[name], 0.8, generator(place)) for place, name in enumerate(names)]
    together = augmented(noise(2, 20000), RATE, chosen)
    apart = noise(2, 20000)
    for place, name in enumerate(names):
        apart = AUGMENTATIONS[name](apart, RATE, 0.8, generator(place))
    assert energy(together - apart) < 1e-5 * energy(apart)


# -------------------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize("samples", [1, 2, 7, 2050, 6146, 6147, 12292, 40000])
@pytest.mark.parametrize(("taps", "first"), [(1, 0), (54, 0), (2047, 1023), (9000, 0)])
def test_convolution_in_blocks_is_convolution(samples, taps, first):
    waveform, filters = noise(2, samples), noise(2, taps, seed=1, peak=0.1)
    out = convolved(waveform, filters, first)
    for channel in range(2):
        expected = np.convolve(waveform[channel].astype(np.float64), filters[channel])[first : first + samples]
        expected = np.pad(expected, (0, samples - len(expected)))
        assert np.abs(out[channel] - expected).max() < 2e-5
    assert out.shape == waveform.shape and out.dtype == np.float32


def test_shaped_keeps_timing_and_gains():
    gains = np.interp(grid_hz(RATE), [0, 1000, 4000, 22050], [1.0, 2.0, 0.5, 0.25])
    for hertz, gain in ((1000, 2.0), (4000, 0.5), (12000, np.interp(12000, [4000, 22050], [0.5, 0.25]))):
        out, inner = shaped(tone(hertz), gains), slice(3000, -3000)
        assert np.abs(out - gain * tone(hertz))[:, inner].max() < 0.01


@pytest.mark.parametrize("rate", [16000, 44100])
def test_the_one_pole_low_pass_is_3_db_down_at_its_cutoff(rate):
    impulse = np.zeros((1, 4096), np.float32)
    impulse[0, 0] = 1
    response = one_pole(impulse, rate, 6000)
    magnitude = np.abs(np.fft.rfft(response[0]))
    at_cut = np.interp(6000, np.fft.rfftfreq(4096, 1 / rate), magnitude)
    assert magnitude[0] == pytest.approx(1.0, abs=1e-5) and 20 * math.log10(at_cut) == pytest.approx(-3.01, abs=0.01)
    pole = response[0, 1] / response[0, 0]
    assert np.abs(response[0, 1:20] - pole * response[0, :19]).max() < 1e-6  # a recursion of first order


# --------------------------------------------------------------------------------------------------------- in a remixer


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Pack:
    """Songs whose four stems are the same noise, so that whatever happens to them together leaves them equal."""
    folder, rate = tmp_path_factory.mktemp("augment"), 8000
    entries, values, offset = [], [], 0
    for kind, names in (("musdb18", STEMS), ("mir1k", ("vocals", "accompaniment"))):
        for song in range(2):
            block = np.random.default_rng([song, len(names)]).integers(-9000, 9000, (3 * rate, 2))
            for name in names:
                entries.append(Entry(f"{kind}{song}", "train", kind, name, 1.0, 2, len(block), offset))
                values.append(block.astype("<i2").ravel())
                offset += block.size
    np.concatenate(values).tofile(folder / "audio.i16")
    index = {"sample_rate": rate, "data_sha256": "0" * 64, "entries": [vars(entry) for entry in entries]}
    Path(folder / "index.json").write_text(json.dumps(index))
    return Pack(folder)


WHOLE = {"samples": 8000, "remix": "umx", "own_song": 1.0, "mir1k_whole": 0.0, "no_vocals": 0.0, "swap_channels": 0.0}


def unscaled(example) -> np.ndarray:
    return example.sources / 10 ** (example.gains_db / 20)[:, None, None]


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_remixer_applies_it(store, name):
    options = WHOLE | {"mir1k_whole": 1.0} if AUGMENTATIONS[name].dry_only else WHOLE
    plain = Remixer(store, **options).example(generator(2))
    found = [Remixer(store, **options, augment={name: 1.0}).example(generator(seed)) for seed in range(4)]
    assert all(np.abs(example.sources.sum(axis=0) - example.mixture).max() < 1e-5 for example in found)
    assert all(example.mixture.shape == plain.mixture.shape for example in found)
    unchanged = Remixer(store, **options, augment={name: 0.0}).example(generator(2))
    assert np.array_equal(unchanged.mixture, plain.mixture)
    again = Remixer(store, **options, augment={name: 1.0}).example(generator(2))
    assert np.array_equal(again.mixture, found[2].mixture) and not np.array_equal(again.mixture, plain.mixture)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_stems_of_one_song_still_fit_each_other_where_they_must(store, name):
    if AUGMENTATIONS[name].dry_only:
        return
    equal = []
    for seed in range(6):
        stems = unscaled(Remixer(store, **WHOLE, augment={name: 0.5}).example(generator(seed)))
        equal.append(np.abs(stems - stems[0]).max() < 1e-5)
    assert all(equal) == AUGMENTATIONS[name].together


def test_a_faster_excerpt_is_read_to_its_end(store):
    for seed in range(10):
        example = Remixer(store, **WHOLE, augment={"speed": 1.0}).example(generator(seed))
        assert np.abs(example.mixture[:, -50:]).max() > 0.01


def test_reverb_reaches_singers_and_nothing_else(store):
    reverb = {"augment": {"reverb": 1.0}}
    for seed in range(4):
        whole, wet = (Remixer(store, **WHOLE, **more).example(generator(seed)) for more in ({}, reverb))
        assert np.array_equal(whole.mixture, wet.mixture)
        pair = WHOLE | {"mir1k_whole": 1.0, "remix": "wsj0"}
        dry, wet = (unscaled(Remixer(store, **pair, **more).example(generator(seed))) for more in ({}, reverb))
        correlation = [np.corrcoef(dry[place, 0], wet[place, 0])[0, 1] for place in (0, 3)]
        assert correlation[0] < 0.99999 and correlation[1] > 0.999999


def test_an_augmentation_can_be_registered_from_outside(store):
    def shy(waveform, sample_rate, strength, rng):
        return waveform * np.linspace(1, 1 - strength * rng.random(), waveform.shape[1], dtype=np.float32)

    AUGMENTATIONS["fade"] = Augmentation(shy, "fades out; 1: to silence")
    try:
        for law in LAWS:
            law(AUGMENTATIONS["fade"])
        stems = unscaled(Remixer(store, **WHOLE, augment={"fade": 1.0}).example(generator(3)))
        assert energy(stems[0][:, 4000:]) < energy(stems[0][:, :4000])
    finally:
        del AUGMENTATIONS["fade"]


def test_spectral_gains_of_none_change_nothing():
    waveform = noise(2, 500)
    member = Augmentation(Spectral(lambda rate, strength, rng: None), "nothing")
    out = member(waveform, RATE, 1.0, generator())
    assert np.array_equal(out, waveform) and not np.shares_memory(out, waveform)
