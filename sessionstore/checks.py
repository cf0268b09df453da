"""Checks of arguments, so that a wrong one is refused by the call that gives it."""

from __future__ import annotations

from collections.abc import Mapping

from sessionstore.errors import ConfigurationError

__all__ = [
    "check_attempts",
    "check_lease",
    "check_mapping",
    "check_methods",
    "check_timeout",
    "check_whole",
]

#: Seconds.  The end of a longer lease might be later than any ``datetime``.
LONGEST = 1e9


def check_methods(name: str, value: object, *methods: str) -> None:
    """Refuse an object that lacks one of these methods; None is for the default."""
    missing = [m for m in methods if not callable(getattr(value, m, None))]
    if value is not None and missing:
        # Not the value itself, which may be a key.
        raise ConfigurationError(
            f"{name} must be an object with {' and '.join(methods)}; "
            f"{type(value).__name__} has no {missing[0]}"
        )


def check_mapping(name: str, value: object) -> None:
    """Refuse what is no mapping; None is for the default."""
    if value is not None and not isinstance(value, Mapping):
        raise ConfigurationError(
            f"{name} must be a mapping, not {type(value).__name__}"
        )


def check_whole(name: str, value: object, least: int) -> None:
    """Refuse anything but a whole number from ``least`` up."""
    if not isinstance(value, int) or value < least:
        raise ConfigurationError(
            f"{name}={value!r} must be an integer, {least} or more"
        )


def check_attempts(max_attempts: int | None) -> None:
    """Refuse a limit that would end every task untried."""
    if max_attempts is not None:
        check_whole("max_attempts", max_attempts, 1)


def check_lease(seconds: float) -> None:
    """Refuse anything but a positive number of seconds that has an end."""
    if not isinstance(seconds, int | float) or not 0 < seconds <= LONGEST:
        raise ConfigurationError(
            f"lease={seconds!r} must be a number of seconds greater than 0 and at "
            f"most {LONGEST:g}"
        )


def check_timeout(name: str, seconds: float) -> None:
    """Refuse anything but a number of seconds from 0 up."""
    if not isinstance(seconds, int | float) or not seconds >= 0:
        raise ConfigurationError(
            f"{name}={seconds!r} must be a number of seconds, 0 or more"
        )
