"""Lives many seeds and tells the numbers; a seed that fails is told with its trace.

python -m tests.simulation.run --seeds 10000
python -m tests.simulation.run --seed 4711
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from .faults import KINDS, POINTS
from .world import Report, simulate

_TRACE_LINES = 120


_SUMS = ("ambiguous", "adopted", "doubles", "lost_rows", "quarantined", "remote", "remedied")


@dataclass(slots=True)
class Totals:
    """The sum over many lives."""

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
            for point in POINTS
            for kind in KINDS
        )


def live(seeds: Iterable[int], most_failures: int = 1) -> Totals:
    """Live these seeds, up to so many failures."""
    totals = Totals()
    for seed in seeds:
        totals.add(simulate(seed))
        if len(totals.failures) >= most_failures:
            break
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


def table(totals: Totals, wall_s: float) -> str:
    """The numbers."""
    lines = [
        f"seeds               {totals.seeds:,}",
        f"  state             {totals.remote:,} with a lease for a lock, where a death frees nothing",
        f"  remedies          {totals.remedied:,}",
        f"runs                {totals.runs:,}",
        "  ended             " + ", ".join(f"{name} {n:,}" for name, n in totals.outcomes.most_common()),
        f"crash points        {len(POINTS)}, passed {totals.visits.total():,} times",
        f"crashes             {totals.crashes.total():,}",
        *(f"  {point:<22}{totals.crashes[point]:>7,} of {totals.visits[point]:>9,}" for point in POINTS),
        f"faults              {totals.faults.total():,}",
        *(f"  {kind:<22}{totals.faults[kind]:>7,}" for kind in KINDS),
    ]
    for name, side in (("", None), (" with retries", True), (" without retries", False)):
        count, point, kind = totals.rarest(side)
        lines.append(f"rarest pair{name:<16} {count} ({point} x {kind})")
    lines += [
        f"ambiguous creates   {totals.ambiguous:,}",
        f"adopted             {totals.adopted:,}",
        f"double jobs         {totals.doubles:,} allowed (beyond the service's bounds), 0 others"
        if not totals.failures
        else f"double jobs         {totals.doubles:,} allowed",
        f"asked a person      {totals.quarantined:,}",
        f"lost rows           {totals.lost_rows:,}",
        f"failed seeds        {len(totals.failures):,}",
        f"wall time           {wall_s:.1f} s ({totals.seeds / wall_s:.0f} seeds/s)",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument("--seed", type=int, help="only this one, with its whole trace")
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
    pieces = [(range(at, min(at + 50, seeds.stop)), most) for at in range(seeds.start, seeds.stop, 50)]
    totals = Totals()
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        # In order, so that the first failure told is the lowest seed's.
        for got in pool.imap(_live, pieces):
            totals.merge(got)
            for report in got.failures:
                print(f"seed {report.seed}: {report.violation}", file=sys.stderr)  # noqa: T201
            if totals.failures and not args.keep_going:
                break
    print(table(totals, time.monotonic() - started))  # noqa: T201
    for name, count in Counter(r.violation.invariant for r in totals.failures if r.violation).most_common():
        print(f"broken {count} times: {name}")  # noqa: T201
    if totals.failures:
        first = min(totals.failures, key=lambda report: report.seed)
        print(failure(first))  # noqa: T201
        return 1
    return 0


def _live(piece: tuple[range, int]) -> Totals:
    return live(*piece)


if __name__ == "__main__":
    sys.exit(main())
