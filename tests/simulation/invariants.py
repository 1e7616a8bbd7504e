"""What must hold at every instant of a life, and at its end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

from runner import parts, statefile
from runner.errors import GbrunError
from runner.model import Attempt, AttemptState, JobState, Outcome, State, Stored
from runner.specmodel import Failures
from runner.store import Store

from .process import Process, Violation
from .shape import ERRORS, RECORDS, renderer

if TYPE_CHECKING:
    from .service import Fate
    from .world import World

_S = AttemptState
_NEXT = {
    _S.PREPARED: {_S.POSTING, _S.VOID},
    _S.POSTING: {_S.POSTING, _S.SUBMITTED, _S.REFUSED, _S.ABANDONED},
    _S.SUBMITTED: {_S.SUBMITTED, _S.TERMINAL},
    _S.TERMINAL: {_S.COLLECTED},
    _S.COLLECTED: {_S.CLEANED},
    _S.ABANDONED: {_S.SUBMITTED},
}
"""State of an attempt -> what it may become."""


@dataclass(slots=True)
class Creation:
    """One call that made a job."""

    token: str
    keys: frozenset[str]
    process: Process
    job_name: str = ""
    answered: bool = False


class Watch:
    """Follows everything that is written and asked for, and raises Violation."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.root: State | None = None
        self.attempts: dict[str, Attempt] = {}
        self.outcomes: dict[str, Stored] = {}
        self.collected: set[str] = set()
        """Tokens whose outcomes the root names."""
        self.creations: list[Creation] = []
        self.unanswered: set[str] = set()
        """Tokens of calls whose reply was an error that says nothing."""
        self.cancelled: set[str] = set()

    # ------------------------------------------------------------ writes

    def wrote(self, process: Process, name: str) -> None:
        """Look at what was just written."""
        if name == "state.json":
            self._wrote_root(statefile.load_state(self._world.blobs.read(name)[0], name))
        elif name.startswith("attempts/"):
            self._wrote_attempt(statefile.load_attempt(self._world.blobs.read(name)[0], name))

    def removed(self, name: str) -> None:
        """Only old roots may ever be deleted."""
        if not name.startswith("history/"):
            raise Violation("nothing stored is lost", f"{name} was deleted")

    def _wrote_attempt(self, attempt: Attempt) -> None:
        before = self.attempts.get(attempt.token)
        if before is None and attempt.state is not _S.PREPARED:
            raise Violation("legal lives of attempts", f"{attempt.token} begins as {attempt.state}")
        if before is not None and attempt.state not in _NEXT.get(before.state, ()):
            raise Violation("legal lives of attempts", f"{attempt.token}: {before.state} to {attempt.state}")
        if attempt.state is _S.COLLECTED and attempt.token not in self.collected:
            raise Violation("nothing stored is lost", f"{attempt.token} is collected, and no root says what")
        if attempt.state is _S.ABANDONED and not self._world.may_miss_jobs:
            made = [c.job_name for c in self.creations if c.token == attempt.token and c.job_name]
            if made:
                raise Violation("what a listing would have shown is adopted", f"{attempt.token} has {made}")
        if attempt.adopted and not (before and before.adopted):
            self._world.report.adopted += 1
        self.attempts[attempt.token] = attempt

    def _wrote_root(self, state: State) -> None:
        before = self.root
        self.root = state
        named = [*state.outcomes, *([state.rows] if state.rows else [])]
        missing = [name for name in named if not self._world.blobs.exists(name)]
        if missing:
            raise Violation("nothing stored is lost", f"the root names {missing}, which is not there")
        if before is not None:
            if state.outcomes[: len(before.outcomes)] != before.outcomes:
                raise Violation("nothing stored is lost", f"outcomes {before.outcomes} to {state.outcomes}")
            if (state.lineage, state.serial) != (before.lineage, before.serial + 1):
                raise Violation("one root after the other", f"serial {before.serial} to {state.serial}")
        for name in state.outcomes[len(before.outcomes) if before else 0 :]:
            self._load(name)

    def _load(self, name: str) -> None:
        with self._world.blobs.open(name) as stream:
            lines = list(parts.read_lines(stream, name))
        token = orjson.loads(lines[0])["token"]
        self.collected.add(token)
        store = Store(self._world.blobs, None, "state")
        for line in lines[1:]:
            found = parts.load_outcome(line)
            if found.ref is not None:
                answer = store.response(found)
                if answer is None or json.loads(answer)["key"] != found.request_id:
                    raise Violation("nothing stored is lost", f"{name} points at another line: {answer!r}")
            known = self.outcomes.get(found.request_id)
            if known and known.outcome is Outcome.OK and found.outcome is not Outcome.OK:
                raise Violation("nothing stored is lost", f"{found.request_id} was ok, is {found.outcome}")
            self.outcomes[found.request_id] = found
        fate = self._fate(token)
        for key in sorted(fate.ok) if fate else ():
            if self.outcomes[key].outcome is not Outcome.OK:
                raise Violation("what a job answered is taken in at once", f"{key} of {token}")

    # ------------------------------------------------------------ calls

    def creating(self, process: Process, token: str, keys: list[str]) -> Creation:
        """A job is about to be made."""
        creation = Creation(token, frozenset(keys), process)
        attempt = self.attempts.get(token)
        late = token in self._world.late_calls
        if not late and (attempt is None or attempt.state is not _S.POSTING):
            raise Violation("posting is stored before the post", f"{token} is {attempt and attempt.state}")
        if not late:
            for key in keys:
                self._check_wanted(key)
        for earlier in self.creations:
            if not late and earlier.keys & creation.keys:
                self._check_double(earlier, creation)
        live = [a.token for a in self.attempts.values() if a.state is _S.SUBMITTED]
        # A job that shows up after it was given up is one more than was asked for.
        if not late and not self._world.may_miss_jobs and len(live) >= self._world.spec.max_jobs:
            raise Violation("at most max_jobs in flight", f"{token} beside {live}")
        self.creations.append(creation)
        if late:
            self._check_late(creation)
        return creation

    def loading(self, token: str, data: bytes) -> None:
        """A job reads its file."""
        attempt = self.attempts[token]
        store = Store(self._world.blobs, None, "state")
        if data.splitlines() != list(store.shard_lines(attempt.shard_id)):
            raise Violation("what is sent is what was stored", f"{token} reads {data[:200]!r}")

    def answered(self, job_name: str) -> None:
        """The reply of a create call has arrived."""
        for creation in self.creations:
            if creation.job_name == job_name:
                creation.answered = True

    def _check_wanted(self, key: str) -> None:
        found = self.outcomes.get(key)
        most = self._world.spec.failures.max_attempts
        if found is not None and (not found.retryable(Failures().retry) or found.jobs >= most):
            raise Violation(
                "no settled request is submitted again", f"{key} is {found.outcome} after {found.jobs} job(s)"
            )

    def _check_double(self, earlier: Creation, now: Creation) -> None:
        attempt = self.attempts[earlier.token]
        if attempt.state in (_S.COLLECTED, _S.CLEANED):
            return
        where = f"{now.token} after {earlier.token} ({attempt.state})"
        if attempt.state is not _S.ABANDONED or earlier.token == now.token:
            raise Violation("a job is made twice only after an ambiguous create", where)
        if earlier.answered and not earlier.process.dead:
            raise Violation("a job is made twice only after an ambiguous create", f"{where}: it was answered")
        if not earlier.process.dead and earlier.token not in self.unanswered:
            raise Violation("a job is made twice only after an ambiguous create", f"{where}: still under way")
        if not self._world.may_miss_jobs:
            raise Violation("what a listing would have shown is adopted", where)
        for key in sorted(earlier.keys & now.keys):
            tokens = [c.token for c in self.creations if key in c.keys]
            if sum(self.attempts[token].state is _S.ABANDONED for token in tokens) > 1:
                raise Violation("a job is made twice at most once", f"{where}: {key} in {tokens}")
            if tokens[-1] == earlier.token:
                # Nothing was made since: this is the one more. Later ones are retries of the second.
                self._world.report.doubles += 1
                return

    def _check_late(self, creation: Creation) -> None:
        """A call that arrives late is the caller's first; what it made meanwhile must not be a second."""
        attempt = self.attempts.get(creation.token)
        if attempt is not None and attempt.state is _S.ABANDONED and not self._world.may_miss_jobs:
            raise Violation("what a listing would have shown is adopted", f"{creation.token} was given up")

    def deleting_job(self, job_name: str) -> None:
        """Its output must be stored by now."""
        for attempt in self.attempts.values():
            if attempt.job_name == job_name and attempt.token not in self.collected:
                raise Violation("stored before deleted", f"the job of {attempt.token} ({attempt.state})")

    def deleting_upload(self, name: str) -> None:
        """The output of its job must be stored by now."""
        for attempt in self.attempts.values():
            if attempt.upload_name == name and attempt.state.live and attempt.token not in self.collected:
                raise Violation("stored before deleted", f"the upload of {attempt.token} ({attempt.state})")

    # ------------------------------------------------------------ instants

    def readable(self) -> None:
        """The state must be readable as it lies there; the next process reads the rest of it."""
        store = Store(self._world.blobs, None, "state")
        try:
            store.load()
            store.attempts()
        except GbrunError as error:
            raise Violation("state is readable at every crash point", str(error)) from error

    # ------------------------------------------------------------ the end

    def finished(self, reference: bytes) -> None:
        """The life has converged: every row has its end, and what was paid for is there."""
        world = self._world
        records = (world.folder / RECORDS).read_bytes()
        errors_path = world.folder / ERRORS
        errors = errors_path.read_bytes() if errors_path.exists() else b""
        keys = [json.loads(line)["_key"] for line in (records + errors).splitlines()]
        if sorted(keys) != list(world.shape.texts()):
            raise Violation("every row ends in exactly one outcome", f"{sorted(keys)}")
        if not errors and records != reference:
            raise Violation("records are those of the undisturbed run", _difference(records, reference))
        known = set(reference.splitlines())
        strange = [line for line in records.splitlines() if line not in known]
        if strange:
            raise Violation("records are those of the undisturbed run", f"{strange[0]!r}")
        self._check_records({json.loads(line)["_key"] for line in records.splitlines()})
        self._check_lost()
        counts = dict.fromkeys(Outcome, 0)
        for found in self.outcomes.values():
            counts[found.outcome] += 1
        wanted = {key for creation in self.creations for key in creation.keys}
        if sum(counts.values()) != len(wanted):
            raise Violation("every request ends in exactly one outcome", f"{counts}, {len(wanted)} sent")

    def _check_records(self, written: set[str]) -> None:
        """What is answered, by its own request or by one that remedies it, is a record and no failure."""
        shape = self._world.shape
        for entry in shape.entries():
            [request] = renderer(shape).requests(shape.read(entry))
            found = self.outcomes.get(request.request_id)
            while found is not None and found.remedied_by in self.outcomes:
                found = self.outcomes[found.remedied_by]
            is_ok = found is not None and found.outcome is Outcome.OK
            if is_ok != (entry.key in written):
                raise Violation("what is answered is a record", f"{entry.key}: {found and found.outcome}")

    def _fate(self, token: str) -> Fate | None:
        """What became of the job of an attempt, where all that it answered is to be there."""
        attempt = self.attempts.get(token)
        if attempt is None:
            return None
        stopped = attempt.job_name in self.cancelled or attempt.job_state is JobState.CANCELLED
        # On Vertex a job that is cancelled keeps the rows that it has.
        if stopped and not self._world.shape.vertex:
            return None
        return self._world.service.fates.get(attempt.job_name)

    def _check_lost(self) -> None:
        """Every answer of a job that the state knows must be the request's outcome."""
        for attempt in self.attempts.values():
            fate = self._fate(attempt.token)
            if fate is None:
                continue
            if attempt.state.live:
                raise Violation("nothing is left in flight", f"{attempt.token} is {attempt.state}")
            for key in sorted(fate.ok):
                found = self.outcomes.get(key)
                if found is None or found.outcome is not Outcome.OK:
                    self._world.report.lost_rows += 1
                    raise Violation("nothing stored is lost", f"{key} was answered in {attempt.token}")


def _difference(got: bytes, wanted: bytes) -> str:
    for number, (one, other) in enumerate(zip(got.splitlines(), wanted.splitlines(), strict=False), 1):
        if one != other:
            return f"line {number}: {one!r}, undisturbed {other!r}"
    return f"{len(got)} bytes, undisturbed {len(wanted)}"
