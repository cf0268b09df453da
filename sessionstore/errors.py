"""The errors of this package, one tree.

Each class says by ``retryable`` whether the same call may succeed later.
Errors about one object carry its ID as ``id``.  An error that a database
driver raised is the ``__cause__`` of the one that is raised here.
"""

from __future__ import annotations

__all__ = [
    "ArchiveError",
    "ConfigurationError",
    "ConflictError",
    "DecodeError",
    "EncodeError",
    "ForkError",
    "LeaseLostError",
    "LoadError",
    "NotFoundError",
    "SchemaError",
    "SessionStoreError",
    "StoreError",
    "StoreUnavailableError",
    "TransitionError",
]


class SessionStoreError(Exception):
    """Anything that this package raises on purpose."""

    #: Whether the same call may succeed if it is made again later.
    retryable: bool = False

    def __init__(self, message: str, *, id: object = None) -> None:
        super().__init__(message)
        #: The ID of the object the error is about, or None.
        self.id = id

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (a worker's result, a process pool), and
        # BaseException's own recipe would call __init__ without the keywords.
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(
    cls: type[SessionStoreError], args: tuple[str, ...], attributes: dict[str, object]
) -> SessionStoreError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


class ConfigurationError(SessionStoreError, ValueError):
    """A URL, an option or a session name that cannot be used."""


class StoreError(SessionStoreError):
    """A store could not do what it was asked to."""


class SchemaError(StoreError):
    """The table, or the schema's version, does not fit."""


class ArchiveError(StoreError, ValueError):
    """A file is no archive, or a damaged one, or of a newer release."""


class LoadError(StoreError):
    """An object could not be loaded."""


class NotFoundError(LoadError, LookupError):
    """There is no object with this ID."""


class DecodeError(LoadError):
    """The object is there and its payload cannot be read; nothing is thrown away."""


class EncodeError(StoreError, TypeError):
    """The object cannot be stored; nothing of its graph was."""


class ConflictError(StoreError):
    """Somebody else was first: refresh the object, then retry."""

    retryable = True


class LeaseLostError(StoreError):
    """The claim's lease has passed to another holder."""


class TransitionError(StoreError, ValueError):
    """There is no such transition between states."""


class StoreUnavailableError(StoreError):
    """The database is busy or unreachable: wait, then retry."""

    retryable = True

    def __init__(
        self, message: str, *, id: object = None, outcome_unknown: bool = False
    ) -> None:
        super().__init__(message, id=id)
        #: True if a commit was sent and its answer was lost: the change may be there.
        self.outcome_unknown = outcome_unknown


class ForkError(SessionStoreError, RuntimeError):
    """This connection, transaction or database belongs to another process."""
