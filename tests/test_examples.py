"""The README's and the docstrings' examples run as they stand."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import sessionstore

README = Path(__file__).parent.parent / "README.md"

MODULES = [
    module.name
    for module in pkgutil.walk_packages(sessionstore.__path__, "sessionstore.")
    if not module.name.startswith("sessionstore.objects.migrations")
]


EXAMPLES = [
    example
    for name in MODULES
    for example in doctest.DocTestFinder().find(importlib.import_module(name))
    if example.examples
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_docstring_example_is_true(example: doctest.DocTest) -> None:
    """An example in a docstring gives what it shows."""
    said: list[str] = []
    doctest.DocTestRunner().run(example, out=said.append)
    assert not said, "".join(said)


def test_readme_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's Python blocks run in order, each seeing what came before."""
    # A module of that name, since the classes that examples define are pickled
    # by it, and those of __main__ are warned about.
    module = ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)
    text = README.read_text(encoding="utf-8")
    blocks = list(
        re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    )
    assert blocks, "README.md has no Python example"
    for block in blocks:
        # Blank lines before the block make a traceback's line numbers README's.
        above = text.count("\n", 0, block.start(1))
        source = "\n" * above + block[1]
        exec(compile(source, str(README), "exec"), module.__dict__)


def test_tests_that_the_readme_names_exist() -> None:
    """The README's guarantees each name what proves them."""
    root = README.parent
    text = README.read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+(?:\.py|\.md)?)(?:::(\w+))?`", text)
    assert len(named) >= 9
    for path, function in named:
        assert (root / path).exists(), path
        if function:
            assert f"def {function}(" in (root / path).read_text(encoding="utf-8")
