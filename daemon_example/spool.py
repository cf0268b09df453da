"""The spool folder: jobs come in as files, and their commands' output goes out."""

from __future__ import annotations

import fnmatch
import os
import tempfile
import time
import tomllib
from pathlib import Path

from daemon_example.settings import SettingsError
from sessionstore import SessionStore, StoreError, Task

#: Bytes of a job from which on it may be too large for a database.
LARGE = 2**20
#: Bytes of a file that is no job: Linux takes no longer command line.  Reading it could
#: take all memory, now and at each start.
LARGEST = 2 * LARGE


class Spool:
    """``new/*.toml`` files become tasks; then they are in ``done/`` or ``bad/``.

    Write a file under another name first and rename it to ``*.toml``, else half of
    it may be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in ("new", "taken", "done", "bad", "output"):
                (folder / name).mkdir(mode=0o700, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder / name):
                    pass
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"the spool folder cannot be used: {error}; who runs the daemon has to "
                "be able to write there"
            ) from error

    def take(self, session: SessionStore, limit: int = 100) -> None:
        """Add some of the waiting files' jobs to the session."""
        # Path.glob() would silently skip a folder that it cannot read.
        found = fnmatch.filter(os.listdir(self.folder / "new"), "[!.]*.toml")
        for path in sorted(self.folder / "new" / name for name in found)[:limit]:
            # The name becomes unique, and is kept in the task: if we die between
            # adding the task and moving the file, that can be told afterwards.
            name = f"{time.time_ns()}-{path.stem[:50]}.toml"
            self._add(path.rename(self.folder / "taken" / name), session)

    def finish(self, session: SessionStore) -> None:
        """Deal with the files whose taking was interrupted."""
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
            task = read_job(path)
        except (OSError, ValueError, RecursionError) as error:
            self._set_aside(path, error)
            return
        task.spool_file = path.name
        try:
            session.add(task)
        except StoreError as error:
            # A large job may be more than the database ever takes at once (MariaDB's
            # max_allowed_packet).
            if type(error) is not StoreError or path.stat().st_size < LARGE:
                raise
            self._set_aside(path, error)
            return
        path.rename(self.folder / "done" / path.name)

    def _set_aside(self, path: Path, why: Exception) -> None:
        bad = self.folder / "bad" / path.name
        reason = f"{path.name}: {why}\n".encode(errors="backslashreplace")
        bad.with_suffix(".reason").write_bytes(reason)
        path.rename(bad)

    def output(self, id_: int) -> Path:
        """Return where a task's command writes."""
        return self.folder / "output" / str(id_)


def new_task(command: list[str], name: str = "") -> Task:
    """Return a task that is to run a command."""
    return Task(name or os.path.basename(command[0]), command=command)


def read_job(path: Path) -> Task:
    """Return the task that a job file describes; raise ValueError with the reason."""
    if not path.is_file():
        raise ValueError("not a file")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"larger than {LARGEST} bytes")
    try:
        job = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"no TOML: {error}") from error
    if unknown := job.keys() - {"command", "name"}:
        raise ValueError(f"unknown key {min(unknown)!r}; there are command and name")
    command, name = job.get("command", []), job.get("name", "")
    is_list = isinstance(command, list) and command
    if not is_list or not all(isinstance(word, str) for word in command):
        raise ValueError("no command; write it like command = ['wc', '-l', 'file']")
    if not isinstance(name, str):
        raise ValueError("the name is no string")
    return new_task(command, name)
