"""What a disk holds after a power cut, worked out from a trace of a real run.

``strace`` writes down every call by which the writers, as they are, change files:
with all the data, and in the order in which the kernel did it.  Replaying that up to
any point gives the files as the programs saw them, and, which is what matters here,
the part that must have reached the disk: what was written before a ``fsync`` of the
same file returned, under names that were there before a ``fsync`` of the folder.  The
rest is gone, or some of it is: a disk may write what it was not yet told to, in any
order, and in the middle of a block when the power goes.

That is simpler than a file system of our own (FUSE) and needs nothing inside the
process (LD_PRELOAD, a SQLite VFS in Python) that might behave otherwise than what
users run; and one run can be cut at thousands of points.  What it takes for granted is
what POSIX gives: a disk that lies about ``fsync`` is not in it, nor is a sector that
was damaged by the cut (SQLite's "powersafe overwrite", sqlite.org/psow.html).  Files in
memory that are shared by ``mmap`` (SQLite's ``-shm``) leave no trace, and are no data.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: The calls that change a file or make it durable; those but the last line are known
#: to ``Disk``, which refuses the others.
CALLS = (
    "openat,pwrite64,write,ftruncate,fsync,fdatasync,unlink,"
    "creat,truncate,rename,renameat,renameat2,link,linkat,unlinkat,writev,pwritev,"
    "pwritev2,fallocate,sync_file_range,copy_file_range,sendfile"
)
SECTOR = 512


def trace(command: Sequence[str | Path], output: Path) -> None:
    """Run a command with all of its processes under strace."""
    options = ["--follow-forks", "--seccomp-bpf", "--quiet=all", "--signal=none"]
    # Paths of descriptors, all bytes in hexadecimal, no data cut short.
    options += ["--decode-fds=path", "--strings-in-hex=all", "--string-limit=100000000"]
    subprocess.run(
        ["strace", *options, f"--trace={CALLS}", f"--output={output}", *command],
        check=True,
        timeout=100,
    )


@dataclass(frozen=True, slots=True)
class Call:
    """One system call, as it began or as it ended."""

    process: str
    name: str
    #: The file that it is about.
    path: str
    arguments: str
    #: None where it only begins.
    result: int | None


_LINE = re.compile(
    r"(?P<pid>\d+) +(?:<\.\.\. \w+ resumed>(?P<rest>.*)|(?P<name>\w+)\((?P<start>.*))"
)
_UNFINISHED = re.compile(r" *<unfinished \.\.\.>$")
_RESULT = re.compile(r"\) += (-?\d+).*")
_HEX = re.compile(r'[<"]((?:\\x[0-9a-f]{2})*)[>"]')


def read_trace(path: Path, folder: Path) -> Iterator[Call]:
    """Yield the beginning and the end of each call about files in a folder."""
    begun: dict[str, tuple[str, str]] = {}
    for line in path.read_text().splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        process, text = match["pid"], match["rest"] or ""
        if match["name"] is not None:
            begun[process] = match["name"], ""
            text = match["start"]
        name, earlier = begun[process]
        whole = earlier + _UNFINISHED.sub("", text)
        about = _file_of(name, whole)
        is_inside = Path(about).is_relative_to(folder)
        if match["name"] is not None and is_inside:
            yield Call(process, name, about, whole, None)
        result = _RESULT.search(whole)
        if result is None:
            begun[process] = name, whole
        elif is_inside:
            arguments = whole[: result.start()]
            yield Call(process, name, about, arguments, int(result[1]))


def _file_of(name: str, arguments: str) -> str:
    strings = [
        _bytes(found).decode(errors="replace") for found in _HEX.findall(arguments)
    ]
    # openat(DIRECTORY<...>, "path", ...): all others name their file first.
    place = 1 if name == "openat" else 0
    return strings[place] if len(strings) > place else ""


def _bytes(hexadecimal: str) -> bytes:
    return bytes.fromhex(hexadecimal.replace("\\x", ""))


def data_of(call: Call) -> bytes:
    """Return what a call was given to write."""
    return _bytes(_HEX.findall(call.arguments)[1])


@dataclass(eq=False, slots=True)
class File:
    """What was written to a file, and how much of that is on the disk for certain."""

    #: (offset, bytes), or (size, None) for a truncation.
    writes: list[tuple[int, bytes | None]] = field(default_factory=list)
    synced: int = 0
    on_disk: bytearray = field(default_factory=bytearray)

    def sync(self, number: int) -> None:
        """Take the first ``number`` writes as done."""
        for write in self.writes[self.synced : number]:
            _apply(self.on_disk, write)
        self.synced = max(self.synced, number)

    def content(self) -> bytes:
        """Return the file as the programs see it."""
        content = bytearray(self.on_disk)
        for write in self.writes[self.synced :]:
            _apply(content, write)
        return bytes(content)

    def after_cut(self, luck: random.Random | None) -> bytes:
        """Return what the disk has: with ``luck``, some of the rest as well."""
        content = bytearray(self.on_disk)
        for offset, data in self.writes[self.synced :] if luck else ():
            if luck.random() < 0.5:
                if data is not None and luck.random() < 0.3:
                    data = data[: SECTOR * luck.randint(0, len(data) // SECTOR)]
                _apply(content, (offset, data))
        return bytes(content)


def _apply(content: bytearray, write: tuple[int, bytes | None]) -> None:
    offset, data = write
    if data is None:
        del content[offset:]
        data = b""
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


class Disk:
    """A folder's files, call by call."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._files: dict[str, File] = {}
        self._names_on_disk: dict[str, File] = {}
        #: What each process's fsync, when it returns, will have made durable.
        self._syncs: dict[str, tuple[File, int] | dict[str, File]] = {}

    def take(self, call: Call) -> None:
        """Follow one call."""
        if call.path.endswith("-shm") or (call.result or 0) < 0:
            return
        if call.result is None:
            if call.name in {"fsync", "fdatasync"}:
                self._begin_sync(call)
        elif call.name in {"fsync", "fdatasync"}:
            self._end_sync(call)
        elif call.name == "openat":
            if "O_CREAT" in call.arguments and call.path not in self._files:
                self._files[call.path] = File()
            assert "O_TRUNC" not in call.arguments, "not known to this replay"
        elif call.name == "pwrite64":
            data = data_of(call)[: call.result]
            offset = int(call.arguments.rpartition(",")[2])
            self._files[call.path].writes.append((offset, data))
        elif call.name == "ftruncate":
            size = int(call.arguments.rpartition(",")[2])
            self._files[call.path].writes.append((size, None))
        elif call.name == "unlink":
            del self._files[call.path]
        else:
            raise AssertionError(f"{call.name} is not known to this replay")

    def _begin_sync(self, call: Call) -> None:
        if call.path == self._folder:
            self._syncs[call.process] = dict(self._files)
        else:
            file = self._files[call.path]
            self._syncs[call.process] = file, len(file.writes)

    def _end_sync(self, call: Call) -> None:
        synced = self._syncs.pop(call.process)
        if isinstance(synced, dict):
            self._names_on_disk = synced
        else:
            file, number = synced
            file.sync(number)

    def files(self) -> dict[str, bytes]:
        """Return the files as the programs see them."""
        return {path: file.content() for path, file in self._files.items()}

    def cut(self, target: Path, luck: random.Random | None) -> None:
        """Write the files that are there after a power cut now."""
        names = self._names_on_disk
        if luck is not None and luck.random() < 0.5:
            names = self._files
        for path, file in names.items():
            (target / os.path.basename(path)).write_bytes(file.after_cut(luck))
