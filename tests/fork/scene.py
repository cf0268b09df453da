"""What the processes of one cell do: the parent, and the child it forks."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, event, text
from sqlalchemy.pool import NullPool

from sessionstore import ForkError
from sessionstore.fork import hooks
from tests.fork import wire
from tests.fork.matrix import Cell, Child, Database, Way
from tests.fork.subjects import NAIVE, SUBJECTS, Subject
from tests.fork.ways import WAYS

__all__ = ["Place", "Scene", "bound_of", "play"]

#: A fork waits for other threads; only where they do end, it is worth waiting.
WAIT_IN_VAIN = 0.05

IS_THERE = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE pid = :backend",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE id = :backend",
}


PAUSE = {"postgresql": "SELECT pg_sleep(0.01)", "mysql": "SELECT sleep(0.01)"}


def bound_of(cell: Cell) -> int:
    """Return the seconds that a child may take; its parent may take twice as many."""
    # Without protection some children do hang, and each costs the tests so long.
    return 3 if cell.subject in NAIVE else 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where a cell is played."""

    url: str
    folder: Path
    #: Begins all labels of the cell.
    prefix: str


class UnwindError(Exception):
    """Unwinds the parent's block in the child."""


@dataclass(eq=False)
class Scene:
    """One cell as its processes see it."""

    cell: Cell
    place: Place
    subject: Subject
    #: Holds the transaction that is open, so that garbage can be made of it.
    transaction: ExitStack = field(default_factory=ExitStack)
    parent: int = field(default_factory=os.getpid)
    #: Of the parent's connections: descriptors, and who they are at the server.
    sockets: set[str] = field(default_factory=set)
    backends: set[int] = field(default_factory=set)
    #: Started by the way, to be waited for when the transaction has ended.
    processes: list[BaseProcess] = field(default_factory=list)

    def label(self, name: str) -> str:
        """Return a label that no other process of any cell uses."""
        return f"{self.place.prefix}:{os.getpid()}:{name}"

    def tell(self, **message: object) -> None:
        wire.tell(self.place.folder, **message)

    def write(self, name: str) -> None:
        """Write one row, and say that it is committed."""
        label = self.label(name)
        self.subject.write(label)
        self.tell(committed=[label])

    def remember(self, connection: Any, record: object) -> None:
        """Remember what belongs to the parent; listens to an engine."""
        if os.getpid() == self.parent and not self.cell.database.is_sqlite:
            socket = getattr(connection, "_sock", None) or connection
            self.sockets.add(os.readlink(f"/proc/self/fd/{socket.fileno()}"))
            self.backends.add(backend_of(connection))

    def child(self) -> None:
        """Do the child's part; called by each way at the place it leads to."""
        signal.alarm(bound_of(self.cell))
        if self.cell.subject in NAIVE:
            self.subject.in_child()
        match self.cell.child:
            case Child.WORKS:
                self.tell(child=self.outcome())
            case Child.COLLECTS:
                self.transaction.pop_all()
                self.subject.forget()
                gc.collect()
                self.tell(child=self.outcome())
            case Child.EXITS:
                self.tell(child="leaves")
                sys.exit(0)
            case Child.USES:
                self.tell(child=self.outcome_of_use())
            case Child.UNWINDS:
                raise UnwindError
            case Child.OUTLIVES:
                wire.ask(self.place.folder, kill=self.parent)
                self.tell(child=self.outcome(), left=self.left_of_parent())
                os._exit(0)
        if left := self.sockets & descriptors():
            self.tell(left=f"the parent's {', '.join(left)}")

    def outcome(self) -> str:
        """Return what becomes of a unit of work."""
        return outcome(lambda: self.write("child"))

    def outcome_of_use(self) -> str:
        """Return what becomes of using the inherited transaction and of ending it."""
        used = outcome(lambda: self.subject.write_inside(self.label("stolen")))
        ended = outcome(self.transaction.close)
        return used if used == ended else f"use: {used}; end: {ended}"

    def left_of_parent(self) -> str | None:
        """Return what the dead parent left at the server, though it is gone."""
        if not self.backends:
            return None
        engine = create_engine(
            self.place.url, poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )
        # Who is not protected has nothing to hope for.
        tries = 15 if self.cell.subject in NAIVE else 500
        with engine.connect() as connection:
            query = text(IS_THERE[engine.dialect.name])
            for _ in range(tries):
                if not any(
                    connection.execute(query, {"backend": backend}).scalar()
                    for backend in self.backends
                ):
                    return None
                connection.execute(text(PAUSE[engine.dialect.name]))
        return "the dead parent's connection at the server"


def outcome(call: Callable[[], object]) -> str:
    """Return what became of a call, in a word or a line."""
    try:
        call()
    except ForkError:
        return "ForkError"
    except BaseException as error:
        lines = str(error).splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"
    return "works"


def backend_of(connection: Any) -> int:
    """Return the server's number of a driver connection."""
    if hasattr(connection, "thread_id"):  # PyMySQL and mysqlclient
        return int(connection.thread_id())
    return int(connection.info.backend_pid)


def descriptors() -> set[str]:
    """Return what the open descriptors of this process are."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # that of the listing itself
            continue
    return found


def play(cell: Cell, place: Place) -> None:
    """Be the parent of one cell, and in forked processes its child."""
    signal.alarm(2 * bound_of(cell))
    if cell.subject in NAIVE:
        # What an unprotected child drops does its harm when it is collected: where the
        # cell says so, not when it happens.
        gc.disable()
    before = descriptors()
    subject = SUBJECTS[cell.subject](place.url)
    scene = Scene(cell, place, subject)
    if cell.way is not Way.WRITERS:
        hooks.WAIT = WAIT_IN_VAIN
    try:
        play_parent(scene)
    except UnwindError:
        scene.tell(child=scene.outcome())
        os._exit(0)
    except Exception as error:
        if os.getpid() != scene.parent:
            scene.tell(child=f"{type(error).__name__}: {error}")
            os._exit(1)
        raise
    subject.close()
    left = {
        descriptor
        for descriptor in descriptors() - before
        if descriptor.startswith(("socket:", str(place.folder)))
    }
    if left:
        scene.tell(left=f"open in the parent: {', '.join(sorted(left))}")


def play_parent(scene: Scene) -> None:
    """Do the parent's part before and after the fork."""
    cell, subject = scene.cell, scene.subject
    event.listen(subject.engine, "connect", scene.remember)
    if cell.way is not Way.CONNECTING or cell.in_transaction:
        if cell.database is Database.MEMORY:
            subject.prepare()
        scene.write("first")
    inside = [scene.label(name) for name in ("inside", "after")]
    with scene.transaction:
        if cell.in_transaction:
            scene.transaction.enter_context(subject.transaction())
            subject.write_inside(inside[0])
        backends = set(scene.backends)
        WAYS[cell.way](scene)
        if cell.in_transaction:
            subject.write_inside(inside[1])
    if cell.in_transaction:
        scene.tell(committed=inside)
    for process in scene.processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"the process ended with {process.exitcode}")
    scene.write("last")
    # A store would replace a connection that the child has ended, and say nothing.
    if scene.backends != backends and cell.way not in (Way.WRITERS, Way.CONNECTING):
        raise RuntimeError("the parent's connection was lost, and it made another")
    if cell.database is Database.MEMORY:
        labels = list(subject.iterate())
        for start in range(0, len(labels), 500):  # as many as a datagram holds
            scene.tell(found=labels[start : start + 500])


def play_child(cell: Cell, place: Place, subject: Subject, ready: Any) -> None:
    """Be the child of one cell in a new interpreter."""
    scene = Scene(cell, place, subject, parent=os.getppid())
    ready.set()
    scene.child()
