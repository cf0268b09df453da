"""A daemon's whole life in half a minute, on real files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

import sessionstore
from daemon_example import settings
from daemon_example.spool import new_task
from sessionstore import SessionStore, State
from sessionstore.doctor import Level, examine

STYLES = {State.TERMINATED: "green", State.UNKNOWN: "red", State.RUNNING: "yellow"}


def main(options: Namespace) -> int:
    """Show a daemon's whole life, in half a minute."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="daemon-example-"))
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    url = settings.load(options).store or f"sqlite:///{folder}/tasks.db"
    name = options.session or f"demo {uuid.uuid4().hex[:8]}"
    environment = {
        **os.environ,
        # Not on its command line, where everybody could read the password.
        "DAEMON_EXAMPLE_STORE": url,
        "DAEMON_EXAMPLE_SPOOL": f"{folder}/spool",
        "DAEMON_EXAMPLE_SESSION": name,
    }
    command = [sys.executable, "-m", "daemon_example", "run", "--workers", "3"]
    with SessionStore(url, name) as session:
        console.print(f"folder:   {folder}\ndatabase: {session.store.url!r}")
        victim = session.add_many(new_task(*job) for job in jobs(folder))[-1]
        with (folder / "daemon.log").open("ab") as log:
            daemon = subprocess.Popen(command, env=environment, stderr=log)
        try:
            has_ended = watch(console, session, victim, daemon)
        finally:
            daemon.terminate()
            daemon.wait()
    # Opened anew: the report is what the database says, not what this process knows.
    with SessionStore(url, name, create=False) as session:
        agrees = report(console, session, victim)
    if not has_ended:
        console.print(f"not all tasks ended; see {folder}/daemon.log")
    return 0 if has_ended and agrees else 1


def jobs(folder: Path) -> Iterator[tuple[list[str], str]]:
    """Give a dozen command lines and their names; the last will lose its worker."""
    files = sorted(Path(sessionstore.__file__).parent.glob("*.py"))[:4]
    for file in files:
        yield ["sha256sum", str(file)], f"hash {file.name}"
        yield ["wc", "-l", str(file)], f"count {file.name}"
    for file in files[:3]:
        command = ["sh", "-c", 'gzip -c "$0" >"$1"', str(file)]
        yield [*command, f"{folder}/{file.name}.gz"], f"compress {file.name}"
    yield ["ls", f"{folder}/no such file"], "fail"
    yield ["sleep", "2"], "lose its worker"


def watch(
    console: Console,
    session: SessionStore,
    victim: int,
    daemon: subprocess.Popen[bytes],
) -> bool:
    """Show each change until all tasks have ended; kill the victim's worker once."""
    is_killed = False
    deadline = time.monotonic() + 60
    names = {task.persistent_id: task.jobname for task in session}
    shown = dict.fromkeys(names, 0)
    while time.monotonic() < deadline and daemon.poll() is None:
        # Asked first, so that nothing is left to be shown when all have ended.
        has_ended = set(session.counts()) == {State.TERMINATED}
        for id_, name in names.items():
            for entry in session.history(id_)[shown[id_] :]:
                shown[id_] += 1
                style = "red" if entry.returncode else STYLES.get(entry.to_state)
                line = f"{entry.at:%H:%M:%S}  {id_:4} {entry.to_state:12} {name}"
                console.print(line, style=style)
                if id_ == victim and entry.to_state is State.RUNNING and not is_killed:
                    os.kill(entry.pid, signal.SIGKILL)
                    is_killed = True
        if has_ended:
            return is_killed
        session.wait(1)
    return False


def report(console: Console, session: SessionStore, victim: int) -> bool:
    """Print what the database says; tell whether its parts agree."""
    counts = ", ".join(f"{n} {state}" for state, n in sorted(session.counts().items()))
    console.print(f"\ntasks by state: {counts}")
    number = sum(len(session.history(id_)) for id_ in session.ids())
    console.print(f"transitions:    {number}")
    for task in session:
        if task.execution.exitcode:
            console.print(f"failed:         {task.jobname} ({task.execution.exitcode})")
    console.print("\nthe task whose worker was killed went through:")
    for entry in session.history(victim):
        console.print(f"  {entry.at:%H:%M:%S.%f}  {entry.to_state:12} {entry.info}")
    wrong = [f for f in examine(session.store) if f.level is Level.WRONG]
    for finding in wrong:
        console.print(f"\n{finding.check}: {finding.what}")
    if not wrong:
        console.print("\nhistory, index and store agree")
    return not wrong
