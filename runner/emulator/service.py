"""The API's methods over one folder: parsed bodies in, bodies out, no HTTP.

A batch is checked line by line before there is a job: one bad line and there is none. It computes
nothing itself; jobs are left to the worker.

Source: one malformed row makes create answer 400, and no job exists: live captures, 2026-09.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from runner.emulator import answers, embeddings, rules, wire
from runner.emulator.database import Database
from runner.emulator.faults import FaultPlan, JobRule
from runner.emulator.files import Files
from runner.emulator.gcs import Objects
from runner.emulator.jobs import CANCELLED_MESSAGE, Ending, Job, Jobs
from runner.emulator.messages import Problem, check
from runner.emulator.operations import operation
from runner.emulator.replies import Replies
from runner.emulator.vertex import Vertex
from runner.emulator.wire import ApiError

_BATCHES_PER_PAGE = 50
_LARGEST_PAGE = 100
_FILES_PER_PAGE = 10


class Service:
    """What the routes call."""

    def __init__(
        self, database: Database, files: Files, jobs: Jobs, plan: FaultPlan, wake: Callable[[], None]
    ) -> None:
        self.files = files
        self.jobs = jobs
        self.objects = Objects(database)
        self.vertex = Vertex(database, files, jobs, self.objects, plan, wake)
        self.plan = plan
        self.tally = database.tally
        self._attempt = database.attempt
        self._wake = wake

    # ------------------------------------------------------------ batches

    def create_batch(self, model: str, version: str, body: Any) -> dict[str, Any]:
        """`models/M:batchGenerateContent`: the new operation."""
        return self._create(wire.model_name(model, version, "batchGenerateContent"), body)

    def create_embed_batch(self, model: str, version: str, body: Any) -> dict[str, Any]:
        """`models/M:asyncBatchEmbedContent`: the new operation."""
        return self._create(wire.model_name(model, version, "asyncBatchEmbedContent"), body)

    def _create(self, model: str, body: Any) -> dict[str, Any]:
        try:
            batch = check("CreateBatch", body).get("batch", {})
            config = batch.get("inputConfig", {})
            if ("fileName" in config) == ("requests" in config):
                raise Problem("exactly one of file_name and requests must be set in batch.input_config")
            source: Path | list[bytes]
            if "fileName" in config:
                source, rows = self._checked_file(config["fileName"], model)
            else:
                source = _checked_requests(config["requests"], model)
                rows = len(source)
        except Problem as problem:
            raise wire.bad_body(problem) from None
        inline = "requests" in config
        rule = self.plan.strike_job(self.tally)
        timing = self.plan.timing
        try:
            job = self.jobs.create(
                model=model,
                display_name=batch.get("displayName", ""),
                source=source,
                input_file="" if inline else config["fileName"],
                rows=rows,
                pending_s=(rule.seconds if rule else None) or timing.pending_s,
                running_s=timing.running_s,
                seed=self.plan.seed,
                row_rules=self.plan.rows_for_job(self.tally, inline=inline, embeds=wire.embeds(model)),
                ending=_ending(rule),
            )
        except FileNotFoundError:
            raise wire.not_found() from None
        self._wake()
        return operation(job, None)

    def get_batch(self, job_id: str) -> dict[str, Any]:
        """The operation of a job."""
        return self._operation(self.jobs.get(job_id))

    def list_batches(self, query: dict[str, str]) -> dict[str, Any]:
        """A page of operations, newest first."""
        after, limit = _page(query, _BATCHES_PER_PAGE)
        jobs, position = self.jobs.list(after, limit)
        return _paged("operations", [self._operation(job) for job in jobs], position)

    def cancel_batch(self, job_id: str) -> dict[str, Any]:
        """Ask for a cancellation."""
        self.jobs.cancel(job_id)
        self._wake()
        return {}

    def delete_batch(self, job_id: str) -> dict[str, Any]:
        """Delete a job and its output; it is not cancelled first."""
        self.jobs.delete(job_id)
        return {}

    def output(self, name: str) -> Path:
        """The bytes behind `files/X:download`. Raises ApiError for everything but a batch's output."""
        job_id = name.removeprefix("files/batch-")
        if job_id == name:
            if self.files.path(name):
                raise ApiError(400, f"The file {name} was uploaded: only generated files can be downloaded.")
            raise wire.not_found()
        job = self.jobs.get(job_id)
        path = self.jobs.output_path(job_id)
        if not job.ended or not job.output or not path.exists():
            raise wire.not_found()
        return path

    # ------------------------------------------------------------ synchronous calls

    def generate(self, model: str, version: str, body: Any) -> dict[str, Any]:
        """`models/M:generateContent`: what a batch's row with this request gets."""
        name = wire.model_name(model, version, "generateContent")
        return self._replied(name, [_checked("GenerateContentRequest", body, name)])[0]

    def embed(self, model: str, version: str, body: Any) -> dict[str, Any]:
        """`models/M:embedContent`: the vector that a batch's row with this request gets."""
        name = wire.model_name(model, version, "embedContent")
        responses = self._replied(name, [_checked("EmbedContentRequest", body, name)])
        return {"embedding": responses[0]["embedding"], **_embed_usage(name, responses)}

    def embed_several(self, model: str, version: str, body: Any) -> dict[str, Any]:
        """`models/M:batchEmbedContents`: the vectors of several requests, in their order."""
        name = wire.model_name(model, version, "batchEmbedContents")
        try:
            requests = check("BatchEmbedContents", body).get("requests", [])
            for index, request in enumerate(requests):
                _check_each(request, index, name)
        except Problem as problem:
            raise wire.bad_body(problem) from None
        responses = self._replied(name, requests)
        vectors = [response["embedding"] for response in responses]
        return {"embeddings": vectors, **_embed_usage(name, responses)}

    def _replied(self, model: str, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        replies = Replies(
            model=model,
            rules=self.plan.rows_for_call(embeds=wire.embeds(model)),
            seed=self.plan.seed,
            work=wire.new_id(36),
            digest_of=self.files.digest_of,
            attempt=self._attempt,
        )
        responses = []
        for request in requests:
            reply = replies.reply(request)
            if reply.response is None:
                error = reply.error or {}
                raise wire.of_rpc(error["code"], error["message"])
            responses.append(reply.response)
        return responses

    def count_tokens(self, model: str, version: str, body: Any) -> dict[str, Any]:
        """`models/M:countTokens`."""
        wire.model_name(model, version, "countTokens")
        try:
            asked = check("CountTokensRequest", body)
            request = asked.get("generateContentRequest", asked)
            rules.request(request)
        except Problem as problem:
            raise wire.bad_body(problem) from None
        usage = answers.usage(request, answers.prompt_of(request), 0)
        return {"totalTokens": usage["promptTokenCount"], "promptTokensDetails": usage["promptTokensDetails"]}

    # ------------------------------------------------------------ files

    def list_files(self, query: dict[str, str], base_url: str) -> dict[str, Any]:
        """A page of uploads, newest first."""
        after, limit = _page(query, _FILES_PER_PAGE)
        files, position = self.files.list(after, limit, base_url)
        return _paged("files", files, position)

    # ------------------------------------------------------------ within

    def _operation(self, job: Job) -> dict[str, Any]:
        if job.input_file or not (job.ended and job.output):
            return operation(job, None)
        lines = self.jobs.output_path(job.id).read_bytes().splitlines()
        return operation(job, [orjson.loads(line) for line in lines])

    def _checked_file(self, name: str, model: str) -> tuple[Path, int]:
        path = self.files.path(name)
        if path is None:
            raise wire.not_found()
        number = 0
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    rules.row(line, model)
                except Problem as problem:
                    raise ApiError(400, f"Error on line {number}: {problem.message}") from None
        if not number:
            raise ApiError(400, "The input file has no requests.")
        return path, number


def _checked(message: str, body: Any, model: str) -> dict[str, Any]:
    """The canonical form of a synchronous call's body. Raises ApiError."""
    try:
        found: dict[str, Any] = check(message, body)
        rules.asked(found, model)
    except Problem as problem:
        raise wire.bad_body(problem) from None
    return found


def _check_each(request: dict[str, Any], index: int, model: str) -> None:
    """Check one request of several; each has to name the model once more. Raises Problem."""
    try:
        if request.get("model") != model:
            problem = Problem(f"must be {model}, the model that is called")
            problem.path = ["model"]
            raise problem
        rules.embedding(request, model)
    except Problem as problem:
        problem.path[:0] = ["requests", index]
        raise


def _embed_usage(model: str, responses: list[dict[str, Any]]) -> dict[str, Any]:
    """What newer models count; gemini-embedding-001 says nothing."""
    if not embeddings.takes_media(model):
        return {}
    count = sum(int(response["tokenCount"]) for response in responses)
    details = [{"modality": "TEXT", "tokenCount": count}]
    return {"usageMetadata": {"promptTokenCount": count, "promptTokenDetails": details}}


def _checked_requests(requests: Any, model: str) -> list[bytes]:
    entries = requests.get("requests") if isinstance(requests, dict) else None
    path: list[str | int] = ["batch", "inputConfig", "requests", "requests"]
    if not isinstance(entries, list) or not entries:
        problem = Problem("at least one request must be given")
        problem.path = path
        raise problem
    lines = []
    try:
        for entry in entries:
            found = check("InlinedEmbedRequest" if wire.embeds(model) else "InlinedRequest", entry)
            if "request" not in found:
                raise Problem("no request is given")
            try:
                rules.asked(found["request"], model)
            except Problem as problem:
                problem.path.insert(0, "request")
                raise
            lines.append(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
    except Problem as problem:
        problem.path[:0] = [*path, len(lines)]
        raise
    return lines


def _ending(rule: JobRule | None) -> Ending:
    if rule is None or rule.kind == "stuck_pending":
        return Ending()
    partial = rule.partial or 0.0
    if rule.kind == "failed":
        message = rule.message or "Internal error encountered."
        return Ending(state="FAILED", code=rule.code or 13, message=message, partial=partial)
    if rule.kind == "cancelled":
        return Ending(state="CANCELLED", code=13, message=CANCELLED_MESSAGE, partial=partial)
    state = "EXPIRED" if rule.kind == "expired" else "PARTIALLY_SUCCEEDED"
    return Ending(state=state, partial=partial)


def _page(query: dict[str, str], default: int) -> tuple[int, int]:
    try:
        size = int(query.get("pageSize") or 0)
    except ValueError:
        raise ApiError(400, "Invalid value for page_size.") from None
    if size < 0:
        raise ApiError(400, "page_size must not be negative.")
    token = query.get("pageToken")
    return wire.page_position(token) if token else 0, min(size or default, _LARGEST_PAGE)


def _paged(name: str, entries: list[Any], position: int) -> dict[str, Any]:
    page: dict[str, Any] = {name: entries} if entries else {}
    if position:
        page["nextPageToken"] = wire.page_token(position)
    return page
