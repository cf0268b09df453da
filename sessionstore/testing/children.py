"""Forked children for tests, with a time limit; their errors reach the parent."""

from __future__ import annotations

import faulthandler
import os
import pickle
import select
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

__all__ = ["Child", "ChildError", "run_forked"]

#: Seconds that a child has by default.
TIMEOUT = 60.0


class ChildError(AssertionError):
    """A child was killed, hung, or raised something that cannot be pickled."""


class Child:
    """A forked process that runs one function, and leaves by ``os._exit``.

    So nothing of the test run is done in the child: no fixture is torn down, no buffer
    written, no report made.  What the function returns must pickle.  A child that is
    not done in ``timeout`` seconds is ended by ``wait``.

    >>> from sessionstore.testing import Child
    >>> child = Child(lambda: 6 * 7)
    >>> child.wait()
    42
    """

    def __init__(
        self, function: Callable[..., object], *args: object, timeout: float = TIMEOUT
    ) -> None:
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._stacks = tempfile.TemporaryFile()  # noqa: SIM115 - wait closes it
        self._reader, writer = os.pipe()
        #: The child's process ID.
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._reader)
                # At a crash, or the parent's SIGABRT, it writes where the child was.
                faulthandler.enable(self._stacks)
                with open(writer, "wb") as pipe:
                    pipe.write(_outcome(function, args))
                os._exit(0)
            finally:
                os._exit(1)
        os.close(writer)
        #: Whether ``wait`` has been through.
        self.is_waited_for = False

    def wait(self) -> Any:
        """Wait for the child's end, and return what its function returned.

        What the function raised is raised here, with the child's traceback as a note.

        Raises ChildError if the child was killed, was not done in time, or left in
        another way than by its function's end.
        """
        said, stacks, status = self._follow()
        code = os.waitstatus_to_exitcode(status)
        if said and code == 0:
            result, error, trace = pickle.loads(said)
            if error is not None:
                error.add_note(f"In the child {self.pid}:\n{trace}")
                raise error
            if trace:
                raise ChildError(f"in the child {self.pid}:\n{trace}")
            return result
        how = f"was ended by signal {-code}" if code < 0 else f"left with status {code}"
        if time.monotonic() > self._deadline:
            how = f"was not done in {self._timeout:g} s"
        raise ChildError(f"the child {self.pid} {how}\n{stacks}".rstrip())

    def kill(self) -> None:
        """End the child, if it has not been waited for."""
        if not self.is_waited_for:
            os.kill(self.pid, signal.SIGKILL)
            self._deadline = float("inf")
            self._follow()

    def _follow(self) -> tuple[bytes, str, int]:
        """Read what the child writes until it is gone.

        Returns that, the stacks that it wrote in a crash, and its status.
        """
        said = bytearray()
        is_open = True
        ended = 0
        while not ended:
            # Not only until the pipe ends, as a grandchild may hold it open.
            if is_open and select.select([self._reader], [], [], 0.02)[0]:
                is_open = _read_into(said, self._reader)
            else:
                ended, status = os.waitpid(self.pid, os.WNOHANG if is_open else 0)
            if not ended and time.monotonic() > self._deadline:
                ended, status = self._abort()
        while is_open and select.select([self._reader], [], [], 0)[0]:
            is_open = _read_into(said, self._reader)
        os.close(self._reader)
        with self._stacks:
            self._stacks.seek(0)
            stacks = self._stacks.read().decode(errors="replace")
        self.is_waited_for = True
        return bytes(said), stacks, status

    def _abort(self) -> tuple[int, int]:
        """End a child that hangs, and make it write where."""
        os.kill(self.pid, signal.SIGABRT)
        patience = time.monotonic() + 2
        while time.monotonic() < patience:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                return ended, status
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        return os.waitpid(self.pid, 0)


def run_forked(
    function: Callable[..., object], *args: object, timeout: float = TIMEOUT
) -> Any:
    """Run a function in a forked child, and return what it returned there.

    ``timeout`` is in seconds, and what it returns must pickle.

    Raises what the function raised, and ChildError as ``Child.wait`` does.

    >>> from sessionstore.testing import run_forked
    >>> run_forked(divmod, 7, 3)
    (2, 1)
    """
    return Child(function, *args, timeout=timeout).wait()


def _read_into(said: bytearray, reader: int) -> bool:
    """Read what is in the pipe, and say whether there may be more."""
    chunk = os.read(reader, 65536)
    said += chunk
    return bool(chunk)


def _outcome(function: Callable[..., object], args: tuple[object, ...]) -> bytes:
    """Return result, exception and traceback of a call, pickled."""
    try:
        return pickle.dumps((function(*args), None, ""))
    except BaseException as error:
        trace = traceback.format_exc()
        # Raised again in the parent, these would end it too.
        if not isinstance(error, SystemExit | KeyboardInterrupt):
            try:
                said = pickle.dumps((None, error, trace))
                pickle.loads(said)
            except Exception:  # whatever an exception of the user's own may do
                pass
            else:
                return said
        return pickle.dumps((None, None, trace))
