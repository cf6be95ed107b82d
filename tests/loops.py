"""The kinds of compiled loops, to be tested also where another kind is better."""

from __future__ import annotations

import pytest

from umx_ext.separation import dense

WIDES = {"AVX2": 16, "AVX-512": 32}  # outputs of a panel


def use_loops(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Use those of a kind, or with ``"torch"`` none; skip where they cannot be used."""
    if kind == "torch":
        monkeypatch.setattr(dense, "_dense", None)
        return
    if dense._dense is None:
        pytest.skip("the loops were not compiled here")
    if WIDES[kind] not in (getattr(dense._dense, "AVX2", 0), getattr(dense._dense, "BEST", 0)):
        pytest.skip("the loops are not for this processor")
    monkeypatch.setattr(dense, "_wide", lambda: 0 if dense._dense is None else WIDES[kind])
