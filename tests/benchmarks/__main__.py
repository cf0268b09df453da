"""Measure the package against the drivers under it: ``make bench``."""

from __future__ import annotations

import argparse
import itertools
import pstats
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from sqlalchemy import create_engine, text

from tests import servers
from tests.benchmarks.measure import Summary
from tests.benchmarks.peers import PeerRow, race
from tests.benchmarks.places import FULL, QUICK, Bench, Scale
from tests.benchmarks.plot import draw
from tests.benchmarks.report import Row, markdown, show, show_peers
from tests.benchmarks.works import WORKS

BACKENDS = ("sqlite", "postgresql", "mariadb")
RESULTS = Path(__file__).parent.parent.parent / "build" / "bench"


def main() -> None:
    """Run the works that were asked for."""
    options = _options()
    scale = QUICK if options.quick else FULL
    chosen = [w for w in WORKS if not options.only or w.name in options.only]
    console = Console(width=None if sys.stdout.isatty() else 120)
    RESULTS.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for backend in options.backend or BACKENDS:
        works = [work for work in chosen if backend in work.targets]
        if not works:
            continue
        with ExitStack() as stack:
            bench = _bench(stack, backend, scale)
            stack.callback(bench.done)
            for work in works:
                console.print(f"[dim]{backend}: {work.title}")
                if not options.profile:
                    samples = work.samples(bench)
                    rows.append(Row(work, backend, Summary.of(samples)))
                elif work.unit == "x":
                    profile = pstats.Stats(work.profile(bench))
                    profile.sort_stats("tottime").print_stats(30)
                bench.done()
    if options.profile:
        return
    show(rows, console)
    peers: list[PeerRow] = []
    if not options.only or "peers" in options.only:
        console.print("[dim]the peers")
        with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
            peers = race(Path(folder), scale)
        show_peers(peers, console)
    (RESULTS / "results.md").write_text(markdown(rows, peers))
    draw(rows, peers, RESULTS / "results.png")
    console.print(f"written to {RESULTS}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench BENCH_ARGS=...")
    names = [*(work.name for work in WORKS), "peers"]
    parser.add_argument(
        "--only", action="append", choices=names, help="a work; may be repeated"
    )
    parser.add_argument("--backend", action="append", choices=BACKENDS)
    parser.add_argument(
        "--quick", action="store_true", help="a few rounds on small stores"
    )
    parser.add_argument(
        "--profile", action="store_true", help="say where the time goes, no ratios"
    )
    return parser.parse_args()


def _bench(stack: ExitStack, backend: str, scale: Scale) -> Bench:
    # On the disk where the project is: in memory a commit would cost nothing.
    folder = Path(tempfile.mkdtemp(prefix=f"{backend}-", dir=RESULTS))
    stack.callback(shutil.rmtree, folder)
    names = (f"bench_{number}" for number in itertools.count())
    if backend == "sqlite":
        return Bench(backend, lambda: f"sqlite:///{folder}/{next(names)}.db", scale)
    is_postgresql = backend == "postgresql"
    server = servers.start_postgresql() if is_postgresql else servers.start_mariadb()
    stack.callback(server.stop)
    engine = create_engine(server.url, isolation_level="AUTOCOMMIT")

    def new_url() -> str:
        name = next(names)
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return engine.url.set(database=name).render_as_string(hide_password=False)

    return Bench(backend, new_url, scale)


if __name__ == "__main__":
    main()
