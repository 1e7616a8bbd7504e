"""A connection to BigQuery, and its library's errors in our words. The library is loaded late.

Source: google-cloud-bigquery 3.47.0; https://cloud.google.com/bigquery/docs/error-messages and
/docs/access-control, read 2026-11-21. Tried against an emulator only, never against the service.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from runner.errors import GbrunError

EMULATOR_VARIABLE = "BIGQUERY_EMULATOR_HOST"
"""Address of an emulator instead of the service; the library reads it, and no credentials are asked for."""
PATIENCE_S = 60.0
"""How long a call is repeated for that fails in a way that may pass."""
_LOG_IN = "gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS to a key file"
_QUOTA = ("quotaExceeded", "rateLimitExceeded", "jobRateLimitExceeded")


@contextmanager
def connected(project: str | None, what: str, kind: type[GbrunError] = GbrunError) -> Iterator[Any]:
    """A client that is closed at the end. Nothing is asked before the first call.

    Without `project` it is the environment's. Raises `kind`, with `what` before its words, where the library,
    the credentials or the project are missing.
    """
    try:
        from google.auth.credentials import AnonymousCredentials
        from google.auth.exceptions import GoogleAuthError
        from google.cloud import bigquery
    except ImportError as error:
        raise kind(
            f"{what}: the package google-cloud-bigquery is not installed",
            hint="pip install 'gbrun[bigquery]'",
        ) from error
    emulator = os.environ.get(EMULATOR_VARIABLE)
    anonymous: Any = AnonymousCredentials
    try:
        client = bigquery.Client(project=project, credentials=anonymous() if emulator else None)
    except GoogleAuthError as error:
        raise kind(f"{what}: there are no credentials", hint=_LOG_IN) from error
    except OSError as error:
        # The only thing that it says in this way.
        raise kind(
            f"{what}: nothing says which project is billed",
            hint="write `project:` beside the query, or set GOOGLE_CLOUD_PROJECT",
        ) from error
    if emulator and _is_loopback(urlsplit(emulator).hostname or ""):
        client._http.trust_env = False
    try:
        yield client
    finally:
        client.close()


@contextmanager
def asking(
    what: str, kind: type[GbrunError] = GbrunError, *, role: str, missing: str = "", wrong: str = ""
) -> Iterator[None]:
    """Turn the library's errors into `kind`, with `what` before their words.

    `role` is what a right that is missing comes with; `missing` and `wrong` are what to do where something
    is not there, or is refused as it was asked for.
    """
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError

    try:
        yield
    except (GoogleAPIError, GoogleAuthError, OSError) as raised:
        # Of calls that were repeated in vain, the last answer.
        cause = getattr(raised, "cause", None)
        error = cause if isinstance(cause, Exception) else raised
        status = status_of(error)
        said = f"{what}: {_said(error)}"
        if isinstance(error, DefaultCredentialsError):
            raise kind(f"{what}: there are no credentials", hint=_LOG_IN) from error
        if status == 401 or (isinstance(error, GoogleAuthError) and not isinstance(error, TransportError)):
            raise kind(said, hint=_LOG_IN) from error
        if status == 403 and _reason(error) in _QUOTA:
            raise kind(said, hint="a quota of the project is used up: run the command again later") from error
        if status == 403:
            raise kind(said, hint=f"grant {role} to the account that runs gbrun") from error
        if status == 404:
            raise kind(said, hint=missing or "look at project, dataset and table") from error
        if status == 412:
            raise kind(f"{what}: it was changed meanwhile", hint="run the command again") from error
        if status == 400:
            raise kind(said, hint=wrong) from error
        if status:
            raise kind(f"{said} ({status})", hint="run the command again") from error
        emulator = os.environ.get(EMULATOR_VARIABLE)
        raise kind(
            f"{what}: BigQuery cannot be reached ({type(error).__name__})",
            hint=f"{EMULATOR_VARIABLE} is {emulator!r}: is an emulator running there?"
            if emulator
            else "look at the network, then run the command again",
        ) from error


def patience() -> Any:
    """How calls are repeated, as the library takes it."""
    from google.cloud.bigquery.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(PATIENCE_S)


def status_of(error: BaseException) -> int:
    """The HTTP status of an error of the library, 0 for one that has none."""
    found = getattr(error, "code", None)
    return int(found) if isinstance(found, int) else 0


def _reason(error: BaseException) -> str:
    errors = getattr(error, "errors", None) or [{}]
    return str(errors[0].get("reason", "")) if isinstance(errors[0], dict) else ""


def _said(error: BaseException) -> str:
    words = str(getattr(error, "message", "") or error)
    words = re.sub(r"^(?:\d+ )?[A-Z]+ https?://\S+: ", "", words).strip()
    return words.splitlines()[0][:300] if words else type(error).__name__


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
