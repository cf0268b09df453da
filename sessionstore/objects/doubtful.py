"""New objects of which nobody knows whether they were stored.

Their commit was not answered.  Whoever stores them again must not make second ones, so
the ID that was tried is kept, in this process and for as long as the object lives.  A
row that has it is looked for.  If there is none, the same ID is tried again: should the
first try be committed at that very moment, its key is there already.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sqlalchemy import select

from sessionstore.database.access import Database
from sessionstore.database.kept import KeptConnection
from sessionstore.database.statements import ByIds, among
from sessionstore.objects.encoding import Encoded
from sessionstore.objects.identity_map import IdentityMap
from sessionstore.objects.records import Record
from sessionstore.objects.schema import Schema
from sessionstore.persistable import Persistable

__all__ = ["Doubtful"]


class _Tried(NamedTuple):
    """What was sent for an object."""

    reference: weakref.ref[Persistable]
    object_id: int
    digest: bytes
    has_job: bool


class Doubtful:
    """The objects of one table that may have been stored."""

    def __init__(
        self, database: Database, schema: Schema, identities: IdentityMap
    ) -> None:
        self._database = database
        self._identities = identities
        # By id(obj), as an object need not be hashable.
        self._tried: dict[int, _Tried] = {}
        rows, jobs = schema.objects, schema.jobs
        self._payloads = ByIds(
            lambda names: select(rows.c.id, rows.c.data).where(among(rows.c.id, names))
        )
        self._jobs = ByIds(
            lambda names: select(jobs.c.job_id).where(among(jobs.c.job_id, names))
        )
        # The parent may store them again, too.
        database.on_reset.append(self._tried.clear)

    def note_later(self, records: Sequence[Record], *, has_jobs: bool) -> None:
        """Note what is sent if the caller's own transaction is not answered."""
        scope = self._database.scope
        if scope is not None:
            scope.if_in_doubt.append(lambda: self.note(records, has_jobs=has_jobs))

    def note(self, records: Sequence[Record], *, has_jobs: bool) -> None:
        """Note what was sent."""
        for record in records:
            obj = record.obj
            if record.is_new and isinstance(obj, Persistable):
                reference = weakref.ref(obj, self._forgetting(id(obj)))
                digest = _digest(record.payload)
                self._tried[id(obj)] = _Tried(reference, record.id, digest, has_jobs)

    def _forgetting(self, key: int) -> Callable[[object], None]:
        tried = self._tried
        return lambda _: tried.pop(key, None) and None

    def done(self, records: Sequence[Record]) -> None:
        """Forget what is stored now."""
        if self._tried:
            for record in records:
                self._tried.pop(id(record.obj), None)

    def id_for(self, new_id: Callable[[object], int]) -> Callable[[object], int]:
        """Return what gives an object the ID that was tried, and others a new one."""
        if not self._tried:
            return new_id

        def tried_or_new(obj: object) -> int:
            tried = self._tried.get(id(obj))
            return new_id(obj) if tried is None else tried.object_id

        return tried_or_new

    def settled(self, encode: Callable[[], Encoded]) -> Encoded:
        """Return what ``encode`` does when none of it is in doubt any more."""
        encoded = encode()
        if self._tried:
            keys = {id(record.obj) for record in encoded.records if record.is_new}
            tried = {key: was for key in keys if (was := self._tried.get(key))}
            if tried and self._settle(tried):
                return encode()
        return encoded

    def _settle(self, tried: dict[int, _Tried]) -> bool:
        """Note of objects that they are stored; say whether anything is new."""
        ids = [each.object_id for each in tried.values()]

        def read(kept: KeptConnection) -> tuple[dict[int, bytes], set[int]]:
            payloads, jobs = dict[int, bytes](), set[int]()
            for statement, parameters in self._payloads.parts(ids):
                payloads.update(kept.rows(statement, parameters))
            if any(each.has_job for each in tried.values()):
                for statement, parameters in self._jobs.parts(ids):
                    jobs.update(row[0] for row in kept.rows(statement, parameters))
            return payloads, jobs

        payloads, jobs = self._database.read(read)
        for key, (reference, object_id, digest, has_job) in tried.items():
            obj = reference()
            if obj is None or object_id not in payloads:
                continue
            # If it is another program's row, an ID is taken anew.
            self._tried.pop(key, None)
            if object_id in jobs or (
                not has_job and _digest(payloads[object_id] or b"") == digest
            ):
                self._identities.found(obj, object_id, 1 if has_job else None)
        return not tried.keys() <= self._tried.keys()


def _digest(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()
