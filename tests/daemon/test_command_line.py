"""What is typed: one line and a status for every mistake, and nothing lost."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from daemon_example import instance
from daemon_example.__main__ import main
from daemon_example.service import LogFile
from sessionstore import SessionStore
from tests.daemon.conftest import Cli, until

pytestmark = pytest.mark.backends("sqlite")

STORE = "postgresql+psycopg://u:s3cret@127.0.0.1:1/d"
BAD = [
    ([], 2, "required"),
    (["fly"], 2, "invalid choice"),
    (["submit"], 2, "required"),
    (["submit", "ls", "-l"], 2, "unrecognized arguments: -l"),
    (["show", "seven"], 2, "valid integer"),
    (["show"], 2, "required: ID"),
    (["show", "7", "8"], 2, "unrecognized arguments: 8"),
    (["list", "7"], 2, "unrecognized arguments: 7"),
    (["run", "--workers", "x"], 2, "invalid int"),
    (["run", "--workers", "0"], 78, "workers"),
    (["run", "--grace", "nan"], 78, "grace"),
    (["run", "--lease", "nan"], 78, "lease"),
    (["run", "--lease", "0.5"], 78, "lease"),
    (["redo"], 2, "required: ID"),
    (["redo", "-7"], 1, "no SQLite database"),
    (["cancel", "7"], 1, "no SQLite database"),
    (["list", "--store", "nosuch://x"], 1, "nosuch"),
    (["list", "--store", "plain/path"], 1, "sqlite:///"),
    (["list", "--store", STORE], 1, "cannot be reached"),
    (["list"], 1, "no SQLite database"),
    (["show", "7"], 1, "no SQLite database"),
    (["check"], 1, "no session 'default'"),
    (["start", "--spool", "file"], 78, "file"),
    (["start", "--spool", "file/spool"], 78, "file/spool"),
    (["submit", "--spool", "\udcff", "true"], 78, r"spool cannot be '\udcff'"),
    (["run", "--config", "nowhere"], 78, "cannot read"),
    (["run", "--config", "file"], 78, "no TOML"),
    (["run", "--config", "misspelt"], 78, "unknown setting 'wrokers'"),
    (["run", "--config", "wrong"], 78, "workers cannot be 'many'"),
]


@pytest.mark.parametrize(("words", "status", "said"), BAD)
def test_bad_input_is_one_line_and_a_status(
    words: list[str],
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """G9: status 2 for usage, 78 for settings, else 1; no traceback, no password."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("[")
    Path("misspelt").write_text("wrokers = 3")
    Path("wrong").write_text('workers = "many"')
    try:
        code = main(words)
    except SystemExit as error:
        code = error.code
    out, err = capfd.readouterr()
    assert (code, out) == (status, "")
    assert said in err
    assert len(err.splitlines()) == 1
    assert "s3cret" not in err


@pytest.mark.parametrize(
    ("module", "extra", "words"), [("daemon", "daemon", []), ("rich", "cli", ["list"])]
)
def test_missing_extra_is_named(module: str, extra: str, words: list[str]) -> None:
    """Installed without its extra, the script says what to install."""
    code = (
        f"import sys, runpy; sys.modules[{module!r}] = None\n"
        "runpy.run_module('daemon_example', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert f"pip install 'sessionstore[{extra}]'" in done.stderr


def test_any_command_line_can_be_submitted(cli: Cli) -> None:
    """Dashes, no text, and bytes that are no text come through as they are."""
    commands = [["sh", "-c", "x", "--", "-y"], ["--"], [""], ["é\n\x1b[31m", "\udcff"]]
    ids = [int(cli("submit", "--", *map(os.fsencode, words))) for words in commands]
    session = cli.session()
    assert [session.load(id_).command for id_ in ids] == commands
    last = cli("list").splitlines()[-1]
    assert last.endswith(r"é\n\x1b[31m")
    assert r"\udcff" in cli("show", str(ids[-1]))


@pytest.mark.parametrize("command", ["list", "status", "stop"])
def test_reader_that_goes_away_is_no_error(cli: Cli, command: str) -> None:
    """``list | head -1`` says nothing on stderr."""
    cli("submit", "--", "true")
    cli.environment["PYTHONUNBUFFERED"] = ""
    reader, writer = os.pipe()
    os.close(reader)
    process = cli.popen(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    said = process.communicate(timeout=60)[1]
    assert (said, process.returncode) == (b"", 1)


@pytest.mark.parametrize("command", ["list", "status", "stop"])
def test_output_that_cannot_be_written_is_told_of(cli: Cli, command: str) -> None:
    """In one line, and by the status."""
    cli("submit", "--", "true")
    cli.environment["PYTHONUNBUFFERED"] = ""
    with open("/dev/full", "w") as full:
        process = cli.popen(command, stdout=full, stderr=subprocess.PIPE)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 1
    assert len(said.splitlines()) == 1
    assert "No space left on device" in said


def test_spool_can_have_any_name(
    tmp_path: Path, make_cli: Callable[[Path, str], Cli]
) -> None:
    """Also one that means something in a URL: the tasks are in it all the same."""
    cli = make_cli(tmp_path / "50%41 é?#", "")
    cli("submit", "--", "true")
    assert [path.name for path in cli.spool.iterdir()] == ["tasks.db"]
    assert list(tmp_path.iterdir()) == [cli.spool]


def test_log_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    """It is made anew when its folder is there again."""
    folder = tmp_path / "spool"
    folder.mkdir()
    log = LogFile(folder / "daemon.log")
    folder.rename(tmp_path / "away")
    log.handle(logging.makeLogRecord({"msg": "lost"}))
    folder.mkdir()
    log.handle(logging.makeLogRecord({"msg": "kept"}))
    log.close()
    assert (folder / "daemon.log").read_text() == "kept\n"


def test_one_daemon_for_each_spool(cli: Cli) -> None:
    """Of daemons that start at one moment, one does; the others name it."""
    pipe = subprocess.PIPE
    starts = [cli.popen("start", stdout=pipe, stderr=pipe) for _ in range(4)]
    said = [process.communicate(timeout=60)[1].decode() for process in starts]
    assert sorted(process.returncode for process in starts) == [0, 1, 1, 1]
    assert sum("already works on" in text for text in said) == 3
    assert f"PID {cli.pid()}" in cli("start", status=1)
    assert f"PID {cli.pid()}" in cli("run", status=1)


def test_start_tells_why_it_failed(cli: Cli) -> None:
    """G9: the reason comes from the process that was to be the daemon."""
    said = cli("start", "--store", STORE, status=1)
    assert "the daemon did not start: " in said
    assert "cannot be reached" in said
    assert len(said.splitlines()) == 1
    log = (cli.spool / "daemon.log").read_text()
    assert len(log.splitlines()) == 1
    assert "s3cret" not in said + log


def test_daemon_starts_where_nothing_is_open(cli: Cli) -> None:
    """Its lock is no number that is laid over with stdin, and a look is no error."""
    closing = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, *cli.program]
    for command in "start", "status", "list":
        subprocess.run([*closing, command], env=cli.environment, check=True, timeout=60)
    assert f"PID {cli.pid()}" in cli("start", status=1)
    cli("stop")


@pytest.mark.parametrize("content", ["", "torn", "1 2 3", "-1 0.0", "9" * 30 + " 1"])
def test_stale_pid_file_is_nobodys(cli: Cli, content: str) -> None:
    """Whatever a file says, only a daemon that runs is stopped, and one can start."""
    cli.spool.mkdir()
    (cli.spool / "daemon.pid").write_text(content)
    assert instance.running(cli.spool) is None
    assert main(["stop", "--spool", str(cli.spool)]) == 0


def test_reused_pid_is_not_the_daemons(cli: Cli) -> None:
    """Another process that got the PID is not stopped."""
    cli.spool.mkdir()
    began = instance.started(os.getpid())
    (cli.spool / "daemon.pid").write_text(f"{os.getpid()} {began - 1}")
    cli("stop")
    cli("start")
    assert cli.pid() != os.getpid()


def test_daemon_that_nobody_waits_for_is_over(cli: Cli) -> None:
    """Its parent leaves it a zombie: it does not run, and ``stop`` returns."""
    daemon = cli.popen("run", stderr=subprocess.DEVNULL)
    until(lambda: instance.running(cli.spool) == daemon.pid)
    cli("stop")
    assert instance.running(cli.spool) is None
    assert daemon.wait(timeout=0) == 0


def test_signals_before_it_is_ready_are_acted_on(cli: Cli) -> None:
    """SIGHUP and SIGTERM while it opens its database: it stops, and leaves no task."""
    with SessionStore(cli.url) as session, session.transaction() as connection:
        # The lock of this transaction keeps the daemon's first write waiting.
        connection.exec_driver_sql("DELETE FROM store_job WHERE job_id = -1")
        process = cli.popen("run", stderr=subprocess.DEVNULL)
        until(lambda: instance.running(cli.spool) == process.pid)
        for number in (signal.SIGHUP, signal.SIGTERM):
            process.send_signal(number)
    assert process.wait(60) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_daemon_of_another_user_is_not_stopped(cli: Cli) -> None:
    """The one line says whose it is."""
    cli("start")
    pid = cli.pid()
    cli.spool.chmod(0o755)
    (cli.spool / "daemon.pid").chmod(0o644)
    for folder in cli.spool.parents:
        if "pytest" in str(folder):
            folder.chmod(0o755)
    error = cli_as_nobody(cli, "stop")
    assert error == f"daemon-example: the daemon, PID {pid}, belongs to root\n"
    assert psutil.pid_exists(pid)
    (cli.spool / "daemon.pid").chmod(0o600)
    assert "Permission denied" in cli_as_nobody(cli, "stop")


def cli_as_nobody(cli: Cli, *words: str, status: int = 1) -> str:
    """Return what a command says that another user calls."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            sys.stderr = os.fdopen(writer, "w", buffering=1)
            os.setgid(65534)
            os.setuid(65534)
            place = [] if "--spool" in words else ["--spool", str(cli.spool)]
            os._exit(main([*words, *place]))
        finally:
            os._exit(99)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status, said
    return said
