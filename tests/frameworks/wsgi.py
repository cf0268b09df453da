"""The application behind a WSGI server: a request's path names its job."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from sessionstore import ForkError
from tests.frameworks.application import handle


def application(
    environ: dict[str, Any], start_response: Callable[..., object]
) -> Iterable[bytes]:
    """Answer one request."""
    try:
        status, answer = "200 OK", handle(environ["PATH_INFO"].strip("/"))
    except ForkError as error:
        status = "503 Service Unavailable"
        answer = {"error": str(error), "pid": os.getpid()}
    start_response(status, [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
