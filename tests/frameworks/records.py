"""What must be in the database when a framework's workers have done their work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sqlalchemy import create_engine, text

from sessionstore import SessionStore, State
from tests.frameworks.service import Answer

#: The connections that a database's server has now.
CONNECTIONS = {
    "postgresql": "SELECT pid FROM pg_stat_activity WHERE datname = current_database()",
    "mysql": "SELECT id FROM information_schema.processlist WHERE db = database()",
}


def connections(url: str) -> set[int] | None:
    """Return the numbers of all connections to a server's database."""
    engine = create_engine(url)
    question = CONNECTIONS.get(engine.dialect.name)
    try:
        if question is None:
            return None
        with engine.connect() as connection:
            return set(connection.execute(text(question)).scalars())
    finally:
        engine.dispose()


def check_records(
    url: str, answers: Sequence[Answer], master: int, notes: Sequence[str] = ()
) -> None:
    """Check that every answer is true, and that master and workers shared nothing.

    ``notes`` are what the master must have written after it forked.
    """
    with SessionStore(url, "application", create=False) as session:
        tasks = {task.persistent_id: task for task in session}
        history = {id_: session.history(id_) for id_ in tasks}
        if url.startswith("sqlite"):
            with session.transaction() as connection:
                check = connection.exec_driver_sql("PRAGMA integrity_check").scalar()
            assert check == "ok"

    assert [answer for answer in answers if "error" in answer] == []
    times = Counter(task.jobname for task in tasks.values())
    assert len({answer["id"] for answer in answers}) == len(answers)
    for answer in answers:
        task = tasks[answer["id"]]
        assert times[answer["name"]] == 1
        assert (task.jobname, task.pid) == (answer["name"], answer["pid"])
        moves = [(entry.to_state, entry.pid) for entry in history[answer["id"]]]
        assert moves == [(State.NEW, task.pid), (State.SUBMITTED, task.pid)]

    others = [task for task in tasks.values() if task.execution.state is State.NEW]
    assert len(others) + len(answers) == len(tasks)
    assert {task.jobname for task in others} == {"opened", *notes}
    assert {task.pid for task in others} == {master}
    (opened,) = (task for task in others if task.jobname == "opened")
    numbers = sorted(answer["number"] for answer in answers)
    assert numbers == [*range(1, opened.requests + 1)]
    assert opened.requests == len(answers)

    # The master went on with the connection that it had before it forked, and each
    # of the others belonged to one worker.
    if opened.connection is not None:
        assert {task.connection for task in others} == {opened.connection}
        users = {(answer["connection"], answer["pid"]) for answer in answers}
        used = [connection for connection, _ in users]
        assert len(set(used)) == len(used)
        assert opened.connection not in used


def check_alive(url: str, answers: Sequence[Answer]) -> None:
    """Check that the master's connection and those of its workers are alive."""
    alive = connections(url)
    if alive is not None:
        with SessionStore(url, "application", create=False) as session:
            opened = next(iter(session)).connection
        assert {opened, *(answer["connection"] for answer in answers)} <= alive
