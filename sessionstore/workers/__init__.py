"""A pool of forked workers, one for each task, which nothing outlives.

``WorkerPool`` claims a session's tasks and forks a worker for each; ``run_command``
is the work of those whose task is a command line.  The pool renews the workers'
leases, obeys requests, records what a worker could not record itself, and ends what
outlived another pool, before a task is anybody's again.
"""

from sessionstore.workers.command import run_command
from sessionstore.workers.groups import end_group
from sessionstore.workers.patience import patiently
from sessionstore.workers.pool import WorkerPool

__all__ = ["WorkerPool", "end_group", "patiently", "run_command"]
