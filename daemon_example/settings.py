"""What can be configured, and from where: options, environment, a file."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


class SettingsError(Exception):
    """A setting that cannot be used."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The daemon's settings."""

    spool: Path = Path("spool")
    #: A database URL; an SQLite file in the spool folder if it is empty.
    store: str = ""
    session: str = "default"
    #: How many tasks run at once.
    workers: int = 2
    #: How often a task is started before it is given up.
    attempts: int = 3
    #: Seconds that running tasks get to end when the daemon stops.
    grace: float = 10.0

    @property
    def url(self) -> str:
        """The database's URL."""
        return self.store or f"sqlite:///{self.spool.absolute()}/tasks.db"


def load(options: Mapping[str, Any], config: Path | None) -> Settings:
    """Return the settings: options go before the environment, that before the file.

    Raises SettingsError, naming the setting and where it came from.
    """
    values: dict[str, Any] = {}
    if config is not None:
        try:
            values = tomllib.loads(config.read_text())
        except OSError as error:
            raise SettingsError(f"cannot read {config}: {error.strerror}") from error
        except ValueError as error:
            raise SettingsError(f"{config} is no TOML: {error}") from error
    known = {field.name for field in fields(Settings)}
    unknown = sorted(values.keys() - known)
    if unknown:
        raise SettingsError(
            f"{config} has the unknown setting {unknown[0]!r}; there are "
            f"{', '.join(sorted(known))}"
        )
    for name in known:
        variable = f"DAEMON_EXAMPLE_{name.upper()}"
        if variable in os.environ:
            values[name] = os.environ[variable]
        if options.get(name) is not None:
            values[name] = options[name]
    try:
        settings = Settings(
            spool=Path(values.get("spool", "spool")).absolute(),
            store=str(values.get("store", "")),
            session=str(values.get("session", "default")),
            workers=int(values.get("workers", 2)),
            attempts=int(values.get("attempts", 3)),
            grace=float(values.get("grace", 10.0)),
        )
    except (TypeError, ValueError) as error:
        raise SettingsError(f"a setting is no number: {error}") from error
    if settings.workers < 1 or settings.attempts < 1 or not settings.grace >= 0:
        raise SettingsError("workers and attempts begin at 1, and grace at 0 seconds")
    return settings
