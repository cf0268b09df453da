"""The command line's entry: ``sessionstore``, and ``python -m sessionstore``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line, and return its exit status."""
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
    return run()


if __name__ == "__main__":
    sys.exit(main())
