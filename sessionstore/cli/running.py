"""Running the command line: each error is one line and an exit status.

0   all went well
1   something went wrong, or could not be done for some of the tasks; or the answer
    to a question was no
2   the command line is wrong
130 Ctrl-C ended it early
"""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence

import typer

from sessionstore.cli.commands import app
from sessionstore.cli.output import complain, end_quietly, open_what_is_closed
from sessionstore.errors import SessionStoreError

__all__ = ["run"]


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    log, lines = logging.getLogger("sessionstore"), _Lines(logging.WARNING)
    log.addHandler(lines)
    try:
        status = app(
            None if arguments is None else list(arguments),
            prog_name="sessionstore",
            standalone_mode=False,
        )
        sys.stdout.flush()
        return int(status or 0)
    except typer.TyperException as error:
        complain(f"{error.format_message().rstrip('.')}; see sessionstore --help")
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        return end_quietly()
    except SessionStoreError as error:
        complain(str(error))
    except OSError as error:
        complain(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))
    except Exception as error:
        # No traceback: what it quotes may hold the password.
        where = traceback.extract_tb(error.__traceback__)[-1]
        complain(
            f"bug in sessionstore: {type(error).__name__} in "
            f"{os.path.basename(where.filename)}, line {where.lineno}; please report "
            "it"
        )
    finally:
        log.removeHandler(lines)
        try:
            sys.stdout.flush()
        except OSError:  # which was complained of
            end_quietly()
    return 1


class _Lines(logging.Handler):
    """Prints what the package logs, each record in one line, without tracebacks."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        complain(record.getMessage())
