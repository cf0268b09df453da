"""All commands, in the order in which the help lists them."""

from __future__ import annotations

from sessionstore.cli import (
    changing,
    following,
    looking,
    mending,
    moving,
    pruning,
    showing,
    summing,
)
from sessionstore.cli.application import READS, READS_STORE, SHARED, add, app

__all__ = ["app"]

add(looking.sessions, shared=("url", "json"))
add(looking.ls)
add(showing.show, shared=READS)
add(showing.history)
add(summing.stats)
add(following.watch)
add(following.tail)
for change in changing.CHANGES:
    shared = READS if change.name == "remove" else SHARED
    add(changing.changing(change), name=change.name, shared=shared)
add(pruning.prune)
add(moving.copy, shared=("json",))
add(moving.export, shared=("url", "json"))
add(moving.import_, name="import", shared=("url", "json"))
add(mending.doctor, shared=READS_STORE)
add(mending.unreadable, shared=READS_STORE)
add(mending.repickle, shared=READS_STORE)
add(mending.migrate, shared=("url",))
