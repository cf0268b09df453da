"""IDs as rows have them: integers of 64 bits."""

from __future__ import annotations

import operator

from sessionstore.errors import NotFoundError

__all__ = ["fits", "invalid_id", "key_of", "not_found"]


def fits(number: int) -> bool:
    """Say whether an integer column can hold a number."""
    return -(2**63) <= number < 2**63


def key_of(id_: object) -> int:
    """Return an ID as the table has it, or raise NotFoundError."""
    try:
        key = int(id_) if isinstance(id_, str) else operator.index(id_)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        key = None
    if key is None or not fits(key):
        raise invalid_id(id_, "64-bit integers")
    return key


def invalid_id(id_: object, kind: str) -> NotFoundError:
    """Return the error for what cannot be the ID of anything."""
    known = getattr(id_, "persistent_id", None)
    hint = f"IDs are {kind}"
    if known is not None:
        hint = f"that is an object; pass its persistent_id, {known}"
    return NotFoundError(f"there is no object with ID {id_!r}: {hint}", id=id_)


def not_found(object_id: int) -> NotFoundError:
    """Return the error for an ID that no row has."""
    return NotFoundError(f"there is no object with ID {object_id}", id=object_id)
