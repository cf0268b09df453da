"""What accessors return, and that they are values."""

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from sessionstore import Task
from sessionstore.get import GET, Get, GetAttribute, GetItem, GetOnly

THING = SimpleNamespace(a=[SimpleNamespace(b="deep"), 2], none=None)

ACCESSORS: list[Any] = [
    GET,
    GET.a,
    GET.a[0].b,
    GET["x"][1:2],
    GET.a.ONLY(Task),
    GetAttribute("a.b", xform=str.upper, default=None),
    GetItem(0, xform=sorted),
    GetOnly((int, str), GET.real, default=[]),
    Get(default=0).a.b,
]


def test_attribute_is_returned() -> None:
    """GetAttribute(n)(o) is o.n."""
    assert GetAttribute("a")(THING) is THING.a


def test_dotted_names_chain() -> None:
    """GetAttribute("a.b")(o) is o.a.b."""
    assert GetAttribute("execution.state")(Task()) == "NEW"


def test_item_is_returned_from_any_container() -> None:
    """GetItem(p)(o) is o[p]."""
    assert GetItem(1)("abc") == "b"
    assert GetItem(1)({1: "x"}) == "x"
    assert GetItem(slice(1, None))("abc") == "bc"


def test_xform_comes_first() -> None:
    """GetItem(0, xform=f)(o) is f(o)[0]."""
    assert GetItem(0, xform=sorted)("ba") == "a"
    assert GetAttribute("b", xform=GetItem(0, xform=GetAttribute("a")))(THING) == "deep"


def test_path_reads_as_python_does() -> None:
    """GET.a[0].b(o) is o.a[0].b."""
    assert GET.a[0].b(THING) == "deep"
    assert GET(THING) is THING


@pytest.mark.parametrize(
    ("accessor", "obj", "error"),
    [
        (GetAttribute("x"), THING, AttributeError),
        (GetAttribute("a.x"), THING, AttributeError),
        (GetItem(9), [], IndexError),
        (GetItem("x"), {}, KeyError),
        (GET.a[9], THING, IndexError),
    ],
)
def test_without_default_the_error_goes_through(
    accessor: Any, obj: object, error: type[Exception]
) -> None:
    """What is missing is an error, unless a default says otherwise."""
    with pytest.raises(error):
        accessor(obj)


@pytest.mark.parametrize("default", [None, 0, "text", []])
def test_default_stands_for_what_is_missing(default: Any) -> None:
    """Any value is a default, None too."""
    assert GetAttribute("x", default=default)(THING) is default
    assert GetItem(9, default=default)([]) is default


def test_default_is_for_the_whole_path() -> None:
    """The steps after a missing one are not taken on the default."""
    path = Get(default="none").names[2]
    assert path(object()) == "none"
    assert path(SimpleNamespace(names="ab")) == "none"
    assert path(SimpleNamespace(names="abc")) == "c"


def test_default_hides_no_other_error() -> None:
    """A function that fails in its own way still fails."""
    with pytest.raises(ZeroDivisionError):
        GetAttribute("x", xform=lambda _: 1 / 0, default=1)(THING)


def test_only_is_for_instances_of_its_class() -> None:
    """What is no instance gets the default, or None, and is not looked at."""
    accessor = GetOnly(Task, GET.jobname, default="no task")
    assert accessor(Task("count")) == "count"
    assert accessor(THING) == "no task"
    assert GET.jobname.ONLY(Task)(THING) is None
    assert GetOnly((int, str))(5) == 5


def test_only_lets_errors_of_instances_through() -> None:
    """The default is for other classes only."""
    with pytest.raises(AttributeError):
        GetOnly(Task, GET.colour, default=1)(Task())


@pytest.mark.parametrize("accessor", ACCESSORS, ids=repr)
def test_accessor_pickles_and_copies(accessor: Any) -> None:
    """A store's recipe holds its extra fields' functions."""
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(accessor, protocol)) == accessor
    assert copy.copy(accessor) == accessor
    assert copy.deepcopy(accessor) == accessor


def test_unpickled_accessor_works() -> None:
    """That no default was given survives, which a sentinel object would not."""
    accessor = pickle.loads(pickle.dumps(GET.a[0].b))
    assert accessor(THING) == "deep"
    with pytest.raises(AttributeError):
        accessor(object())


@pytest.mark.parametrize("accessor", ACCESSORS, ids=repr)
def test_accessor_is_a_value(accessor: Any) -> None:
    """Accessors are equal to their like only, and are hashable."""
    assert [other for other in ACCESSORS if other == accessor] == [accessor]
    assert hash(accessor) == hash(copy.copy(accessor))


def test_repr_tells_the_path() -> None:
    """An accessor can be recognised in a log."""
    assert repr(GET.a[0]) == "GetItem(0, xform=GetAttribute('a'))"
    assert repr(GetItem(0, xform=str.upper, default=None)) == (
        "GetItem(0, xform=str.upper, default=None)"
    )
    assert repr(GET) == "GET"


def test_accessor_is_not_iterable() -> None:
    """A loop over something that has every item would never end."""
    with pytest.raises(TypeError):
        iter(GET)


def test_names_with_an_underscore_are_python_s() -> None:
    """Python asks objects for such names itself; the error says what to write."""
    with pytest.raises(AttributeError, match="GetAttribute"):
        GET._private  # noqa: B018
    assert GetAttribute("_private")(SimpleNamespace(_private=1)) == 1
