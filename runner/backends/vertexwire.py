"""Vertex AI's JSON, read and written. Pure.

Jobs are read from raw JSON, which has labels and counts that the SDK's `BatchJob` drops.
Source: the discovery document of aiplatform v1beta1, revision 20261106; requests of google-genai 3.4.0,
recorded on loopback; recorded replies of the service, 2026-09.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from runner.backends import geminiwire
from runner.backends.sdk import LOG_IN
from runner.backendspec import TOKEN_LABEL
from runner.errors import BackendError
from runner.model import Job, JobState, Json

LISTED = f"labels.{TOKEN_LABEL}:*"
"""Filter of a listing: every job that gbrun made, of whatever state, so that one known to exist is seen."""
_JOB_NAME = re.compile(r"(?:projects/[^/]+/locations/[^/]+/batchPredictionJobs/)?[0-9]+")
_PROJECT_NUMBER = re.compile(r"projects/([0-9]+)/")
_OWN_MODELS = "publishers/google/models/"


# ---------------------------------------------------------------- calls


def model_path(model: str) -> str:
    """`publishers/google/models/...`; a path is taken as it is."""
    return model if "/" in model else _OWN_MODELS + model


def create_body(
    model: str, upload_uri: str, output_prefix: str, display_name: str, labels: Mapping[str, str]
) -> dict[str, Json]:
    """The body that makes a job of a staged file, whose display name is also its label."""
    return {
        "model": model_path(model),
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [upload_uri]}},
        "displayName": display_name,
        "outputConfig": {
            "predictionsFormat": "jsonl",
            "gcsDestination": {"outputUriPrefix": output_prefix},
        },
        "labels": {**labels, TOKEN_LABEL: display_name},
    }


def answer_call(task: str, request: Mapping[str, Json]) -> tuple[str, dict[str, Json]]:
    """(method, body) that asks one request of a batch file synchronously.

    Embeddings spell the config's name otherwise there than in a file.
    """
    if task != "embed_content":
        return "generateContent", dict(request)
    body = {("embedContentConfig" if k == "embed_content_config" else k): v for k, v in request.items()}
    return "embedContent", body


def is_job_name(name: Json) -> bool:
    """Whether this is the name of a job, whole or its number alone."""
    return isinstance(name, str) and _JOB_NAME.fullmatch(name) is not None


# ---------------------------------------------------------------- refusals


def problem(what: str, http_status: int, details: Json) -> BackendError:
    """The service's refusal in its own words, and what to look at."""
    found = geminiwire.problem(what, http_status, details)
    said = json.dumps(details)
    found.hint = ""
    if http_status == 401:
        found.hint = LOG_IN
    elif "SERVICE_DISABLED" in said or "has not been used in project" in said:
        found.hint = "gcloud services enable aiplatform.googleapis.com, wait some minutes, apply again"
    elif http_status == 403:
        found.hint = "check that you have roles/aiplatform.user in the project"
    elif http_status == 404 and "ublisher" in said:
        found.hint = "check model and location: newer models are in `global`, `us` and `eu` only"
    return found


def advice(code: int, job_name: str) -> str:
    """What to look at where a job failed as a whole with this google.rpc code; may be empty.

    Source: failed jobs of the live service, 2026-09.
    """
    number = _PROJECT_NUMBER.match(job_name)
    agent = f"service-{number[1] if number else 'PROJECT_NUMBER'}@gcp-sa-aiplatform.iam.gserviceaccount.com"
    if code == 3:
        return (
            "the importer takes no file with one line that does not fit: `gbrun validate --backend vertex`"
            " tells what it is known to refuse"
        )
    if code == 7:
        return (
            f"the service agent {agent}, not you, needs roles/storage.objectUser on the bucket of"
            " staging_uri; where the API was enabled just now, it takes some minutes to exist"
        )
    if code in (5, 9):
        return (
            "check that the bucket of staging_uri exists and lies in a region that the location can use,"
            " and that the model is served there"
        )
    return ""


# ---------------------------------------------------------------- jobs


def read_job(body: Mapping[str, Any], *, listed: bool = False) -> Job:
    """A job. Raises `BackendError` for a state that gbrun does not know, unless it is one of those
    `listed`."""
    name = str(body["name"])
    word = str(body.get("state") or "").removeprefix("JOB_STATE_")
    if word not in geminiwire.STATES and not listed:
        raise BackendError(
            f"the job {name} is in a state that is not known here: {word or '(none)'}",
            hint="look for a newer version of gbrun",
        )
    state = geminiwire.STATES.get(word, JobState.UNKNOWN)
    error = body.get("error") or {}
    code, message = int(error.get("code") or 0), str(error.get("message") or "")
    looked_at = advice(code, name)
    return Job(
        job_name=name,
        display_name=str(body.get("displayName") or ""),
        state=state,
        model=str(body.get("model") or "").removeprefix(_OWN_MODELS),
        output_name=output_prefix(body) if state.terminal else "",
        error_code=code,
        error_message=f"{message} ({looked_at})" if looked_at else message,
        create_time=str(body.get("createTime") or ""),
        end_time=str(body.get("endTime") or ""),
        counts=_counts(body.get("completionStats") or {}),
    )


def output_prefix(body: Mapping[str, Any]) -> str:
    """What the names of a job's output begin with, ending in `/`; empty where it goes elsewhere."""
    config = body.get("outputConfig") or {}
    prefix = str((config.get("gcsDestination") or {}).get("outputUriPrefix") or "")
    return f"{prefix.rstrip('/')}/" if prefix else ""


def output_folder(body: Mapping[str, Any]) -> str:
    """The folder that this very job wrote to, ending in `/`; empty where it did not say."""
    folder = str((body.get("outputInfo") or {}).get("gcsOutputDirectory") or "")
    return f"{folder.rstrip('/')}/" if folder else ""


def _counts(stats: Mapping[str, Any]) -> dict[str, int]:
    """Counts as far as they are known: an incomplete count of -1 means that it is not."""
    fields = {"successful": "successfulCount", "failed": "failedCount", "pending": "incompleteCount"}
    found = {name: int(stats[field]) for name, field in fields.items() if stats.get(field) is not None}
    counts = {name: count for name, count in found.items() if count >= 0}
    return {"request": sum(counts.values()), **counts} if counts else {}


def is_output(name: str) -> bool:
    """Whether an object below a job's prefix holds rows; there may be one or many, of changing names."""
    return name.endswith(".jsonl") and "prediction" in name
