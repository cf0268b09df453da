"""Telling systemd how the service is, by sd_notify(3) and sd-daemon(3)."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(**variables: object) -> None:
    """Send variables such as READY=1 to the service manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket's name begins with NUL
        address = "\0" + address[1:]
    text = "\n".join(f"{name}={value}" for name, value in variables.items())
    # A manager that does not listen must not stop the work.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(text.encode(), address)


def priority(number: int) -> str:
    """Return a prefix by which the journal gives a line on stderr a priority."""
    with suppress(OSError):
        stderr = os.fstat(2)
        # So systemd.exec(5) says how to know that stderr is still the journal's.
        if os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}":
            return f"<{number}>"
    return ""
