"""The executor against a service and a state in memory, with a clock that is moved by hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner import apply as executor
from runner import export, index, inputs, judged, ledger, plan, statefile
from runner import spec as specfile
from runner.backends.memory import Ending, MemoryBackend
from runner.blobs.memory import MemoryBlobs
from runner.decide import Policy
from runner.errors import (
    BackendError,
    PlanStale,
    StateLocked,
    SubmissionDeferred,
    SubmissionRefused,
    SubmissionUnknown,
)
from runner.index import Index
from runner.model import Action, AttemptState, Job, JobState, Plan
from runner.render import Renderer
from runner.run import Event
from runner.store import Store

SPEC = """
version: 1
name: notes
backend: local
inputs: inputs/*.txt
model: gemini-3.5-flash-lite
prompt: "{{ input.text }}"
output_schema: {type: object, properties: {n: {type: integer}}, required: [n]}
destination: out/notes.jsonl
shards: {max_requests: 2}
failures: {max_attempts: 3}
"""


class Service(MemoryBackend):
    """The service in memory, which also gives part of an output back, and counts its live jobs."""

    def __init__(self, clock: Any, **options: Any) -> None:
        super().__init__(clock, **options)
        self.clock = clock
        self.partial_lines = 0
        """Lines that a job gives back although it did not succeed."""
        self.most_live = 0
        self.created_at: list[float] = []

    def create(
        self, *, model: str, upload_name: str, display_name: str, task: str = "generate_content"
    ) -> Job:
        self.created_at.append(self.clock.now())
        job = super().create(model=model, upload_name=upload_name, display_name=display_name, task=task)
        self.most_live = max(self.most_live, sum(not found.state.terminal for found in self.jobs()))
        return job

    def get(self, job_name: str) -> Job:
        job = super().get(job_name)
        if self.partial_lines and job.state.terminal and not job.output_name:
            return replace(job, output_name="files/partial")
        return job

    def output(self, job: Job) -> Iterator[bytes]:
        data = b"".join(super().output(job))
        if self.partial_lines and super().get(job.job_name).state is not JobState.SUCCEEDED:
            data = b"".join(data.splitlines(keepends=True)[: self.partial_lines])
        yield data


class World:
    """One spec, one state, one service; each `run` is a run of its own."""

    def __init__(self, folder: Path, clock: Any, count: int = 6, **options: Any) -> None:
        self.folder = folder
        self.clock = clock
        self.service = Service(clock, **options)
        self.store = Store(MemoryBlobs(), None, "memory")
        self.events: list[Event] = []
        self.stop = executor.Stop()
        self.judge_digest = "judge"
        (folder / "inputs").mkdir(parents=True)
        (folder / "work").mkdir()
        for number in range(count):
            (folder / f"inputs/{number}.txt").write_text(f"note {number}")
        self.write(SPEC)

    def write(self, text: str) -> None:
        (self.folder / "job.yaml").write_text(text)
        self.spec = specfile.load(self.folder / "job.yaml", environ={})

    def plan(self) -> tuple[Plan, Index]:
        state, _ = self.store.load()
        attempts = self.store.attempts()
        known = Index(self.store)
        known.sync(state, [attempt for attempt, _ in attempts])
        if state is not None and state.export is not None and state.export.judge != self.judge_digest:
            known.rejudge(judged.again(self.spec, self.store))
        workspace = self.folder / "work" / str(len(list((self.folder / "work").iterdir())))
        workspace.mkdir()
        made, _ = plan.make(
            self.spec,
            basis=ledger.basis(state, (found for found, _ in attempts)),
            spec_digest=specfile.digest(self.spec),
            judge_digest=self.judge_digest,
            entries=inputs.entries(self.spec),
            read=lambda entry: inputs.read(self.spec, entry),
            renderer=Renderer(self.spec),
            history=known,
            workspace=workspace,
            destinations=export.look(self.spec),
            trusted_before_ns=index.trusted_before_ns(),
        )
        return made, known

    def counts(self) -> dict[Action, int]:
        made, known = self.plan()
        known.close()
        return dict(made.counts)

    def run(self, **policy: Any) -> executor.Result:
        made, known = self.plan()
        try:
            return self.carry_out(made, known, **policy)
        finally:
            known.close()

    def carry_out(self, made: Plan, known: Index, **policy: Any) -> executor.Result:
        settings = {
            "max_jobs": 10,
            "poll_interval_s": 30.0,
            "request_timeout_s": 120.0,
            "settle_s": 120.0,
            "submit": True,
            "wait": True,
            "cleanup": "inputs",
        }
        return executor.Apply(
            spec=self.spec,
            resolved=specfile.resolved(self.spec),
            plan=made,
            store=self.store,
            index=known,
            backend=self.service,
            clock=self.clock,
            policy=Policy(**{**settings, **policy}),
            new_lineage=lambda: "0123456789abcdef0123456789abcdef",
            on_event=self.events.append,
            stop=self.stop,
        ).run()

    def plan_has_changes(self) -> bool:
        made, known = self.plan()
        known.close()
        return made.has_changes

    def states(self) -> list[str]:
        return [str(attempt.state) for attempt, _ in self.store.attempts()]

    def tokens(self) -> Counter[str]:
        """How many jobs the service has under each token."""
        self.service.fault = None
        return Counter(job.display_name for job in self.service.jobs())

    def records(self) -> list[str]:
        path = self.folder / "out/notes.jsonl"
        return [json.loads(line)["_key"] for line in path.read_text().splitlines()] if path.exists() else []

    def kinds(self) -> Counter[str]:
        return Counter(event.kind for event in self.events)


@pytest.fixture
def world(tmp_path: Path, clock: Any) -> World:
    return World(tmp_path / "world", clock)


@pytest.fixture
def new_world(tmp_path: Path, clock: Any) -> Callable[..., World]:
    return lambda **options: World(tmp_path / "world", clock, **options)


def failing(step: str, error: Callable[[], Exception], times: int = 10**9) -> Any:
    """A fault that raises at a step, so many times."""
    left = [times]

    def fault(at: str, args: Mapping[str, str]) -> BaseException | None:
        if at != step or not left[0]:
            return None
        left[0] -= 1
        return error()

    return fault


# ---------------------------------------------------------------- the good case


def test_several_shards_no_more_than_max_jobs_at_a_time(world: World) -> None:
    got = world.run(max_jobs=2)

    assert got.complete
    assert (got.sent, got.rows, got.in_flight, got.unsent) == ({"ok": 6}, {"ok": 6}, 0, 0)
    assert world.service.most_live == 2
    assert (world.kinds()["submitted"], world.kinds()["collected"]) == (3, 3)
    assert world.states() == ["cleaned"] * 3
    assert world.records() == [f"inputs/{n}.txt" for n in range(6)]
    assert world.counts() == {Action.UNCHANGED: 6}

    before = world.store.load()
    made, known = world.plan()
    assert not made.has_changes
    assert not made.shards
    known.close()
    assert world.store.load() == before


def test_max_jobs_one_is_one_after_the_other(world: World) -> None:
    assert world.run(max_jobs=1).complete
    assert world.service.most_live == 1
    assert len(world.service.created_at) == 3


@pytest.mark.parametrize("cleanup", ["inputs", "all", "keep"])
def test_cleanup(world: World, cleanup: str) -> None:
    assert world.run(cleanup=cleanup).complete
    attempts = [attempt for attempt, _ in world.store.attempts()]
    kept = cleanup == "keep"
    assert {attempt.state for attempt in attempts} == {
        AttemptState.COLLECTED if kept else AttemptState.CLEANED
    }
    assert all(world.service.upload_exists(attempt.upload_name) is kept for attempt in attempts)
    assert len(world.tokens()) == (0 if cleanup == "all" else 3)


def test_without_waiting_jobs_are_left_to_a_later_run(world: World) -> None:
    got = world.run(wait=False)
    assert (got.complete, got.in_flight, got.unsent) == (False, 6, 0)
    assert world.states() == ["submitted"] * 3
    assert world.records() == []
    world.clock.sleep(60)
    assert world.run(submit=False).complete
    assert len(world.service.created_at) == 3


def test_a_run_that_only_collects_never_submits(world: World) -> None:
    got = world.run(submit=False)
    assert (got.complete, got.unsent) == (False, 6)
    assert world.service.created_at == []
    assert world.records() == []


# ---------------------------------------------------------------- creating a job


def test_a_refused_create_stops_and_its_rows_stay_pending(world: World) -> None:
    def refuse() -> Exception:
        return SubmissionRefused("API key not valid.", status="INVALID_ARGUMENT", http_status=400)

    world.service.fault = failing("create.before", refuse)
    got = world.run()

    assert not got.complete
    assert got.errors == ("API key not valid.",)
    assert got.unsent == 4
    assert world.states() == ["refused"]
    assert len(world.service.created_at) == 1, "nothing more is submitted after a refusal"
    assert world.records() == []
    assert world.counts() == {Action.NEW: 6}

    world.service.fault = None
    assert world.run().complete
    assert sorted(world.states()) == ["cleaned"] * 3 + ["refused"]
    assert set(world.tokens().values()) == {1}


def test_a_refusal_still_collects_what_is_out(world: World) -> None:
    refusals: list[str] = []

    def second(at: str, args: Mapping[str, str]) -> BaseException | None:
        if at == "create.before" and len(world.service.created_at) == 2:
            refusals.append(args["display_name"])
            return SubmissionRefused("No.", http_status=403)
        return None

    world.service.fault = second
    got = world.run()
    assert len(refusals) == 1
    assert (got.complete, got.sent) == (False, {"ok": 2})
    assert sorted(world.states()) == ["cleaned", "refused"]
    world.service.fault = None
    assert world.run().sent == {"ok": 4}


def test_429_waits_for_minutes_and_posts_the_same_attempt(world: World) -> None:
    def defer() -> Exception:
        return SubmissionDeferred("Quota.", status="RESOURCE_EXHAUSTED", http_status=429, transient=True)

    world.service.fault = failing("create.before", defer, times=6)
    assert world.run().complete

    gaps = [b - a for a, b in zip(world.service.created_at[:7], world.service.created_at[1:7], strict=False)]
    for gap, wanted in zip(gaps, (60, 120, 240, 480, 900, 900), strict=True):
        assert wanted <= gap < wanted + 31
    assert world.states() == ["cleaned"] * 3
    assert {attempt.number for attempt, _ in world.store.attempts()} == {1}
    assert world.kinds()["deferred"] == 6
    assert set(world.tokens().values()) == {1}


def test_a_lost_reply_is_adopted(world: World) -> None:
    world.service.fault = failing("create.after", lambda: SubmissionUnknown("timed out"), times=1)
    assert world.run().complete
    assert world.kinds()["adopted"] == 1
    assert sorted(attempt.adopted for attempt, _ in world.store.attempts()) == [False, False, True]
    assert len(world.tokens()) == 3
    assert set(world.tokens().values()) == {1}


def test_a_lost_reply_is_adopted_though_listings_lag(new_world: Callable[..., World]) -> None:
    world = new_world(listing_lag_s=100.0)
    world.service.fault = failing("create.after", lambda: SubmissionUnknown("timed out"))
    assert world.run().complete
    assert set(world.tokens().values()) == {1}
    assert world.kinds()["abandoned"] == 0


def test_no_job_after_a_lost_reply_is_submitted_once_more(world: World) -> None:
    world.service.fault = failing("create.before", lambda: SubmissionUnknown("reset"), times=1)
    assert world.run().complete

    first, again = world.service.created_at[:2]
    # Nothing is known to exist, so the settle time counts twice.
    assert again - first >= 120 + 2 * 120
    assert again - first < 120 + 2 * 120 + 5 * 30
    assert sorted(world.states()) == ["abandoned"] + ["cleaned"] * 3
    assert sorted(attempt.number for attempt, _ in world.store.attempts()) == [1, 1, 1, 2]
    (abandoned,) = (a for a, _ in world.store.attempts() if a.state is AttemptState.ABANDONED)
    assert abandoned.clean_listings == 1, "the second clean listing abandons"
    assert set(world.tokens().values()) == {1}


@pytest.mark.parametrize("count", [2, 6])
def test_a_second_loss_is_for_a_person(new_world: Callable[..., World], count: int) -> None:
    """The other shards go on; here they fare no better."""
    world = new_world(count=count)
    world.service.fault = failing("create.before", lambda: SubmissionUnknown("reset"))
    got = world.run()
    assert not got.complete
    assert len(got.quarantined) == count // 2
    assert all(token.endswith("-a2") for token in got.quarantined)
    creates = len(world.service.created_at)
    assert creates == count
    assert sorted(world.states()) == ["abandoned"] * (count // 2) + ["posting"] * (count // 2)
    assert world.records() == []

    # Not forgotten by the next run, and not submitted a third time.
    assert world.run().quarantined == got.quarantined
    assert len(world.service.created_at) == creates
    assert world.counts()[Action.IN_FLIGHT] == count


def test_two_jobs_of_one_token_are_one_after_adoption(world: World) -> None:
    """Somebody's proxy repeated the POST: one job is kept, the other is cancelled and said."""
    doubled: list[str] = []

    def fault(at: str, args: Mapping[str, str]) -> BaseException | None:
        if at == "create.after" and not doubled:
            doubled.append(args["display_name"])
            world.service.create(model="m", upload_name=args["upload_name"], display_name=doubled[0])
            return SubmissionUnknown("reset")
        return None

    world.service.fault = fault
    assert world.run().complete
    assert world.kinds()["duplicate"] == 1
    assert world.tokens()[doubled[0]] == 2
    states = Counter(job.state for job in world.service.jobs() if job.display_name == doubled[0])
    assert states == {JobState.SUCCEEDED: 1, JobState.CANCELLED: 1}


class Died(BaseException):
    """A run that ends at this point, as if killed."""


@pytest.mark.parametrize("count", [2, 6])
def test_an_attempt_that_a_dead_run_prepared_is_voided_and_made_again(
    new_world: Callable[..., World], count: int
) -> None:
    world = new_world(count=count)
    world.service.fault = failing("upload.before", Died, times=1)
    with pytest.raises(Died):
        world.run()
    assert world.states() == ["prepared"]
    got = world.run()
    assert (got.complete, got.rows) == (True, {"ok": count})
    assert sorted(world.states()) == ["cleaned"] * (count // 2) + ["void"]
    assert set(world.tokens().values()) == {1}


@pytest.mark.parametrize("step", ["upload.before", "create.before"])
def test_a_run_that_only_collects_does_not_call_unsent_rows_done(
    new_world: Callable[..., World], step: str
) -> None:
    world = new_world(count=2)
    world.service.fault = failing(step, Died, times=1)
    with pytest.raises(Died):
        world.run()
    got = world.run(submit=False)
    assert (got.complete, got.rows) == (False, {})
    assert not (world.folder / "out/notes.jsonl").exists()
    assert world.run().rows == {"ok": 2}


# ---------------------------------------------------------------- how jobs end


ONE_ATTEMPT = SPEC.replace("max_attempts: 3", "max_attempts: 1")
ENDINGS = [
    (Ending(state=JobState.FAILED, error_code=13, error_message="Internal."), "INTERNAL"),
    (Ending(state=JobState.FAILED), "JOB_FAILED"),
    (Ending(state=JobState.EXPIRED), "JOB_EXPIRED"),
    (Ending(state=JobState.CANCELLED), "JOB_CANCELLED"),
]


@pytest.mark.parametrize(("ending", "code"), ENDINGS)
def test_a_job_without_output_leaves_rows_to_retry(
    new_world: Callable[..., World], ending: Ending, code: str
) -> None:
    endings = [ending]
    world = new_world(count=2, ending=lambda _: endings[0])
    world.write(ONE_ATTEMPT)
    got = world.run()
    assert got.complete
    assert got.sent == got.rows == {"missing": 2}
    assert len(world.service.created_at) == 1
    assert world.counts() == {Action.FAILED: 2}

    # Attempts are no part of a request: allowing more takes the rows up again.
    world.write(SPEC)
    made, known = world.plan()
    known.close()
    assert made.counts == {Action.RETRY: 2}
    assert list(made.reasons) == [(Action.RETRY, (code,))]
    endings[0] = Ending()
    assert world.run().rows == {"ok": 2}
    assert world.counts() == {Action.UNCHANGED: 2}


@pytest.mark.parametrize(("ending", "code"), ENDINGS[:3])
def test_one_run_goes_through_all_attempts(
    new_world: Callable[..., World], ending: Ending, code: str
) -> None:
    endings = [Ending(), ending, ending]
    world = new_world(count=2, ending=lambda _: endings[-1])
    create = world.service.create

    def counted(**args: Any) -> Job:
        if world.service.created_at:
            endings.pop()
        return create(**args)

    world.service.create = counted  # type: ignore[method-assign]
    got = world.run()
    assert (got.complete, got.rows) == (True, {"ok": 2})
    assert len(world.service.created_at) == 3
    assert sorted(attempt.number for attempt, _ in world.store.attempts()) == [1, 2, 3]
    assert got.sent == {"missing": 4, "ok": 2}, "every job's requests are counted"


def test_a_job_that_somebody_cancelled_is_not_made_again_in_the_same_run(
    new_world: Callable[..., World],
) -> None:
    world = new_world(count=2, ending=lambda _: Ending(state=JobState.CANCELLED))
    assert world.run().rows == {"missing": 2}
    assert len(world.service.created_at) == 1
    assert world.counts() == {Action.RETRY: 2}


@pytest.mark.parametrize("code", [3, 5, 7, 9, 16])
def test_a_job_that_failed_as_a_whole_is_an_error_and_blames_no_row(
    new_world: Callable[..., World], code: int
) -> None:
    endings = [Ending(state=JobState.FAILED, error_code=code, error_message="Cannot import.")]
    world = new_world(count=2, ending=lambda _: endings[0])
    got = world.run()
    assert not got.complete
    assert "Cannot import." in got.errors[0]
    assert world.records() == []
    assert world.counts() == {Action.NEW: 2}
    endings[0] = Ending()
    assert world.run().rows == {"ok": 2}


def test_an_expired_job_gives_what_it_has(new_world: Callable[..., World]) -> None:
    endings = [Ending(state=JobState.EXPIRED)]
    world = new_world(count=2, ending=lambda _: endings[0])
    world.service.partial_lines = 1
    world.write(ONE_ATTEMPT)
    got = world.run()
    assert got.complete
    assert got.sent == {"ok": 1, "missing": 1}
    assert world.records() == ["inputs/0.txt"]
    endings[0] = Ending()
    world.write(SPEC)
    assert world.run().sent == {"ok": 1}, "what was answered is not paid for again"
    assert world.records() == ["inputs/0.txt", "inputs/1.txt"]


def test_attempts_are_counted_and_end(new_world: Callable[..., World]) -> None:
    world = new_world(count=2, ending=lambda _: Ending(state=JobState.EXPIRED))
    for _ in range(5):
        world.run()
    assert len(world.service.created_at) == 3, "failures.max_attempts is 3"
    assert world.counts() == {Action.FAILED: 2}


# ---------------------------------------------------------------- the long wait


def outage(until_s: float, clock: Any, step: str) -> Any:
    def fault(at: str, args: Mapping[str, str]) -> BaseException | None:
        if at.startswith(step) and clock.now() < until_s:
            return BackendError("503 Service Unavailable", http_status=503, transient=True)
        return None

    return fault


@pytest.mark.parametrize("step", ["get", "upload", "output", "delete_upload"])
def test_an_outage_of_an_hour_is_waited_out(world: World, step: str) -> None:
    began = world.clock.now()
    world.service.fault = outage(began + 3600, world.clock, step)
    got = world.run()
    assert got.complete
    assert got.rows == {"ok": 6}
    assert 3600 <= world.clock.now() - began < 3600 + 900
    tries = world.kinds()["outage"]
    assert 5 < tries < 60, "neither given up nor hammered"
    assert set(world.tokens().values()) == {1}


def test_an_outage_of_days_is_waited_out(world: World) -> None:
    """More than a thousand tries: a wait that doubles each time is beyond a double by then."""
    began = world.clock.now()
    world.service.fault = outage(began + 5 * 86_400, world.clock, "get")
    assert world.run().complete
    assert world.kinds()["outage"] > 1024


def test_without_waiting_an_outage_ends_the_run(world: World) -> None:
    world.service.fault = outage(world.clock.now() + 3600, world.clock, "upload")
    with pytest.raises(BackendError, match="503"):
        world.run(wait=False)
    world.service.fault = None
    world.run()
    assert world.run().complete
    assert set(world.tokens().values()) == {1}


def test_a_lasting_error_is_not_waited_out(world: World) -> None:
    def forbidden() -> Exception:
        return BackendError("403 Forbidden", http_status=403, transient=False)

    world.service.fault = failing("get.before", forbidden)
    began = world.clock.now()
    with pytest.raises(BackendError, match="403"):
        world.run()
    assert world.clock.now() - began < 120
    world.service.fault = None
    assert world.run().complete
    assert len(world.service.created_at) == 3


def test_a_spec_that_another_run_changed_while_this_one_waited(new_world: Callable[..., World]) -> None:
    world = new_world(running_s=3600.0)

    def other_run() -> None:
        state, version = world.store.load()
        assert state is not None
        world.store.save(replace(state, spec_digest="f" * 32, serial=state.serial + 1), version)

    world.clock.at(600, other_run)
    with pytest.raises(PlanStale, match="another version of the spec"):
        world.run(max_jobs=1)
    assert len(world.service.created_at) == 1, "nothing more was submitted"
    assert world.states() == ["submitted"]
    assert world.run(max_jobs=3).complete
    assert set(world.tokens().values()) == {1}


def test_a_state_that_moved_since_the_plan_is_stale(world: World) -> None:
    made, known = world.plan()
    assert world.run().complete
    with pytest.raises(PlanStale):
        world.carry_out(made, known)
    known.close()
    assert len(world.service.created_at) == 3


def test_the_lock_is_held_while_acting_and_free_while_waiting(new_world: Callable[..., World]) -> None:
    world = new_world(running_s=3600.0)
    seen: list[str] = []

    def held() -> bool:
        try:
            with world.store.lock("look", "", 0):
                return False
        except StateLocked:
            return True

    def fault(at: str, args: Mapping[str, str]) -> None:
        seen.append(f"{at} {held()}")

    world.service.fault = fault
    world.clock.at(1000, lambda: seen.append(f"asleep {held()}"))
    assert world.run().complete
    assert "asleep False" in seen
    assert not [entry for entry in seen if entry.endswith("False") and entry != "asleep False"]


def test_a_stop_ends_the_run_and_not_the_jobs(new_world: Callable[..., World]) -> None:
    world = new_world(running_s=3600.0)

    def stop() -> None:
        world.stop.requested = True

    world.clock.at(100, stop)
    began = world.clock.now()
    got = world.run(max_jobs=2)
    assert world.clock.now() - began < 110, "a stop is not slept over"
    assert (got.complete, got.stopped, got.in_flight, got.unsent) == (False, True, 4, 2)
    assert {job.state for job in world.service.jobs()} == {JobState.RUNNING}

    world.stop.requested = False
    assert world.run(max_jobs=2).complete
    assert len(world.service.created_at) == 3


def test_a_stop_before_the_first_step_submits_nothing(world: World) -> None:
    world.stop.requested = True
    got = world.run()
    assert (got.stopped, got.unsent) == (True, 6)
    assert world.service.created_at == []


def test_jobs_that_nobody_wants_any_more_take_up_room_until_they_end(new_world: Callable[..., World]) -> None:
    world = new_world(count=2, running_s=3600.0)
    world.run(wait=False)
    world.write(SPEC.replace("{{ input.text }}", "again: {{ input.text }}"))
    assert world.run(max_jobs=1).complete
    assert world.service.most_live == 1
    assert len(world.service.created_at) == 2


def test_a_loss_whose_upload_is_gone_too_is_not_looked_for_without_end(
    new_world: Callable[..., World],
) -> None:
    world = new_world(count=2)
    world.service.fault = failing("create.before", lambda: SubmissionUnknown("reset"), times=1)

    def expire() -> None:
        for attempt, _ in world.store.attempts():
            world.service.delete_upload(attempt.upload_name)

    world.clock.at(10, expire)
    world.clock.at(3 * 86400, lambda: setattr(world.stop, "requested", True))
    assert not world.run().stopped


# ---------------------------------------------------------------- every step


def test_death_before_and_after_every_call_never_makes_a_second_job(
    tmp_path: Path, new_clock: Callable[[], Any]
) -> None:
    """The service's every step as the last thing a run saw, then one clean run."""

    from_calm = World(tmp_path / "calm", new_clock())
    steps: list[str] = []
    from_calm.service.fault = lambda at, args: steps.append(at)
    assert from_calm.run(max_jobs=2).complete
    assert len(steps) > 30
    records = (from_calm.folder / "out/notes.jsonl").read_bytes()

    for moment in range(len(steps)):
        world = World(tmp_path / str(moment), new_clock())
        count = [0]

        def fault(at: str, args: Mapping[str, str], moment: int = moment, count: list[int] = count) -> Any:
            count[0] += 1
            return Died() if count[0] == moment + 1 else None

        world.service.fault = fault
        with pytest.raises(Died):
            world.run(max_jobs=2)
        world.service.fault = None
        got = world.run(max_jobs=2)
        assert (got.complete, got.rows) == (True, {"ok": 6}), steps[moment]
        assert not world.plan_has_changes(), steps[moment]
        assert set(world.tokens().values()) == {1}, steps[moment]
        assert len(world.tokens()) == 3, steps[moment]
        assert (world.folder / "out/notes.jsonl").read_bytes() == records, steps[moment]
        for name in world.store.blobs.list("attempts/"):
            statefile.load_attempt(world.store.blobs.read(name)[0], name)


# ---------------------------------------------------------------- remedies, samples, vectors


def _cut_below(tokens: int) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """Answers that are cut where fewer tokens are allowed."""

    def answer(line: Mapping[str, Any]) -> Mapping[str, Any]:
        allowed = line["request"]["generationConfig"]["maxOutputTokens"]
        good = {"content": {"parts": [{"text": '{"n": 1}'}]}, "finishReason": "STOP"}
        cut = {"content": {"parts": [{"text": '{"n'}]}, "finishReason": "MAX_TOKENS"}
        return {"response": {"candidates": [good if allowed >= tokens else cut]}}

    return answer


REMEDIED = SPEC.replace("max_attempts: 3", "max_attempts: 3, remedies: {truncated: {max_output_tokens: x2}}")
LIMITED = "\ngeneration_config: {max_output_tokens: 100}\n"


def records_of(world: World) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (world.folder / "out/notes.jsonl").read_text().splitlines()]


def test_a_remedy_goes_on_within_one_apply_and_the_next_plan_is_empty(new_world: Any) -> None:
    world = new_world(answer=_cut_below(400))
    world.write(REMEDIED + LIMITED)
    result = world.run()

    assert result.complete
    assert dict(result.sent) == {"truncated": 12, "ok": 6}
    assert result.rows == {"ok": 6}
    assert {record["_remedied"] for record in records_of(world)} == {"maxOutputTokens 400"}
    assert not world.plan_has_changes()
    # Also once the remedy is gone from the spec.
    world.write(SPEC + LIMITED)
    assert world.counts() == {Action.UNCHANGED: 6}


def test_a_remedy_that_does_not_help_ends_with_the_attempts(new_world: Any) -> None:
    world = new_world(answer=_cut_below(10_000))
    world.write(REMEDIED + LIMITED)
    result = world.run()

    assert dict(result.sent) == {"truncated": 18}
    assert result.rows == {"truncated": 6}
    assert world.counts() == {Action.FAILED: 6}


def test_a_remedy_that_is_added_later_takes_up_what_was_cut(new_world: Any) -> None:
    world = new_world(answer=_cut_below(200))
    world.write(SPEC + LIMITED)
    assert world.run().rows == {"truncated": 6}
    assert world.counts() == {Action.FAILED: 6}
    world.write(REMEDIED + LIMITED)
    assert world.counts() == {Action.RETRY: 6}
    result = world.run()
    assert (dict(result.sent), result.rows) == ({"ok": 6}, {"ok": 6})
    assert not world.plan_has_changes()


def test_a_class_that_the_spec_retries_is_sent_again_as_it_was(new_world: Any) -> None:
    asked: Counter[str] = Counter()

    def answer(line: Mapping[str, Any]) -> Mapping[str, Any]:
        asked[line["key"]] += 1
        text = '{"n": 1}' if asked[line["key"]] == 2 else "no idea"
        parts = {"content": {"parts": [{"text": text}]}, "finishReason": "STOP"}
        return {"response": {"candidates": [parts]}}

    world = new_world(answer=answer)
    world.write(SPEC.replace("max_attempts: 3", "retry: [unparseable]"))
    result = world.run()

    assert dict(result.sent) == {"unparseable": 6, "ok": 6}
    assert result.rows == {"ok": 6}
    assert set(asked.values()) == {2}
    assert not world.plan_has_changes()


def test_samples_make_one_record(new_world: Any) -> None:
    numbers = iter(range(1000))

    def answer(line: Mapping[str, Any]) -> Mapping[str, Any]:
        parts = {"content": {"parts": [{"text": f'{{"n": {next(numbers) % 2}}}'}]}, "finishReason": "STOP"}
        return {"response": {"candidates": [parts]}}

    world = new_world(answer=answer, count=2)
    world.write(SPEC + "samples: {count: 3, aggregate: majority}\n")
    result = world.run()

    assert dict(result.sent) == {"ok": 6}
    assert result.rows == {"ok": 2}
    assert [record["n"] for record in records_of(world)] == [0, 1]
    assert {record["_agreement"]["n"] for record in records_of(world)} == {2 / 3}
    assert not world.plan_has_changes()
    world.write(SPEC + "samples: {count: 3, aggregate: all}\n")
    assert world.counts() == {Action.UNCHANGED: 2}


def test_what_is_judged_otherwise_now_is_stored_and_costs_nothing(new_world: Any) -> None:
    pytest.importorskip("json_repair")

    def answer(line: Mapping[str, Any]) -> Mapping[str, Any]:
        parts = {"content": {"parts": [{"text": "{'n': 1,}"}]}, "finishReason": "STOP"}
        return {"response": {"candidates": [parts]}}

    world = new_world(answer=answer)
    assert world.run().rows == {"unparseable": 6}
    world.write(SPEC.replace("max_attempts: 3", "repair: true"))
    world.judge_digest = "another"
    assert world.counts() == {Action.UNCHANGED: 6}
    result = world.run()
    assert (dict(result.sent), result.rows) == ({}, {"ok": 6})
    assert {record["_repaired"] for record in records_of(world)} == {"library"}
    assert not world.plan_has_changes()


def test_vectors_come_back_as_records(new_world: Any) -> None:
    world = new_world()
    text = SPEC.replace("output_schema: {type: object, properties: {n: {type: integer}}, required: [n]}", "")
    world.write(
        text.replace("gemini-3.5-flash-lite", "gemini-embedding-001")
        + "task: embed_content\nembed_content_config: {output_dimensionality: 8, normalize: true}\n"
    )
    assert world.run().rows == {"ok": 6}
    vectors = [record["embedding"] for record in records_of(world)]
    assert {len(vector) for vector in vectors} == {8}
    assert all(abs(sum(x * x for x in vector) - 1) < 1e-9 for vector in vectors)
    assert not world.plan_has_changes()
