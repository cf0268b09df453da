"""Hosts of the tests' own, on a network of their own, with one database."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from sessionstore import SessionStore, Task
from tests import servers
from tests.hosts.network import Network
from tests.hosts.replay import SHELL, Line, lines, problems
from tests.systemd.box import Box
from tests.systemd.host import UNIT, Host, installed, need_boxes

NAMES = ("one", "two", "three")
LEASE = 8
#: In the box; all hosts see the same.
MARKS = "/var/marks"
DROPIN = """\
[Service]
ReadWritePaths={marks}
Environment=DAEMON_EXAMPLE_LEASE={lease} DAEMON_EXAMPLE_WORKERS=2
Environment=DAEMON_EXAMPLE_ATTEMPTS=20 DAEMON_EXAMPLE_GRACE=0
"""


class Hosts:
    """Some hosts on one network, with one database, and what their commands wrote."""

    def __init__(
        self,
        stack: ExitStack,
        folder: Path,
        options: str = "",
        more: str = "",
        lease: int = LEASE,
    ) -> None:
        self._stack = stack
        self._folder = folder
        self._more = more
        self._dropin = DROPIN.format(lease=lease, marks=MARKS)
        self.network = stack.enter_context(Network())
        server = servers.start_postgresql(f"{self.network.ADDRESS}/24")
        stack.callback(server.stop)
        self.session = stack.enter_context(SessionStore(server.url))
        self._url = server.url.replace("127.0.0.1", self.network.ADDRESS) + options
        self.marks = folder / "marks"
        self.marks.mkdir()
        self.marks.chmod(0o777)
        self.hosts: dict[str, Host] = {}
        for name in NAMES:
            self.boot(name)
        stack.callback(self._tell)

    def _tell(self) -> None:
        """Print what is shown with a test that failed."""
        for id_ in self.session.ids():
            for entry in self.session.history(id_):
                print(id_, entry.at, entry.to_state, entry.host, entry.info)
        for name, host in self.hosts.items():
            with suppress(subprocess.SubprocessError, OSError):  # it was ended
                print(name, *host.said()[-50:], sep="\n  ")

    def boot(self, name: str) -> None:
        """Boot a host, for the first time or again."""
        contents = installed(self._url, self._dropin, self._more)
        contents.files["etc/hostname"] = f"{name}\n"
        contents.binds[self.marks] = MARKS
        box = Box(self._folder / name, contents, has_network=True)
        self.hosts[name] = Host(self._stack.enter_context(box), self._url)
        self.network.connect(box, name, NAMES.index(name) + 2)

    def add(self, text: str) -> int:
        """Add a task whose command tells in a file when it begins and ends."""
        name = str(len(list(self.marks.iterdir())))
        # Other than those that the daemon makes, which its user alone can write.
        (self.marks / name).touch()
        (self.marks / name).chmod(0o666)
        command = f"{SHELL} mark begin; {text}; mark end"
        words = ["sh", "-c", command, f"{MARKS}/{name}"]
        return self.session.add(Task(name, command=words))

    def written(self, id_: int) -> list[Line]:
        """Return what a task's commands have written."""
        return lines(self.marks / self.session.load(id_).jobname)

    def ran_on(self, id_: int) -> list[str]:
        """Return the hosts on which a task's commands began, in order."""
        return [line.host for line in self.written(id_) if line.what == "begin"]

    def lease_ends_at(self, id_: int) -> float:
        """Return the instant at which a task's lease runs out, in seconds."""
        query = f"SELECT lease_expires_at FROM store_job WHERE job_id = {id_}"
        with self.session.transaction() as connection:
            return float(connection.exec_driver_sql(query).scalar_one()) / 1e6

    def processes(self, name: str) -> int:
        """Return how many processes a host's daemon consists of, with its commands."""
        folder = self.hosts[name].box.cgroup / "system.slice" / UNIT
        return len((folder / "cgroup.procs").read_text().split())

    def problems(self) -> Mapping[int, list[str]]:
        """Say what went wrong with each of the tasks with which something did."""
        found = {
            id_: list(problems(self.session.history(id_), self.written(id_)))
            for id_ in self.session.ids()
        }
        return {id_: said for id_, said in found.items() if said}


@pytest.fixture
def make_hosts(tmp_path: Path) -> Iterator[Callable[..., Hosts]]:
    """Make three hosts; no daemon runs yet.

    ``options`` are added to the URL, ``more`` is a line of Python to be run first, and
    ``lease`` is the daemons'.
    """
    need_boxes("ip")
    if servers.postgresql_binary("initdb") is None:
        pytest.skip("there is no PostgreSQL")
    with ExitStack() as stack:
        yield lambda **options: Hosts(stack, tmp_path, **options)
