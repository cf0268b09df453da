"""The command line's entry: ``sessionstore``, and ``python -m sessionstore``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line, and return its exit status."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ModuleNotFoundError as error:
        print(
            f"sessionstore: {error}; pip install 'sessionstore[cli]'", file=sys.stderr
        )
        return 1
    from sessionstore.cli.running import run

    return run()


if __name__ == "__main__":
    sys.exit(main())
