"""Children for tests: what they return, raise, and leave."""

from __future__ import annotations

import os
import signal
import sys
import time

import psutil
import pytest

from sessionstore.testing import Child, ChildError, run_forked


def test_result_comes_back() -> None:
    """It was made in another process."""
    assert run_forked(os.getpid) != os.getpid()
    assert run_forked(lambda size: b"x" * size, 10**7) == b"x" * 10**7


def test_exception_comes_back_with_the_childs_traceback() -> None:
    """So that pytest.raises works, and a failure shows the line."""

    def fail() -> None:
        raise KeyError("here")

    with pytest.raises(KeyError) as caught:
        run_forked(fail)
    assert "in fail" in caught.value.__notes__[0]


def test_failed_assertion_of_the_child_fails_the_test() -> None:
    """With the values that pytest shows."""

    def fail() -> None:
        value = 7
        assert value == 8

    with pytest.raises(AssertionError, match="7 == 8"):
        run_forked(fail)


class AwkwardError(Exception):
    """Pickles, and cannot be made again."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one + two)


def test_exception_that_does_not_pickle_is_told() -> None:
    """Its traceback is in the ChildError."""

    def fail() -> None:
        raise AwkwardError(1, 2)

    with pytest.raises(ChildError, match="AwkwardError: 3"):
        run_forked(fail)


def test_result_that_does_not_pickle_is_told() -> None:
    """It is the test that must return something else."""
    with pytest.raises(Exception, match="pickle"):
        run_forked(lambda: lambda: None)


def test_leaving_the_child_does_not_leave_the_test() -> None:
    """Neither by sys.exit nor by os._exit."""
    with pytest.raises(ChildError, match="SystemExit: 3"):
        run_forked(sys.exit, 3)
    with pytest.raises(ChildError, match="left with status 4"):
        run_forked(os._exit, 4)
    with pytest.raises(ChildError, match="left with status 0"):
        run_forked(os._exit, 0)


def test_killed_child_is_told() -> None:
    """With the signal, and where it was if it could tell."""
    with pytest.raises(ChildError, match="signal 9"):
        run_forked(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ChildError, match="test_killed_child_is_told"):
        run_forked(lambda: os.kill(os.getpid(), signal.SIGSEGV))


def hang() -> None:
    """Take no notice of an alarm or a polite request."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGTERM})
    while True:
        time.sleep(1000)


def test_child_that_hangs_is_ended_and_says_where() -> None:
    """Its stack is in the ChildError, and the test goes on."""
    with pytest.raises(ChildError, match=r"not done in 0\.2 s") as caught:
        run_forked(hang, timeout=0.2)
    assert "in hang" in str(caught.value)


def test_grandchild_that_stays_does_not_hold_the_test_up() -> None:
    """Though it has inherited the pipe."""

    def leave_one_behind() -> int:
        pid = os.fork()
        if pid == 0:
            hang()
        return pid

    grandchild = run_forked(leave_one_behind, timeout=30)
    psutil.Process(grandchild).kill()


def test_children_run_side_by_side() -> None:
    """Each waits for the other."""
    (one_reads, two_writes), (two_reads, one_writes) = os.pipe(), os.pipe()

    def meet(reader: int, writer: int) -> bytes:
        os.write(writer, b"x")
        return os.read(reader, 1)

    children = [
        Child(meet, one_reads, one_writes),
        Child(meet, two_reads, two_writes),
    ]
    assert [child.wait() for child in children] == [b"x", b"x"]
    for descriptor in (one_reads, two_writes, two_reads, one_writes):
        os.close(descriptor)


def test_nothing_is_left_of_a_child() -> None:
    """No descriptor and no zombie, however it ended."""
    before, others = psutil.Process().num_fds(), psutil.Process().children()
    run_forked(int)
    for function in (os.abort, sys.exit):
        with pytest.raises(ChildError):
            run_forked(function)
    Child(hang).kill()
    assert psutil.Process().num_fds() == before
    assert psutil.Process().children() == others
