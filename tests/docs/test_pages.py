"""The documentation's examples and commands run as they stand."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from sqlalchemy.engine import make_url

ROOT = Path(__file__).parent.parent.parent
PAGES = ROOT / "docs" / "pages"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    line: int
    language: str
    title: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """Go through the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    fence = r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```$'
    for found in re.finditer(fence, text, re.DOTALL | re.MULTILINE):
        line = text.count("\n", 0, found.start(3)) + 1
        yield Block(line, found[1], found[2] or "", found[3])


WITH_EXAMPLES = [page for page in sorted(PAGES.rglob("*.md")) if any(blocks(page))]


@pytest.mark.parametrize(
    "page", WITH_EXAMPLES, ids=lambda page: str(page.relative_to(PAGES))
)
def test_page_is_true(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, as a reader would: files are written, code and commands are run."""
    monkeypatch.chdir(tmp_path)
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for block in blocks(page):
        where = f"{page.relative_to(ROOT)}:{block.line}"
        if block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, where, "exec"), module.__dict__)
        else:
            assert block.language == "console", f"{where}: what is to be done with it?"
            run(block.text, where)


def environment() -> dict[str, str]:
    """Return what commands are run with: this package, a store's URL, a server."""
    given = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "80",
        "SESSIONSTORE_URL": "sqlite:///tasks.db",
    }
    if server := os.environ.get("SESSIONSTORE_TEST_POSTGRESQL"):
        url = make_url(server)
        given |= {"PGHOST": str(url.host), "PGPORT": str(url.port)}
        given |= {"PGUSER": str(url.username), "PGPASSWORD": str(url.password)}
    return given


def run(text: str, where: str) -> None:
    """Run the commands of a block, and compare what each one says."""
    for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.M):
        done = subprocess.run(
            ["bash", "-c", command],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, f"{where}: {command}\n{done.stdout}"
        said = done.stdout if done.stdout.endswith("\n") else f"{done.stdout}\n"
        same = doctest.OutputChecker().check_output(
            expected, said if done.stdout else "", doctest.ELLIPSIS
        )
        assert same, f"{where}: {command}\n{done.stdout}"


def test_checker_sees_what_is_wrong(tmp_path: Path) -> None:
    """A command that fails, or says something else, is no true page."""
    run("$ echo a\na\n$ echo b c\nb ...\n", "here")
    for text in ("$ false\n", "$ echo a\nb\n", "$ echo a\n"):
        with pytest.raises(AssertionError, match="here"):
            run(text, "here")


def test_screens_are_made_of_real_runs(tmp_path: Path) -> None:
    """The script runs, and what the pages show is what it makes."""
    subprocess.run([sys.executable, ROOT / "docs" / "screens.py", tmp_path], check=True)
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {path.name for path in (PAGES / "screens").iterdir()}
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES.rglob("*.md"))
    assert made == set(re.findall(r"screens/([\w-]+\.svg)\)", text))
    for path in tmp_path.iterdir():
        assert "</svg>" in path.read_text(encoding="utf-8")
