"""Blocks of new IDs, taken from the table that counts them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from sessionstore.database.access import Database
from sessionstore.database.failures import ahead_of_write
from sessionstore.database.kept import KeptConnection
from sessionstore.errors import ConfigurationError, SchemaError, StoreError
from sessionstore.ids import Allocator, IdSource
from sessionstore.objects.schema import Schema
from sessionstore.row_ids import fits

__all__ = ["IdCounter", "checked"]


class IdCounter:
    """Gives out the IDs of one object table, each of them once."""

    def __init__(self, database: Database, schema: Schema) -> None:
        self._database = database
        self._schema = schema
        #: Whether there is a table to count in.
        self.is_there = True
        self.allocator = Allocator(self._take_block, self._uncommitted)

    def _uncommitted(self) -> deque[int] | None:
        scope = self._database.scope
        if scope is None or self._database.settings.concurrent_writers:
            return None
        numbers: deque[int] = scope.notes.setdefault(self, deque())
        return numbers

    def _take_block(self, n: int) -> range:
        if not self.is_there:
            raise SchemaError(
                f"there is no table {self._schema.ids.name!r} to take new IDs from; "
                "give the store an idfactory, or let it create its tables"
            )
        scope = self._database.scope
        if scope is None:
            # Repeatable: if the commit is not answered, no number of that block is ever
            # used.
            with ahead_of_write():
                return self._database.write(
                    lambda kept: self._take(kept, n), is_repeatable=True
                )
        if self._uncommitted() is not None:
            return self._take(scope.kept, n)
        # On the transaction's own connection the counter's row would stay locked
        # until the caller commits, and everybody else would wait for that.
        with self._database.aside() as kept:
            return self._take(kept, n)

    def skip(self, kept: KeptConnection, last: int) -> None:
        """Make every block that is taken from now on begin above ``last``."""
        while True:
            seen, _ = self._next(kept)
            taken = {"seen": seen, "following": last + 1}
            if seen > last or kept.change(self._schema.take_ids, taken) == 1:
                return

    def _next(self, kept: KeptConnection) -> tuple[int, int | None]:
        """Return where the next block begins, and the largest ID in use."""
        row = kept.row(self._schema.next_ids)
        if row is None:
            raise SchemaError(
                f"the row of the table {self._schema.ids.name!r} is missing; "
                "sessionstore doctor --fix restores it"
            )
        seen, largest = row
        return seen, largest

    def _take(self, kept: KeptConnection, n: int) -> range:
        while True:
            seen, largest = self._next(kept)
            first = max(seen, (largest or 0) + 1)
            if not fits(first + n):
                raise StoreError(
                    f"fewer than {n} IDs are left above {first - 1}, the largest in "
                    f"{self._schema.name!r}; give the store an idfactory"
                )
            taken = {"seen": seen, "following": first + n}
            if kept.change(self._schema.take_ids, taken) == 1:
                return range(first, first + n)


def checked(factory: IdSource) -> Callable[[object], int]:
    """Return a caller's own ``new``, which may give anything, with a check."""

    def new(obj: object) -> int:
        object_id: object = factory.new(obj)
        if not isinstance(object_id, int) or not fits(object_id):
            raise ConfigurationError(
                f"the idfactory returned {object_id!r}; IDs must be 64-bit integers"
            )
        return object_id

    return new
