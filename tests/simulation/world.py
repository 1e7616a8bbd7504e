"""A life: one spec, one state, one service, and the processes that come and go until it has converged."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import orjson

from runner import apply as executor
from runner import export, ledger, plan
from runner.backends.retry import RetryingBackend
from runner.blobs import Blobs
from runner.blobs.lease import TAKEOVER_S, Leases
from runner.blobs.local import LocalBlobs
from runner.blobs.memory import MemoryBlobs
from runner.decide import Policy
from runner.errors import BackendError, PlanStale, StateError
from runner.index import Index
from runner.model import AttemptState, Plan
from runner.outputs import jsonl
from runner.specmodel import Failures
from runner.store import Store

from . import disk
from .faults import Calm, Faults, on_vertex
from .invariants import Watch
from .process import Crash, Process, Turns, Violation
from .service import REQUEST_TIMEOUT_S, SETTLE_S, Connection, Service
from .shape import (
    JUDGE_DIGEST,
    RECORDS,
    SPEC_DIGEST,
    Shape,
    make_spec,
    renderer,
)

if TYPE_CHECKING:
    from .vertexjobs import VertexService

_START_S = 1_800_000_000.0
_LONGEST_S = 5 * 86400.0
_MOST_VISITS = 20_000
_DISTURBED_RUNS = 6
_CALM_RUNS = 6
_REPLANS = 5
_TAKEN_OVER_S = 2 * TAKEOVER_S


@dataclass(slots=True)
class Report:
    """How a life went."""

    seed: int
    violation: Violation | None = None
    trace: list[str] = field(default_factory=list)
    runs: int = 0
    visits: Counter[str] = field(default_factory=Counter)
    crashes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    """How the runs ended."""
    retries: bool = False
    remote: bool = False
    remedied: bool = False
    ambiguous: int = 0
    adopted: int = 0
    doubles: int = 0
    """Jobs made a second time after an ambiguous create; any other is a violation."""
    lost_rows: int = 0
    quarantined: int = 0


class _Clock:
    """The time as one machine has it."""

    def __init__(self, world: World, process: Process | None) -> None:
        self._world = world
        self._process = process

    def now(self) -> float:
        """See `Clock.now`."""
        return self._world.time + (self._world.skew if self._process is not None else 0.0)

    def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`; other processes may go on meanwhile, and the clock may be set."""
        world = self._world
        assert self._process is not None
        world.check_alive(self._process)
        if world.holder is self._process:
            raise Violation("the lock is not held while waiting", f"{seconds:g} s")
        # A machine may sleep longer than it was asked to, and fewer steps make more lives.
        world.pass_time(max(seconds, 1.0))
        faults = world.faults
        if faults.has("clock_jump") and faults.rng.random() < 0.1 and faults.take("clock_jump"):
            jump = faults.rng.choice((-600.0, -30.0, 10.0, 4000.0))
            world.skew += jump
            world.note(f"the clock jumps by {jump:g} s")
        world.switch(world.turn_chances[1])


class World:
    """Everything of one life that outlives a process."""

    def __init__(self, seed: int, shape: Shape, faults: Faults, folder: Path) -> None:
        self.rng = rng = Random(f"world {seed}")
        self.faults = faults
        self.shape = shape
        self.folder = folder
        self.report = Report(seed)
        self.time = _START_S
        self.skew = 0.0
        """How far the machine's clock is ahead of the service's."""
        self.holder: Process | None = None
        """Who holds the lock of the state."""
        self.aborted = False
        self.late_calls: dict[str, Process] = {}
        """Tokens of create calls that arrive after their callers stopped waiting."""
        cleanup = {"cleanup_all": "all", "cleanup_inputs": "inputs"}.get(faults.need)
        self.spec = make_spec(
            folder,
            shape,
            # Lives with a remedy need retries, so of the others more have none.
            max_attempts=rng.choice((1, 1, 1, 3, 3)),
            max_jobs=rng.choice((1, 2, 10)),
            cleanup=cleanup or rng.choice(("inputs", "inputs", "all", "keep")),
        )
        self.report.retries = self.spec.failures.max_attempts > 1
        self.report.remedied = shape.remedied
        self.service_clock = _Clock(self, None)
        self.on_disk = rng.random() < 0.1 and not faults.calm and not shape.vertex
        self.remote = shape.vertex or (not self.on_disk and Random(f"remote {seed}").random() < 0.4)
        """Whether the lock of the state is a lease, which its holder's death does not free."""
        self.report.remote = self.remote
        # Who never waits for a lease meets little else, and on Vertex there is no other lock.
        self.lock_timeouts_s = (0.0, _TAKEN_OVER_S, _TAKEN_OVER_S) if shape.vertex else (0.0, 100.0)
        self.leases: dict[int, Leases] = {}
        """Locks that are held, by the number of their process."""
        self.blobs: Blobs = LocalBlobs(folder / "state") if self.on_disk else MemoryBlobs()
        if faults.need == "long_history" or rng.random() < 0.3:
            for number in range(20):
                self.blobs.create(f"history/0000000{number:02}.json", b"old")
        # Beyond these bounds a listing may fail to show a job that exists, and a second one is allowed.
        self.may_miss_jobs = faults.has("list_lag") or faults.has("clock_jump")
        self.service = self._service()
        self.watch = Watch(self)
        self.turns = Turns(rng)
        self.turn_chances = rng.choice(((0.02, 0.02), (0.1, 0.3), (0.5, 0.9)))
        """How likely another runner goes on, at a crash point and at a sleep."""
        self.process = Process(0)
        self._works = 0
        self._settled_next = False
        self._left: dict[Path, bytes] | None = None
        """The files as the crash left them."""

    # ------------------------------------------------------------ what processes come by

    def visit(self, process: Process, point: str, what: str = "") -> None:
        """A crash point. Raises Crash where the process dies here."""
        self.check_alive(process)
        self.process = process
        self.note(f"{process.number} {point} {what}")
        if self.faults.visits.total() > _MOST_VISITS:
            raise Violation("every life converges", f"{_MOST_VISITS:,} steps, and no end")
        if self.faults.crashes_at(point):
            self.die(process)
        if self.faults.has("stop") and self.rng.random() < 0.02 and self.faults.take("stop"):
            self._stop.requested = True
            self.note(f"{process.number} is asked to stop")
        if self.switch(self.turn_chances[0]):
            self.check_alive(process)
            self.process = process

    def effect(self, process: Process, point: str, what: str = "") -> None:
        """A crash point before an effect: for that, a process has to hold the lock."""
        self.visit(process, point, what)
        if self.holder is not process:
            raise Violation("effects only under the lock", point)

    def check_alive(self, process: Process) -> None:
        """Raises Crash in a process that has died already, so that its cleanup has no effect."""
        if process.dead or self.aborted:
            raise Crash

    def die(self, process: Process) -> None:
        """End this process here and now. Raises Crash."""
        process.dead = True
        self._left = disk.snapshot(self.folder)
        self.note(f"{process.number} dies")
        raise Crash

    def tear(self, process: Process, name: str) -> None:
        """A file was written in place: a process that dies meanwhile leaves half of it."""
        if not self.faults.calm and self.faults.rng.random() < 0.2:
            path = self.folder / "state" / name
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            self.die(process)

    def pass_time(self, seconds: float) -> None:
        """Time goes by, for everyone."""
        self.time += seconds
        for leases in list(self.leases.values()):
            disk.show_life(leases, self.time)
        if self.time > _START_S + _LONGEST_S:
            raise Violation("every life converges", f"{_LONGEST_S:g} s went by, and no end")

    def switch(self, chance: float) -> bool:
        """Perhaps let another process go on; whether there is one."""
        return self.turns.switch(chance)

    def note(self, text: str) -> None:
        """Add to the trace."""
        self.report.trace.append(text)

    # ------------------------------------------------------------ processes

    def run(self, count: int = 1) -> list[Process]:
        """Let so many processes live, taking turns, until all have ended."""
        processes = []
        for _ in range(count):
            self.report.runs += 1
            processes.append(Process(self.report.runs))
        self._stop = executor.Stop()
        found: list[Violation | Exception] = []

        def body(process: Process) -> None:
            try:
                process.outcome = self._live(process)
            except Crash:
                process.outcome = "crash"
                if process.dead and self._left is not None:
                    disk.restore(self.folder, self._left)
                    self._left = None
            except (Violation, Exception) as error:
                found.append(error)
                self.aborted = True

        self.turns.run([functools.partial(body, process) for process in processes])
        if found:
            raise found[0]
        for process in processes:
            self.note(f"{process.number} ends: {process.outcome}")
            self.report.outcomes[process.outcome] += 1
        if any(process.outcome == "crash" for process in processes):
            self.watch.readable()
        return processes

    def _live(self, process: Process) -> str:
        """One run of `gbrun apply`, as the command line wires it."""
        store = Store(disk.ProcessBlobs(self, process), None, "state")
        index = Index(store)
        faults, rng = self.faults, self.faults.rng
        clock = _Clock(self, process)
        policy = Policy(
            max_jobs=self.spec.max_jobs,
            poll_interval_s=Connection.poll_interval_s,
            request_timeout_s=REQUEST_TIMEOUT_S,
            settle_s=SETTLE_S,
            submit=True,
            wait=not faults.take("no_wait"),
            cleanup=self.spec.cleanup,
        )
        backend = RetryingBackend(self._connection(process), sleep=self.pass_time)
        try:
            for _ in range(_REPLANS):
                made = self._plan(store, index)
                if not made.has_changes:
                    self._settled_next = False
                    return "settled"
                if self._settled_next:
                    raise Violation("the re-plan is empty", f"{dict(made.counts)} {made.reexport}")
                self._check_own_destinations(made)
                if made.refusals:
                    raise Violation("the re-plan is empty", f"refused: {made.refusals}")
                try:
                    result = executor.Apply(
                        spec=self.spec,
                        resolved={"name": "life"},
                        plan=made,
                        store=store,
                        index=index,
                        backend=backend,
                        clock=clock,
                        policy=policy,
                        new_lineage=lambda: f"{rng.getrandbits(128):032x}",
                        on_event=lambda event: self._event(process, event),
                        stop=self._stop,
                        lock_timeout_s=_TAKEN_OVER_S if faults.calm else rng.choice(self.lock_timeouts_s),
                    ).run()
                except PlanStale:
                    continue
                return self._result(result)
            return "stale"
        except (StateError, BackendError) as error:
            self.note(f"{process.number} {type(error).__name__}: {error}")
            return type(error).__name__
        finally:
            index.close()

    def _service(self) -> Service | VertexService:
        if not self.shape.vertex:
            return Service(self)
        # Google's libraries take long to import, and lives of the other kind do not need them.
        from .vertexjobs import VertexService

        return VertexService(self)

    def _connection(self, process: Process) -> Connection:
        if not self.shape.vertex:
            return Connection(self, process)
        from .vertex import VertexConnection

        return VertexConnection(self, process)

    def _plan(self, store: Store, index: Index) -> Plan:
        state, _ = store.load()
        attempts = [attempt for attempt, _ in store.attempts()] if state else []
        index.sync(state, attempts)
        self._works += 1
        workspace = self.folder / "work" / str(self._works)
        workspace.mkdir(parents=True)
        made, _ = plan.make(
            self.spec,
            basis=ledger.basis(state, attempts),
            spec_digest=SPEC_DIGEST,
            judge_digest=JUDGE_DIGEST,
            entries=self.shape.entries(),
            read=self.shape.read,
            renderer=renderer(self.shape),
            history=index,
            workspace=workspace,
            destinations=export.look(self.spec),
            trusted_before_ns=0,
        )
        return made

    def _check_own_destinations(self, made: Plan) -> None:
        """The command refuses files that its state did not write; it must never refuse its own."""
        written = made.basis.export.files if made.basis.export else {}
        for path, found in export.look(self.spec).items():
            if found is not None and path not in written:
                raise Violation("a destination is known before it is there", path)

    def _result(self, result: executor.Result) -> str:
        if result.quarantined:
            self.report.quarantined += 1
            self._check_quarantine(result.quarantined)
            return "quarantined"
        if not result.complete:
            return "incomplete"
        if sum(result.rows.values()) != len(self.shape.texts()):
            raise Violation("rows = ok + failed", f"{dict(result.rows)}")
        most = self.spec.failures.max_attempts
        retry = {*Failures().retry, *self.spec.failures.remedies}
        again = any(
            found.outcome in retry and not found.remedied_by and found.jobs < most
            for found in self.watch.outcomes.values()
        )
        # A second job of the same rows may still be out there after the first has answered them.
        live = any(attempt.state.live for attempt in self.watch.attempts.values())
        self._settled_next = not again and not live
        return "complete"

    def _check_quarantine(self, tokens: tuple[str, ...]) -> None:
        """A person is asked only where a request was given up before, or nothing can be known any more."""
        store = Store(self.blobs, None, "state")

        def keys(shard_id: str) -> set[str]:
            return {orjson.loads(line)["key"] for line in store.shard_lines(shard_id)}

        for token in tokens:
            attempt = self.watch.attempts[token]
            before = any(
                other.state is AttemptState.ABANDONED and keys(other.shard_id) & keys(attempt.shard_id)
                for other in self.watch.attempts.values()
            )
            if not before and self.service.holds_upload(attempt.upload_name):
                raise Violation("a person is asked only for a second ambiguity", token)

    def _event(self, process: Process, event: executor.Event) -> None:
        self.note(f"{process.number}   [{event.kind}] {event.token} {event.text}")


def shape_of(seed: int) -> Shape:
    """The shape of a seed's life."""
    rng = Random(f"shape {seed}")
    # Mostly small, which is fast; what is larger comes often enough.
    shards, per_shard = rng.choice((3, 3, 3, 4, 6)), rng.choice((2, 2, 2, 3, 5))
    twos = rng.random() < 0.5, rng.random() < 0.5, rng.random() < 0.2
    return Shape(shards, per_shard, *twos, vertex=on_vertex(seed))


def simulate(seed: int) -> Report:
    """Live the life of a seed. The report holds the violation, where there was one."""
    with _place() as folder:
        shape = shape_of(seed)
        faults = Faults(seed, vertex=shape.vertex)
        report = Report(seed)
        try:
            reference = _reference(shape, folder)
            _clear(folder)
            world = World(seed, shape, faults, folder)
            report = world.report
            _live(world, reference)
        except Violation as violation:
            report.violation = violation
        except Exception:
            report.violation = Violation("no run ends in a bug", traceback.format_exc())
        report.visits = faults.visits
        report.crashes = faults.crashed
        report.faults = faults.injected
        return report


def _live(world: World, reference: bytes) -> None:
    disk.enter(world)
    faults, rng = world.faults, world.rng
    for _ in range(_DISTURBED_RUNS + 2 * world.shape.vertex):
        processes = world.run(2 if faults.take("two_runners") else 1)
        if processes[-1].outcome == "settled" and len(processes) == 1:
            world.watch.finished(reference)
            return
        if any(process.outcome == "quarantined" for process in processes):
            # Only a person can go on from here.
            return
        world.pass_time(rng.choice((0.0, 1.0, 30.0, 4000.0)))
    faults.calm = True
    for _ in range(_CALM_RUNS):
        [process] = world.run()
        if process.outcome == "quarantined":
            return
        if process.outcome == "settled":
            world.watch.finished(reference)
            return
        if process.outcome not in ("complete", "incomplete"):
            raise Violation("every life converges", f"a run without faults ends: {process.outcome}")
    raise Violation("every life converges", f"{_CALM_RUNS} runs without faults, and no end")


_references: dict[Shape, bytes] = {}


def _reference(shape: Shape, folder: Path) -> bytes:
    """The records of the undisturbed life."""
    if shape not in _references:
        _clear(folder)
        world = World(0, shape, Calm(), folder)
        disk.enter(world)
        outcomes = [world.run()[0].outcome for _ in range(2)]
        if outcomes != ["complete", "settled"]:
            raise Violation("the undisturbed life converges", f"{outcomes}")
        _references[shape] = (folder / RECORDS).read_bytes()
    return _references[shape]


@contextmanager
def _place() -> Iterator[Path]:
    """A folder in memory where there is one, for spools and destinations; destinations have crash points."""
    shared = Path("/dev/shm")
    root = shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    folder = root / f"gbrun-simulation-{os.getpid()}"
    temporary = folder / "tmp"
    before, writer = tempfile.tempdir, jsonl.JsonlFile
    temporary.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(temporary)
    jsonl.JsonlFile = disk.Records  # type: ignore[misc]
    try:
        yield folder / "life"
    finally:
        tempfile.tempdir = before
        jsonl.JsonlFile = writer  # type: ignore[misc]
        disk.enter(None)
        shutil.rmtree(folder, ignore_errors=True)


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
