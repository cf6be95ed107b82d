"""How an option of any command is made for cyclopts."""

from __future__ import annotations

from typing import Any

from cyclopts import Parameter

__all__ = ["defaulted", "option"]


def option(*names: str, help: str, metavar: str | None = None, **more: Any) -> Parameter:
    """An option whose default is nothing to show."""
    return Parameter(name=names, help=help, metavar=metavar, negative="", show_default=lambda _: None, **more)


def defaulted(*names: str, help: str, metavar: str | None = None, **more: Any) -> Parameter:
    """An option whose default the help shows."""
    return Parameter(name=names, help=help, metavar=metavar, negative="", **more)
