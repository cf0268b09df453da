"""A session with very many tasks, whose rows are inserted by the database itself."""

from __future__ import annotations

from sqlalchemy import create_engine, text

from sessionstore import SessionStore

__all__ = ["fill"]

_DIGITS = "(SELECT 0 AS d" + "".join(f" UNION ALL SELECT {n}" for n in range(1, 10))


def fill(session: SessionStore, powers: int, times: int = 1) -> int:
    """Add ``times`` times ten to the power of ``powers`` tasks, and return how many.

    Of ten thousand tasks one is RUNNING, and held, one STOPPED, a thousand are NEW,
    and the others TERMINATED.  They have no payloads, and one transition each.
    """
    number = " + ".join(f"d{n}.d * {10**n}" for n in range(powers))
    digits = " CROSS JOIN ".join(f"{_DIGITS}) d{n}" for n in range(powers))
    total = times * 10**powers
    times_of = "(SELECT 0 AS k" + "".join(
        f" UNION ALL SELECT {n}" for n in range(1, times)
    )
    numbers = (
        f"(SELECT 1 + {number} + k.k * {10**powers} AS i "
        f"FROM {digits} CROSS JOIN {times_of}) k) numbers"
    )
    state = (
        "CASE WHEN i % 10000 = 5000 THEN 'RUNNING' WHEN i % 10000 = 7000 THEN 'STOPPED'"
        " WHEN i % 10 = 0 THEN 'NEW' ELSE 'TERMINATED' END"
    )
    is_held = "i % 10000 = 5000"
    holder = f"CASE WHEN {is_held} THEN 'far/boot/1/77/1' ELSE NULL END"
    until = f"CASE WHEN {is_held} THEN 4000000000000000 ELSE NULL END"
    name = "mysql" if session.store.url.get_backend_name() == "mysql" else "other"
    named = "CONCAT('task-', i)" if name == "mysql" else "'task-' || i"
    at = "1700000000000000 + i"
    engine = create_engine(session.store.url)
    with engine.begin() as connection:
        for statement in (
            f"INSERT INTO store (id, state) SELECT i, {state} FROM {numbers}",
            "INSERT INTO store_job (job_id, session_id, position, name, state, "
            "claimable_at, returncode, revision, attempts, holder, token, "
            "lease_expires_at, created_at, updated_at) "
            f"SELECT i, {session._index.id}, i, {named}, {state}, {until}, 0, 1, 1, "
            f"{holder}, 1, {until}, {at}, {at} FROM {numbers}",
            "INSERT INTO store_transition (job_id, revision, to_state, at, info, "
            f"host, pid) SELECT i, 1, {state}, {at}, 'made', 'far', 77 FROM {numbers}",
        ):
            connection.execute(text(statement))
    engine.dispose()
    return total
