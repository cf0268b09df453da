"""Keys: where they come from, and where they must not show."""

from __future__ import annotations

import logging
import pickle
import traceback
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from sessionstore import (
    ConfigurationError,
    DecodeError,
    EncodeError,
    FilesystemStore,
    SqlStore,
    Task,
)
from sessionstore.serializers import (
    EncryptedSerializer,
    Keys,
    PickleSerializer,
    SignedSerializer,
    new_key,
    read_keys,
)
from sessionstore.testing import run_forked
from tests.serializers.parts import KEYS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "keys"
    made.write_text(f"# the new one\n{KEYS[1]}\n\n  {KEYS[0]}\n")
    made.chmod(0o600)
    return made


def test_file_has_one_key_in_each_line(path: Path) -> None:
    """Newest first; empty lines and comments are skipped."""
    assert list(read_keys(path)) == list(Keys([KEYS[1], KEYS[0]]))
    assert [len(key) for key in read_keys(str(path))] == [32, 32]


def test_keys_of_other_tools_fit() -> None:
    """Both alphabets of base64, as text or as bytes."""
    made = [new_key(), Fernet.generate_key(), "+/" * 21 + "A=", "-_" * 21 + "A="]
    keys = list(Keys(made))
    assert keys[2] == keys[3]
    assert len(set(keys)) == 3


def test_name_without_a_slash_is_a_credential(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As systemd hands it to the service, whose own group bits are an ACL's."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(path.parent))
    path.chmod(0o440)
    assert len(read_keys("keys")) == 2
    assert len(read_keys(path)) == 2
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    with pytest.raises(ConfigurationError, match="systemd gave this process none"):
        read_keys("keys")
    with pytest.raises(ConfigurationError, match="mode 440"):
        read_keys(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o666])
def test_file_that_others_can_open_is_refused(path: Path, mode: int) -> None:
    """The error says what mends it."""
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"chmod 600 {path}"):
        read_keys(path)


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_name_of_nothing_is_refused(name: str) -> None:
    """As is a file that is not there, with its path."""
    with pytest.raises(ConfigurationError, match="is neither"):
        read_keys(name)
    with pytest.raises(ConfigurationError, match="/no/keys: No such file"):
        read_keys("/no/keys")


@pytest.mark.parametrize(
    "line", ["short", KEYS[0][:-2], KEYS[0] + "A", KEYS[0] * 2, "!" * 44, "ü" * 22]
)
def test_line_that_is_no_key_is_named_and_not_shown(path: Path, line: str) -> None:
    """G9: it may be most of a key."""
    path.write_text(f"{KEYS[0]}\n{line}\n")
    with pytest.raises(ConfigurationError, match=rf"key 2 in .*{path}") as caught:
        read_keys(path)
    assert line not in "".join(traceback.format_exception(caught.value))


def test_no_keys_are_an_error(path: Path) -> None:
    """An empty file, an empty list, and one text where a list is meant."""
    path.write_text("# nothing\n")
    with pytest.raises(ConfigurationError, match="no key in"):
        read_keys(path)
    with pytest.raises(ConfigurationError, match="no key"):
        Keys([])
    with pytest.raises(ConfigurationError, match="keys must be a list"):
        SignedSerializer(PickleSerializer(), KEYS[0])


@pytest.mark.parametrize("cls", [SignedSerializer, EncryptedSerializer])
class TestSecrecy:
    """Of a store that signs or encrypts."""

    def test_keys_show_nowhere(
        self,
        cls: type[SignedSerializer | EncryptedSerializer],
        path: Path,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """G9: in no repr, error, log, pickle or file of the database."""
        caplog.set_level(logging.DEBUG)
        url = f"sqlite:///{tmp_path}/store.db"
        serializer = cls(PickleSerializer(), read_keys(path))
        with SqlStore(url, serializer=serializer) as store:
            id_ = store.save(Task("x"))
        strange = cls(PickleSerializer(), [new_key()])
        with SqlStore(url, serializer=strange) as other:
            with pytest.raises(DecodeError) as caught:
                other.load(id_)
        said = [
            repr(serializer).encode(),
            repr(serializer.__dict__).encode(),
            repr(store).encode(),
            "".join(traceback.format_exception(caught.value)).encode(),
            caplog.text.encode(),
            pickle.dumps(store),
            *(file.read_bytes() for file in tmp_path.glob("store.db*")),
        ]
        for key, text in zip(read_keys(path), [KEYS[1], KEYS[0]], strict=True):
            for secret in (key, repr(key)[2:-1].encode(), text.encode()):
                assert not [place for place in said if secret in place]

    def test_store_pickles_with_the_path_of_its_keys(
        self,
        cls: type[SignedSerializer | EncryptedSerializer],
        path: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Another process reads them again, and in memory only they do not pickle."""
        url = f"sqlite:///{tmp_path}/store.db"
        monkeypatch.chdir(tmp_path)
        serializer = cls(PickleSerializer(), read_keys("./keys"))
        with SqlStore(url, serializer=serializer) as store:
            id_ = store.save(Task("x"))
            pickled = pickle.dumps(store)
        monkeypatch.chdir("/")
        with pickle.loads(pickled) as copy:
            assert copy.load(id_).jobname == "x"
        path.rename(tmp_path / "elsewhere")
        with pytest.raises(ConfigurationError, match="cannot be read"):
            pickle.loads(pickled)
        raw = SqlStore(url, serializer=cls(PickleSerializer(), KEYS))
        with pytest.raises(ConfigurationError, match=r"get them with read_keys\(\)"):
            pickle.dumps(raw)

    def test_keys_cannot_be_stored(
        self,
        cls: type[SignedSerializer | EncryptedSerializer],
        path: Path,
        tmp_path: Path,
    ) -> None:
        """Nor a serializer that has them."""
        serializer = cls(PickleSerializer(), read_keys(path))
        store = FilesystemStore(tmp_path / "objects")
        for part in (serializer, read_keys(path)):
            with pytest.raises(
                EncodeError, match="an object to be stored contains keys"
            ):
                store.save(Task(part=part))

    def test_child_goes_on(
        self,
        cls: type[SignedSerializer | EncryptedSerializer],
        path: Path,
        tmp_path: Path,
    ) -> None:
        """G4: after a fork both write, and read what the other wrote."""
        serializer = cls(PickleSerializer(), read_keys(path))
        store = SqlStore(f"sqlite:///{tmp_path}/store.db", serializer=serializer)
        first = store.save(Task("parent's"))

        def work() -> int:
            store.invalidate_cache()
            assert store.load(first).jobname == "parent's"
            return int(store.save(Task("child's")))

        assert store.load(run_forked(work)).jobname == "child's"
