"""Pickles that may only name what is listed."""

from __future__ import annotations

import datetime
import decimal
import os
import pickle
import struct
import uuid
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from sessionstore import (
    ConfigurationError,
    DecodeError,
    EncodeError,
    FilesystemStore,
    Run,
    SessionStore,
    SqlStore,
    State,
    Task,
)
from sessionstore.serializers import PickleSerializer
from tests.serializers.parts import Called, Colour, Count, Trap, read, written

CLASSES: list[Any] = [Count, Called, Colour]
CHECKED = PickleSerializer(allow=CLASSES)


def word(text: str) -> bytes:
    """Return the opcodes that push a text and remember it."""
    return pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode() + b"\x94"


def named(module: str, name: str) -> bytes:
    """Return the opcodes that import something."""
    return word(module) + word(name) + pickle.STACK_GLOBAL


#: As some versions of CPython do.
ENUMS_BY_GETATTR = State.NEW.__reduce_ex__(4)[0] is getattr  # type: ignore[index]
TASK = named("sessionstore.task", "Task")
STATE = named("sessionstore.task", "State")


@pytest.mark.parametrize(
    "value",
    [
        Task("x", n=1, inside=[{"a": (1, 2.5, b"x", "ü")}, {1, 2}, frozenset({3})]),
        Count("y"),
        [Run(State.RUNNING), State.NEW, Colour.RED, Colour],
        [2**100, -1, True, None, 1j, "x" * 70_000, b"y" * 70_000],
        [datetime.datetime.now(datetime.UTC), datetime.timedelta(1)],
        [decimal.Decimal("1.5"), uuid.uuid4(), datetime.date(2000, 1, 1)],
        [[str(n)] * 3 for n in range(1000)],
    ],
)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_is_allowed_comes_back(value: object, protocol: int) -> None:
    """It is the very pickle that would have been written without the list."""
    payload = written(PickleSerializer(protocol, allow=CLASSES), value)
    if protocol > 3 and not ENUMS_BY_GETATTR:
        assert payload == pickle.dumps(value, protocol)
    again = read(CHECKED, payload)
    assert repr(again) == repr(value)
    if protocol > 2:  # where it depends on which texts are one object
        assert written(PickleSerializer(protocol, allow=CLASSES), again) == payload


def test_bytearray_comes_back_in_protocol_5() -> None:
    """Before that it was a call, which a few bytes can make as large as they like."""
    assert read(CHECKED, pickle.dumps(bytearray(b"x"), 5)) == b"x"
    with pytest.raises(DecodeError, match="bytearray"):
        read(CHECKED, pickle.dumps(bytearray(b"x"), 4))


def test_pickles_written_without_a_list_are_read() -> None:
    """What an older program stored goes on being read."""
    n = [1, "x", b"\xff", {1}, datetime.date(2000, 1, 1), Colour.RED]
    for protocol in (2, 3, 4, 5):
        payload = pickle.dumps(Count("old", n=n), protocol)
        assert read(CHECKED, payload).n == n


def test_names_of_python_2_are_known() -> None:
    """As in what GC3Pie stored; and they are no way around the list."""
    payload = b"\x80\x02c__builtin__\nset\nq\x01]q\x02(K\x01K\x02e\x85q\x03Rq\x04."
    assert read(CHECKED, payload) == {1, 2}
    with pytest.raises(DecodeError, match="names builtins:eval"):
        read(CHECKED, b"\x80\x02c__builtin__\neval\n.")
    with pytest.raises(DecodeError, match="names subprocess:getoutput"):
        read(CHECKED, b"\x80\x02ccommands\ngetoutput\n.")


def test_class_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    """DecodeError names it and what to do, and nothing of the pickle was done."""
    payload = pickle.dumps([Called(), Trap(tmp_path / "made")])
    Called.times = 0
    with pytest.raises(DecodeError, match=r"names posix:mkdir.*allow 'posix:mkdir'"):
        read(CHECKED, payload)
    assert Called.times == 0
    assert not (tmp_path / "made").exists()
    read(PickleSerializer(), payload)  # the trap is one
    assert (tmp_path / "made").exists()
    assert Called.times == 1


def test_find_class_asks_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first look had overlooked would be refused all the same."""
    monkeypatch.setattr(
        "sessionstore.serializers.checked.check_opcodes", lambda *_, **__: None
    )
    with pytest.raises(DecodeError, match="posix:mkdir"):
        read(CHECKED, pickle.dumps(Trap(tmp_path / "made")))
    assert not (tmp_path / "made").exists()


def test_object_that_could_not_be_read_is_not_stored(tmp_path: Path) -> None:
    """EncodeError at the save, not a DecodeError years later."""
    store = FilesystemStore(tmp_path, serializer=CHECKED)
    for part in (OrderedDict(a=1), Path("x"), Called().__init__):  # type: ignore[misc]
        with pytest.raises(EncodeError, match="cannot be stored: it names"):
            store.save(Task(part=part))
    assert store.list() == []


def test_reference_to_a_class_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    """Neither written nor followed: a reference imports a module."""
    url = f"sqlite:///{tmp_path}/store.db"
    plain = SqlStore(url)
    id_ = plain.save(Task(part=Count()))
    checked = SqlStore(url, serializer=PickleSerializer(allow=[]))
    with pytest.raises(DecodeError, match=r"parts:Count, which is not on the list"):
        checked.load(id_)
    with pytest.raises(EncodeError, match=r"parts:Count, which is not on the list"):
        checked.save(Task(part=Count()))


def test_session_takes_the_option(tmp_path: Path) -> None:
    """Every store has it, and what is refused is listed as unreadable (G7)."""
    url = f"sqlite:///{tmp_path}/store.db"
    id_ = SessionStore(url).add(Count())
    session = SessionStore(url, serializer=PickleSerializer(allow=[]))
    (error,) = session.unreadable()
    assert error.id == id_
    session.transition(id_, State.SUBMITTED)
    again = SessionStore(url, serializer=CHECKED)
    assert again.load(id_).execution.state is State.SUBMITTED


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        # A class's own attributes, by the state for its slots.
        (TASK + b"N}" + word("x") + b"K\x01s\x86b.", "did not create"),
        # That of all who have the same Enum's member.
        (STATE + word("NEW") + b"\x85R}" + word("_x") + b"K\x01sb.", "did not create"),
        (
            STATE + word("NEW") + b"\x85\x81}" + word("_x") + b"K\x01sb.",
            "did not create",
        ),
        (b"K\x01Q}" + word("x") + b"K\x01sb.", "did not create"),
        (TASK + b"(K\x01e.", "did not create"),
        # What is not imported cannot be called.
        (word("x") + b")R.", "did not import"),
        (TASK + b")R)R.", "did not import"),
        # By a name that is only known when it runs.
        (
            word("posix") + b"]0" + word("x") + b"0" + word("mkdir") + b"\x93.",
            "cannot be checked",
        ),
        (b"K\x01" + word("mkdir") + b"\x93.", "cannot be checked"),
        (b"Vposix\nVmkdir\n\x93.", "cannot be checked"),
        # By way of an attribute of what is allowed.
        (named("sessionstore.task", "Task.__init__.__globals__"), "__globals__"),
        (named("builtins", "getattr") + TASK + word("mro") + b"\x86R.", "not an Enum"),
        (b"csessionstore.task\nos\n.", "sessionstore.task:os"),
        (named("_codecs", "encode") + word("x") + word("rot13") + b"\x86R.", "encodes"),
        # What others registered, or what is beside the pickle.
        (b"\x82\x01.", "opcode 0x82"),
        (b"\x97.", "opcode 0x97"),
        (b"(iposix\nmkdir\n.", "opcode 0x69"),
        # What is not there.
        (b"K\x01", "truncated"),
        (b"K\x01.K", "data after its end"),
        (b"K\x01K\x01.", "leaves something on the stack"),
        (b"h\x00.", "does not exist"),
        (b"]q\x05.", "does not exist"),
        (b"]r" + struct.pack("<I", 2**31) + b".", "does not exist"),
        (b"(\x94.", "does not exist"),
        (b"(2.", "does not exist"),
        (b"e.", "does not exist"),
        (b"\x8e" + struct.pack("<Q", 2**40) + b".", "truncated"),
        (b"\x96" + struct.pack("<Q", 2**40) + b".", "truncated"),
        (b"\x8d" + struct.pack("<Q", 2**63) + b".", "truncated"),
        (b"]q\x01]\x94h\x01.", "does not exist"),
    ],
)
def test_program_that_no_pickler_writes_is_refused(program: bytes, reason: str) -> None:
    """Before it changes or calls anything."""
    with pytest.raises(DecodeError, match=reason):
        read(CHECKED, b"\x80\x04" + program)


@pytest.mark.parametrize(
    ("target", "made"),
    [(TASK, Task), (STATE + word("NEW") + b"\x85R", State.NEW)],
    ids=["class", "member"],
)
def test_pickle_itself_would_change_what_is_shared(target: bytes, made: Any) -> None:
    """So that the two refusals above are needed."""
    program = target + b"N}" + word("smuggled") + b"K\x01s\x86b."
    pickle.loads(b"\x80\x04" + program)
    assert made.smuggled == 1
    del made.smuggled
    with pytest.raises(DecodeError, match="did not create"):
        read(CHECKED, b"\x80\x04" + program)


def test_member_of_an_enum_is_read_as_older_pythons_wrote_it() -> None:
    """That is by getattr, which is not allowed for anything else."""
    payload = b"\x80\x04" + named("builtins", "getattr")
    payload += named(Colour.__module__, "Colour") + word("RED") + b"\x86\x94R."
    assert read(CHECKED, payload) is Colour.RED
    with pytest.raises(DecodeError, match="KeyError"):
        read(CHECKED, payload.replace(b"RED", b"mro"))


@pytest.mark.parametrize(
    "entry", ["", ":x", "a:", 7, lambda: None, "no.such.module", "os.path.join"]
)
def test_entry_that_names_nothing_is_refused(entry: Any) -> None:
    """ConfigurationError shows it and how to write one."""
    with pytest.raises(ConfigurationError, match="cannot be allowed"):
        PickleSerializer(allow=[entry])
    with pytest.raises(ConfigurationError, match="a single string"):
        PickleSerializer(allow="os:path")


def test_module_stands_for_its_own_classes() -> None:
    """Not for what it has imported, nor for its functions."""
    serializer = PickleSerializer(allow=[Count.__module__])
    assert read(serializer, written(serializer, Count("x"))).jobname == "x"
    for name in ("os", "os.mkdir", "Path", "written"):
        with pytest.raises(DecodeError, match=f"parts:{name}"):
            read(serializer, b"\x80\x04" + named(Count.__module__, name) + b".")


def test_what_others_wrote_is_named() -> None:
    """By its first bytes, whether or not there is a list."""
    for serializer in (PickleSerializer(), CHECKED):
        for payload, name in ((b"\xf5ssS\x01", "Signed"), (b"gAAAAA", "Encrypted")):
            with pytest.raises(DecodeError, match=f"{name}Serializer"):
                read(serializer, payload)


def test_store_with_a_list_pickles(tmp_path: Path) -> None:
    """And its copy has the list too."""
    store = SqlStore(f"sqlite:///{tmp_path}/store.db", serializer=CHECKED)
    copy = pickle.loads(pickle.dumps(store))
    assert copy.load(store.save(Count("x"))).jobname == "x"
    with pytest.raises(EncodeError):
        copy.save(os.stat(tmp_path))
