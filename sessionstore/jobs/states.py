"""Which states there are, and which may follow which."""

from __future__ import annotations

from collections.abc import Collection

from sessionstore.errors import TransitionError
from sessionstore.task import State

__all__ = ["check_transition", "state_from", "states_from"]

_ANY = frozenset(State)
_LEGAL: dict[State, frozenset[State]] = {
    State.NEW: frozenset({State.SUBMITTED, State.UNKNOWN}),
    State.SUBMITTED: frozenset(
        {State.RUNNING, State.STOPPED, State.TERMINATED, State.UNKNOWN}
    ),
    State.RUNNING: frozenset(
        {State.TERMINATING, State.TERMINATED, State.STOPPED, State.UNKNOWN}
    ),
    State.STOPPED: frozenset(
        {
            State.SUBMITTED,
            State.RUNNING,
            State.TERMINATING,
            State.TERMINATED,
            State.UNKNOWN,
        }
    ),
    State.TERMINATING: frozenset({State.TERMINATED, State.UNKNOWN}),
    State.TERMINATED: frozenset(),
    State.UNKNOWN: _ANY - {State.NEW},
}


def check_transition(id_: int, old: str, new: State) -> None:
    """Raise TransitionError unless a job may go from ``old`` to ``new``."""
    # Who writes to the table directly may have put anything there.
    legal = _LEGAL[State(old)] if old in _LEGAL else _ANY
    if new not in legal:
        allowed = ", ".join(sorted(legal)) or "no other state, except by redo()"
        raise TransitionError(
            f"task {id_} cannot go from {old} to {new}; from {old} it can go to "
            f"{allowed}",
            id=id_,
        )


def state_from(value: State | str, id_: object = None) -> State:
    """Return a State, or raise TransitionError naming those that there are."""
    try:
        return State(value)
    except ValueError:
        raise TransitionError(
            f"there is no state {str(value)!r}; choose from {', '.join(State)}", id=id_
        ) from None


def states_from(
    values: State | str | Collection[State | str] | None,
) -> Collection[State] | None:
    """Return States, in the order given, or None; or raise as ``state_from`` does."""
    if values is None:
        return None
    if isinstance(values, str):
        return (state_from(values),)
    return tuple(dict.fromkeys(map(state_from, values)))
