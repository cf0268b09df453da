"""Makes the documentation's screens: what real commands print on a terminal.

``python docs/screens.py [FOLDER]`` runs the example daemon's demo on a new SQLite
file, then each command on what it left, and writes one SVG for each.
"""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

FOLDER = Path(__file__).parent / "pages" / "screens"
WIDTH = 96
#: The command lines, by the names of their screens.  Task 13 loses its worker.
SCREENS = {
    "sessions": "sessionstore sessions",
    "ls": "sessionstore ls --limit 8",
    "show": "sessionstore show 13",
    "history": "sessionstore history 13",
    "stats": "sessionstore stats",
    "doctor": "sessionstore doctor",
}


def main(folder: Path) -> None:
    """Make all screens."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        path = Path(made, "tasks.db")
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "SESSIONSTORE_URL": f"sqlite:///{path}",
            "DAEMON_EXAMPLE_STORE": f"sqlite:///{path}",
            "COLUMNS": str(WIDTH),
            "TERM": "xterm-256color",
        }
        environment.pop("NO_COLOR", None)
        demo = [sys.executable, "-m", "daemon_example", "demo", "--session", "default"]
        subprocess.run(demo, env=environment, check=True, stdout=subprocess.DEVNULL)
        for name, command in SCREENS.items():
            shown = on_terminal(command.split(), environment)
            write(folder / f"{name}.svg", command, shown)


def on_terminal(command: list[str], environment: dict[str, str]) -> str:
    """Return what a command prints where it is seen by people."""
    ours, its = pty.openpty()
    process = subprocess.Popen(command, env=environment, stdout=its, stderr=its)
    os.close(its)
    said = b""
    try:
        while chunk := os.read(ours, 65536):
            said += chunk
    except OSError:  # nobody has the other end open any more
        pass
    os.close(ours)
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(command)}: {said.decode()}")
    return said.decode().replace("\r\n", "\n")


def write(path: Path, command: str, shown: str) -> None:
    """Write a screen."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(f"$ {command}\n{shown.strip()}"))
    svg = console.export_svg(title="sessionstore", unique_id=path.stem)
    # Rich has the reader's browser fetch a font from another host.
    svg = re.sub(r"@font-face {.*?}\s*", "", svg, flags=re.DOTALL)
    path.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
