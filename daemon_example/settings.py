"""What can be set, and from where: options, the environment, a file."""

from __future__ import annotations

import os
import tomllib
from argparse import Namespace
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


class UserError(Exception):
    """What the user of the command line is told, in one line."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The daemon's settings."""

    spool: Path = Path("spool")
    #: A database URL; an SQLite file in the spool folder if it is empty.  It may have
    #: a password, which no log is to show.
    store: str = field(default="", repr=False)
    session: str = "default"
    #: How many tasks run at once.
    workers: int = 2
    #: How often a task is started before it is given up.
    attempts: int = 3
    #: Seconds that running tasks get to end when the daemon stops.
    grace: float = 10.0
    #: Seconds for which a task is held without a word from its daemon.
    lease: float = 60.0

    @property
    def url(self) -> str:
        """The database's URL."""
        return self.store or f"sqlite:///{self.spool}/tasks.db"


def load(options: Namespace) -> Settings:
    """Return the settings: options go before the environment, that before the file.

    Raises UserError, naming the setting.
    """
    file = _read(options.config) if options.config else {}
    known = asdict(Settings())
    if unknown := file.keys() - known:
        raise UserError(
            f"{options.config} has the unknown setting {min(unknown)!r}; there are "
            f"{', '.join(known)}"
        )
    values: dict[str, Any] = {}
    for name, default in known.items():
        value = getattr(options, name, None)
        if value is None:
            value = os.environ.get(f"DAEMON_EXAMPLE_{name.upper()}", file.get(name))
        if value is None:
            value = default
        try:
            values[name] = type(default)(value)
        except (TypeError, ValueError):
            raise UserError(f"{name} cannot be {value!r}") from None
    values["spool"] = values["spool"].absolute()
    if min(values["workers"], values["attempts"]) < 1 or not values["grace"] >= 0:
        raise UserError("workers and attempts begin at 1, grace at 0 seconds")
    if not 1 <= values["lease"] <= 1e6:
        raise UserError("the lease is 1 to 1000000 seconds")
    return Settings(**values)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is no TOML: {error}") from error
