"""What keeps a daemon from working: it says so in one line, and by its status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from daemon_example.__main__ import main
from daemon_example.settings import SettingsError, load
from sessionstore import SessionStore, Task
from tests.daemon.conftest import Cli, until
from tests.daemon.test_command_line import STORE, cli_as_nobody

pytestmark = pytest.mark.backends("sqlite")

FILES = [
    ("wrokers = 3", "unknown setting 'wrokers'", "keys, workers, attempts"),
    ("[workers]\nn = 3", "workers cannot be {'n': 3}", "a whole number of 1 to"),
    ("workers = 2.5", "workers cannot be 2.5", "a whole number of 1 to"),
    ("workers = true", "workers cannot be True", "a whole number of 1 to"),
    ("attempts = 0", "attempts cannot be 0", "a whole number of 1 to"),
    ("grace = inf", "grace cannot be inf", "a number of 0 to"),
    ("lease = 2000000", "lease cannot be 2000000", "a number of 1 to"),
    ("session = ['a']", "session cannot be ['a']", "text"),
    ("spool = 7", "spool cannot be 7", "text"),
    ("store = ['x://u:s3cret@h/d']", "store cannot be that", "text"),
    ("workers = 3 4", "no TOML", "line 1"),
    (f"workers = {'9' * 5000}", "no TOML", "4300 digits"),
    (f"workers = {'[' * 5000}", "no TOML", "recursion"),
    ('spool = "a\\u0000b"', r"spool cannot be 'a\x00b'", "text"),
    ("name = '\udcff'", "not in UTF-8", "invalid"),
]


@pytest.mark.parametrize(("content", "said", "hint"), FILES)
def test_wrong_file_is_named_with_what_is_wrong(
    content: str, said: str, hint: str, tmp_path: Path
) -> None:
    """G9: the file, the setting and what it can be, and never a password."""
    file = tmp_path / "daemon.toml"
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(SettingsError) as caught:
        load(Namespace(config=file))
    for part in (str(file), said, hint):
        assert part in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_wrong_variable_and_option_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the place where it has to be mended."""
    monkeypatch.setenv("DAEMON_EXAMPLE_LEASE", "soon")
    with pytest.raises(SettingsError, match=r"'soon' \(DAEMON_EXAMPLE_LEASE\); it"):
        load(Namespace(config=None))
    with pytest.raises(SettingsError, match=r"0.5 \(--lease\); it is a number of 1 to"):
        load(Namespace(config=None, lease=0.5))


def test_url_comes_from_a_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes before the file, and the environment before it; there may be none."""
    monkeypatch.delenv("DAEMON_EXAMPLE_STORE", raising=False)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    file = tmp_path / "daemon.toml"
    file.write_text("store = 'x://file'")
    credential = tmp_path / "store"
    options = Namespace(config=file)
    assert load(options).store == "x://file"
    credential.write_text("x://credential\n")
    assert load(options).store == "x://credential"
    monkeypatch.setenv("DAEMON_EXAMPLE_STORE", "x://environment")
    assert load(options).store == "x://environment"
    monkeypatch.delenv("DAEMON_EXAMPLE_STORE")
    credential.write_bytes(b"\xff")
    with pytest.raises(SettingsError, match=f"{credential} is not in UTF-8"):
        load(options)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nosuch://x", "nosuch"),
        ("plain/path", "sqlite:///"),
        ("sqlite://", "in-memory"),
        ("sqlite:////nowhere/at/all.db", "/nowhere/at/all.db"),
    ],
)
def test_wrong_database_ends_the_daemon_for_good(
    url: str, said: str, tmp_path: Path
) -> None:
    """By the status that systemd does not answer with a restart."""
    words = ["run", "--spool", str(tmp_path / "spool"), "--store", url]
    process = subprocess.run(
        [sys.executable, "-m", "daemon_example", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == os.EX_CONFIG, process.stderr
    [line] = process.stderr.splitlines()
    assert said in line


def test_newer_database_is_refused_and_left_as_it_is(cli: Cli) -> None:
    """With the one status, and nothing is written."""
    with SessionStore(cli.url) as session:
        session.add(Task("kept", command=["true"]))
    engine = create_engine(cli.url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE store_version SET version_num = '9999'"))
    before = content(cli.url)
    said = cli("run", status=os.EX_CONFIG)
    assert "9999" in said
    assert len(said.splitlines()) == 1
    assert content(cli.url) == before
    engine.dispose()


def content(url: str) -> list[object]:
    """Return what a database has."""
    engine = create_engine(url)
    with engine.connect() as connection:
        raw = connection.connection.dbapi_connection
        found = list(raw.iterdump())
    engine.dispose()
    return found


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")


def opened_to_all(cli: Cli, mode: int) -> None:
    """Let everybody come to the spool folder."""
    cli.spool.chmod(mode)
    for folder in cli.spool.parents:
        if "pytest" in str(folder):
            folder.chmod(0o755)


@needs_root
def test_spool_that_cannot_be_written_is_named(cli: Cli) -> None:
    """Whether it is there, or would have to be made."""
    cli.spool.mkdir()
    opened_to_all(cli, 0o755)
    for more in ([], ["--spool", str(cli.spool.parent / "other")]):
        said = cli_as_nobody(cli, "run", *more, status=os.EX_CONFIG)
        assert "the spool folder cannot be used: [Errno 13]" in said
        assert str(more[-1] if more else cli.spool) in said


@needs_root
def test_pid_file_of_another_user_is_left_alone(cli: Cli) -> None:
    """Who may write to the folder may not take it from the daemon that works on it."""
    cli("start")
    pid = cli.pid()
    opened_to_all(cli, 0o777)
    for folder in cli.spool.iterdir():
        folder.chmod(0o777 if folder.is_dir() else 0o600)
    said = cli_as_nobody(cli, "run", status=os.EX_CONFIG)
    assert f"{cli.spool}/daemon.pid" in said
    assert "another user's daemon" in said
    assert cli.pid() == pid
    assert (cli.spool / "daemon.pid").stat().st_uid == 0


def test_daemon_that_waits_for_its_database_can_be_stopped(
    tmp_path: Path, make_cli: Callable[..., Cli]
) -> None:
    """It neither ends by itself nor hangs, and its log has no password."""
    cli = make_cli(tmp_path / "spool", STORE)
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = cli.popen("run", stderr=file)
    until(lambda: log.read_text().count("waiting: ") >= 2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert "s3cret" not in log.read_text()
    assert "Traceback" not in log.read_text()


def test_session_is_there_when_a_wrong_reload_is_over(cli: Cli, tmp_path: Path) -> None:
    """A setting that is wrong when it is read again changes nothing."""
    file = tmp_path / "daemon.toml"
    file.write_text("workers = 1")
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = cli.popen("run", "--config", str(file), stderr=stderr)
    until(lambda: "tasks: " in log.read_text())
    file.write_text("workers = 'many'")
    process.send_signal(signal.SIGHUP)
    until(lambda: "the old settings stay: workers cannot be 'many'" in log.read_text())
    with SessionStore(cli.url, create=False) as session:
        id_ = session.add(Task("", command=["true"]))
        until(lambda: session.history(id_)[-1].to_state == "TERMINATED")
    assert main(["stop", "--spool", str(cli.spool)]) == 0
    assert process.wait(60) == 0
