"""A network that only the test and its boxes are on."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


class Place(Protocol):
    """What has a network namespace of its own, such as a box."""

    pid: int

    def run(self, *command: str) -> str:
        """Run a program there, and return what it printed."""


@dataclass
class Namespace:
    """Nothing but a network namespace."""

    pid: int

    def run(self, *command: str) -> str:
        """Run a program there, and return what it printed."""
        enter = ["nsenter", f"--target={self.pid}", "--net", "--", *command]
        return subprocess.run(enter, check=True, capture_output=True, text=True).stdout

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have the calling thread there; its sockets stay there when it leaves."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        there = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _checked(_LIBC.setns(there, _CLONE_NEWNET))
            yield
        finally:
            _checked(_LIBC.setns(before, _CLONE_NEWNET))
            os.close(before)
            os.close(there)


@contextmanager
def namespace() -> Iterator[Namespace]:
    """Make one; it vanishes with the block, and with this process."""
    # cat(1) tells that it is there, and ends when nobody can write to it any more.
    command = ["unshare", "--net", "sh", "-c", "echo; exec cat"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield Namespace(process.pid)


class Network:
    """The calling thread, and what it starts, is there until the block's end.

    It vanishes when the last process that is in it ends.
    """

    #: The test's own.
    ADDRESS = "10.77.0.1"

    def __init__(self) -> None:
        self._before: int

    def __enter__(self) -> Network:
        self._before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        _checked(_LIBC.unshare(_CLONE_NEWNET))
        _ip("link set lo up")
        _ip("link add switch type bridge")
        _ip(f"address add {self.ADDRESS}/24 dev switch")
        _ip("link set switch up")
        return self

    def __exit__(self, *exception: object) -> None:
        _checked(_LIBC.setns(self._before, _CLONE_NEWNET))
        os.close(self._before)

    def connect(self, place: Place, name: str, number: int) -> None:
        """Join a place by a cable that has a name, and give it an address."""
        # There may be one that led to a box that has ended.
        subprocess.run(["ip", "link", "delete", name], capture_output=True, check=False)
        _ip(f"link add {name} type veth peer name eth0 netns {place.pid}")
        _ip(f"link set {name} master switch up")
        place.run("ip", "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
        place.run("ip", "link", "set", "eth0", "up")

    def cut(self, name: str) -> None:
        """Cut a cable: what is sent is lost, and nobody is told so."""
        _ip(f"link set {name} down")

    def mend(self, name: str) -> None:
        """Undo that."""
        _ip(f"link set {name} up")


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
