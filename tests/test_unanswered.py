"""G2: a write whose commit is not answered has one effect, and is known to have it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
from sqlalchemy import make_url

from sessionstore import (
    SessionStore,
    SqlStore,
    State,
    StoreError,
    StoreUnavailableError,
    Task,
)
from sessionstore.database.scopes import Scope
from sessionstore.jobs.changes import Changes
from sessionstore.transfer import copy
from tests.test_claims import end_lease, states
from tests.unreliable import Loss, Proxy

pytestmark = pytest.mark.backends("postgresql", "mariadb")

LOSSES = pytest.mark.parametrize("loss", Loss, ids=lambda loss: loss.name.lower())


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    SessionStore(database_url, "one").close()
    proxy = Proxy(database_url)
    yield proxy
    proxy.close()


@pytest.fixture
def session(proxy: Proxy) -> Iterator[SessionStore]:
    """A session at the far end of the proxy."""
    with SessionStore(proxy.url, "one", busy_timeout=5) as session:
        yield session


@pytest.fixture
def other(database_url: str) -> SessionStore:
    """The same session, reached straight."""
    return SessionStore(database_url, "one")


@LOSSES
def test_transition_happens_once(
    session: SessionStore, other: SessionStore, proxy: Proxy, loss: Loss
) -> None:
    """G2: of an ID and of a task; and the objects are as after any other."""
    ids = session.add_many([Task(n=0), Task(n=0)])
    tasks = session.load_many(ids)
    proxy.loss = loss
    entry = session.transition(ids[0], State.SUBMITTED, expect=State.NEW)
    assert proxy.lost == 1
    assert entry == other.history(ids[0])[-1]
    tasks[ids[1]].n = 1
    proxy.loss = loss
    session.transition(tasks[ids[1]], State.SUBMITTED, expect=State.NEW)
    assert proxy.lost == 2
    for id_ in ids:
        assert states(other, id_) == ["NEW", "SUBMITTED"]
        assert not tasks[id_].changed
        session.save(tasks[id_])
    assert other.load(ids[1]).n == 1


@LOSSES
def test_object_is_added_once(
    session: SessionStore, other: SessionStore, proxy: Proxy, loss: Loss
) -> None:
    """G2, G5: with what it refers to, under the ID that is returned."""
    session.add(Task())  # so that no block of IDs has to be taken
    proxy.loss = loss
    task = Task("flow", tasks=[Task("nested")])
    id_ = session.add(task)
    assert proxy.lost == 1
    assert task.persistent_id == id_
    assert len(other) == 2
    assert len(other.store) == 3
    assert other.load(id_).tasks[0].jobname == "nested"
    session.save(task)


@LOSSES
def test_claims_writes_happen_once(
    session: SessionStore, other: SessionStore, proxy: Proxy, loss: Loss
) -> None:
    """G6: the one who claimed knows it, and each of its writes is done."""
    id_ = session.add(Task())
    proxy.loss = loss
    [claim] = session.claim()
    assert (proxy.lost, claim.attempts, claim.token) == (1, 1, 1)
    assert other.claim() == []
    for state in (State.SUBMITTED, State.RUNNING, State.TERMINATED):
        proxy.loss = loss
        claim.transition(state)
    assert proxy.lost == 4
    assert states(other, id_) == ["NEW", "SUBMITTED", "RUNNING", "TERMINATED"]


@LOSSES
def test_other_writes_happen_once(
    session: SessionStore, other: SessionStore, proxy: Proxy, loss: Loss
) -> None:
    """G2: release, recovery, redo, forgetting and removing too."""
    id_, second = session.add_many([Task(), Task()])
    [claim] = session.claim()
    claim.transition(State.SUBMITTED)
    writes: list[tuple[Callable[[], object], list[str]]] = [
        (claim.release, ["NEW", "SUBMITTED", "UNKNOWN"]),
        (session.claim, ["NEW", "SUBMITTED", "UNKNOWN"]),
        (session.recover, ["NEW", "SUBMITTED", "UNKNOWN", "UNKNOWN"]),
    ]
    for number, (write, expected) in enumerate(writes, 1):
        if number == 3:
            end_lease(other, id_)
        proxy.loss = loss
        write()
        assert proxy.lost == number
        assert states(other, id_) == expected
    other.transition(id_, State.TERMINATED)
    proxy.loss = loss
    session.redo(id_)
    assert states(other, id_)[-2:] == ["TERMINATED", "NEW"]
    proxy.loss = loss
    session.remove(id_)
    proxy.loss = loss
    session.forget(second)
    assert proxy.lost == 6
    assert len(other) == 0
    assert list(other.store.list()) == [second]


@LOSSES
def test_what_may_be_done_twice_is_done_again(
    proxy: Proxy, other: SessionStore, loss: Loss
) -> None:
    """G2: where no job's row tells, to repeat a write has no second effect."""
    session = SessionStore(proxy.url, "one")
    writes: list[Callable[[], object]] = [
        session.finish,
        lambda: SessionStore(session.store, "two"),
        SessionStore(session.store, "three").destroy,
    ]
    for number, write in enumerate(writes, 1):
        proxy.loss = loss
        write()
        assert proxy.lost == number
    assert other.finished_at is not None
    proxy.loss = loss
    id_ = session.add(Task())  # the first one takes a block of IDs
    assert proxy.lost == 4
    assert [*other.ids()] == [*other.store.list()] == [id_]
    [claim] = session.claim()
    expires_at = claim.lease_expires_at
    proxy.loss = loss
    assert claim.renew() is None
    assert claim.lease_expires_at > expires_at
    proxy.loss = loss
    assert session.request(id_, "hold")
    assert proxy.lost == 6
    assert claim.renew() == "hold"


@LOSSES
def test_copy_goes_on(proxy: Proxy, other: SessionStore, loss: Loss) -> None:
    """G1: whichever of its commits is not answered."""
    other.add_many([Task(), Task()])
    target = SqlStore(proxy.url, "copied")
    assert target.list() == []
    proxy.loss = loss
    copy(other.store, target)  # its first commit is that of the sessions
    assert proxy.lost == 1
    assert target.list() == [*other.ids()]
    assert SessionStore(target, "one", create=False).created_at == other.created_at


@LOSSES
def test_server_that_starts_again_is_waited_for(
    session: SessionStore, other: SessionStore, proxy: Proxy, loss: Loss
) -> None:
    """G2: nobody knows what came of the commit until it answers."""
    id_ = session.add(Task())
    proxy.refusals = 3
    proxy.loss = loss
    session.transition(id_, State.SUBMITTED)
    assert states(other, id_) == ["NEW", "SUBMITTED"]


def leave_in_doubt(write: Callable[[], object]) -> None:
    """Write, and see that nobody knows what became of it."""
    with pytest.raises(
        StoreUnavailableError, match="may have been committed"
    ) as caught:
        write()
    assert caught.value.outcome_unknown


def test_outcome_is_unknown_if_the_server_stays_away(
    proxy: Proxy, other: SessionStore
) -> None:
    """The error says so, and the objects are as before the call."""
    session = SessionStore(proxy.url, "one", busy_timeout=0.2)
    task = Task()
    id_ = session.add(task)
    proxy.refusals = 1000
    proxy.loss = Loss.ANSWER
    leave_in_doubt(lambda: session.transition(id_, State.SUBMITTED))
    assert task.execution.state is State.NEW


@LOSSES
def test_doubt_stays_if_the_repetition_fails(
    session: SessionStore, proxy: Proxy, loss: Loss
) -> None:
    """G2: the second try was certainly in vain, and nobody knows of the first."""
    id_ = session.add(Task())
    [claim] = session.claim()
    expires_at = claim.lease_expires_at
    writes: list[Callable[[], object]] = [
        session.finish,
        claim.renew,
        lambda: session.request(id_, "hold"),
        lambda: SessionStore(session.store, "two"),
        SessionStore(session.store, "three").destroy,
    ]
    for number, write in enumerate(writes, 1):
        proxy.refusals = 1
        proxy.loss = loss
        leave_in_doubt(write)
        assert proxy.lost == number
        proxy.refusals = 0
        write()
    assert claim.lease_expires_at > expires_at


def test_block_of_ids_leaves_no_doubt(
    session: SessionStore,
    other: SessionStore,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """G2: the answers lost were about the block, and nothing of the object was sent."""
    connections = session._index.database.connections
    opened = connections.open

    def open_and_lose() -> object:
        kept = opened()
        proxy.loss = Loss.ANSWER
        return kept

    monkeypatch.setattr(connections, "open", open_and_lose)
    session.close()
    task = Task()
    with pytest.raises(StoreUnavailableError) as caught:
        session.add(task)
    assert proxy.lost == 2
    assert not caught.value.outcome_unknown
    assert "may have been committed" not in str(caught.value)
    monkeypatch.undo()
    proxy.loss = None
    assert [session.add(task)] == [*other.ids()] == [*other.store.list()]


def test_login_that_is_cut_off_leaves_no_doubt(
    database_url: str, backend: str, proxy: Proxy
) -> None:
    """G2: nothing was sent yet, whatever the driver calls it."""
    others = {"postgresql": "postgresql+psycopg2", "mariadb": "mysql+pymysql"}
    url = make_url(proxy.url).set(drivername=others[backend])
    store, task = SqlStore(url), Task()
    store.save(Task())
    store.close()
    proxy.refusals = 1000
    proxy.cut()
    with pytest.raises(StoreUnavailableError) as caught:
        store.save(task)
    assert not caught.value.outcome_unknown
    proxy.refusals = 0
    proxy.cut()
    store.save(task)
    assert len(store) == 2


@LOSSES
@pytest.mark.parametrize("around", [True, False], ids=["around", "alone"])
def test_update_can_be_tried_again_whatever_its_commit_came_to(
    proxy: Proxy, other: SessionStore, loss: Loss, around: bool
) -> None:
    """G2: it goes on from what is there, also in the parts, when the server is back."""
    session = SessionStore(proxy.url, "one", busy_timeout=0.2)
    task = Task(n=0, tasks=[Task(n=0)])
    id_ = session.add(task)

    def count() -> None:
        with session.transaction() if around else nullcontext():
            with session.update(id_) as mine:
                mine.n += 1
                mine.tasks[0].n += 1

    proxy.refusals = 1000
    proxy.loss = loss
    with pytest.raises(StoreUnavailableError):
        count()
    assert proxy.lost == 1
    assert not task.changed
    proxy.allow()
    count()
    expected = 2 if loss is Loss.ANSWER else 1
    assert (task.n, task.tasks[0].n) == (expected, expected)
    read = other.load(id_)
    assert (read.n, read.tasks[0].n) == (expected, expected)


@pytest.fixture
def impatient(proxy: Proxy) -> Iterator[SessionStore]:
    """A session that does not wait for the server, and has IDs at hand."""
    with SessionStore(proxy.url, "one", busy_timeout=0.2) as session:
        session.remove(session.add(Task()))
        yield session


def lose(proxy: Proxy, loss: Loss, write: Callable[[], object]) -> None:
    """Write, and have the server go away with COMMIT; it is there again afterwards."""
    proxy.refusals = 1000
    proxy.loss = loss
    leave_in_doubt(write)
    proxy.refusals = 0
    proxy.cut()


def add_in_block(session: SessionStore, tasks: list[Task]) -> None:
    with session.transaction():
        session.add_many(tasks)


ADDING: dict[str, Callable[[SessionStore, list[Task]], object]] = {
    "add": lambda session, tasks: [session.add(task) for task in tasks],
    "add_many": lambda session, tasks: session.add_many(tasks * 2),
    "block": add_in_block,
    "save": lambda session, tasks: [session.store.save(task) for task in tasks],
    "save_many": lambda session, tasks: session.store.save_many(tasks),
}


@LOSSES
@pytest.mark.parametrize("way", ADDING)
def test_what_may_be_stored_is_not_stored_again(
    impatient: SessionStore, other: SessionStore, proxy: Proxy, loss: Loss, way: str
) -> None:
    """G2, G5: by the same call; and what was changed since is not lost."""
    tasks = [Task("flow", n=1, tasks=[Task("nested", n=1)])]
    lose(proxy, loss, lambda: ADDING[way](impatient, tasks))
    [task] = tasks
    assert (task.persistent_id, task.changed) == (None, True)
    task.n = task.tasks[0].n = 2
    ADDING[way](impatient, tasks)
    assert not task.changed
    assert len(other) == (0 if way.startswith("save") else 1)
    stored = {each.jobname: each.n for each in other.store.iter_objects()}
    assert stored == {"flow": 2, "nested": 2}
    assert len(other.store) == 2
    assert impatient.store.load(task.persistent_id) is task
    if len(other):
        impatient.transition(task, State.SUBMITTED)
        assert states(other, task.persistent_id) == ["NEW", "SUBMITTED"]


@LOSSES
def test_row_that_may_be_there_is_not_inserted_again(
    impatient: SessionStore, other: SessionStore, proxy: Proxy, loss: Loss
) -> None:
    """G5: without a COMMIT of its own, too."""
    task = Task()
    proxy.pattern = re.compile(b"INSERT INTO store ")
    lose(proxy, loss, lambda: impatient.store.save(task))
    assert impatient.store.save(task) == task.persistent_id
    assert other.store.list() == [task.persistent_id]


def test_row_of_another_program_is_not_taken_for_ones_own(
    impatient: SessionStore, other: SessionStore, proxy: Proxy
) -> None:
    """G5: nor written over, if its ID is the one that was tried."""
    saved, added = Task("saved"), Task("added")
    lose(proxy, Loss.COMMIT, lambda: impatient.store.save_many([saved, Task()]))
    lose(proxy, Loss.COMMIT, lambda: impatient.add(added))
    with other.transaction() as connection:
        for id_ in range(1, 20):
            connection.exec_driver_sql(f"INSERT INTO store (id) VALUES ({id_})")
    impatient.store.save_many([saved, Task()])
    impatient.add(added)
    assert len(other.store) == 19 + 3
    assert other.store.count(state="UNKNOWN") == 19


def test_removed_object_gets_a_new_id(
    impatient: SessionStore, other: SessionStore, proxy: Proxy
) -> None:
    """G5: also one that was in doubt."""
    task = Task()
    lose(proxy, Loss.COMMIT, lambda: impatient.add(task))
    id_ = impatient.add(task)
    impatient.remove(id_)
    assert impatient.add(task) != id_


def test_write_that_was_written_over_is_not_repeated(
    session: SessionStore,
    other: SessionStore,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """G2: where the row tells no more, nobody guesses."""
    id_ = session.add(Task())
    connections = session._index.database.connections
    opened = connections.open

    def open_late() -> object:
        if proxy.lost and states(other, id_)[-1] == "SUBMITTED":
            other.transition(id_, State.RUNNING)
        return opened()

    monkeypatch.setattr(connections, "open", open_late)
    proxy.loss = Loss.ANSWER
    with pytest.raises(StoreUnavailableError) as caught:
        session.transition(id_, State.SUBMITTED)
    assert caught.value.outcome_unknown
    assert states(other, id_) == ["NEW", "SUBMITTED", "RUNNING"]


@LOSSES
def test_callers_own_transaction_is_not_repeated(
    session: SessionStore, other: SessionStore, proxy: Proxy, loss: Loss
) -> None:
    """G2: it is known to be committed, or to be rolled back."""
    id_, second = session.add_many([Task(), Task()])
    proxy.loss = loss
    block = session.transaction()
    block.__enter__()
    session.transition(id_, State.SUBMITTED)
    session.transition(second, State.UNKNOWN)
    session.remove(second)
    if loss is Loss.ANSWER:
        block.__exit__(None, None, None)
        assert states(other, id_) == ["NEW", "SUBMITTED"]
        assert len(other) == 1
    else:
        with pytest.raises(StoreUnavailableError, match="rolled back") as caught:
            block.__exit__(None, None, None)
        assert not caught.value.outcome_unknown
        assert states(other, id_) == ["NEW"]
        assert len(other) == 2


@LOSSES
def test_removal_tells_of_nothing_else(
    session: SessionStore,
    other: SessionStore,
    proxy: Proxy,
    loss: Loss,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """G1: what was added in the block is gone in any case, and others remove too."""
    id_, second = session.add_many([Task(), Task()])
    connections = session._index.database.connections
    opened = connections.open

    def open_late() -> object:
        if proxy.lost and second in other:
            other.remove(second)
        return opened()

    proxy.loss = loss
    block = session.transaction()
    block.__enter__()
    session.transition(id_, State.SUBMITTED)
    session.remove(second)
    added = session.add_many([Task(), Task()])
    session.remove(added[0])
    monkeypatch.setattr(connections, "open", open_late)
    if loss is Loss.ANSWER:
        block.__exit__(None, None, None)
        assert states(other, id_) == ["NEW", "SUBMITTED"]
        assert len(other) == 2
    else:
        with pytest.raises(StoreUnavailableError, match="rolled back"):
            block.__exit__(None, None, None)
        assert states(other, id_) == ["NEW"]
        assert len(other) == 1


@LOSSES
def test_what_is_added_and_changed_tells(
    session: SessionStore, other: SessionStore, proxy: Proxy, loss: Loss
) -> None:
    """G2: it is there if the transaction was committed, and not otherwise."""
    session.remove(session.add(Task()))
    proxy.loss = loss
    block = session.transaction()
    block.__enter__()
    session.transition(session.add(Task()), State.SUBMITTED)
    if loss is Loss.ANSWER:
        block.__exit__(None, None, None)
        assert len(other) == 1
    else:
        with pytest.raises(StoreUnavailableError, match="rolled back") as caught:
            block.__exit__(None, None, None)
        assert not caught.value.outcome_unknown
        assert len(other) == 0


@pytest.mark.parametrize("loss", Loss, ids=lambda loss: loss.name.lower())
def test_without_the_write_id_the_outcome_is_unknown(
    session: SessionStore,
    proxy: Proxy,
    loss: Loss,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """G2: the tests above would see it."""
    id_ = session.add(Task())
    monkeypatch.setattr(
        "sessionstore.jobs.witnesses.Witnesses.write_id",
        lambda *_: "nobody asks for it",
    )
    proxy.loss = loss
    with pytest.raises(StoreUnavailableError) as caught:
        session.transition(id_, State.SUBMITTED)
    assert caught.value.outcome_unknown


@pytest.mark.backends("postgresql")
def test_what_follows_a_commit_fails_no_write(
    database_url: str, other: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G2: as NOTIFY, which has a lock to wait for; and it is sent again."""
    session = SessionStore(database_url, "one")
    with session.transaction() as connection:
        connection.exec_driver_sql("CREATE SEQUENCE tries")
    # A sequence moves on for good: this divides by zero once.
    fails_once = "SELECT 1 / (nextval('tries') - 1)"
    tell = Changes._tell

    def tell_at_the_second_try(changes: Changes, scope: Scope) -> None:
        scope.with_commit.append(fails_once)
        tell(changes, scope)

    monkeypatch.setattr(Changes, "_tell", tell_at_the_second_try)
    other.wait(0)
    task = Task()
    id_ = session.add(task)
    assert other.wait(20)
    assert (task.persistent_id, task.changed) == (id_, False)
    session.transition(id_, State.SUBMITTED)
    assert states(other, id_) == ["NEW", "SUBMITTED"]
    assert [*other.ids()] == [id_]


@pytest.mark.backends("postgresql")
def test_refused_commit_is_no_write(database_url: str, other: SessionStore) -> None:
    """G2: what a constraint refuses only then is told as it is, and leaves nothing."""
    session = SessionStore(database_url, "one")
    with session.transaction() as connection:
        connection.exec_driver_sql("CREATE TABLE own (id INT PRIMARY KEY)")
        connection.exec_driver_sql(
            "CREATE TABLE ref (id INT REFERENCES own INITIALLY DEFERRED)"
        )
    task = Task()
    with pytest.raises(StoreError, match="foreign key"):
        with session.transaction() as connection:
            connection.exec_driver_sql("INSERT INTO ref VALUES (1)")
            session.add(task)
    assert (task.persistent_id, task.changed) == (None, True)
    assert len(other) == 0
    session.add(task)
    assert len(other) == 1


@LOSSES
def test_where_no_row_tells_nobody_guesses(
    session: SessionStore, proxy: Proxy, loss: Loss
) -> None:
    """G1: what is gone whether or not it was added says nothing of the rest."""
    session.remove(session.add(Task()))
    proxy.loss = loss
    block = session.transaction()
    block.__enter__()
    ids = session.add_many([Task(), Task(), Task()])
    session.remove(ids[0])
    session.remove(ids[1])
    with pytest.raises(StoreUnavailableError) as caught:
        block.__exit__(None, None, None)
    assert caught.value.outcome_unknown
