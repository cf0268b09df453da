"""A daemon's whole life in half a minute, on real files."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from sqlalchemy import make_url

from daemon_example.spool import new_task
from sessionstore import SessionStore, State

ROOT = Path(__file__).parent.parent


def main(options: argparse.Namespace) -> int:
    """Run the demo; 1 if the database disagrees with itself afterwards."""
    console = Console()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="daemon-example-"))
    folder.mkdir(parents=True, exist_ok=True)
    url = options.store or f"sqlite:///{folder.absolute()}/tasks.db"
    session = SessionStore(url, options.session or f"demo {uuid.uuid4().hex[:8]}")
    console.print(f"folder:   {folder}\ndatabase: {make_url(url)!r}", highlight=False)
    ids = session.add_many(new_task(c, name=n) for n, c in _jobs(folder))
    victim = ids[-1]
    process = subprocess.Popen(
        [sys.executable, "-m", "daemon_example", "run", "--workers", "3"],
        # Not on its command line, where everybody could read the password.
        env={
            **os.environ,
            "DAEMON_EXAMPLE_STORE": url,
            "DAEMON_EXAMPLE_SPOOL": str(folder / "spool"),
            "DAEMON_EXAMPLE_SESSION": session.name,
        },
        stderr=(folder / "daemon.log").open("ab"),
        cwd=ROOT,
    )
    try:
        done = _watch(console, session, victim, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    agrees = _report(console, session, victim)
    session.close()
    if not done:
        console.print(f"not all tasks ended; see {folder}/daemon.log")
    return 0 if done and agrees else 1


def _jobs(folder: Path) -> list[tuple[str, list[str]]]:
    files = sorted((ROOT / "sessionstore").glob("*.py"))[:4]
    jobs = [(f"hash {path.name}", ["sha256sum", str(path)]) for path in files]
    jobs += [(f"count {path.name}", ["wc", "-l", str(path)]) for path in files]
    jobs += [
        (f"compress {path.name}", ["sh", "-c", 'gzip -c "$0" >"$1"', str(path), to])
        for path in files[:3]
        for to in [str(folder / f"{path.name}.gz")]
    ]
    jobs.append(("fail", ["ls", str(folder / "no such file")]))
    jobs.append(("lose its worker", ["sleep", "2"]))
    return jobs


def _watch(
    console: Console,
    session: SessionStore,
    victim: int,
    process: subprocess.Popen[bytes],
) -> bool:
    """Show the tasks until all have ended; kill the victim's worker meanwhile."""
    killed = False
    deadline = time.monotonic() + 60
    names = {task.persistent_id: task.jobname for task in session}
    shown: dict[int, State] = {}
    with Live(console=console, refresh_per_second=8) as live:
        while time.monotonic() < deadline and process.poll() is None:
            table = Table("task", "name", "state")
            states = {id_: state for state in State for id_ in session.ids(state=state)}
            for id_, name in names.items():
                state = states.get(id_, State.UNKNOWN)
                table.add_row(str(id_), name, state)
                if not console.is_terminal and shown.get(id_) is not state:
                    console.print(f"task {id_} ({name}): {state}", highlight=False)
                shown[id_] = state
            if console.is_terminal:
                live.update(table)
            if not killed and states.get(victim) is State.RUNNING:
                os.kill(session.history(victim)[-1].pid, signal.SIGKILL)
                killed = True
            if session.counts() == {State.TERMINATED: len(names)}:
                return killed
            time.sleep(0.1)
    return False


def _report(console: Console, session: SessionStore, victim: int) -> bool:
    """Print what the database says, and whether its parts agree."""
    session.store.invalidate_cache()
    histories = {id_: session.history(id_) for id_ in session.ids()}
    failed = [task for task in session if task.execution.exitcode]
    counts = ", ".join(f"{n} {state}" for state, n in sorted(session.counts().items()))
    console.print(f"\ntasks by state: {counts}", highlight=False)
    console.print(f"transitions:    {sum(map(len, histories.values()))}")
    for task in failed:
        console.print(f"failed:         {task.jobname} ({task.execution.exitcode})")
    console.print("\nthe task whose worker was killed went through:")
    for entry in histories[victim]:
        console.print(
            f"  {entry.at:%H:%M:%S.%f}  {entry.to_state:12} {entry.info}",
            highlight=False,
        )
    wrong = _disagreements(session)
    for line in wrong:
        console.print(f"[red]{line}[/red]")
    if not wrong:
        console.print("\nhistory, index and store agree")
    return not wrong


def _disagreements(session: SessionStore) -> list[str]:
    wrong = []
    index = {id_: state for state in State for id_ in session.ids(state=state)}
    for id_ in session.ids():
        entries = session.history(id_)
        stored = session.store.load(id_).execution.state
        if not index.get(id_) == entries[-1].to_state == stored:
            wrong.append(f"task {id_}: index, history and store tell different states")
        for before, after in pairwise(entries):
            if before.to_state != after.from_state:
                wrong.append(f"task {id_}: a transition is missing from its history")
    return wrong
