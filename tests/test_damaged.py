"""Payloads that can be unpickled, and are not what belongs there."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from sessionstore import DecodeError, Run, SessionStore, State, Task


@pytest.fixture
def bad(session: SessionStore) -> int:
    """The ID of a task that stands before another one."""
    return int(session.add_many([Task("bad"), Task("good")])[0])


@pytest.fixture
def damage(session: SessionStore, bad: int) -> Callable[[bytes], None]:
    """Write another payload into its row."""

    def write(payload: bytes) -> None:
        table = session.store._tables
        with session.transaction() as connection:
            connection.execute(
                table.update().where(table.c.id == bad).values(data=payload)
            )
        session.store.invalidate_cache()

    return write


class Reference:
    """What stands for an object in another row."""

    def __init__(self, reference: object) -> None:
        self.reference = reference


class Pickler(pickle.Pickler):
    """Writes references as they are, be they such or not."""

    def persistent_id(self, obj: object) -> Any:
        return obj.reference if isinstance(obj, Reference) else None


def check_alone(session: SessionStore, bad: int, match: str) -> None:
    """See that the bad one is told, and hinders nothing."""
    with pytest.raises(DecodeError, match=match) as caught:
        session.load(bad)
    assert caught.value.id == bad
    assert [task.jobname for task in session] == ["good"]
    assert [error.id for error in session.unreadable()] == [bad]
    with pytest.raises(DecodeError), session.update(bad):
        pass
    session.transition(bad, State.SUBMITTED)
    session.remove(bad)
    assert [task.jobname for task in session] == ["good"]


@pytest.mark.parametrize("object_id", ["x", 1.5, None, "\0", b"x", 2**70, -(2**63) - 1])
def test_reference_that_is_no_id_makes_one_object_unreadable(
    session: SessionStore,
    bad: int,
    damage: Callable[[bytes], None],
    object_id: object,
) -> None:
    """G7: whatever a database would say to such an ID."""
    payload = io.BytesIO()
    reference = Reference((object_id, Task.__module__, "Task"))
    Pickler(payload).dump(Task(part=reference))
    damage(payload.getvalue())
    check_alone(session, bad, "which is not an ID|there is no object")


@pytest.mark.parametrize("value", [{}, 5, None, Task, State.NEW, Run()], ids=repr)
def test_job_that_is_no_persistable_is_unreadable(
    session: SessionStore, bad: int, damage: Callable[[bytes], None], value: object
) -> None:
    """G7: as it is when the store, which does not mind, has read it before."""
    damage(pickle.dumps(value))
    held = session.store.load(bad)
    assert type(held) is type(value)
    check_alone(session, bad, "not a Persistable")
