"""The spool folder: jobs come in as files, and their commands' output goes out."""

from __future__ import annotations

import os
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sessionstore import SessionStore, Task


class Spool:
    """``new/*.toml`` files become tasks; then they are in ``done/`` or ``bad/``.

    Write a file under another name first and rename it to ``*.toml``, else half of
    it may be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("new", "taken", "done", "bad", "output"):
            (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    def take(self, session: SessionStore) -> None:
        """Add the waiting files' jobs to the session."""
        for path in sorted((self.folder / "new").glob("*.toml")):
            # The name becomes unique, and is kept in the task: a daemon that dies
            # between adding the task and moving the file can tell so afterwards.
            taken = self.folder / "taken" / f"{time.time_ns()}-{path.name}"
            path.rename(taken)
            self._add(taken, session)

    def finish_interrupted(self, session: SessionStore) -> None:
        """Deal with the files that a daemon was taking when it died."""
        left = list((self.folder / "taken").iterdir())
        if not left:
            return
        added = {getattr(task, "spool_file", None) for task in session}
        for path in left:
            if path.name in added:
                path.rename(self.folder / "done" / path.name)
            else:
                self._add(path, session)

    def _add(self, path: Path, session: SessionStore) -> None:
        try:
            name, command = read_job(path)
        except ValueError as error:
            bad = self.folder / "bad" / path.name
            bad.with_suffix(".reason").write_text(f"{error}\n")
            path.rename(bad)
            return
        session.add(new_task(command, name=name, spool_file=path.name))
        path.rename(self.folder / "done" / path.name)

    def output(self, id_: int) -> Path:
        """Return where a task's command writes."""
        return self.folder / "output" / str(id_)

    def waiting(self) -> Iterator[Path]:
        """Go through the files that are not tasks yet."""
        return (self.folder / "new").glob("*.toml")


def new_task(command: list[str], *, name: str = "", **attributes: object) -> Task:
    """Return a task that is to run a command."""
    return Task(name or os.path.basename(command[0]), command=command, **attributes)


def read_job(path: Path) -> tuple[str, list[str]]:
    """Return a job file's name and command, or raise ValueError with the reason."""
    try:
        job: dict[str, Any] = tomllib.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path.name} is no TOML: {error}") from error
    command = job.get("command")
    if (
        not isinstance(command, list)
        or not command
        or not all(isinstance(word, str) for word in command)
    ):
        raise ValueError(
            f"{path.name} has no command; write it like command = ['wc', '-l', 'file']"
        )
    return str(job.get("name", "")), command
