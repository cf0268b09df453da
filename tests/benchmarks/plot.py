"""The same results as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from tests.benchmarks.peers import PeerRow
from tests.benchmarks.report import PEER_WORKS, Row

_COLOURS = {"sqlite": "tab:blue", "postgresql": "tab:orange"}


def draw(rows: Sequence[Row], peers: Sequence[PeerRow], path: Path) -> None:
    """Write a PNG with the ratios of the works on the left, of the peers on the right.

    A dot is a median, the line through it goes from quartile to quartile.
    """
    drawings = [
        (_draw_works, [row for row in rows if row.work.unit == "x"]),
        (_draw_peers, peers),
    ]
    drawings = [(draw_them, some) for draw_them, some in drawings if some]
    figure, axes = pyplot.subplots(
        1, len(drawings) or 1, figsize=(17, 8), layout="constrained", squeeze=False
    )
    for (draw_them, some), panel in zip(drawings, axes[0], strict=False):
        draw_them(panel, some)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_works(axes: Axes, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(row.work.name for row in rows))
    for backend, colour in _COLOURS.items():
        shift = 0.15 if backend == "postgresql" else -0.15
        mine = [row for row in rows if row.backend == backend]
        places = [names.index(row.work.name) + shift for row in mine]
        medians = [row.summary.median for row in mine]
        spread = [
            [row.summary.median - row.summary.low for row in mine],
            [row.summary.high - row.summary.median for row in mine],
        ]
        targets = [row.work.targets[backend] for row in mine]
        axes.errorbar(
            medians, places, xerr=spread, fmt="o", color=colour, label=backend
        )
        axes.plot(targets, places, "|", color=colour, markersize=16)
    axes.set_yticks(range(len(names)), names)
    axes.set_title("sessionstore's throughput, x the driver's (| is the target)")
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xlim(left=0)
    axes.invert_yaxis()
    axes.legend()


def _draw_peers(axes: Axes, peers: Sequence[PeerRow]) -> None:
    height = 0.8 / len(PEER_WORKS)
    for number, work in enumerate(PEER_WORKS):
        places = [place + height * (number - 1) for place in range(len(peers))]
        medians = [peer.ratios[work].median for peer in peers]
        axes.barh(places, medians, height, label=work)
    labels = [f"{peer.title}\n{peer.durability}" for peer in peers]
    axes.set_yticks(range(len(peers)), labels, fontsize=8)
    axes.set_title("peers on SQLite or files of their own, x raw sqlite3")
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.legend()
