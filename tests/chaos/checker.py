"""Whether what the database tells is what the commands did, and what they may do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from tests.chaos.evidence import Entry, Record, Run

#: Written down once more: the checker asks nothing of the package.
LEGAL = {
    None: {"NEW"},
    "NEW": {"SUBMITTED", "UNKNOWN"},
    "SUBMITTED": {"RUNNING", "STOPPED", "TERMINATED", "UNKNOWN"},
    "RUNNING": {"TERMINATING", "TERMINATED", "STOPPED", "UNKNOWN"},
    "TERMINATING": {"TERMINATED", "UNKNOWN"},
    # To itself, where who claimed it died before it was SUBMITTED.
    "UNKNOWN": {
        *("UNKNOWN", "SUBMITTED", "RUNNING", "STOPPED", "TERMINATING", "TERMINATED")
    },
    "TERMINATED": set(),
}
#: Seconds; SQLite tells milliseconds.
PRECISION = 0.002


def check(
    names: Iterable[str],
    records: Mapping[str, Sequence[Record]],
    runs: Mapping[str, Sequence[Run]],
    max_attempts: int,
) -> list[str]:
    """Say what is wrong with any of the tasks of these names."""
    problems = []
    names = set(names)
    for name in sorted(names | records.keys() | runs.keys()):
        found = records.get(name, ())
        if name not in names:
            problems.append(f"{name}: nobody submitted it")
        if len(found) != 1:
            problems.append(f"{name}: {'there twice' if found else 'lost'}")
        for record in found:
            told = runs.get(name, ())
            for problem in _problems(record, told, max_attempts):
                problems.append(f"{name}: {problem}; {record}; {list(told)}")
    return problems


def _problems(record: Record, runs: Sequence[Run], max_attempts: int) -> Iterator[str]:
    yield from record.problems
    if record.state != "TERMINATED":
        yield f"left {record.state}"
    if record.holder is not None:
        yield "somebody holds it still"
    if record.attempts > max_attempts:
        yield f"tried {record.attempts} times, of {max_attempts}"
    yield from _out_of_order(record.history)
    yield from _overlaps(runs)
    yield from _misplaced(record, runs)
    yield from _untrue_end(record, runs, max_attempts)


def _out_of_order(history: Sequence[Entry]) -> Iterator[str]:
    for number, entry in enumerate(history):
        if entry.new not in LEGAL[entry.old]:
            yield f"from {entry.old} to {entry.new} there is no way"
        if number == 0:
            continue
        last = history[number - 1]
        if entry.at < last.at - PRECISION:
            yield f"{entry.new} was before {last.new}, which it follows"
        # What a worker began, only the same one goes on with; all else is UNKNOWN.
        is_exhausted = entry.info == "attempts exhausted"
        goes_on = last.new in ("SUBMITTED", "RUNNING", "TERMINATING")
        is_over = entry.new == "UNKNOWN" or is_exhausted
        if goes_on and not is_over and entry.pid != last.pid:
            yield f"two holders wrote: {last.pid} {last.new}, {entry.pid} {entry.new}"


def _overlaps(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        if not run.alone:
            yield f"two at once: worker {run.worker} began while another run was there"
    for run in runs:
        for other in runs:
            if run.begun < other.begun and (run.ended or run.begun) > other.begun:
                yield f"two at once: of worker {run.worker} and {other.worker}"


def _misplaced(record: Record, runs: Sequence[Run]) -> Iterator[str]:
    """Hold the runs against the times in which the task was RUNNING."""
    history = record.history
    spans = [
        (entry.pid, entry.at, next_.at if next_ else float("inf"))
        for entry, next_ in zip(history, [*history[1:], None], strict=True)
        if entry.new == "RUNNING"
    ]
    if len(spans) > record.attempts:
        yield f"RUNNING {len(spans)} times, in {record.attempts} attempts"
    for run in runs:
        mine = [span for span in spans if span[0] == run.worker]
        if not mine:
            yield f"nobody recorded the run of worker {run.worker}"
            continue
        span = min(mine, key=lambda span: abs(span[1] - run.begun_at))
        spans.remove(span)
        if not span[1] - PRECISION <= run.begun_at <= span[2] + PRECISION:
            yield f"the run of worker {run.worker} began while it was not RUNNING"
        if run.ended_at is not None and run.ended_at > span[2] + PRECISION:
            yield f"the run of worker {run.worker} went on when it was not RUNNING"


def _untrue_end(
    record: Record, runs: Sequence[Run], max_attempts: int
) -> Iterator[str]:
    if not record.history or record.history[-1].new != "TERMINATED":
        return
    last = record.history[-1]
    if last.info == "attempts exhausted":
        if record.attempts != max_attempts:
            yield f"given up after {record.attempts} attempts of {max_attempts}"
        return
    mine = [run for run in runs if run.worker == last.pid and run.ended is not None]
    if not mine:
        yield "TERMINATED without a run to its end"
    elif record.returncode != (mine[-1].code or 0) << 8:
        yield f"returncode {record.returncode}, of a run that left with {mine[-1].code}"
