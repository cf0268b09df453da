"""Where the next block of IDs begins."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import func, insert, select, update

from sessionstore.doctor.finding import Finding, Level, Patient
from sessionstore.doctor.look import writing

__all__ = ["check"]


def check(patient: Patient) -> Iterator[Finding]:
    """Compare it with the largest ID."""
    schema, connection = patient.schema, patient.connection
    if not patient.has_sessions and not schema.has_ids(connection):
        return
    largest = connection.execute(select(func.max(schema.objects.c.id))).scalar() or 0
    following = connection.execute(
        select(schema.ids.c.next_id).where(schema.ids.c.id == 1)
    ).scalar()
    if following is not None and following > largest:
        yield Finding("IDs", Level.OK, f"the next block starts at {following}")
        return

    def move_on() -> None:
        with writing(patient.store) as held:
            after = select(func.coalesce(func.max(schema.objects.c.id), 0) + 1)
            [first] = held.execute(after).scalars()
            moved = held.execute(
                update(schema.ids)
                .where(schema.ids.c.id == 1, schema.ids.c.next_id < first)
                .values(next_id=first)
            )
            if following is None and moved.rowcount == 0:
                held.execute(insert(schema.ids).values(id=1, next_id=first))

    yield Finding(
        "IDs",
        Level.WRONG,
        f"the next block starts at {following}, but the ID {largest} is in use"
        if following is not None
        else f"the row of the table {schema.ids.name} is missing",
        "if the newest objects are removed, their IDs could be used again",
        "sessionstore doctor --fix",
        move_on,
    )
