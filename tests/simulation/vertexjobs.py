"""Vertex AI of a life, at the wire: jobs over files in Cloud Storage, which outlive the processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from runner import gcsuri
from runner.backends.memory import Ending
from runner.backendspec import TOKEN_LABEL
from runner.model import JobState

from .bucket import Bucket, Stored
from .process import Process
from .service import SETTLE_S, Fate, drawn
from .vertexrows import rows_of

if TYPE_CHECKING:
    from .world import World

LISTING_GAP_S = 5.0
"""Between two looks at where rows land; those that come late come sooner after one another."""
_PARENT = "projects/123456789012/locations/us-central1"
_WORDS = {JobState.PARTIAL: "PARTIALLY_SUCCEEDED"}


class Refused(Exception):
    """The service says no."""

    def __init__(self, code: int, status: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.body = {"error": {"code": code, "message": message, "status": status}}


@dataclass(frozen=True, slots=True)
class _Landing:
    """An object that a job writes."""

    at: float
    name: str
    data: bytes
    keys: frozenset[str]


@dataclass(slots=True)
class _Job:
    name: str
    body: Mapping[str, Any]
    created_at: float
    starts_at: float
    ends_at: float
    states: list[tuple[float, str]]
    """When which state begins, in order."""
    stale_s: float
    """How far behind a listing shows it."""
    ending: Ending = field(default_factory=Ending)
    loaded: bool = False
    landings: list[_Landing] = field(default_factory=list)
    """What is still to land."""
    landed: set[str] = field(default_factory=set)
    straggler: _Landing | None = None
    """What lands when its output is being read, if it does not land by then."""

    @property
    def token(self) -> str:
        return str(self.body["displayName"])

    @property
    def folder(self) -> str:
        """Where it writes; two jobs of one instant below one prefix write to one folder."""
        prefix = self.body["outputConfig"]["gcsDestination"]["outputUriPrefix"]
        return f"{prefix.rstrip('/')}/prediction-model-{_timestamp(self.created_at)}"

    def state(self, now: float) -> str:
        """What it is in at this time."""
        return [word for at, word in self.states if at <= now or at == self.created_at][-1]

    def ended(self, now: float) -> bool:
        """Whether it has ended by then."""
        return now >= self.states[-1][0]


class VertexService:
    """Jobs that gbrun and others made, and what they read and write."""

    def __init__(self, world: World) -> None:
        self._world = world
        rng = world.rng
        self.bucket = Bucket()
        self.fates: dict[str, Fate] = {}
        """Job name -> fate, from when its file was read; outlives the job."""
        self._jobs: dict[str, _Job] = {}
        self._made = 0
        self._late: list[tuple[float, Mapping[str, Any]]] = []
        self._pending_s = rng.choice((0.5, 3.0))
        self._running_s = rng.choice((0.5, 5.0, 20.0))
        self._lag_s = rng.choice((3.0, SETTLE_S, 40.0, 40.0)) if world.faults.has("list_lag") else 0.0
        self._page_size = rng.choice((1, 2, 3, 100))
        self._begins_empty = rng.random() < 0.3
        blind_s = rng.choice((60.0, 3000.0, 1e9)) if world.faults.has("blind_filter") else 0.0
        self._blind_until = world.time + blind_s
        self._strangers = [_stranger(number) for number in range(rng.choice((0, 1, 7)))]
        self.bucket.write("life/out/notes.txt", b"somebody's", "others")

    # ------------------------------------------------------------ creating

    def make(self, process: Process, body: Mapping[str, Any], *, twin: bool = False) -> _Job:
        """Create a job for a call of this process; a twin is one that nobody asked for."""
        world, rng = self._world, self._world.rng
        token = body["displayName"]
        if not twin:
            source = self.bucket.objects.get(_source(body))
            # What others wrote is looked at when it is read.
            lines = source.data.splitlines() if source and source.owner == "us" else []
            creation = world.watch.creating(process, token, [json.loads(line)["key"] for line in lines])
        self._made += 1
        # The second of two has come later, if not by much.
        created = world.time + (1e-6 if twin else 0.0)
        starts = created + self._pending_s
        ends = starts + self._running_s
        states = [(created, rng.choice(("PENDING", "PENDING", "QUEUED"))), (starts, "RUNNING")]
        if rng.random() < 0.3:
            states.append((starts + self._running_s / 3, rng.choice(("PAUSED", "UPDATING"))))
            states.append((starts + self._running_s * 2 / 3, "RUNNING"))
        stale = rng.choice((2.0, 10.0, 60.0)) if world.faults.take("stale_list") else 0.0
        job = _Job(
            f"{_PARENT}/batchPredictionJobs/{1000 + self._made}", body, created, starts, ends, states, stale
        )
        self._jobs[job.name] = job
        if not twin:
            creation.job_name = job.name
        return job

    def schedule(self, process: Process, body: Mapping[str, Any], delay_s: float) -> None:
        """Let a call arrive after its caller has stopped waiting for it."""
        self._late.append((self._world.time + delay_s, body))
        self._world.late_calls[body["displayName"]] = process

    def arrive(self) -> None:
        """Take what is due by now, and let jobs go on."""
        due = [body for at, body in self._late if at <= self._world.time]
        if due:
            self._late = [(at, body) for at, body in self._late if at > self._world.time]
            for body in due:
                self._world.note(f"late request arrives: {body['displayName']}")
                self.make(self._world.late_calls[body["displayName"]], body)
        for job in list(self._jobs.values()):
            self._go_on(job)

    # ------------------------------------------------------------ running

    def _go_on(self, job: _Job) -> None:
        now = self._world.time
        if not job.loaded and now >= job.starts_at:
            job.loaded = True
            self._load(job)
        for landing in [landing for landing in job.landings if landing.at <= now]:
            self._land(job, landing)

    def _land(self, job: _Job, landing: _Landing) -> None:
        job.landings.remove(landing)
        job.landed |= landing.keys
        self.bucket.write(landing.name, landing.data, job.name)
        self._world.note(f"lands: {landing.name}")

    def breaks_off(self, stored: Stored) -> bool:
        """Whether a download breaks off now because the worst time has come for more rows to land."""
        job = self._jobs.get(stored.owner)
        if job is None or job.straggler not in job.landings:
            return False
        last = max(name for name, other in self.bucket.objects.items() if other.owner == job.name)
        if self.bucket.objects[last] is not stored:
            return False
        assert job.straggler is not None
        self._land(job, job.straggler)
        return True

    def _load(self, job: _Job) -> None:
        """Read the file, and draw what will become of it."""
        faults = self._world.faults
        source = self.bucket.objects.get(_source(job.body))
        if source is None:
            job.ending = Ending(state=JobState.FAILED, error_code=5, error_message="no such object")
            job.states.append((job.ends_at, "FAILED"))
            return
        self._world.watch.loading(job.token, source.data)
        lines = [json.loads(line) for line in source.data.splitlines()]
        fate = drawn(faults, lines, on_vertex=True)
        self.fates[job.name] = fate
        job.ending = fate.ending
        job.states.append((job.ends_at, _WORDS.get(fate.ending.state, fate.ending.state.name)))
        rows = rows_of(faults, lines, fate)
        straggler = b""
        if rows and faults.take("stragglers"):
            straggler = b"null"
            if len(rows) > 1 and faults.rng.random() < 0.5:
                (key, straggler), *rows = rows
                fate.answered -= {key}
                fate.ok -= {key}
        job.landings = self._landings(job, rows)
        if straggler:
            # Before all others by name, so that what is read anew begins with it.
            name, at = f"{_object(job.folder)}/a.jsonl", job.ends_at + 20 * LISTING_GAP_S
            job.straggler = _Landing(at, name, straggler, frozenset())
            job.landings.append(job.straggler)

    def _landings(self, job: _Job, rows: list[tuple[str, bytes]]) -> list[_Landing]:
        """Rows as objects: how many, of which names and when, only the service knows."""
        faults, rng = self._world.faults, self._world.faults.rng
        if not rows:
            return []
        late = faults.take("late_rows")
        count = rng.randint(1, 3)
        named = rng.choice((_numbered, _of_count, _plain))
        found = []
        at = job.ends_at
        for number in range(count):
            mine = rows[number::count]
            if not mine:
                continue
            name = f"{_object(job.folder)}/{named(number, count)}"
            keys = frozenset(key for key, _ in mine)
            data = b"\n".join(text for _, text in mine) + rng.choice((b"\n", b""))
            if late:
                at += rng.uniform(0.5, 0.9) * LISTING_GAP_S
                landed = at
            else:
                landed = rng.uniform(job.starts_at, job.ends_at)
            if len(mine) > 1 and rng.random() < 0.3:
                # While rows come in, an object is written anew.
                half, before = mine[: len(mine) // 2], rng.uniform(job.starts_at, min(landed, job.ends_at))
                some_keys = frozenset(key for key, _ in half)
                text = b"".join(text + b"\n" for _, text in half)
                found.append(_Landing(before, name, text, some_keys))
            found.append(_Landing(landed, name, data, keys))
        return sorted(found, key=lambda landing: landing.at)

    # ------------------------------------------------------------ what is asked

    def reply(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to anything but a create call. Raises Refused."""
        rest, _, query = path.partition("?")
        if method == "get" and rest == "batchPredictionJobs":
            return self._listed({name: values[0] for name, values in parse_qs(query).items()})
        if "/operations/" in rest:
            return {"name": rest, "done": True}
        name, _, verb = rest.partition(":")
        job = self._jobs.get(name)
        if job is None:
            raise Refused(404, "NOT_FOUND", f'The BatchPredictionJob "{name}" does not exist.')
        if verb == "cancel":
            self._cancel(job)
            return {}
        if method == "delete":
            if not job.ended(self._world.time):
                raise Refused(400, "FAILED_PRECONDITION", "The job has not ended and cannot be deleted.")
            self._world.watch.deleting_job(name)
            del self._jobs[name]
            return {"name": f"{name}/operations/9", "done": False}
        return self.shown(job, self._world.time)

    def shown(self, job: _Job, now: float) -> dict[str, Any]:
        """A job as the service shows it."""
        body = {
            "name": job.name,
            **{field: job.body[field] for field in ("displayName", "model", "inputConfig", "outputConfig")},
            "labels": job.body["labels"],
            "state": f"JOB_STATE_{job.state(now)}",
            "createTime": _timestamp(job.created_at),
        }
        if not job.ended(now):
            return body
        body["endTime"] = _timestamp(job.ends_at)
        if job.landed or job.landings:
            body["outputInfo"] = {"gcsOutputDirectory": job.folder}
        if job.ending.error_code:
            body["error"] = {"code": job.ending.error_code, "message": job.ending.error_message}
        return body

    def _listed(self, query: Mapping[str, str]) -> dict[str, Any]:
        """A page of jobs, newest first; it may be empty without being the last."""
        world, faults = self._world, self._world.faults
        chosen = query.get("filter", "")
        label = chosen.removeprefix("labels.").removesuffix(":*")
        now = world.time
        mine = [job for job in reversed(list(self._jobs.values())) if now >= job.created_at + self._lag_s]
        if len(mine) < len(self._jobs):
            faults.injected["list_lag"] += 1
        shown = [*self._strangers, *(self.shown(job, now - job.stale_s) for job in mine)]
        after = query.get("pageToken", "")
        if chosen:
            shown = [body for body in shown if label in body.get("labels", {})]
            if shown and now < self._blind_until and not faults.calm:
                faults.injected["blind_filter"] += 1
                shown = []
        if not after and self._begins_empty and shown:
            return {"nextPageToken": "0"}
        start = int(after or 0)
        stop = start + min(int(query["pageSize"]), self._page_size)
        page: dict[str, Any] = {"batchPredictionJobs": shown[start:stop]} if shown[start:stop] else {}
        if stop < len(shown):
            page["nextPageToken"] = str(stop)
        return page

    def _cancel(self, job: _Job) -> None:
        now = self._world.time
        if job.ended(now):
            raise Refused(400, "FAILED_PRECONDITION", f"The job is already in state {job.state(now)}.")
        self._world.watch.cancelled.add(job.name)
        ended_at = now + self._world.rng.choice((0.0, 2.0, 10.0))
        job.states = [(at, word) for at, word in job.states if at <= now or at == job.created_at]
        job.states.append((now, "CANCELLING"))
        if job.loaded and job.ends_at <= ended_at:
            # It comes to its end before it is stopped.
            job.states.append((job.ends_at, _WORDS.get(job.ending.state, job.ending.state.name)))
            return
        job.loaded = True
        job.ends_at = ended_at
        job.ending = Ending(state=JobState.CANCELLED, error_code=1, error_message="CANCELED")
        job.states.append((ended_at, "CANCELLED"))
        job.landings = [landing for landing in job.landings if landing.at <= ended_at]
        fate = self.fates.get(job.name)
        if fate is not None:
            kept = job.landed.union(*(landing.keys for landing in job.landings))
            fate.answered &= kept
            fate.ok &= kept

    def holds_upload(self, name: str) -> bool:
        """Whether an upload is there."""
        return _object(name) in self.bucket.objects


def _source(body: Mapping[str, Any]) -> str:
    [uri] = body["inputConfig"]["gcsSource"]["uris"]
    return _object(str(uri))


def _object(uri: str) -> str:
    """The name in an address."""
    return uri.removeprefix(gcsuri.SCHEME).partition("/")[2]


def _stranger(number: int) -> dict[str, Any]:
    """Somebody's job: another state's with our label, or one without, perhaps in a state nobody knows."""
    token = f"gb1-{number:08x}-{number:016x}-a1"
    body: dict[str, Any] = {
        "name": f"{_PARENT}/batchPredictionJobs/{number}",
        "displayName": token if number % 3 == 1 else "other",
        "model": "publishers/google/models/model",
        "state": "JOB_STATE_RUNNING" if number % 3 else "JOB_STATE_UNHEARD_OF",
    }
    if number % 3 == 1:
        body["labels"] = {TOKEN_LABEL: token}
    return body


def _numbered(number: int, count: int) -> str:
    return f"predictions_{number + 1:04}.jsonl"


def _of_count(number: int, count: int) -> str:
    return f"prediction.results-{number:05}-of-{count:05}.jsonl"


def _plain(number: int, count: int) -> str:
    return f"incremental/{9 - number}.jsonl" if number else "predictions.jsonl"


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
