"""Where writers count, on servers that have no other way to wake who waits."""

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0002"
down_revision = "0001"


def upgrade(table: str, op: Operations) -> None:
    """Make the table of counters, on MySQL and MariaDB only."""
    if op.get_bind().dialect.name not in {"mysql", "mariadb"}:
        return
    options = {
        f"{dialect}_{option}": value
        for dialect in ("mysql", "mariadb")
        for option, value in {
            "engine": "InnoDB",
            "charset": "utf8mb4",
            "collate": "utf8mb4_bin",
        }.items()
    }
    op.create_table(
        f"{table}_change",
        sa.Column("session_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("slot", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        if_not_exists=True,
        **options,
    )
