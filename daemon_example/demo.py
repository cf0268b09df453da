"""A daemon's whole life in half a minute, on real files."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import uuid
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import sessionstore
from daemon_example.settings import Settings, UserError, load
from daemon_example.spool import new_task
from sessionstore import SessionStore
from sessionstore.cli import main as look


def main(options: Namespace) -> int:
    """Show a daemon's whole life, in half a minute."""
    folder = Path(options.folder or tempfile.mkdtemp(prefix="daemon-example-"))
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    url = load(options).store or Settings(spool=folder).url
    name = options.session or f"demo {uuid.uuid4().hex[:8]}"
    environment = {
        **os.environ,
        # Not on a command line, where everybody could read the password.
        "DAEMON_EXAMPLE_STORE": url,
        "DAEMON_EXAMPLE_SPOOL": f"{folder}/spool",
        "DAEMON_EXAMPLE_SESSION": name,
        "SESSIONSTORE_URL": url,
    }
    run = [sys.executable, "-m", "daemon_example", "run", "--workers", "3"]
    tail = [sys.executable, "-m", "sessionstore", "tail", "--session", name]
    with SessionStore(url, name) as session:
        print(f"folder:   {folder}\ndatabase: {session.store.url!r}")
        victim = session.add_many(new_task(*job) for job in jobs(folder))[-1]
    print("\nwhat becomes of each task:", flush=True)
    tail += ["--since", "1m", "--until-ended"]
    with (folder / "daemon.log").open("ab") as log:
        daemon = subprocess.Popen(run, env=environment, stderr=log)
    following = subprocess.Popen(tail, env=environment)
    try:
        give_up_at = time.monotonic() + 60
        # If the daemon ends first, it has failed.
        while following.poll() is None and daemon.poll() is None:
            if time.monotonic() > give_up_at:
                break
            time.sleep(0.1)
    finally:
        for process in (following, daemon):
            process.terminate()
            process.wait()
    if following.returncode != 0:
        raise UserError(f"not all tasks ended; see {folder}/daemon.log")
    print(
        "\nall of them: tasks, stays in each state, their median and 95 % in seconds:"
    )
    look(["stats", "--url", url, "--session", name])
    print("\nthe task whose worker was killed:")
    look(["history", "--url", url, "--session", name, str(victim)])
    print("\nthe database, examined:")
    wrong = look(["doctor", "--url", url])
    print(f"\nhistory, index and store {'dis' if wrong else ''}agree")
    return wrong


def jobs(folder: Path) -> Iterator[tuple[list[str], str]]:
    """Give a dozen command lines and their names; the last kills its worker once."""
    files = sorted(Path(sessionstore.__file__).parent.glob("*.py"))[:4]
    for file in files:
        yield ["sha256sum", str(file)], f"hash {file.name}"
        yield ["wc", "-l", str(file)], f"count {file.name}"
    for file in files[:3]:
        command = ["sh", "-c", 'gzip -c "$0" >"$1"', str(file)]
        yield [*command, f"{folder}/{file.name}.gz"], f"compress {file.name}"
    yield ["ls", f"{folder}/no such file"], "fail"
    once = folder / "once"
    once.touch()
    kill = 'if rm "$0"; then kill -9 $PPID; sleep 9; fi'
    yield ["sh", "-c", kill, str(once)], "lose its worker"
