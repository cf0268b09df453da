"""Payloads that are cut off, changed or hostile: refused, harmless, and cheap."""

from __future__ import annotations

import base64
import os
import pickle
import struct
import sys
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sessionstore import DecodeError, SqlStore, State, Task
from sessionstore.serializers import (
    CompressedSerializer,
    EncryptedSerializer,
    JsonSerializer,
    PickleSerializer,
    Serializer,
    SignedSerializer,
)
from sessionstore.serializers.checksum import with_checksum
from tests.serializers.parts import (
    KEYS,
    Called,
    Colour,
    Count,
    Trap,
    nothing,
    read,
    written,
)

CLASSES: list[Any] = [Count, Called, Colour]
CHECKED = PickleSerializer(allow=CLASSES)
JSON = JsonSerializer(CLASSES)
#: Those that notice any change at all.
TIGHT: list[Serializer] = [
    SignedSerializer(CHECKED, KEYS),
    EncryptedSerializer(CHECKED, KEYS),
    CompressedSerializer(CHECKED),
    JSON,
    SignedSerializer(CompressedSerializer(CHECKED), KEYS),
    EncryptedSerializer(CompressedSerializer(JSON), KEYS),
]
ALL = [CHECKED, *TIGHT]
TASK = Count("x", text="abc" * 200, inside=[{"a": (1, b"\0" * 20), "b": State.NEW}])
PAYLOADS = {id(serializer): written(serializer, TASK) for serializer in ALL}

serializers = pytest.mark.parametrize("serializer", ALL, ids=repr)
tight = pytest.mark.parametrize("serializer", TIGHT, ids=repr)
quietly = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def peak_of_refusal(serializer: Serializer, payload: bytes) -> int:
    """Return how much memory it took to refuse a payload."""
    with pytest.raises(DecodeError):
        read(serializer, payload[:-1])  # what is imported and cached is so now
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            read(serializer, payload)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


#: What an exception, its message and traceback take.
SOME = 100_000


@serializers
def test_payload_that_is_cut_off_is_refused(serializer: Serializer) -> None:
    """Wherever it is cut."""
    payload = PAYLOADS[id(serializer)]
    assert read(serializer, payload).text == TASK.text
    for end in range(len(payload)):
        with pytest.raises(DecodeError):
            read(serializer, payload[:end])


@tight
@quietly
@given(st.data())
def test_payload_with_bits_flipped_is_refused(
    serializer: Serializer, data: st.DataObject
) -> None:
    """One or several, in the header too."""
    payload = bytearray(PAYLOADS[id(serializer)])
    places = st.integers(0, len(payload) - 1)
    flips = st.dictionaries(places, st.integers(1, 255), min_size=1, max_size=8)
    for place, bits in data.draw(flips).items():
        payload[place] ^= bits
    with pytest.raises(DecodeError):
        read(serializer, bytes(payload))


@quietly
@given(st.data())
def test_pickle_with_bits_flipped_does_nothing_else(data: st.DataObject) -> None:
    """It is refused, or an object of what is allowed, with other attributes."""
    payload = bytearray(PAYLOADS[id(CHECKED)])
    for place in data.draw(
        st.lists(st.integers(0, len(payload) - 1), min_size=1, max_size=4)
    ):
        payload[place] ^= data.draw(st.integers(1, 255))
    check_harmless(bytes(payload))


@serializers
@quietly
@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\x80\x05", b"gAAAA", b"\xf5ss"])
)
def test_garbage_is_refused(serializer: Serializer, tail: bytes, head: bytes) -> None:
    """Also behind the first bytes of something that is known."""
    for kind in (b"", b"S\x01", b"Z\x01", b"J\x01"):
        garbage = head + kind + tail
        try:
            read(serializer, garbage)
        except DecodeError:
            continue
        # A few bytes are a pickle of a number or an empty list by chance.
        check_harmless(garbage)


def word(text: str) -> bytes:
    return pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode()


#: Pieces of programs: to import, to remember, to call and to change.
WORDS = [
    *("posix", "mkdir", "builtins", "getattr", "eval", "sessionstore.task", "Task"),
    *("State", "Run", "tests.serializers.parts", "Called", "Count", "Trap", "os.mkdir"),
    *("NEW", "__init__", "changed", "x"),
]
IMPORTS = [
    word(module) + word(name) + b"\x93"
    for module, name in (
        ("sessionstore.task", "Task"),
        ("sessionstore.task", "State"),
        ("tests.serializers.parts", "Called"),
        ("tests.serializers.parts", "Colour"),
        ("builtins", "getattr"),
        ("posix", "mkdir"),
    )
]
PIECES = st.one_of(
    st.sampled_from([*map(word, WORDS)]),
    st.sampled_from(IMPORTS),
    st.sampled_from([bytes([code]) for code in b"0123().NQRabcdelostu}]\x81\x85\x86"]),
    st.sampled_from([bytes([code]) for code in b"\x87\x88\x8f\x90\x91\x92\x93\x94"]),
    st.builds(
        lambda code, n: bytes([code, n]), *map(st.sampled_from, (b"hqK", b"\0\1\2"))
    ),
    st.binary(max_size=3),
)


@settings(deadline=None, max_examples=400)
@given(st.lists(PIECES, max_size=25))
def test_hostile_program_does_nothing(pieces: list[bytes]) -> None:
    """Whatever it is made of: imports, calls, changes, places in the memo."""
    check_harmless(b"\x80\x04" + b"".join(pieces) + b".")


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(IMPORTS),
    st.sampled_from([b"", b")R", b")\x81", word("NEW") + b"\x85R", b"\x94h\x00", b"2"]),
    st.sampled_from([b"N}", b"}", b"]", b"("]),
    st.sampled_from(WORDS),
    st.sampled_from([b"K\x01s\x86b", b"K\x01sb", b"K\x01e", b"K\x01s", b"a", b"u"]),
)
def test_change_of_what_is_shared_is_never_made(
    target: bytes, made: bytes, state: bytes, name: str, change: bytes
) -> None:
    """Of a class or an Enum's member, by each opcode that changes something."""
    check_harmless(b"\x80\x04" + target + made + state + word(name) + change + b".")


def check_harmless(payload: bytes) -> None:
    """Read it as CHECKED does, and look at what a hostile one might have done."""
    before = _shared()
    with suppress(DecodeError):
        read(CHECKED, payload)
    assert _shared() == before


def _shared() -> Any:
    """What a payload could change: classes, members, and the current folder."""
    classes = (Task, State, Count, Colour, Called, Trap)
    shown = [{k: v for k, v in vars(cls).items() if k != "times"} for cls in classes]
    return shown, [vars(member).copy() for member in (*State, *Colour)], os.listdir()


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Memory


def bomb(pack: str, opcode: bytes, claim: int) -> bytes:
    """Return a pickle with an opcode that claims more than there is."""
    return b"\x80\x04]" + opcode + struct.pack(pack, claim) + b"x" * 1000 + b"."


MANY = 100_000
PICKLES = {
    "bytes": bomb("<Q", pickle.BINBYTES8, 2**32),
    "bytearray": bomb("<Q", pickle.BYTEARRAY8, 2**32),
    "text": bomb("<Q", pickle.BINUNICODE8, 2**32),
    "integer": bomb("<I", pickle.LONG4, 2**31 - 1),
    "memo": bomb("<I", pickle.LONG_BINPUT, 2**28),
    "frame": bomb("<Q", pickle.FRAME, 2**32),
    "lists": b"\x80\x04" + b"]" * MANY,
    "remembered lists": b"\x80\x04" + b"]\x94" * MANY + b"0",
    "marks": b"\x80\x04" + b"(" * MANY,
    "words": b"\x80\x04" + (word("Run") + b"\x94") * MANY + b"0",
    "copies": b"\x80\x04]" + b"2" * MANY + b"0",
    "left over": b"\x80\x04" + b"}" * MANY + b".",
    "a class at the end": b"\x80\x04(" + b"]" * MANY + b"l" + IMPORTS[-1] + b".",
}


@pytest.mark.parametrize("name", PICKLES)
def test_refusing_a_pickle_takes_little_memory(name: str) -> None:
    """No more than twice its size, whatever it claims."""
    payload = PICKLES[name]
    assert peak_of_refusal(CHECKED, payload) <= 2 * len(payload) + SOME


@pytest.mark.skipif(
    sys.version_info >= (3, 15), reason="its pickle takes no more than there is"
)
def test_pickle_alone_takes_what_is_claimed() -> None:
    """So that going through the opcodes first is needed."""
    tracemalloc.start()
    try:
        with pytest.raises(pickle.UnpicklingError, match="truncated"):
            pickle.loads(bomb("<Q", pickle.BYTEARRAY8, 2**26))
        assert tracemalloc.get_traced_memory()[1] > 2**25
    finally:
        tracemalloc.stop()


@tight
@pytest.mark.parametrize("change", ["cut", "flip"])
def test_refusing_a_large_payload_takes_little_memory(
    serializer: Serializer, change: str
) -> None:
    """No more than twice its size, however much it would become."""
    large = Count("x", items=[[n, str(n)] for n in range(50_000)], zeros=b"\0" * 2**22)
    payload = written(serializer, large)
    middle = len(payload) // 2
    if change == "cut":
        payload = payload[:-5]
    else:
        payload = (
            payload[:middle] + bytes([payload[middle] ^ 1]) + payload[middle + 1 :]
        )
    assert peak_of_refusal(serializer, payload) <= 2 * len(payload) + SOME


def compressed(claim: int, real: int) -> bytes:
    """Return a payload that claims one size and has another."""
    return with_checksum(b"Z", claim.to_bytes(8, "big") + zlib.compress(bytes(real)))


@pytest.mark.parametrize(
    ("claim", "real"),
    [(2**26 + 1, 2**26 + 1), (2**63, 2**24), (1000, 2**26), (0, 2**24), (2**25, 1000)],
)
def test_decompression_bomb_is_refused(claim: int, real: int) -> None:
    """By what it claims to be before a byte is made, or at the first one too many."""
    payload = compressed(claim, real)
    peak = peak_of_refusal(CompressedSerializer(CHECKED), payload)
    assert peak <= 2 * max(len(payload), min(claim, 1000)) + SOME


def test_decompression_stops_at_the_size_that_is_allowed() -> None:
    """A bomb that tells the truth takes so much, and not more than twice."""
    serializer = CompressedSerializer(CHECKED, max_size=2**20)
    assert peak_of_refusal(serializer, compressed(2**20, 2**20)) <= 2 * 2**20 + SOME
    assert peak_of_refusal(serializer, compressed(2**20 + 1, 2**20 + 1)) <= SOME


@pytest.mark.parametrize("text", ["[" + "[]," * MANY, "{" + '"a":{},' * MANY, "[1,"])
def test_refusing_json_takes_little_memory(text: str) -> None:
    """It is known to be none before anything is made of it."""
    payload = with_checksum(b"J", text.encode())
    assert peak_of_refusal(JSON, payload) <= 2 * len(payload) + SOME


@pytest.mark.parametrize("serializer", TIGHT[:2], ids=repr)
def test_refusing_a_large_forgery_takes_little_memory(serializer: Serializer) -> None:
    """Signed or encrypted with a key of somebody else's."""
    body = os.urandom(2**20)
    for forged in (b"\xf5ssS\x01" + body, b"gAAAA" + base64.urlsafe_b64encode(body)):
        assert peak_of_refusal(serializer, forged) <= 2 * len(forged) + SOME


def test_store_that_refuses_takes_little_memory(tmp_path: Path) -> None:
    """Also to say what it was that it did not read, by its ID (G7)."""
    url = f"sqlite:///{tmp_path}/store.db"
    store = SqlStore(url, serializer=CHECKED)
    id_ = store.save(Task())
    payload = PICKLES["remembered lists"]
    with store.transaction() as connection:
        connection.execute(store._tables.update().values(data=payload))
    store.invalidate_cache()
    with pytest.raises(DecodeError):
        store.load(id_)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError) as caught:
            store.load(id_)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.id == id_
    # And once more for the row, as the driver gives it.
    assert peak <= 3 * len(payload) + SOME


def test_payload_of_a_trap_runs_nothing_anywhere(tmp_path: Path) -> None:
    """As it is, and as each serializer's body."""
    trap = pickle.dumps(Trap(tmp_path / "made"))
    for serializer in ALL:
        for hostile in (
            trap,
            with_checksum(b"Z", len(trap).to_bytes(8, "big") + zlib.compress(trap)),
            with_checksum(b"J", trap),
            b"\xf5ssS\x01" + trap + bytes(32),
            b"gAAAA" + base64.urlsafe_b64encode(trap),
        ):
            with pytest.raises(DecodeError):
                serializer.loads(hostile, nothing)
    assert not (tmp_path / "made").exists()
    with pytest.raises(DecodeError):
        read(CHECKED, written(PickleSerializer(), Trap(tmp_path / "made")))
