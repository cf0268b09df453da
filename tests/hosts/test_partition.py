"""Several hosts share a session; one of them is cut off, and comes back."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from sessionstore import State, Transition
from tests.daemon.conftest import all_ended, states, until
from tests.hosts.conftest import MARKS, Hosts
from tests.systemd.host import UNIT

#: Ends when the test says so.
LONG = f"while [ ! -e {MARKS}/go ]; do mark beat; sleep .1; done"
SHORT = "sleep .2"
#: libpq's options by which a daemon finds out within seconds that it hears nothing.
IMPATIENT = "&tcp_user_timeout=2000&connect_timeout=2"
#: Seconds: a host cut off while it writes a row has it until the server notices.
RELEASED = 120
RUN_ONCE = ["NEW", "SUBMITTED", "RUNNING", "TERMINATING", "TERMINATED"]


def lost(hosts: Hosts, id_: int) -> Transition:
    """Return how a task was taken from its first holder."""
    history = hosts.session.history(id_)
    return next(entry for entry in history if entry.to_state is State.UNKNOWN)


def set_to_work(hosts: Hosts) -> list[int]:
    """Have the first host begin two long tasks, which it returns, and all many more."""
    one, *others = hosts.hosts.values()
    one.box.systemctl("start", UNIT)
    ids = [hosts.add(LONG), hosts.add(LONG)]
    until(lambda: all(hosts.written(id_) for id_ in ids))
    for host in others:
        host.box.systemctl("start", UNIT)
    for _ in range(20):
        hosts.add(SHORT)
    return ids


def cut_off_and_come_back(hosts: Hosts, is_told: bool = False) -> dict[int, float]:
    """Let the first host be cut off from its two tasks, until others have them.

    Return the IDs of the two, when all tasks have ended, with the end of its leases.
    ``is_told`` says that its daemon has to notice that it is cut off.
    """
    session, one = hosts.session, hosts.hosts["one"]
    ids = set_to_work(hosts)
    hosts.network.cut("one")
    assert [hosts.ran_on(id_) for id_ in ids] == [["one"], ["one"]]
    ends = {id_: hosts.lease_ends_at(id_) for id_ in ids}
    if is_told:
        until(lambda: one.show("StatusText").startswith("waiting: "))
    # Its daemon alone is left, though it cannot be heard of, nor hear, that they
    # are another's.
    until(lambda: hosts.processes("one") == 1)
    until(lambda: all(len(hosts.ran_on(id_)) > 1 for id_ in ids), RELEASED)
    hosts.network.mend("one")

    def has_new_work() -> bool:
        new = hosts.add(SHORT)
        until(lambda: session.history(new)[-1].to_state is State.TERMINATED)
        return "one" in hosts.ran_on(new)

    until(has_new_work)
    (hosts.marks / "go").touch()
    until(lambda: all_ended(session))
    return ends


@pytest.mark.parametrize("options", ["", IMPATIENT])
def test_no_task_is_lost_or_has_two_holders(
    make_hosts: Callable[..., Hosts], options: str
) -> None:
    """G6: the host that returns is refused, and goes on with new work.

    It ended its commands while it still had the lease.
    """
    hosts = make_hosts(options=options)
    ends = cut_off_and_come_back(hosts, is_told=bool(options))
    assert hosts.problems() == {}
    said = "\n".join(hosts.hosts["one"].said())
    for id_, lease_ended_at in ends.items():
        assert lost(hosts, id_).info.startswith("the lease of one/")
        assert f"task {id_} is now held by" in said
        assert "stop working on it, and claim new work" in said
        last = max(line.at for line in hosts.written(id_) if line.host == "one")
        assert last / 1e9 < lease_ended_at


def test_result_is_kept_until_the_link_is_back(
    make_hosts: Callable[..., Hosts],
) -> None:
    """G1: by a plain URL the daemon finds out, says so, and is not restarted for it.

    The lease still holds when the worker can write.
    """
    hosts = make_hosts(lease=600)
    session, one = hosts.session, hosts.hosts["one"]
    one.box.systemctl("start", UNIT)
    id_ = hosts.add(LONG)
    until(lambda: hosts.written(id_))
    hosts.network.cut("one")
    (hosts.marks / "go").touch()
    # Before the watchdog bites, after 60 seconds.
    until(lambda: one.show("StatusText").startswith("waiting: "), 120)
    assert hosts.written(id_)[-1].what == "end"
    assert session.history(id_)[-1].to_state is State.RUNNING
    hosts.network.mend("one")
    until(lambda: all_ended(session), 120)
    assert states(session, id_) == RUN_ONCE
    assert hosts.problems() == {}
    until(lambda: one.show("StatusText") == "1 TERMINATED")
    assert one.restarts() == 0


def test_tasks_of_a_host_that_vanishes_are_run_by_others(
    make_hosts: Callable[..., Hosts],
) -> None:
    """G6: when its leases run out, or when it was booted and finds that it has none."""
    hosts = make_hosts()
    ids = set_to_work(hosts)
    hosts.network.cut("one")
    hosts.hosts["one"].box.end()
    hosts.boot("one")
    hosts.hosts["one"].box.systemctl("start", UNIT)
    until(lambda: all(len(hosts.ran_on(id_)) > 1 for id_ in ids), RELEASED)
    (hosts.marks / "go").touch()
    until(lambda: all_ended(hosts.session))
    assert hosts.problems() == {}
    for id_ in ids:
        assert re.match("(the lease of|its holder) one/", lost(hosts, id_).info)


def test_without_tokens_a_task_would_have_two_holders(
    make_hosts: Callable[..., Hosts],
) -> None:
    """G6: where nobody asks for them the replay finds what the host wrote."""
    hosts = make_hosts(more="import tests.hosts.unfenced")
    cut_off_and_come_back(hosts)
    assert "was at work on it when this came" in str(hosts.problems())
