"""Fixtures every test file shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.toy_store import write_store


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real audio; tests that need it skip, with a reason, where it is not named."""
    root = os.environ.get("UMX_EXT_DATA")
    if not root:
        pytest.skip("UMX_EXT_DATA is not set: this test needs real audio")
    return Path(root).resolve()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed corpus of `tests.toy_store`; not to be changed."""
    folder = tmp_path_factory.mktemp("store")
    write_store(folder)
    return folder
