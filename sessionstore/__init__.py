"""A session store that daemons and the workers they fork can trust."""

from sessionstore.errors import (
    ArchiveError,
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
from sessionstore.filesystem import FilesystemStore
from sessionstore.fork import protect
from sessionstore.ids import IntId
from sessionstore.persistable import Persistable
from sessionstore.session import Claim, SessionStore, Transition
from sessionstore.sql import SqlStore, make_sqlstore
from sessionstore.store import Store, make_store, register
from sessionstore.task import Run, State, Task
from sessionstore.url import Url

__all__ = [
    "ArchiveError",
    "Claim",
    "ConfigurationError",
    "ConflictError",
    "DecodeError",
    "EncodeError",
    "FilesystemStore",
    "ForkError",
    "IntId",
    "LeaseLostError",
    "LoadError",
    "NotFoundError",
    "Persistable",
    "Run",
    "SchemaError",
    "SessionStore",
    "SessionStoreError",
    "SqlStore",
    "State",
    "Store",
    "StoreError",
    "StoreUnavailableError",
    "Task",
    "Transition",
    "TransitionError",
    "Url",
    "make_sqlstore",
    "make_store",
    "protect",
    "register",
]
