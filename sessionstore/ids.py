"""IDs: integers that are never given out twice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

__all__ = ["Allocator", "Blocks", "IdFactory", "IdSource", "IntId"]


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
                "this IdFactory has no next_id_fn; give it one, or give the factory "
                "to a store, which counts in its database"
            )
        prefix = type(obj).__name__ if self._prefix is None else self._prefix
        return self._id_class(prefix, self._next_id_fn())


class Blocks:
    """Numbers that were set aside for this process alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._first = self._end = 0
        self._later: list[range] = []

    def __len__(self) -> int:
        with self._lock:
            return self._end - self._first + sum(map(len, self._later))

    def add(self, numbers: range) -> None:
        """Set more numbers aside."""
        with self._lock:
            self._later.append(numbers)

    def pop(self) -> int | None:
        """Return the next number, or None when there is none left."""
        with self._lock:
            while self._first == self._end:
                if not self._later:
                    return None
                numbers = self._later.pop(0)
                self._first, self._end = numbers.start, numbers.stop
            self._first += 1
            return self._first - 1


class Allocator:
    """Gives out numbers from blocks that ``take`` fetches from the database.

    ``uncommitted`` returns the blocks of this thread's open transaction where the
    counter can only be moved within that transaction (SQLite), else None: what was
    taken there must not be used by anybody else, as a rollback gives it back.
    """

    #: So many saves share one write of the counter.
    SIZE = 256

    def __init__(
        self,
        take: Callable[[int], range],
        uncommitted: Callable[[], Blocks | None],
    ) -> None:
        self._take = take
        self._uncommitted = uncommitted
        self._shared = Blocks()

    def reset(self) -> None:
        """Drop all blocks, as a forked child must: they are its parent's."""
        self._shared = Blocks()

    def reserve(self, n: int) -> None:
        """Have ``n`` numbers at hand."""
        own = self._uncommitted()
        missing = n - len(self._shared) - (0 if own is None else len(own))
        if missing > 0:
            block = self._take(max(missing, self.SIZE))
            (self._shared if own is None else own).add(block)

    def __call__(self) -> int:
        """Return the next number."""
        while True:
            number = self._shared.pop()
            if number is None and (own := self._uncommitted()) is not None:
                number = own.pop()
            if number is not None:
                return number
            self.reserve(1)
