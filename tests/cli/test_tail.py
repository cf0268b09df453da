"""Which transitions are new: each is found once, however late it is committed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import cast

from sessionstore import SessionStore, State, Task, Transition
from sessionstore.cli.following import LATEST, Tail
from sessionstore.jobs.listing import Listing

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


class Told:
    """Stands for a store: what is committed, whenever it was written."""

    def __init__(self) -> None:
        self.committed: list[tuple[int, int, datetime]] = []

    def transitions(
        self, session_id: int, since: datetime
    ) -> list[tuple[str, int, Transition]]:
        return [
            ("x", revision, Transition(job, None, State.NEW, at, "", None, "h", 1))
            for job, revision, at in sorted(self.committed, key=lambda row: row[2])
            if at >= since
        ]


def test_transition_that_was_committed_late_is_found_once() -> None:
    """Its time is before that of the last look, as it was taken at its beginning."""
    told = Told()
    tail = Tail(cast(Listing, told), 1, BEGIN)

    def look(seconds: float) -> list[tuple[int, datetime]]:
        now = BEGIN + timedelta(seconds=seconds)
        return [(entry.job_id, entry.at) for _, entry in tail.look(now)]

    def commit(job: int, revision: int, seconds: float) -> tuple[int, datetime]:
        at = BEGIN + timedelta(seconds=seconds)
        told.committed.append((job, revision, at))
        return job, at

    commit(7, 1, -5)
    first = commit(1, 1, 1)
    assert look(2) == [first]
    late, second = commit(2, 1, 1.5), commit(1, 2, 3)
    assert look(4) == [late, second]
    assert look(5) == []
    latest = LATEST.total_seconds()
    last = commit(3, 1, 6)
    assert look(6 + latest) == [last]
    assert look(7 + 2 * latest) == []
    assert tail._seen == {}, "what is too old to come again takes no memory"


def test_transitions_come_from_each_database(
    session: SessionStore, other: SessionStore
) -> None:
    """Those of the session's tasks, and of the objects inside them, in their order."""
    listing = Listing(session.store)
    tail = Tail(listing, listing.session_id(session.name), listing.now())
    inner = Task("inner")
    first = other.add(Task("outer", tasks=[inner]))
    SessionStore(other.store, "another").add(Task("elsewhere"))
    found = tail.look(listing.now())
    assert {name for name, _ in found} == {"outer", "inner"}
    other.transition(first, State.SUBMITTED)
    other.transition(first, State.RUNNING)
    found = tail.look(listing.now())
    assert [(name, entry.to_state) for name, entry in found] == [
        ("outer", State.SUBMITTED),
        ("outer", State.RUNNING),
    ]
    assert tail.look(listing.now()) == []
