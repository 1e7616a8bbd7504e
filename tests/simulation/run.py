"""Lives many seeds and tells the numbers; a seed that fails is told with its trace.

python -m tests.simulation.run --seeds 10000
python -m tests.simulation.run --seeds 10000 --service vertex
python -m tests.simulation.run --seed 4711
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .faults import KINDS, POINTS, VERTEX_KINDS, VERTEX_POINTS, on_vertex
from .world import Report, simulate

SERVICES = ("gemini", "vertex")
"""The services that a seed draws from: the Developer API and Vertex AI."""
_TRACE_LINES = 120

_SUMS = ("ambiguous", "adopted", "doubles", "lost_rows", "quarantined", "remote", "remedied")


@dataclass(slots=True)
class Totals:
    """The sum over many lives, of one service or of all."""

    points: tuple[str, ...] = VERTEX_POINTS
    kinds: tuple[str, ...] = VERTEX_KINDS
    seeds: int = 0
    runs: int = 0
    visits: Counter[str] = field(default_factory=Counter)
    crashes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    matrix: Counter[tuple[str, str, bool]] = field(default_factory=Counter)
    """(crash point, fault kind, with retries) -> lives in which both happened."""
    ambiguous: int = 0
    adopted: int = 0
    doubles: int = 0
    lost_rows: int = 0
    quarantined: int = 0
    remote: int = 0
    remedied: int = 0
    failures: list[Report] = field(default_factory=list)

    def add(self, report: Report) -> None:
        """Add one life."""
        self.seeds += 1
        self.runs += report.runs
        self.visits += report.visits
        self.crashes += report.crashes
        self.faults += report.faults
        self.outcomes += report.outcomes
        for point in report.crashes:
            for kind in report.faults:
                self.matrix[point, kind, report.retries] += 1
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(report, name))
        if report.violation is not None:
            self.failures.append(report)

    def merge(self, other: Totals) -> None:
        """Add the sum of others."""
        for name in ("visits", "crashes", "faults", "outcomes", "matrix", "failures"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("seeds", "runs", *_SUMS):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def rarest(self, retries: bool | None = None) -> tuple[int, str, str]:
        """The crash point and fault kind that met least often, and how often."""
        sides = (True, False) if retries is None else (retries,)
        return min(
            (sum(self.matrix[point, kind, side] for side in sides), point, kind)
            for point in self.points
            for kind in self.kinds
        )


Lives = Mapping[str, Totals]
"""Service -> the sum over its lives."""


def live(seeds: Iterable[int], most_failures: int = 1, services: Sequence[str] = SERVICES) -> Lives:
    """Live these seeds, as far as they draw one of `services`, up to so many failures."""
    lives = {"gemini": Totals(POINTS, KINDS), "vertex": Totals()}
    lives = {service: lives[service] for service in services}
    for seed in seeds:
        found = lives.get("vertex" if on_vertex(seed) else "gemini")
        if found is None:
            continue
        found.add(simulate(seed))
        if sum(len(totals.failures) for totals in lives.values()) >= most_failures:
            break
    return lives


def together(lives: Lives) -> Totals:
    """The sum over all services."""
    totals = Totals()
    for found in lives.values():
        totals.merge(found)
    return totals


def replay(seed: int) -> str:
    """The command that lives one seed again."""
    return f"{sys.executable} -m tests.simulation.run --seed {seed}"


def failure(report: Report, lines: int = _TRACE_LINES) -> str:
    """What is to be said about a life that broke an invariant."""
    assert report.violation is not None
    return "\n".join(
        [
            *report.trace[-lines:],
            f"seed {report.seed} breaks: {report.violation.invariant}",
            f"  {report.violation.text}",
            f"replay: {replay(report.seed)}",
        ]
    )


def table(lives: Lives, wall_s: float) -> str:
    """The numbers, a column for each service."""
    lines: list[str] = []

    def line(label: str, said: Callable[[Totals], str]) -> None:
        cells = (f"{said(totals):>24}" for totals in lives.values())
        lines.append(f"{label:<26}{''.join(cells)}".rstrip())

    def died(totals: Totals, point: str) -> str:
        return f"{totals.crashes[point]:,} of {totals.visits[point]:>9,}" if point in totals.points else "-"

    all_lives = together(lives)
    line("service", lambda totals: next(name for name, other in lives.items() if other is totals))
    line("seeds", lambda totals: f"{totals.seeds:,}")
    line("  lock is a lease", lambda totals: f"{totals.remote:,}")
    line("  remedies", lambda totals: f"{totals.remedied:,}")
    line("runs", lambda totals: f"{totals.runs:,}")
    for name, _ in all_lives.outcomes.most_common():
        line(f"  {name}", lambda totals, name=name: f"{totals.outcomes[name]:,}")  # type: ignore[misc]
    line("crash points", lambda totals: f"{len(totals.points)}")
    line("  passed", lambda totals: f"{totals.visits.total():,}")
    line("crashes", lambda totals: f"{totals.crashes.total():,}")
    for point in VERTEX_POINTS:
        line(f"  {point}", lambda totals, point=point: died(totals, point))  # type: ignore[misc]
    line("faults", lambda totals: f"{totals.faults.total():,}")
    for kind in VERTEX_KINDS:
        line(f"  {kind}", lambda totals, kind=kind: f"{totals.faults[kind]:,}")  # type: ignore[misc]
    line("ambiguous creates", lambda totals: f"{totals.ambiguous:,}")
    line("  adopted", lambda totals: f"{totals.adopted:,}")
    # Others than those beyond the service's bounds are a broken invariant.
    line("double jobs, allowed", lambda totals: f"{totals.doubles:,}")
    line("double jobs, others", lambda totals: "0" if not totals.failures else "see below")
    line("asked a person", lambda totals: f"{totals.quarantined:,}")
    line("lost rows", lambda totals: f"{totals.lost_rows:,}")
    line("failed seeds", lambda totals: f"{len(totals.failures):,}")
    for service, totals in lives.items():
        for name, side in (("", None), (" with retries", True), (" without retries", False)):
            count, point, kind = totals.rarest(side)
            lines.append(f"rarest pair on {service}{name}: {count} ({point} x {kind})")
    lines.append(f"wall time {wall_s:.1f} s ({all_lives.seeds / wall_s:.0f} seeds/s)")
    return "\n".join(lines)


def main() -> int:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument("--seed", type=int, help="only this one, with its whole trace")
    parser.add_argument("--service", choices=SERVICES, help="only the seeds that draw this one")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failure")
    args = parser.parse_args()
    if args.seed is not None:
        report = simulate(args.seed)
        print("\n".join(report.trace))  # noqa: T201
        print(failure(report, 0) if report.violation else f"seed {args.seed} holds")  # noqa: T201
        return 1 if report.violation else 0
    started = time.monotonic()
    most = 10**9 if args.keep_going else 1
    seeds = range(args.first, args.first + args.seeds)
    services = (args.service,) if args.service else SERVICES
    pieces = [
        (range(at, min(at + 50, seeds.stop)), most, services) for at in range(seeds.start, seeds.stop, 50)
    ]
    lives = live((), most, services)
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        # In order, so that the first failure told is the lowest seed's.
        for got in pool.imap(_live, pieces):
            for service, found in got.items():
                lives[service].merge(found)
            for report in together(got).failures:
                print(f"seed {report.seed}: {report.violation}", file=sys.stderr)  # noqa: T201
            if together(got).failures and not args.keep_going:
                break
    totals = together(lives)
    print(table(lives, time.monotonic() - started))  # noqa: T201
    for name, count in Counter(r.violation.invariant for r in totals.failures if r.violation).most_common():
        print(f"broken {count} times: {name}")  # noqa: T201
    if totals.failures:
        first = min(totals.failures, key=lambda report: report.seed)
        print(failure(first))  # noqa: T201
        return 1
    return 0


def _live(piece: tuple[range, int, Sequence[str]]) -> Lives:
    return live(*piece)


if __name__ == "__main__":
    sys.exit(main())
