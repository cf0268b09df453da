"""The command ``sessionstore``, which looks into stores and changes what is in them.

To add a command, write a function in a module of this package and add one line for it
to ``commands``.  Its first parameter is a ``Common``, which opens the store and the
session that were named, and has the ``Output`` to print with; the others are its
arguments and options, which typer takes from their annotations.  The docstring is its
help: the first line stands in the list of commands.  An error is raised, as any
``SessionStoreError``; see ``running``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, that of the command line if none is given; return its status.

    A program that calls it does not show the URL's password in the list of processes.

    >>> from sessionstore import SessionStore, Task
    >>> from sessionstore.cli import main
    >>> url = "sqlite:///tasks.db"
    >>> with SessionStore(url) as session:
    ...     id_ = session.add(Task("count"))
    >>> main(["ls", "--url", url, "--columns", "name"])
    count
    0
    """
    try:
        from sessionstore.cli.running import run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sessionstore"):
            raise
        print(
            f"sessionstore: {error}; pip install 'sessionstore[cli]'", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        return 130
    return run(arguments)
