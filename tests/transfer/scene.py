"""A store with something of everything, and what is in it, read by SQL alone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal

from sqlalchemy import (
    Boolean,
    Column,
    DateTime,
    Float,
    LargeBinary,
    Numeric,
    String,
    create_engine,
    text,
)

from sessionstore import SessionStore, SqlStore, State, Task

NAME = "Zoë \N{PILE OF POO}"
OBJECTS = 11


def columns() -> dict[Column[object], Callable[[Task], object]]:
    """Columns of the user's own, of types that databases keep in different ways."""
    return {
        Column("owner", String(40)): lambda task: task.owner,
        Column("cost", Float): lambda task: task.cost,
        Column("price", Numeric(12, 2)): lambda task: task.price,
        Column("due", DateTime(timezone=True)): lambda task: task.due,
        Column("urgent", Boolean): lambda task: task.urgent,
        Column("mark", LargeBinary): lambda task: task.mark,
    }


def task(name: str, **attributes: object) -> Task:
    """Return a task with a value for each of them."""
    values: dict[str, object] = {
        "owner": NAME,
        "cost": 0.1,
        "price": Decimal("12.50"),
        "due": datetime(2024, 2, 29, 12, 30, 59, 0, tzinfo=UTC),
        "urgent": True,
        "mark": bytes(range(256)),
    }
    return Task(name, **{**values, **attributes})


def fill(url: str) -> SessionStore:
    """Make a store with two sessions, and objects of every kind."""
    store = SqlStore(url, extra_fields=columns())
    one, two = SessionStore(store, "one"), SessionStore(store, "two words")
    first = one.add(task("first", tasks=[task("child")]))
    one.transition(first, State.SUBMITTED, info="queued\n\N{SNOWMAN}")
    one.request(first, "cancel")
    done = one.add(task("done", due=None, urgent=False))
    one.transition(done, State.SUBMITTED)
    one.transition(done, State.RUNNING)
    one.transition(done, State.TERMINATED, returncode=-9, info="killed")
    two.add_many([task(f"number {n}") for n in range(3)])
    broken, null = two.add(task("broken")), two.add(task("null"))
    two.forget(two.add(task("forgotten")))
    store.save(task("plain"))
    store.save({"not": "a task"})
    two.finish()
    with store.transaction() as connection:
        for data, state, id_ in (
            (b"\x80no pickle\0\xff", "NEW", broken),
            (None, None, null),
        ):
            connection.execute(
                text("UPDATE store SET data = :data, state = :state WHERE id = :id"),
                {"data": data, "state": state, "id": id_},
            )
    return one


_QUERIES = {
    "objects": "SELECT id, data, state{extra} FROM store ORDER BY id",
    "sessions": "SELECT name, created_at, finished_at FROM store_session ORDER BY name",
    "jobs": "SELECT job_id, s.name, position, j.name, state, returncode, revision, "
    "attempts, token, request, j.created_at, updated_at, holder, claimable_at, "
    "lease_expires_at "
    "FROM store_job j LEFT JOIN store_session s ON s.id = session_id ORDER BY job_id",
    "history": "SELECT * FROM store_transition ORDER BY job_id, revision",
}


def everything(url: str, extra: str = "") -> dict[str, list[tuple[object, ...]]]:
    """Return all rows, but for what is no one's to carry."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return {
                name: [
                    tuple(bytes(v) if isinstance(v, memoryview) else v for v in row)
                    for row in connection.execute(text(query.format(extra=extra)))
                ]
                for name, query in _QUERIES.items()
            }
    finally:
        engine.dispose()


def write(url: str, statement: str, **parameters: object) -> None:
    """Run a statement past the package."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(statement), parameters)
    engine.dispose()
