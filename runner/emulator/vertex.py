"""Vertex AI over one folder: batch prediction jobs and synchronous calls, parsed bodies in, bodies out.

A job is taken whatever its file holds; what is wrong with the file, with its bucket or with the rights to it
ends the job as FAILED. Jobs are left to the worker.

Source: the discovery document of aiplatform v1beta1, revision 20261106; recorded replies, 2026-09.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable
from typing import Any

import orjson

from runner.emulator import answers, rules, vertexrows, wire
from runner.emulator.database import Database
from runner.emulator.embeddings import takes_media
from runner.emulator.faults import FaultPlan, JobRule
from runner.emulator.files import Files
from runner.emulator.gcs import Objects
from runner.emulator.gcswire import Conditions
from runner.emulator.jobs import Ending, Job, Jobs
from runner.emulator.messages import Problem, check
from runner.emulator.replies import Replies
from runner.emulator.vertexfile import Importer, ImportFailed
from runner.emulator.wire import ApiError

_TABLE = (
    "CREATE TABLE IF NOT EXISTS vertex_jobs (id TEXT PRIMARY KEY, parent TEXT NOT NULL, body BLOB NOT NULL)"
)
_JOBS_PER_PAGE = 100
_OWN_MODELS = "publishers/google/models/"
_LABEL = re.compile(r"[a-z0-9_-]{0,63}")
_TERM = re.compile(r'(labels\.[a-z0-9_-]+|display_name|displayName|state)\s*(:\*|!=|=|:)\s*("[^"]*"|[^\s"]*)')
_AGENT = "service-{}@gcp-sa-aiplatform.iam.gserviceaccount.com"
_MESSAGES = {
    1: "CANCELED",
    3: "Failed to import data.",
    4: "The job did not finish within its time limit.",
    7: "Permission denied: {} does not have storage.objects.get access to the Google Cloud Storage object.",
    9: "Google Cloud Storage bucket {} does not exist or is not in a supported region.",
    13: "INTERNAL",
}


class Vertex:
    """What the routes call; `project` is an id or a number, `location` whatever was asked for."""

    def __init__(
        self,
        database: Database,
        files: Files,
        jobs: Jobs,
        objects: Objects,
        plan: FaultPlan,
        wake: Callable[[], None],
    ) -> None:
        self._database = database
        self._files = files
        self._jobs = jobs
        self._objects = objects
        self._plan = plan
        self._wake = wake
        with database.write() as connection:
            connection.execute(_TABLE)

    # ------------------------------------------------------------ jobs

    def create(self, project: str, location: str, version: str, body: Any) -> dict[str, Any]:
        """The new job."""
        try:
            asked = check("VertexJob", body)
            source, prefix = _checked(asked)
        except Problem as problem:
            raise wire.bad_body(problem) from None
        model = _model(asked.get("model", ""), project, location, version)
        job_id = str(secrets.randbelow(9 * 10**18) + 10**18)
        importer = Importer()
        rule = self._plan.strike_job(self._plan_tally)
        ending = _ending(rule, project)
        lines: Any = self._lines(source)
        try:
            importer.load(lines)
            lines = self._lines(source)
            self._bucket(prefix)
        except ImportFailed as error:
            ending = Ending(state="FAILED", code=3, message=str(error), partial=0.0)
        except ApiError as error:
            bucket = source.removeprefix("gs://").partition("/")[0]
            code = 5 if "object" in error.message.lower() and "bucket" not in error.message.lower() else 9
            message = error.message if code == 5 else _MESSAGES[9].format(bucket)
            ending = Ending(state="FAILED", code=code, message=message, partial=0.0)
        asked["keysAreNumbers"] = importer.keys_are_numbers
        with self._database.write() as connection:
            record = (job_id, _parent(project, location), orjson.dumps(asked))
            connection.execute("INSERT INTO vertex_jobs VALUES (?, ?, ?)", record)
        timing = self._plan.timing
        self._jobs.create(
            job_id=job_id,
            model=model,
            display_name=asked["displayName"],
            source=lines,
            input_file=source,
            rows=importer.rows,
            pending_s=(rule.seconds if rule else None) or timing.pending_s,
            running_s=timing.running_s,
            seed=self._plan.seed,
            row_rules=self._plan.rows_for_job(self._plan_tally, inline=False, embeds=wire.embeds(model)),
            ending=ending,
        )
        self._wake()
        return self._shown(self._jobs.get(job_id))

    def get(self, project: str, location: str, job_id: str) -> dict[str, Any]:
        """A job."""
        return self._shown(self._job(project, location, job_id))

    def list(self, project: str, location: str, query: dict[str, str]) -> dict[str, Any]:
        """A page of jobs, newest first."""
        try:
            size = min(int(query.get("pageSize") or _JOBS_PER_PAGE), _JOBS_PER_PAGE) or _JOBS_PER_PAGE
        except ValueError:
            raise ApiError(400, "Invalid value for page_size.") from None
        after = wire.page_position(query["pageToken"]) if query.get("pageToken") else 1 << 62
        parent = _parent(project, location)
        wanted = _filter(query.get("filter", ""))
        page: list[dict[str, Any]] = []
        for job in self._jobs.on_vertex(after):
            body = self._shown(job)
            if not body["name"].startswith(f"{parent}/") or not wanted(body):
                continue
            if len(page) == size:
                # The next page begins with this one.
                return {"batchPredictionJobs": page, "nextPageToken": wire.page_token(job.seq + 1)}
            page.append(body)
        return {"batchPredictionJobs": page} if page else {}

    def cancel(self, project: str, location: str, job_id: str) -> dict[str, Any]:
        """Ask for a cancellation."""
        job = self._job(project, location, job_id)
        if job.ended:
            raise _precondition(f"The job is already in a terminal state JOB_STATE_{job.state}.")
        self._jobs.cancel(job_id)
        self._wake()
        return {}

    def delete(self, project: str, location: str, job_id: str) -> dict[str, Any]:
        """Delete a job that has ended; its output stays. The operation is done when it is asked for."""
        job = self._job(project, location, job_id)
        if not job.ended:
            raise _precondition(f"The job is in state JOB_STATE_{job.state} and cannot be deleted.")
        self._jobs.delete(job_id)
        with self._database.write() as connection:
            connection.execute("DELETE FROM vertex_jobs WHERE id = ?", (job_id,))
        return _operation(project, location, job_id, done=False)

    def operation(self, project: str, location: str, job_id: str) -> dict[str, Any]:
        """The operation of a deletion."""
        return _operation(project, location, job_id, done=True)

    # ------------------------------------------------------------ synchronous calls

    def generate(self, model: str, body: Any) -> dict[str, Any]:
        """`:generateContent`."""
        return self._replied(model, vertexrows.canonical(body, model))

    def embed(self, model: str, body: Any) -> dict[str, Any]:
        """`:embedContent`."""
        response = self._replied(model, vertexrows.canonical(body, model))
        count = int(response["tokenCount"])
        usage = {"promptTokenCount": count}
        if takes_media(model):
            usage["totalTokenCount"] = count
        return {"embedding": response["embedding"], "usageMetadata": usage, "truncated": False}

    def count_tokens(self, model: str, body: Any) -> dict[str, Any]:
        """`:countTokens`."""
        try:
            request = check("GenerateContentRequest", body)
            rules.request(request)
        except Problem as problem:
            raise wire.bad_body(problem) from None
        usage = answers.usage(request, answers.prompt_of(request), 0)
        return {"totalTokens": usage["promptTokenCount"], "promptTokensDetails": usage["promptTokensDetails"]}

    def _replied(self, model: str, request: dict[str, Any]) -> dict[str, Any]:
        replies = Replies(
            model=model,
            rules=self._plan.rows_for_call(embeds=wire.embeds(model)),
            seed=self._plan.seed,
            work=wire.new_id(36),
            digest_of=self._files.digest_of,
            attempt=self._database.attempt,
        )
        reply = replies.reply(request)
        if reply.response is None:
            error = reply.error or {}
            raise wire.of_rpc(error["code"], error["message"])
        return reply.response

    # ------------------------------------------------------------ within

    def _plan_tally(self, name: str) -> int:
        return self._database.tally(name)

    def _lines(self, uri: str) -> Any:
        """The lines of an object. Raises ApiError where there is none."""
        bucket, _, name = uri.removeprefix("gs://").partition("/")
        found = self._objects.open(bucket, name, Conditions(), None)
        with found.stream as stream:
            for line in stream:
                yield line if line.endswith(b"\n") else line + b"\n"

    def _bucket(self, uri: str) -> None:
        self._objects.bucket(uri.removeprefix("gs://").partition("/")[0])

    def _record(self, job: Job) -> Any:
        found = self._database.rows("SELECT * FROM vertex_jobs WHERE id = ?", job.id)
        return found[0] if found else {"parent": "", "body": b"{}"}

    def _job(self, project: str, location: str, job_id: str) -> Job:
        found = self._database.rows("SELECT * FROM vertex_jobs WHERE id = ?", job_id)
        if not found or found[0]["parent"] != _parent(project, location):
            name = f"{_parent(project, location)}/batchPredictionJobs/{job_id}"
            raise ApiError(404, f'The BatchPredictionJob "{name}" does not exist.')
        return self._jobs.get(job_id)

    def _shown(self, job: Job) -> dict[str, Any]:
        record = self._record(job)
        return shown(job, record["parent"], orjson.loads(record["body"]))


def output_folder(job: Job, body: dict[str, Any]) -> str:
    """Where a job's rows go."""
    prefix = body["outputConfig"]["gcsDestination"]["outputUriPrefix"].rstrip("/")
    return f"{prefix}/prediction-model-{wire.timestamp(job.created_ns, 6)}"


def job_body(database: Database, job: Job) -> dict[str, Any]:
    """What a job was made from."""
    found = database.rows("SELECT body FROM vertex_jobs WHERE id = ?", job.id)
    body: dict[str, Any] = orjson.loads(found[0]["body"]) if found else {}
    return body


def shown(job: Job, parent: str, asked: dict[str, Any]) -> dict[str, Any]:
    """A job as the service shows it."""
    body: dict[str, Any] = {
        "name": f"{parent}/batchPredictionJobs/{job.id}",
        "displayName": job.display_name,
        "model": asked["model"],
        "inputConfig": asked["inputConfig"],
        "outputConfig": asked["outputConfig"],
        "state": f"JOB_STATE_{job.state}",
        "createTime": wire.timestamp(job.created_ns, 6),
        "updateTime": wire.timestamp(job.updated_ns, 6),
        "modelVersionId": "1",
    }
    if asked.get("labels"):
        body["labels"] = asked["labels"]
    if job.started_at:
        body["startTime"] = wire.timestamp(int(job.started_at * 1e9), 6)
    if not job.ended:
        return body
    body["endTime"] = wire.timestamp(job.ended_ns, 6)
    if job.output:
        body["outputInfo"] = {"gcsOutputDirectory": output_folder(job, asked)}
    if job.state != "CANCELLED" and job.output:
        counts = {"successfulCount": job.ok, "failedCount": job.failed}
        counts["incompleteCount"] = job.rows - job.ok - job.failed
        body["completionStats"] = {name: str(count) for name, count in counts.items() if count}
    if job.ending.code:
        body["error"] = {"code": job.ending.code, "message": job.ending.message}
    return body


def _checked(asked: dict[str, Any]) -> tuple[str, str]:
    """Source and destination of a job. Raises Problem."""
    source = asked.get("inputConfig", {})
    target = asked.get("outputConfig", {})
    uris = source.get("gcsSource", {}).get("uris", [])
    one = len(uris) == 1 and uris[0].startswith("gs://")
    prefix = target.get("gcsDestination", {}).get("outputUriPrefix", "")
    for wrong, message, path in (
        (not asked.get("displayName"), "must be set", ["displayName"]),
        (len(asked.get("displayName", "")) > 128, "must be at most 128 characters", ["displayName"]),
        (source.get("instancesFormat") != "jsonl", "must be jsonl", ["inputConfig", "instancesFormat"]),
        (not one, "must be one gs:// URI", ["inputConfig", "gcsSource"]),
        (target.get("predictionsFormat") != "jsonl", "must be jsonl", ["outputConfig", "predictionsFormat"]),
        (not prefix.startswith("gs://"), "must be a gs:// URI", ["outputConfig", "gcsDestination"]),
    ):
        if wrong:
            problem = Problem(message)
            problem.path = list(path)
            raise problem
    for name, value in asked.get("labels", {}).items():
        if not (_LABEL.fullmatch(name) and name[:1].isalpha() and _LABEL.fullmatch(value)):
            problem = Problem(f"the label {name}: {value} is not valid")
            problem.path = ["labels"]
            raise problem
    return uris[0], prefix


def _model(path: str, project: str, location: str, version: str) -> str:
    """`models/...` of a model that exists. Raises ApiError 404."""
    name = path.rpartition(_OWN_MODELS)[2]
    try:
        if not path.startswith(_OWN_MODELS) and f"/{_OWN_MODELS}" not in path:
            raise wire.not_found()
        return wire.model_name(name, version, "embedContent" if wire.embeds(name) else "generateContent")
    except ApiError:
        raise model_gone(project, location, name) from None


def model_gone(project: str, location: str, name: str) -> ApiError:
    """What a model that does not exist is answered with."""
    place = f"projects/{project}/locations/{location}/{_OWN_MODELS}{name}"
    return ApiError(
        404,
        f"Publisher Model `{place}` was not found or your project does not have access to it. Please ensure "
        "you are using a valid model version.",
    )


def _parent(project: str, location: str) -> str:
    """The service calls projects by their numbers, whatever they were called."""
    return f"projects/{_number(project)}/locations/{location}"


def _number(project: str) -> str:
    if project.isdecimal():
        return project
    return str(10**11 + int.from_bytes(hashlib.sha256(project.encode()).digest()[:4], "big"))


def _ending(rule: JobRule | None, project: str) -> Ending:
    if rule is None or rule.kind == "stuck_pending":
        return Ending()
    state, code = {
        "failed": ("FAILED", rule.code or 13),
        "cancelled": ("CANCELLED", 1),
        "expired": ("EXPIRED", 4),
        "partially_succeeded": ("PARTIALLY_SUCCEEDED", 0),
    }[rule.kind]
    said = _MESSAGES.get(code, "").format(_AGENT.format(_number(project)))
    return Ending(state=state, code=code, message=rule.message or said, partial=rule.partial or 0.0)


def _precondition(message: str) -> ApiError:
    return ApiError(400, message, status="FAILED_PRECONDITION")


def _operation(project: str, location: str, job_id: str, *, done: bool) -> dict[str, Any]:
    kind = "type.googleapis.com/google.cloud.aiplatform.v1beta1.DeleteOperationMetadata"
    now = wire.timestamp(wire.now_ns(), 6)
    metadata = {"@type": kind, "genericMetadata": {"createTime": now, "updateTime": now}}
    body: dict[str, Any] = {
        "name": f"{_parent(project, location)}/operations/{job_id}",
        "metadata": metadata,
    }
    if done:
        body |= {"done": True, "response": {"@type": "type.googleapis.com/google.protobuf.Empty"}}
    return body


def _filter(text: str) -> Callable[[dict[str, Any]], bool]:
    """What a listing's filter asks for: terms joined by AND. Raises ApiError 400 for others."""
    terms = []
    for part in text.split(" AND ") if text.strip() else ():
        found = _TERM.fullmatch(part.strip())
        if not found:
            raise ApiError(400, f"Invalid filter: {text}")
        terms.append((found[1], found[2], found[3].strip('"')))

    def holds(body: dict[str, Any]) -> bool:
        for name, operator, wanted in terms:
            if name.startswith("labels."):
                value = body.get("labels", {}).get(name.removeprefix("labels."))
            else:
                value = body["displayName" if name != "state" else "state"]
            if operator in (":*", ":"):
                if value is None or (wanted.strip("*") and not value.startswith(wanted.strip("*"))):
                    return False
            elif (value == wanted) != (operator == "="):
                return False
        return True

    return holds
