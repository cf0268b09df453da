"""What a writer says before and after each operation, in a file of its own.

Before it calls the store it writes down what the call is to leave behind, afterwards
how the call ended.  A line is one write(2), and what the kernel has taken outlives the
process: after a kill -9 a last line that says what was meant, and none that says how
it ended, is the operation in flight.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One object, as all the tables together must describe it."""

    value: int
    #: In the session's index ("listed"), in the session inside another object
    #: ("nested"), or out of the session ("forgotten").
    place: str
    #: Every state that it was ever in, by its history.
    states: tuple[str, ...]
    returncode: int | None
    #: How often it was written: a write done twice shows, and a lost one too.
    revision: int
    #: The names of the objects inside it.
    tasks: tuple[str, ...] = ()


#: What a name stands for: an object, the value in a row of the user's own table, or
#: nothing, where it was removed.
Content = Snapshot | int | None


@dataclass(slots=True)
class Operation:
    """One call, or one transaction block around several."""

    kind: str
    #: What the names that it writes stand for if it is done.
    writes: dict[str, Content]
    #: "done", "failed" (nothing was written), "unknown" (the commit was not
    #: answered), or None if the journal ends before it did.
    outcome: str | None = None
    #: The IDs of what was added.
    ids: dict[str, int] = field(default_factory=dict)
    #: How long it took.
    seconds: float = 0.0


class WriterError(Exception):
    """A writer met an error that it must not."""


class Journal:
    """Writes one writer's file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def begin(self, operation: Operation) -> None:
        """Note what is about to be tried."""
        writes = {name: _packed(c) for name, c in operation.writes.items()}
        self._line(begin=operation.kind, writes=writes)

    def end(
        self, outcome: str, ids: Mapping[str, int] | None = None, seconds: float = 0.0
    ) -> None:
        """Note how it ended."""
        self._line(end=outcome, ids=dict(ids or {}), seconds=seconds)

    def error(self, text: str) -> None:
        """Note what the writer died of."""
        self._line(error=text)

    def _line(self, **fields: Any) -> None:
        os.write(self._file, json.dumps(fields).encode() + b"\n")


def read(data: bytes) -> list[Operation]:
    """Return the operations in a journal; raise WriterError if it tells of one."""
    operations: list[Operation] = []
    for line in data.split(b"\n")[:-1]:
        fields = json.loads(line)
        if "error" in fields:
            raise WriterError(fields["error"])
        if "begin" in fields:
            writes = {name: _unpacked(c) for name, c in fields["writes"].items()}
            operations.append(Operation(fields["begin"], writes))
        else:
            operations[-1].outcome = fields["end"]
            operations[-1].ids = fields["ids"]
            operations[-1].seconds = fields["seconds"]
    return operations


def _packed(content: Content) -> Any:
    return asdict(content) if isinstance(content, Snapshot) else content


def _unpacked(content: Any) -> Content:
    if not isinstance(content, dict):
        return content
    lists = {name: tuple(content[name]) for name in ("states", "tasks")}
    return Snapshot(**{**content, **lists})
