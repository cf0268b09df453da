"""The network of the tests' own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.hosts.network import Network
from tests.systemd.host import need_boxes


def interfaces() -> set[str]:
    """Return the names of the network interfaces where this thread is."""
    text = Path("/proc/thread-self/net/dev").read_text()
    return {line.split(":")[0].strip() for line in text.splitlines()[2:]}


def test_nothing_is_left_of_the_network() -> None:
    """The machine's own is as it was, after a failed test too."""
    need_boxes("ip")
    before, place = interfaces(), os.readlink("/proc/thread-self/ns/net")
    with pytest.raises(ZeroDivisionError), Network():
        assert interfaces() == {"lo", "switch"}
        assert os.readlink("/proc/thread-self/ns/net") != place
        _ = 1 / 0
    assert os.readlink("/proc/thread-self/ns/net") == place
    assert interfaces() == before
