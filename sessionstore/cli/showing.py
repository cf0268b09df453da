"""Commands that show one task: what is known about it, and its history."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

import typer

from sessionstore.cli.cells import cells_of
from sessionstore.cli.common import Common
from sessionstore.errors import DecodeError
from sessionstore.jobs.history import Transition
from sessionstore.jobs.listing import Listing
from sessionstore.session import SessionStore
from sessionstore.task import State

__all__ = ["Id", "history", "show"]

Id = Annotated[int, typer.Argument(metavar="ID", show_default=False)]
#: Characters that are shown of an attribute.
LONGEST = 10_000


def show(
    common: Common,
    id_: Id,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="Do not unpickle; show the payload's size and first bytes."
        ),
    ] = False,
) -> None:
    """Show all of one task. Its attributes are unpickled, unless --raw is given."""
    with common.opened() as (session, listing, session_id):
        job = listing.job(session_id, id_)
        known = {**cells_of(job), "session": session.name}
        if raw:
            payload = _payload_of(listing, id_)
            common.output.record({**known, **payload})
            return
        try:
            attributes = _attributes_of(session, id_)
        except DecodeError as error:
            raise DecodeError(
                f"{error}; use --raw to show everything else", id=id_
            ) from error
        if not common.output.as_json:
            known.update({f".{name}": value for name, value in attributes.items()})
        else:
            known["attributes"] = attributes
        common.output.record(known)


def _payload_of(listing: Listing, id_: int) -> dict[str, object]:
    size, begin = listing.payload(id_)
    return {"payload_bytes": size, "payload_begin": None if not begin else begin.hex()}


def _attributes_of(session: SessionStore, id_: int) -> dict[str, object]:
    task = session.load(id_)
    attributes: dict[str, object] = {"class": type(task).__qualname__}
    execution = getattr(task, "execution", None)
    for name in ("exitcode", "signal", "info"):
        if hasattr(execution, name):
            attributes[name] = getattr(execution, name)
    for name, value in sorted(getattr(task, "__dict__", {}).items()):
        if not name.startswith("_") and name not in {"execution", "persistent_id"}:
            attributes[name] = _shown(value)
    return attributes


def _shown(value: object) -> object:
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception as error:  # what users store may raise anything
        return f"<its repr raised {type(error).__name__}>"
    # JSON has no infinite numbers, and none that is none.
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def history(common: Common, id_: Id) -> None:
    """Show what one task went through, and how long each of its states lasted."""
    with common.listing() as listing:
        session_id = listing.session_id(common.session)
        listing.job(session_id, id_)
        entries = listing.history(id_)
        columns = ["at", "from", "to", "lasted", "returncode", "info", "by"]
        if common.output.is_terminal:
            columns.remove("from")  # the line before says it
        common.output.rows(columns, _lasting(entries, listing.now()))


def _lasting(entries: list[Transition], now: datetime) -> Iterator[dict[str, object]]:
    ends = [entry.at for entry in entries[1:]] + [now]
    for entry, end in zip(entries, ends, strict=True):
        is_over = entry.to_state is State.TERMINATED and entry is entries[-1]
        yield {
            "at": entry.at,
            "from": entry.from_state,
            "to": entry.to_state,
            "lasted": None if is_over else end - entry.at,
            "returncode": entry.returncode,
            "by": f"{entry.host}/{entry.pid}",
            "info": entry.info,
        }
