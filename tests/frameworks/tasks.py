"""The application behind Celery: a task's argument names its job."""

from __future__ import annotations

from pathlib import Path

from celery.signals import worker_ready, worker_shutdown

from tests.frameworks.application import handle, note
from tests.frameworks.broker import celery

app = celery(Path.cwd())
app.task(handle, name="handle")


@worker_ready.connect
def note_ready(**_: object) -> None:
    """Note in the master that its pool has been forked."""
    note("master ready")


@worker_shutdown.connect
def note_end(**_: object) -> None:
    """Note the master's end."""
    note("master ends")
