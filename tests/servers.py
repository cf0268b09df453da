"""Database servers of the tests' own: fresh folders, loopback only, ended by PID."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from glob import glob
from ipaddress import ip_interface
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg
import pymysql
import trustme
from sqlalchemy import create_engine, text

#: Has what a URL must quote, and what Alembic's configuration would expand.
PASSWORD = "p@ss/w:rd%41"
_LOGIN = f"tester:{quote(PASSWORD, safe='')}"
#: No test machine is likely to be there: a mix-up of local time and UTC shows.
TIMEZONE, OFFSET = "Asia/Kathmandu", "+05:45"
#: The program of a MySQL that takes MariaDB's place in all tests.
MYSQLD = os.environ.get("SESSIONSTORE_MYSQLD")


@dataclass
class Server:
    """One running server."""

    #: For SQLAlchemy, with the password.
    url: str
    process: subprocess.Popen[bytes]
    folder: Path
    stop_signal: signal.Signals
    #: Starts the server's program on the folder's data.
    run: Callable[[], subprocess.Popen[bytes]]
    #: Connects once, or raises what the driver does where nobody listens yet.
    connect: Callable[[], None] = lambda: None

    def kill(self) -> None:
        """End all of the server's processes at once, as a crash would."""
        # Stopped first, so that it starts none meanwhile.
        self.process.send_signal(signal.SIGSTOP)
        children = psutil.Process(self.process.pid).children(recursive=True)
        for process in (*children, self.process):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        # They hold the shared memory and the port that the next start needs.
        _, left = psutil.wait_procs(children, timeout=30)
        assert all(child.status() == psutil.STATUS_ZOMBIE for child in left)

    def start_again(self) -> None:
        """Start a server that was killed on the same data and port."""
        self.process = self.run()
        _wait(self, self.connect)

    def make_database(self) -> str:
        """Make an empty database on a server that has none yet; return its URL."""
        execute(self.url, "CREATE DATABASE crash")
        url = create_engine(self.url).url.set(database="crash")
        return url.render_as_string(hide_password=False)

    def stop(self) -> None:
        """End the server and remove its data."""
        self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def execute(url: str, *statements: str) -> None:
    """Run statements, each in a transaction of its own."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def postgresql_binary(name: str) -> str | None:
    """Return the newest installed server program of this name."""
    found = shutil.which(name)
    return found or max(glob(f"/usr/lib/postgresql/*/bin/{name}"), default=None)


def mariadb_binary(name: str) -> str | None:
    """Return a MariaDB program, also from folders that only root has on PATH."""
    return MYSQLD or shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")


def start_postgresql(interface: str = "") -> Server:
    """Start PostgreSQL on a free loopback port.

    It listens on a private network too, if given its address there, like 10.0.0.1/24.
    """
    initdb, postgres = postgresql_binary("initdb"), postgresql_binary("postgres")
    assert initdb is not None
    assert postgres is not None
    folder, user = _folder("postgres")
    data, port = folder / "data", _free_port()
    password = folder / "password"
    password.write_text(PASSWORD)
    subprocess.run(
        [initdb, "-D", data, "-U", "tester", "-E", "UTF8", "--locale=C.UTF-8"]
        + ["-A", "scram-sha-256", f"--pwfile={password}", "--no-sync"],
        check=True,
        capture_output=True,
        user=user,
    )
    for file in _make_certificate(folder):
        if user is not None:
            shutil.chown(file, user)
    addresses = "127.0.0.1"
    if interface:
        addresses += f",{ip_interface(interface).ip}"
        with (data / "pg_hba.conf").open("a") as access:
            access.write(
                f"host all all {ip_interface(interface).network} scram-sha-256\n"
            )
    settings = {
        "ssl": "on",
        "ssl_cert_file": folder / "certificate.pem",
        "ssl_key_file": folder / "key.pem",
        "listen_addresses": addresses,
        "port": port,
        "unix_socket_directories": folder,
        "max_connections": 200,
        "deadlock_timeout": "200ms",
        "timezone": TIMEZONE,
    }
    arguments = [part for k, v in settings.items() for part in ("-c", f"{k}={v}")]
    # SIGINT is PostgreSQL's fast shutdown, which does not wait for clients.
    server = _start(
        [postgres, "-D", data, *arguments],
        # Plain unless a test asks for TLS, which libpq would prefer.
        f"postgresql+psycopg://{_LOGIN}@127.0.0.1:{port}/postgres?sslmode=disable",
        folder,
        user,
        signal.SIGINT,
    )
    _wait(
        server,
        lambda: psycopg.connect(
            host="127.0.0.1",
            port=port,
            user="tester",
            password=PASSWORD,
            dbname="postgres",
        ).close(),
    )
    return server


def start_mariadb(interface: str = "") -> Server:
    """Start MariaDB on a free loopback port.

    It listens on a private network too, as PostgreSQL does.
    """
    install, mariadbd = mariadb_binary("mariadb-install-db"), mariadb_binary("mariadbd")
    assert install is not None
    assert mariadbd is not None
    folder, user = _folder("mysql")
    data, port = folder / "data", _free_port()
    # A tmpdir of its own: a server that starts clears its neighbour's.
    temporary = folder / "tmp"
    temporary.mkdir()
    if user is not None:
        shutil.chown(temporary, user)
    common = ["--no-defaults", f"--datadir={data}", f"--tmpdir={temporary}"]
    addresses, places = "127.0.0.1", ["127.0.0.1"]
    if interface:
        addresses += f",{ip_interface(interface).ip}"
        places.append(ip_interface(interface).network.with_netmask)
    # Plain, as PostgreSQL's URL: MySQL, and MariaDB from 11.4 on, make a certificate
    # for themselves, drivers take it, and test_unanswered's proxy reads no COMMIT.
    if MYSQLD:
        to_install = ["--initialize-insecure"]
        own = ["--tls-version=", "--innodb-redo-log-capacity=512M", "--mysqlx=OFF"]
    else:
        to_install = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        own = ["--skip-ssl", "--innodb-log-file-size=512M"]
    subprocess.run(
        [install, *common, *to_install], check=True, capture_output=True, user=user
    )
    server = _start(
        [
            mariadbd,
            *common,
            f"--port={port}",
            f"--bind-address={addresses}",
            f"--socket={folder}/socket",
            f"--pid-file={folder}/pid",
            *own,
            "--max-allowed-packet=256M",
            "--max-connections=200",
            f"--default-time-zone={OFFSET}",
        ],
        f"mysql+pymysql://{_LOGIN}@127.0.0.1:{port}",
        folder,
        user,
        signal.SIGTERM,
    )

    def create_user() -> None:
        with (
            pymysql.connect(host="127.0.0.1", port=port, user="root") as root,
            root.cursor() as cursor,
        ):
            for place in places:
                cursor.execute(
                    f"CREATE USER IF NOT EXISTS tester@'{place}' IDENTIFIED BY %s",
                    (PASSWORD,),
                )
                cursor.execute(f"GRANT ALL ON *.* TO tester@'{place}'")

    _wait(server, create_user)
    return server


def _make_certificate(folder: Path) -> list[Path]:
    certificate = trustme.CA().issue_cert("127.0.0.1")
    files = [folder / "certificate.pem", folder / "key.pem"]
    certificate.cert_chain_pems[0].write_to_path(files[0])
    certificate.private_key_pem.write_to_path(files[1])
    for file in files:
        file.chmod(0o600)  # else PostgreSQL refuses the key
    return files


def _start(
    command: list[str | Path],
    url: str,
    folder: Path,
    user: str | None,
    stop_signal: signal.Signals,
) -> Server:
    def run() -> subprocess.Popen[bytes]:
        with (folder / "log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                user=user,
                preexec_fn=functools.partial(end_with_parent, stop_signal),
            )

    return Server(url, run(), folder, stop_signal, run)


def end_with_parent(stop_signal: signal.Signals) -> None:
    # A test run that gets kill -9 would leave its servers behind.
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(stop_signal))


def _folder(user: str) -> tuple[Path, str | None]:
    folder = Path(tempfile.mkdtemp(prefix="sessionstore-"))
    if os.geteuid() != 0:
        return folder, None
    # Both servers refuse to run as root; their packages bring users of their own.
    account = pwd.getpwnam(user)
    os.chown(folder, account.pw_uid, account.pw_gid)
    return folder, user


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(server: Server, connect: Callable[[], None]) -> None:
    server.connect = connect
    deadline = time.monotonic() + 60
    while True:
        try:
            connect()
            return
        except (psycopg.OperationalError, pymysql.OperationalError):
            if server.process.poll() is not None or time.monotonic() > deadline:
                log = (server.folder / "log").read_text(errors="replace")
                server.stop()
                raise RuntimeError(f"a server did not start:\n{log}") from None
            time.sleep(0.05)
