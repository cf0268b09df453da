"""Messages from a cell's processes to the stage, whatever becomes of descriptors.

A datagram needs only a path: nothing is held open that python-daemon could close, a
killed process could keep, or a count of descriptors would show.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

__all__ = ["Wire", "ask", "tell"]


class Wire:
    """The stage's end."""

    def __init__(self, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(_address(folder))

    def receive(self, timeout: float) -> tuple[dict[str, Any], str] | None:
        """Return the next message and whom to answer, None after the timeout."""
        self._socket.settimeout(timeout)
        try:
            message, sender = self._socket.recvfrom(65536)
        except TimeoutError:
            return None
        return json.loads(message), sender

    def answer(self, sender: str) -> None:
        """Let one who asked go on."""
        self._socket.sendto(b"go on", sender)

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


def _address(folder: Path) -> str:
    return str(folder / "wire")


def tell(folder: Path, **message: object) -> None:
    """Send one message."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(json.dumps(message).encode(), _address(folder))


def ask(folder: Path, **message: object) -> None:
    """Send one message, and wait until the stage has done what it asks for."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.bind(str(folder / f"{os.getpid()}"))
        sender.sendto(json.dumps(message).encode(), _address(folder))
        sender.recv(100)
