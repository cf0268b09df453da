"""The tables beside the object table, made and brought up to date by Alembic.

Alembic is imported in the function: that takes longer than all else at the start, and
is needed only where the tables are not of the current version.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import Connection, Dialect

__all__ = ["migrate"]


def migrate(connection: Connection, *, table: str, version_table: str) -> None:
    """Run the migrations that the tables of ``table`` lack, in a transaction."""
    from alembic.config import Config
    from alembic.operations import Operations
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    _make_known(connection.dialect)
    config = Config()
    folder = Path(__file__).with_name("migrations")
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    # Not entered as a context manager: that would set alembic.op and alembic.context
    # for all threads, and another thread's migration would run on this connection.
    environment = EnvironmentContext(
        config,
        scripts,
        fn=lambda revision, _: scripts._upgrade_revs("head", revision),
    )
    environment.configure(
        connection=connection,
        version_table=version_table,
        transactional_ddl=False,
    )
    context = environment.get_context()
    context.run_migrations(table=table, op=Operations(context))


def _make_known(dialect: Dialect) -> None:
    from alembic.ddl.impl import DefaultImpl

    try:
        DefaultImpl.get_by_dialect(dialect)
    except KeyError:
        # Alembic knows the dialects that a class of it names.  Creating tables, which
        # is all that we do, takes nothing special.
        type("Implementation", (DefaultImpl,), {"__dialect__": dialect.name})
