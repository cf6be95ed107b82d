"""BSS Eval against museval itself, on real songs and on constructed ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.peers import import_peer
from umx_ext import audio
from umx_ext.errors import AudioError, MissingExtraError, UsageError
from umx_ext.evaluation import bsseval, distortion
from umx_ext.evaluation.bsseval import METRICS, evaluate

RATE = 8000  # of what is constructed: nothing depends on it but the time the tests take


@pytest.fixture
def museval(monkeypatch):
    """museval.evaluate; NumPy 2.4 lacks the name by which it catches a singular matrix."""
    monkeypatch.setattr(np.linalg, "linalg", np.linalg, raising=False)
    peer = import_peer("museval")

    def run(references, estimates, rate):
        return dict(zip(METRICS, peer.evaluate(references, estimates, win=rate, hop=rate, mode="v4"), strict=True))

    return run


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape) * 0.1


def scene(targets: int = 2, seconds: float = 4.5, channels: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """References, and estimates that hold some of the others, filtered, and some noise."""
    references = noise(targets, int(seconds * RATE), channels)
    leak = np.einsum("jtc,ij->itc", references, np.random.default_rng(1).random((targets, targets)))
    return references, 0.9 * references + 0.1 * np.roll(leak, 3, axis=1) + 0.02 * noise(*references.shape, seed=2)


def assert_equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], tolerance_db: float = 1e-4) -> None:
    assert list(ours) == list(METRICS)
    for metric in METRICS:
        assert ours[metric].shape == theirs[metric].shape and ours[metric].dtype == np.float64
        np.testing.assert_array_equal(np.isnan(ours[metric]), np.isnan(theirs[metric]))
        high = theirs[metric] >= 80  # round-off
        assert (ours[metric][high] >= 80).all()
        np.testing.assert_allclose(ours[metric][~high], theirs[metric][~high], rtol=0, atol=tolerance_db)


def song(data: Path, number: int, seconds: float = 3.3) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    path = sorted((data / "musdb18-7" / "test").glob("*.stem.mp4"))[number]
    streams = [audio.read(path, stream=stream)[0][:, : int(seconds * 44100)] for stream in range(5)]
    return streams[0], dict(zip(("drums", "bass", "other", "vocals"), streams[1:], strict=True))


def layout(*waveforms: torch.Tensor) -> np.ndarray:
    return torch.stack(waveforms).mT.numpy()


def low_passed(waveform: torch.Tensor) -> torch.Tensor:
    return audio.resample(audio.resample(waveform, 44100, 32000), 32000, 44100)


@pytest.mark.parametrize("number", [0, 9])
def test_a_separated_song_scores_as_in_museval(data, museval, number):
    import umx_ext

    mixture, stems = song(data, number)
    estimates = umx_ext.load().separate(mixture, 44100)
    references = layout(stems["vocals"], stems["drums"] + stems["bass"] + stems["other"])
    estimated = layout(estimates["vocals"], estimates["accompaniment"])
    assert_equal(evaluate(references, estimated, 44100), museval(references, estimated, 44100))


def test_four_stems_score_as_in_museval(data, museval):
    mixture, stems = song(data, 6, seconds=2.2)
    references = layout(*(stem[:1] for stem in stems.values()))  # one channel: museval takes its time
    estimates = 0.8 * references + 0.1 * layout(mixture[:1].roll(5, -1))
    assert_equal(evaluate(references, estimates, 44100), museval(references, estimates, 44100))


def test_dependent_references_are_told_from_independent_ones(data, monkeypatch):
    monkeypatch.setattr(distortion, "_museval_correlations", lambda *_: 1 / 0)
    mixture, stems = song(data, 3, seconds=2.0)
    references, estimates = layout(low_passed(stems["vocals"]), stems["drums"]), layout(mixture, mixture)
    with pytest.raises(ZeroDivisionError):
        evaluate(references, estimates, 44100)
    evaluate(references + noise(*references.shape) * 1e-3, estimates, 44100)


@pytest.mark.parametrize("samples", [44100, 300_000])
def test_correlations_of_dependent_references_are_musevals_to_the_bit(samples):
    museval = bsseval._museval_metrics()
    sources = noise(2, samples, 2)
    track = bsseval._Track.of(sources[:1], sources[1:], 44100)
    lags, wanted = distortion._museval_correlations(2, track.channel)
    matrix, spectra = museval._compute_reference_correlations(sources[:1], 512)
    np.testing.assert_array_equal(distortion._equations(lags).numpy(), museval._reshape_G(matrix))
    theirs = museval._compute_projection_filters(matrix, spectra, sources[1])
    ours = distortion._by_elimination(distortion._equations(lags), wanted.reshape(1024, 2), 2)
    np.testing.assert_array_equal(ours.view(2, 512, 2).numpy(), theirs)


@pytest.mark.parametrize("targets, channels", [(1, 2), (2, 1), (2, 2), (3, 2), (2, 3)])
def test_noise_scores_as_in_museval(museval, targets, channels):
    references, estimates = scene(targets, channels=channels)
    assert_equal(evaluate(references, estimates, RATE), museval(references, estimates, RATE), 1e-8)


def test_both_ways_to_the_filters_agree_on_independent_references(monkeypatch):
    references, estimates = scene()
    quick = evaluate(references, estimates, RATE)
    monkeypatch.setattr(distortion, "_INDEPENDENT", np.inf)
    assert_equal(evaluate(references, estimates, RATE), quick, 1e-9)


def test_both_ways_to_the_energies_agree(monkeypatch):
    references, estimates = scene(3)
    quick = evaluate(references, estimates, RATE)
    monkeypatch.setattr(bsseval, "_TRUSTED", np.inf)
    assert_equal(evaluate(references, estimates, RATE), quick, 1e-9)


@pytest.mark.parametrize("seconds", [0.03, 0.5, 1.0, 1.01, 1.9, 2.0, 2.05])
def test_frames_are_cut_as_in_museval(museval, seconds):
    references, estimates = scene(seconds=seconds)
    ours = evaluate(references, estimates, RATE)
    assert ours["SDR"].shape == (2, max(1, int(seconds)))
    assert_equal(ours, museval(references, estimates, RATE))


def test_frames_shorter_than_the_filters_are_allowed(museval):
    references, estimates = scene(seconds=0.25)
    assert_equal(evaluate(references, estimates, 300), museval(references, estimates, 300), 1e-6)


@pytest.mark.parametrize("change", [-2 * RATE, -100, 100, 2 * RATE])
def test_estimates_are_padded_or_cut(museval, change):
    references, estimates = scene()
    estimates = estimates[:, :change] if change < 0 else np.concatenate([estimates, estimates[:, :change]], axis=1)
    assert_equal(evaluate(references, estimates, RATE), museval(references, estimates, RATE))


@pytest.mark.parametrize("silent", ["reference", "estimate", "opposite channels"])
def test_a_silent_second_is_nan_for_all_targets(museval, silent):
    references, estimates = scene()
    signal = estimates[0] if silent == "estimate" else references[1]
    second = slice(2 * RATE, 3 * RATE)
    signal[second, 1] = -signal[second, 0]
    if silent != "opposite channels":
        signal[second] = 0
    ours = evaluate(references, estimates, RATE)
    assert np.isnan(ours["SAR"]).tolist() == [[False, False, True, False]] * 2
    assert_equal(ours, museval(references, estimates, RATE))


@pytest.mark.parametrize("role", [0, 1])
@pytest.mark.parametrize("opposite", [False, True])
def test_a_source_silent_all_the_way_is_nan_where_museval_raises(museval, role, opposite):
    sources = scene()
    sources[role][1, :, 1] = -sources[role][1, :, 0]
    sources[role][1] *= opposite
    with pytest.raises(ValueError, match="non-silent"):
        museval(*sources, RATE)
    for engine in bsseval.ENGINES:
        found = evaluate(*sources, RATE, engine=engine)
        assert all(values.shape == (2, 4) and np.isnan(values).all() for values in found.values())


def test_a_source_that_sounds_only_in_the_dropped_rest_is_nan_as_in_museval(museval):
    references, estimates = scene()
    references[0, : 4 * RATE] = 0
    assert_equal(evaluate(references, estimates, RATE), museval(references, estimates, RATE))


def test_a_perfect_estimate_has_infinite_sdr_and_the_rest_is_round_off(museval):
    references, _ = scene()
    ours = evaluate(references, references, RATE)
    assert (ours["SDR"] == np.inf).all()
    assert_equal(ours, museval(references, references, RATE))


def test_a_scaled_estimate_has_the_isr_of_its_scale():
    references, _ = scene()
    ours = evaluate(references, 0.75 * references, RATE)
    np.testing.assert_allclose(ours["ISR"], -20 * np.log10(0.25), atol=1e-9)
    assert (ours["SIR"] > 80).all() and (ours["SAR"] > 80).all()


def test_a_reference_with_one_channel_silent_scores_as_in_museval(museval):
    references, estimates = scene()
    references[1, :, 1] = 0
    assert_equal(evaluate(references, estimates, RATE), museval(references, estimates, RATE))


def test_a_dead_channel_and_a_mono_one_beside_each_other(museval):
    references, estimates = scene(channels=1)
    references = np.concatenate([references, 0 * references], axis=2)
    estimates = np.concatenate([estimates, estimates], axis=2)
    assert_equal(evaluate(references, estimates, RATE), museval(references, estimates, RATE))


@pytest.mark.parametrize("kind", ["equal references", "equal channels"])
def test_singular_equations_are_solved_as_museval_means_to(museval, kind):
    references, estimates = scene(channels=1 if kind == "equal references" else 2, seconds=2.2)
    if kind == "equal references":
        references[1] = references[0]
    else:
        references[0, :, 1] = references[0, :, 0]
    assert_equal(evaluate(references, estimates, RATE), museval(references, estimates, RATE))


def test_low_passed_music_scores_as_in_museval(data, museval):
    mixture, stems = song(data, 3, seconds=2.2)
    low = [low_passed(stems[stem]) for stem in ("vocals", "drums")]
    references, estimates = layout(*low), layout(mixture / 2, mixture - low[0])
    assert_equal(evaluate(references, estimates, 44100), museval(references, estimates, 44100))


def test_float32_views_and_lists_score_as_one_float64_array():
    references, estimates = (sources.astype(np.float32) for sources in scene())
    expected = evaluate(references.astype(np.float64), estimates.astype(np.float64), RATE)
    columns = [torch.from_numpy(np.ascontiguousarray(source.T)).T for source in references]
    before = [source.clone() for source in columns]
    assert_equal(evaluate(columns, list(estimates), RATE), expected, 0)
    assert all(torch.equal(*pair) for pair in zip(columns, before, strict=True))


class Slices:
    """What is read slice by slice: h5py's datasets, `umx_ext.audio.Samples`."""

    def __init__(self, array: np.ndarray) -> None:
        self._array, self.shape, self.most = array, array.shape, 0

    def __getitem__(self, part: slice) -> np.ndarray:
        found = self._array[part].copy()
        self.most = max(self.most, len(found))
        return found


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int16])
def test_what_is_read_slice_by_slice_scores_as_arrays_and_never_whole(kind):
    references, estimates = scene()
    estimates = estimates[:, :-3000]  # and padded
    references, estimates = ((20000 * sources).astype(kind) for sources in (references, estimates))
    expected = evaluate(references, estimates, RATE)
    sources = [[Slices(source) for source in role] for role in (references, estimates)]
    assert_equal(evaluate(*sources, RATE), expected, 0)
    assert all(0 < source.most <= RATE for role in sources for source in role)
    with pytest.raises(AudioError, match=r"\(targets, samples, channels\)"):
        evaluate([Slices(references[0][:, 0])], estimates[:1], RATE)


def test_dependent_references_in_files_score_as_arrays(tmp_path, monkeypatch):
    monkeypatch.setattr(bsseval, "_PART", 1000)
    references = noise(2, 130_000, 2)  # many times what is read at a time
    references[0, :, 1] = 0.5 * references[0, :, 0]
    estimates = references + 0.1 * noise(*references.shape, seed=1)
    sources = []
    for role, signals in (("r", references), ("e", estimates)):
        for number, signal in enumerate(signals):
            soundfile.write(tmp_path / f"{role}{number}.wav", signal, 44100, subtype="FLOAT")
        sources.append([audio.Samples(tmp_path / f"{role}{number}.wav") for number in range(2)])
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # the channels of a file are then read at once
    try:
        found = evaluate(*sources, 44100)
    finally:
        torch.set_num_threads(before)
    assert_equal(found, evaluate(references.astype(np.float32), estimates.astype(np.float32), 44100), 1e-9)
    with pytest.raises(AudioError, match="expected a list of references"):
        evaluate(sources[0][0], estimates, 44100)


def test_the_engine_museval_is_museval(museval):
    references, estimates = scene()
    estimates = estimates[:, :-50]
    theirs = museval(references, estimates, RATE)
    ours = evaluate(references, estimates, RATE, engine="museval")
    for metric in METRICS:
        np.testing.assert_array_equal(ours[metric], theirs[metric])


def test_the_engine_museval_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(bsseval.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install museval"):
        evaluate(*scene(), RATE, engine="museval")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda r, e: (r, e[:1]), "1 for 2"),
        (lambda r, e: (r, e[:, :, :1]), "2 channels and the estimates 1"),
        (lambda r, e: ([r[0], r[1, :-1]], e), "one length"),
        (lambda r, e: (r[:, :0], e), "references"),
        (lambda r, e: ([], []), "no references"),
        (lambda r, e: (r, e * np.where(np.arange(e.shape[1]) == 99, np.nan, 1)[:, None]), "finite"),
        (lambda r, e: (r, e.astype(complex)), "real numbers"),
        (lambda r, e: (r[0, :, 0], e), "for one target"),
    ],
)
def test_bad_arrays_are_refused_in_one_sentence(spoil, message):
    with pytest.raises(AudioError, match=message) as refusal:
        evaluate(*spoil(*scene()), RATE)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("bad", [{"engine": "matlab"}, {"sample_rate": 0}, {"sample_rate": 44100.5}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(UsageError):
        evaluate(*scene(), **({"sample_rate": RATE} | bad))


@pytest.mark.filterwarnings("error")
def test_views_that_are_read_only_or_run_backwards_are_taken_as_they_are():
    references, estimates = scene()
    expected = evaluate(references[:, ::-1].copy(), estimates[:, ::-1].copy(), RATE)
    references.flags.writeable = estimates.flags.writeable = False
    assert_equal(evaluate(references[:, ::-1], estimates[:, ::-1], RATE), expected, 0)
