"""The command line's entry: ``sessionstore``, and ``python -m sessionstore``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, that of the command line if none is given; return its status."""
    try:
        from sessionstore.cli.running import run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sessionstore"):
            raise
        print(
            f"sessionstore: {error}; pip install 'sessionstore[cli]'", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        return 130
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
