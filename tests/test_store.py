"""How make_store finds the store for a URL."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from sessionstore import store as store_module
from sessionstore.errors import ConfigurationError
from sessionstore.filesystem import FilesystemStore
from sessionstore.sql import SqlStore
from sessionstore.store import Store, make_store, register
from sessionstore.url import Url


class Minimal(Store):
    """A store with the required methods only, which notes how it was made."""

    def __init__(self, *args: Any, **kw: Any) -> None:
        self.arguments = (args, kw)

    def save(self, obj: object) -> int:
        return 1

    def load(self, id_: object) -> object:
        return None

    def replace(self, id_: object, obj: object) -> None:
        pass

    def remove(self, id_: object) -> None:
        pass

    def __len__(self) -> int:
        return 0


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_constructors", dict(store_module._constructors))


@pytest.mark.parametrize("kind", [str, Path, Url])
def test_plain_path_is_a_filesystem_store(kind: Any, tmp_path: Path) -> None:
    """A path in any form is taken as it is, odd characters too."""
    store = make_store(kind(f"{tmp_path}/50% #1?"))
    assert isinstance(store, FilesystemStore)
    assert store.directory == f"{tmp_path}/50% #1?"


def test_file_url_is_a_filesystem_store(tmp_path: Path) -> None:
    """A file URL's path is percent-decoded."""
    assert make_store(f"file://{tmp_path}/a%20b").directory == f"{tmp_path}/a b"


@pytest.mark.parametrize("kind", [str, Url, make_url])
def test_sqlalchemy_s_urls_are_sql_stores(kind: Any, tmp_path: Path) -> None:
    """What SQLAlchemy can load is a SqlStore, whatever type the URL has."""
    assert isinstance(make_store(kind(f"sqlite:///{tmp_path}/a.db")), SqlStore)


def test_seed_s_example_works(tmp_path: Path) -> None:
    """The example in the seed, with another folder."""
    store = make_store(Url(f"sqlite:////{tmp_path}/foo.db"))
    assert store.__class__.__name__ == "SqlStore"


def test_arguments_reach_the_constructor() -> None:
    """make_store adds nothing to what it was given."""
    register("minimal", Minimal)
    assert make_store("minimal+x://a", 1, two=2).arguments == (
        ("minimal+x://a", 1),
        {"two": 2},
    )


def test_registered_scheme_comes_before_sqlalchemy_s() -> None:
    """A user's own store may take a scheme over."""
    register("sqlite", Minimal)
    assert isinstance(make_store("sqlite+pysqlite://"), Minimal)


@pytest.mark.parametrize("uri", ["nonsense://u:s3cret@h/x", "sqlite+nonsense://"])
def test_unknown_scheme_is_named_with_those_known(uri: str) -> None:
    """The error says what is wrong and what would do."""
    scheme = uri.partition(":")[0]
    with pytest.raises(ConfigurationError) as caught:
        make_store(uri)
    for name in (repr(scheme), "file", "sqlite", "postgresql", "mysql"):
        assert name in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["", "a+b", "a:b", "a/b", "my_store", "1x"])
def test_scheme_that_would_never_match_is_refused(scheme: str) -> None:
    """A registration that could have no effect is an error, not silence."""
    with pytest.raises(ConfigurationError):
        register(scheme, Minimal)


def test_optional_methods_have_defaults() -> None:
    """A store need not know of caches, forks or lists."""
    store = Minimal()
    store.invalidate_cache()
    store.pre_fork()
    store.post_fork()
    with pytest.raises(NotImplementedError):
        store.list()


def test_empty_store_is_true() -> None:
    """``if store:`` does not depend on what is in it."""
    assert Minimal()
    assert len(Minimal()) == 0


@pytest.mark.parametrize("method", ["load", "save", "replace", "remove"])
def test_required_methods_are_abstract(method: str) -> None:
    """A class without one of the four cannot be instantiated."""
    assert method in Store.__abstractmethods__
