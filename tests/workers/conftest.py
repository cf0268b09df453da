"""Pools of the test process's own, and what their workers write down."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

from sessionstore import Claim, SessionStore, State
from sessionstore.workers import WorkerPool
from tests.daemon.conftest import until

MakePool = Callable[..., WorkerPool]


@pytest.fixture
def make_pool(session: SessionStore) -> Iterator[MakePool]:
    """Make pools on the session; what runs in them is ended afterwards."""
    made: list[WorkerPool] = []

    def make(work: Callable[[Claim], object], **options: Any) -> WorkerPool:
        made.append(WorkerPool(session, work, **options))
        return made[-1]

    yield make
    for pool in made:
        for worker in pool._workers:
            worker.kill()
            with suppress(ChildProcessError):
                os.waitpid(worker.pid, 0)


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """The file of ``mark``."""
    return tmp_path / "marks"


def mark(marks: Path, number: int | None = None) -> None:
    """Write this process's PID down, or another number."""
    with marks.open("a") as file:
        file.write(f"{os.getpid() if number is None else number}\n")


def wait_for_ever() -> NoReturn:
    """Do nothing more."""
    while True:
        signal.pause()


def drive(pool: WorkerPool, condition: Callable[[], object]) -> None:
    """Have a pool work until a condition is true, with a bound."""

    def goes_on() -> object:
        pool.step()
        if condition():
            return True
        pool.wait(0.02)
        return False

    until(goes_on)


def run(pool: WorkerPool, session: SessionStore) -> None:
    """Have a pool work until all tasks have ended, and all workers too."""
    drive(
        pool,
        lambda: set(session.counts()) <= {State.TERMINATED} and pool.running == 0,
    )
