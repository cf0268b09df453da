"""What Url promises: nothing is lost, and the password is not told."""

import copy
import pickle
from pathlib import Path

import pytest

from sessionstore.errors import ConfigurationError
from sessionstore.url import Url


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////tmp/foo.db",
        "sqlite:///foo.db",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///a b.db?",
        "sqlite:////tmp/a.db?uri=true#",
        "file:foo",
        "postgresql+psycopg://u:p%40ss@h:5432/db?x=1#table=NAME",
        "mysql://u:@h/db",
        "postgresql://[::1]:5432/db",
    ],
)
def test_url_comes_back_exactly(text: str) -> None:
    """What was given is what the database gets, down to empty parts."""
    assert Url(text).geturl() == text
    assert Url(Url(text)).geturl() == text


def test_parts_are_told() -> None:
    """Each part of a URL has a name, as in GC3Pie."""
    url = Url("postgresql+psycopg://Ann:p%40ss@DB.example:5432/db?x=1#table=NAME")
    assert url.scheme == "postgresql+psycopg"
    assert url.netloc == "Ann:p%40ss@DB.example:5432"
    assert (url.username, url.password) == ("Ann", "p@ss")
    assert (url.hostname, url.port) == ("db.example", 5432)
    assert (url.path, url.query, url.fragment) == ("/db", "x=1", "table=NAME")


def test_absent_parts_are_none_or_empty() -> None:
    """A URL without a host has no credentials and no port either."""
    url = Url("sqlite:////tmp/foo.db")
    assert (url.hostname, url.port, url.username, url.password) == (None,) * 4
    assert (url.netloc, url.path, url.query) == ("", "//tmp/foo.db", "")


def test_plain_path_is_a_file_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path is made absolute, so that a change of folder does not move it."""
    monkeypatch.chdir(tmp_path)
    assert Url("/tmp/foo").geturl() == "file:///tmp/foo"
    assert Url("foo").path == f"{tmp_path}/foo"
    assert Url(Path("a:b")).path == f"{tmp_path}/a:b"


def test_special_characters_of_a_path_stay_in_the_path() -> None:
    """A hash sign in a folder's name begins no fragment."""
    url = Url("/tmp/50% #1?")
    assert url.path == "/tmp/50%25 %231%3F"
    assert (url.query, url.fragment) == ("", "")


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u:s3cret@h/db",
        "postgresql://:s3cret@h/db",
        "postgresql://u:s3cret@h:5432/s3/cret?a=b",
        "postgresql://u:x@s3cret@h/db",
        "postgresql://u:12/s3cret@h/db",
        "postgresql://u:12#s3cret@h/db",
        "postgresql://u@h/db?password=s3cret",
        "file://u:s3cret@h/folder",
    ],
)
def test_password_is_not_shown(text: str) -> None:
    """G9: no way of making a Url text shows its password, mistyped or not."""
    url = Url(text)
    for shown in (repr(url), str(url), f"{url}", f"{url!r:>5}"):
        assert "s3cret" not in shown
        assert "***" in shown


def test_rest_of_the_url_is_shown() -> None:
    """G9 hides the password and nothing else."""
    assert str(Url("mysql://u:u@u:3/u?u#u")) == "mysql://u:***@u:3/u?u#u"
    assert str(Url("sqlite:////tmp/a@b.db")) == "sqlite:////tmp/a@b.db"
    assert repr(Url("/tmp/a:b@c")) == "Url('file:///tmp/a:b@c')"


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u:s3cret@h:port/db",
        "postgresql://u:s3cret@h:99999/db",
        "postgresql://u:s3cret/x@h/db",
        "postgresql://u:s3cret@[::1/db",
        "postgresql://u:s3\ncret@h/db",
        "no_scheme://u:s3cret@h/db",
        " postgresql://u:s3cret@h/db",
        "",
    ],
)
def test_bad_url_is_refused_without_its_password(text: str) -> None:
    """G9: neither the error nor what it came from shows the password."""
    with pytest.raises(ConfigurationError) as caught:
        Url(text)
    assert "s3" not in str(caught.value)
    assert "cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_url_is_a_value() -> None:
    """Equal texts are equal URLs, as keys of a dictionary too."""
    url = Url("sqlite:///a")
    assert url == Url("sqlite:///a")
    assert url != Url("sqlite:///b")
    assert {url: 1}[Url("sqlite:///a")] == 1
    with pytest.raises(AttributeError):
        url.path = "/b"  # type: ignore[misc]


def test_url_pickles_and_copies() -> None:
    """A URL is part of a store's recipe, password included."""
    url = Url("mysql://u:p@h/db")
    for other in (pickle.loads(pickle.dumps(url)), copy.copy(url), copy.deepcopy(url)):
        assert other == url
        assert other.password == "p"
