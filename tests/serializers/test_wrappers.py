"""Payloads that are signed, encrypted, compressed or JSON."""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import os
import sys
import zlib
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet

from sessionstore import (
    ConfigurationError,
    DecodeError,
    EncodeError,
    FilesystemStore,
    Run,
    SqlStore,
    State,
    Task,
)
from sessionstore.serializers import (
    CompressedSerializer,
    EncryptedSerializer,
    JsonSerializer,
    PickleSerializer,
    Serializer,
    SignedSerializer,
)
from sessionstore.serializers.checksum import with_checksum
from tests.serializers.parts import KEYS, Called, Colour, Count, Trap, read, written

OLD, NEW = KEYS
PLAIN = PickleSerializer()
Locked = type[SignedSerializer | EncryptedSerializer]
LOCKED = pytest.mark.parametrize("cls", [SignedSerializer, EncryptedSerializer])


@LOCKED
def test_keys_can_be_replaced_one_by_one(cls: Locked) -> None:
    """The first writes, all read, and one that was taken out does not."""
    before, after = cls(PLAIN, [OLD]), cls(PLAIN, [NEW, OLD])
    assert read(after, written(before, Task("x"))).jobname == "x"
    assert read(cls(PLAIN, [NEW]), written(after, Task("y"))).jobname == "y"
    with pytest.raises(DecodeError, match="none of the 1 keys"):
        read(cls(PLAIN, [NEW]), written(before, Task("x")))


def test_encrypted_payload_is_refused_in_any_other_spelling() -> None:
    """Base64 has several for the same bytes, and Fernet reads them all."""
    serializer = EncryptedSerializer(PLAIN, [OLD])
    payloads = (written(serializer, "x" * n) for n in range(48))
    payload = next(payload for payload in payloads if payload.endswith(b"=="))
    # The letter before has four bits that stand for nothing.
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other = bytes([alphabet[alphabet.index(payload[-3]) ^ 1]])
    for spelling in (
        payload[:-3] + other + b"==",
        payload + b"\n",
        payload[:20] + b"!" + payload[20:],
    ):
        assert Fernet(OLD).decrypt(spelling)
        with pytest.raises(DecodeError, match="changed"):
            read(serializer, spelling)


@LOCKED
def test_what_was_written_before_is_read_if_that_is_allowed(
    cls: Locked, tmp_path: Path
) -> None:
    """Else who can write to the database would leave the signature out."""
    store = FilesystemStore(tmp_path)
    old = store.save(Task("old"))
    trapped = store.save([Trap(tmp_path / "made")])
    closed = FilesystemStore(tmp_path, serializer=cls(PLAIN, [OLD]))
    for id_ in (old, trapped):
        with pytest.raises(DecodeError, match="allow_plain=True") as caught:
            closed.load(id_)
        assert caught.value.id == id_
    assert not (tmp_path / "made").exists()
    migrating = FilesystemStore(
        tmp_path, serializer=cls(PLAIN, [OLD], allow_plain=True)
    )
    migrating.save(migrating.load(old))
    assert closed.load(old).jobname == "old"


@LOCKED
def test_nothing_is_run_that_was_not_verified(cls: Locked, tmp_path: Path) -> None:
    """A payload that another key wrote, or that somebody changed."""
    trap = Trap(tmp_path / "made")
    payload = written(cls(PLAIN, [OLD]), trap)
    for hostile in (payload, payload[:-1] + b"A", payload[:9] + b"A" + payload[10:]):
        with pytest.raises(DecodeError, match="none of the 1 keys"):
            read(cls(PLAIN, [NEW]), hostile)
    assert not trap.path.exists()
    read(cls(PLAIN, [OLD]), payload)  # the trap is one
    assert trap.path.exists()


def test_signature_is_as_documented() -> None:
    """HMAC-SHA256, with a key of its own that the key gives, over all before it."""
    payload = written(SignedSerializer(PLAIN, [OLD]), "x")
    assert payload[:5] == b"\xf5ssS\x01"
    assert payload[5:-32] == written(PLAIN, "x")
    purpose = b"sessionstore: signed payloads, version 1"
    key = hmac.new(base64.urlsafe_b64decode(OLD), purpose, hashlib.sha256).digest()
    assert payload[-32:] == hmac.new(key, payload[:-32], hashlib.sha256).digest()


def test_encrypted_payload_is_a_fernet_token() -> None:
    """Whoever has the key reads it without this package."""
    payload = written(EncryptedSerializer(PLAIN, [OLD]), "x")
    assert payload.startswith(b"gAAAA")
    assert Fernet(OLD).decrypt(payload) == written(PLAIN, "x")
    assert b"secret" not in written(EncryptedSerializer(PLAIN, [OLD]), "secret")


def test_large_payload_becomes_smaller_and_small_stays() -> None:
    """And what was written before there was compression is read."""
    serializer = CompressedSerializer(PLAIN)
    large = Task(text="abc" * 10_000)
    payload = written(serializer, large)
    assert payload[:5] == b"\xf5ssZ\x01"
    assert len(payload) < len(written(PLAIN, large)) / 50
    assert zlib.decompress(payload[17:]) == written(PLAIN, large)
    assert read(serializer, payload).text == large.text
    assert written(serializer, "x") == written(PLAIN, "x")
    assert read(serializer, written(PLAIN, large)).text == large.text


def test_what_would_be_too_large_to_read_is_not_written() -> None:
    """The limit is the same in both directions."""
    small = CompressedSerializer(PLAIN, max_size=1000)
    with pytest.raises(EncodeError, match="raise its max_size"):
        written(small, "x" * 1000)
    payload = written(CompressedSerializer(PLAIN), "x" * 1000)
    with pytest.raises(DecodeError, match="raise the max_size"):
        read(small, payload)


def test_serializers_go_into_each_other() -> None:
    """In any order that makes sense."""
    inner = JsonSerializer()
    for serializer in (
        SignedSerializer(CompressedSerializer(inner), [OLD]),
        EncryptedSerializer(CompressedSerializer(PLAIN), [OLD]),
        SignedSerializer(EncryptedSerializer(inner, [OLD]), [OLD]),
        CompressedSerializer(CompressedSerializer(SignedSerializer(inner, [OLD]))),
    ):
        again = read(serializer, written(serializer, Task("x", text="ab" * 1000)))
        assert (again.jobname, again.text) == ("x", "ab" * 1000)


@pytest.mark.parametrize(
    ("writer", "reader"),
    [
        (SignedSerializer(PLAIN, [OLD]), EncryptedSerializer(PLAIN, [OLD])),
        (EncryptedSerializer(PLAIN, [OLD]), SignedSerializer(PLAIN, [OLD])),
        (SignedSerializer(PLAIN, [OLD]), JsonSerializer()),
        (JsonSerializer(), CompressedSerializer(PLAIN)),
        (PLAIN, JsonSerializer()),
    ],
    ids=lambda serializer: type(serializer).__name__,
)
def test_payload_of_another_serializer_is_named(
    writer: Serializer, reader: Serializer
) -> None:
    """So that one sees which serializer= the store needs."""
    with pytest.raises(DecodeError, match=type(writer).__name__):
        read(reader, written(writer, "x"))


@pytest.mark.parametrize(
    "serializer",
    [
        SignedSerializer(PLAIN, [OLD], allow_plain=True),
        CompressedSerializer(PLAIN),
        JsonSerializer(allow_plain=True),
    ],
    ids=lambda serializer: type(serializer).__name__,
)
def test_newer_version_is_told_from_garbage(serializer: Serializer) -> None:
    """What a later version of this package wrote, that one has to read."""
    payload = written(serializer, "x" * 1000)
    newer = payload[:4] + b"\x02" + payload[5:]
    with pytest.raises(DecodeError, match=r"version 2 .*upgrade sessionstore"):
        read(serializer, newer)
    unknown = payload[:3] + b"?" + payload[4:]
    with pytest.raises(DecodeError, match="unknown to this release"):
        read(serializer, unknown)


@pytest.mark.parametrize("package", ["cryptography", "msgspec"])
def test_missing_package_is_named_with_its_extra(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, at once, and not at the first save."""
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    make: Callable[[], object] = JsonSerializer
    if package == "cryptography":
        make = lambda: EncryptedSerializer(PLAIN, [OLD])  # noqa: E731
    extra = {"cryptography": "crypto", "msgspec": "json"}[package]
    with pytest.raises(ConfigurationError, match=rf"sessionstore\[{extra}\]"):
        make()


# JSON


JSON = JsonSerializer([Count, Called, Colour])


class Slotted:
    """Its attributes are in slots."""

    __slots__ = ("x",)

    def __init__(self) -> None:
        self.x = 1


@pytest.mark.parametrize(
    "value",
    [
        [None, True, 1, -(2**63), 2**100, 0.1, 1e300, "ü\0", b"\0\xff", [], {}],
        {"a": (1, (2,)), "b": {1, 2}, "c": datetime(2020, 1, 2, 3, tzinfo=UTC)},
        {1: "one", (1, 2): "two", None: 0},
        {"$tuple": [1]},
        {"$ref": [1, "os", "system"], "$": 2},
        [math.inf, -math.inf, Colour.RED, State.NEW],
    ],
    ids=repr,
)
def test_value_comes_back_from_json(value: object) -> None:
    """Of the same types, whatever its keys look like."""
    again = read(JSON, written(JSON, Count("x", value=value)))
    assert type(again) is Count
    assert again.value == value
    assert repr(again.value) == repr(value)
    assert isinstance(again.execution, Run)
    assert read(JSON, written(JSON, value)) == value


def test_payload_is_json() -> None:
    """Other programs can read it."""
    payload = written(JSON, Count("x", n=1.5))
    assert payload[:5] == b"\xf5ssJ\x01"
    assert payload[9:] == (
        b'{"$object":["tests.serializers.parts:Count",{"jobname":"x","execution":'
        b'{"$object":["sessionstore.task:Run",{"_state":{"$enum":'
        b'["sessionstore.task:State","NEW"]},"returncode":null,"info":""}]},"n":1.5}]}'
    )


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (OrderedDict(a=1), "collections:OrderedDict cannot be written as JSON"),
        (ValueError("x"), "cannot be written as JSON"),
        (Slotted(), "is not on the list of allowed classes|__slots__"),
        (os.stat_result, "cannot be written as JSON"),
        (lambda: None, "cannot be written as JSON"),
        (10**5000, "ValueError"),
        ("\ud800", "UnicodeEncodeError"),
        (Trap(Path("x")), "cannot be written as JSON"),
        (Called(), "cannot be written as JSON"),
    ],
    ids=range(9),
)
def test_what_json_does_not_have_is_not_stored(
    value: object, reason: str, tmp_path: Path
) -> None:
    """EncodeError says what it is."""
    store = FilesystemStore(tmp_path, serializer=JSON)
    with pytest.raises(EncodeError, match=reason):
        store.save(Task(value=value))
    assert store.list() == []


def test_cycle_without_objects_of_their_own_rows_is_refused() -> None:
    """JSON has no end for it."""
    value: list[object] = []
    value.append(value)
    with pytest.raises(EncodeError, match="RecursionError"):
        written(JSON, value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"$object":["tests.serializers.parts:Trap",{}]}]', "parts:Trap"),
        ('{"$enum":["os:stat_result","x"]}', "os:stat_result"),
        ('{"$ref":[1,"posix","mkdir"]}', "posix:mkdir"),
        ('{"$ref":["1","sessionstore.task","Task"]}', "is not an object"),
        ('{"$object":["sessionstore.task:State",{}]}', "cannot be built from JSON"),
        ('{"$enum":["sessionstore.task:Task","x"]}', "is not an Enum"),
        ('{"$enum":["sessionstore.task:State","mro"]}', "KeyError"),
        ('{"$object":["sessionstore.task:Task",7]}', "TypeError"),
        ('{"$object":7}', "TypeError"),
        ('{"$float":"1"}', "not a special float"),
        ('{"$what":1}', "KeyError"),
        ('{"$bytes":"?"}', "Error"),
        ("[" * 100_000, "RecursionError|malformed|truncated"),
        ("[1", "truncated"),
        ("", "truncated"),
        ("[] []", "trailing"),
    ],
)
def test_hostile_json_is_refused(text: str, reason: str) -> None:
    """DecodeError gives the reason."""
    with pytest.raises(DecodeError, match=reason):
        read(JSON, with_checksum(b"J", text.encode()))


class Noting(Task):
    """Says when an object of it is made."""

    times = 0

    def __setstate__(self, state: dict[str, object]) -> None:
        type(self).times += 1


@pytest.mark.parametrize(
    "text",
    [
        '{"$object":["tests.serializers.parts:Trap",{}]}',
        '{"$enum":["os:stat_result","x"]}',
        '{"$ref":[1,"posix","mkdir"]}',
    ],
)
def test_json_with_a_class_that_is_not_listed_makes_nothing(text: str) -> None:
    """Not even of the classes listed that stand before it."""
    path = f"{Noting.__module__}:Noting"
    hostile = f'[{{"$object":["{path}",{{}}]}},{text}]'
    Noting.times = 0
    with pytest.raises(DecodeError, match="not on the list of allowed classes"):
        read(JsonSerializer([Noting]), with_checksum(b"J", hostile.encode()))
    assert Noting.times == 0


def test_old_pickles_are_read_beside_json_if_allowed(tmp_path: Path) -> None:
    """Of the classes that JSON may have, and of no others."""
    plain = FilesystemStore(tmp_path)
    id_, trapped = plain.save(Count("old")), plain.save([Trap(tmp_path / "made")])
    store = FilesystemStore(
        tmp_path, serializer=JsonSerializer([Count], allow_plain=True)
    )
    with pytest.raises(DecodeError, match="mkdir"):
        store.load(trapped)
    assert not (tmp_path / "made").exists()
    store.save(store.load(id_))
    assert FilesystemStore(tmp_path, serializer=JSON).load(id_).jobname == "old"


def test_class_of_a_serializer_of_ones_own(tmp_path: Path) -> None:
    """Two methods are all that a store asks for."""

    class Reversed:
        def dumps(self, obj: object, persistent_id: Any) -> bytes:
            return PLAIN.dumps(obj, persistent_id)[::-1]

        def loads(self, payload: bytes, persistent_load: Any) -> object:
            return PLAIN.loads(payload[::-1], persistent_load)

    store = SqlStore(f"sqlite:///{tmp_path}/x.db", serializer=Reversed())
    parent = store.save(Task(child=Task("child")))
    store.invalidate_cache()
    assert store.load(parent).child.jobname == "child"
