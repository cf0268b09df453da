"""A writer that does random things to a session, and keeps a journal of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import text

from sessionstore import SessionStore, StoreUnavailableError, Task
from tests.crash.checker import Holdings, filler
from tests.crash.journal import Content, Journal, Operation, Snapshot

#: Where a task may go from each state here; from TERMINATED, by redo.
NEXT = {
    "NEW": ("SUBMITTED", "UNKNOWN"),
    "SUBMITTED": ("RUNNING", "STOPPED", "TERMINATED"),
    "RUNNING": ("TERMINATING", "TERMINATED", "STOPPED"),
    "STOPPED": ("SUBMITTED", "RUNNING"),
    "TERMINATING": ("TERMINATED",),
    "UNKNOWN": ("SUBMITTED", "TERMINATED"),
}


@dataclass(slots=True)
class Plan:
    """An operation, and the calls that do it."""

    kind: str
    writes: dict[str, Content]
    #: Returns the tasks that were written.
    act: Callable[[], list[Task]]


class Writer:
    """Works on objects that nobody else touches, so that it knows what they must be.

    ``name`` begins the names of all that it makes; ``held`` is what it starts with.
    Where ``outages`` are to be expected, it goes on after them.
    """

    def __init__(
        self,
        session: SessionStore,
        journal: Journal,
        name: str,
        held: Holdings,
        *,
        outages: bool = False,
    ) -> None:
        self._session = session
        self._journal = journal
        self._name = name
        self._random = random.Random(name)
        self._outages = outages
        self._made = 0
        self._contents = {
            name: content
            for name, content in held.contents.items()
            if isinstance(content, Snapshot)
        }
        self._ids = dict(held.ids)
        #: Live objects; the others are read from the database.
        self._live: dict[str, Task] = {}

    def step(self) -> None:
        """Do one thing."""
        plan = self._transaction() if self._random.random() < 0.25 else self._one(set())
        self.do(plan)

    def do(self, plan: Plan) -> None:
        """Do what is planned, between two lines of the journal."""
        self._journal.begin(Operation(plan.kind, plan.writes))
        started_at = time.monotonic()
        try:
            tasks = plan.act()
        except StoreUnavailableError as error:
            if not self._outages:
                raise
            self._journal.end("unknown" if error.outcome_unknown else "failed")
            self._recover(plan.writes if error.outcome_unknown else ())
            return
        seconds = time.monotonic() - started_at
        ids = {task.jobname: int(task.persistent_id or 0) for task in tasks}
        self._journal.end("done", ids, seconds)
        self._ids.update(ids)
        for name, content in plan.writes.items():
            if isinstance(content, Snapshot):
                self._contents[name] = content
            else:
                self._contents.pop(name, None)
                self._live.pop(name, None)
        for task in tasks:
            self._live[task.jobname] = task
        for name in list(self._live):
            if self._random.random() < 0.3:
                del self._live[name]

    def _recover(self, doubtful: Iterable[str]) -> None:
        # Nobody knows how these are now, so that nothing can be said of them later.
        for part in {part for name in doubtful for part in self._family(name)}:
            self._contents.pop(part, None)
        self._live.clear()
        self._session.store.invalidate_cache()
        time.sleep(0.02)

    def _task(self, name: str) -> Any:
        """Return an object, after comparing it with what it was left as."""
        task: Any = self._live.get(name) or self._session.load(self._ids[name])
        snapshot = self._contents[name]
        found = (task.value, task.execution.state, task.execution.returncode)
        wanted = (snapshot.value, snapshot.states[-1], snapshot.returncode)
        assert found == wanted, f"{name} should be {wanted} and was read as {found}"
        return task

    # Plans

    def _transaction(self) -> Plan:
        plans: list[Plan] = []
        taken: set[str] = set()
        for _ in range(self._random.randint(2, 4)):
            plan = self._one(taken)
            taken.update(plan.writes)
            plans.append(plan)
        return self.together(plans)

    def together(self, plans: list[Plan]) -> Plan:
        """Plan all of them, and a row of the user's own, in one transaction."""
        row, value = self._new_name("row"), self._random.randrange(1000)
        insert = text("INSERT INTO mine (name, value) VALUES (:name, :value)")

        def act() -> list[Task]:
            with self._session.transaction() as connection:
                connection.execute(insert, {"name": row, "value": value})
                return [task for plan in plans for task in plan.act()]

        writes: dict[str, Content] = {row: value}
        for plan in plans:
            writes |= plan.writes
        return Plan("+".join(plan.kind for plan in plans), writes, act)

    def _one(self, taken: set[str]) -> Plan:
        """Plan one call that touches nothing ``taken``."""
        name = self._random.choice(list(self._contents) or [""])
        if (
            name not in self._contents
            or self._family(name) & taken
            or self._random.random() < 0.2
        ):
            return self._random.choice((self.add, self.add_many, self.add_graph))()
        snapshot = self._contents[name]
        if snapshot.place == "forgotten":
            root = next(iter(self._parents(name)), name)
            return self._add_again(root, self._contents[root])
        if snapshot.states[-1] == "TERMINATED" and self._random.random() < 0.3:
            return self._redo(name, snapshot)
        plans = [self._save, self._save, self._update]
        if snapshot.states[-1] in NEXT:
            plans += [self._move_id, self._move_task, self._save_moved]
        if snapshot.place == "listed" and len(self._contents) > 10:
            plans += [self._remove, self._remove, self._forget]
        return self._random.choice(plans)(name, snapshot)

    def _family(self, name: str) -> set[str]:
        """Return what may be written together with an object."""
        family = {name} | self._parents(name)
        for member in family & self._contents.keys():
            family |= set(self._contents[member].tasks)
        return family

    def _parents(self, name: str) -> set[str]:
        return {n for n, content in self._contents.items() if name in content.tasks}

    def _new_name(self, kind: str) -> str:
        self._made += 1
        return f"{self._name}.{kind}{self._made}"

    def _value(self) -> int:
        return self._random.randrange(1 << 32)

    def _new(self, place: str, tasks: list[Task] | None = None) -> tuple[Task, Content]:
        value = self._value()
        task = Task(self._new_name(place), value=value, filler=filler(value))
        if tasks is not None:
            task.tasks = tasks
        names = tuple(part.jobname for part in tasks or ())
        return task, Snapshot(value, place, ("NEW",), None, 1, names)

    def add(self) -> Plan:
        task, content = self._new("listed")

        def act() -> list[Task]:
            self._session.add(task)
            return [task]

        return Plan("add", {task.jobname: content}, act)

    def add_many(self) -> Plan:
        new = [self._new("listed") for _ in range(self._random.randint(2, 5))]
        tasks = [task for task, _ in new]

        def act() -> list[Task]:
            self._session.add_many(tasks)
            return tasks

        return Plan("add_many", {t.jobname: content for t, content in new}, act)

    def add_graph(self) -> Plan:
        inside = [self._new("nested") for _ in range(self._random.randint(1, 3))]
        root = self._new("listed", [task for task, _ in inside])

        def act() -> list[Task]:
            self._session.add(root[0])
            return [task for task, _ in (root, *inside)]

        writes = {task.jobname: content for task, content in (root, *inside)}
        return Plan("add graph", writes, act)

    def _add_again(self, name: str, old: Snapshot) -> Plan:
        def act() -> list[Task]:
            # The session does not read what is not in it.
            task = self._live.get(name) or self._session.store.load(self._ids[name])
            self._session.add(task)
            return [task]

        new = replace(old, place="listed", revision=old.revision + 1)
        writes = {name: new} | self._parts_at("nested", old)
        return Plan("add again", writes, act)

    def _parts_at(self, place: str, root: Snapshot) -> dict[str, Content]:
        return {part: replace(self._contents[part], place=place) for part in root.tasks}

    def _save(self, name: str, old: Snapshot) -> Plan:
        """Plan a save, of the objects inside too."""
        values = {part: self._value() for part in (name, *old.tasks)}

        def act() -> list[Task]:
            task = self._task(name)
            for part in (task, *(self._task(inside) for inside in old.tasks)):
                _set(part, values[part.jobname])
            self._session.save(task)
            return [task]

        writes: dict[str, Content] = {}
        for part, value in values.items():
            there = self._contents[part]
            writes[part] = replace(there, value=value, revision=there.revision + 1)
        return Plan("save", writes, act)

    def _save_moved(self, name: str, old: Snapshot) -> Plan:
        new = self._changed(old, to=self._random.choice(NEXT[old.states[-1]]))

        def act() -> list[Task]:
            task = self._task(name)
            _set(task, new.value)
            task.execution.state = new.states[-1]
            self._session.save(task)
            return [task]

        return Plan("save moved", {name: new}, act)

    def _update(self, name: str, old: Snapshot) -> Plan:
        new = self._changed(old)

        def act() -> list[Task]:
            with self._session.update(self._ids[name]) as task:
                _set(task, new.value)
            return [task]

        return Plan("update", {name: new}, act)

    def _move_id(self, name: str, old: Snapshot) -> Plan:
        code = self._random.randrange(256)
        to = self._random.choice(NEXT[old.states[-1]])
        new = replace(self._changed(old, to=to), value=old.value, returncode=code)

        def act() -> list[Task]:
            self._session.transition(
                self._ids[name], to, expect=old.states[-1], returncode=code
            )
            return []

        return Plan("transition of ID", {name: new}, act)

    def _move_task(self, name: str, old: Snapshot) -> Plan:
        new = self._changed(old, to=self._random.choice(NEXT[old.states[-1]]))

        def act() -> list[Task]:
            task = self._task(name)
            _set(task, new.value)
            self._session.transition(task, new.states[-1], info="by task")
            return [task]

        return Plan("transition of task", {name: new}, act)

    def _redo(self, name: str, old: Snapshot) -> Plan:
        new = replace(self._changed(old, to="NEW"), value=old.value, returncode=None)

        def act() -> list[Task]:
            self._session.redo(self._ids[name])
            return []

        return Plan("redo", {name: new}, act)

    def _remove(self, name: str, old: Snapshot) -> Plan:
        def act() -> list[Task]:
            self._session.remove(self._ids[name])
            return []

        return Plan("remove", dict.fromkeys((name, *old.tasks)), act)

    def _forget(self, name: str, old: Snapshot) -> Plan:
        new = replace(old, place="forgotten", revision=old.revision + 1)

        def act() -> list[Task]:
            task = self._task(name)
            self._session.forget(self._ids[name])
            return [task]

        return Plan("forget", {name: new} | self._parts_at("forgotten", old), act)

    def _changed(self, old: Snapshot, *, to: str | None = None) -> Snapshot:
        states = old.states if to is None else (*old.states, to)
        return replace(
            old, value=self._value(), states=states, revision=old.revision + 1
        )


def _set(task: Any, value: int) -> None:
    task.value = value
    task.filler = filler(value)
