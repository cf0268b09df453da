"""The daemon in a box: its unit, as it is delivered, and an empty database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.systemd.box import Box
from tests.systemd.host import UNIT, Host, installed, need_boxes


@pytest.fixture
def boxes() -> None:
    """Skip, or fail in CI, where there can be no box."""
    need_boxes()


@pytest.fixture
def make_host(boxes: None, tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """Start boxes that have the daemon; they end with the test."""
    with ExitStack() as stack:
        made = 0

        def make(
            url: str = "",
            dropin: str = "",
            files: dict[str, str] | None = None,
            **options: str,
        ) -> Host:
            nonlocal made
            made += 1
            needed, binds = installed()
            if url:
                needed["etc/daemon-example.env"] = f"DAEMON_EXAMPLE_STORE='{url}'\n"
            needed[f"etc/systemd/system/{UNIT}.d/test.conf"] = dropin
            all_files = {**needed, **(files or {})}
            folder = tmp_path / f"box{made}"
            return Host(
                stack.enter_context(Box(folder, all_files, binds, **options)), url
            )

        yield make
