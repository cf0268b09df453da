"""A page of a session with very many tasks: the rows that are read for it, counted."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import Connection

from sessionstore import SessionStore
from sessionstore.jobs.listing import Listing
from sessionstore.jobs.pages import Filter
from tests.cli.filled import fill

#: Rows of a page.
ROWS = 50
#: Far less than there are tasks; each state of a filter takes up to two pages' rows.
FEW = 1500


def read_by(connection: Connection, query: Any) -> int:
    """Run a query, and return how many rows the database has read, or steps taken."""
    name = connection.dialect.name
    compiled = query.compile(
        dialect=connection.dialect, compile_kwargs={"literal_binds": True}
    )
    statement = str(compiled)
    if name == "sqlite":
        steps = 0

        def count() -> None:
            nonlocal steps
            steps += 1

        driver: Any = connection.connection.dbapi_connection
        driver.set_progress_handler(count, 100)
        driver.execute(statement).fetchall()
        driver.set_progress_handler(None, 0)
        # One row takes about 20 steps of its virtual machine; counted are hundreds.
        return steps * 5
    if name == "postgresql":
        plan = connection.exec_driver_sql(f"EXPLAIN (ANALYZE) {statement}").scalars()
        found = [
            int(float(rows)) * int(loops)
            for rows, loops in re.findall(
                r"Scan .*actual .*rows=([\d.]+) loops=(\d+)", "\n".join(plan)
            )
        ]
        return sum(found)
    connection.exec_driver_sql("FLUSH STATUS")
    connection.exec_driver_sql(statement).all()
    status = connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Handler_read%%'")
    return sum(int(number) for _, number in status)


@pytest.fixture
def reading(session: SessionStore) -> Callable[..., int]:
    """Return how many rows are read for a page of 50,000 tasks, or of histories."""
    assert fill(session, 4, times=5) == 50_000
    listing = Listing(session.store)
    session_id = listing.session_id(session.name)
    engine = create_engine(session.store.url, isolation_level="AUTOCOMMIT")
    pages = listing.pages
    analyze = {
        "postgresql": "ANALYZE",
        "mysql": "ANALYZE TABLE store_job, store_transition",
    }
    if engine.dialect.name in analyze:
        with engine.connect() as connection:
            # What servers do by themselves, in their own time.
            connection.exec_driver_sql(analyze[engine.dialect.name])

    def read(wanted: Filter | None, *, after: int | None = None, **order: Any) -> int:
        row = None if after is None else listing.job(session_id, after)
        if wanted is None:
            key = row and (row.position, row.id)
            query = pages.histories(session_id, None, key, ROWS)
        else:
            order = {"sort": "added", "descending": False, **order}
            query = pages.page(session_id, wanted, after=row, limit=ROWS, **order)
        with engine.connect() as connection:
            number = read_by(connection, query)
        engine.dispose()
        return number

    return read


def test_a_page_reads_little_more_than_it_shows(reading: Callable[..., int]) -> None:
    """The first page, one in the middle, the last ones, of some states, of a holder."""
    everything = Filter()
    pages: list[tuple[Filter | None, dict[str, Any]]] = [
        (everything, {}),
        (everything, {"descending": True}),
        (everything, {"after": 25_000}),
        (everything, {"after": 25_000, "descending": True}),
        (Filter(["RUNNING"]), {}),
        (Filter(["TERMINATED"]), {}),
        (Filter(["TERMINATED"]), {"after": 25_000, "descending": True}),
        (Filter(["NEW", "RUNNING", "UNKNOWN"]), {"after": 25_000}),
        (Filter(holder="far*"), {}),
        (None, {}),
        (None, {"after": 25_000}),
    ]
    read = {str(page): reading(page[0], **page[1]) for page in pages}
    assert {page: number for page, number in read.items() if number > FEW} == {}
    # What goes through the session is noticed: no index has this order.
    assert reading(everything, sort="name") > FEW
