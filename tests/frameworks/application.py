"""What every framework serves here: a session opened, and used, before it forks.

The workers go on with the very objects that the master made when it imported this
module: ``session``, and ``opened``, on which all of them count their requests.
"""

from __future__ import annotations

import os
import threading

from sessionstore import SessionStore, State, Task

STORE = os.environ["APPLICATION_STORE"]
#: For masters that fork without telling Python beforehand.
PRE_FORK = bool(os.environ.get("APPLICATION_PRE_FORK"))
#: How a server is asked which of its connections this is.
CONNECTION = {
    "postgresql": "SELECT pg_backend_pid()",
    "mysql": "SELECT connection_id()",
}

session = SessionStore(STORE, "application")
#: Of ``opened``: a process's live objects are shared by its threads, and not locked.
lock = threading.Lock()


def note(name: str, **attributes: object) -> Task:
    """Write down what happened in this process, and on which connection."""
    question = CONNECTION.get(session.store.url.get_backend_name())
    with session.transaction() as connection:
        number = connection.exec_driver_sql(question).scalar() if question else None
        task = Task(name, pid=os.getpid(), connection=number, **attributes)
        session.add(task)
    return task


def handle(name: str) -> dict[str, object]:
    """Do one request's work: a new job, its transition, and the count of all."""
    task = note(name)
    session.transition(task.persistent_id, State.SUBMITTED, expect=State.NEW)
    with lock, session.update(opened.persistent_id) as counter:
        counter.requests += 1
        number = counter.requests
    return {
        "name": name,
        "id": task.persistent_id,
        "pid": task.pid,
        "connection": task.connection,
        "number": number,
    }


opened = note("opened", requests=0)
if PRE_FORK:
    session.store.pre_fork()
