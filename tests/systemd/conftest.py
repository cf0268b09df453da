"""The daemon in a box: its unit, as it is delivered, and an empty database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.systemd.box import Box
from tests.systemd.host import Host, installed, need_boxes


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
            *,
            files: dict[str, str] | None = None,
            commands: Sequence[str] = (),
            **options: str,
        ) -> Host:
            nonlocal made
            made += 1
            contents = installed(url, dropin)
            contents.files.update(files or {})
            contents.commands.extend(commands)
            box = Box(tmp_path / f"box{made}", contents, **options)
            return Host(stack.enter_context(box), url)

        yield make
