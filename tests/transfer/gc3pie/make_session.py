"""Make a session directory, as GC3Pie does: DIRECTORY KIND PROTOCOL FIRST."""

import io
import os
import pickle
import sqlite3
import sys

from gc3libs import Persistable, ShellApp, Task
from gc3libs.persistence.idfactory import Id
from gc3libs.persistence.sql import IntId

directory, kind, protocol, first = *sys.argv[1:3], *map(int, sys.argv[3:])
stored = {}


class _Pickler(pickle.Pickler):
    def __init__(self, task, *arguments):
        super().__init__(*arguments)
        self._task = task

    def persistent_id(self, part):
        is_other = isinstance(part, Persistable) and part is not self._task
        return part.persistent_id if is_other else None


def save(task):
    number = first + len(stored)
    is_sql = kind == "sql"
    new_id = IntId("x", number) if is_sql else Id(type(task).__name__, number)
    task.persistent_id = new_id
    buffer = io.BytesIO()
    _Pickler(task, buffer, protocol).dump(task)
    stored[str(new_id)] = buffer.getvalue(), task.execution.state
    return str(new_id)


shared = Task("shared", long="x" * 100_000)
save(shared)
inner = ShellApp("inner", needs=shared)
inner.execution.state = "SUBMITTED"
save(inner)
outer = Task("outer", tasks=[inner, shared], again=(shared, {"key": inner}))
outer.execution.state = "RUNNING"
done = ShellApp("done", command=["ls"])
done.execution.state = "TERMINATED"
done.execution._exitcode, done.execution._signal = 3, 0
listed = [save(done), save(outer)]

os.mkdir(directory)
if kind == "sql":
    url = f"sqlite:///{directory}/jobs.db"  # which is an absolute path to GC3Pie
    with sqlite3.connect(f"{directory}/jobs.db") as connection:
        connection.execute(
            "CREATE TABLE store (id INTEGER PRIMARY KEY, data BLOB, state VARCHAR(128))"
        )
        for id_, (data, state) in stored.items():
            row = (int(id_), data, state)
            connection.execute("INSERT INTO store VALUES (?, ?, ?)", row)
else:
    url = f"file://{directory}/jobs"
    os.mkdir(f"{directory}/jobs")
    for id_, (data, _) in stored.items():
        with open(f"{directory}/jobs/{id_}", "wb") as file:
            file.write(data)
for name, content in {
    "session_ids.txt": "".join(f"{id_}\n" for id_ in listed),
    "store.url": url,
    "created": "a command line\n",
    "finished": "",
}.items():
    with open(f"{directory}/{name}", "w") as file:
        file.write(content)
os.utime(f"{directory}/created", (1_500_000_000, 1_500_000_000))
os.utime(f"{directory}/finished", (1_600_000_000, 1_600_000_000))
