"""Fixtures: two databases for each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def target_url(make_database: Callable[[str], str], tmp_path: Path) -> str:
    """The URL of an empty SQLite database that is not the tests' usual one."""
    folder = tmp_path / "target"
    folder.mkdir()
    return f"sqlite:///{folder}/target.db"


@pytest.fixture
def source_url(tmp_path: Path) -> str:
    """The URL of another one."""
    return f"sqlite:///{tmp_path}/source.db"
