"""Making a session of GC3Pie's one of this package's, in one transaction.

All that the session's tasks refer to comes along.  An object keeps its number if no
other object has it: "ShellApp.123" becomes 123.  Otherwise it gets a new one, which is
written into the pickles that refer to it; see ``sketches``.  Nothing is imported or
run, so GC3Pie need not be installed until the objects are loaded.

State, name and return code are read from the pickles if the table has no state.  A task
keeps its state: one that was RUNNING in GC3Pie is RUNNING, and held by nobody, until
somebody looks after it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sessionstore.database.failures import DuplicateKeyError
from sessionstore.errors import ConflictError
from sessionstore.jobs.history import clean
from sessionstore.jobs.opening import check_name
from sessionstore.objects.schema import MAX_INFO, MAX_NAME
from sessionstore.row_ids import fits
from sessionstore.task import State
from sessionstore.transfer.copying import Place, Progress, opened, silent
from sessionstore.transfer.directory import (
    Directory,
    Objects,
    Stored,
    id_in,
    opened_objects,
)
from sessionstore.transfer.items import (
    ENTRY_COLUMNS,
    JOB_COLUMNS,
    Item,
    SessionItem,
    in_batches,
)
from sessionstore.transfer.sketches import Sketch, attributes_of, sketched
from sessionstore.transfer.store_writer import StoreWriter

__all__ = ["Adoption", "import_gc3pie"]

#: How many objects are read at once.
PAGE = 50
#: How often IDs are chosen anew because somebody else has taken one meanwhile.
ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Adoption:
    """What became of a session of GC3Pie's."""

    session: str
    #: How many objects came, those that tasks refer to included.
    objects: int
    #: The new IDs of objects whose numbers were taken, by their old ones.
    mapped: Mapping[str, int]
    #: Objects that should be there and are not.
    missing: Sequence[str]
    #: Objects that are no pickles; they came as they are.
    unreadable: Sequence[str]


def import_gc3pie(
    directory: str | os.PathLike[str],
    target: Place,
    *,
    name: str | None = None,
    store_url: str | None = None,
    progress: Progress = silent,
) -> Adoption:
    """Make a session of GC3Pie's a session of a store.

    It has the directory's name, or ``name``.  Its objects are where its file
    ``store.url`` says, or at ``store_url``.

    Raises ConfigurationError if the directory is none of GC3Pie's, and ConflictError if
    the store has a session of that name; nothing is changed then.
    """
    source = Directory(Path(directory))
    session = SessionItem(
        check_name(name or source.name), source.created_at, source.finished_at
    )
    with (
        opened_objects(source, store_url) as objects,
        opened(target, create=True) as store,
    ):
        plan = _Plan(source, objects, progress)
        writer = StoreWriter(store, objects.columns)
        for attempt in range(ATTEMPTS):
            plan.choose_ids(writer)
            try:
                _write(writer, session, plan, progress)
                break
            except ConflictError as error:
                was_taken = isinstance(error, DuplicateKeyError) or error.id is not None
                if not was_taken or attempt == ATTEMPTS - 1:
                    raise
    return Adoption(
        session.name, len(plan.found), plan.mapped, plan.missing, plan.unreadable
    )


def _write(
    writer: StoreWriter, session: SessionItem, plan: _Plan, progress: Progress
) -> None:
    with writer.transaction():
        writer.refuse(session.name)
        writer.begin([session], max(plan.ids.values(), default=None))
        done = 0
        for batch in in_batches(plan.items(session)):
            writer.write(batch)
            done += len(batch)
            progress("copying", done, len(plan.found))


class _Plan:
    """Which objects come, in the order in which they are found, and under which IDs."""

    def __init__(
        self, directory: Directory, objects: Objects, progress: Progress
    ) -> None:
        self._path = directory.path
        self._objects = objects
        self.found: list[str] = []
        self.missing: list[str] = []
        self.unreadable: list[str] = []
        #: The new IDs, once they are chosen.
        self.ids: dict[str, int] = {}
        # Grows as objects are found.
        todo = [*directory.ids]
        met = set(todo)
        done = 0
        while page := todo[done : done + PAGE]:
            done += len(page)
            stored = objects.read(page)
            for id_ in page:
                if id_ not in stored:
                    self.missing.append(id_)
                    continue
                self.found.append(id_)
                new = [i for i in self._referred(id_, stored[id_]) if i not in met]
                met.update(new)
                todo += dict.fromkeys(new)
            progress("reading", len(self.found), None)
        # Nested objects have no place of their own.
        there = set(self.found)
        listed = (id_ for id_ in directory.ids if id_ in there)
        self._positions = {id_: n for n, id_ in enumerate(listed, 1)}

    def _referred(self, id_: str, stored: Stored) -> Sequence[str]:
        sketch = sketched(stored.data or b"")
        if sketch is None:
            self.unreadable.append(id_)
            return []
        names = (id_in(reference.id) for reference in sketch.references)
        return [name for name in names if name is not None]

    def choose_ids(self, writer: StoreWriter) -> None:
        """Let each object keep its number, or give it a new one if that is taken."""
        wanted: dict[int, str] = {}
        for id_ in self.found:
            number = _number_of(id_)
            if number is not None:
                wanted.setdefault(number, id_)
        for number in writer.taken([*wanted]):
            del wanted[number]
        self.ids = {id_: number for number, id_ in wanted.items()}
        others = [id_ for id_ in self.found if id_ not in self.ids]
        new = writer.new_ids(len(others), above=max(wanted, default=0))
        self.ids.update(zip(others, new, strict=True))

    @property
    def mapped(self) -> Mapping[str, int]:
        """The new IDs of the objects that could not keep their numbers."""
        return {id_: new for id_, new in self.ids.items() if _number_of(id_) != new}

    def items(self, session: SessionItem) -> Iterator[Item]:
        """Go through the objects as they are to be written."""
        for start in range(0, len(self.found), PAGE):
            page = self.found[start : start + PAGE]
            stored = self._objects.read(page)
            for id_ in page:
                if id_ not in stored:
                    raise ConflictError(
                        f"object {id_} went away while it was read; have nobody work "
                        "on the session meanwhile"
                    )
                yield self._item(id_, stored[id_], session)

    def _item(self, id_: str, stored: Stored, session: SessionItem) -> Item:
        sketch = sketched(stored.data or b"")
        data = stored.data if sketch is None else sketch.rewritten(self._new_in(sketch))
        task = {} if sketch is None else attributes_of(sketch.top)
        run = attributes_of(task.get("execution"))
        state = _state_in(stored, run)
        returncode = _returncode_in(run)
        changed_at = _instant_in(run) or session.created_at
        job = {
            "position": self._positions.get(id_),
            "name": clean(str(task.get("jobname") or ""), MAX_NAME),
            "state": state,
            "returncode": returncode,
            "revision": 1,
            "attempts": 0,
            "token": 0,
            "request": None,
            "created_at": session.created_at,
            "updated_at": changed_at,
        }
        entry = {
            "revision": 1,
            "from_state": None,
            "to_state": state,
            "at": changed_at,
            "info": clean(f"it was {id_} of GC3Pie's {self._path}", MAX_INFO),
            "returncode": returncode,
            "host": clean(socket.gethostname(), MAX_NAME),
            "pid": os.getpid(),
        }
        return Item(
            self.ids[id_],
            state,
            data,
            stored.extra,
            [session.name, *(job[column] for column in JOB_COLUMNS)],
            [[entry[column] for column in ENTRY_COLUMNS]],
        )

    def _new_in(self, sketch: Sketch) -> Mapping[int, int]:
        """Return the new IDs for a pickle's references, by their places."""
        names = {r.place: id_in(r.id) for r in sketch.references}
        return {
            place: self.ids[name]
            for place, name in names.items()
            if name in self.ids and str(self.ids[name]) != name
        }


def _number_of(id_: str) -> int | None:
    """Return the number that an ID ends in, which it may keep."""
    digits = id_.rpartition(".")[2]
    is_number = digits.isascii() and digits.isdecimal() and len(digits) < 20
    return int(digits) if is_number and fits(int(digits)) else None


def _state_in(stored: Stored, run: Mapping[str, object]) -> str:
    for state in (stored.state, run.get("_state"), run.get("state")):
        if state in set(State):
            return str(state)
    return str(State.UNKNOWN)


def _returncode_in(run: Mapping[str, object]) -> int | None:
    # As in GC3Pie, where one part may be missing.
    exitcode, signal = run.get("_exitcode"), run.get("_signal")
    if not isinstance(exitcode, int) and not isinstance(signal, int):
        return None
    number = (exitcode if isinstance(exitcode, int) else -1) << 8
    number |= signal if isinstance(signal, int) else 0
    return number if fits(number) else None


def _instant_in(run: Mapping[str, object]) -> int | None:
    at = run.get("state_last_changed")
    if not isinstance(at, float) or not 0 < at < 2**40:
        return None
    return round(at * 1_000_000)
