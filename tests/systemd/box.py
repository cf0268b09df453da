"""A host in a box: a real systemd, PID 1 of namespaces that vanish with it.

systemd must never be started beside a host's own init: it would take all processes for
its own.  Here it gets a PID, mount, cgroup, IPC and UTS namespace, below a cgroup that
was made for it.  The machine itself need not run systemd.  The network is the
machine's, so that the servers of the tests are there, on loopback; or it is one of the
box's own, in which there is nothing yet.

``/etc``, ``/opt`` and ``/var`` are the machine's with what the box writes laid over
them; ``/run``, ``/tmp`` and ``/var/tmp`` are empty.  No unit of the machine's is known.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.servers import end_with_parent

_SYSTEMD = Path("/lib/systemd/systemd")
_NAMESPACES = ("--mount", "--pid", "--cgroup", "--ipc", "--uts")
_JOURNALD = """\
[Journal]
Storage=volatile
ReadKMsg=no
RateLimitIntervalSec=0
"""


def missing(*programs: str) -> str:
    """Say why there can be no box here, or what else is not; "" if all can be."""
    if os.geteuid() != 0:
        return "only root can run a systemd of its own"
    needed = ("unshare", "nsenter", *programs)
    lacking = [name for name in needed if not shutil.which(name)]
    if not _SYSTEMD.exists():
        lacking.append("systemd")
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    if not os.access(_cgroups(), os.W_OK) or not (_cgroups() / "cgroup.procs").exists():
        return "no cgroup can be made here"
    unshare = ["unshare", *_NAMESPACES, "--net", "--fork", "true"]
    tried = subprocess.run(unshare, capture_output=True, text=True, check=False)
    return tried.stderr.strip()


def _cgroups() -> Path:
    root = Path("/sys/fs/cgroup")
    # Where version 1 is mounted too, version 2 is beside it.
    unified = root / "unified"
    return unified if unified.is_dir() else root


@dataclass
class Contents:
    """What a box has that the machine has not."""

    #: In ``/etc``, ``/opt`` and ``/var``, by path from ``/``.
    files: dict[str, str] = field(default_factory=dict)
    #: Folders of the machine that are seen at other paths too.
    binds: dict[Path, str] = field(default_factory=dict)
    #: Run by sh(1) before it boots.
    commands: list[str] = field(default_factory=list)


class Box:
    """One such host, which boots up to ``target``; a context manager."""

    #: Seconds that it may take until systemd answers, or until all has ended.
    BOUND = 60

    def __init__(
        self,
        folder: Path,
        contents: Contents,
        target: str = "basic.target",
        has_network: bool = False,
    ) -> None:
        self.folder = folder
        self._contents = contents
        self._target = target
        self._namespaces = [*_NAMESPACES, *(["--net"] if has_network else [])]
        self.cgroup = _cgroups() / f"sessionstore-{os.getpid()}-{time.monotonic_ns()}"
        self.pid = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Box:
        self._lay_out()
        self.cgroup.mkdir()
        try:
            self._start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    @property
    def root(self) -> Path:
        """The box's file system, seen from here."""
        return Path(f"/proc/{self.pid}/root")

    def popen(self, *command: str, **options: object) -> subprocess.Popen[str]:
        """Start a program in the box, though not below its systemd."""
        enter = ["nsenter", f"--target={self.pid}", *self._namespaces, "--", *command]
        pipe = subprocess.PIPE
        defaults = {"stdout": pipe, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(enter, **{**defaults, **options})

    def run(self, *command: str, status: int | None = 0) -> str:
        """Run one, expect its status if one is given, and return what it printed."""
        process = self.popen(*command)
        try:
            said, _ = process.communicate(timeout=self.BOUND)
        finally:
            process.kill()
        if status is not None:
            assert process.returncode == status, f"{command}: {said}{self.journal()}"
        return said

    def systemctl(self, *words: str, status: int | None = 0) -> str:
        """Ask its systemd."""
        return self.run("systemctl", *words, status=status)

    def shut_down(self) -> None:
        """Have it end as a host does, each of its units in turn."""
        self.systemctl("exit")
        assert self._process is not None
        self._process.wait(self.BOUND)

    def end(self) -> None:
        """End all that is in it at once, and remove its cgroups."""
        if self._process is not None:
            # With PID 1 the kernel ends all that are in its PID namespace; unshare(1)
            # waits for it.
            if self.pid and self._process.poll() is None:
                os.kill(self.pid, signal.SIGKILL)
            else:
                self._process.kill()
            self._process.wait(self.BOUND)
        deadline = time.monotonic() + self.BOUND
        while self.cgroup.exists():
            # Deepest first; they are busy until the last process was reaped.
            for path, _, _ in os.walk(self.cgroup, topdown=False):
                with suppress(OSError):
                    os.rmdir(path)
            assert time.monotonic() < deadline, f"{self.cgroup} does not get empty"
            time.sleep(0.01)

    def journal(self, *words: str) -> str:
        """Return what its journal has."""
        # What was said is there only when journald got to it.
        self.run("journalctl", "--sync", status=None)
        show = ["journalctl", "--quiet", "--no-pager", "--output=short-monotonic"]
        return self.run(*show, *words, status=None)

    def _lay_out(self) -> None:
        contents = self._contents
        files = {"etc/systemd/journald.conf": _JOURNALD, **contents.files}
        for name, text in files.items():
            path = self.folder / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o755 if text.startswith("#!") else 0o644)
        lines = [f"{place}\t{path}\n" for place, path in contents.binds.items()]
        (self.folder / "binds").write_text("".join(lines))
        (self.folder / "prepare").write_text("\n".join(["set -e", *contents.commands]))

    def _start(self) -> None:
        deadline = time.monotonic() + self.BOUND
        log = (self.folder / "log").open("wb")

        def enter() -> None:
            # Whoever makes a cgroup namespace is at its root.
            (self.cgroup / "cgroup.procs").write_text(str(os.getpid()))
            end_with_parent(signal.SIGKILL)

        with log:
            self._process = subprocess.Popen(
                ["unshare", *self._namespaces, "--fork", "--kill-child", "--mount-proc"]
                + ["--propagation=private", "sh", Path(__file__).with_name("init.sh")]
                + [self.folder, self._target],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=enter,
            )
        while not self._answers(self._process):
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "log").read_text(errors="replace")
                raise RuntimeError(f"systemd did not start in its box:\n{said}")
            time.sleep(0.02)

    def _answers(self, unshare: subprocess.Popen[bytes]) -> bool:
        if not self.pid:
            children = psutil.Process(unshare.pid).children()
            self.pid = children[0].pid if children else 0
            return False
        try:
            # Only then is /run the box's own; the machine's systemd must not be asked.
            if Path(f"/proc/{self.pid}/comm").read_text() != "systemd\n":
                return False
        except (FileNotFoundError, ProcessLookupError):
            return False
        if not (self.root / "run/systemd/private").exists():
            return False
        start = self.popen("systemctl", "start", "systemd-journald.service")
        start.communicate(timeout=self.BOUND)
        return start.returncode == 0
