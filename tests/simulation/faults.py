"""What goes wrong in a life, drawn from its seed: where processes die, and which faults they meet."""

from __future__ import annotations

from collections import Counter
from random import Random

KINDS = (
    "lost_reply",  # a job is made, its name never arrives
    "lost_request",  # no job is made, and nobody says so
    "late_request",  # a job is made after the caller has given up waiting
    "twin_job",  # one call makes two jobs, and its reply is lost
    "list_lag",  # jobs show up late in listings, at times later than the settle time
    "quota",  # 429
    "refused",  # 400
    "outage",  # a call fails in passing, before or after its effect
    "torn_download",  # an output breaks off in the middle
    "missing_rows",
    "duplicate_rows",
    "noise_rows",  # null, garbage, strangers' keys
    "passing_errors",  # row errors that another try may heal
    "final_errors",  # row errors that it does not
    "expired",  # the job expires with a part of its answers
    "job_failed",  # the job fails with a part of its answers
    "import_failed",  # the job fails before any row
    "cancelled",  # someone else cancels the job
    "clock_jump",  # the machine's clock is set
    "save_failed",  # the state cannot be written, or was and an error came back
    "stop",  # the first Ctrl-C
    "no_wait",  # a run that submits and leaves
    "two_runners",
)
"""Kinds of faults."""
VERTEX_KINDS = (
    *KINDS,
    "blind_filter",  # listings with a filter show nothing, for a while
    "stale_list",  # listings show a job as it was a while ago
    "late_rows",  # rows land after the job has ended
    "stragglers",  # rows land so late that nobody waits for them any more
    "keyless_errors",  # rows of failures echo no key
    "taken_place",  # somebody else's object stands where an upload is to go
)
"""Kinds of faults on Vertex."""


def on_vertex(seed: int) -> bool:
    """Whether the service of a seed's life is Vertex, and not the Developer API."""
    return Random(f"service {seed}").random() < 0.5


def _sides(effects: str, sides: str) -> tuple[str, ...]:
    return tuple(f"{effect} {side}" for effect in effects.split(",") for side in sides.split(","))


POINTS = (
    *_sides("lock,unlock", "after"),
    *_sides("root create,root,history,history delete", "before,after"),
    *_sides("spec,shard,responses,outcomes,rows", "before,half,after"),
    *_sides("attempt prepared,attempt posting,attempt submitted,attempt terminal", "before,after"),
    *_sides("attempt collected,attempt cleaned,attempt void", "before,after"),
    *_sides("attempt abandoned,attempt refused", "before,after"),
    *_sides("upload,create,delete_upload,cancel,delete", "before,after"),
    *_sides("jobs,get", "before"),
    *_sides("output", "half"),
    *_sides("records,errors", "before,after"),
)
"""Where a process can die: around every effect, and inside of those that take time."""
VERTEX_POINTS = (
    *POINTS,
    *_sides("upload,delete", "half"),
    *_sides("page,wait", "before"),
)
"""On Vertex also before the look at what stands at an upload's place, between the deletions of an output and
of its job, between pages, and while a call waits."""

_NEEDS = {
    "attempt void": "two_crashes",
    "attempt abandoned": "lost_request",
    "attempt refused": "refused",
    "cancel": "twin_job",
    "delete": "cleanup_all",
    "delete_upload": "cleanup_inputs",
    "attempt cleaned": "cleanup_inputs",
    "history delete": "long_history",
    "errors": "final_errors",
}
"""Effects that only some lives have, and what brings them about."""
_VERTEX_NEEDS = {"upload half": "taken_place"}
"""The same for single crash points on Vertex."""
_RARE = tuple(
    point
    for point in POINTS
    if point.split()[0] in ("rows", "records", "errors", "cancel", "delete")
    or point.startswith(
        ("root create", "history delete", "attempt void", "attempt abandoned", "attempt refused")
    )
)
"""Points that a life seldom comes by; many lives die there at the first visit, besides their own point."""


class Faults:
    """The faults of one life. Each seed aims at one crash point and one kind, and adds others by chance."""

    def __init__(self, seed: int, *, vertex: bool = False) -> None:
        self.rng = Random(f"faults {seed}")
        rng = self.rng
        points, kinds = (VERTEX_POINTS, VERTEX_KINDS) if vertex else (POINTS, KINDS)
        self.point = points[seed % len(points)]
        self.kind = kinds[seed // len(points) % len(kinds)]
        self.need = _VERTEX_NEEDS.get(self.point) or _NEEDS.get(self.point.rpartition(" ")[0], "")
        # Some lives have little trouble, some have nearly all of it.
        chosen = {self.kind, *rng.sample(kinds, rng.randint(*rng.choice(((0, 5), (10, 18)))))}
        if "blind_filter" in chosen and rng.random() < 0.5:
            # What a filter hides is told from what the service may hide anyway where that shows all else.
            chosen -= {"list_lag", "clock_jump"} - {self.kind}
        self._left = {kind: rng.randint(1, 2) for kind in kinds if kind in chosen}
        """Kind -> how often it may still happen."""
        self._chance = dict.fromkeys(kinds, 0.4) | {self.kind: 1.0}
        self._at: dict[str, int] = {self.point: 1 if self.need else rng.choice((1, 1, 1, 1, 2, 2, 3))}
        """Crash point -> the visit at which the process dies."""
        if rng.random() < 0.85:
            self._at.setdefault(rng.choice(_RARE), 1)
        if rng.random() < 0.4:
            self._at.setdefault(rng.choice(points), 1)
        if self.need in kinds:
            self._left[self.need] = self._left.get(self.need, 0) + 1
            self._chance[self.need] = 1.0
        if self.need == "two_crashes":
            self._at["upload after"] = 1
        self._crash_rate = rng.choice((0.0, 0.01, 0.03))
        self._crashes_left = rng.randint(1, 4)
        self._visits: Counter[str] = Counter()
        self.calm = False
        """Whether everything goes well from here on."""
        self.injected: Counter[str] = Counter()
        self.crashed: Counter[str] = Counter()

    def take(self, kind: str) -> bool:
        """Whether this kind of fault happens here and now."""
        if self.calm or not self._left.get(kind) or self.rng.random() >= self._chance[kind]:
            return False
        self._left[kind] -= 1
        self.injected[kind] += 1
        return True

    def has(self, kind: str) -> bool:
        """Whether this kind may still happen."""
        return not self.calm and self._left.get(kind, 0) > 0

    def crashes_at(self, point: str) -> bool:
        """Whether the process dies at this visit of a crash point."""
        self._visits[point] += 1
        if self.calm:
            return False
        aimed = self._at.get(point) == self._visits[point]
        if not aimed and (self._crashes_left <= 0 or self.rng.random() >= self._crash_rate):
            return False
        if not aimed:
            self._crashes_left -= 1
        self.crashed[point] += 1
        return True

    @property
    def visits(self) -> Counter[str]:
        """How often each crash point was come by."""
        return self._visits


class Calm(Faults):
    """No faults at all: the undisturbed life."""

    def __init__(self) -> None:
        super().__init__(0)
        self.calm = True
