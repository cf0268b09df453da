"""Pickles looked into, and their references changed, without running them."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sessionstore.transfer.sketches import Made, attributes_of, sketched

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(), inner)
        | st.tuples(inner, inner)
        | st.tuples(inner, inner, inner, inner)
    ),
    max_leaves=20,
)


@given(value=PLAIN, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_are_seen_as_they_are(value: object, protocol: int) -> None:
    """What the machine sketches is what pickle would make."""
    assert sketched(pickle.dumps(value, protocol)).top == value


class Part:
    """Something that stands outside a pickle."""

    def __init__(self, id_: object) -> None:
        self.id = id_


class Pickler(pickle.Pickler):
    """Refers to parts by their IDs."""

    def persistent_id(self, part: object) -> object:
        return part.id if isinstance(part, Part) else None


class Unpickler(pickle.Unpickler):
    """Says what it was referred to."""

    def persistent_load(self, id_: object) -> object:
        return "part", id_


@given(
    before=PLAIN,
    ids=st.lists(st.integers() | st.tuples(st.integers(), st.text()), min_size=1),
    protocol=st.integers(1, pickle.HIGHEST_PROTOCOL),
    new_id=st.integers(1, 2**63 - 1),
)
def test_changed_references_are_loaded_with_the_rest_as_it_was(
    before: object, ids: list[object], protocol: int, new_id: int
) -> None:
    """Each second reference gets a new ID, wherever it stands."""
    value = {"before": before, "parts": [Part(id_) for id_ in ids], "after": before}
    buffer = io.BytesIO()
    Pickler(buffer, protocol).dump(value)
    sketch = sketched(buffer.getvalue())
    assert [reference.id for reference in sketch.references] == ids
    changed = {reference.place: new_id for reference in sketch.references[::2]}
    loaded = Unpickler(io.BytesIO(sketch.rewritten(changed))).load()
    expected = [new_id if n % 2 == 0 else id_ for n, id_ in enumerate(ids)]
    assert loaded == {
        "before": before,
        "parts": [("part", id_) for id_ in expected],
        "after": before,
    }


def test_textual_references_of_protocol_0_are_changed() -> None:
    """They stand in a line of their own."""
    sketch = sketched(b"(lp0\nPold\naPother\na.")
    [first, second] = sketch.references
    assert (first.id, second.id) == ("old", "other")
    assert sketch.rewritten({first.place: 12}) == b"(lp0\nP12\naPother\na."


def test_nothing_is_run(tmp_path: Path) -> None:
    """A pickle that would do something is looked into, and does nothing."""

    class Hostile:
        def __reduce__(self) -> object:
            return os.mkdir, (str(tmp_path / "made"),)

    sketch = sketched(pickle.dumps(Hostile()))
    assert isinstance(sketch.top, Made)
    assert sketch.top.arguments == (str(tmp_path / "made"),)
    assert not (tmp_path / "made").exists()


def torn(value: object, protocol: int, place: int, some: bytes) -> bytes:
    """Return a pickle with a part of it exchanged."""
    payload = pickle.dumps(value, protocol)
    place %= len(payload)
    return payload[:place] + some + payload[place + len(some) :]


TORN = st.builds(torn, PLAIN, st.integers(0, 5), st.integers(0), st.binary(max_size=4))


@given(st.binary() | TORN)
def test_hostile_bytes_are_no_pickle(some: bytes) -> None:
    """There is no sketch of them, or it was one after all."""
    sketch = sketched(some)
    if sketch is not None:
        assert sketch.rewritten({}) == some
        attributes_of(sketch.top)
