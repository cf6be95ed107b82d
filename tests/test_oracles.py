"""Calibration rows, against closed forms, a plain twin, norbert, and figures measured with museval and norbert."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.peers import import_peer
from umx_ext import audio
from umx_ext.errors import AudioError, MissingExtraError, UsageError
from umx_ext.evaluation.oracles import BASELINES, n_fft_at
from umx_ext.evaluation.sdr import median_sdr
from umx_ext.separation.wiener import wiener
from umx_ext.spectral import istft, stft

RATE = 44100
TINY = ["mixture/2", "mixture/4"]
MASKS = ["IRM1", "IRM2", "IBM"]
STREAMS = {"drums": 1, "bass": 2, "other": 3, "vocals": 4}


def stems(names: tuple[str, ...], samples: int = 30000, seed: int = 0, gain: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: gain * torch.randn(2, samples, generator=generator) for name in names}


def total(references: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([waveform for name, waveform in references.items() if name != "accompaniment"]).sum(dim=0)


def song(path: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """Mixture, and vocals and accompaniment."""
    streams = {name: audio.read(path, stream=index)[0] for name, index in STREAMS.items()}
    rest = streams["drums"] + streams["bass"] + streams["other"]
    return audio.read(path, stream=0)[0], {"vocals": streams["vocals"], "accompaniment": rest}


def available() -> list[str]:
    try:
        import norbert  # noqa: F401
    except ImportError:
        return [name for name in BASELINES if name != "MWF norbert"]
    return list(BASELINES)


def plain(name: str, mixture: Tensor, references: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks as one reads them, on whole songs, in double precision."""
    spectrum = torch.stft(
        mixture.double(), 4096, 1024, window=torch.hann_window(4096, dtype=torch.float64), return_complex=True
    )
    shares = {
        stem: torch.stft(
            waveform.double(), 4096, 1024, window=torch.hann_window(4096, dtype=torch.float64), return_complex=True
        ).abs()
        for stem, waveform in references.items()
    }
    estimates = {}
    for stem, magnitude in shares.items():
        if name == "IBM":
            mask = torch.ones_like(magnitude)
            for other, louder in shares.items():
                if other != stem:
                    mask *= magnitude > louder
        else:
            power = {"IRM1": 1, "IRM2": 2}[name]
            mask = magnitude**power / sum(value**power for value in shares.values())
        estimates[stem] = torch.istft(
            mask * spectrum, 4096, 1024, window=torch.hann_window(4096, dtype=torch.float64), length=mixture.shape[-1]
        )
    return estimates


# -------------------------------------------------------------------------------------------------- laws of the family


def law_shapes_and_names_are_those_of_the_references(baseline) -> None:
    for names in (("vocals", "drums", "bass", "other", "accompaniment"), ("other", "vocals")):
        references = stems(names, samples=9001)
        estimates = baseline(total(references), references, RATE)
        assert list(estimates) == list(names)
        assert all(estimate.shape == (2, 9001) for estimate in estimates.values())


def law_the_callers_tensors_are_untouched(baseline) -> None:
    references = stems(("vocals", "accompaniment"), gain=300.0)  # loud: norbert scales its caller's array
    mixture = references["vocals"] + references["accompaniment"]
    copies = mixture.clone(), {name: waveform.clone() for name, waveform in references.items()}
    baseline(mixture, references, RATE)
    assert torch.equal(mixture, copies[0])
    assert all(torch.equal(references[name], copies[1][name]) for name in references)


def law_silence_in_gives_silence_out(baseline) -> None:
    references = {name: torch.zeros(2, 20000) for name in ("vocals", "accompaniment")}
    for estimate in baseline(torch.zeros(2, 20000), references, RATE).values():
        assert torch.equal(estimate, torch.zeros(2, 20000))


def law_estimates_of_two_stems_do_not_depend_on_the_order(baseline) -> None:
    references = stems(("vocals", "accompaniment"), seed=1)
    mixture = references["vocals"] + references["accompaniment"]
    turned = baseline(mixture, dict(reversed(references.items())), RATE)
    for name, estimate in baseline(mixture, references, RATE).items():
        torch.testing.assert_close(turned[name], estimate, rtol=0, atol=1e-4)


LAWS = [value for name, value in list(globals().items()) if name.startswith("law_")]


def liar_of_shapes(mixture, references, sample_rate):
    return {name: mixture[:, :-1] for name in references}


def liar_of_tensors(mixture, references, sample_rate):
    mixture /= 2
    return {name: mixture for name in references}


def liar_of_silence(mixture, references, sample_rate):
    return {name: waveform / mixture for name, waveform in references.items()}


def liar_of_order(mixture, references, sample_rate):
    return {name: mixture / (number + 1) for number, name in enumerate(references)}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", available())
def test_every_baseline_obeys_the_law(name: str, law) -> None:
    law(BASELINES[name])


@pytest.mark.parametrize(
    "law, liar", list(zip(LAWS, [liar_of_shapes, liar_of_tensors, liar_of_silence, liar_of_order], strict=True))
)
def test_law_catches_its_liar(law, liar) -> None:
    with pytest.raises(AssertionError):
        law(liar)


def test_the_family_has_the_rows_that_every_table_needs() -> None:
    assert list(BASELINES) == ["mixture/2", "mixture/4", "IRM1", "IRM2", "IBM", "MWF", "MWF norbert"]
    assert [name for name, baseline in BASELINES.items() if not baseline.oracle] == TINY


# ------------------------------------------------------------------------------------------------------------- trivial


def test_trivial_rows_are_the_scaled_mixture() -> None:
    references = stems(("vocals", "drums", "bass", "other", "accompaniment"))
    mixture = total(references)
    half, quarter = (BASELINES[name](mixture, references, RATE) for name in TINY)
    assert all(torch.equal(estimate, mixture / 2) for estimate in half.values())
    for name, estimate in quarter.items():
        assert torch.equal(estimate, mixture * (0.75 if name == "accompaniment" else 0.25))


def test_a_quarter_of_the_mixture_has_the_isr_that_sisec_published_for_its_mix_row() -> None:
    """Of independent stems the filters find a quarter of each, so the error of scale is three quarters of the stem:
    -20 log10(0.75) = 2.499 dB, and SiSEC 2018's medians of MIX are 2.48 to 2.50 for every stem."""
    museval = import_peer("museval")
    references = {name: waveform[:1] for name, waveform in stems(("vocals", "drums"), samples=3 * 8000).items()}
    estimates = BASELINES["mixture/4"](total(references), references, RATE)
    layout = [np.stack([signal.numpy().T for signal in signals.values()]) for signals in (references, estimates)]
    isr = museval.evaluate(*layout, win=3 * 8000, hop=3 * 8000)[1]
    # The filters also fit 512 taps of the other stems' noise to the error, which raises or lowers it a little.
    assert isr == pytest.approx(2.499, abs=0.1)


# ------------------------------------------------------------------------------------------------------------- oracles


@pytest.mark.parametrize("name", MASKS)
def test_masks_in_windows_equal_plain_masks_on_the_whole_song(name: str) -> None:
    references = stems(("vocals", "drums", "bass"), samples=330 * 1024 + 333, seed=2)  # two windows
    mixture = total(references) + 0.01 * stems(("hiss",), samples=330 * 1024 + 333, seed=3)["hiss"]
    estimates = BASELINES[name](mixture, references, RATE)
    for stem, expected in plain(name, mixture, references).items():
        error = (estimates[stem] - expected).square().sum() / expected.square().sum()
        # In single precision a binary mask decides a few close calls the other way.
        assert error < (1e-5 if name == "IBM" else 1e-10)


def test_the_wiener_oracle_in_windows_equals_the_filter_on_the_whole_song() -> None:
    references = stems(("vocals", "accompaniment"), samples=320 * 1024, seed=4)
    mixture = references["vocals"] + references["accompaniment"]
    magnitudes = torch.stack([stft(stem, 4096, 1024).abs().permute(2, 0, 1) for stem in references.values()])
    whole = wiener(magnitudes, stft(mixture, 4096, 1024).permute(2, 0, 1), niter=1)
    expected = istft(whole.permute(0, 2, 3, 1), 4096, 1024, mixture.shape[-1])
    estimates = torch.stack(list(BASELINES["MWF"](mixture, references, RATE).values()))
    assert torch.linalg.vector_norm(estimates - expected) < 1e-4 * torch.linalg.vector_norm(expected)


def test_our_wiener_oracle_equals_norberts(data: Path) -> None:
    import_peer("norbert")
    path = sorted((data / "musdb18-7" / "test").glob("*.stem.mp4"))[3]
    mixture, references = song(path)
    ours, peers = (BASELINES[name](mixture, references, RATE) for name in ("MWF", "MWF norbert"))
    for name, reference in references.items():
        ratio = (ours[name] - peers[name]).square().sum() / peers[name].square().sum()
        assert ratio < 1e-4
        assert abs(median_sdr(reference, ours[name], RATE) - median_sdr(reference, peers[name], RATE)) < 0.02


def test_vocals_and_accompaniment_compete_with_each_other_and_single_stems_among_themselves() -> None:
    singles = stems(("vocals", "drums", "bass", "other"), seed=5)
    mixture = total(singles)
    rest = singles["drums"] + singles["bass"] + singles["other"]
    pair = BASELINES["IRM2"](mixture, {"vocals": singles["vocals"], "accompaniment": rest}, RATE)
    four = BASELINES["IRM2"](mixture, singles, RATE)
    five = BASELINES["IRM2"](mixture, {**singles, "accompaniment": rest}, RATE)
    for name, estimate in five.items():
        assert torch.equal(estimate, (pair if name in pair else four)[name])
    assert not torch.allclose(pair["vocals"], four["vocals"], atol=1e-3)


def test_ideal_masks_share_the_mixture_out_completely() -> None:
    references = stems(("vocals", "accompaniment"), seed=6)
    mixture = references["vocals"] + references["accompaniment"]
    for name in MASKS:
        estimates = BASELINES[name](mixture, references, RATE)
        torch.testing.assert_close(estimates["vocals"] + estimates["accompaniment"], mixture, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MASKS)
def test_a_silent_stem_gets_nothing_and_the_only_other_one_everything(name: str) -> None:
    voice = stems(("vocals",), seed=7)["vocals"]
    for silent_first in (False, True):
        references = {"vocals": voice, "accompaniment": torch.zeros_like(voice)}
        ordered = dict(reversed(references.items())) if silent_first else references
        estimates = BASELINES[name](voice, ordered, RATE)
        torch.testing.assert_close(estimates["vocals"], voice, rtol=0, atol=1e-5)
        assert not estimates["accompaniment"].any()


@pytest.mark.parametrize("name", MASKS)
def test_what_belongs_to_no_stem_goes_to_none(name: str) -> None:
    references = {stem: torch.zeros(2, 20000) for stem in ("vocals", "accompaniment")}
    for estimate in BASELINES[name](stems(("hiss",), samples=20000)["hiss"], references, RATE).values():
        assert not estimate.any()


@pytest.mark.parametrize("samples", [0, 1, 2048, 2049, 5000])
def test_short_songs_keep_their_length(samples: int) -> None:
    references = stems(("vocals", "accompaniment"), samples=samples)
    mixture = references["vocals"] + references["accompaniment"]
    for name in ("IRM2", "MWF"):
        for estimate in BASELINES[name](mixture, references, RATE).values():
            assert estimate.shape == (2, samples)
            assert torch.isfinite(estimate).all()


@pytest.mark.parametrize("rate, expected", [(44100, 4096), (48000, 4096), (22050, 2048), (16000, 2048), (96000, 8192)])
def test_the_window_lasts_as_long_at_other_rates(rate: int, expected: int) -> None:
    assert n_fft_at(rate) == expected


def test_mono_songs_have_oracles_too() -> None:
    references = {name: waveform[:1] for name, waveform in stems(("vocals", "accompaniment")).items()}
    mixture = references["vocals"] + references["accompaniment"]
    for name in available():
        assert BASELINES[name](mixture, references, RATE)["vocals"].shape == mixture.shape


# ----------------------------------------------------------------------------------------------------------- bad input


def test_references_of_another_shape_are_refused() -> None:
    references = stems(("vocals", "accompaniment"))
    with pytest.raises(AudioError, match=r"vocals is \(2, 30000\) and the mixture \(2, 29999\)"):
        BASELINES["IRM1"](references["vocals"][:, 1:], references, RATE)


def test_an_oracle_of_one_stem_is_refused_and_a_trivial_row_is_not() -> None:
    references = stems(("vocals",))
    with pytest.raises(UsageError, match="at least two stems, got vocals"):
        BASELINES["MWF"](references["vocals"], references, RATE)
    assert torch.equal(
        BASELINES["mixture/2"](references["vocals"], references, RATE)["vocals"], references["vocals"] / 2
    )


def test_without_norbert_the_message_is_the_command(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "norbert", None)
    references = stems(("vocals", "accompaniment"), samples=5000)
    with pytest.raises(MissingExtraError, match="pip install norbert"):
        BASELINES["MWF norbert"](references["vocals"], references, RATE)


# ------------------------------------------------------------------------------------------------- figures reproduced


def test_the_measured_figures_of_the_thirty_songs_are_reproduced(data: Path) -> None:
    """Measured with museval 0.4.1 and norbert 0.2.1 (see the README of the data): SDR, median over seconds, then songs.
    IRM2 needs vocals against accompaniment and MUSDB18's own mixture: with four sources it reads 10.66 / 14.58, with
    the sum of the stems as mixture 11.02 / 15.01."""
    expected = {"mixture/2": (0.86, 4.38), "IRM2": (10.84, 14.71), "MWF": (10.86, 15.34)}
    values: dict[str, list[list[float]]] = {name: [] for name in expected}
    paths = sorted((data / "musdb18-7" / "test").glob("*.stem.mp4"))
    assert len(paths) == 30
    for path in paths:
        mixture, references = song(path)
        for name in expected:
            estimates = BASELINES[name](mixture, references, RATE)
            values[name].append([median_sdr(references[stem], estimates[stem], RATE) for stem in references])
    for name, figures in expected.items():
        assert np.median(values[name], axis=0) == pytest.approx(figures, abs=0.05), name
