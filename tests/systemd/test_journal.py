"""What the daemon says, in the journal of a real systemd."""

from __future__ import annotations

from collections.abc import Callable

from tests.daemon.conftest import until
from tests.systemd.host import CONFIG, UNIT, Host


def test_journal_tells_priorities(make_host: Callable[..., Host]) -> None:
    """Each line has its own, so that ``journalctl -p`` finds what is amiss."""
    host = make_host()

    def said(priority: str) -> str:
        which = [f"--priority={priority}", "--identifier=daemon-example"]
        return host.box.journal("--output=cat", *which)

    host.box.systemctl("start", UNIT)
    (host.box.root / CONFIG).write_text("wrokers = 3\n")
    host.box.systemctl("reload", UNIT)
    until(lambda: said("err").startswith("ERROR the old settings stay: "))
    assert "INFO tasks: no tasks\n" in said("info..info")
    host.box.systemctl("stop", UNIT)
    host.box.systemctl("start", UNIT, status=1)
    until(lambda: "\ndaemon-example: /etc/daemon-example/" in said("err"))
    assert "INFO" not in said("warning")
