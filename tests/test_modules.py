"""What the package's modules have for each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import sessionstore
from sessionstore import errors
from tests.test_examples import MODULES


def source(name: str) -> ast.Module:
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def exported(name: str) -> list[str]:
    """Return a module's ``__all__``, without importing what its extra would bring."""
    for node in source(name).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [*ast.literal_eval(node.value)]
    return []


def taken(name: str) -> Iterator[tuple[str, str]]:
    """Give what a module takes from others, each with the other's name."""
    modules: dict[str, str] = {}
    nodes = [*ast.walk(source(name))]
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in MODULES:
                    modules[alias.asname or alias.name] = whole
                elif node.module in MODULES:
                    yield node.module, alias.name
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            other = modules.get(node.value.id)
            if other is not None:
                yield other, node.attr


@pytest.mark.parametrize("name", MODULES)
def test_what_a_module_takes_the_other_one_exports(name: str) -> None:
    """By ``__all__``, which tells what may be relied on when a module is changed."""
    assert {(m, what) for m, what in taken(name) if what not in exported(m)} == set()


def test_package_exports_all_of_its_errors() -> None:
    """Whoever catches one need not know which module it is from."""
    assert {*errors.__all__} <= {*sessionstore.__all__}
