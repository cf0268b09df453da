"""Tasks: objects whose life is a path through states."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from sessionstore.persistable import Persistable

__all__ = ["Run", "State", "Task"]


class State(StrEnum):
    """Where a task is in its life.

    In a session a task goes from state to state as follows:

    - NEW to SUBMITTED, UNKNOWN
    - SUBMITTED to RUNNING, STOPPED, TERMINATED, UNKNOWN
    - RUNNING to TERMINATING, TERMINATED, STOPPED, UNKNOWN
    - STOPPED to SUBMITTED, RUNNING, TERMINATING, TERMINATED, UNKNOWN
    - TERMINATING to TERMINATED, UNKNOWN
    - UNKNOWN to SUBMITTED, RUNNING, STOPPED, TERMINATING, TERMINATED, UNKNOWN
    - TERMINATED to none; ``SessionStore.redo`` makes it NEW

    >>> from sessionstore import State
    >>> State.NEW == "NEW"
    True
    """

    #: Nobody has begun to work on it.
    NEW = "NEW"
    #: Somebody has taken it, or some queue; its work is to begin.
    SUBMITTED = "SUBMITTED"
    #: Its work is under way.
    RUNNING = "RUNNING"
    #: Its work pauses until it is resumed.
    STOPPED = "STOPPED"
    #: Its work has ended, and its results are being gathered.
    TERMINATING = "TERMINATING"
    #: It is over, well or not: see ``Run.returncode``.
    TERMINATED = "TERMINATED"
    #: Nobody knows what became of its work; it is to be tried again.
    UNKNOWN = "UNKNOWN"


class Run:
    """One task's execution: its state, and how it ended.

    ``returncode`` is encoded as by ``os.wait()``: the low byte is the signal that
    ended the command (0 for none), the next one its exit code, as Unix keeps it.  So
    an exit code goes in as ``code << 8``.  It is None before the end.

    ``info`` is a text of the program's own, as in GC3Pie.  Sessions leave it alone: why
    a transition was made is in the history.
    """

    def __init__(self, state: State | str = State.NEW) -> None:
        self.state = state
        self.returncode: int | None = None
        self.info = ""

    @property
    def state(self) -> State:
        """The task's state; assigning anything but a State is a ValueError."""
        return self._state

    @state.setter
    def state(self, value: State | str) -> None:
        self._state = State(value)

    @property
    def signal(self) -> int | None:
        """The number of the signal that ended the command; 0 for none, None before."""
        return None if self.returncode is None else self.returncode & 0x7F

    @property
    def exitcode(self) -> int | None:
        """The command's exit code; None before it ended."""
        return None if self.returncode is None else (self.returncode >> 8) & 0xFF

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        self.__dict__["_changed"] = True

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k != "_changed"}

    def __repr__(self) -> str:
        return f"<Run {self.state} returncode={self.returncode}>"


class Task(Persistable):
    """A job with a name, a state, and whatever attributes its user gives it.

    >>> from sessionstore import Task
    >>> task = Task("count", path="/etc/passwd")
    >>> task.jobname, task.path, str(task.execution.state)
    ('count', '/etc/passwd', 'NEW')

    A subclass whose attribute ``tasks`` lists other tasks is a workflow.
    """

    def __init__(self, jobname: str = "", **attributes: object) -> None:
        self.jobname = jobname
        self.execution = Run()
        for name, value in attributes.items():
            setattr(self, name, value)

    if TYPE_CHECKING:
        # A task may have any attribute.  Not at run time, as pickle asks each object
        # that it reads for a __setstate__.
        def __getattr__(self, name: str) -> object: ...

    @property
    def changed(self) -> bool:
        """Whether the task or its ``execution`` differs from what its store holds."""
        run = self.__dict__.get("execution")
        return self._changed or bool(getattr(run, "_changed", False))

    @changed.setter
    def changed(self, value: bool) -> None:
        self.__dict__["_changed"] = bool(value)
        run = self.__dict__.get("execution")
        if isinstance(run, Run):
            run.__dict__["_changed"] = bool(value)

    def __repr__(self) -> str:
        # A subclass may not have called our __init__, or not yet.
        name = getattr(self, "jobname", "")
        run = self.__dict__.get("execution")
        state = getattr(run, "state", "no execution")
        return f"<{type(self).__name__} {name!r} id={self.persistent_id} {state}>"
