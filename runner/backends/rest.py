"""Calls that the SDK's typed methods lose something of: sent through its client, read as plain JSON.

The address, the credentials and the timeout are the SDK's; a call is sent once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import quote, urlencode

from runner.backends import geminiwire, sdk
from runner.errors import BackendError
from runner.model import Json

_PAGE_SIZE = 100


class Rest:
    """One service, behind one client of the SDK."""

    def __init__(self, client: Any, explain: sdk.Explain) -> None:
        """`client` is a `google.genai.Client`; `explain` tells the service's refusals."""
        self._client = client
        self._explain = explain

    def speaking(self, what: str) -> AbstractContextManager[None]:
        """See `sdk.speaking`."""
        return sdk.speaking(what, self._explain)

    def json(self, method: str, path: str, body: Mapping[str, Json] | None = None) -> dict[str, Json]:
        """The reply to one request. Raises what `speaking` and `sdk.submitting` are for."""
        value = json.loads(self._text(method, path, body) or "{}")
        if not isinstance(value, dict):
            raise ValueError(f"the reply is not an object: {str(value)[:200]}")
        return value

    def listed(self, collection: str, field: str, chosen: Mapping[str, str] = {}) -> Iterator[Json]:
        """What the pages of a listing of jobs hold in `field`. Raises BackendError."""
        token = ""
        seen: set[str] = set()
        while True:
            query = {"pageSize": str(_PAGE_SIZE), **chosen} | ({"pageToken": token} if token else {})
            with self.speaking("cannot list the jobs"):
                page = self.json("get", f"{collection}?{urlencode(query)}")
                bodies = list(page.get(field) or [])
                token = str(page.get("nextPageToken") or "")
            yield from bodies
            if not token:
                return
            if token in seen:
                raise BackendError(
                    "cannot list the jobs: the service goes round in its pages", transient=True
                )
            seen.add(token)

    def answer(self, model: str, place: str, method: str, row: Mapping[str, Any], body: Json) -> bytes:
        """See `Backend.answer`: `row` is the request's line, `body` what is sent to `method` of `place`."""
        from google.genai import errors

        what = f"cannot ask {model} for {row['key']}"
        with self.speaking(what):
            try:
                text = self._text("post", f"{quote(place)}:{method}", body)
            except errors.APIError as error:
                own = geminiwire.row_error(error.code, error.details, row["request"])
                if own is None:
                    raise
                return geminiwire.response_line(row["key"], "error", json.dumps(own))
            except sdk.unconnected() as error:
                raise BackendError(
                    f"{what}: no connection: {error}", status="UNAVAILABLE", transient=True
                ) from error
            return geminiwire.response_line(row["key"], "response", text)

    def _text(self, method: str, path: str, body: Mapping[str, Json] | None) -> str:
        reply = self._client._api_client.request(method, path, dict(body or {}))
        return reply.body or ""
