"""Putting the service in place, and taking it away: what comes, and what stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.conftest import ROOT

UNITS = Path("etc/systemd/system")
CONFIG = Path("etc/daemon-example/daemon-example.toml")
VENV = Path("srv/example/lib/daemon-example")
WANTED = [
    "multi-user.target.wants/daemon-example.service",
    "multi-user.target.wants/daemon-example@two.service",
    "daemon-example.service.wants/daemon-example-check@daemon-example.timer",
    "daemon-example@two.service.wants/daemon-example-check@daemon-example@two.timer",
]


def make(what: str, root: Path, status: int = 0, **variables: str) -> str:
    """Run make with a prefix below a folder, and return what it said."""
    # What a make says to the makes that it calls is not for this one.
    inherited = {
        k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MF"))
    }
    python = sys._base_executable  # type: ignore[attr-defined]
    words = {"PREFIX": "/srv/example", "DESTDIR": str(root), "PYTHON": python}
    done = subprocess.run(
        ["make", "-C", ROOT, what, *(f"{k}={v}" for k, v in words.items())],
        env={**inherited, **variables},
        capture_output=True,
        text=True,
        check=False,
        umask=0o077,  # as careful administrators have it
    )
    assert (done.returncode != 0) == (status != 0), done.stdout + done.stderr
    return done.stdout + done.stderr


def files(root: Path) -> Iterator[str]:
    """Give all files and links below a folder, but for the virtual environment's."""
    for folder, names, leaves in os.walk(root):
        names[:] = [name for name in names if Path(folder, name) != root / VENV]
        links = [name for name in names if Path(folder, name).is_symlink()]
        yield from (
            str(Path(folder, name).relative_to(root)) for name in leaves + links
        )


@pytest.mark.timeout(600)
def test_what_is_installed_is_uninstalled_and_no_more(tmp_path: Path) -> None:
    """Units, program and settings come and go; data and edited settings stay."""
    root = tmp_path / "root"
    make("install-service", root)
    units = {
        str(UNITS / path.relative_to(ROOT / "systemd"))
        for path in (ROOT / "systemd").rglob("*daemon-example*.*")
        if path.suffix in {".service", ".timer", ".conf"}
    }
    assert set(files(root)) == units | {
        "etc/sysusers.d/daemon-example.conf",
        "srv/example/bin/daemon-example",
        str(CONFIG),
    }
    works_from_where_it_is(root)
    fails_without_harm(root)

    if shutil.which("systemctl"):
        enable = ["systemctl", f"--root={root}", "enable", "--quiet"]
        subprocess.run([*enable, *(path.split("/")[1] for path in WANTED)], check=True)
        assert all((root / UNITS / path).is_symlink() for path in WANTED)
    edited = "workers = 3\n"
    kept = [CONFIG, Path("etc/daemon-example/daemon-example.env")]
    kept += [Path(f"var/lib/{name}/tasks.db") for name in ("daemon-example", "other")]
    kept += [Path("srv/example/lib/other/file"), UNITS / "other.service"]
    for path in kept:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(edited)
    assert "/var/lib/daemon-example" in make("uninstall-service", root)
    assert set(files(root)) == {str(path) for path in kept}
    assert {(root / path).read_text() for path in kept} == {edited}
    assert not (root / VENV).exists()

    shutil.copy(ROOT / "systemd" / CONFIG.name, root / CONFIG)
    make("uninstall-service", root)
    assert set(files(root)) == {str(path) for path in kept[1:]}


def works_from_where_it_is(root: Path) -> None:
    """Check that what is installed needs nothing from elsewhere, for any user."""
    code = "import daemon_example, psycopg, pymysql; print(daemon_example.__file__)"
    command = [root / VENV / "bin" / "python", "-c", code]
    said = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True)
    assert Path(said.stdout).is_relative_to(root / VENV)
    program = root / "srv/example/bin/daemon-example"
    assert program.resolve() == root / VENV / "bin/daemon-example"
    assert f"/{VENV}/bin/python" in program.read_text()
    for path in (root / VENV / "bin").iterdir():
        assert path.is_symlink() or str(root) not in path.read_text()
    for name in ("daemon-example.service", "daemon-example-check@.service"):
        unit = (root / UNITS / name).read_text()
        assert "Environment=PATH=/srv/example/bin:" in unit
        assert "/opt/daemon-example" not in unit
    for folder, _, leaves in os.walk(root):
        for path in [Path(folder), *(Path(folder, name) for name in leaves)]:
            assert path.is_symlink() or path.stat().st_mode & 0o004, path


def fails_without_harm(root: Path) -> None:
    """Check that an install that fails leaves the one before as it is."""
    before = set(files(root)), (root / VENV / "bin").stat().st_ino
    make("install-service", root, status=2, PIP_NO_INDEX="1")
    assert before == (set(files(root)), (root / VENV / "bin").stat().st_ino)
    assert not (root / f"{VENV}.new").exists()


@pytest.mark.parametrize(
    ("variable", "value"),
    [("PREFIX", "opt/x"), ("PREFIX", "/opt/a b"), ("PREFIX", "/"), ("DESTDIR", "./x")],
)
def test_place_that_cannot_be_is_refused(variable: str, value: str) -> None:
    """In one line, which names it, before anything is done."""
    done = run_script("install", **{variable: value})
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert f"'{value}' does not" in line


@pytest.mark.parametrize("prefix", ["/home/me/x", "/tmp/x", "/root/x"])
def test_prefix_that_the_service_cannot_see_is_refused(prefix: str) -> None:
    """It would never start."""
    done = run_script("install", PREFIX=prefix)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert f"cannot see {prefix}" in line
    assert not Path(prefix).exists()


@pytest.mark.parametrize("python", ["/nowhere/python3", "false"])
def test_python_that_is_none_is_refused(python: str) -> None:
    """In one line: it is not there, or too old."""
    done = run_script("install", PYTHON=python)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert f"and {python} is none; name one with PYTHON=" in line


def test_python_that_the_service_cannot_see_is_refused(tmp_path: Path) -> None:
    """Such as one that a version manager keeps in a home."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho /home/me/.pyenv/versions/3.13\n")
    python.chmod(0o755)
    done = run_script("install", PREFIX="/opt/nowhere", PYTHON=str(python))
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "cannot see /home/me/.pyenv/versions/3.13; choose another PYTHON" in line
    assert not Path("/opt/nowhere").exists()


def run_script(what: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Call the script that make calls."""
    return subprocess.run(
        ["sh", ROOT / "systemd" / "install.sh", what],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        check=False,
    )
