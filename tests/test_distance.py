"""Distance-aware gains: the energy rule in both conventions, the judges and their cache, AudioSep's random strategy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tests import reference_remix
from umx_ext.errors import OutputError, UsageError
from umx_ext.training.distance import AudioSepRemix, DistanceRemix, energy_ratio, omega_db
from umx_ext.training.gains import rms_level
from umx_ext.training.judge import LABELS, MUSIC_TABLE, LLMJudge, StaticJudge, chat, parse_label
from umx_ext.training.remix import REMIXES, STEMS

RATE = 8000


def noise(seed: int, level: float = 0.1, samples: int = RATE) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal((2, samples))).astype(np.float32)


def stems(**changed: np.ndarray) -> dict[str, np.ndarray]:
    return {name: noise(place, 0.02 * (place + 1)) for place, name in enumerate(STEMS)} | changed


def energy(waveform: np.ndarray) -> float:
    return float(np.square(waveform, dtype=np.float64).mean())


class Says:
    """A judge with one answer."""

    def __init__(self, label: str):
        self.label, self.asked = label, []

    def judge(self, base_caption: str, candidate_caption: str) -> str:
        self.asked.append((base_caption, candidate_caption))
        return self.label


def levelled(remix, sounds, seed=0):
    return remix.levelled(sounds, RATE, np.random.default_rng(seed))


# ----------------------------------------------------------------------------------------------------------- the levels


@pytest.mark.parametrize(("convention", "times"), [("amplitude", 1), ("paper", 2)])
@pytest.mark.parametrize("label", LABELS)
def test_omega_is_the_level_beside_the_base_and_twice_that_in_the_papers_convention(convention, times, label):
    remix = DistanceRemix(Says(label), db_convention=convention)
    for seed in range(10):
        sources, gains_db = levelled(remix, stems(), seed)
        for name in STEMS[1:]:
            beside_db = 10 * math.log10(energy(sources[name]) / energy(sources["vocals"]))
            assert beside_db == pytest.approx(times * gains_db[name], abs=1e-4)


def test_energies_are_of_what_sounds():
    half = noise(1, 0.05)
    half[:, RATE // 2 :] = 0
    sources, gains_db = levelled(DistanceRemix(Says("same")), stems(drums=half))
    assert gains_db["drums"] == 0
    assert rms_level(sources["drums"], RATE)[0] == pytest.approx(rms_level(sources["vocals"], RATE)[0], rel=1e-5)


def test_labels_draw_from_their_ranges():
    rng = np.random.default_rng(0)
    far, same, close = (np.array([omega_db(label, 15.0, 0.0, rng) for _ in range(20_000)]) for label in LABELS)
    assert -15 <= far.min() < -14.99 and -0.01 < far.max() < 0
    assert not same.any()
    assert 0 < close.min() < 0.01 and 14.99 < close.max() <= 15
    for values, mean in ((far, -7.5), (close, 7.5)):
        assert values.mean() == pytest.approx(mean, abs=3 * 15 / math.sqrt(12 * 20_000))
        assert values.std() == pytest.approx(15 / math.sqrt(12), rel=0.02)
    jittered = np.array([omega_db("same", 15.0, 3.0, rng) for _ in range(5000)])
    assert -3 <= jittered.min() < -2.9 and 2.9 < jittered.max() <= 3


class Draws:
    """A generator that draws this number."""

    def __init__(self, number: float):
        self.number = number

    def random(self) -> float:
        return self.number


@pytest.mark.parametrize("number", [0.0, float(np.nextafter(1.0, 0.0))])
def test_far_and_close_never_reach_0(number):
    assert -15 <= omega_db("far", 15.0, 0.0, Draws(number)) < 0 < omega_db("close", 15.0, 0.0, Draws(number)) <= 15


def test_an_answer_that_is_no_label_is_an_error():
    with pytest.raises(UsageError, match="the judge answered 'near'"):
        levelled(DistanceRemix(Says("near")), stems())


@pytest.mark.parametrize("remix", [REMIXES["distance"], REMIXES["random-audiosep"]])
@pytest.mark.parametrize("silent", [("vocals",), ("drums",), ("vocals", "drums"), STEMS])
def test_silence_on_either_side_is_finite(remix, silent):
    sounds = stems(**{name: np.zeros((2, RATE), np.float32) for name in silent})
    mix = remix.mix(sounds, RATE, np.random.default_rng(0))
    assert np.isfinite(mix.mixture).all()
    assert all(not mix.sources[name].any() for name in silent)
    assert all(math.isnan(mix.gains_db[name]) for name in silent)
    assert all(mix.sources[name].any() for name in STEMS if name not in silent)


def test_beside_a_silent_base_omega_is_a_plain_gain():
    sounds = stems(vocals=np.zeros((2, RATE), np.float32))
    sources, gains_db = levelled(DistanceRemix(Says("far")), sounds)
    expected = sounds["drums"] * 10 ** (gains_db["drums"] / 20)
    assert np.abs(sources["drums"] - expected).max() < 1e-6


def test_what_is_nearly_silent_is_made_silent_and_what_hardly_sounds_is_left():
    faint, hardly = noise(1, 1e-6), noise(2, 1e-4)
    sources, gains_db = levelled(DistanceRemix(Says("close")), stems(drums=faint, bass=hardly))
    assert not sources["drums"].any() and np.array_equal(sources["bass"], hardly)
    assert math.isnan(gains_db["drums"]) and math.isnan(gains_db["bass"])


def test_the_energy_ratio_is_clamped():
    assert energy_ratio(1.0, 1e-6) == 50.0  # 1000 without the clamp
    assert energy_ratio(1e-6, 1.0) == 0.02
    assert energy_ratio(4.0, 1.0) == 2.0
    assert energy_ratio(1e-12, 0.0) == pytest.approx(0.1)  # the floor of the candidate's energy
    loud, quiet = noise(0, 20.0), noise(1, 0.02)  # an energy ratio of 1e6
    sources, _ = levelled(DistanceRemix(Says("same")), {"vocals": loud, "drums": quiet})
    assert np.abs(sources["drums"] - 50 * quiet).max() < 1e-5


def test_sources_add_up_after_the_peak_rule():
    loud = {name: noise(place, 0.3) for place, name in enumerate(STEMS)}
    scaled = 0
    for name in ("distance", "random-audiosep"):
        for seed in range(20):
            mix = REMIXES[name].mix(loud, RATE, np.random.default_rng(seed))
            assert np.abs(sum(mix.sources.values()) - mix.mixture).max() < 1e-6
            assert np.abs(mix.mixture).max() <= 1
            if mix.peak_scale < 1:
                scaled += 1
                assert np.abs(mix.mixture).max() == pytest.approx(0.9, abs=1e-6)
    assert scaled > 10


def test_the_base_stays_as_it_is():
    sounds = stems()
    sources, gains_db = levelled(REMIXES["distance"], sounds)
    assert np.array_equal(sources["vocals"], sounds["vocals"]) and gains_db["vocals"] == 0


def test_the_music_table_is_asked_for_each_stem_beside_the_vocals():
    judge = Says("same")
    levelled(DistanceRemix(judge, captions={"vocals": "a singer", "other": "guitars"}), stems())
    assert judge.asked == [("a singer", "drums"), ("a singer", "bass"), ("a singer", "guitars")]
    assert [StaticJudge().judge("vocals", name) for name in STEMS[1:]] == ["same", "far", "same"]
    drawn = [levelled(REMIXES["distance"], stems(), seed)[1] for seed in range(200)]
    assert {gains_db["drums"] for gains_db in drawn} == {gains_db["other"] for gains_db in drawn} == {0.0}
    assert all(-15 <= gains_db["bass"] < 0 for gains_db in drawn)


def test_distance_cues_take_highs_from_what_is_far_and_keep_its_level():
    for label, cued in (("far", True), ("same", False), ("close", False)):
        plain, plain_db = levelled(DistanceRemix(Says(label)), stems())
        there, there_db = levelled(DistanceRemix(Says(label), distance_cues=True), stems())
        assert there_db["drums"] == plain_db["drums"]
        changed = 1 - abs(np.corrcoef(plain["drums"][0], there["drums"][0])[0, 1])
        assert (changed > 0.005) == cued
        if not cued:
            assert np.array_equal(plain["drums"], there["drums"])
    quiet = levelled(DistanceRemix(Says("far"), distance_cues=True), {"vocals": noise(0), "drums": noise(1)})
    beside_db = 20 * math.log10(rms_level(quiet[0]["drums"], RATE)[0] / rms_level(quiet[0]["vocals"], RATE)[0])
    assert beside_db == pytest.approx(quiet[1]["drums"], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"db_convention": "power"}, "no db_convention 'power'; known: amplitude, paper"),
     ({"gamma_db": -1.0}, "gamma_db"), ({"same_jitter_db": math.nan}, "same_jitter_db"),
     ({"peak": "loud"}, "no peak rule"),
     ({"sources": ("accompaniment", "vocals")}, "sets every stem")])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        DistanceRemix(**options)


@pytest.mark.parametrize("options", [{"lowest_db": 3, "highest_db": 2}, {"fewest": 1}, {"fewest": 3, "most": 2}])
def test_audioseps_settings_are_checked(options):
    with pytest.raises(UsageError):
        AudioSepRemix(**options)


# ------------------------------------------------------------------------------------------------------------- AudioSep


@pytest.mark.parametrize("seed", range(5))
def test_random_audiosep_is_audioseps_mixer(seed):
    sounds = stems(drums=noise(7, 0.3))
    sounds["other"][:, RATE // 4 :] *= np.float32(0.05)  # energies are of the whole, pauses included
    rng = np.random.default_rng(seed)
    rng.integers(4, 5)
    drawn_db = [int(rng.integers(-10, 11)) for _ in range(3)]
    sum_db = int(rng.integers(-10, 11))
    mixture, segment = reference_remix.audiosep_mix(sounds["vocals"], [sounds[n] for n in STEMS[1:]], drawn_db, sum_db)
    mix = REMIXES["random-audiosep"].mix(sounds, RATE, np.random.default_rng(seed))
    assert np.abs(mix.mixture - mixture).max() < 1e-6 and np.abs(mix.sources["vocals"] - segment).max() < 1e-6


def test_random_audiosep_draws_whole_db_from_minus_10_to_10():
    remix = AudioSepRemix(fewest=2, most=2)
    beside_db, chosen = [], []
    sounds = {name: waveform[:, :800] for name, waveform in stems().items()}
    for seed in range(3000):
        sources, gains_db = levelled(remix, sounds, seed)
        (name,) = [name for name in STEMS[1:] if sources[name].any()]
        chosen.append(name)
        beside_db.append(10 * math.log10(energy(sources[name]) / energy(sources["vocals"])))
        assert -20 <= gains_db[name] <= 20
    values, counts = np.unique(np.round(beside_db), return_counts=True)
    assert np.abs(np.array(beside_db) - np.round(beside_db)).max() < 1e-4
    assert values.tolist() == list(range(-10, 11))
    expected = 3000 / 21
    assert np.sum((counts - expected) ** 2 / expected) < 45.3  # chi-squared, 20 degrees of freedom, 0.1 %
    assert min(chosen.count(name) for name in STEMS[1:]) > 850


# ----------------------------------------------------------------------------------------------------------- the judges

ANSWERS = {
    "far": "far", "Far.": "far", "FAR!": "far", " far\n": "far", "*close*": "close", "Close": "close",
    '"close"': "close",
    "close.": "close", "same": "same", "I think same": "same", "Same, I guess": "same", "The answer is far": "far",
    "far, not close": "far", "close or far": "close", "[same]": "same", "answer:same": "same", "distant": "far",
    "Distant.": "far", "in the background": "far", "very faint": "far", "quieter": "far", "farther": "far",
    "nearby": "close",
    "loud": "close", "LOUDER!!": "close", "in the foreground": "close", "closer": "close", "equal": "same",
    "they are similar": "same", "balanced": "same", "sames": "same", "": "same", "...": "same", "42": "same",
    "_far_": "far", "ça va": "same",
}  # fmt: skip


@pytest.mark.parametrize(("answer", "label"), ANSWERS.items())
def test_answers_are_understood(answer, label):
    assert len(ANSWERS) >= 30
    assert parse_label(answer) == label


def test_any_answer_is_one_of_the_three():
    rng = np.random.default_rng(0)
    for _ in range(300):
        answer = "".join(chr(rng.integers(32, 0x2FF)) for _ in range(rng.integers(0, 30)))
        assert parse_label(answer) in LABELS


def test_a_text_encoder_can_decide():
    axes = {"lointain": "far", "proche": "close"}

    def encode(texts):
        """Two axes, of which each of these words has one; all synonyms of a label share theirs."""
        near = axes | {"distant": "far", "near": "close"}
        return [[float(near.get(text) == label) for label in ("far", "close")] for text in texts]

    assert [parse_label(word, encode) for word in ("lointain", "proche", "autre")] == ["far", "close", "same"]
    assert parse_label("far", lambda texts: 1 / 0) == "far"  # not asked where a word says it


def test_the_chat_is_one_system_message_three_examples_and_the_question():
    messages = chat("vocals", "bass")
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 3, "user"]
    assert [message["content"] for message in messages if message["role"] == "assistant"] == ["close", "same", "far"]
    assert "relaxed music" in messages[1]["content"] and "human speech" in messages[1]["content"]
    assert "vocals" in messages[-1]["content"] and "bass" in messages[-1]["content"]
    assert all(word in messages[0]["content"] for word in (*LABELS, "quieter", "louder", "one word"))


class Model:
    def __init__(self, answer="Far."):
        self.answer, self.calls = answer, 0

    def __call__(self, messages):
        self.calls += 1
        return self.answer


def test_a_pair_is_asked_once_and_remembered_on_disk(tmp_path):
    cache = tmp_path / "distances.json"
    model = Model()
    judge = LLMJudge(model, cache=cache)
    assert [judge.judge("vocals", "bass") for _ in range(3)] == ["far"] * 3 and model.calls == 1
    assert judge.judge("bass", "vocals") == "far" and model.calls == 2  # another question
    assert json.loads(cache.read_text()) == {"bass": {"vocals": "far"}, "vocals": {"bass": "far"}}
    other = Model("close")
    assert LLMJudge(other, cache=cache).judge("vocals", "bass") == "far" and other.calls == 0
    assert [path.name for path in tmp_path.iterdir()] == ["distances.json"]


def test_two_judges_of_one_file_do_not_forget_each_others_answers(tmp_path):
    one, other = (LLMJudge(Model(answer), cache=tmp_path / "d.json") for answer in ("far", "close"))
    one.judge("a", "b")
    other.judge("a", "c")
    one.judge("d", "e")
    assert json.loads((tmp_path / "d.json").read_text()) == {"a": {"b": "far", "c": "close"}, "d": {"e": "far"}}


def test_without_a_file_answers_are_kept_in_memory():
    model = Model("Same!")
    judge = LLMJudge(model)
    assert judge.judge("a", "b") == judge.judge("a", "b") == "same" and model.calls == 1


@pytest.mark.parametrize("text", ["not json", "[1, 2]", '{"a": "far"}', '{"a": {"b": "loud"}}', '{"a": {"b": [1]}}'])
def test_a_cache_that_is_something_else_is_refused_and_left_alone(tmp_path, text):
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(UsageError, match="not a file of distances"):
        LLMJudge(Model(), cache=tmp_path / "d.json")
    assert (tmp_path / "d.json").read_text() == text


def test_a_cache_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        LLMJudge(Model(), cache=tmp_path / "nowhere" / "d.json").judge("a", "b")


def test_a_model_must_answer_with_text():
    with pytest.raises(UsageError, match="must return text, it returned NoneType"):
        LLMJudge(Model(None)).judge("a", "b")


def test_a_static_judge_knows_only_labels():
    assert StaticJudge(default="far").judge("x", "y") == "far"
    with pytest.raises(UsageError, match="no distance 'near'"):
        StaticJudge(MUSIC_TABLE | {("a", "b"): "near"})


def test_an_llm_judge_sets_the_levels_of_a_remix(tmp_path):
    model = Model("close")
    remix = DistanceRemix(LLMJudge(model, cache=tmp_path / "d.json"))
    for seed in range(5):
        _, gains_db = levelled(remix, stems(), seed)
        assert all(0 < gains_db[name] <= 15 for name in STEMS[1:])
    assert model.calls == 3
