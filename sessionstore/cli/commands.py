"""All commands, in the order in which the help lists them."""

from __future__ import annotations

from sessionstore.cli import looking
from sessionstore.cli.application import add, app

__all__ = ["app"]

add(looking.sessions, shared=("url", "json"))
add(looking.ls)
