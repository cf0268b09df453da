"""The command line's entry: ``sessionstore``, and ``python -m sessionstore``."""

from __future__ import annotations

import sys

from sessionstore.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
