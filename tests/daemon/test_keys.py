"""The daemon with keys: it runs what was signed, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from sessionstore import SessionStore, State, Task
from sessionstore.serializers import (
    PickleSerializer,
    SignedSerializer,
    new_key,
    read_keys,
)
from tests.daemon.conftest import Cli, until
from tests.serializers.parts import Trap


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "credentials" / "keys"
    path.parent.mkdir()
    path.write_text(new_key())
    path.chmod(0o400)
    return path


@pytest.mark.backends("sqlite")
@pytest.mark.parametrize("way", ["option", "credential"])
def test_daemon_with_keys_runs_only_what_was_signed(
    cli: Cli, keys: Path, way: str, tmp_path: Path
) -> None:
    """A task that was written without a key neither runs nor hinders the others."""
    words = ["--keys", str(keys)] if way == "option" else []
    if way == "credential":
        cli.environment["CREDENTIALS_DIRECTORY"] = str(keys.parent)
    first = int(cli("submit", *words, "--", "touch", str(tmp_path / "first")))
    with SessionStore(cli.url) as unsigned:
        forged = unsigned.add(Task(command=["touch", str(tmp_path / "forged")]))
        trapped = unsigned.add(Task(trap=Trap(tmp_path / "trapped")))
    second = int(cli("submit", *words, "--", "touch", str(tmp_path / "second")))
    cli("start", *words)
    serializer = SignedSerializer(PickleSerializer(), read_keys(keys))
    with SessionStore(cli.url, serializer=serializer) as session:
        for id_ in (first, second):
            until(lambda id_=id_: id_ in session.ids(state=State.TERMINATED))
        assert session.load(first).execution.exitcode == 0
        assert {error.id for error in session.unreadable()} == {forged, trapped}
    cli("stop")
    assert (tmp_path / "first").exists()
    assert (tmp_path / "second").exists()
    assert not (tmp_path / "forged").exists()
    assert not (tmp_path / "trapped").exists()


@pytest.mark.backends("sqlite")
def test_keys_that_others_can_read_are_a_wrong_setting(cli: Cli, keys: Path) -> None:
    """Status 78, by which systemd knows not to try again; G9: and no key is shown."""
    keys.chmod(0o644)
    said = cli("run", "--keys", str(keys), status=78)
    assert f"chmod 600 {keys}" in said
    assert keys.read_text() not in said
