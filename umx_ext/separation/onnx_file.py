"""A separator's networks as one ONNX file, and the proof that the file computes what they do.

The graph is written node by node from the engine's folded matrices, not traced: it takes any number of frames and any
batch, has no more nodes than the network has parts, and does not hang on a version of torch's exporter. Input and
outputs are magnitude spectrograms `(batch, channels, bins, frames)`; each output bears the name of its stem. The STFT
and the Wiener filter stay outside; what the spectrogram must be like is in the file's metadata.
"""

from __future__ import annotations

import copy
import importlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umx_ext.codecs.files import discard, rename
from umx_ext.codecs.formats import shown
from umx_ext.errors import AudioError, MissingExtraError, ModelError, OutputError
from umx_ext.separation.branches import AMPLITUDE_FLOOR, POWER_FLOOR, Branch, Linear, Mel, Mfcc
from umx_ext.separation.config import Config
from umx_ext.separation.engine import Chain, folded
from umx_ext.separation.masknet import members
from umx_ext.separation.separator import Separator
from umx_ext.separation.unet import GRID, Conv, Folded, FoldedBlock, FoldedOver, UNet
from umx_ext.separation.unet import folded as folded_unet
from umx_ext.spectral import stft

__all__ = ["INPUT", "LARGEST_DB", "difference", "export", "require", "to_onnx"]

INPUT = "magnitude"
LARGEST_DB = -90.0  # of a file that computes what the networks do: float32 sums in another order leave some -130

_OPSET = 17
_IR_VERSION = 8  # what onnxruntime of that opset's time reads
_GATES = (0, 3, 1, 2)  # torch's input, forget, cell, output in ONNX's order: input, output, forget, cell


def export(separator: Separator, path: str | os.PathLike[str], waveform: Tensor, *, overwrite: bool = False) -> float:
    """Write the networks of a separator, after onnxruntime has run the file and found what they find.

    Args:
        separator: whose networks, on any device and in either mode; it is not changed.
        path: of the file, which is written whole or not at all.
        waveform: `(channels, samples)`, what to run both on, at the separator's rate.
        overwrite: replace a file that is there.

    Returns:
        Energy of the difference beside that of the networks' output, dB, for the worst stem; -inf where all are equal.

    Raises:
        MissingExtraError: onnx or onnxruntime cannot be imported.
        ModelError: the separator has a branch of somebody's own; the file does not compute what the networks do.
        AudioError: the waveform is of another shape, silent or not finite.
        OutputError: the file cannot be written, or is there already.
    """
    target, config = Path(path), separator.config
    require(target, overwrite=overwrite)
    if waveform.dim() != 2 or len(waveform) != config.channels or not waveform.shape[1]:
        raise AudioError(f"expected a waveform ({config.channels}, samples), got {tuple(waveform.shape)}")
    if not waveform.isfinite().all() or not waveform.any():
        raise AudioError("the sound to check the file on is silent or holds nan or infinity; give a song that sounds")
    content = to_onnx(separator)
    found = difference(content, separator, stft(waveform, config.n_fft, config.hop).abs()[None])
    if not found < LARGEST_DB:  # nan too
        raise ModelError(f"the ONNX file is {found:.0f} dB off the model, and was not written; please report this")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        rename(str(temporary), str(target), overwrite)
    except OSError as error:
        raise OutputError(
            f"{shown(target)} cannot be written ({error.strerror}); make room or give another path"
        ) from error
    finally:
        discard([str(temporary)], [])
    return found


def require(path: Path, *, overwrite: bool) -> None:
    """See whether a file could be exported there, before anything is fetched or computed for it.

    Raises:
        MissingExtraError: onnx or onnxruntime cannot be imported.
        OutputError: no such folder, or the file is there already.
    """
    _imported("onnx")
    _imported("onnxruntime")
    if os.path.lexists(path) and not overwrite:
        raise OutputError(f"{shown(path)} is there already; give another name or allow overwriting")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{shown(path)} cannot be written: there is no such folder; make it or give another path")


def to_onnx(separator: Separator) -> bytes:
    """The networks of a separator as the content of an ONNX file.

    Its metadata have the separator's ``config`` and own ``metadata`` in JSON, and say in words what the ``input`` is.

    Raises:
        MissingExtraError: onnx cannot be imported.
        ModelError: the separator has a branch of somebody's own.
    """
    onnx, config = _imported("onnx"), separator.config
    if INPUT in separator.nets:
        raise ModelError(f"no stem can be named {INPUT!r} in an ONNX file: that is its input")
    graph = _Graph(onnx, config.channels, config.bins)
    for stem, net in separator.nets.items():
        graph.add_network(stem, net)
    made = onnx.helper.make_graph(
        graph.nodes,
        "umx_ext",
        [_tensor(onnx, INPUT, config)],
        [_tensor(onnx, stem, config) for stem in separator.nets],
        graph.constants,
    )
    model = onnx.helper.make_model(
        made, opset_imports=[onnx.helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION, producer_name="umx_ext"
    )
    facts = {
        "config": json.dumps(config.to_dict()),
        "metadata": json.dumps(separator.metadata),
        "input": f"|STFT| at {config.sample_rate} Hz, not normalised, periodic Hann window of {config.n_fft} samples, "
        f"hop {config.hop}, centred, reflected at both ends",
    }
    onnx.helper.set_model_props(model, facts)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def difference(content: bytes, separator: Separator, magnitude: Tensor) -> float:
    """Run an ONNX file with onnxruntime, and the networks, on a spectrogram `(batch, channels, bins, frames)`.

    Returns:
        As `export`.

    Raises:
        MissingExtraError: onnxruntime cannot be imported.
        ModelError: it cannot run the file.
    """
    runtime = _imported("onnxruntime")
    stems = list(separator.nets)
    try:
        session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
        found = dict(zip(stems, session.run(stems, {INPUT: magnitude.contiguous().numpy()}), strict=True))
    except Exception as problem:  # its errors have no base of their own
        raise ModelError(f"onnxruntime cannot run the ONNX file: {problem}") from problem
    worst = -math.inf
    for stem, net in separator.nets.items():
        with torch.no_grad():
            truth = copy.deepcopy(net).to("cpu", torch.float32).eval()(magnitude).double()
        error = torch.from_numpy(found[stem]).double() - truth
        if error.any():
            found_db = 10 * math.log10(error.square().sum() / truth.square().sum().clamp_min(1e-30))
            if math.isnan(found_db):  # which no comparison would find
                return found_db
            worst = max(worst, found_db)
    return worst


class _Graph:
    """Nodes and constants, as they are added."""

    def __init__(self, onnx: Any, channels: int, bins: int) -> None:
        self.onnx = onnx
        self.channels, self.bins = channels, bins
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.features: dict[str, str] = {}  # of branches that several stems have
        self.mixture = self.node("Transpose", INPUT, perm=[3, 0, 1, 2])  # frames first, as an LSTM has them

    def node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node of one output; its name."""
        name = output or f"inner/{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], name=f"node_{name}", **attributes))
        return name

    def constant(self, values: Tensor | list[int] | float) -> str:
        """Add a constant: float32, or whole numbers where a list came; its name."""
        if isinstance(values, list):
            array = np.array(values, np.int64)
        else:
            array = torch.as_tensor(values).detach().to("cpu", torch.float32).contiguous().numpy()
        name = f"inner/constant_{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def product(self, values: str, weight: Tensor, bias: Tensor | None = None) -> str:
        found = self.node("MatMul", values, self.constant(weight))
        return found if bias is None else self.node("Add", found, self.constant(bias))

    def add_network(self, stem: str, net: Any) -> None:
        mask = ""
        for share, one in members(net):
            its = self._mask(one)
            if share != 1:
                its = self.node("Mul", its, self.constant(share))
            mask = self.node("Add", mask, its) if mask else its
        masked = self.node("Mul", mask, self.mixture)
        self.node("Transpose", masked, output=stem, perm=[1, 2, 3, 0])

    def _mask(self, net: Any) -> str:
        """Of one network, `(frames, batch, channels, bins)`."""
        if isinstance(net, UNet):
            return self._convolutional(folded_unet(net))
        head = folded(net, self.channels)
        total = ""
        for chain in head.chains:
            part = self._chain(chain)
            total = self.node("Add", total, part) if total else part
        hidden = self.node("Relu", self.node("Add", total, self.constant(head.bias2)))
        flat = self.product(hidden, head.weight3, head.bias3)
        mask = self.node("Sigmoid" if head.mask == "sigmoid" else "Relu", flat)
        return self.node("Reshape", mask, self.constant([0, 0, self.channels, self.bins]))

    def _convolutional(self, net: Folded) -> str:
        """As `_mask`; within, `(batch, channels, frames, frequencies)`."""
        width, wide = net.branch.features, len(net.ramp)
        flat = self._features(net.name, net.branch)
        features = self.node("Reshape", flat, self.constant([0, 0, self.channels, width]))
        features = self.node("Mul", self.node("Add", features, self.constant(net.mean)), self.constant(net.scale))
        features = self.node("Transpose", features, perm=[1, 2, 0, 3])
        count = self.node("Shape", features, start=2, end=3)
        missing = self.node("Mod", self.node("Neg", count), self.constant([GRID]))  # of the divisor's sign
        pads = self.node("Concat", self.constant([0] * 6), missing, self.constant([wide - width]), axis=0)
        padded = self.node("Pad", features, pads)
        batch, frames = self.node("Shape", padded, start=0, end=1), self.node("Shape", padded, start=2, end=3)
        shape = self.node("Concat", batch, self.constant([1]), frames, self.constant([wide]), axis=0)
        ramp = self.node("Expand", self.constant(net.ramp), shape)
        levels = [self._block(self.node("Concat", padded, ramp, axis=1), net.stem)]
        for block in net.down:
            levels.append(self._block(levels[-1], block))
        values = levels.pop()
        for level in reversed(range(len(levels))):
            both = self.node("Concat", self._conv(values, net.up[level], back=True), levels[level], axis=1)
            values = self._block(both, net.merge[level])
        values = self.node("Relu", self._conv(values, net.last, back=True))
        values = self.node("Sigmoid", self._conv(self.node("Concat", values, padded, axis=1), net.out))
        ends = self.node("Concat", count, self.constant([width]), axis=0)
        values = self.node("Slice", values, self.constant([0, 0]), ends, self.constant([2, 3]))
        values = self.node("Pad", values, self.constant([0] * 7 + [self.bins - width]))
        return self.node("Transpose", values, perm=[2, 0, 1, 3])

    def _conv(self, values: str, conv: Conv, *, back: bool = False) -> str:
        kernel = list(conv.weight.shape[2:])
        around = [0] * 4 if back else [kernel[0] // 2] * 4
        weight, bias = self.constant(conv.weight), self.constant(conv.bias)
        kind = "ConvTranspose" if back else "Conv"
        strides = list(conv.stride)
        return self.node(kind, values, weight, bias, kernel_shape=kernel, strides=strides, pads=around)

    def _block(self, values: str, block: FoldedBlock) -> str:
        values = self.node("Relu", self._conv(values, block.conv1))
        if block.conv2 is not None:
            values = self.node("Add", values, self.node("Relu", self._conv(values, block.conv2)))
        return values if block.over is None else self._over(values, block.over)

    def _over(self, values: str, over: FoldedOver) -> str:
        rows = self.node("Transpose", values, perm=[0, 2, 3, 1])
        inner = self.node("MatMul", self.constant(over.narrow), rows)
        inner = self.node("Add", self.node("Mul", inner, self.constant(over.factor)), self.constant(over.offset))
        inner = self.node("Mul", self.node("Relu", inner), self.constant(over.further))
        outer = self.node("Add", self.node("MatMul", self.constant(over.wide), inner), self.constant(over.last))
        return self.node("Transpose", self.node("Add", rows, self.node("Relu", outer)), perm=[0, 3, 1, 2])

    def _chain(self, chain: Chain) -> str:
        """Its part of the decoder's first sum, `(frames, batch, hidden)`."""
        features = self._features(chain.name, chain.branch)
        encoded = self.node("Tanh", self.product(features, chain.weight, chain.bias))
        recurrent = encoded
        for directions in chain.layers:
            recurrent = self._layer(recurrent, directions)
        part = self.product(recurrent, chain.recurrent)
        return part if chain.skip is None else self.node("Add", part, self.product(encoded, chain.skip))

    def _features(self, name: str, branch: Branch) -> str:
        """What `_branch` gives, made once."""
        if name not in self.features:
            self.features[name] = self._branch(name, branch)
        return self.features[name]

    def _branch(self, name: str, branch: Branch) -> str:
        """`(frames, batch, channels * features)`."""
        if not isinstance(branch, Linear | Mel) or type(branch) not in (Linear, Mel, Mfcc):
            raise ModelError(
                f"the branch {name!r} has no form in ONNX; linear, mel and mfcc branches have one, of logarithms or not"
            )
        bins = branch.features if isinstance(branch, Linear) else branch.filters.shape[0]
        low = self.node("Slice", self.mixture, self.constant([0]), self.constant([int(bins)]), self.constant([3]))
        if isinstance(branch, Linear):
            found = self._log(low, AMPLITUDE_FLOOR) if branch.log else low
        else:
            found = self.product(self.node("Mul", low, low), branch.filters)
            found = self._log(found, POWER_FLOOR) if branch.log else found
            if isinstance(branch, Mfcc):
                found = self.product(found, branch.cosines)
        return self.node("Reshape", found, self.constant([0, 0, self.channels * branch.features]))

    def _log(self, values: str, floor: float) -> str:
        return self.node("Log", self.node("Add", values, self.constant(floor)))

    def _layer(self, values: str, directions: list[list[Tensor]]) -> str:
        """A bidirectional layer: `(frames, batch, inputs)` -> `(frames, batch, hidden)`."""
        weight_ih, weight_hh, bias_ih, bias_hh = (
            torch.stack([_reordered(direction[place]) for direction in directions]) for place in range(4)
        )
        size = weight_hh.shape[-1]
        found = self.node(
            "LSTM",
            values,
            self.constant(weight_ih),
            self.constant(weight_hh),
            self.constant(torch.cat([bias_ih, bias_hh], dim=1)),
            direction="bidirectional",
            hidden_size=size,
        )  # (frames, directions, batch, size)
        beside = self.node("Transpose", found, perm=[0, 2, 1, 3])
        return self.node("Reshape", beside, self.constant([0, 0, 2 * size]))


def _reordered(gates: Tensor) -> Tensor:
    parts = gates.chunk(4)
    return torch.cat([parts[place] for place in _GATES])


def _tensor(onnx: Any, name: str, config: Config) -> Any:
    shape = ["batch", config.channels, config.bins, "frames"]
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"ONNX files need the package {name}, which cannot be imported ({error}); in umx-ext's folder run: "
            "pip install '.[onnx]'"
        ) from error
