"""The benchmarks compare like with like."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import MetaData, create_engine, select

from tests.benchmarks.measure import Summary
from tests.benchmarks.places import Bench, Scale
from tests.benchmarks.report import Row, markdown
from tests.benchmarks.works import WORKS, Work

TINY = Scale(
    rounds=1,
    calls=10,
    bulk=20,
    many=400,
    large=2**16,
    stores=2,
    idle=0.5,
    tasks=20,
)
DUELS = [work for work in WORKS if work.unit == "x"]
#: The others read one database, or compare two works of the package's own.
WRITES = {"save-new", "save-again", "add", "transition", "save-many", "add-many"} | {
    *("forked", "claim", "claim-forked")
}
TIMES = {"at", "created_at", "updated_at", "claimable_at", "lease_expires_at"}


@pytest.fixture
def bench(
    backend: str, make_database: Callable[[str], str], tmp_path: Path
) -> Iterator[Bench]:
    numbers = itertools.count()
    bench = Bench(
        backend,
        lambda: (
            f"sqlite:///{tmp_path}/{next(numbers)}.db"
            if backend == "sqlite"
            else make_database(backend)
        ),
        TINY,
    )
    yield bench
    bench.done()


def rows_of(url: str) -> dict[str, list[dict[str, Any]]]:
    """Return all tables that both sides write, with what must differ left out."""
    engine, tables = create_engine(url), MetaData()
    tables.reflect(engine)
    found = {}
    now = time.time() * 1e6
    with engine.connect() as connection:
        for table in tables.sorted_tables:
            if table.name == "store_ids":  # the raw side counts for itself
                continue
            rows = [dict(row) for row in connection.execute(select(table)).mappings()]
            for row in rows:
                row.pop("pid", None)
                for name in row.keys() & TIMES:
                    row[name] = row[name] and abs(row[name] - now) < 600e6
                for name in row.keys() & {"holder", "write_id"}:
                    row[name] = row[name] is not None
            found[table.name] = sorted(rows, key=str)
    engine.dispose()
    return found


@pytest.mark.backends("sqlite", "postgresql")
@pytest.mark.parametrize("work", DUELS, ids=lambda work: work.name)
def test_both_sides_write_the_same_rows(work: Work, bench: Bench) -> None:
    """What the driver writes is what the package writes, column by column."""
    ratios = work.samples(bench)
    bench.done()
    assert len(ratios) == 1
    assert all(ratio > 0 for ratio in ratios)
    assert bench.pairs or work.name not in WRITES
    for pair in bench.pairs:
        written = rows_of(pair.ours_url)
        assert written["store"]
        assert written == rows_of(pair.raw_url)


@pytest.mark.backends("sqlite", "postgresql")
def test_both_sides_read_the_same(bench: Bench) -> None:
    """What the driver reads is what the package reads."""
    url = bench.large_store()
    session, raw = bench.session(url), bench.raw(url)
    ids = raw.ids()
    assert len(ids) == TINY.many
    assert [*session.ids()] == ids
    assert session.counts() == raw.counts()
    loaded = raw.load_many(ids)
    assert loaded.keys() == set(ids)
    for id_, task in session.store.load_many(ids).items():
        for copy in (loaded[id_], raw.load(id_)):
            assert copy.__getstate__().keys() == task.__getstate__().keys()
            assert copy.log == task.log
            assert copy.execution.state == task.execution.state


@pytest.mark.backends("sqlite")
def test_every_work_becomes_a_row(bench: Bench) -> None:
    """Absolute works give samples, and the table says how they compare."""
    works = [work for work in WORKS if work.unit != "x"]
    rows = []
    for work in works:
        rows.append(Row(work, "sqlite", Summary.of(work.samples(bench))))
        bench.done()
    lines = markdown(rows, []).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == [
        work.name for work in works
    ]
    row = Row(DUELS[0], "sqlite", Summary(0.1, 0.2, 0.9))
    assert not row.is_met
    assert row.cells[-1] == "below"
