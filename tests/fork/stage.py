"""Plays cells, each in processes of its own that leave through a clean interpreter.

pytest's own process will not do: threads and plugins run there, a killed parent would
be pytest itself, and a child that leaves by sys.exit would not end but fall into
pytest's frames.  So a small process forks one parent for each cell.  As a subreaper
it inherits whatever that leaves behind, so that nobody can stay unnoticed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import create_engine

from tests.fork.matrix import Cell, Child, Database, Parent, Way
from tests.fork.scene import Place, bound_of, play
from tests.fork.ways import adopt_orphans
from tests.fork.wire import Wire

__all__ = ["Result", "Stage"]


@dataclass
class Result:
    """What was seen of one cell."""

    #: What each child came to.
    children: list[str] = field(default_factory=list)
    #: Labels whose writing returned, and for a database in memory those found.
    committed: list[str] = field(default_factory=list)
    found: list[str] | None = None
    #: Whether a process had to be killed.
    hung: bool = False
    #: What was left behind.
    left: list[str] = field(default_factory=list)
    #: How the parent ended: 0, or the signal's number with a minus.
    parent: int | None = None
    said: str = ""


class Stage:
    """Used by a test to have cells played, one after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fork.stage"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def play(self, cell: Cell, place: Place) -> Result:
        """Have one cell played."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"cell": asdict(cell), "url": place.url, "prefix": place.prefix}
        request["folder"] = str(place.folder)
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Result(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def main() -> None:
    """Play the cells that come in by stdin."""
    adopt_orphans()
    import_drivers()
    # What all cells share needs no collecting in each of them.
    gc.freeze()
    # python-daemon closes one possible descriptor after the other.
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        cell = cell_of(request["cell"])
        place = Place(request["url"], Path(request["folder"]), request["prefix"])
        result = supervise(cell, place)
        if result is None:
            results.close()
            adopt_orphans()
            play(cell, place)
            # The interpreter's end, which is slow, is only to be seen of children.
            sys.stderr.flush()
            os._exit(0)
        print(json.dumps(asdict(result)), file=results, flush=True)


def import_drivers() -> None:
    """Import once what each cell's parent would import again."""
    for name in ("psycopg", "psycopg2", "pymysql", "mysqldb"):
        backend = "postgresql" if name.startswith("psycopg") else "mysql"
        with contextlib.suppress(ImportError):  # mysqlclient need not be there
            create_engine(f"{backend}+{name}://")


def cell_of(values: dict[str, str]) -> Cell:
    """Return the cell from what became of it in JSON."""
    return Cell(
        Way(values["way"]),
        Child(values["child"]),
        Parent(values["parent"]),
        Database(values["database"]),
        values["subject"],
    )


def supervise(cell: Cell, place: Place) -> Result | None:
    """Fork the parent of a cell and see to its end; return None in that parent."""
    wire = Wire(place.folder)
    errors = (place.folder / "errors").open("w+")
    parent = os.fork()
    if parent == 0:
        wire.close()
        os.dup2(errors.fileno(), 2)
        os.dup2(errors.fileno(), 1)
        errors.close()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        return None
    result = Result()
    deadline = time.monotonic() + 2 * bound_of(cell)
    while is_anybody_left(parent, result):
        if time.monotonic() > deadline:
            result.hung = True
            end_all()
            deadline += 1
        while (received := wire.receive(0.002)) is not None:
            message, sender = received
            note(message, result)
            if "kill" in message:
                with contextlib.suppress(ProcessLookupError):
                    if result.parent is None:
                        os.kill(parent, signal.SIGKILL)
                        result.parent = wait_for(parent)
                wire.answer(sender)
    while (received := wire.receive(0.0001)) is not None:
        note(received[0], result)
    wire.close()
    errors.seek(0)
    result.said = errors.read()
    errors.close()
    return result


def note(message: dict[str, Any], result: Result) -> None:
    """Take over what a process of the cell has told."""
    if "child" in message:
        result.children.append(message["child"])
    if message.get("left"):
        result.left.append(message["left"])
    result.committed += message.get("committed", [])
    if "found" in message:
        result.found = [*(result.found or []), *message["found"]]


def wait_for(pid: int) -> int:
    """Return how a process ended."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def is_anybody_left(parent: int, result: Result) -> bool:
    """Reap who has ended, and say whether somebody still runs."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        if pid == parent:
            result.parent = os.waitstatus_to_exitcode(status)


def end_all() -> None:
    """Kill what is left of a cell, all of it descended from this process."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    main()
