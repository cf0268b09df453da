"""Archives: written, read again, and refused where they are not whole."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import stat
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessionstore import ConfigurationError, SessionStore, StoreError, Task
from sessionstore.errors import ArchiveError
from sessionstore.transfer import copy, export, import_archive
from sessionstore.transfer.archive import ArchiveReader
from sessionstore.transfer.items import ENTRY_COLUMNS, JOB_COLUMNS
from tests.transfer import scene


@pytest.fixture
def archive(source_url: str, tmp_path: Path) -> Path:
    """An archive of a store with something of everything."""
    scene.fill(source_url)
    path = tmp_path / "archive"
    export(source_url, path, verify=True)
    return path


def repacked(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """Change what is in an archive, with gzip's own check sums made to fit."""
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))
    return path


def test_all_comes_back_from_an_archive(
    backend: str, make_database: Callable[[str], str], target_url: str, tmp_path: Path
) -> None:
    """What was exported from any database and imported again is the same."""
    url, path = make_database(backend), tmp_path / "archive"
    scene.fill(url)
    written = export(url, path, verify=True)
    read = import_archive(path, target_url, verify=True)
    assert (read.objects, read.written) == (scene.OBJECTS, scene.OBJECTS)
    assert read.digest == written.digest
    extra = ", owner, cost, mark"
    assert scene.everything(target_url, extra) == scene.everything(url, extra)
    back = make_database(backend) if backend != "sqlite" else f"{target_url}-back"
    import_archive(path, back, verify=True)
    assert scene.everything(back, extra) == scene.everything(url, extra)


def test_same_content_makes_the_same_archive(
    archive: Path, target_url: str, tmp_path: Path
) -> None:
    """An archive of what was imported is the archive, byte for byte."""
    import_archive(archive, target_url)
    again = tmp_path / "again"
    export(target_url, again)
    assert again.read_bytes() == archive.read_bytes()


def test_archive_is_its_owners_only_and_written_over_nothing(
    archive: Path, source_url: str
) -> None:
    """Payloads are nobody else's to read or to write (G9)."""
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    before = archive.read_bytes()
    with pytest.raises(ConfigurationError, match="is there already"):
        export(source_url, archive)
    assert archive.read_bytes() == before
    assert [path.name for path in archive.parent.glob(".*")] == []


def test_archive_of_one_session_is_imported_under_another_name(
    source_url: str, target_url: str, tmp_path: Path
) -> None:
    """Of several sessions none can be renamed."""
    scene.fill(source_url)
    export(source_url, tmp_path / "one", session="one")
    export(source_url, tmp_path / "all")
    done = import_archive(tmp_path / "one", target_url, rename="uno", verify=True)
    assert (done.sessions, done.objects) == (["uno"], 3)
    assert len(SessionStore(target_url, "uno", create=False)) == 2
    with pytest.raises(ConfigurationError, match="has 2 sessions"):
        import_archive(tmp_path / "all", target_url, rename="uno")


def refused(path: Path, target_url: str, match: str) -> None:
    """Expect that nothing is made of a file, and one line said."""
    with pytest.raises(ArchiveError, match=match) as caught:
        import_archive(path, target_url)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path(target_url.removeprefix("sqlite:///")).exists()


def test_archive_that_was_cut_short_is_refused_wherever_it_was_cut(
    archive: Path, target_url: str
) -> None:
    """A half-written archive is told from a whole one, and nothing is changed."""
    whole = archive.read_bytes()
    for length in random.Random(1).sample(range(len(whole)), 60):
        archive.write_bytes(whole[:length])
        refused(archive, target_url, "no archive of|was cut short")


def test_archive_whose_content_was_cut_is_refused(
    archive: Path, target_url: str
) -> None:
    """The trailer must be there though gzip has nothing to complain of."""
    repacked(archive, lambda content: content[: content.rindex(b'["end"')])
    refused(archive, target_url, f"after {scene.OBJECTS} objects")


def test_flipped_byte_is_found_wherever_it_is(archive: Path, target_url: str) -> None:
    """But for gzip's own header, and the bits that fill the last block's last byte."""
    whole = archive.read_bytes()
    for place in random.Random(2).sample(range(10, len(whole)), 60):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        with suppress(OSError, EOFError, zlib.error):
            if gzip.decompress(flipped) == gzip.decompress(whole):
                continue
        archive.write_bytes(flipped)
        refused(archive, target_url, "is damaged")


def test_payload_that_was_exchanged_is_found(archive: Path, target_url: str) -> None:
    """The digest tells, where gzip's check sums were made to fit."""
    repacked(archive, lambda content: content.replace(b"no pickle", b"a pickle!"))
    refused(archive, target_url, "its digest is another one")


def test_value_that_no_database_takes_is_told(archive: Path, target_url: str) -> None:
    """An integer beyond 64 bits comes from no store; its batch is not written."""
    lines = gzip.decompress(archive.read_bytes()).split(b"\n")
    header, end = lines[0], b'["end",1,"%s"]'
    row = b'[1,"NEW",0,[%s],["one",%d,"",%s],[]]\n\n' % (
        b",".join([b"null"] * 6),
        2**70,
        b'"NEW",null,1,0,0,null,0,0',
    )
    content = header + b"\n" + row + end % hashlib.sha256(row).hexdigest().encode()
    archive.write_bytes(gzip.compress(content + b"\n"))
    with pytest.raises(StoreError, match="does not take"):
        import_archive(archive, target_url)
    assert scene.everything(target_url)["objects"] == []


def test_what_follows_the_end_is_refused(archive: Path, target_url: str) -> None:
    """An archive is one, not two behind each other."""
    archive.write_bytes(archive.read_bytes() * 2)
    refused(archive, target_url, "something stands after its end")


def test_archive_of_a_newer_version_is_refused(archive: Path, target_url: str) -> None:
    """It is told which version there is and which are read."""
    repacked(archive, lambda content: content.replace(b'n":1,', b'n":2,', 1))
    refused(archive, target_url, "version 2, and this release reads version 1")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text\n",
        gzip.compress(b""),
        gzip.compress(b"[]\n"),
        gzip.compress(b"{}\n"),
    ],
    ids=["empty", "text", "nothing", "list", "object"],
)
def test_what_is_no_archive_is_refused(
    content: bytes, tmp_path: Path, target_url: str
) -> None:
    """Whatever it is, it gets one line."""
    path = tmp_path / "archive"
    path.write_bytes(content)
    refused(path, target_url, "is no archive of sessionstore")


def test_file_that_cannot_be_read_is_told(tmp_path: Path, target_url: str) -> None:
    """A folder, and a name that there is not."""
    for path, said in ((tmp_path, "directory"), (tmp_path / "none", "No such file")):
        with pytest.raises(ConfigurationError, match=said):
            import_archive(path, target_url)


_LINES = st.lists(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3) | st.just("end"),
        lambda inner: st.lists(inner, max_size=7),
        max_leaves=12,
    )
)


@settings(deadline=None)
@given(lines=_LINES)
def test_hostile_lines_are_refused(
    lines: list[object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever stands where objects should, it is an ArchiveError."""
    path = tmp_path_factory.getbasetemp() / "hostile"
    header = {
        "format": "sessionstore archive",
        "version": 1,
        "columns": [],
        "sessions": [],
        "largest_id": None,
        "job": JOB_COLUMNS,
        "entry": ENTRY_COLUMNS,
    }
    end = ["end", 0, hashlib.sha256().hexdigest()]

    def write(content: list[object]) -> None:
        text = "".join(json.dumps(line) + "\n" for line in content)
        path.write_bytes(gzip.compress(text.encode()))

    write([header, *lines, "no end"])
    with pytest.raises(ArchiveError):
        ArchiveReader(path)
    write([header, end])
    assert ArchiveReader(path).count == 0


def test_archive_and_copy_have_the_same_digest(
    archive: Path, source_url: str, target_url: str
) -> None:
    """So that a store can be held against an archive that was made of it."""
    copied = copy(source_url, target_url, verify=True)
    assert copied.digest == ArchiveReader(archive).digest


def test_ids_of_what_was_removed_are_not_given_again(
    source_url: str, target_url: str, tmp_path: Path
) -> None:
    """Also where all that is left of the store is its archive (G5)."""
    source = SessionStore(source_url)
    gone = source.add(Task("gone"))
    source.remove(gone)
    export(source_url, tmp_path / "archive")
    import_archive(tmp_path / "archive", target_url)
    assert SessionStore(target_url).add(Task("new")) > gone


def test_interrupted_export_leaves_no_file_of_that_name(
    source_url: str, tmp_path: Path
) -> None:
    """The file has its name when it is whole."""
    SessionStore(source_url).add_many([Task(f"{n}") for n in range(3)])

    def stop(what: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(source_url, tmp_path / "archive", progress=stop)
    assert [path.name for path in tmp_path.iterdir() if "archive" in path.name] == []
