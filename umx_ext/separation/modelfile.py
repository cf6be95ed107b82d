"""The files that models come in: ours (``.safetensors`` with metadata) and open-unmix's (``.pth`` in a folder).

Ours holds tensors named ``<stem>.<key of the network's state dict>`` and one metadata entry ``umx_ext``: JSON with
``format_version``, ``config``, ``weights_sha256`` and whatever the maker wanted known. (One entry, because safetensors
writes several in random order, and the same model should give the same bytes.) Open-unmix's ``.pth`` are read with
``weights_only=True``: no file that is read here can run code.

torch is imported only where it is used, so that the registry beside this module answers at once.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umx_ext.errors import ModelError, OutputError, UsageError
from umx_ext.separation.config import Config
from umx_ext.separation.download import hash_matches, sha256_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    from umx_ext.separation.masknet import Net
    from umx_ext.separation.separator import Separator

__all__ = [
    "FORMAT_VERSION",
    "OPEN_UNMIX_ORDER",
    "FileCheck",
    "build_nets",
    "check_file",
    "chosen_stems",
    "config_from",
    "read_metadata",
    "read_openunmix_folder",
    "read_openunmix_state",
    "read_safetensors",
    "save",
    "split_by_stem",
    "weights_sha256",
]

FORMAT_VERSION = 1
METADATA_KEY = "umx_ext"
OPEN_UNMIX_ORDER = ("vocals", "drums", "bass", "other")

# ---------------------------------------------------------------- hashes


@dataclass(frozen=True)
class FileCheck:
    """What `check_file` found: `actual` is empty where the file is missing or unreadable, and `note` says why."""

    path: Path
    expected: str
    actual: str
    ok: bool
    note: str = ""


def check_file(path: Path, sha256: str) -> FileCheck:
    """Hash a file and compare; without `sha256` it is a file of ours, which names the hash of its weights."""
    if not path.is_file():
        return FileCheck(path, sha256, "", False, "missing")
    try:
        if sha256:
            expected, actual = sha256, sha256_of(path)
        else:
            metadata, tensors = read_safetensors(path)
            expected, actual = str(metadata.get("weights_sha256", "")), weights_sha256(tensors)
    except (OSError, ModelError) as error:
        return FileCheck(path, sha256, "", False, str(error))
    ok = hash_matches(actual, expected)
    return FileCheck(path, expected, actual, ok, "" if ok else "it has another SHA-256")


# ---------------------------------------------------------------- ours


def save(separator: Separator, path: str | os.PathLike[str], *, metadata: Mapping[str, Any], half: bool = True) -> None:
    """Write a separator as one ``.safetensors`` file that `load` reads; the same model gives the same bytes.

    Args:
        separator: what to save; not changed.
        path: the file. It is written under a temporary name and renamed.
        metadata: where it came from (commit, data, steps, seed, licence, ...), JSON-ready; kept beside the config.
        half: store matrices as float16. Vectors (norms, means, scales) stay float32: they are small, and their range
            is the data's. So does a matrix that float16 cannot hold.

    Raises:
        UsageError: the metadata are not JSON, or use a key of the format.
        OutputError: the file cannot be written.
    """
    import torch
    from safetensors.torch import save as to_bytes

    tensors: dict[str, Tensor] = {}
    for stem, net in separator.nets.items():
        for key, value in net.state_dict().items():
            if _is_weight(key):
                value = value.detach().to("cpu", torch.float32)
                small = value.half() if half and value.ndim > 1 else value
                kept = small if bool(small.isfinite().all()) else value
                tensors[f"{stem}.{key}"] = kept.clone(memory_format=torch.contiguous_format)
    ours = {
        "format_version": FORMAT_VERSION,
        "config": separator.config.to_dict(),
        "weights_sha256": weights_sha256(tensors),
    }
    if taken := sorted(set(ours) & set(metadata)):
        raise UsageError(f"the metadata may not use the format's own keys: {', '.join(taken)}")
    try:
        text = json.dumps({**ours, **metadata}, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the metadata must be JSON-ready: {error}") from error

    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.write_bytes(to_bytes(tensors, metadata={METADATA_KEY: text}))
        part.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write the model {target}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a ``.safetensors`` of ours says about itself, without reading its weights.

    Raises:
        ModelError: it is not a whole file of ours, or of a newer format.
    """
    return _read(Path(path), weights=False)[0]


def read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors of a file of ours; their hash is not looked at.

    Raises:
        ModelError: it is not a whole file of ours, or of a newer format.
    """
    return _read(path, weights=True)


def _read(path: Path, *, weights: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ModelError(f"{path} is not a file; give a .safetensors file, a model folder or a name")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {key: file.get_tensor(key) for key in file.keys()} if weights else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a whole .safetensors file ({error}); copy or download it again") from error
    if text is None:
        raise ModelError(f"{path} does not say that umx_ext saved it, so its architecture is not known")
    try:
        metadata = json.loads(text)
        version, config = metadata["format_version"], metadata["config"]
        newer = version > FORMAT_VERSION
        config = dict(config)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} has metadata that umx_ext did not write: {error!r}") from error
    if newer:
        raise ModelError(
            f"{path} has format version {version}, this version of umx-ext reads up to {FORMAT_VERSION}; update umx-ext"
        )
    return metadata, tensors


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, types, shapes and values of tensors, in the order of their names."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def split_by_stem(tensors: Mapping[str, Tensor], config: Config, where: str) -> dict[str, dict[str, Tensor]]:
    """A state dict for each stem of the config.

    Raises:
        ModelError: a tensor belongs to none of them.
    """
    states: dict[str, dict[str, Tensor]] = {stem: {} for stem in config.stems}
    for name, tensor in tensors.items():
        stem, _, key = name.partition(".")
        if stem not in states:
            raise ModelError(f"{where} holds {name!r}, but its config has the stems {', '.join(config.stems)}")
        states[stem][key] = tensor
    return states


# ---------------------------------------------------------------- open-unmix's


def read_openunmix_folder(folder: Path, stems: Sequence[str] | None) -> tuple[Config, dict[str, dict[str, Tensor]]]:
    """Config and states of a folder that open-unmix's training script wrote.

    ``separator.json`` gives rate and STFT, each ``<stem>.pth`` (or ``<stem>-<hash>.pth``) a network; all other sizes
    are those of the weights.

    Raises:
        ModelError: no such folder, a file is missing or malformed, or the networks do not fit together.
    """
    facts = _read_json(folder / "separator.json")
    files = _stem_files(folder)
    states: dict[str, dict[str, Tensor]] = {}
    configs: dict[str, Config] = {}
    for stem in chosen_stems(tuple(files), stems, str(folder)):
        raw = _read_pth(files[stem])
        configs[stem] = _config_of(raw, facts, files[stem])
        states[stem] = _renamed(raw, files[stem])
    first, config = next(iter(configs.items()))
    for stem, other in configs.items():
        for field in dataclasses.fields(config):
            ours, theirs = getattr(config, field.name), getattr(other, field.name)
            if ours != theirs:
                raise ModelError(
                    f"the networks in {folder} differ in {field.name} ({first}: {ours}, {stem}: {theirs}); "
                    f"load them one at a time"
                )
    return dataclasses.replace(config, stems=tuple(configs)), states


def read_openunmix_state(path: Path) -> dict[str, Tensor]:
    """One ``.pth`` of open-unmix under `MaskNet`'s names.

    Raises:
        ModelError: it is damaged, or anything but a plain state dict of open-unmix.
    """
    return _renamed(_read_pth(path), path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path.parent} is no model folder: it has no {path.name}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(facts, dict):
        raise ModelError(f"expected a JSON object in {path}, got {type(facts).__name__}")
    return facts


def _stem_files(folder: Path) -> dict[str, Path]:
    files = {}
    for path in sorted(folder.glob("*.pth")):
        files[re.sub(r"[-_][0-9a-f]{8,64}$", "", path.stem)] = path
    if not files:
        raise ModelError(f"{folder} is no model folder: it has no <stem>.pth")
    known = [stem for stem in OPEN_UNMIX_ORDER if stem in files]
    return {stem: files[stem] for stem in [*known, *sorted(set(files) - set(known))]}


def _read_pth(path: Path) -> dict[str, Tensor]:
    import torch

    try:
        content = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        state = torch.load(content, map_location="cpu", weights_only=True)
    # The unpickler raises whatever damaged bytes happen to hit: UnpicklingError, EOFError, KeyError, RuntimeError, ...
    except Exception as error:
        raise ModelError(
            f"{path} is damaged or holds more than weights, and is not opened: only a plain state dict is safe "
            f"({type(error).__name__})"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path} is not a state dict of tensors; give the <stem>.pth, not the training checkpoint")
    return state


def _renamed(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    from umx_ext.separation.masknet import from_openunmix_state

    try:
        return from_openunmix_state(state)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _config_of(state: Mapping[str, Tensor], facts: Mapping[str, Any], path: Path) -> Config:
    """The config that weights of open-unmix imply; `facts` is ``separator.json``."""
    try:
        bandwidth_bins = state["input_mean"].shape[0]
        bins = state["output_mean"].shape[0]
        hidden, columns = state["fc1.weight"].shape
        layers = sum(re.fullmatch(r"lstm\.weight_hh_l\d+", key) is not None for key in state)
    except (KeyError, ValueError) as error:
        raise ModelError(f"{path} is not a network of open-unmix ({error})") from error
    if "lstm.weight_hh_l0_reverse" not in state:
        raise ModelError(f"{path} is a unidirectional network, only bidirectional ones are supported")
    try:
        sample_rate, n_fft, hop = (int(facts[key]) for key in ("sample_rate", "nfft", "nhop"))
        channels = int(facts["nb_channels"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path.parent / 'separator.json'} lacks sample_rate, nfft, nhop or nb_channels") from error
    if bins != n_fft // 2 + 1 or columns != channels * bandwidth_bins:
        raise ModelError(
            f"{path} is for {bins} bins and {columns / max(1, bandwidth_bins):g} channels, its separator.json says "
            f"nfft {n_fft} and {channels} channels"
        )
    sizes = {"sample_rate": sample_rate, "channels": channels, "n_fft": n_fft, "hop": hop}
    config = config_from({"stems": ["any"], "hidden": hidden, "layers": layers, **sizes}, str(path))
    if config.bandwidth_bins != bandwidth_bins:  # half a bin above the last one is safe from rounding
        config = dataclasses.replace(config, bandwidth_hz=(bandwidth_bins - 0.5) * sample_rate / n_fft)
    return config


# ---------------------------------------------------------------- networks


def config_from(fields: Mapping[str, Any], where: str) -> Config:
    """`Config.from_dict` for fields that come from a file.

    Raises:
        ModelError: they are no config; the file is named.
    """
    try:
        return Config.from_dict(fields)
    except (ModelError, ArithmeticError, TypeError) as error:
        raise ModelError(f"{where}: {error}") from error


def chosen_stems(known: tuple[str, ...], wanted: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """The wanted stems, or all known ones.

    Raises:
        ModelError: one is not known, or none is wanted.
    """
    if wanted is None:
        return known
    stems = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    for stem in stems:
        if stem not in known:
            raise ModelError(f"{where} has no network for {stem!r}; it has: {', '.join(known)}")
    if not stems or len(set(stems)) < len(stems):
        raise ModelError(
            f"expected one or more different stems of {', '.join(known)}, got {', '.join(stems) or 'none'}"
        )
    return stems


def build_nets(config: Config, states: Mapping[str, Mapping[str, Tensor]], where: str) -> dict[str, Net]:
    """A network in evaluation mode for each stem of the config, with these weights as float32.

    Raises:
        ModelError: a weight is missing, unexpected or of another shape; the first is named.
    """

    from umx_ext.separation.masknet import build_net

    try:
        with _undrawn():
            first = build_net(config)
    except (ModelError, ArithmeticError, RuntimeError, TypeError) as error:
        raise ModelError(f"{where} has a config that cannot be built: {error}") from error
    nets: dict[str, Net] = {}
    for stem in config.stems:
        net = copy.deepcopy(first) if nets else first
        expected = {key: value for key, value in net.state_dict().items() if _is_weight(key)}
        state = {key: value for key, value in states[stem].items() if _is_weight(key)}
        problems = [
            *(f"it lacks {key!r}" for key in expected if key not in state),
            *(f"it has an unknown {key!r}" for key in state if key not in expected),
            *(
                f"{key!r} has the shape {tuple(state[key].shape)} instead of {tuple(value.shape)}"
                for key, value in expected.items()
                if key in state and state[key].shape != value.shape
            ),
        ]
        if problems:
            raise ModelError(f"{where} is of another architecture than its config says: for {stem}, {problems[0]}")
        net.load_state_dict(state, strict=False)  # not strict: counters of the batch norms are not kept
        nets[stem] = net.eval()
    return nets


def _undrawn() -> TorchFunctionMode:
    """Within it, new layers draw no first weights, which takes longer than to read the ones that replace them."""
    from torch.overrides import TorchFunctionMode

    class Undrawn(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if getattr(func, "__module__", None) == "torch.nn.init":
                return kwargs["tensor"] if "tensor" in kwargs else args[0]
            return func(*args, **kwargs)

    return Undrawn()


def _is_weight(key: str) -> bool:
    return not key.endswith("num_batches_tracked")  # of use to a trainer only, and absent from old files
