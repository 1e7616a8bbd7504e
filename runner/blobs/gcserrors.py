"""Errors of the Cloud Storage library as ours: what, where, which value, one next step."""

from __future__ import annotations

import os
import re

from runner.blobs import BlobMissing
from runner.errors import GbrunError, StateError

EMULATOR_VARIABLE = "STORAGE_EMULATOR_HOST"
"""Address of an emulator instead of the service; the library reads it, and asks for no credentials then."""
_ROLE = "roles/storage.objectUser"


def status(error: BaseException) -> int:
    """The HTTP status behind an error of the library, 0 where there is none."""
    from google.api_core.exceptions import GoogleAPICallError, RetryError

    if isinstance(error, RetryError) and error.cause is not None:
        return status(error.cause)
    if isinstance(error, GoogleAPICallError):
        return int(error.code or 0)
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def _said(error: BaseException) -> str:
    """The service's own words, without the request's address."""
    cause = getattr(error, "cause", None) or error
    words = str(getattr(cause, "message", "") or cause)
    return re.sub(r"^[A-Z]+ https?://\S+: ", "", words).strip()[:300] or type(cause).__name__


def translated(
    error: Exception,
    what: str,
    bucket: str,
    *,
    missing: bool,
    kind: type[GbrunError] = StateError,
    elsewhere: str = "name another with `state:`",
) -> GbrunError | None:
    """An error of the library as a `kind`, or None for what is none of its errors.

    `missing` turns an object that is not there into BlobMissing. `elsewhere` is what can be done where there
    is no such bucket, other than making it.
    """
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError, TransportError
    from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

    if isinstance(error, DataCorruption):
        return kind(f"{what}: bytes were damaged on the way", hint="run the command again")
    if isinstance(error, DefaultCredentialsError):
        return kind(
            f"{what}: there are no credentials",
            hint="gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS to a key file",
        )
    if isinstance(error, RefreshError):
        return kind(
            f"{what}: the credentials are no longer accepted ({_said(error)})",
            hint="gcloud auth application-default login",
        )
    code = status(error)
    if code:
        return _of_status(code, error, what, bucket, missing, kind, elsewhere)
    if isinstance(error, OSError | TransportError | GoogleAPIError):
        cause = getattr(error, "cause", None) or error
        emulator = os.environ.get(EMULATOR_VARIABLE)
        return kind(
            f"{what}: Cloud Storage cannot be reached ({type(cause).__name__})",
            hint=f"{EMULATOR_VARIABLE} is {emulator!r}: is an emulator running there?"
            if emulator
            else "look at the network, then run the command again",
        )
    if isinstance(error, GoogleAuthError | InvalidResponse):
        return kind(f"{what}: {_said(error)}", hint="gcloud auth application-default login")
    return None


def _of_status(
    code: int,
    error: Exception,
    what: str,
    bucket: str,
    missing: bool,
    kind: type[GbrunError],
    elsewhere: str,
) -> GbrunError:
    if code == 404 and missing and "bucket does not exist" not in _said(error):
        return BlobMissing(what)
    if code == 404:
        return kind(
            f"{what}: there is no bucket {bucket!r}",
            hint=f"make it (gcloud storage buckets create gs://{bucket}), or {elsewhere}",
        )
    if code == 403:
        return kind(
            f"{what}: no right to do that ({_said(error)})",
            hint=f"grant {_ROLE} on gs://{bucket} to the account that runs gbrun",
        )
    if code == 401:
        return kind(
            f"{what}: the credentials are not accepted (401)", hint="gcloud auth application-default login"
        )
    if code == 412:
        return kind(f"{what}: it was changed while it was being read", hint="run the command again")
    return kind(f"{what}: Cloud Storage answers {code} ({_said(error)})", hint="run the command again")
