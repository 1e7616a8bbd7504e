"""The connection of one process to Vertex AI: gbrun's own backend over a wire that goes wrong."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import requests
from google.api_core import exceptions
from google.genai import errors
from google.oauth2.credentials import Credentials

from runner.backends import vertexwire
from runner.backends.rest import Rest
from runner.backends.vertex import VertexBackend
from runner.backends.vertexstaging import Staging
from runner.model import Job, Upload

from . import bucket
from .process import Crash, Process, Violation
from .service import REQUEST_TIMEOUT_S, Connection
from .vertexjobs import LISTING_GAP_S, Refused, VertexService

if TYPE_CHECKING:
    from .world import World

STAGING = "gs://staging/life"
_CHUNK_BYTES = 512
"""Rows come in pieces that end within a row, as those of large jobs do."""


@functools.cache
def _template() -> VertexBackend:
    """The backend as the command line makes it, which takes long; nothing listens at its address."""
    return VertexBackend(
        project="project",
        location="us-central1",
        staging_uri=STAGING,
        credentials=Credentials(token="token"),
        base_url="http://127.0.0.1:9",
        storage_url="http://127.0.0.1:9",
        api_version="v1",
        request_timeout_s=REQUEST_TIMEOUT_S,
        labels={"team": "simulation"},
        listing_gap_s=LISTING_GAP_S,
    )


@dataclass(frozen=True, slots=True)
class _Reply:
    body: str


class VertexConnection(Connection):
    """The `Backend` of one process: gbrun's own, down to where its clients would speak to the network."""

    limits = VertexBackend.limits

    def __init__(self, world: World, process: Process) -> None:
        super().__init__(world, process)
        assert isinstance(world.service, VertexService)
        self._vertex = world.service
        self._backend = copy.copy(_template())
        staging = Staging("project", None, None, REQUEST_TIMEOUT_S, _CHUNK_BYTES)
        wire = bucket.Wire(
            world.service.bucket, self._storing, self._stored, self._deleting, self._downloading
        )
        staging.__dict__["_client"] = bucket.Client(wire)
        self._backend._storage = staging
        self._backend._client = _Client(self)  # type: ignore[assignment]
        self._backend._rest = Rest(self._backend._client, vertexwire.problem)
        self._backend._clock = self

    # ------------------------------------------------------------ the contract

    def upload(self, path: Path, *, name: str, sha256: str) -> Upload:
        """See `Backend.upload`."""
        self._before("upload")
        place = f"{STAGING.rpartition('/')[2]}/{name}.jsonl"
        objects = self._vertex.bucket.objects
        if place not in objects and self._world.faults.take("taken_place"):
            data = path.read_bytes()
            # Of the same size, so that only a look at the bytes tells.
            others = data[::-1] if self._world.faults.rng.random() < 0.5 else b"{}"
            self._vertex.bucket.write(place, others, "others")
        got = self._backend.upload(path, name=name, sha256=sha256)
        self._after("upload", name)
        return got

    def upload_exists(self, name: str) -> bool:
        """See `Backend.upload_exists`."""
        return self._backend.upload_exists(name)

    def delete_upload(self, name: str) -> None:
        """See `Backend.delete_upload`."""
        self._before("delete_upload")
        self._world.watch.deleting_upload(name)
        self._backend.delete_upload(name)
        self._after("delete_upload", name)

    def create(
        self, *, model: str, upload_name: str, display_name: str, task: str = "generate_content"
    ) -> Job:
        """See `Backend.create`; where things go wrong is `_post`."""
        return self._backend.create(model=model, upload_name=upload_name, display_name=display_name)

    def jobs(self) -> Iterator[Job]:
        """See `Backend.jobs`."""
        self._before("jobs", effect=False)
        yield from self._backend.jobs()

    def get(self, job_name: str) -> Job:
        """See `Backend.get`."""
        self._before("get", effect=False)
        return self._backend.get(job_name)

    def cancel(self, job_name: str) -> None:
        """See `Backend.cancel`."""
        self._before("cancel")
        self._backend.cancel(job_name)
        self._after("cancel", job_name)

    def delete(self, job_name: str) -> None:
        """See `Backend.delete`."""
        self._before("delete")
        self._backend.delete(job_name)
        self._after("delete", job_name)

    def output(self, job: Job) -> Iterator[bytes]:
        """See `Backend.output`."""
        return self._backend.output(job)

    # ------------------------------------------------------------ the clock of the backend

    def now(self) -> float:
        """See `Clock.now`."""
        return self._world.time + self._world.skew

    def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`: short waits of one call, under the lock."""
        self._world.visit(self._process, "wait before")
        self._world.pass_time(seconds)

    # ------------------------------------------------------------ the wire to the jobs

    def request(self, method: str, path: str, body: Mapping[str, Any]) -> _Reply:
        """One request, as the SDK would send it. Raises what the SDK would raise."""
        if method == "post" and path == "batchPredictionJobs":
            return _Reply(json.dumps(self._post(body)))
        self._enter()
        if "pageToken=" in path:
            self._world.visit(self._process, "page before")
        if method == "delete":
            self._holding("delete half")
        self._broken(f"{method} {path}")
        try:
            reply = self._vertex.reply(method, path, body)
        except Refused as error:
            raise errors.ClientError(error.code, error.body) from error
        self._broken(f"the reply to {method} {path}")
        return _Reply(json.dumps(reply))

    def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        world, faults, rng = self._world, self._world.faults, self._world.faults.rng
        token = body["displayName"]
        self._enter()
        try:
            world.effect(self._process, "create before")
        except Crash:
            if rng.random() < 0.4 and not faults.calm:
                self._vertex.schedule(self._process, body, rng.uniform(0, REQUEST_TIMEOUT_S))
                world.note(f"a request is still under way: {token}")
            raise
        if faults.take("refused"):
            raise rng.choice(
                (
                    _problem(400, "INVALID_ARGUMENT"),
                    _problem(403, "PERMISSION_DENIED"),
                    _problem(404, "NOT_FOUND"),
                    httpx2.ConnectError("connection refused"),
                )
            )
        if faults.take("quota"):
            raise _problem(429, "RESOURCE_EXHAUSTED")
        if faults.take("lost_request"):
            world.pass_time(rng.choice((0.0, REQUEST_TIMEOUT_S)))
            world.report.ambiguous += 1
            raise self._silence()
        if faults.take("late_request"):
            self._vertex.schedule(self._process, body, rng.uniform(0, REQUEST_TIMEOUT_S))
            world.report.ambiguous += 1
            world.watch.unanswered.add(token)
            raise self._silence()
        twin = faults.take("twin_job")
        job = self._vertex.make(self._process, body)
        if twin:
            self._vertex.make(self._process, body, twin=True)
        world.visit(self._process, "create after", token)
        if twin or faults.take("lost_reply"):
            world.report.ambiguous += 1
            world.watch.unanswered.add(token)
            if rng.random() < 0.2:
                # An answer, but none that names a job.
                return rng.choice(({}, {"displayName": token}, {"name": f"{job.name}/operations/1"}))
            raise self._silence()
        world.watch.answered(job.name)
        return self._vertex.shown(job, world.time)

    def _silence(self) -> Exception:
        """A call whose end nobody can tell from what it raises."""
        return self._world.faults.rng.choice(
            (
                httpx2.ReadTimeout("timed out"),
                httpx2.WriteError("broken pipe"),
                httpx2.RemoteProtocolError("server disconnected without sending a response"),
                errors.ServerError(500, {"error": {"code": 500, "message": "no", "status": "INTERNAL"}}),
                errors.ServerError(503, {"error": {"code": 503, "message": "no", "status": "UNAVAILABLE"}}),
                errors.ClientError(408, {}),
                errors.ClientError(429, {}),
            )
        )

    def _broken(self, what: str) -> None:
        if self._world.faults.take("outage"):
            self._world.note(f"outage: {what}")
            raise self._world.faults.rng.choice(
                (
                    httpx2.ReadTimeout("timed out"),
                    httpx2.ConnectError("connection refused"),
                    errors.ServerError(503, {"error": {"message": "no", "status": "UNAVAILABLE"}}),
                )
            )

    # ------------------------------------------------------------ the wire to the storage

    def _storing(self, call: str, changes: bool) -> None:
        self._enter()
        if call == "reload":
            self._world.visit(self._process, "upload half")
        if call == "download":
            self._world.visit(self._process, "output half")
        if changes:
            self._holding("")
        self._torn(call)

    def _stored(self, call: str) -> None:
        self._torn(f"the reply to {call}")

    def _deleting(self, stored: bucket.Stored) -> None:
        if stored.owner != "us":
            self._world.watch.deleting_job(stored.owner)

    def _downloading(self, stored: bucket.Stored, start: int, end: int) -> bytes:
        data = stored.data[start:end]
        if (start and self._vertex.breaks_off(stored)) or self._world.faults.take("torn_download"):
            if self._world.faults.rng.random() < 0.5:
                raise requests.exceptions.ConnectionError("connection broken")
            return data[: len(data) // 2]
        return data

    def _torn(self, what: str) -> None:
        if self._world.faults.take("outage"):
            self._world.note(f"outage of the storage: {what}")
            raise self._world.faults.rng.choice(
                (
                    requests.exceptions.ReadTimeout("timed out"),
                    exceptions.ServiceUnavailable("no"),
                    exceptions.TooManyRequests("no"),
                )
            )

    # ------------------------------------------------------------ what both share

    def _outage(self, call: str) -> None:
        """Outages are the wires'."""

    def _holding(self, point: str) -> None:
        """What changes anything is done under the lock."""
        if point:
            self._world.visit(self._process, point)
        if self._world.holder is not self._process:
            raise Violation("effects only under the lock", point)


class _Client:
    """Stands where the SDK's client stands."""

    def __init__(self, connection: VertexConnection) -> None:
        self._api_client = connection

    def close(self) -> None:
        """There is nothing to release."""


def _problem(code: int, status: str) -> errors.ClientError:
    return errors.ClientError(code, {"error": {"code": code, "message": "no", "status": status}})
