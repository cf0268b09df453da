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
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

import sessionstore
from daemon_example import settings
from daemon_example.spool import new_task
from sessionstore import SessionStore, State, Transition

COLORS = {State.TERMINATED: "green", State.UNKNOWN: "red", State.RUNNING: "yellow"}


def main(options: Namespace) -> int:
    """Show a daemon's whole life, in half a minute."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="daemon-example-"))
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    url = settings.load(options).store or f"sqlite:///{folder}/tasks.db"
    name = options.session or f"demo {uuid.uuid4().hex[:8]}"
    with SessionStore(url, name) as session:
        console.print(f"folder:   {folder}\ndatabase: {session.store.url!r}")
        victim = session.add_many(new_task(*job) for job in jobs(folder))[-1]
        has_ended = work(console, session, victim, folder, url)
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


def work(
    console: Console, session: SessionStore, victim: int, folder: Path, url: str
) -> bool:
    """Run a daemon until all tasks have ended; tell whether they have."""
    environment = {
        **os.environ,
        # Not on its command line, where everybody could read the password.
        "DAEMON_EXAMPLE_STORE": url,
        "DAEMON_EXAMPLE_SPOOL": f"{folder}/spool",
        "DAEMON_EXAMPLE_SESSION": session.name,
    }
    command = [sys.executable, "-m", "daemon_example", "run", "--workers", "3"]
    with (folder / "daemon.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
    try:
        return watch(console, session, victim, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def watch(
    console: Console,
    session: SessionStore,
    victim: int,
    daemon: subprocess.Popen[bytes],
) -> bool:
    """Show the tasks until all have ended; kill the victim's worker meanwhile."""
    is_killed = False
    deadline = time.monotonic() + 60
    names = {task.persistent_id: task.jobname for task in session}
    shown: dict[int, int] = dict.fromkeys(names, 0)
    with Live(console=console, transient=not console.is_terminal) as live:
        while time.monotonic() < deadline and daemon.poll() is None:
            histories = {id_: session.history(id_) for id_ in names}
            if console.is_terminal:
                live.update(table(names, histories))
            else:
                for id_, entries in histories.items():
                    for entry in entries[shown[id_] :]:
                        console.print(f"task {id_} ({names[id_]}): {entry.to_state}")
                    shown[id_] = len(entries)
            last = histories[victim][-1]
            if last.to_state == State.RUNNING and not is_killed:
                os.kill(last.pid, signal.SIGKILL)
                is_killed = True
            if all(h[-1].to_state == State.TERMINATED for h in histories.values()):
                return is_killed
            time.sleep(0.1)
    return False


def table(names: dict[int, str], histories: dict[int, list[Transition]]) -> Table:
    """Return the tasks and what became of them."""
    result = Table("task", "name", "state", "since", "how")
    for id_, name in names.items():
        last = histories[id_][-1]
        result.add_row(
            str(id_),
            name,
            str(last.to_state),
            f"{last.at:%H:%M:%S}",
            last.info if last.to_state in (State.TERMINATED, State.UNKNOWN) else "",
            style="red" if last.returncode else COLORS.get(last.to_state),
        )
    return result


def report(console: Console, session: SessionStore, victim: int) -> bool:
    """Print what the database says; tell whether its parts agree."""
    counts = ", ".join(f"{n} {state}" for state, n in sorted(session.counts().items()))
    histories = {id_: session.history(id_) for id_ in session.ids()}
    console.print(f"\ntasks by state: {counts}")
    console.print(f"transitions:    {sum(map(len, histories.values()))}")
    for task in session:
        if task.execution.exitcode:
            console.print(f"failed:         {task.jobname} ({task.execution.exitcode})")
    console.print("\nthe task whose worker was killed went through:")
    for entry in histories[victim]:
        line = f"  {entry.at:%H:%M:%S.%f}  {entry.to_state:12} {entry.info}"
        console.print(line, overflow="fold")
    wrong = disagreements(session, histories)
    console.print("\n" + ("\n".join(wrong) or "history, index and store agree"))
    return not wrong


def disagreements(
    session: SessionStore, histories: dict[int, list[Transition]]
) -> list[str]:
    """Return where history, index and store tell different things."""
    wrong = []
    index = {id_: state for state in State for id_ in session.ids(state=state)}
    store = {
        id_: state for state in State for id_ in session.store.iter_ids(state=state)
    }
    for id_, entries in histories.items():
        said = {index.get(id_), entries[-1].to_state, store.get(id_)}
        if len(said) > 1:
            wrong.append(f"task {id_}: index, history and store tell different states")
        if any(a.to_state != b.from_state for a, b in pairwise(entries)):
            wrong.append(f"task {id_}: a transition is missing from its history")
    return wrong
