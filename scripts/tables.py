"""Tables in the README and in docs/performance.md come from the JSON files that the scripts wrote.

`python scripts/tables.py` writes them all again. A table stands between `<!-- table:NAME -->` and `<!-- /table -->`
and is made of `docs/NAME.json`, which holds
`{"columns": [...], "rows": [[...], ...], "note": "..."}` beside whatever else the script measured.
"""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/performance.md", "umx_ext/weights/umx_ext.md")
BLOCK = re.compile(r"<!-- table:(\w+) -->\n.*?<!-- /table -->", re.DOTALL)


def render(table: dict[str, Any]) -> str:
    """Markdown of one table."""
    lines = ["| " + " | ".join(table["columns"]) + " |", "|" + "---|" * len(table["columns"])]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in table["rows"]]
    return "\n".join(lines) + ("\n\n" + table["note"] if table.get("note") else "")


def filled(text: str) -> str:
    """The text with every table made anew from its JSON; a table without JSON yet stays as it is."""

    def block(match: re.Match[str]) -> str:
        source = ROOT / "docs" / f"{match[1]}.json"
        if not source.exists():
            return match[0]
        return f"<!-- table:{match[1]} -->\n{render(json.loads(source.read_text()))}\n<!-- /table -->"

    return BLOCK.sub(block, text)


def publish(name: str, table: dict[str, Any]) -> None:
    """Write `docs/NAME.json` and put the table where it belongs."""
    replace(ROOT / "docs" / f"{name}.json", json.dumps(table, indent=1) + "\n")
    fill_pages()


def fill_pages() -> None:
    for page in (ROOT / name for name in PAGES):
        if page.exists():
            replace(page, filled(page.read_text()))


def replace(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def machine() -> str:
    """One line on the hardware and the versions that a figure was measured with."""
    import torch

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return (
        f"{model}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}; "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


if __name__ == "__main__":
    fill_pages()
