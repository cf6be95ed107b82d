"""What holds for the package as a whole: its names, its layers, its silence."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import umx_ext

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "umx_ext"

# From the lowest: a module imports only from its own layer's modules or lower ones.
LAYERS = [
    ("errors",),
    ("audio", "codecs", "levels", "plot", "resampling", "spectral"),
    ("stems",),
    ("corpora",),
    ("separation", "mixing"),
    ("evaluation",),
    ("training",),
    ("listening",),
    ("commands",),
    ("cli",),
    ("__main__",),
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(tree: ast.AST) -> set[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "umx_ext":
            names += [f"umx_ext.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "umx_ext" and len(part) > 1 and part[1] in RANK}


def climbs(tree: ast.AST, home: str) -> list[str]:
    return [other for other in imported_rooms(tree) if RANK[other] > RANK[home]]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_descend(path):
    assert climbs(ast.parse(path.read_text()), room(path)) == []


def test_the_import_law_catches_its_liar():
    assert climbs(ast.parse("def f():\n    from umx_ext.training.fit import fit"), "separation") == ["training"]


def forbidden_calls(tree: ast.AST) -> list[str]:
    """Calls by which a library would print, exit or set what belongs to the whole process."""
    bad = {"print", "exit", "quit", "os._exit", "sys.exit", "np.random.seed", "random.seed", "warnings.filterwarnings"}
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if call in bad]


@pytest.mark.parametrize(
    "path",
    [path for path in modules() if room(path) not in ("cli", "commands", "__main__")],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_the_library_never_prints_or_exits(path):
    assert forbidden_calls(ast.parse(path.read_text())) == []


def test_the_silence_law_catches_its_liar():
    assert forbidden_calls(ast.parse("def f():\n    print(1)")) == ["print"]


def test_every_public_name_is_there():
    assert all(getattr(umx_ext, name) is not None for name in umx_ext.__all__)
    assert set(umx_ext._HOMES) | {"__version__"} == set(umx_ext.__all__)


def test_every_module_exports_what_it_says():
    import importlib

    for path in modules():
        if path.name in ("__main__.py", "__init__.py"):
            continue
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        module = importlib.import_module(name)
        missing = [export for export in getattr(module, "__all__", ()) if not hasattr(module, export)]
        assert not missing, (name, missing)


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_importing_the_package_imports_nothing_heavy():
    loaded = json.loads(run("import umx_ext, sys, json; print(json.dumps(sorted(sys.modules)))"))
    assert not {"torch", "numpy", "soundfile", "av", "rich"} & set(loaded)


BLOCK = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torchaudio", "openunmix", "librosa", "musdb", "museval", "norbert"}:
            raise RuntimeError(f"{name} must not be imported")
sys.meta_path.insert(0, Wall())
"""


def test_a_song_is_separated_where_no_research_package_can_be_imported(data, tmp_path):
    song = data / "songs" / "example_short.mp3"
    code = BLOCK + (
        "import umx_ext, torch\n"
        f"stems = umx_ext.separate({str(song)!r})\n"
        "print(list(stems), bool(torch.isfinite(stems['vocals']).all()))"
    )
    assert run(code).strip() == "['vocals', 'accompaniment'] True"


def test_docstring_examples_run():
    import doctest
    import importlib

    ran = 0
    for path in modules():
        if path.name == "__main__.py":
            continue
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
        assert result.failed == 0, name
        ran += result.attempted
    assert ran >= 5
