"""A box that has the daemon, as if it were installed."""

from __future__ import annotations

import os
import re
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
#: What an installed package has for a command, but that it is found elsewhere.
_COMMAND = """\
#!{python}
import sys
sys.path[:0] = ["/opt/project", "/opt/packages"]
{more}
from daemon_example.__main__ import main
sys.exit(main())
"""


_TEXT = (ROOT / "systemd" / UNIT).read_text().replace("%N", "daemon-example")
_USER = re.search("^User=(.+)$", _TEXT, re.MULTILINE)
#: Where the unit has the database's URL from.
ENVIRONMENT = re.findall("^EnvironmentFile=-/(.+)$", _TEXT, re.MULTILINE)[0]


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
    if _USER:
        user = f"u {_USER[1]} - - /"
        contents.commands.append(f"systemd-sysusers --inline '{user}'")
    command = _COMMAND.format(python=python, more=more)
    contents.files["opt/daemon-example/bin/daemon-example"] = command
    unit = f"etc/systemd/system/{UNIT}"
    contents.files[unit] = (ROOT / "systemd" / UNIT).read_text()
    contents.files[f"{unit}.d/test.conf"] = dropin
    for settings in re.findall("--config /(.+)$", _TEXT, re.MULTILINE):
        contents.files[settings] = ""
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
