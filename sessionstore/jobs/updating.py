"""Changing an object under its row's lock."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from sessionstore.database.scopes import Scope
from sessionstore.errors import ConflictError, LoadError, SessionStoreError
from sessionstore.jobs.claims import Owner
from sessionstore.jobs.index import Index
from sessionstore.jobs.reading import refresh
from sessionstore.jobs.rows import check_holder
from sessionstore.jobs.saving import save_graph
from sessionstore.objects.encoding import parts_of
from sessionstore.persistable import Persistable, mark, note

__all__ = ["update"]

log = logging.getLogger(__name__)


@contextmanager
def update(session: Owner, key: int) -> Iterator[Any]:
    """Yield an object that was read under a lock, and save it at the block's end.

    What the block changed, in the object and in its parts, is nobody's unsaved change
    after a rollback, also where the database is away: the next try makes it anew.
    Each of those objects is read again by the next update, or by a load of it before.
    What was changed before the block, or after it, stays marked as it is.
    """
    index = session._index
    live = index.objects.identities.live(key)
    if not isinstance(live, Persistable):  # loading it says what is wrong
        live = None
    elif live.changed:
        raise ConflictError(
            f"the live object {key} has unsaved changes; save or refresh it first",
            id=key,
        )
    pid = os.getpid()
    block: _Block | None = None
    try:
        with index.database.transaction() as scope:
            check_holder(index.job(scope.kept, key), None)
            if live is None:
                task = session.load(key)
            else:
                session.refresh(live)
                task = live
            block = _Block(scope, task)
            block.parts = _unchanged_parts(index, task)
            yield task
            block.end()
            save_graph(index, [task], listed=False)
            block.watch()
    except BaseException:
        if block is not None and pid == os.getpid():
            block.put_back()
            _read_again(session, block.touched)
            block.watch()
        raise


class _Block:
    """What one update may have changed, and what becomes of it at a rollback."""

    def __init__(self, scope: Scope, task: Persistable) -> None:
        self.parts: Sequence[Persistable] = ()
        #: What the block changed, the task itself first.
        self.touched: Sequence[Persistable] = ()
        self._scope = scope
        self._task = task
        #: By id(), those that were changed again after the block.
        self._since: set[int] = set()
        # Before the save notes its own, so that this comes after that.
        scope.undo.append(self.put_back)

    def end(self) -> None:
        """Note what is changed when the block ends."""
        # The task always, as a change inside a container leaves no mark.
        changed = [part for part in self.parts if part.changed]
        self.touched = [self._task, *changed]

    def watch(self) -> None:
        """Tell what the block changed from what is changed after it."""
        if not self._scope.has_ended:
            self._scope.undo.append(self._note_since)

    def _note_since(self) -> None:
        self._since = {id(obj) for obj in self.touched if obj.changed}

    def put_back(self) -> None:
        """Have what the block changed read again before it is used or saved."""
        if not self.touched:  # the block did not come to its end
            self.end()
        for obj in self.touched:
            # A change of somebody's own stays marked.  It lies on top of what was
            # rolled back, and so cannot be saved either: without a revision it is a
            # conflict.
            mark(obj, id(obj) in self._since)
            note(obj, _revision=None)


def _unchanged_parts(index: Index, task: Persistable) -> Sequence[Persistable]:
    """Return what an object refers to, however deep, but for what is changed.

    Those that a rollback has left without a revision are read again.
    """
    met: dict[int, Persistable] = {id(task): task}
    todo = [task]
    for obj in todo:  # which grows as parts are met
        if obj is not task and obj._revision is None and not obj.changed:
            # The save says so where it cannot be read, or is in no store yet.
            with suppress(LoadError):
                refresh(index, obj, is_part=True)
        for part in parts_of(obj, index.objects.serializer):
            if id(part) not in met:
                met[id(part)] = part
                todo.append(part)
    return [obj for obj in todo[1:] if not obj.changed]


def _read_again(session: Owner, objects: Sequence[Persistable]) -> None:
    task, *parts = objects
    try:
        session.refresh(task)
        for part in parts:
            refresh(session._index, part, is_part=True)
    except SessionStoreError:
        log.warning("%r could not be refreshed", task, exc_info=True)
