"""The service of a life, which outlives the processes, and the connection each process has to it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from runner.backends.memory import Ending, MemoryBackend
from runner.errors import BackendError, SubmissionDeferred, SubmissionRefused, SubmissionUnknown
from runner.model import Job, JobState, Upload

from .faults import Faults
from .process import Crash, Process
from .shape import answer, is_cut

if TYPE_CHECKING:
    from .world import World

REQUEST_TIMEOUT_S = 8.0
SETTLE_S = 8.0


@dataclass(slots=True)
class Fate:
    """What will become of a job, drawn when it is made."""

    ending: Ending = field(default_factory=Ending)
    lost: frozenset[str] = frozenset()
    """Keys that get no line."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """Keys that get an error of this code."""
    answered: frozenset[str] = frozenset()
    """Keys that get an answer."""
    ok: frozenset[str] = frozenset()
    """Those of them whose answer is whole."""
    data: bytes = b""
    """The output."""


class Service(MemoryBackend):
    """The service in memory, with fates, strangers' jobs, and requests that arrive late."""

    def __init__(self, world: World) -> None:
        rng = world.rng
        faults = world.faults
        lag = 0.0
        if faults.has("list_lag"):
            lag = rng.choice((3.0, SETTLE_S, 40.0, 40.0))
        super().__init__(
            world.service_clock,
            ending=lambda _: self.fates[self._asked].ending,
            pending_s=rng.choice((0.5, 3.0)),
            running_s=rng.choice((0.5, 5.0, 20.0)),
            listing_lag_s=lag,
        )
        self._world = world
        self._asked = ""
        self.fates: dict[str, Fate] = {}
        """Job name -> fate; outlives the job."""
        self._late: list[tuple[float, dict[str, str]]] = []
        self._stranger_count = rng.choice((0, 1, 7))

    # ------------------------------------------------------------ creating

    def make(self, process: Process, *, model: str, upload_name: str, display_name: str) -> Job:
        """Create a job for a call of this process."""
        data = self._files.get(upload_name)
        keys = [json.loads(line)["key"] for line in data.splitlines()] if data else []
        creation = self._world.watch.creating(process, display_name, keys)
        job = super().create(model=model, upload_name=upload_name, display_name=display_name)
        creation.job_name = job.job_name
        self._fated(job.job_name)
        return job

    def twin(self, *, model: str, upload_name: str, display_name: str) -> None:
        """Create a second job for the same call: nobody asked for it."""
        job = super().create(model=model, upload_name=upload_name, display_name=display_name)
        self._fated(job.job_name)

    def schedule(self, process: Process, call: dict[str, str], delay_s: float) -> None:
        """Let a call arrive after its caller has stopped waiting for it."""
        self._late.append((self._world.time + delay_s, call))
        self._world.late_calls[call["display_name"]] = process

    def arrive(self) -> None:
        """Take what is due by now."""
        due = [call for at, call in self._late if at <= self._world.time]
        if due:
            self._late = [(at, call) for at, call in self._late if at > self._world.time]
            for call in due:
                self._world.note(f"late request arrives: {call['display_name']}")
                self.make(self._world.late_calls[call["display_name"]], **call)

    def _fated(self, job_name: str) -> None:
        lines = self._jobs[job_name].lines
        fate = drawn(self._world.faults, lines)
        fate.data = self._output(lines, fate, self._world.faults.rng)
        self.fates[job_name] = fate

    def _output(self, lines: list[Mapping[str, Any]], fate: Fate, rng: Random) -> bytes:
        faults = self._world.faults
        out: list[Any] = []
        for line in lines:
            key = line["key"]
            if key in fate.errors:
                out.append({"key": key, "error": {"code": fate.errors[key], "message": "no"}})
            elif key in fate.answered:
                out.append({"key": key, **answer(line)})
        if out and faults.take("duplicate_rows"):
            again = rng.choice(out)
            out.append(again)
            # An error beside an answer must not take its place.
            out += [{"key": key, "error": {"code": 14, "message": "twice"}} for key in some(rng, fate.ok)]
        rng.shuffle(out)
        texts = [json.dumps(body).encode() for body in out]
        if faults.take("noise_rows"):
            texts[rng.randint(0, len(texts)) :] += [b"null", b"{", b'{"key":"r0","response":{}}', b""]
        return b"".join(text + b"\n" for text in texts)

    # ------------------------------------------------------------ looking

    def listing(self) -> Iterator[Job]:
        """Every job, strangers' first: they are newer."""
        for number in range(self._stranger_count):
            yield Job(job_name=f"batches/other{number}", display_name="other", state=JobState.RUNNING)
        shown = list(super().jobs())
        if len(shown) < len(self._jobs):
            self._world.faults.injected["list_lag"] += 1
        yield from shown

    def data(self, job: Job) -> bytes:
        """A job's output."""
        self._job(job.job_name)
        return self.fates[job.job_name].data if job.output_name else b""

    def is_done(self, job_name: str) -> bool:
        """Whether the job has ended, by the service's own clock."""
        return job_name in self._jobs and self._seen(self._jobs[job_name]).state.terminal

    def job_names(self) -> list[str]:
        """All jobs that were not deleted."""
        return list(self._jobs)

    def holds_upload(self, name: str) -> bool:
        """Whether an upload is there."""
        return name in self._files

    def _seen(self, job: Any) -> Job:
        self._asked = job.name
        found = super()._seen(job)
        fate = self.fates.get(job.name)
        ended = found.state in (JobState.EXPIRED, JobState.FAILED)
        if fate is not None and ended and not found.output_name and fate.data:
            return replace(found, output_name="files/partial")
        return found


def drawn(faults: Faults, lines: Sequence[Mapping[str, Any]], *, on_vertex: bool = False) -> Fate:
    """What will become of a job of these lines; on Vertex a cancelled one keeps what it has."""
    rng = faults.rng
    keys = [line["key"] for line in lines]
    fate = Fate()
    part: list[str] = []
    if faults.take("expired"):
        fate.ending = Ending(state=JobState.EXPIRED)
        part = keys[: rng.randint(0, len(keys))]
    elif faults.take("job_failed"):
        fate.ending = Ending(state=JobState.FAILED, error_code=13, error_message="it broke")
        part = keys[: rng.randint(0, len(keys))]
    elif faults.take("import_failed"):
        code = rng.choice((3, 5, 7, 9)) if on_vertex else 3
        fate.ending = Ending(state=JobState.FAILED, error_code=code, error_message="not imported")
    elif faults.take("cancelled"):
        fate.ending = Ending(state=JobState.CANCELLED, error_code=1 if on_vertex else 0)
        part = keys[: rng.randint(0, len(keys))] if on_vertex else []
    else:
        part = keys
        if faults.take("missing_rows"):
            part = [key for key in keys if rng.random() < 0.6]
            fate.ending = Ending(state=rng.choice((JobState.SUCCEEDED, JobState.PARTIAL)))
    answered = list(part)
    errors: dict[str, int] = {}
    if answered and faults.take("passing_errors"):
        errors |= dict.fromkeys(some(rng, answered), 8)
    if answered and faults.take("final_errors"):
        errors |= dict.fromkeys(some(rng, answered), 3)
    fate.errors = errors
    fate.lost = frozenset(keys) - set(part)
    fate.answered = frozenset(part) - set(errors)
    fate.ok = fate.answered - {line["key"] for line in lines if is_cut(line)}
    return fate


def some(rng: Random, keys: Any) -> list[str]:
    """At least one of them, where there are any."""
    found = sorted(keys)
    return rng.sample(found, rng.randint(1, len(found))) if found else []


class Connection:
    """The `Backend` of one process: the network between it and the service is where things go wrong."""

    poll_interval_s = 5.0
    principal = "memory"
    notice = ""
    limits = MemoryBackend.limits

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process
        self._service = world.service

    def upload(self, path: Path, *, name: str, sha256: str) -> Upload:
        """See `Backend.upload`."""
        self._before("upload")
        got = self._service.upload(path, name=name, sha256=sha256)
        self._after("upload", name)
        return got

    def upload_exists(self, name: str) -> bool:
        """See `Backend.upload_exists`."""
        self._enter()
        self._outage("upload_exists")
        return self._service.upload_exists(name)

    def delete_upload(self, name: str) -> None:
        """See `Backend.delete_upload`."""
        self._before("delete_upload")
        self._world.watch.deleting_upload(name)
        self._service.delete_upload(name)
        self._after("delete_upload", name)

    def create(
        self, *, model: str, upload_name: str, display_name: str, task: str = "generate_content"
    ) -> Job:
        """See `Backend.create`; the lives have no embeddings."""
        world, faults, rng = self._world, self._world.faults, self._world.faults.rng
        call = {"model": model, "upload_name": upload_name, "display_name": display_name}
        try:
            self._enter()
            world.effect(self._process, "create before")
        except Crash:
            if rng.random() < 0.4 and not faults.calm:
                self._service.schedule(self._process, call, rng.uniform(0, REQUEST_TIMEOUT_S))
                world.note(f"a request is still under way: {display_name}")
            raise
        if faults.take("refused"):
            raise SubmissionRefused("no such model", status="INVALID_ARGUMENT", http_status=400)
        if faults.take("quota"):
            raise SubmissionDeferred("quota", status="RESOURCE_EXHAUSTED", http_status=429, transient=True)
        if faults.take("lost_request"):
            world.pass_time(rng.choice((0.0, REQUEST_TIMEOUT_S)))
            world.report.ambiguous += 1
            raise SubmissionUnknown("reset by peer")
        if faults.take("late_request"):
            self._service.schedule(self._process, call, rng.uniform(0, REQUEST_TIMEOUT_S))
            world.report.ambiguous += 1
            world.watch.unanswered.add(display_name)
            raise SubmissionUnknown("timed out")
        twin = faults.take("twin_job")
        job = self._service.make(self._process, **call)
        if twin:
            self._service.twin(**call)
        world.visit(self._process, "create after", display_name)
        if twin or faults.take("lost_reply"):
            world.report.ambiguous += 1
            world.watch.unanswered.add(display_name)
            raise SubmissionUnknown("the reply was lost")
        world.watch.answered(job.job_name)
        return job

    def jobs(self) -> Iterator[Job]:
        """See `Backend.jobs`."""
        self._before("jobs", effect=False)
        yield from self._service.listing()
        self._outage("jobs, last page")

    def get(self, job_name: str) -> Job:
        """See `Backend.get`."""
        self._before("get", effect=False)
        return self._service.get(job_name)

    def cancel(self, job_name: str) -> None:
        """See `Backend.cancel`."""
        self._before("cancel")
        self._service.cancel(job_name)
        self._world.watch.cancelled.add(job_name)
        self._after("cancel", job_name)

    def delete(self, job_name: str) -> None:
        """See `Backend.delete`."""
        self._before("delete")
        self._world.watch.deleting_job(job_name)
        self._service.delete(job_name)
        self._after("delete", job_name)

    def output(self, job: Job) -> Iterator[bytes]:
        """See `Backend.output`."""
        self._enter()
        self._outage("output")
        data = self._service.data(job)
        half = len(data) // 2
        yield data[:half]
        self._world.visit(self._process, "output half", job.job_name)
        if self._world.faults.take("torn_download"):
            raise BackendError("the connection broke", transient=True)
        yield data[half:]

    def answer(self, *, task: str, model: str, line: bytes) -> bytes:
        """See `Backend.answer`."""
        self._before("answer")
        return self._service.answer(task=task, model=model, line=line)

    def close(self) -> None:
        """See `Backend.close`."""

    def _enter(self) -> None:
        self._world.check_alive(self._process)
        self._service.arrive()

    def _before(self, call: str, *, effect: bool = True) -> None:
        self._enter()
        if effect:
            self._world.effect(self._process, f"{call} before")
        else:
            self._world.visit(self._process, f"{call} before")
        self._outage(call)

    def _after(self, call: str, what: str) -> None:
        self._world.visit(self._process, f"{call} after", what)
        self._outage(call)

    def _outage(self, call: str) -> None:
        if self._world.faults.take("outage"):
            raise BackendError(f"{call}: 503", status="UNAVAILABLE", http_status=503, transient=True)
