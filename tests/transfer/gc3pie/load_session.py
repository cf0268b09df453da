"""Load a session's tasks and say what they are: URL NAME."""

import json
import sys

from sessionstore import SessionStore

done, outer = SessionStore(sys.argv[1], sys.argv[2], create=False)
inner, shared = outer.tasks
print(
    json.dumps(
        {
            "names": [task.jobname for task in (done, outer, inner, shared)],
            "classes": [type(task).__name__ for task in (done, outer, inner, shared)],
            "states": [task.execution.state for task in (done, outer, inner, shared)],
            "shared": outer.again[0] is shared is inner.needs,
            "inner": outer.again[1]["key"] is inner,
            "long": len(shared.long),
        }
    )
)
