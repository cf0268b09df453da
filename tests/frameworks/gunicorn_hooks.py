"""Gunicorn's settings: its master writes too, between its forks and at its end."""

from __future__ import annotations


def child_exit(server: object, worker: object) -> None:
    """Note the end of a worker, just before another is forked."""
    # Imported late, so that it is --preload that opened the store.
    from tests.frameworks.application import note

    note("worker ended")


def on_exit(server: object) -> None:
    """Note the master's own end."""
    from tests.frameworks.application import note

    note("master ends")
