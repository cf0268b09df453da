"""The tables beside the object table, as they were first published.

A migration says once and for all what it makes, so it does not use the table
definitions of ``sessionstore.objects.schema``, which move on.  Its steps can run twice:
MariaDB commits each statement by itself, and may die between two of them.
"""

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0001"
down_revision = None

_Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_OPTIONS = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in {
        "engine": "InnoDB",
        "charset": "utf8mb4",
        "collate": "utf8mb4_bin",
    }.items()
}


def upgrade(table: str, op: Operations) -> None:
    """Make the four tables and number the next ID 1."""
    op.create_table(
        f"{table}_session",
        sa.Column("id", _Id, primary_key=True),
        sa.Column("name", sa.String(255), nullable=False, unique=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("finished_at", sa.BigInteger),
        if_not_exists=True,
        # A destroyed session's number must not come back for another one.
        sqlite_autoincrement=True,
        **_OPTIONS,
    )
    jobs = f"{table}_job"
    op.create_table(
        jobs,
        sa.Column("job_id", _Id, primary_key=True, autoincrement=False),
        sa.Column("session_id", sa.BigInteger),
        sa.Column("position", sa.BigInteger),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("state", sa.String(128), nullable=False),
        sa.Column("claimable_at", sa.BigInteger),
        sa.Column("returncode", sa.BigInteger),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("holder", sa.String(255)),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("lease_expires_at", sa.BigInteger),
        sa.Column("request", sa.String(16)),
        sa.Column("write_id", sa.String(32)),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        if_not_exists=True,
        **_OPTIONS,
    )
    # MySQL has no IF NOT EXISTS for indexes.
    there = {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(jobs)}
    for name, columns in {
        f"ix_{jobs}_claim": ["session_id", "state", "claimable_at", "position"],
        f"ix_{jobs}_order": ["session_id", "position", "job_id"],
    }.items():
        if name not in there:
            op.create_index(name, jobs, columns)
    op.create_table(
        f"{table}_transition",
        sa.Column("job_id", _Id, primary_key=True, autoincrement=False),
        sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("from_state", sa.String(128)),
        sa.Column("to_state", sa.String(128), nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("info", sa.String(4000), nullable=False),
        sa.Column("returncode", sa.BigInteger),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("pid", sa.BigInteger, nullable=False),
        if_not_exists=True,
        **_OPTIONS,
    )
    op.create_table(
        f"{table}_ids",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("next_id", sa.BigInteger, nullable=False),
        if_not_exists=True,
        **_OPTIONS,
    )
    ids = sa.table(f"{table}_ids", sa.column("id"), sa.column("next_id"))
    connection = op.get_bind()
    if connection.execute(sa.select(ids.c.id)).first() is None:
        connection.execute(sa.insert(ids).values(id=1, next_id=1))
