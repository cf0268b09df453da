"""Keeps stores, passwords and keys out of payloads."""

from __future__ import annotations

import threading

from sessionstore.errors import EncodeError

__all__ = ["refuse_in_payload", "this_thread"]


class _ThreadState(threading.local):
    #: Whether this thread is turning an object into a payload just now.
    is_encoding = False


this_thread = _ThreadState()


def refuse_in_payload(reason: str) -> None:
    """Raise EncodeError if this is called to make part of a payload.

    For use in a ``__reduce__``, which is called whatever the pickle is for.
    """
    if this_thread.is_encoding:
        raise EncodeError(reason)
