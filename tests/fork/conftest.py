"""Collects what the cells measured, and writes the page when that is asked for."""

from __future__ import annotations

import pytest

from tests.fork import report


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-matrix",
        action="store_true",
        help="measure unprotected engines, and write naive.json and MATRIX.md",
    )


class Recorder:
    """Gathers measurements from all of xdist's workers."""

    def __init__(self) -> None:
        self.measured: report.Measured = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            for name, value in report.user_properties:
                if name == "measured":
                    subject, cell, letter = value
                    self.measured.setdefault(subject, {})[cell] = letter

    def pytest_sessionfinish(self) -> None:
        measured = report.read()
        report.merge(measured, self.measured)
        report.write(measured)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--write-matrix", False) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder())
