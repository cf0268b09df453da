"""The daemon's fixtures are the chaos test's too."""

from tests.daemon.conftest import make_cli

__all__ = ["make_cli"]
