"""Models by name or path: the registry, loading, and what the command `umx-ext models` asks.

The formats themselves are in `umx_ext.separation.modelfile`, downloads in `umx_ext.separation.download`. This module
imports torch only where it is used, so that listing names costs nothing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from umx_ext.errors import ModelError, UsageError
from umx_ext.separation.config import Config
from umx_ext.separation.download import Progress, cache_dir, fetch
from umx_ext.separation.modelfile import (
    OPEN_UNMIX_ORDER,
    FileCheck,
    build_nets,
    check_file,
    chosen_stems,
    config_from,
    read_metadata,
    read_openunmix_folder,
    read_openunmix_state,
    read_safetensors,
    save,
    split_by_stem,
    weights_sha256,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from umx_ext.separation.separator import Separator

__all__ = [
    "DEFAULT_MODEL",
    "MODELS",
    "FileCheck",
    "ModelEntry",
    "ModelFile",
    "ModelInfo",
    "card",
    "config",
    "license",
    "load",
    "models",
    "path",
    "pick_device",
    "pull",
    "read_metadata",
    "save",
    "untrained",
    "verify",
]

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


@dataclass(frozen=True)
class ModelFile:
    """One file of a registered model.

    Attributes:
        location: an http(s) URL, or the name of a file in ``umx_ext/weights``.
        sha256: its SHA-256 or the first digits of it; empty for an embedded file, which carries its own.
        stem: the stem that an open-unmix ``.pth`` is for; None for a ``.safetensors``, which says so itself.
    """

    location: str
    sha256: str = ""
    stem: str | None = None

    @property
    def embedded(self) -> bool:
        """Whether it comes with the package."""
        return urlsplit(self.location).scheme not in ("http", "https")

    @property
    def path(self) -> Path:
        """Where it is, or will be once it is downloaded."""
        if self.embedded:
            return WEIGHTS / self.location
        return cache_dir() / PurePosixPath(urlsplit(self.location).path).name


@dataclass(frozen=True)
class ModelEntry:
    """A member of `MODELS`.

    Attributes:
        description: one sentence for a person who chooses.
        stems: what it separates.
        config: architecture. For a ``.safetensors`` the file's own counts; this is what an untrained one is made of.
        license: short name of the licence of the weights.
        license_note: where that is stated and what else binds.
        needs_license_acceptance: the licence restricts use, so a command should ask before it downloads. The library
            never asks.
        source: page of the authors.
        files: one ``.safetensors``, or one ``.pth`` a stem.
    """

    description: str
    stems: tuple[str, ...]
    config: Config
    license: str
    license_note: str
    needs_license_acceptance: bool
    source: str
    files: tuple[ModelFile, ...]


@dataclass(frozen=True)
class ModelInfo:
    """A registered model as it stands on this machine.

    Attributes:
        available: all its files are here (their hashes are `verify`'s business).
        size_bytes: of its files; None while one is missing.
    """

    name: str
    description: str
    stems: tuple[str, ...]
    license: str
    needs_license_acceptance: bool
    default: bool
    embedded: bool
    available: bool
    paths: tuple[Path, ...]
    size_bytes: int | None


def _open_unmix(description: str, record: int, digits: dict[str, str], **fields: Any) -> ModelEntry:
    """An entry for weights on Zenodo, whose file names carry the first eight digits of their SHA-256."""
    hidden = fields.pop("hidden", 512)
    full = fields.pop("full", {})
    stated = {
        "license": "MIT",
        "license_note": "MIT is the licence of the open-unmix project, which published these weights; they were "
        "trained on MUSDB18, whose songs are for non-commercial research.",
        "needs_license_acceptance": False,
    }
    return ModelEntry(
        description=description,
        stems=OPEN_UNMIX_ORDER,
        config=Config(stems=OPEN_UNMIX_ORDER, hidden=hidden),
        source=f"https://doi.org/10.5281/zenodo.{record}",
        files=tuple(
            ModelFile(
                f"https://zenodo.org/records/{record}/files/{stem}-{digits[stem]}.pth",
                full.get(stem, digits[stem]),
                stem,
            )
            for stem in OPEN_UNMIX_ORDER
        ),
        **{**stated, **fields},
    )


DEFAULT_MODEL = "umx_ext"

MODELS: dict[str, ModelEntry] = {
    "umx_ext": ModelEntry(
        description="the embedded default: vocals, trained by this repository on the MUSDB18 sample and MIR-1K",
        stems=("vocals",),
        config=Config(
            branches=("linear-log", "mel"),
            hidden=256,
            mask="sigmoid",
            niter=1,
            filter_power=0.5,
            second=("linear-log",),
            second_mask="sigmoid",
            second_share=0.6,
            second_network="unet",
        ),
        license="research",
        license_note="See LICENSE-WEIGHTS.txt beside the weights: the terms of the data they were trained on.",
        needs_license_acceptance=False,
        source="umx_ext/weights/umx_ext.md",
        files=(ModelFile("umx_ext.safetensors"),),
    ),
    "umxl": _open_unmix(
        "open-unmix's best: four stems, hidden size 1024, trained on a private set of compressed stems",
        5069601,
        {"vocals": "bccbd9aa", "drums": "69e0ebd4", "bass": "2ca1ce51", "other": "c8c5b3e6"},
        hidden=1024,
        license="CC BY-NC-SA 4.0",
        license_note="Non-commercial use only, share alike: https://creativecommons.org/licenses/by-nc-sa/4.0/",
        needs_license_acceptance=True,
    ),
    "umxhq": _open_unmix(
        "open-unmix, four stems, trained on MUSDB18-HQ (uncompressed, full bandwidth)",
        3370489,
        {"vocals": "b62c91ce", "drums": "9619578f", "bass": "8d85a5bd", "other": "b52fbbf7"},
        full={"vocals": "b62c91cedbc7a066f1778ead5b5cecb377aa3a46a31af1cce7c5c8769339d083"},
    ),
    "umx": _open_unmix(
        "open-unmix, four stems, trained on MUSDB18 (AAC, 16 kHz wide), for comparison with SiSEC 2018",
        3370486,
        {"vocals": "c8df74a5", "drums": "5a48008b", "bass": "646024d3", "other": "f8e132cc"},
    ),
}


# ---------------------------------------------------------------- what the command asks


def models() -> list[ModelInfo]:
    """The registered models and whether they are here already."""
    return [_info(name) for name in MODELS]


def path(name: str) -> list[Path]:
    """Where the files of a registered model are, or will be once they are downloaded."""
    return [file.path for file in _entry(name).files]


def pull(name: str, progress: Progress | None = None, *, offline: bool | None = None) -> list[Path]:
    """Make sure that all files of a registered model are here with the right hashes; their paths.

    Args:
        name: a name in `MODELS`.
        progress: called with the file's name, the bytes that have arrived, and the total (None where unknown).
        offline: True forbids the network; None asks `UMX_EXT_OFFLINE`.

    Raises:
        ModelError: no such model, or a download failed.
    """
    return [_pulled(name, file, progress, offline) for file in _entry(name).files]


def verify(name: str) -> list[FileCheck]:
    """Read every file of a registered model again and compare hashes; nothing is downloaded or removed."""
    return [check_file(file.path, file.sha256) for file in _entry(name).files]


def card(name: str) -> str:
    """What to know about a registered model, as Markdown: the card that comes with it, or the registry's facts."""
    entry = _entry(name)
    written = WEIGHTS / f"{name}.md"
    if entry.files[0].embedded and written.is_file():
        return re.sub(r"<!--.*?-->\n", "", written.read_text(encoding="utf-8"))  # marks of tables for those who write
    shape = config(name)
    files = [f"- {file.location}" + (f" (SHA-256 {file.sha256})" if file.sha256 else "") for file in entry.files]
    return "\n".join(
        [
            f"# {name}",
            "",
            f"{entry.description[0].upper()}{entry.description[1:]}.",
            "",
            f"- stems: {', '.join(entry.stems)}",
            f"- branches: {', '.join(shape.branches)}; hidden size {shape.hidden}; {shape.layers} BLSTM layers",
            f"- runs at {shape.sample_rate} Hz, {shape.channels} channels, n_fft {shape.n_fft}, hop {shape.hop}",
            f"- licence: {entry.license}. {entry.license_note}",
            f"- source: {entry.source}",
            "",
            "Files:",
            *files,
            "",
        ]
    )


def license(name: str) -> str:
    """The terms of a registered model's weights: the file that comes with them, or licence, note and source."""
    entry = _entry(name)
    written = WEIGHTS / "LICENSE-WEIGHTS.txt"
    if entry.files[0].embedded and written.is_file():
        return written.read_text(encoding="utf-8")
    return f"{entry.license}\n{entry.license_note}\nSource: {entry.source}\n"


def config(name: str) -> Config:
    """The architecture of a registered model: what its file says where it is here, else what the registry says."""
    entry = _entry(name)
    first = entry.files[0]
    if first.stem is None and first.path.is_file():
        return config_from(read_metadata(first.path)["config"], str(first.path))
    return entry.config


def _entry(name: str) -> ModelEntry:
    if name not in MODELS:
        raise _unknown(name)
    return MODELS[name]


def _unknown(name: str) -> ModelError:
    known = ", ".join(MODELS)
    return ModelError(f"no model named {name!r}; known: {known}; or give the path of a .safetensors file")


def _info(name: str) -> ModelInfo:
    entry = _entry(name)
    paths = tuple(file.path for file in entry.files)
    available = all(file.is_file() for file in paths)
    return ModelInfo(
        name=name,
        description=entry.description,
        stems=entry.stems,
        license=entry.license,
        needs_license_acceptance=entry.needs_license_acceptance,
        default=name == DEFAULT_MODEL,
        embedded=all(file.embedded for file in entry.files),
        available=available,
        paths=paths,
        size_bytes=sum(file.stat().st_size for file in paths) if available else None,
    )


def _pulled(name: str, file: ModelFile, progress: Progress | None, offline: bool | None) -> Path:
    if not file.embedded:
        return fetch(file.location, file.path, file.sha256, progress=progress, offline=offline)
    if not file.path.is_file():
        others = ", ".join(other for other in MODELS if other != name)
        raise ModelError(
            f"the weights of {name!r} are not part of this installation ({file.path} is missing); reinstall umx-ext, "
            f"or name another model: {others}"
        )
    return file.path


# ---------------------------------------------------------------- load


def load(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    stems: Sequence[str] | None = None,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    offline: bool | None = None,
) -> Separator:
    """A trained separator, in evaluation mode, with float32 weights.

    Args:
        name_or_path: a name in `MODELS`; or the path of a ``.safetensors`` file that `save` wrote, or of a folder in
            open-unmix's format (``separator.json``, ``<stem>.pth``). A name wins over a file of the same name; write
            ``./name`` for the file. None: `DEFAULT_MODEL`.
        stems: load (and download) only these, in this order. None: all.
        device: see `pick_device`.
        progress: called while files are downloaded with the file's name, the bytes so far and the total.
        offline: True forbids downloads; None asks `UMX_EXT_OFFLINE`.

    Raises:
        ModelError: no such model or stem; the file is damaged, of a newer format or of another architecture; the
            download failed.
        UsageError: no such device.

    Example:
        >>> separator = load("umxhq", stems=["vocals"])            # doctest: +SKIP
    """
    from umx_ext.separation.separator import Separator

    place = pick_device(device)
    if name_or_path is None:
        name_or_path = DEFAULT_MODEL
    if isinstance(name_or_path, str) and name_or_path in MODELS:
        found = _read_registered(name_or_path, stems, progress, offline)
    else:
        found = _read_path(name_or_path, stems)
    separator = Separator(found.config, build_nets(found.config, found.states, os.fspath(name_or_path)))
    separator.metadata = found.metadata
    return separator.to(place)


def untrained(name: str, *, stems: Sequence[str] | None = None, device: str | torch.device | None = None) -> Separator:
    """A separator of a registered model's architecture with random weights, drawn from torch's global generator.

    Raises:
        ModelError: no such model or stem.
        UsageError: no such device.
    """
    from umx_ext.separation.separator import Separator

    place, shape = pick_device(device), config(name)
    chosen = chosen_stems(shape.stems, stems, f"model {name!r}")
    return Separator(dataclasses.replace(shape, stems=chosen)).to(place)


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The device for a name: ``cpu`` (also for None), ``cuda``, ``cuda:1``, ``mps``, or ``auto`` (the best there is).

    Raises:
        UsageError: no such device, or not on this machine.
    """
    import torch

    mps = torch.backends.mps.is_available()
    if device is None:
        return torch.device("cpu")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"no device named {device!r}; known: auto, cpu, cuda, cuda:<index>, mps") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {str(device)!r} is not on this machine ({torch.cuda.device_count()} CUDA devices)")
    if chosen.type == "mps" and not mps:
        raise UsageError("device 'mps' is not on this machine")
    return chosen


@dataclass(frozen=True)
class _Found:
    """What was read, before the networks are built."""

    config: Config
    states: dict[str, dict[str, Tensor]]
    metadata: dict[str, str]


def _read_registered(name: str, stems: Sequence[str] | None, progress: Progress | None, offline: bool | None) -> _Found:
    entry = MODELS[name]
    if entry.files[0].stem is None:
        return _read_ours(_pulled(name, entry.files[0], progress, offline), stems)
    chosen = chosen_stems(entry.stems, stems, f"model {name!r}")
    files = {file.stem: file for file in entry.files}
    states = {stem: read_openunmix_state(_pulled(name, files[stem], progress, offline)) for stem in chosen}
    facts = {"name": name, "license": entry.license, "source": entry.source}
    return _Found(dataclasses.replace(entry.config, stems=chosen), states, facts)


def _read_path(given: str | os.PathLike[str], stems: Sequence[str] | None) -> _Found:
    place = Path(given).expanduser()
    if place.is_dir():
        return _Found(*read_openunmix_folder(place, stems), {"source": str(place)})
    if place.suffix == ".pth":
        raise ModelError(f"{place} does not say its rate and STFT; give its folder, with a separator.json")
    if place.is_file() or place.suffix == ".safetensors":
        return _read_ours(place, stems)
    raise _unknown(str(given))


def _read_ours(path: Path, stems: Sequence[str] | None) -> _Found:
    metadata, tensors = read_safetensors(path)
    if metadata.get("weights_sha256") != weights_sha256(tensors):
        raise ModelError(f"{path} is damaged: its weights do not have the hash it names; copy or download it again")
    whole = config_from(metadata["config"], str(path))
    states = split_by_stem(tensors, whole, str(path))
    chosen = chosen_stems(whole.stems, stems, str(path))
    facts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    return _Found(dataclasses.replace(whole, stems=chosen), states, facts)
