"""Celery on folders of files, for workers and clients alike."""

from __future__ import annotations

from pathlib import Path

from celery import Celery


def celery(folder: Path) -> Celery:
    """Return an application whose queue and results are files in ``folder``."""
    queue, results = folder / "queue", folder / "results"
    for needed in (queue, results):
        needed.mkdir(exist_ok=True)
    app = Celery("tests", broker="filesystem://", backend=results.as_uri())
    app.conf.update(
        broker_transport_options={
            "data_folder_in": str(queue),
            "data_folder_out": str(queue),
            "control_folder": str(folder / "control"),
            "polling_interval": 0.02,
        },
        # The master forks another worker after so many tasks, while it runs threads.
        worker_max_tasks_per_child=8,
        worker_prefetch_multiplier=1,
    )
    return app
