"""What a task's history says, held against what its commands really did.

Each command appends lines to its task's file: its host, when it began, when this is,
both in nanoseconds, and "begin", "beat" or "end".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

from sessionstore import State, Transition

#: The shell's commands that write such lines, to the file that is ``$0``.
SHELL = """
run="$(hostname) $(date +%s%N)"
mark() { echo "$run $(date +%s%N) $1" >>"$0"; }
"""
_LEGAL = {
    None: "NEW",
    "NEW": "SUBMITTED UNKNOWN",
    "SUBMITTED": "RUNNING TERMINATED UNKNOWN",
    "RUNNING": "TERMINATING TERMINATED UNKNOWN",
    "TERMINATING": "TERMINATED UNKNOWN",
    "UNKNOWN": "SUBMITTED",
    "TERMINATED": "",
}


@dataclass(frozen=True, slots=True)
class Line:
    """What a command wrote."""

    host: str
    began_at: int
    at: int
    what: str

    @property
    def run(self) -> tuple[str, int]:
        """Which run of the task it is of."""
        return self.host, self.began_at


def lines(file: Path) -> list[Line]:
    """Return what the commands of a task have written, in order."""
    whole = [line for line in file.read_text().splitlines(True) if line[-1] == "\n"]
    words = [line.split() for line in whole]
    return [Line(host, int(began), int(at), what) for host, began, at, what in words]


def problems(history: Sequence[Transition], written: Sequence[Line]) -> Iterator[str]:
    """Say what is wrong with a task that should have been run to its end."""
    yield from _disorder(history)
    if history[-1].to_state is not State.TERMINATED or history[-1].returncode != 0:
        yield f"it was lost: {history[-1]}"
    runs = [run for run, _ in groupby(written, key=lambda line: line.run)]
    for run in {run for run in runs if runs.count(run) > 1}:
        yield f"while {run} ran it, others did: {runs}"
    begun = [line.run for line in written if line.what == "begin"]
    if len(set(begun)) != len(begun) or set(begun) != set(runs):
        yield f"its commands began {begun}, and {runs} wrote"
    recorded = [entry.host for entry in history if entry.to_state is State.RUNNING]
    # A worker may have ended before it came to start the command.
    rest = iter(recorded)
    if not all(host in rest for host, _ in runs):
        yield f"it ran on {runs}, and its history says {recorded}"
    if [line.what for line in written][-1:] != ["end"]:
        yield f"its last command did not end: {written[-1:]}"
    elif recorded[-1:] != [written[-1].host]:
        yield f"it ended on {written[-1].host}, and its history says {recorded}"


def _disorder(history: Sequence[Transition]) -> Iterator[str]:
    """Say where a history does not chain, or somebody else wrote to a run."""
    before = [None, *(entry.to_state for entry in history)]
    worker = ("", 0)
    for old, entry in zip(before, history, strict=False):
        writer = (entry.host, entry.pid)
        legal = _LEGAL[old.value if old else None].split()
        if entry.from_state != old or entry.to_state.value not in legal:
            yield f"out of order: {old}, then {entry}"
        if entry.to_state is State.SUBMITTED:
            worker = writer
        elif entry.to_state is State.UNKNOWN:
            # From its own daemon it comes, or when the lease is another's.
            lapsed = entry.info.startswith(f"the lease of {worker[0]}/")
            if entry.host != worker[0] and not lapsed:
                yield f"{worker} was at work on it when this came: {entry}"
        elif entry.to_state is not State.NEW and writer != worker:
            yield f"{worker} was at work on it when this came: {entry}"
    for earlier, later in pairwise(history):
        if earlier.at > later.at:
            yield f"the times of its history go back: {earlier}, {later}"
