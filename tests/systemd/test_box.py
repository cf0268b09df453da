"""The box itself: a host of its own, and nothing of it is left."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.systemd.box import Box, Contents
from tests.systemd.host import UNIT, Host, installed


def processes_of(box: Box) -> list[psutil.Process]:
    """Return the processes in the box's PID namespace."""
    found = []
    inside = os.stat(f"/proc/{box.pid}/ns/pid").st_ino
    for process in psutil.process_iter():
        with suppress(OSError):  # it has ended, or is not ours to look at
            if os.stat(f"/proc/{process.pid}/ns/pid").st_ino == inside:
                found.append(process)
    return found


def test_nothing_is_left_of_a_box(boxes: None, tmp_path: Path) -> None:
    """No process, mount or cgroup, of a failed test's box neither."""
    mounts = Path("/proc/self/mounts").read_text()
    with pytest.raises(ZeroDivisionError), Box(tmp_path / "box", installed()) as box:
        box.systemctl("start", UNIT)
        processes = processes_of(box)
        assert len(processes) >= 3  # systemd, journald and the daemon
        assert list(box.cgroup.glob(f"system.slice/{UNIT}"))
        _ = 1 / 0
    assert not any(process.is_running() for process in processes)
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
    contents = Contents(commands=["echo no such thing >&2", "false"])
    box = Box(tmp_path / "box", contents)
    with pytest.raises(RuntimeError, match="no such thing"), box:
        pass
    assert not box.cgroup.exists()
