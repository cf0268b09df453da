"""A process as large as a daemon's, in which workers are forked.

What a fork takes goes by the size of who forks, and the benchmarks' own process has
other libraries and both sides' databases in it.

``python -m tests.benchmarks.supervisor`` reads a URL, and then, for each further line,
forks a worker and writes how long it took until its first commit.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

from sessionstore import Claim, SessionStore, State
from tests.benchmarks.places import sample
from tests.benchmarks.processes import in_fork
from tests.benchmarks.raw import SESSION


def first_writes_ms(url: str) -> Iterator[float]:
    """Yield how long after a fork a worker has committed that its task runs."""
    command = [sys.executable, "-m", "tests.benchmarks.supervisor"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        print(url, file=process.stdin)
        while True:
            print("next", file=process.stdin)
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("the supervisor has died")
            try:
                yield float(line)
            except GeneratorExit:
                process.stdin.close()  # and so it ends
                raise


def _first_write_ms(session: SessionStore, claim: Claim) -> float:
    began_at = time.perf_counter()

    def work() -> float:
        claim.task.output = "somewhere"
        with session.transaction():
            claim.transition(State.SUBMITTED)
            claim.transition(State.RUNNING)
        return (time.perf_counter() - began_at) * 1e3

    return in_fork(work)


def main() -> None:
    """Fork a worker for each line that is read."""
    with SessionStore(sys.stdin.readline().strip(), SESSION) as session:
        for _ in sys.stdin:
            session.add(sample(0))  # and dropped, so that the worker has to read it
            [claim] = session.claim()
            print(_first_write_ms(session, claim), flush=True)


if __name__ == "__main__":
    main()
