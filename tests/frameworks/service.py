"""A framework's processes, and the clients that keep all of its workers busy."""

from __future__ import annotations

import functools
import http.client
import json
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from tests.servers import end_with_parent

ROOT = Path(__file__).parent.parent.parent
#: What a worker said of one request, as ``application.handle`` returns it.
Answer = dict[str, Any]


def until(condition: Callable[[], object], timeout: float = 40) -> None:
    """Wait for a condition, with a bound."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


class Service:
    """One master process with its workers, in a folder of its own."""

    def __init__(
        self, command: Sequence[str], folder: Path, url: str, **environment: str
    ) -> None:
        self.folder = folder
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "APPLICATION_STORE": url,
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=functools.partial(end_with_parent, signal.SIGTERM),
            )

    @property
    def pid(self) -> int:
        """The master's PID."""
        return self.process.pid

    @property
    def socket(self) -> Path:
        """Where a web server listens."""
        return self.folder / "socket"

    @property
    def log(self) -> str:
        """What all of its processes printed."""
        return (self.folder / "log").read_text(errors="replace")

    def ask(self, name: str) -> Answer:
        """Send one HTTP request, and return the answer with its ``status``."""
        connection = _UnixConnection(str(self.socket))
        try:
            connection.request("GET", f"/{name}")
            response = connection.getresponse()
            return {**json.loads(response.read()), "status": response.status}
        finally:
            connection.close()

    def wait_for_socket(self) -> None:
        """Return as soon as the web server listens."""

        def listens() -> bool:
            assert self.process.poll() is None, "the server ended early"
            with socket.socket(socket.AF_UNIX) as probe:
                return probe.connect_ex(str(self.socket)) == 0

        until(listens)

    def stop(self) -> None:
        """End the service as its operator would; it must end well, and quietly."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0
        assert "Traceback" not in self.log

    def kill(self) -> None:
        """End whatever is left of the service."""
        if self.process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=40)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def drive(
    ask: Callable[[str], Answer], enough: Callable[[list[Answer]], bool]
) -> list[Answer]:
    """Ask from several threads at once, until the answers are enough."""
    answers: list[Answer] = []
    deadline = time.monotonic() + 40

    def client() -> None:
        while not enough(answers):
            assert time.monotonic() < deadline, f"not enough: {answers}"
            answers.append(ask(uuid.uuid4().hex))

    with ThreadPoolExecutor(6) as clients:
        for done in [clients.submit(client) for _ in range(6)]:
            done.result()
    return answers


def drive_past_a_kill(
    service: Service, workers: int
) -> tuple[list[Answer], list[Answer]]:
    """Keep a web server's workers busy, before and after one of them is killed."""

    def all_answered(answers: list[Answer]) -> bool:
        return len(answered_by(answers, 5)) == workers

    before = drive(service.ask, all_answered)
    killed = before[0]["pid"]
    os.kill(killed, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(killed))
    after = drive(service.ask, all_answered)
    assert killed not in answered_by(after, 1)
    return before, after


def answered_by(answers: Sequence[Answer], each: int) -> set[int]:
    """Return the PIDs of the workers that gave at least so many answers."""
    pids = [answer["pid"] for answer in answers]
    return {pid for pid in pids if pids.count(pid) >= each}
