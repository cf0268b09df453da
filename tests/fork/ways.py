"""The ways to fork: each calls ``scene.child()`` in a child, and waits for its end."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import daemon
from sqlalchemy import event

from sessionstore import ForkError
from tests.fork.matrix import Child, Database, Parent, Way

if TYPE_CHECKING:
    from tests.fork.scene import Scene

__all__ = ["WAYS"]

#: Seconds that a parent waits for what must come at once.
PATIENCE = 15


def bare(scene: Scene) -> None:
    """Call os.fork in the main thread."""
    if os.fork() == 0:
        scene.child()
        os._exit(0)
    wait_for_children()


def wait_for_children() -> None:
    """Wait for all children, adopted grandchildren too; each must have done well."""
    while True:
        try:
            _, status = os.wait()
        except ChildProcessError:
            return
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGALRM:
            raise RuntimeError("a child hung")
        if code:
            raise RuntimeError(f"a child ended with {code}")


def adopt_orphans() -> None:
    """Become the parent of grandchildren whose own parent has ended."""
    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)


def nested(scene: Scene) -> None:
    """Fork in a forked child."""
    if os.fork() == 0:
        if os.fork() == 0:
            scene.child()
            os._exit(0)
        wait_for_children()
        os._exit(0)
    wait_for_children()


def inside_transaction(scene: Scene) -> None:
    """Fork in a block inside the block."""
    scene.transaction.enter_context(scene.subject.nested())
    bare(scene)


def during_iteration(scene: Scene) -> None:
    """Fork in the body of a loop over the rows."""
    if not scene.cell.in_transaction:
        scene.write("second")
    with closing(scene.subject.iterate()) as labels:
        next(labels)
        bare(scene)
        rest = sum(1 for _ in labels)
    if not rest:
        raise RuntimeError("the parent's loop ended at the fork")


def while_threads_write(scene: Scene) -> None:
    """Fork while two threads write row after row."""
    done = threading.Event()
    started = threading.Barrier(3)
    errors: list[BaseException] = []

    def work(place: int) -> None:
        try:
            for number in range(10_000):
                scene.write(f"thread {place}.{number}")
                if not number:
                    started.wait(PATIENCE)
                if done.is_set():
                    return
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    started.wait(PATIENCE)
    bare(scene)
    done.set()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def while_thread_connects(scene: Scene) -> None:
    """Fork while another thread is setting up a connection."""
    connecting, go_on = threading.Event(), threading.Event()

    def pause(connection: object, record: object) -> None:
        scene.remember(connection, record)
        if threading.current_thread() is thread:
            connecting.set()
            go_on.wait(PATIENCE)

    # Before SQLAlchemy's own listener, which initialises the dialect.
    event.listen(scene.subject.engine, "connect", pause, insert=True)
    thread = threading.Thread(target=scene.subject.prepare, daemon=True)
    thread.start()
    if not connecting.wait(PATIENCE):
        raise RuntimeError("the other thread did not connect")
    bare(scene)
    go_on.set()
    thread.join()


def from_thread(scene: Scene) -> None:
    """Fork in another thread than the main one."""
    in_thread(lambda: bare(scene))


def in_thread(function: Callable[[], None]) -> None:
    """Run a function in a thread of its own, and raise here what it raises there."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def multiprocessing_fork(scene: Scene) -> None:
    """Start a multiprocessing.Process that is forked."""
    process = multiprocessing.get_context("fork").Process(target=scene.child)
    process.start()
    process.join()
    scene.processes.append(process)


def new_interpreter(scene: Scene) -> None:
    """Start a multiprocessing.Process that gets the store as an argument."""
    from tests.fork.scene import play_child

    method = scene.cell.way.removeprefix("multiprocessing ")
    context = multiprocessing.get_context(method)
    ready = context.Event()
    process = context.Process(
        target=play_child, args=(scene.cell, scene.place, scene.subject, ready)
    )
    try:
        process.start()
    except ForkError:
        scene.tell(child="ForkError")
        return
    if scene.cell.child is Child.OUTLIVES:
        process.join()
    ready.wait(PATIENCE)
    scene.processes.append(process)


def in_pool(scene: Scene) -> None:
    """Hand a task to a pool of one forked process."""
    global _scene
    _scene = scene
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(_task).result(PATIENCE)


_scene: Scene | None = None


def _task() -> None:
    assert _scene is not None
    _scene.child()


def become_daemon(scene: Scene) -> None:
    """Become a daemon with the subject open, by python-daemon."""
    if os.fork() == 0:
        if scene.cell.parent is Parent.IDLE:
            if scene.cell.database is not Database.MEMORY:
                scene.write("starter")
            scene.subject.before_descriptors_close()
        daemon.DaemonContext(
            detach_process=scene.cell.way is Way.DAEMON, umask=0o077, signal_map={}
        ).open()
        scene.child()
        os._exit(0)
    wait_for_children()


def from_c(scene: Scene) -> None:
    """Call fork() behind Python's back, as C code does."""
    # PyDLL keeps the GIL, which no other thread can then take along.
    if ctypes.PyDLL(None).fork() == 0:
        scene.child()
        os._exit(0)
    wait_for_children()


def preexec(scene: Scene) -> None:
    """Run the child's part between fork and exec."""
    subprocess.run(["true"], preexec_fn=scene.child, check=True)


def gunicorn(scene: Scene) -> None:
    """Load the application, fork two workers, and one more for one that ended."""
    # The shape of Arbiter.spawn_worker: the worker runs below the master's frames and
    # leaves through them by SystemExit.
    for _ in range(2):
        spawn_worker(scene)
    wait_for_children()
    if scene.cell.child is Child.WORKS:
        spawn_worker(scene)
        wait_for_children()


def spawn_worker(scene: Scene) -> None:
    """Fork one worker."""
    if os.fork() == 0:
        scene.child()
        sys.exit(0)


WAYS: dict[Way, Callable[[Scene], None]] = {
    Way.BARE: bare,
    Way.NESTED: nested,
    Way.TRANSACTION: inside_transaction,
    Way.ITERATION: during_iteration,
    Way.WRITERS: while_threads_write,
    Way.CONNECTING: while_thread_connects,
    Way.THREAD: from_thread,
    Way.MP_FORK: multiprocessing_fork,
    Way.MP_FORKSERVER: new_interpreter,
    Way.MP_SPAWN: new_interpreter,
    Way.POOL: in_pool,
    Way.DAEMON: become_daemon,
    Way.DAEMON_ATTACHED: become_daemon,
    Way.C: from_c,
    Way.PREEXEC: preexec,
    Way.GUNICORN: gunicorn,
}
