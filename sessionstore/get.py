"""Accessors: functions that fetch one part of an object, written like a path to it.

They are made for a store's ``extra_fields``: unlike a lambda they can be compared,
printed, copied and pickled.
"""

from __future__ import annotations

from copy import copy
from functools import reduce
from typing import Any, Final, Protocol, final

__all__ = ["GET", "GetAttribute", "GetItem", "GetOnly"]


class Function(Protocol):
    """Any callable of one object."""

    def __call__(self, obj: Any, /) -> Any:
        """Return what the accessor goes on with."""


@final
class _Missing:
    """Stands for "no default was given", as None is a default like any other."""

    def __repr__(self) -> str:
        return "<no default>"

    def __reduce__(self) -> str:
        # By name, so that it is the same object in the process that unpickles it.
        return "_MISSING"


_MISSING: Final = _Missing()
_NOT_THERE: Final = (AttributeError, KeyError, IndexError)


class Accessor:
    """A function of one object; attributes, items and ``ONLY`` add a step to it.

    Attributes that begin with an underscore are reached by ``GetAttribute("_name")``
    only: Python itself looks such names up on every object.
    """

    __slots__ = ("_default", "_xform")

    def __init__(
        self, xform: Function | None = None, default: object = _MISSING
    ) -> None:
        self._xform = xform
        self._default = default

    def __call__(self, obj: Any, /) -> Any:
        """Return ``obj`` itself, or what ``xform`` makes of it."""
        return obj if self._xform is None else self._xform(obj)

    def __getattr__(self, name: str) -> GetAttribute:
        if name.startswith("_"):
            raise AttributeError(
                f"an accessor has no attribute {name!r}; to get that attribute of an "
                f"object, write GetAttribute({name!r})"
            )
        return GetAttribute(name, self._as_xform(), self._default)

    def __getitem__(self, place: Any) -> GetItem:
        return GetItem(place, self._as_xform(), self._default)

    # Because of __getitem__ Python would iterate over it, without end.
    __iter__ = None

    def ONLY(self, cls: type | tuple[type, ...]) -> GetOnly:  # noqa: N802  # GC3Pie's name
        """Return the accessor for instances of ``cls``: the default for all others.

        >>> from sessionstore.get import GET
        >>> first = GET[0].ONLY(list)
        >>> first(["a", "b"]), first("text")
        ('a', None)
        """
        return GetOnly(cls, self._as_xform(), self._default)

    def _as_xform(self) -> Function | None:
        # The last step's default is for the whole path.  If an inner step returned it,
        # the outer steps would take it for the object, and go on with it.
        if self._default is _MISSING:
            return self
        without_default = copy(self)
        without_default._default = _MISSING
        return without_default

    def _place(self) -> tuple[Any, ...]:
        return ()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Accessor) or type(self) is not type(other):
            return NotImplemented
        return self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        # Places and defaults may be lists, and are left out for that.
        return hash((type(self), self._xform))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self._place(), self._xform, self._default)

    def __repr__(self) -> str:
        arguments = [
            place.__name__ if isinstance(place, type) else repr(place)
            for place in self._place()
        ]
        if self._xform is not None:
            name = getattr(self._xform, "__qualname__", None)
            arguments.append(f"xform={name or repr(self._xform)}")
        if self._default is not _MISSING:
            arguments.append(f"default={self._default!r}")
        return f"{type(self).__name__}({', '.join(arguments)})"


@final
class Get(Accessor):
    """The object itself: where paths begin.

    A ``default`` is for the whole path, whichever step of it is not there.

    >>> from sessionstore.get import Get
    >>> third = Get(default="none").names[2]
    >>> third(object())
    'none'
    """

    __slots__ = ()

    def _as_xform(self) -> Function | None:
        return self._xform

    def __repr__(self) -> str:
        plain = self._xform is None and self._default is _MISSING
        return "GET" if plain else super().__repr__()


@final
class GetAttribute(Accessor):
    """Return an attribute: ``GetAttribute("a.b")(obj)`` is ``obj.a.b``.

    ``xform`` comes first: ``GetAttribute("a", xform=f)(obj)`` is ``f(obj).a``.  With
    ``default`` that is returned where it, or what ``xform`` looks for, is not there;
    without it the AttributeError goes through.

    >>> from sessionstore import Task
    >>> from sessionstore.get import GetAttribute
    >>> GetAttribute("execution.info")(Task())
    ''
    >>> GetAttribute("colour", default="grey")(Task())
    'grey'
    """

    __slots__ = ("_name",)

    def __init__(
        self, name: str, xform: Function | None = None, default: object = _MISSING
    ) -> None:
        super().__init__(xform, default)
        self._name = name

    def __call__(self, obj: Any, /) -> Any:
        """Return the attribute of ``obj``."""
        try:
            return reduce(getattr, self._name.split("."), super().__call__(obj))
        except _NOT_THERE:
            if self._default is _MISSING:
                raise
            return self._default

    def _place(self) -> tuple[Any, ...]:
        return (self._name,)


@final
class GetItem(Accessor):
    """Return an item: ``GetItem(place)(obj)`` is ``obj[place]``.

    ``xform`` comes first: ``GetItem(0, xform=f)(obj)`` is ``f(obj)[0]``.  With
    ``default`` that is returned where it, or what ``xform`` looks for, is not there;
    without it the KeyError or IndexError goes through.

    >>> from sessionstore.get import GetItem
    >>> GetItem(1, xform=str.upper)("abc")
    'B'
    >>> GetItem("colour", default="grey")({})
    'grey'
    """

    __slots__ = ("_item",)

    def __init__(
        self, place: Any, xform: Function | None = None, default: object = _MISSING
    ) -> None:
        super().__init__(xform, default)
        self._item = place

    def __call__(self, obj: Any, /) -> Any:
        """Return the item of ``obj``."""
        try:
            return super().__call__(obj)[self._item]
        except _NOT_THERE:
            if self._default is _MISSING:
                raise
            return self._default

    def _place(self) -> tuple[Any, ...]:
        return (self._item,)


@final
class GetOnly(Accessor):
    """Return ``xform(obj)`` for instances of a class, and the default for all others.

    Without ``default`` that is None.

    >>> from sessionstore import Task
    >>> from sessionstore.get import GET, GetOnly
    >>> name = GetOnly(Task, GET.jobname, default="no task")
    >>> name(Task("count")), name("count")
    ('count', 'no task')
    """

    __slots__ = ("_cls",)

    def __init__(
        self,
        cls: type | tuple[type, ...],
        xform: Function | None = None,
        default: object = _MISSING,
    ) -> None:
        super().__init__(xform, default)
        self._cls = cls

    def __call__(self, obj: Any, /) -> Any:
        """Return what ``xform`` makes of ``obj``, if it is an instance."""
        if isinstance(obj, self._cls):
            return super().__call__(obj)
        return None if self._default is _MISSING else self._default

    def _place(self) -> tuple[Any, ...]:
        return (self._cls,)


#: Where paths begin: ``GET.a[0].b`` is a function of an object ``x``: ``x.a[0].b``.
GET: Final = Get()
