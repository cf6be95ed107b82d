"""STFT against torch.stft, its inverse against the signal, mel and cosine matrices against those of other packages."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.peers import import_peer
from umx_ext.errors import ModelError
from umx_ext.spectral import dct_matrix, frame_count, istft, mel_filters, overlap_add, stft


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("shape", [(10000,), (2, 10000), (3, 2, 9999)])
def test_stft_equals_torchs(center, shape):
    waveform = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    window = torch.hann_window(4096, dtype=torch.float64)
    expected = torch.stft(
        waveform.reshape(-1, shape[-1]), 4096, 1024, window=window, center=center, return_complex=True
    ).reshape(*shape[:-1], 2049, -1)
    ours = stft(waveform, 4096, 1024, center=center)
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() < 1e-9


def test_a_full_scale_sine_on_a_bin_has_magnitude_a_quarter_of_n_fft():
    time = torch.arange(44100, dtype=torch.float64)
    sine = torch.sin(2 * torch.pi * 100 / 4096 * time)
    assert stft(sine, 4096, 1024)[100, 10].abs().item() == pytest.approx(1024, rel=1e-6)


@pytest.mark.parametrize("samples", [1, 2, 100, 2048, 2049, 4096, 44100])
def test_inverse_gives_the_signal_back_at_any_length(samples):
    waveform = torch.randn(2, samples, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spectrum = stft(waveform, 4096, 1024)
    assert spectrum.shape[-1] == frame_count(samples, 1024)
    assert (istft(spectrum, 4096, 1024, samples) - waveform).abs().max() < 1e-10


def test_overlap_add_equals_a_loop():
    frames = torch.randn(3, 7, 8, generator=torch.Generator().manual_seed(2))
    expected = torch.zeros(3, 6 * 2 + 8)
    for index in range(7):
        expected[:, index * 2 : index * 2 + 8] += frames[:, index]
    assert torch.allclose(overlap_add(frames, 2), expected)


@pytest.mark.parametrize("n_mels", [40, 128, 229])
def test_mel_matrix_equals_librosas(n_mels):
    librosa = import_peer("librosa")
    expected = librosa.filters.mel(
        sr=44100, n_fft=4096, n_mels=n_mels, fmin=0, fmax=16000, htk=True, norm=None, dtype=np.float64
    ).T
    assert np.abs(mel_filters(4096, 44100, n_mels, 16000).double().numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("n_mels", [40, 128, 229])
def test_mel_matrix_equals_torchaudios(n_mels):
    functional = import_peer("torchaudio.functional")
    expected = functional.melscale_fbanks(2049, 0.0, 16000.0, n_mels, 44100)
    # torchaudio computes in float32, where neighbouring edges of the narrow low bands cancel.
    assert (mel_filters(4096, 44100, n_mels, 16000) - expected).abs().max() < 2e-4


def test_mel_branch_equals_torchaudios_spectrogram_of_the_same_audio():
    transforms = import_peer("torchaudio.transforms")
    from umx_ext.separation.branches import BRANCHES
    from umx_ext.separation.config import Config

    waveform = torch.randn(2, 30000, generator=torch.Generator().manual_seed(3))
    peer = transforms.MelSpectrogram(
        44100, n_fft=4096, hop_length=1024, f_max=16000.0, n_mels=128, power=2.0, center=True, pad_mode="reflect"
    )
    expected = peer(waveform)
    magnitude = stft(waveform, 4096, 1024).abs().permute(2, 0, 1)[None]
    ours = BRANCHES["mel-poster"](Config())(magnitude)[0].permute(1, 2, 0)
    assert ((ours - expected).abs() <= 1e-4 * expected.abs() + 1e-4 * expected.mean()).all()


def test_too_many_mel_bands_are_refused():
    with pytest.raises(ModelError, match="too many"):
        mel_filters(4096, 44100, 600, 16000)


@pytest.mark.parametrize("length, count", [(128, 40), (128, 128), (20, 13), (5, 1)])
def test_the_cosine_matrix_equals_scipys_and_torchaudios(length, count):
    fft = import_peer("scipy.fft")
    expected = fft.dct(np.eye(length), type=2, norm="ortho", axis=1)[:, :count]
    assert np.abs(dct_matrix(length, count).double().numpy() - expected).max() < 1e-7
    functional = import_peer("torchaudio.functional")
    theirs = functional.create_dct(count, length, "ortho")  # in float32, whose angles are large
    assert dct_matrix(length, count).shape == theirs.shape
    assert (dct_matrix(length, count) - theirs).abs().max() < 1e-5


def test_the_whole_cosine_matrix_is_a_rotation():
    matrix = dct_matrix(50, 50).double()
    assert (matrix.mT @ matrix - torch.eye(50, dtype=torch.float64)).abs().max() < 1e-6


@pytest.mark.parametrize("count", [0, 21])
def test_a_wrong_count_of_cosines_is_refused(count):
    with pytest.raises(ModelError, match=f"got {count}"):
        dct_matrix(20, count)
