"""A session store that daemons and the workers they fork can trust."""

from sessionstore.errors import (
    ConfigurationError,
    ConflictError,
    DecodeError,
    EncodeError,
    ForkError,
    LeaseLostError,
    LoadError,
    NotFoundError,
    SchemaError,
    SessionStoreError,
    StoreError,
    StoreUnavailableError,
    TransitionError,
)
from sessionstore.persistable import Persistable
from sessionstore.task import Run, State, Task

__all__ = [
    "ConfigurationError",
    "ConflictError",
    "DecodeError",
    "EncodeError",
    "ForkError",
    "LeaseLostError",
    "LoadError",
    "NotFoundError",
    "Persistable",
    "Run",
    "SchemaError",
    "SessionStoreError",
    "State",
    "StoreError",
    "StoreUnavailableError",
    "Task",
    "TransitionError",
]
