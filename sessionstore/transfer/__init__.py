"""Moving stores: to another database, to and from a file, and out of GC3Pie.

A transfer carries the payloads byte for byte, readable or not, whatever serializer made
them; IDs, states and the user's own columns; sessions, with each job's place, attempts,
request and times; and the history.  It takes the same memory however large the store
is.  If it was interrupted, even by ``kill -9``, run it again, and it goes on: what is
there already, and the same, counts as done.  If something else has its place, that is a
ConflictError before anything is written.

A claim stays behind with its holder; see ``items`` for what becomes of the task, and
``archive`` for the file's format.

A source is read as it is at one moment, and may be worked on meanwhile.  Let workers
begin on a target when the transfer is done: to a transfer that is run again, a task
that they changed is a different one.

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
