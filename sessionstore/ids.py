"""IDs: integers that are never given out twice."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

__all__ = ["Allocator", "IdFactory", "IdSource", "IntId"]


class IntId(int):
    """An ``int`` that remembers what kind of object it was made for.

    >>> from sessionstore import IntId
    >>> id_ = IntId("Task", 7)
    >>> id_ == 7, id_.prefix
    (True, 'Task')
    """

    prefix: str

    def __new__(cls, prefix: str, seqno: int) -> IntId:
        """Return ``seqno``, with its prefix."""
        self = super().__new__(cls, seqno)
        self.prefix = prefix
        return self

    def __getnewargs__(self) -> tuple[str, int]:  # type: ignore[override]
        return self.prefix, int(self)


class IdSource(Protocol):
    """What stores ask for IDs; users may give their own as ``idfactory``."""

    def new(self, obj: object) -> int:
        """Return an ID for ``obj`` that nothing else has, had or will have."""


class IdFactory:
    """Makes IDs of class ``id_class`` from the numbers that ``next_id_fn`` returns.

    ``prefix`` defaults to the object's class name.

    >>> from itertools import count
    >>> from sessionstore.ids import IdFactory
    >>> factory = IdFactory(prefix="job", next_id_fn=count(1).__next__)
    >>> factory.new(object()), factory.new(object())
    (1, 2)
    """

    def __init__(
        self,
        prefix: str | None = None,
        next_id_fn: Callable[[], int] | None = None,
        id_class: Callable[[str, int], int] = IntId,
    ) -> None:
        self._prefix = prefix
        self._next_id_fn = next_id_fn
        self._id_class = id_class

    def bind(self, next_id_fn: Callable[[], int]) -> IdFactory:
        """Return a factory that counts by ``next_id_fn``, if this one cannot."""
        if self._next_id_fn is not None:
            return self
        return IdFactory(self._prefix, next_id_fn, self._id_class)

    def reserve(self, n: int) -> None:
        """Make sure that the next ``n`` calls of ``new`` need not wait for anything."""
        if isinstance(self._next_id_fn, Allocator):
            self._next_id_fn.reserve(n)

    def new(self, obj: object) -> int:
        """Return a new ID for ``obj``."""
        if self._next_id_fn is None:
            raise TypeError(
                "this IdFactory has no next_id_fn; pass one, or pass the factory to a "
                "store, which takes IDs from its database"
            )
        prefix = type(obj).__name__ if self._prefix is None else self._prefix
        return self._id_class(prefix, self._next_id_fn())


class Allocator:
    """Gives out numbers from blocks that ``take`` fetches from the database.

    ``uncommitted`` returns the numbers of this thread's open transaction where the
    counter can only be moved within that transaction (SQLite), else None: what was
    taken there must not be used by anybody else, as a rollback gives it back.
    """

    #: So many saves share one write of the counter.
    SIZE = 256

    def __init__(
        self,
        take: Callable[[int], range],
        uncommitted: Callable[[], deque[int] | None],
    ) -> None:
        self._take = take
        self._uncommitted = uncommitted
        # All threads take from it: to pop from a deque needs no lock.
        self._shared: deque[int] = deque()

    def reset(self) -> None:
        """Drop all numbers at hand, as a forked child must: they are its parent's."""
        self._shared = deque()

    def reserve(self, n: int) -> None:
        """Have ``n`` numbers at hand."""
        own = self._uncommitted()
        missing = n - len(self._shared) - len(own or ())
        if missing > 0:
            block = self._take(max(missing, self.SIZE))
            (self._shared if own is None else own).extend(block)

    def __call__(self) -> int:
        """Return the next number."""
        while True:
            try:
                return self._shared.popleft()
            except IndexError:
                own = self._uncommitted()
            if own:
                return own.popleft()
            self.reserve(1)
