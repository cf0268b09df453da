"""Keeps stores, passwords and keys out of payloads."""

from __future__ import annotations

import threading

from sessionstore.errors import EncodeError

__all__ = ["making_payload", "refuse_in_payload"]


class _MakingPayload(threading.local):
    """Notes for a block that this thread is turning an object into a payload."""

    #: How many such blocks the thread is in.
    depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *exception: object) -> None:
        self.depth -= 1


making_payload = _MakingPayload()


def refuse_in_payload(reason: str) -> None:
    """Raise EncodeError if this is called to make part of a payload.

    For use in a ``__reduce__``, which is called whatever the pickle is for.
    """
    if making_payload.depth:
        raise EncodeError(reason)
