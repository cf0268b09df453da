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

LOOK, CHANGE = "Look", "Change tasks"
MOVE, MEND = "Move a store", "Examine and repair a store"

add(looking.sessions, panel=LOOK, shared=("url", "json"))
add(looking.ls, panel=LOOK)
add(showing.show, panel=LOOK, shared=READS)
add(showing.history, panel=LOOK)
add(summing.stats, panel=LOOK)
add(following.watch, panel=LOOK)
add(following.tail, panel=LOOK)
for change in changing.CHANGES:
    shared = READS if change.name == "remove" else SHARED
    add(changing.changing(change), name=change.name, panel=CHANGE, shared=shared)
add(pruning.prune, panel=CHANGE, shared=READS)
add(moving.copy, panel=MOVE, shared=("json",))
add(moving.export, panel=MOVE, shared=("url", "json"))
add(moving.import_, name="import", panel=MOVE, shared=("url", "json"))
add(mending.doctor, panel=MEND, shared=READS_STORE)
add(mending.unreadable, panel=MEND, shared=READS_STORE)
add(mending.repickle, panel=MEND, shared=READS_STORE)
add(mending.migrate, panel=MEND, shared=("url",))
