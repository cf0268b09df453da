"""What systemd reads: that it understands it, and that the daemon does."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from daemon_example.__main__ import parser
from daemon_example.settings import Settings, load
from tests.daemon.conftest import ROOT

FOLDER = ROOT / "systemd"
UNITS = sorted(p.name for p in FOLDER.iterdir() if p.suffix in {".service", ".timer"})
SERVICES = [name for name in UNITS if name.endswith(".service")]
#: The settings that come as credentials.
SECRET = {"store", "keys"}
needs_systemd = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="there is no systemd"
)


def ask(*words: str | Path, status: int = 0) -> str:
    """Run a program, expect its status, and return what it said."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == status, said
    return said


def values(name: str) -> Iterator[str]:
    """Give what the services set for one of systemd's names."""
    for service in SERVICES:
        text = (FOLDER / service).read_text()
        yield from re.findall(f"^{name}=-?(.+)$", text, re.MULTILINE)


def test_units_are_all_there() -> None:
    """The daemon, its instances, and what checks them."""
    names = ["check@.service", "check@.timer"]
    assert [f"daemon-example-{name}" for name in names] + [
        "daemon-example.service",
        "daemon-example@.service",
    ] == UNITS


@needs_systemd
@pytest.mark.parametrize("name", UNITS)
def test_systemd_has_nothing_to_say(name: str) -> None:
    """No line of a unit is unknown, misspelt, or of no effect."""
    assert ask("systemd-analyze", "verify", FOLDER / name) == ""


@needs_systemd
@pytest.mark.parametrize("name", SERVICES)
def test_services_are_confined(name: str) -> None:
    """``systemd-analyze security`` gives 2.0 or better, of 10."""
    ask(*security(FOLDER / name))


@needs_systemd
def test_unconfined_service_would_be_seen(tmp_path: Path) -> None:
    """Without the lines that confine it the same question is answered otherwise."""
    unit = tmp_path / "daemon-example.service"
    text = (FOLDER / unit.name).read_text()
    unit.write_text(re.sub(r"^(Protect|Restrict|SystemCall).*\n", "", text, flags=re.M))
    ask(*security(unit), status=1)


def security(unit: Path) -> list[str | Path]:
    """Return the command that fails if a unit's exposure is above 2.0."""
    return ["systemd-analyze", "security", "--offline=true", "--threshold=20", unit]


def test_instances_do_what_the_daemon_does() -> None:
    """The template has no line of its own but how it is enabled."""
    link = FOLDER / "daemon-example@.service.d" / "00-daemon-example.conf"
    assert link.resolve() == FOLDER / "daemon-example.service"
    text = (FOLDER / "daemon-example@.service").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines == ["[Install]", "WantedBy=multi-user.target"]
    # What was written for one alone would be shared by all.
    settings = re.sub("^#.*$", "", link.read_text(), flags=re.MULTILINE)
    paths = re.findall(r"\S*(?:/etc/|/var/lib/|/run/|Directory=|store:)\S*", settings)
    modes = [path for path in paths if "Mode=" in path]
    assert len(paths) - len(modes) == 8
    assert all("%N" in path for path in paths if path not in modes)


@needs_systemd
def test_what_the_pages_enable_can_be_enabled(tmp_path: Path) -> None:
    """systemctl takes the names; each instance's settings are made before."""
    units = tmp_path / "etc" / "systemd" / "system"
    shutil.copytree(FOLDER, units, symlinks=True)
    pages = [ROOT / "README.md", *(ROOT / "docs" / "pages").rglob("*.md")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    lines = re.findall(r"systemctl enable --now (.+)", text)
    assert lines
    for names in (line.split() for line in lines):
        assert ask("systemctl", f"--root={tmp_path}", "--quiet", "enable", *names) == ""
        for instance in (name for name in names if not name.endswith(".timer")):
            assert f"/etc/daemon-example/{instance}.toml\n" in text


def test_daemon_knows_all_that_units_call_it_with() -> None:
    """Every command line is one that it has, every variable one that it reads."""
    lines = [shlex.split(line) for line in values("ExecStart")]
    assert len(lines) == 2
    for program, *words in lines:
        assert os.access(program, os.X_OK)
        assert words.pop(0) == "daemon-example"
        parser().parse_args(words)
    for line in values("ExecReload"):
        assert os.access(shlex.split(line)[0], os.X_OK)
    set_ = {
        v for line in values("Environment") for v in line.split() if "EXAMPLE_" in v
    }
    known = {f"DAEMON_EXAMPLE_{field.name.upper()}" for field in fields(Settings)}
    assert set_
    assert {variable.partition("=")[0] for variable in set_} <= known
    assert {line.partition(":")[0] for line in values("LoadCredential")} == SECRET


def test_status_of_a_wrong_setting_stops_the_restarts() -> None:
    """And that of a wrong command line."""
    [line] = values("RestartPreventExitStatus")
    assert {int(word) for word in line.split()} == {os.EX_CONFIG, 2}


def test_example_of_the_settings_is_what_holds_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every line made to count it is accepted, and changes nothing."""
    for name in [name for name in os.environ if name.startswith("DAEMON_EXAMPLE_")]:
        monkeypatch.delenv(name)
    text = (FOLDER / "daemon-example.toml").read_text()
    lines = re.findall(r"^# (\w+ = .+)$", text, re.MULTILINE)
    file = tmp_path / "settings.toml"
    file.write_text("\n".join(lines))
    assert load(Namespace(config=file)) == load(Namespace(config=None))
    missing = {field.name for field in fields(Settings)} - {
        line.split()[0] for line in lines
    }
    assert missing == {"spool", *SECRET}


@pytest.mark.skipif(not shutil.which("systemd-sysusers"), reason="there is no systemd")
def test_user_of_the_services_is_made(tmp_path: Path) -> None:
    """The services run as nobody else."""
    (tmp_path / "etc").mkdir()
    ask("systemd-sysusers", f"--root={tmp_path}", FOLDER / "sysusers.conf")
    [line] = (tmp_path / "etc" / "passwd").read_text().splitlines()
    name, *_, shell = line.split(":")
    assert set(values("User")) == {name}
    assert shell.endswith("/nologin")
