"""Stores moved: to another database, to a file, and out of GC3Pie.

What comes across is the payloads byte for byte, readable or not, by any serializer;
IDs, states and the user's own columns; sessions, with each job's place, attempts,
request and times; and the history.  Memory stays flat however large the store is.  A
transfer that was interrupted, by ``kill -9`` too, is run again, and goes on: what is
there and the same counts as done.  Where something else stands in its place, that is a
ConflictError before anything is written.

A claim stays behind with its holder; see ``items`` for what becomes of the task, and
``archive`` for the file's format.

A source is read as it is at one moment, and may be worked on meanwhile.  On a target,
let workers begin when the transfer is done: a task that they changed is another one to
a transfer that is run again.

>>> from sessionstore import SessionStore, Task
>>> from sessionstore.transfer import copy, export
>>> session = SessionStore("sqlite:///tasks.db")
>>> id_ = session.add(Task("count"))
>>> copy("sqlite:///tasks.db", "sqlite:///other.db", verify=True).objects
1
>>> SessionStore("sqlite:///other.db").load(id_).jobname
'count'
>>> export("sqlite:///tasks.db", "tasks.archive").objects
1
"""

from __future__ import annotations

from sessionstore.transfer.adopting import Adoption, import_gc3pie
from sessionstore.transfer.copying import (
    Progress,
    Transfer,
    copy,
    export,
    import_archive,
)

__all__ = [
    "Adoption",
    "Progress",
    "Transfer",
    "copy",
    "export",
    "import_archive",
    "import_gc3pie",
]
