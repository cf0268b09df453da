"""The page about logging has what is logged."""

from __future__ import annotations

import re

from tests.docs.test_pages import PAGES, ROOT

#: What is called, or kept to be called, of a module's logger.
LOGGED = r"\blog\.(debug|info|warning|error|exception|critical)\b"


def test_page_has_all_that_is_logged() -> None:
    """Each logger with each of its levels, and none that is not there."""
    text = (PAGES / "howto" / "logging.md").read_text(encoding="utf-8")
    page = re.findall(r"^\| `([\w.]+)` \| ([A-Z]+) \|", text, re.MULTILINE)
    logged = set()
    for path in (ROOT / "sessionstore").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for level in re.findall(LOGGED, path.read_text(encoding="utf-8")):
            logged.add((name, "ERROR" if level == "exception" else level.upper()))
    assert sorted(page) == sorted(logged)
