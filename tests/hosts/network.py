"""A network that only the test and its boxes are on."""

from __future__ import annotations

import ctypes
import os
import subprocess
from types import TracebackType

from tests.systemd.box import Box

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _checked(_LIBC.setns(self._before, _CLONE_NEWNET))
        os.close(self._before)

    def connect(self, box: Box, name: str, number: int) -> None:
        """Join a box by a cable that has a name, and give it an address."""
        # There may be one that led to a box that has ended.
        subprocess.run(["ip", "link", "delete", name], capture_output=True, check=False)
        _ip(f"link add {name} type veth peer name eth0 netns {box.pid}")
        _ip(f"link set {name} master switch up")
        box.run("ip", "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
        box.run("ip", "link", "set", "eth0", "up")

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
