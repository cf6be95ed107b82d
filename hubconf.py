"""Entry points for torch.hub: each model of `umx_ext.separation.pretrained.MODELS`, as a waveform module under its name
and as spectrogram modules under its name + ``_spec``.

    >>> import torch                                                                       # doctest: +SKIP
    >>> separator = torch.hub.load("path/of/this/repository", "umx_ext", source="local")   # doctest: +SKIP
    >>> vocals, accompaniment = separator(mixture)[0]     # (batch, channels, samples) in  # doctest: +SKIP

Works without umx_ext being installed, and needs no more than `dependencies`.
"""

# Public names of this module are what torch.hub lists, so everything else begins with an underscore.
import importlib as _importlib
import sys as _sys
from pathlib import Path as _Path

dependencies = ["torch", "numpy", "safetensors"]


def _own(module):
    """Import a module of the package beside this file, whether or not it is installed."""
    folder = str(_Path(__file__).resolve().parent)
    _sys.path.insert(0, folder)
    try:
        return _importlib.import_module(module)
    finally:
        _sys.path.remove(folder)


def _separator(name, targets, device, pretrained):
    models = _own("umx_ext.separation.pretrained")
    if pretrained:
        return models.load(name, stems=targets, device=device)
    return models.untrained(name, stems=targets, device=device)


def _waveform_entry(name, model):
    single = len(model.stems) == 1

    def entry(targets=None, residual=single, niter=1, device="cpu", pretrained=True, wiener_win_len=300):
        separator = _separator(name, targets, device, pretrained)
        unmix = _own("umx_ext.separation.hub").Unmix
        return unmix(separator, residual=residual, niter=niter, wiener_win_len=wiener_win_len)

    entry.__doc__ = f"""{name}: {model.description}.

    Waveform module: mixture (batch, {model.config.channels} channels, samples) at {model.config.sample_rate} Hz in,
    (batch, stems, channels, samples) out, differentiable. A drop-in for open-unmix's separators.

    Args:
        targets (list of str or None): stems to separate, of {", ".join(model.stems)}, in this order. Default: all.
        residual (bool): one more stem at the end, all that no target claims{
        " (the accompaniment)" if model.stems == ("vocals",) else ""
    }. A single target needs it unless niter is 0.
            Default: {single}.
        niter (int): iterations of the multichannel Wiener filter; 0 for none. Default: 1, as in open-unmix{
        "; with 0, the umx-ext command's default, this model scores higher" if model.config.niter == 0 else ""
    }.
        device (str): cpu, cuda, cuda:1, mps, or auto. Default: cpu.
        pretrained (bool): trained weights ({
        "part of the repository" if model.files[0].embedded else "downloaded once, hash checked"
    }), or random ones. Default: True.
        wiener_win_len (int or None): frames that share the filter's spatial covariances; None for all. Default: 300.

    Returns:
        torch.nn.Module with .stems (names of the outputs), .sample_rate and .to_dict(estimates).

    Licence of the weights: {model.license}. {model.license_note}
    """
    return _named(entry, name)


def _spectrogram_entry(name, model):
    def entry(targets=None, device="cpu", pretrained=True):
        return _separator(name, targets, device, pretrained).nets

    config = model.config
    entry.__doc__ = f"""{name}, the networks alone: {model.description}.

    Each maps magnitudes of the mixture's STFT (batch, {config.channels} channels, {config.bins} bins, frames) to
    magnitudes of its stem, same shape. STFT: n_fft {config.n_fft}, hop {config.hop}, periodic Hann window, not
    normalised, at {config.sample_rate} Hz.

    Args:
        targets (list of str or None): stems, of {", ".join(model.stems)}. Default: all.
        device (str): cpu, cuda, cuda:1, mps, or auto. Default: cpu.
        pretrained (bool): trained weights, or random ones. Default: True.

    Returns:
        torch.nn.ModuleDict: stem -> network.

    Licence of the weights: {model.license}. {model.license_note}
    """
    return _named(entry, f"{name}_spec")


def _named(entry, name):
    entry.__name__ = entry.__qualname__ = name
    return entry


for _name, _model in _own("umx_ext.separation.pretrained").MODELS.items():
    globals()[_name] = _waveform_entry(_name, _model)
    globals()[f"{_name}_spec"] = _spectrogram_entry(_name, _model)
