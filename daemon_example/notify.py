"""Telling systemd how the service is, as sd_notify(3) has it."""

from __future__ import annotations

import os
import socket
import time


def notify(**variables: object) -> None:
    """Send variables such as READY=1 to the service manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket's name begins with NUL
        address = "\0" + address[1:]
    text = "\n".join(f"{name}={value}" for name, value in variables.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto(text.encode(), address)


def monotonic_usec() -> int:
    """Return the instant that a reload has to be stamped with."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
