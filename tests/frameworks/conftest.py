"""Fixture: a framework's processes, ended with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.frameworks.service import Service


@pytest.fixture
def serve(tmp_path: Path, database_url: str) -> Iterator[Callable[..., Service]]:
    """Start one service on the test's database; its log shows if the test fails."""
    services: list[Service] = []

    def start(*command: object, **environment: str) -> Service:
        words = [str(word) for word in command]
        services.append(Service(words, tmp_path, database_url, **environment))
        return services[0]

    yield start
    for service in services:
        service.kill()
        print(service.log)
