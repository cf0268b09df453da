"""What each task of the chaos test runs: it notes when it begins and when it ends.

``command.py FILE SECONDS CODE``.  The file is the task's own, and each run appends to
it, a line in one write(2); what the kernel has taken outlives the process.  While it
runs it holds a lock on the file, which the kernel gives back however it dies: one that
finds it taken was begun while another run of its task was there.
"""

import fcntl
import json
import os
import sys
import time


def note(file: int, **fields: object) -> None:
    line = {
        "pid": os.getpid(),
        # The worker's PID, whatever became of the worker: it leads the group.
        "worker": os.getpgrp(),
        # To compare runs by; the other is what the history's times are compared with.
        "monotonic": time.clock_gettime(time.CLOCK_BOOTTIME),
        "at": time.time(),
        **fields,
    }
    os.write(file, json.dumps(line).encode() + b"\n")


def main(path: str, seconds: str, code: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = True
    except BlockingIOError:
        alone = False
    note(file, what="begin", alone=alone)
    time.sleep(float(seconds))
    note(file, what="end", code=int(code))
    os._exit(int(code))


if __name__ == "__main__":
    main(*sys.argv[1:])
