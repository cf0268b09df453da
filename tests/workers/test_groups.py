"""The process groups that workers leave, and those that are no worker's."""

from __future__ import annotations

import functools
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sessionstore import Persistable, Task
from sessionstore.jobs.holder import Holder
from sessionstore.testing import Child
from sessionstore.workers import end_group, groups
from tests.daemon.conftest import has_ended


def holder_of(pid: int) -> Holder:
    """Return a process of this host as a holder."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return Holder.current()._replace(pid=pid, started=ticks)


@pytest.fixture
def command() -> Iterator[subprocess.Popen[bytes]]:
    """A command that leads a process group."""
    process = subprocess.Popen(["sleep", "300"], process_group=0)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def orphan(command: subprocess.Popen[bytes]) -> Task:
    """A task whose worker is dead, and has left the command."""
    return Task("", worker=str(holder_of(command.pid)))


def test_worker_marks_its_task(start_forked) -> None:
    """By its own PID and start, so that what is left of its group can be ended."""

    def child() -> tuple[str, str]:
        task = Task()
        groups.mark(task)
        return task.worker, str(holder_of(os.getpid()))

    said, is_ = start_forked(child).wait()
    assert said == is_


def test_command_is_gone_when_it_has_been_ended(
    orphan: Task, command: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """G6: where it takes long to die, as with much memory, this is waited for."""
    kill = os.killpg
    later = functools.partial(threading.Timer, 0.3)
    monkeypatch.setattr(os, "killpg", lambda *what: later(kill, what).start())
    end_group(orphan)
    assert has_ended(command.pid)


def test_command_that_does_not_end_is_an_error(
    orphan: Task, command: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """G6: so that its task stays claimed."""
    monkeypatch.setattr(os, "killpg", lambda *_: None)
    with pytest.raises(TimeoutError, match=f"group {command.pid} does not end"):
        end_group(orphan)


def test_command_whose_worker_is_gone_is_ended() -> None:
    """G6: the group's number is the dead worker's as long as anybody is in it."""
    reader, writer = os.pipe()

    def lead() -> None:
        os.setpgid(0, 0)
        process = subprocess.Popen(["sleep", "300"])
        os.write(writer, f"{process.pid} {holder_of(os.getpid())}".encode())

    Child(lead).wait()
    pid, worker = os.read(reader, 1000).decode().split(" ")
    end_group(Task("", worker=worker))
    assert has_ended(int(pid))


@pytest.mark.parametrize(
    "differences",
    [
        {"host": "elsewhere"},
        {"boot_id": "another"},
        {"pid_namespace": 1},
        {"started": 1},
        {"pid": 0},
        {"pid": 1},
        {"pid": -1},
        {"pid": 2**22 + 1},
    ],
    ids=str,
)
def test_nobody_elses_group_is_ended(
    command: subprocess.Popen[bytes], differences: dict[str, Any]
) -> None:
    """G6: another host's, another boot's, a later process's, or everybody's."""
    worker = holder_of(command.pid)._replace(**differences)
    end_group(Task("", worker=str(worker)))
    assert not has_ended(command.pid)


@pytest.mark.parametrize("worker", ["me", "", None, 7, [1, 2, 3]], ids=str)
def test_nothing_is_ended_for_a_task_of_another_make(worker: object) -> None:
    """G6: what it says of its worker is none of ours."""
    end_group(Task("", worker=worker))
    end_group(Task())
    end_group(Persistable())
