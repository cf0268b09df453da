"""PyMySQL's connections share one TLS context, unless the URL asks for another."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pymysql
import pytest
import trustme

from sessionstore import SqlStore
from sessionstore.database import preferred_tls


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The TLS contexts made from now on, by what they were to verify with."""
    made: list[object] = []
    make = ssl.create_default_context

    def note(**options: Any) -> ssl.SSLContext:
        made.append(options.get("cafile"))
        return make(**options)

    monkeypatch.setattr(ssl, "create_default_context", note)
    return made


@pytest.mark.backends("mariadb")
def test_forked_child_makes_no_context(
    database_url: str, made: list[object], run_forked: Callable[..., object]
) -> None:
    """It has its parent's; to make one takes longer than all else before a write."""
    store = SqlStore(database_url)
    assert 1 not in store
    made.clear()

    def connect() -> None:
        assert 1 not in store
        assert made == []

    run_forked(connect)


def test_context_is_as_pymysql_has_it(made: list[object]) -> None:
    """With its settings, and asked for as little: TLS where the server has it."""
    options = {"host": "localhost", "user": "u", "defer_connect": True}
    theirs = pymysql.connect(**options)
    ours = [preferred_tls.connect(**options) for _ in range(2)]
    assert ours[0].ctx is ours[1].ctx is not theirs.ctx
    for name in ("verify_mode", "check_hostname", "verify_flags", "options"):
        assert getattr(ours[0].ctx, name) == getattr(theirs.ctx, name), name
    for name in ("ssl", "_ssl_required", "client_flag"):
        assert getattr(ours[0], name) == getattr(theirs, name), name


def test_what_the_caller_says_of_tls_is_done(
    made: list[object], tmp_path: Path
) -> None:
    """Certificates, a context of the caller's own, or none at all."""
    options = {"host": "localhost", "user": "u", "defer_connect": True}
    preferred_tls.connect(**options)
    made.clear()
    authority = str(tmp_path / "ca.pem")
    trustme.CA().cert_pem.write_to_path(authority)
    verifying = preferred_tls.connect(**options, ssl_ca=authority, ssl_verify_cert=True)
    assert made == [authority]
    assert verifying.ctx.verify_mode == ssl.CERT_REQUIRED
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert preferred_tls.connect(**options, ssl=own).ctx is own
    assert not preferred_tls.connect(**options, ssl_disabled=True).ssl


def test_function_in_place_of_connect_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As tracing puts one there."""
    monkeypatch.setattr(pymysql, "connect", lambda **options: options)
    assert preferred_tls.connect(host="h") == {"host": "h"}
