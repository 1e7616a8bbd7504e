"""What every backend of Google's SDK shares: a connection of our own below it, and its errors in our words.

The SDK is imported when a backend is made, and never before: that takes most of a second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from runner.errors import BackendError, SubmissionDeferred, SubmissionRefused, SubmissionUnknown
from runner.model import Json

if TYPE_CHECKING:
    import httpx2

REFUSED = {400, 401, 403, 404}
"""HTTP codes of a create call that certainly made no job."""
LOG_IN = "gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS to a key file"
"""What to do where there are no credentials of Google Cloud."""
# The SDK warns where both key variables are set; whoever sets up logging decides if that shows.
logging.getLogger("google_genai").addHandler(logging.NullHandler())

Explain = Callable[[str, int, Json], BackendError]
"""(what was tried, HTTP status, the reply's JSON) to the service's refusal in its own words."""


def connection(host: str, timeout_s: float) -> tuple[httpx2.Client, Any]:
    """A client for the SDK to use, and its TLS settings.

    Of our own: the SDK's hands no download out as a stream, and follows redirects, which could send a
    create twice. A proxy cannot reach our loopback.
    """
    import httpx2

    trust_env = not is_loopback(host)
    tls = httpx2.create_ssl_context(trust_env=trust_env)
    client = httpx2.Client(timeout=timeout_s, follow_redirects=False, trust_env=trust_env, verify=tls)
    return client, tls


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def speaking(what: str, explain: Explain) -> Iterator[None]:
    """Turn what the SDK and the connection raise into `BackendError`; not for creating a job."""
    import httpx2
    from google.auth.exceptions import GoogleAuthError
    from google.genai import errors

    try:
        yield
    except errors.APIError as error:
        raise explain(what, error.code, error.details) from error
    except httpx2.HTTPError as error:
        raise BackendError(f"{what}: {error or type(error).__name__}", transient=True) from error
    except GoogleAuthError as error:
        raise _unauthorized(BackendError, what, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        # What the SDK raises where a reply lacks what it takes for granted.
        raise BackendError(
            f"{what}: the reply cannot be understood: {error!r}"[:500], transient=True
        ) from error


@contextmanager
def submitting(what: str, explain: Explain) -> Iterator[None]:
    """The same for the one call that creates a job: what is raised says whether there may be one."""
    from google.auth.exceptions import GoogleAuthError
    from google.genai import errors

    try:
        yield
    except errors.APIError as error:
        problem = explain(what, error.code, error.details)
        kind: type[BackendError] = SubmissionUnknown
        if problem.http_status in REFUSED:
            kind = SubmissionRefused
        elif problem.http_status == 429 and problem.status:
            kind = SubmissionDeferred
        raise kind(
            problem.message,
            hint=problem.hint,
            status=problem.status,
            http_status=problem.http_status,
            transient=kind is SubmissionDeferred,
        ) from error
    except unconnected() as error:
        raise SubmissionRefused(f"{what}: no connection: {error}", transient=True) from error
    except GoogleAuthError as error:
        # A request does not leave without a token.
        raise _unauthorized(SubmissionRefused, what, error) from error
    except Exception as error:
        # Whatever it is, it came after the request may have left: to call it harmless is to
        # risk paying twice.
        raise SubmissionUnknown(f"{what}: {error or type(error).__name__}") from error


def unconnected() -> tuple[type[Exception], ...]:
    """What ends a call before the first byte of its request has left."""
    import httpx2

    return (
        httpx2.ConnectError,
        httpx2.ConnectTimeout,
        httpx2.PoolTimeout,
        httpx2.ProxyError,
        httpx2.UnsupportedProtocol,
    )


def _unauthorized(kind: type[BackendError], what: str, error: Exception) -> BackendError:
    from google.auth.exceptions import TransportError

    words = str(error.args[0] if error.args else error)[:300]
    return kind(
        f"{what}: no access token: {words}",
        hint=LOG_IN,
        status="UNAUTHENTICATED",
        transient=isinstance(error, TransportError),
    )
