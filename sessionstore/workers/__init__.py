"""A pool of workers, one forked for each task, which leaves nothing running.

``WorkerPool`` claims a session's tasks and forks a worker for each; ``run_command`` is
the work for a task that is a command line.  The pool renews the workers' leases, obeys
requests, and records what a worker could not record itself.  What another pool has left
running is ended before its task can be claimed again.
"""

from sessionstore.workers.command import run_command
from sessionstore.workers.groups import end_group
from sessionstore.workers.patience import patiently
from sessionstore.workers.pool import WorkerPool

__all__ = ["WorkerPool", "end_group", "patiently", "run_command"]
