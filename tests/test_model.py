"""SqlStore and SessionStore against a plain dictionary, in random sequences."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sessionstore import (
    ConflictError,
    NotFoundError,
    SessionStore,
    SqlStore,
    State,
    Task,
    TransitionError,
)

values = st.one_of(st.integers(), st.text(max_size=20), st.binary(max_size=20))


#: What may follow a state, told in another way than the package does.
FOLLOWING = {
    State.NEW: {"SUBMITTED"},
    State.SUBMITTED: {"RUNNING", "STOPPED", "TERMINATED"},
    State.RUNNING: {"TERMINATING", "TERMINATED", "STOPPED"},
    State.STOPPED: {"SUBMITTED", "RUNNING", "TERMINATING", "TERMINATED"},
    State.TERMINATING: {"TERMINATED"},
    State.TERMINATED: set(),
    State.UNKNOWN: {*State} - {"NEW"},
}
for old, following in FOLLOWING.items():
    if old != State.TERMINATED:
        following.add("UNKNOWN")


class UndoError(Exception):
    """Leaves a transaction block in order to roll it back."""


class StoreMachine(RuleBasedStateMachine):
    """G2, G5: what the store holds is what a dictionary would."""

    tasks = Bundle("tasks")
    url = ""
    number = 0

    @initialize()
    def open(self) -> None:
        type(self).number += 1
        self.store = SqlStore(self.url, f"t{type(self).number}")
        self.model: dict[int, tuple[object, str]] = {}
        self.used: set[int] = set()
        self.block: Any = None
        self.before: Any = None
        self.ids_before: list[tuple[Task, int | None]] = []
        self.known: list[Task] = []

    @rule(target=tasks, value=values)
    def make(self, value: object) -> Task:
        task = Task(value=value)
        self.known.append(task)
        return task

    @rule(task=tasks, value=values, state=st.sampled_from(State))
    def change_and_save(self, task: Task, value: object, state: State) -> None:
        old = task.persistent_id
        task.value = value
        task.execution.state = state
        id_ = self.store.save(task)
        assert not task.changed
        if old is None:
            assert id_ not in self.used
            self.used.add(id_)
        else:
            assert id_ == old
        self.model[id_] = (value, state.value)

    @rule(task=consumes(tasks))
    def remove(self, task: Task) -> None:
        if task.persistent_id is None:
            return
        id_ = task.persistent_id
        self.store.remove(id_)
        del self.model[id_]
        with pytest.raises(NotFoundError):
            self.store.load(id_)

    @rule()
    def forget_live_objects(self) -> None:
        self.store.invalidate_cache()

    @precondition(lambda self: self.block is None)
    @rule()
    def begin(self) -> None:
        self.block = self.store.transaction()
        self.block.__enter__()
        self.before = copy.deepcopy(self.model)
        self.used_before = set(self.used)
        self.ids_before = [(task, task.persistent_id) for task in self.known]

    @precondition(lambda self: self.block is not None)
    @rule()
    def commit(self) -> None:
        self.block.__exit__(None, None, None)
        self.block = None

    @precondition(lambda self: self.block is not None)
    @rule()
    def roll_back(self) -> None:
        error = UndoError()
        assert not self.block.__exit__(UndoError, error, None)
        self.block = None
        self.model = self.before
        # What was never committed may be given out again.
        self.used = self.used_before
        for task, id_ in self.ids_before:
            assert task.persistent_id == id_
        for task in self.known:
            if task not in [known for known, _ in self.ids_before]:
                assert task.persistent_id is None

    @invariant()
    def store_holds_what_the_model_holds(self) -> None:
        if not hasattr(self, "store"):
            return
        assert list(self.store.list()) == sorted(self.model)
        loaded = self.store.load_many(self.model)
        for id_, (value, state) in self.model.items():
            assert loaded[id_].persistent_id == id_
            if not loaded[id_].changed:
                assert loaded[id_].value == value
                assert loaded[id_].execution.state == state
        counts: dict[str, int] = {}
        for _, state in self.model.values():
            counts[state] = counts.get(state, 0) + 1
        assert self.store.counts() == counts

    def teardown(self) -> None:
        if hasattr(self, "store"):
            if self.block is not None:
                self.block.__exit__(None, None, None)
            self.store.close()


class SessionMachine(RuleBasedStateMachine):
    """G2, G3: index, states and history follow a dictionary of lists."""

    ids = Bundle("ids")
    url = ""
    number = 0

    @initialize()
    def open(self) -> None:
        type(self).number += 1
        self.session = SessionStore(self.url, f"s{type(self).number}")
        self.model: dict[int, list[str]] = {}
        self.held: dict[int, Task] = {}
        self.block: Any = None
        self.before: Any = None

    @rule(target=ids)
    def add(self) -> int:
        task = Task()
        id_ = self.session.add(task)
        assert id_ not in self.model
        self.model[id_] = ["NEW"]
        self.held[id_] = task
        return id_

    @rule(id_=ids, to=st.sampled_from(State), expect=st.sampled_from([None, *State]))
    def move(self, id_: int, to: State, expect: State | None) -> None:
        if id_ not in self.model:
            return
        now = self.model[id_][-1]
        is_met = expect in (None, now) and to in FOLLOWING[State(now)]
        if self.block is not None and not is_met:  # a refused call dooms the block
            self.block.__exit__(None, None, None)
            self.block = None
        try:
            entry = self.session.transition(id_, to, expect=expect)
        except ConflictError:
            assert expect is not None
            assert expect != now
            return
        except TransitionError:
            assert expect in (None, now)
            assert not is_met
            return
        assert is_met
        assert (entry.from_state, entry.to_state) == (now, to)
        self.model[id_].append(to.value)
        assert self.held[id_].execution.state is to

    @rule(id_=ids)
    def forget(self, id_: int) -> None:
        if id_ in self.model:
            self.session.forget(id_)
            del self.model[id_]
            assert id_ in self.session.store

    @rule(id_=ids)
    def remove(self, id_: int) -> None:
        if id_ in self.model:
            self.session.remove(id_)
            del self.model[id_]
            assert id_ not in self.session.store

    @precondition(lambda self: self.block is None)
    @rule()
    def begin(self) -> None:
        self.block = self.session.transaction()
        self.block.__enter__()
        self.before = copy.deepcopy(self.model)

    @precondition(lambda self: self.block is not None)
    @rule(commit=st.booleans())
    def end(self, commit: bool) -> None:
        if commit:
            self.block.__exit__(None, None, None)
        else:
            self.block.__exit__(UndoError, UndoError(), None)
            self.model = self.before
        self.block = None

    @invariant()
    def session_holds_what_the_model_holds(self) -> None:
        if not hasattr(self, "session"):
            return
        assert list(self.session.ids()) == list(self.model)
        assert len(self.session) == len(self.model)
        for id_, states in self.model.items():
            history = self.session.history(id_)
            assert [entry.to_state for entry in history] == states
            assert [entry.from_state for entry in history] == [None, *states[:-1]]
            assert self.held[id_].execution.state == states[-1]

    def teardown(self) -> None:
        if hasattr(self, "session"):
            if self.block is not None:
                self.block.__exit__(None, None, None)
            self.session.close()


@pytest.mark.parametrize("machine", [StoreMachine, SessionMachine])
def test_store_and_session_follow_a_dictionary(
    machine: type[RuleBasedStateMachine], database_url: str, tmp_path: Path
) -> None:
    """G2, G3, G5: any sequence of calls, transactions and rollbacks included."""
    kind: Any = type(machine.__name__, (machine,), {"url": database_url})
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
