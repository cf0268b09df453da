"""A box that has the daemon, as if it were installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

from sessionstore import SessionStore
from tests.systemd import box
from tests.systemd.box import Box, Contents

ROOT = Path(__file__).parent.parent.parent
UNIT = "daemon-example.service"
SPOOL = "var/lib/daemon-example"
CONFIG = "etc/daemon-example/daemon-example.toml"
#: The database's URL, in a line of the environment, or as a credential.
ENVIRONMENT = "etc/daemon-example/daemon-example.env"
CREDENTIAL = "etc/credstore/daemon-example.store"
_TEMPLATE = "daemon-example@.service"
#: Where that goes which the project has for systemd.
_DELIVERED = {
    **{
        name: f"etc/systemd/system/{name}"
        for name in (UNIT, _TEMPLATE, f"{_TEMPLATE}.d/00-daemon-example.conf")
    },
    "daemon-example.toml": CONFIG,
    "sysusers.conf": "etc/sysusers.d/daemon-example.conf",
}
#: What an installed package has for a command, but that it is found elsewhere.
_COMMAND = """\
#!{python}
import sys
sys.path[:0] = ["/opt/project", "/opt/packages"]
{more}
from daemon_example.__main__ import main
sys.exit(main())
"""


def installed(url: str = "", dropin: str = "", more: str = "") -> Contents:
    """Return what a box has in which the daemon is installed.

    ``dropin`` is added to the unit; ``more`` is a line of Python to be run first.
    """
    contents = Contents()
    contents.binds[ROOT] = "/opt/project"
    contents.binds[Path(psutil.__file__).parent.parent] = "/opt/packages"
    base = Path(sys.base_prefix)
    python = Path(sys._base_executable)  # type: ignore[attr-defined]
    if base != Path("/usr"):
        # It may be in a home, which the unit does not let the daemon see.
        contents.binds[base] = "/opt/python"
        python = Path("/opt/python") / python.relative_to(base)
        contents.files["etc/ld.so.conf.d/python.conf"] = "/opt/python/lib\n"
    command = _COMMAND.format(python=python, more=more)
    contents.files["opt/daemon-example/bin/daemon-example"] = command
    for name, place in _DELIVERED.items():
        contents.files[place] = (ROOT / "systemd" / name).read_text()
    contents.commands.append("systemd-sysusers")
    contents.files[f"etc/systemd/system/{UNIT}.d/test.conf"] = dropin
    if url:
        contents.files[ENVIRONMENT] = f"DAEMON_EXAMPLE_STORE='{url}'\n"
    return contents


class Host:
    """A box that has the daemon, and how its unit fares there."""

    def __init__(self, box: Box, url: str) -> None:
        self.box = box
        self.url = url
        self.spool = box.root / SPOOL

    def session(self) -> SessionStore:
        """Return the daemon's session."""
        return SessionStore(self.url)

    def show(self, name: str, unit: str = UNIT) -> str:
        """Return a property of a unit."""
        return self.box.systemctl("show", "--value", f"--property={name}", unit).strip()

    def restarts(self) -> int:
        """Return how often systemd started the daemon again by itself."""
        return int(self.show("NRestarts"))

    def signal(self, name: str) -> None:
        """Send a signal to the daemon, and not to its workers."""
        self.box.systemctl("kill", "--kill-whom=main", f"--signal={name}", UNIT)

    def said(self) -> list[str]:
        """Return the lines that the daemon wrote to the journal."""
        said = self.box.journal("--output=cat", "--identifier=daemon-example")
        return said.splitlines()


def need_boxes(*programs: str) -> None:
    """Skip the test, or fail it in CI, where there can be no box."""
    if why := box.missing(*programs):
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
