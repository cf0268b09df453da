"""The box itself: a host of its own, and nothing of it is left."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.systemd.box import Box
from tests.systemd.host import UNIT, Host, installed


def namespaces(kind: str) -> dict[int, int]:
    """Return the processes of this machine, and which namespace each is in."""
    found = {}
    for pid in psutil.pids():
        with suppress(OSError):  # it has ended, or is not ours to look at
            found[pid] = os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    return found


def test_nothing_is_left_of_a_box(boxes: None, tmp_path: Path) -> None:
    """No process, mount or cgroup, of a failed test's box neither."""
    mounts = Path("/proc/self/mounts").read_text()
    with pytest.raises(ZeroDivisionError), Box(tmp_path / "box", *installed()) as box:
        box.systemctl("start", UNIT)
        inside = {name: namespaces(name)[box.pid] for name in ("pid", "mnt", "cgroup")}
        # systemd, journald and the daemon.
        assert list(namespaces("pid").values()).count(inside["pid"]) >= 3
        assert list(box.cgroup.glob(f"system.slice/{UNIT}"))
        _ = 1 / 0
    for kind, number in inside.items():
        assert number not in namespaces(kind).values()
    assert not box.cgroup.exists()
    assert Path("/proc/self/mounts").read_text() == mounts


def test_box_writes_nothing_on_the_machine(
    make_host: Callable[..., Host], tmp_path: Path
) -> None:
    """What it writes to /etc, /opt, /var, /run and /tmp is its own."""
    names = [f"/{name}/{tmp_path.name}-box" for name in ("etc", "opt", "var", "run")]
    names += [f"/{name}/{tmp_path.name}-box" for name in ("tmp", "var/tmp")]
    box = make_host().box
    box.run("touch", *names)
    assert all((box.root / name[1:]).exists() for name in names)
    assert not any(Path(name).exists() for name in names)


def test_box_that_does_not_boot_says_why(boxes: None, tmp_path: Path) -> None:
    """And what there was of it has ended."""
    box = Box(tmp_path / "box", {}, {}, prepare="echo no such thing >&2; exit 1")
    with pytest.raises(RuntimeError, match="no such thing"), box:
        pass
    assert not box.cgroup.exists()
