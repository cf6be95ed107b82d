"""The separator: blocks against the whole, the whole against the plain definition, sums, rates and channels."""

from __future__ import annotations

import copy
import math
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import umx_ext
from umx_ext.errors import AudioError, ModelError, UsageError
from umx_ext.separation import separator as separator_module
from umx_ext.separation import streaming
from umx_ext.separation.batches import Batch, Block, Recipe
from umx_ext.separation.config import Config
from umx_ext.separation.separator import Options, Separator
from umx_ext.stems import Stems

RATE = 8000
FIELDS = {"hidden": 16, "n_fft": 512, "hop": 128, "n_mels": 16, "sample_rate": RATE, "bandwidth_hz": 3000.0}


def separator(*, memory: bool = True, **fields) -> Separator:
    """Random weights that do something; without memory the recurrence is cut, so that context cannot matter."""
    model = Separator(Config(**{"branches": ("linear", "mel"), **FIELDS, **fields}))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for net in model.nets.values():
            for name, value in net.state_dict().items():
                if value.is_floating_point():
                    centre = float("var" in name or "scale" in name)
                    value.copy_(0.2 * torch.randn(value.shape, generator=generator) + centre)
            if not memory:
                for encoder in net.encoders.values():
                    for name, value in encoder.lstm.named_parameters():
                        if "weight_hh" in name:
                            value.zero_()
                        if "bias_ih" in name:  # the forget gate shut: the cell keeps nothing
                            value[len(value) // 4 : len(value) // 2] = -40.0
    return model


def music(samples: int, channels: int = 2, seed: int = 0) -> torch.Tensor:
    """Tones that come and go, a little noise; at most 0.9."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / RATE
    tones = sum(
        torch.sin(2 * math.pi * hertz * time + channel) * (0.5 + 0.5 * torch.sin(2 * math.pi * (0.3 + k) * time))
        for k, (hertz, channel) in enumerate([(220, 0.0), (331, 1.0), (1234, 2.0)])
    )
    waveform = 0.2 * tones + 0.05 * torch.randn(channels, samples, generator=generator)
    return 0.9 * waveform / waveform.abs().max()


def plain(model: Separator, waveform: torch.Tensor, **settings) -> torch.Tensor:
    with torch.no_grad():
        return model(waveform[None], **settings)[0]


def relative_db(difference: torch.Tensor, reference: torch.Tensor) -> float:
    return 10 * math.log10(float(difference.square().mean() / reference.square().mean()) + 1e-30)


@pytest.mark.parametrize("niter", [0, 1, 2])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("power", [1.0, 0.4])
def test_unsplit_separation_is_the_plain_definition(niter, channels, power):
    model = separator(channels=channels, filter_power=power)
    waveform = music(3 * RATE + 77, channels)
    expected = plain(model, waveform, niter=niter, residual=True)
    options = Options(niter=niter, split=False, accompaniment="wiener")
    stems = model.separate(waveform, RATE, options)
    assert expected.abs().max() > 0.01
    assert relative_db(stems["vocals"] - expected[0], waveform) < -100
    assert relative_db(stems["accompaniment"] - expected[1], waveform) < -100


@pytest.mark.parametrize("samples", [160000, 160001, 72500, 300 * 128, 300 * 128 - 1, 600 * 128 + 64])
def test_blocks_leave_no_seam_when_context_cannot_matter(samples):
    model = separator(memory=False)
    waveform = music(samples)
    whole = model.separate(waveform, RATE, Options(split=False))
    cut = model.separate(waveform, RATE, Options(segment_s=1.0, overlap_s=0.1))
    assert relative_db(whole["vocals"], waveform) > -30
    assert relative_db(cut["vocals"] - whole["vocals"], waveform) < -110


def test_context_matters_to_a_network_with_memory():
    """The liar of the test above: with memory, too little context must show."""
    model = separator()
    waveform = music(RATE * 20)
    whole = model.separate(waveform, RATE, Options(split=False))
    short = model.separate(waveform, RATE, Options(segment_s=1.0, overlap_s=0.0))
    long = model.separate(waveform, RATE, Options(segment_s=1.0, overlap_s=6.0))
    assert relative_db(short["vocals"] - whole["vocals"], waveform) > -110
    assert relative_db(long["vocals"] - whole["vocals"], waveform) < relative_db(
        short["vocals"] - whole["vocals"], waveform
    )


@pytest.mark.parametrize("piece", [1, 777, 8000, 10**9])
def test_a_stream_gives_the_same_however_it_is_cut(piece):
    model = separator()
    waveform = music(RATE // 2 if piece == 1 else RATE * 12)
    options = Options(segment_s=2.0, overlap_s=0.5, wiener_win_len=50)
    expected = model.separate(waveform, RATE, options)
    pieces = list(model.stream(waveform.split(piece, dim=1), RATE, options))
    joined = torch.cat([stems["vocals"] for stems in pieces], dim=1)
    assert torch.equal(torch.cat([stems.mixture for stems in pieces], dim=1), waveform)
    assert torch.equal(joined, expected["vocals"])


def test_a_stream_starts_before_its_input_has_ended():
    model = separator()
    given = []

    def blocks():
        for block in music(RATE * 20).split(RATE, dim=1):
            given.append(block)
            yield block

    stream = model.stream(blocks(), RATE, Options(segment_s=2.0, overlap_s=0.5, wiener_win_len=50))
    next(stream)
    assert len(given) < 6


@pytest.mark.parametrize("channels", range(1, 9))
@pytest.mark.parametrize("rate", [8000, 11025, 44100])
@pytest.mark.parametrize("model_channels", [1, 2])
def test_rate_channels_and_length_come_back_and_the_sum_is_exact(channels, rate, model_channels):
    model = separator(channels=model_channels)
    waveform = music(rate + 13, channels)
    before = waveform.clone()
    stems = model.separate(waveform, rate, Options(segment_s=0.5, overlap_s=0.1, wiener_win_len=10))
    assert torch.equal(waveform, before)
    assert stems.sample_rate == rate
    assert stems["vocals"].shape == stems["accompaniment"].shape == waveform.shape
    assert torch.equal(stems["accompaniment"], waveform - stems["vocals"])
    assert stems["vocals"].abs().max() > 1e-3
    assert not stems["vocals"][2:].any()


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_resampled_vocals_are_in_time(rate):
    """A network that passes everything: the vocals must be the input, not a shifted one."""
    model = separator(mask="sigmoid")
    with torch.no_grad():
        net = model.nets["vocals"]
        net.output_scale.zero_()
        net.output_mean.fill_(40.0)  # the mask is 1
    time = torch.arange(2 * rate) / rate
    tone = 0.5 * torch.sin(2 * math.pi * 440 * time) * torch.hann_window(len(time))
    waveform = torch.stack([tone, 0.3 * tone])
    vocals = model.separate(waveform, rate, Options(niter=0, segment_s=0.5, overlap_s=0.1, wiener_win_len=10))["vocals"]
    assert relative_db(vocals - waveform, waveform) < -60


def test_what_lies_above_the_model_stays_in_the_accompaniment():
    model = separator(mask="sigmoid")  # at most 1: it cannot raise what the resampler let through
    time = torch.arange(2 * 44100, dtype=torch.float64) / 44100  # float32 phases are noise at -60 dB
    hiss = 0.3 * torch.sin(2 * math.pi * 10500 * time) * torch.hann_window(len(time))  # the model ends at 4 kHz
    hiss = hiss.float().repeat(2, 1)
    stems = model.separate(hiss, 44100, Options(niter=0))
    assert relative_db(stems["vocals"], hiss) < -100


@pytest.mark.parametrize("samples", [1, 2, 100, 256, 511, 512])
def test_the_shortest_audio_comes_back_whole(samples):
    model = separator()
    waveform = music(RATE)[:, :samples]
    stems = model.separate(waveform, RATE)
    assert stems["vocals"].shape == waveform.shape
    assert torch.isfinite(stems["vocals"]).all()


def test_silence_in_gives_silence_out():
    stems = separator().separate(torch.zeros(2, RATE * 3), RATE)
    assert not stems["vocals"].any() and not stems["accompaniment"].any()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_loud_and_quiet_input_stays_finite_and_untouched(scale):
    waveform = music(RATE * 2) * scale
    before = waveform.clone()
    stems = separator().separate(waveform, RATE)
    assert torch.isfinite(stems["vocals"]).all()
    assert torch.equal(waveform, before)


def test_a_batch_equals_a_loop():
    model = separator()
    batch = torch.stack([music(RATE, seed=seed) for seed in range(3)])
    stems = model.separate(batch, RATE)
    for index, item in enumerate(batch):
        assert torch.equal(stems["vocals"][index], model.separate(item, RATE)["vocals"])


def test_four_stems_add_up_because_other_takes_the_rest():
    model = separator(stems=("vocals", "drums", "bass", "other"))
    waveform = music(RATE * 2)
    stems = model.separate(waveform, RATE)
    assert list(stems) == ["vocals", "drums", "bass", "other"]
    total = sum(stems[name] for name in ("vocals", "drums", "bass"))
    assert torch.equal(stems["other"], waveform - total)
    own = model.separate(waveform, RATE, Options(accompaniment="wiener", split=False))
    assert relative_db(torch.stack(list(own.values())) - plain(model, waveform), waveform) < -100


def test_a_subset_of_stems_is_what_comes_back():
    model = separator(stems=("vocals", "drums"))
    waveform = music(RATE)
    assert list(model.separate(waveform, RATE, Options(stems=("drums",)))) == ["drums"]
    karaoke = model.separate(waveform, RATE, Options(stems=("accompaniment", "vocals")))
    assert torch.equal(karaoke["accompaniment"], waveform - karaoke["vocals"])
    with pytest.raises(UsageError, match="no stem piano"):
        model.separate(waveform, RATE, Options(stems=("piano",)))


def test_wiener_accompaniment_and_vocals_are_the_mixture_within_50_db():
    model = separator()
    waveform = music(RATE * 3)
    stems = model.separate(waveform, RATE, Options(accompaniment="wiener"))
    assert not torch.equal(stems["accompaniment"], waveform - stems["vocals"])
    assert relative_db(stems["vocals"] + stems["accompaniment"] - waveform, waveform) < -50


@pytest.mark.parametrize("power", [1.0, 0.4])
def test_the_plain_path_of_other_devices_gives_the_same(power):
    model = separator(mask="sigmoid", filter_power=power)
    waveform = music(RATE * 2)
    block, recipe = Block(waveform, 3, 60), Recipe(("vocals",), 1, 300, True, ("residual", "vocals"))
    (pieces,) = model.start([block], recipe)
    (batched,) = Batch(model.nets, model.config, model.device, [block], recipe).results()
    assert torch.allclose(torch.cat(list(pieces), dim=-1), batched, atol=1e-5)


def test_forward_does_not_filter_a_single_source():
    """It would give back the mixture."""
    model, waveform = separator(), music(RATE)[None]
    with pytest.raises(UsageError, match="needs two sources, and vocals is the only target"):
        model(waveform)
    assert model(waveform, niter=0).shape[1] == 1
    assert model(waveform, residual=True).shape[1] == 2


@pytest.mark.parametrize("power", [1.0, 0.4])
def test_the_separator_can_be_trained_through(power):
    model = separator(filter_power=power).train()
    waveform = torch.cat([music(RATE), torch.zeros(2, RATE)], dim=1)
    model(waveform[None], residual=True)[:, 0].square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("power, unchanged", [(0.5, True), (1.0, False)])
def test_with_masks_as_shares_of_power_the_filter_gives_them_back_where_channels_are_equal(power, unchanged):
    model = separator(mask="sigmoid", filter_power=power)
    waveform = music(2 * RATE)[:1].repeat(2, 1)
    with torch.no_grad():  # and the same masks in both channels
        for net in model.nets.values():
            for values in (net.fc3.weight, *(getattr(net.bn3, name) for name in ("weight", "bias", "running_mean"))):
                left, right = values.chunk(2)
                right.copy_(left)
            left, right = net.bn3.running_var.chunk(2)
            right.copy_(left)
    masked, filtered = (plain(model, waveform, niter=niter, residual=True)[0] for niter in (0, 1))
    assert (relative_db(filtered - masked, masked) < -70) is unchanged


def test_changed_weights_change_the_result():
    model = separator()
    waveform = music(RATE)
    before = model.separate(waveform, RATE)["vocals"]
    other = separator()
    with torch.no_grad():
        other.nets["vocals"].fc3.weight.mul_(0.5)
    model.load_state_dict(other.state_dict())
    assert not torch.equal(model.separate(waveform, RATE)["vocals"], before)


@pytest.mark.parametrize(
    ("waveform", "rate", "words"),
    [
        (torch.zeros(44100, 2), 44100, "pass waveform.T"),
        (torch.zeros(100), 44100, r"\(channels, samples\)"),
        (torch.zeros(2, 100, dtype=torch.int16), 44100, "floating point"),
        (torch.zeros(2, 0), 44100, "at least one sample"),
        (torch.full((2, 100), math.nan), 44100, "nan or inf at 0.000 s"),
        (torch.zeros(2, 100), 0, "above 0 Hz"),
        (np.zeros((2, 100), np.float32), 44100, "torch.from_numpy"),
    ],
)
def test_bad_arrays_are_refused_in_one_sentence(waveform, rate, words):
    with pytest.raises(AudioError, match=words):
        separator().separate(waveform, rate)


@pytest.mark.parametrize(
    "fields",
    [{"niter": -1}, {"wiener_win_len": 0}, {"accompaniment": "loud"}, {"segment_s": 0}, {"overlap_s": math.nan}],
)
def test_bad_options_are_refused(fields):
    with pytest.raises(UsageError, match="expected"):
        Options(**fields)


def test_networks_must_be_the_configs():
    with pytest.raises(ModelError, match="expected networks for vocals"):
        Separator(Config(**FIELDS), {"drums": separator().nets["vocals"]})


def test_stems_know_their_rate_and_shape():
    stems = Stems({"vocals": torch.ones(2, 3), "accompaniment": torch.ones(2, 3)}, 44100)
    assert torch.equal(stems.mixture, torch.full((2, 3), 2.0))
    assert "44100" in repr(stems)
    with pytest.raises(KeyError, match="there are vocals"):
        stems["drums"]
    with pytest.raises(AudioError, match="one shape"):
        Stems({"vocals": torch.ones(2, 3), "bass": torch.ones(2, 4)}, 44100)
    with pytest.raises(AudioError, match="at least one"):
        Stems({}, 44100)


def test_separate_takes_an_array_as_soundfile_reads_it():
    model = separator()
    waveform = music(RATE)
    array = waveform.numpy().T.copy()
    before = array.copy()
    stems = umx_ext.separate(array, RATE, model=model)
    assert torch.equal(stems["vocals"], model.separate(waveform, RATE)["vocals"])
    assert np.array_equal(array, before)
    with pytest.raises(UsageError, match="sample_rate="):
        umx_ext.separate(waveform, model=model)


def test_progress_rises_to_one():
    shares = []
    separator().separate(
        music(RATE * 10), RATE, Options(segment_s=1.0, overlap_s=0.2, wiener_win_len=50), progress=shares.append
    )
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 3


def test_songs_that_are_separated_at_a_time_share_one_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    made, together = [], threading.Barrier(4)
    engine = separator_module.Engine

    def slow(*settings: object, **named: object) -> object:
        time.sleep(0.2)
        made.append(engine(*settings, **named))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(separator_module, "Engine", slow)
    separator = Separator(Config(hidden=16, n_fft=256, hop=64, sample_rate=8000, bandwidth_hz=3000.0))

    def song(_: int) -> torch.Tensor:
        together.wait(10)
        return separator.separate(0.1 * torch.ones(2, 8000), 8000)["vocals"]

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(song, range(4))
    assert len(made) == 1 and all(torch.equal(first, other) for other in others)


def test_a_tape_keeps_a_copy_of_the_last_quarter_and_else_the_whole() -> None:
    tape = streaming._Tape()
    tape.push(torch.arange(100.0)[None])
    tape.release("reader", 75)
    assert tape._parts[0].shape[-1] == 100
    tape.release("reader", 76)
    assert tape._parts[0].untyped_storage().nbytes() == 24 * 4
    assert tape.read(76, 100)[0].tolist() == list(range(76, 100))


def test_a_pickled_separator_leaves_what_was_prepared_for_this_processor_behind() -> None:
    torch.manual_seed(0)
    separator = Separator(Config(hidden=16, n_fft=256, hop=64, sample_rate=8000, bandwidth_hz=3000.0))
    waveform = 0.1 * torch.randn(2, 8000)
    expected = separator.separate(waveform, 8000)["vocals"]
    assert separator._engines
    for made in (pickle.loads(pickle.dumps(separator)), copy.deepcopy(separator)):
        assert not made._engines and separator._engines
        assert torch.equal(made.separate(waveform, 8000)["vocals"], expected)
