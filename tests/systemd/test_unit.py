"""The daemon's unit under a real systemd: its life, and what befalls it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from sessionstore import SessionStore, State, Task
from sessionstore.serializers import PickleSerializer, SignedSerializer, new_key
from tests import servers
from tests.daemon.conftest import all_ended, begun, states, until
from tests.daemon.test_outage import opened
from tests.systemd.host import CONFIG, CREDENTIAL, ENVIRONMENT, UNIT, Host

RUN = ["SUBMITTED", "RUNNING"]
END = ["TERMINATING", "TERMINATED"]


@pytest.fixture
def url(make_database: Callable[[str], str]) -> str:
    """An empty database, on a server, so that the tests see it too."""
    return make_database("postgresql")


def dropin(more: str = "", **settings: object) -> str:
    """Return what the tests change in the unit, to be quicker."""
    lines = [f"Environment=DAEMON_EXAMPLE_{k.upper()}={v}" for k, v in settings.items()]
    return "\n".join(["[Service]", "RestartSec=100ms", *lines, more, ""])


def shell(text: str) -> Task:
    """Return a task that runs a shell command, in the spool folder."""
    return Task("", command=["sh", "-c", f"cd /var/lib/daemon-example; {text}"])


def killed_once(mark: str) -> Task:
    """Return one that waits for ever, and when run again for nothing.

    It fails if a process of its first run is still there.
    """
    again = f"! grep -s '^State:.[^Z]' /proc/$(cat {mark})/status"
    return shell(f"if [ -s {mark} ]; then {again}; exit; fi; echo $$ >{mark}; sleep 99")


def make_gate(host: Host) -> Path:
    """Make a FIFO in the spool folder, by which commands wait for the test."""
    gate = host.spool / "gate"
    os.mkfifo(gate)
    gate.chmod(0o666)
    return gate


def test_start_returns_when_the_daemon_is_ready(
    make_host: Callable[..., Host], url: str
) -> None:
    """That is when its first write is committed."""
    host = make_host(url)
    host.session().close()
    with psycopg.connect(url.replace("+psycopg", "")) as blocking:
        blocking.execute("LOCK TABLE store IN EXCLUSIVE MODE")
        start = host.box.popen("systemctl", "start", UNIT)

        def is_blocked() -> bool:
            with psycopg.connect(url.replace("+psycopg", "")) as connection:
                query = "SELECT 1 FROM pg_locks WHERE NOT granted"
                return connection.execute(query).fetchone() is not None

        until(is_blocked)
        assert start.poll() is None
        assert host.show("ActiveState") == "activating"
        blocking.rollback()
    assert (start.communicate(timeout=40), start.returncode) == (("", None), 0)
    assert host.show("ActiveState") == "active"


def test_status_tells_tasks_by_state(make_host: Callable[..., Host], url: str) -> None:
    """In the words of the daemon's STATUS line."""
    host = make_host(url)
    host.box.systemctl("start", UNIT)
    until(lambda: 'Status: "no tasks"' in host.box.systemctl("status", UNIT))
    with host.session() as session:
        session.add_many([shell("true"), shell("exec sleep 300")])
        status = 'Status: "1 RUNNING, 1 TERMINATED"'
        until(lambda: status in host.box.systemctl("status", UNIT))


def test_daemon_needs_no_settings(make_host: Callable[..., Host]) -> None:
    """Without any it works on an SQLite file, and takes jobs from its spool folder."""
    host = make_host()
    host.box.systemctl("start", UNIT)
    command = ["/opt/daemon-example/bin/daemon-example"]
    where = ["--spool", "/var/lib/daemon-example"]
    id_ = host.box.run(*command, "submit", *where, "--", "echo", "one").strip()
    (host.spool / "new" / "x").write_text('command = ["echo", "two"]')
    (host.spool / "new" / "x").rename(host.spool / "new" / "x.toml")
    until(lambda: host.show("StatusText") == "2 TERMINATED")
    shown = host.box.run(*command, "show", *where, id_)
    assert "\nstate\tTERMINATED\nreturncode\t0\n" in shown
    assert sorted(outputs(host)) == ["one\n", "two\n"]


def test_instances_share_the_work(make_host: Callable[..., Host], url: str) -> None:
    """Each has settings and a spool folder of its own."""
    names = ["daemon-example@one", "daemon-example@two"]
    lines = f"DAEMON_EXAMPLE_STORE='{url}'\nDAEMON_EXAMPLE_WORKERS=1\n"
    files = {f"etc/daemon-example/{name}.env": lines for name in names}
    files |= {f"etc/daemon-example/{name}.toml": "grace = 0" for name in names}
    host = make_host(files=files)
    host.box.systemctl("start", *names)
    with SessionStore(url) as session:
        ids = session.add_many(Task("", command=["sleep", "300"]) for _ in names)
        until(lambda: session.counts() == {State.RUNNING: 2})
        places = {Path(task.output).parent for task in session.load_many(ids).values()}
        assert places == {Path(f"/var/lib/{name}/output") for name in names}
        host.box.systemctl("stop", *names)
        assert all_ended(session)


def test_reload_changes_the_number_of_workers(
    make_host: Callable[..., Host], url: str
) -> None:
    """The daemon stays the same, and its running tasks too."""
    host = make_host(url, files={CONFIG: "workers = 1"})
    host.box.systemctl("start", UNIT)
    pid = host.show("MainPID")
    with host.session() as session:
        one, two, _ = session.add_many(shell("exec sleep 300") for _ in range(3))
        until(lambda: host.show("StatusText") == "2 NEW, 1 RUNNING")
        (host.box.root / CONFIG).write_text("workers = 2")
        host.box.systemctl("reload", UNIT)
        until(lambda: host.show("StatusText") == "1 NEW, 2 RUNNING")
        assert states(session, one) == states(session, two) == ["NEW", *RUN]
        (host.box.root / CONFIG).write_text("worker = 3")
        host.box.systemctl("reload", UNIT)
        until(lambda: any("'worker'" in line for line in host.said()))
        assert "settings stay" in "".join(host.said())
    assert (host.show("MainPID"), host.show("ActiveState")) == (pid, "active")


def test_stop_lets_tasks_end(make_host: Callable[..., Host], url: str) -> None:
    """It is over when they have; none is begun any more."""
    host = make_host(url, dropin(workers=1, grace=50))
    host.box.systemctl("start", UNIT)
    gate = make_gate(host)
    with host.session() as session:
        one, two = session.add_many(shell("read line <gate") for _ in range(2))
        until(lambda: states(session, one)[-1] == "RUNNING")
        stop = host.box.popen("systemctl", "stop", UNIT)
        until(lambda: any("stopping" in line for line in host.said()))
        assert stop.poll() is None
        gate.write_text("line\n")
        assert (stop.communicate(timeout=40)[0], stop.returncode) == ("", 0)
        assert states(session, one) == ["NEW", *RUN, *END]
        assert states(session, two) == ["NEW"]
    assert (host.show("ActiveState"), host.show("Result")) == ("inactive", "success")


def test_stop_leaves_tasks_truthful(make_host: Callable[..., Host], url: str) -> None:
    """What does not end in time is ended, by the daemon, which records it."""
    host = make_host(url, dropin(grace=0))
    host.box.systemctl("start", UNIT)
    with host.session() as session:
        id_ = session.add(shell("exec sleep 300"))
        until(lambda: states(session, id_)[-1] == "RUNNING")
        host.box.systemctl("stop", UNIT)
        last = session.history(id_)[-1]
        assert (last.to_state, last.returncode) == (State.TERMINATED, signal.SIGTERM)
    assert (host.show("ActiveState"), host.show("Result")) == ("inactive", "success")
    assert not list(host.box.cgroup.glob(f"system.slice/{UNIT}"))


def test_shutdown_leaves_tasks_truthful(
    make_host: Callable[..., Host], url: str
) -> None:
    """When the host goes down the daemon gets its time to stop."""
    host = make_host(url, dropin(grace=0))
    host.box.systemctl("start", UNIT)
    with host.session() as session:
        id_ = session.add(shell("exec sleep 300"))
        until(lambda: states(session, id_)[-1] == "RUNNING")
        host.box.shut_down()
        last = session.history(id_)[-1]
        assert (last.to_state, last.returncode) == (State.TERMINATED, signal.SIGTERM)


def test_restart_goes_on_with_the_tasks(
    make_host: Callable[..., Host], url: str
) -> None:
    """Those that ran were ended and recorded; those that waited are run."""
    host = make_host(url, dropin(workers=1, grace=0))
    host.box.systemctl("start", UNIT)
    pid = host.show("MainPID")
    with host.session() as session:
        running, waiting = session.add_many([shell("exec sleep 300"), shell("true")])
        until(lambda: states(session, running)[-1] == "RUNNING")
        host.box.systemctl("restart", UNIT)
        until(lambda: all_ended(session))
        assert states(session, running) == ["NEW", *RUN, *END]
        assert states(session, waiting) == ["NEW", *RUN, *END]
    assert host.show("MainPID") != pid
    assert host.restarts() == 0


def test_killed_daemon_is_restarted_and_goes_on(
    make_host: Callable[..., Host], url: str
) -> None:
    """G6: what it ran is run again, after the old command has ended; none is lost."""
    host = make_host(url, dropin(workers=2))
    host.box.systemctl("start", UNIT)
    with host.session() as session:
        ids = session.add_many(killed_once(name) for name in ("one", "two"))
        later = session.add(shell("true"))
        until(lambda: session.counts() == {State.RUNNING: 2, State.NEW: 1})
        until(lambda: begun(host.spool / "one") and begun(host.spool / "two"))
        host.signal("KILL")
        until(lambda: all_ended(session))
        for id_ in ids:
            assert states(session, id_) == ["NEW", *RUN, "UNKNOWN", *RUN, *END]
            assert session.history(id_)[-1].returncode == 0
        assert states(session, later) == ["NEW", *RUN, *END]
    assert host.restarts() == 1
    assert host.show("ActiveState") == "active"


def test_hanging_daemon_is_killed_by_the_watchdog(
    make_host: Callable[..., Host], url: str
) -> None:
    """It is restarted, and each of its tasks comes to its end."""
    host = make_host(url, dropin("WatchdogSec=5"))
    host.box.systemctl("start", UNIT)
    with host.session() as session:
        id_ = session.add(killed_once("one"))
        until(lambda: begun(host.spool / "one"))
        until(lambda: states(session, id_)[-1] == "RUNNING")
        host.signal("STOP")
        until(lambda: all_ended(session))
        assert states(session, id_) == ["NEW", *RUN, "UNKNOWN", *RUN, *END]
        assert session.history(id_)[-1].returncode == 0
    assert host.restarts() == 1
    assert "Watchdog timeout" in host.box.journal()


needs_postgresql = pytest.mark.skipif(
    servers.postgresql_binary("initdb") is None, reason="there is no PostgreSQL"
)


@needs_postgresql
def test_database_that_goes_away_restarts_nothing(
    make_host: Callable[..., Host],
) -> None:
    """G1: the daemon says that it waits, for longer than a watchdog's patience."""
    server = servers.start_postgresql()
    try:
        # The daemon's pauses become 5 seconds long.
        host = make_host(server.url, dropin("WatchdogSec=10"))
        host.box.systemctl("start", UNIT)
        pid, gate = host.show("MainPID"), make_gate(host)
        with host.session() as session:
            id_ = session.add(shell("read line <gate"))
            until(lambda: states(session, id_)[-1] == "RUNNING")
        server.kill()
        killed_at = time.monotonic()
        gate.write_text("line\n")
        until(lambda: host.show("StatusText").startswith("waiting: "))
        # It is fed still when it would have bitten.
        fed_at = "WatchdogTimestampMonotonic"
        until(lambda: int(host.show(fed_at)) / 1e6 > killed_at + 11)
        assert host.show("ActiveState") == "active"
        server.start_again()
        with opened(server.url) as session:
            later = session.add(shell("true"))
            until(lambda: all_ended(session))
            assert states(session, id_) == ["NEW", *RUN, *END]
            assert states(session, later) == ["NEW", *RUN, *END]
        until(lambda: host.show("StatusText") == "2 TERMINATED")
        assert (host.show("MainPID"), host.restarts()) == (pid, 0)
    finally:
        server.stop()


@needs_postgresql
def test_database_that_is_away_at_the_start_is_waited_for(
    make_host: Callable[..., Host],
) -> None:
    """By the daemon itself, which says so; nothing is restarted."""
    server = servers.start_postgresql()
    try:
        host = make_host(server.url)
        with host.session() as session:
            id_ = session.add(shell("true"))
        server.kill()
        host.box.systemctl("start", "--no-block", UNIT)
        until(lambda: host.show("StatusText").startswith("waiting: "))
        assert host.show("ActiveState") == "activating"
        server.start_again()
        until(lambda: host.show("ActiveState") == "active")
        with opened(server.url) as session:
            until(lambda: states(session, id_)[-1] == "TERMINATED")
        assert host.restarts() == 0
    finally:
        server.stop()


GATES = [f"{name}.service" for name in ("wait-online", "postgresql", "mariadb")]


@pytest.mark.parametrize("last", GATES)
def test_unit_starts_after_the_network_and_the_databases(
    make_host: Callable[..., Host], last: str
) -> None:
    """Enabled, it is started at the boot, when the last of those is there."""
    files = {
        f"etc/systemd/system/{name}": "[Service]\nType=oneshot\nRemainAfterExit=yes\n"
        f"ExecStart=/bin/sh -c 'read line <%t/{name}'\n"
        "[Install]\nWantedBy=multi-user.target\n"
        for name in GATES
    }
    online = "[Unit]\nBefore=network-online.target\n"
    files["etc/systemd/system/wait-online.service.d/online.conf"] = online
    names = " ".join(GATES)
    commands = [
        f"SYSTEMD_OFFLINE=1 systemctl enable {UNIT} {names}",
        f"cd /run; mkfifo {names}",
    ]
    host = make_host(files=files, commands=commands, target="multi-user.target")
    until(lambda: is_waiting(host))
    for name in set(GATES) - {last}:
        (host.box.root / "run" / name).write_text("line\n")
        until(lambda gate=name: host.show("ActiveState", gate) == "active")
    assert is_waiting(host)
    (host.box.root / "run" / last).write_text("line\n")
    until(lambda: host.show("ActiveState", "multi-user.target") == "active")
    assert host.show("ActiveState") == "active"


def is_waiting(host: Host) -> bool:
    """Tell whether systemd is to start the daemon, and has not begun to."""
    jobs = host.box.systemctl("list-jobs", "--no-legend")
    return [UNIT, "start", "waiting"] in [
        line.split()[1:] for line in jobs.splitlines()
    ]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        (ENVIRONMENT, "DAEMON_EXAMPLE_WORKERS=many", "many"),
        (ENVIRONMENT, "DAEMON_EXAMPLE_STORE=oracel://x/y", "oracel"),
        (CONFIG, "worker = 3", "'worker'"),
        (CONFIG, "workers = ", "no TOML"),
    ],
)
def test_wrong_configuration_is_told_once(
    make_host: Callable[..., Host], file: str, text: str, said: str
) -> None:
    """In one line of the journal, and by a status that stops the restarts."""
    host = make_host(files={file: text})
    host.box.systemctl("start", UNIT, status=1)
    assert (host.show("ActiveState"), host.restarts()) == ("failed", 0)
    assert host.show("ExecMainStatus") == str(os.EX_CONFIG)
    [line] = host.said()
    assert said in line
    assert line in host.box.systemctl("status", UNIT, status=3)


@pytest.mark.parametrize("file", [ENVIRONMENT, CREDENTIAL])
def test_password_is_nowhere_to_be_seen(
    make_host: Callable[..., Host], url: str, file: str
) -> None:
    """G9: not in the journal, nor in what systemd or /proc tell to everybody."""
    variable = "DAEMON_EXAMPLE_STORE=" if file == ENVIRONMENT else ""
    host = make_host("", dropin(grace=0), files={file: variable + url})
    host.box.systemctl("start", UNIT)
    with SessionStore(url) as session:
        id_ = session.add(shell("env; exec sleep 300"))
        until(lambda: states(session, id_)[-1] == "RUNNING")
    shown = [host.box.systemctl(*words) for words in (["show", UNIT], ["status", UNIT])]
    shown += [host.box.systemctl("show-environment"), host.box.systemctl("show")]
    lines = host.box.run("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert "sleep 300" in lines
    host.box.systemctl("stop", UNIT)
    wrong = url.replace("@127.0.0.1", "x@127.0.0.1")
    (host.box.root / file).write_text(variable + wrong)
    host.box.systemctl("start", "--no-block", UNIT)
    until(lambda: any("password authentication" in line for line in host.said()))
    shown += [lines, host.box.journal("--output=json"), *outputs(host)]
    quoted = quote(servers.PASSWORD, safe="")
    for text in shown:
        assert servers.PASSWORD not in text
        assert quoted not in text


def test_keys_are_a_credential(make_host: Callable[..., Host], url: str) -> None:
    """With them a task that was written into the database without runs nothing."""
    key = new_key()
    keys = CREDENTIAL.replace(".store", ".keys")
    host = make_host(url, dropin(), files={keys: key})
    signed = SignedSerializer(PickleSerializer(), [key])
    with SessionStore(url) as forger, SessionStore(url, serializer=signed) as session:
        forged, good = forger.add(shell("echo one")), session.add(shell("echo two"))
        host.box.systemctl("start", UNIT)
        until(lambda: states(session, good)[-1] == "TERMINATED")
        assert [error.id for error in session.unreadable()] == [forged]
        assert outputs(host) == ["two\n"]
    assert key not in host.box.journal("--output=json") + host.box.systemctl(
        "show", UNIT
    )


def outputs(host: Host) -> list[str]:
    """Return what the commands have written."""
    return [path.read_text() for path in (host.spool / "output").iterdir()]
