"""Warnings that point at the line that uses this package."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

__all__ = ["warn_user"]


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, and name the line outside this package that made the call."""
    frame, level = sys._getframe(), 1
    # CPython has skip_file_prefixes for this, but only from 3.12 on.
    while frame.f_back and _is_ours(frame):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith("sessionstore.")
