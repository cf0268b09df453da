"""Changing an object under its row's lock."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sessionstore.errors import ConflictError, SessionStoreError
from sessionstore.jobs.claims import Owner
from sessionstore.jobs.rows import check_holder
from sessionstore.jobs.saving import save_graph
from sessionstore.persistable import Persistable

__all__ = ["update"]

log = logging.getLogger(__name__)


@contextmanager
def update(session: Owner, key: int) -> Iterator[Any]:
    """Yield an object that was read under a lock, and save it at the block's end."""
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
    task: Any = None
    try:
        with index.database.transaction() as scope:
            check_holder(index.job(scope.kept, key), None)
            if live is None:
                task = session.load(key)
            else:
                session.refresh(live)
                task = live
            yield task
            save_graph(index, [task], listed=False)
    except BaseException:
        # Always, as a change inside a container leaves no mark.
        if task is not None and pid == os.getpid():
            try:
                session.refresh(task)
            except SessionStoreError:
                log.warning("%r could not be refreshed", task, exc_info=True)
                index.objects.identities.forget(key)
        raise
