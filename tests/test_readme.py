"""The README's tables are what the scripts wrote, and what it shows exists."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {"README.md": README} | {
    page: (ROOT / page).read_text() for page in ("docs/performance.md", "umx_ext/weights/umx_ext.md")
}
TABLES = [
    (page, *found)
    for page, text in PAGES.items()
    for found in re.findall(r"<!-- table:(\w+) -->\n(.*?)<!-- /table -->", text, re.DOTALL)
]


def tables_module():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "scripts" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["tables"] = module
    spec.loader.exec_module(module)
    return module


def test_there_are_tables():
    written = {path.stem for path in (ROOT / "docs").glob("*.json")}
    assert {name for _, name, _ in TABLES} == written and len(written) > 9
    assert set(PAGES) == set(tables_module().PAGES)


@pytest.mark.parametrize(("page", "name", "body"), TABLES)
def test_a_table_is_what_its_script_wrote(page, name, body):
    table = json.loads((ROOT / "docs" / f"{name}.json").read_text())
    assert body == tables_module().render(table) + "\n"


def test_a_figure_changed_by_hand_is_noticed():
    changed = {"columns": ["a"], "rows": [["1.00"]], "note": ""}
    assert tables_module().render(changed) != "| a |\n|---|\n| 1.01 |"


def test_every_file_the_readme_names_exists():
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    links += re.findall(r"python (scripts/\w+\.py)", "".join(PAGES.values()))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("command", ["separate", "evaluate", "mix", "train"])
def test_every_option_the_readme_shows_is_in_the_help(capsys, command):
    from umx_ext import cli

    cli.main([command, "--help"])
    text = capsys.readouterr().out
    lines = "\n".join(re.findall(rf"umx-ext {command} .*", README))
    shown = set(re.findall(r"(?<![\w-])(--[a-z][\w-]+)", lines))
    assert len(shown) > 3
    assert [option for option in shown - {"--help"} if option not in text] == []


def test_the_example_of_a_branch_is_the_one_that_is_tested():
    from tests.test_branches import EXAMPLE

    assert EXAMPLE.strip() in README
