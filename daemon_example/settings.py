"""The settings, from options, the environment and a file."""

from __future__ import annotations

import os
import tomllib
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sessionstore import SessionStore
from sessionstore.serializers import PickleSerializer, SignedSerializer, read_keys


class UserError(Exception):
    """What the user is told, in one line."""


class SettingsError(UserError):
    """A setting that has to be mended before the daemon can work.

    The exit status is EX_CONFIG, so that systemd does not start it again.
    """


@dataclass(frozen=True, slots=True)
class Settings:
    """The daemon's settings; HELP says what each of them is."""

    spool: Path = Path("spool")
    #: It may have a password, which no log is to show.
    store: str = field(default="", repr=False)
    session: str = "default"
    keys: str = ""
    workers: int = 2
    attempts: int = 3
    grace: float = 10.0
    lease: float = 60.0

    @property
    def url(self) -> str:
        """The database's URL."""
        return self.store or f"sqlite:///{quote(str(self.spool))}/tasks.db"

    def open_session(self, *, create: bool) -> SessionStore:
        """Open the session; with keys, its tasks are signed."""
        signed = None
        if self.keys:
            signed = SignedSerializer(PickleSerializer(), read_keys(self.keys))
        return SessionStore(self.url, self.session, create=create, serializer=signed)


HELP = {
    "spool": "the daemon's folder (default: ./spool)",
    "store": "the database's URL (default: a file in the spool folder); one with a "
    "password is better in DAEMON_EXAMPLE_STORE, where nobody else can read it",
    "session": "the session's name (default: default)",
    "keys": "a file of keys, or a credential's name: what was written without them "
    "into the database is not run (default: none)",
    "workers": "how many tasks run at once (default: 2)",
    "attempts": "how often a task is started before it is given up (default: 3)",
    "grace": "seconds that tasks get to end when the daemon stops (default: 10)",
    "lease": "seconds for which a task is held without a word (default: 60)",
}
#: The least that a number can be; each can be a million.
LEAST = {"workers": 1, "attempts": 1, "grace": 0, "lease": 1}


def load(options: Namespace) -> Settings:
    """Return the settings: options go before the environment, that before the file.

    Raises SettingsError, naming the setting and where it is.
    """
    file = _read(options.config) if options.config else {}
    known = asdict(Settings())
    if unknown := file.keys() - known:
        raise SettingsError(
            f"{options.config} has the unknown setting {min(unknown)!r}; there are "
            f"{', '.join(known)}"
        )
    values: dict[str, Any] = {}
    for name, default in known.items():
        values[name] = default
        for where, value in _sources(name, options, file):
            if value is not None:
                values[name] = _convert(name, value, type(default), where)
                break
    values["spool"] = values["spool"].absolute()
    return Settings(**values)


def _sources(
    name: str, options: Namespace, file: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    yield f"--{name}", getattr(options, name, None)
    variable = f"DAEMON_EXAMPLE_{name.upper()}"
    yield variable, os.environ.get(variable)
    # systemd's LoadCredential=, for the settings with a secret.  If there is none, we
    # may not be allowed to look into the folder; os.path.exists() says no then.
    path = os.path.join(os.environ.get("CREDENTIALS_DIRECTORY", ""), name)
    if name in {"store", "keys"} and os.path.isabs(path) and os.path.exists(path):
        yield path, _text(Path(path)).strip() if name == "store" else path
    yield str(options.config), file.get(name)


def _convert(name: str, value: object, kind: Any, where: str) -> object:
    try:
        found = kind(value)
        # From a file, neither 2.5 nor true is a number of workers.
        if not isinstance(value, str) and (found != value or value is True):
            raise ValueError
        # Neither NUL nor bytes that are no text can be in a name or a URL.
        if b"\0" in str(found).encode():
            raise ValueError
        if name in LEAST and not LEAST[name] <= found <= 1_000_000:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        what = {int: "a whole number", float: "a number"}.get(kind, "text")
        bounds = f" of {LEAST[name]} to 1000000" if name in LEAST else ""
        given = str(value) if isinstance(value, Path) else value
        shown = "that" if name == "store" else repr(given)  # it may have a password
        raise SettingsError(
            f"{name} cannot be {shown} ({where}); it is {what}{bounds}"
        ) from None
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text(path))
    except (ValueError, RecursionError) as error:  # one has 5,000 digits, say
        raise SettingsError(f"{path} is no TOML: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not in UTF-8: {error.reason}") from error
