"""HTTP: routes, keys, and the resumable upload protocol.

Binds to nothing by itself. Every answer is 200 or an error envelope, as the SDK demands; a request
that no route knows is 404.

Source: request lines and headers of google-genai 3.4.0, recorded on loopback.
"""

from __future__ import annotations

import re
import shutil
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import orjson

from runner.emulator import gcsroutes, vertexroutes, wire
from runner.emulator.exchange import Dropped, Exchange
from runner.emulator.faults import HttpRule
from runner.emulator.messages import Problem, check
from runner.emulator.wire import ApiError

_VERSION = r"(?P<version>v1|v1beta|v1beta1)"
_ROUTES: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (method, re.compile(f"/{path}"), name)
    for method, path, name in (
        ("POST", rf"upload/{_VERSION}/files", "upload"),
        ("GET", rf"(?:download/)?{_VERSION}/(?P<file>files/[^/:]+):download", "download"),
        ("GET", rf"{_VERSION}/files", "list_files"),
        ("GET", rf"{_VERSION}/(?P<file>files/[^/:]+)", "get_file"),
        ("DELETE", rf"{_VERSION}/(?P<file>files/[^/:]+)", "delete_file"),
        ("GET", rf"{_VERSION}/batches", "list_batches"),
        ("GET", rf"{_VERSION}/batches/(?P<job>[^/:]+)", "get_batch"),
        ("DELETE", rf"{_VERSION}/batches/(?P<job>[^/:]+)", "delete_batch"),
        ("POST", rf"{_VERSION}/batches/(?P<job>[^/:]+):cancel", "cancel_batch"),
        ("POST", rf"{_VERSION}/(?P<model>models/[^/:]+):batchGenerateContent", "create_batch"),
        ("POST", rf"{_VERSION}/(?P<model>models/[^/:]+):asyncBatchEmbedContent", "create_embed_batch"),
        ("POST", rf"{_VERSION}/(?P<model>models/[^/:]+):generateContent", "generate"),
        ("POST", rf"{_VERSION}/(?P<model>models/[^/:]+):embedContent", "embed"),
        ("POST", rf"{_VERSION}/(?P<model>models/[^/:]+):batchEmbedContents", "embed_several"),
        ("POST", rf"{_VERSION}/(?P<model>models/[^/:]+):countTokens", "count_tokens"),
    )
)
_OPERATIONS = {
    "download": "download", "list_files": "list", "get_file": "get", "delete_file": "delete",
    "list_batches": "list", "get_batch": "get", "delete_batch": "delete", "cancel_batch": "cancel",
    "create_batch": "create", "create_embed_batch": "create",
    "generate": "generate", "embed": "generate", "embed_several": "generate", "count_tokens": "generate",
}  # fmt: skip
"""Route to the word that fault rules use for it; uploads are counted by their own code."""


class Handler(Exchange):
    """The routes of the Developer API, and whom the others go to."""

    def do_GET(self) -> None:
        """Answer."""
        self._answer()

    def do_POST(self) -> None:
        """Answer."""
        self._answer()

    def do_DELETE(self) -> None:
        """Answer."""
        self._answer()

    def do_PUT(self) -> None:
        """Answer."""
        self._answer()

    # ------------------------------------------------------------ the way of one request

    def _answer(self) -> None:
        length = self.headers.get("Content-Length") or "0"
        self.unread = int(length) if length.isdecimal() else 1
        try:
            if not length.isdecimal():
                raise ApiError(400, "Content-Length is not a number.")
            parts = urlsplit(self.path)
            self._query = dict(parse_qsl(parts.query))
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                raise ApiError(411, "Content-Length is required.")
            if gcsroutes.concerns(parts.path):
                # Names of objects may hold a quoted `/`.
                gcsroutes.answer(self, parts.path, self._query)
                return
            if vertexroutes.concerns(parts.path):
                vertexroutes.answer(self, unquote(parts.path), self._query)
                return
            self._dispatch(unquote(parts.path))
        except ApiError as error:
            self.send(error.body(), error.http_status)
        except (Dropped, ConnectionError):
            self.drop()

    def _dispatch(self, path: str) -> None:
        name, found = _route(self.command, path)
        if name == "upload" and "upload_id" in self._query:
            self._chunk(self._query["upload_id"])
            return
        self._check_key()
        if name == "upload":
            self._start_upload()
            return
        body = self.body()
        rule = self.server.service.plan.strike_http(_OPERATIONS[name], self.server.service.tally)
        self.before(rule)
        if name == "download":
            self._download(found["file"], rule)
            return
        self.reply(self._call(name, found, body), rule)

    def _call(self, name: str, found: re.Match[str], body: bytes) -> Any:
        service = self.server.service
        if "model" in found.re.groupindex:
            # What is asked of a model has the name of the method that answers it.
            return getattr(service, name)(found["model"], found["version"], _parsed(body))
        match name:
            case "get_batch":
                return service.get_batch(found["job"])
            case "list_batches":
                return service.list_batches(self._query)
            case "cancel_batch":
                return service.cancel_batch(found["job"])
            case "delete_batch":
                return service.delete_batch(found["job"])
            case "list_files":
                return service.list_files(self._query, self.base_url())
            case "get_file":
                return service.files.get(found["file"], self.base_url())
            case _:
                service.files.delete(found["file"])
                return {}

    def _check_key(self) -> None:
        key = self.headers.get("x-goog-api-key") or self._query.get("key")
        if not key:
            raise ApiError(
                403,
                "Method doesn't allow unregistered callers (callers without established identity). Please "
                "use API Key or other form of API consumer identity to call this API.",
            )
        if key == "invalid":
            kind = "type.googleapis.com/google.rpc.ErrorInfo"
            info = {"@type": kind, "reason": "API_KEY_INVALID", "domain": "googleapis.com"}
            raise ApiError(400, "API key not valid. Please pass a valid API key.", [info])

    # ------------------------------------------------------------ uploads and downloads

    def _start_upload(self) -> None:
        """The `start` command of a resumable upload."""
        if self.headers.get("X-Goog-Upload-Protocol") != "resumable":
            raise ApiError(400, "Only resumable uploads are supported here.")
        body = _parsed(self.body() or b"{}")
        self.before(self._struck_upload("start"))
        try:
            file = check("CreateFile", body).get("file", {})
        except Problem as problem:
            raise wire.bad_body(problem) from None
        length = self.headers.get("X-Goog-Upload-Header-Content-Length", "-1")
        if not re.fullmatch(r"-1|[0-9]{1,18}", length):
            raise ApiError(400, "Invalid X-Goog-Upload-Header-Content-Length.")
        mime_type = self.headers.get("X-Goog-Upload-Header-Content-Type", "")
        upload = self.server.service.files.start(file, int(length), mime_type)
        url = f"{self.base_url()}/upload/v1beta/files?upload_id={quote(upload)}&upload_protocol=resumable"
        headers = {"x-goog-upload-url": url, "x-goog-upload-status": "active"}
        self.send({}, 200, **headers)

    def _chunk(self, upload: str) -> None:
        """One chunk, named by the upload's URL alone: the SDK sends no key here."""
        files = self.server.service.files
        commands = {word.strip() for word in self.headers.get("X-Goog-Upload-Command", "").split(",")}
        if not commands or not commands <= {"upload", "finalize", "query"}:
            raise ApiError(400, "Unknown X-Goog-Upload-Command.")
        rule = self._struck_upload("end") if "finalize" in commands else None
        self.before(rule)
        if "upload" in commands:
            offset = self.headers.get("X-Goog-Upload-Offset", "")
            if not offset.isdecimal():
                raise ApiError(400, "X-Goog-Upload-Offset is missing.")
            count, self.unread = self.unread, 0
            try:
                files.append(upload, int(offset), self.rfile, count)
            except ApiError:
                self.unread = count
                raise
        headers = {"x-goog-upload-size-received": str(files.received(upload))}
        if "finalize" not in commands:
            self.send({}, 200, **headers, **{"x-goog-upload-status": "active"})
            return
        file = files.get(files.finalize(upload), self.base_url())
        body = {} if rule and rule.kind == "no_file" else {"file": file}
        self.reply(body, rule, **headers, **{"x-goog-upload-status": "final"})

    def _struck_upload(self, moment: str) -> HttpRule | None:
        service = self.server.service
        return service.plan.strike_http("upload", service.tally, uploading=moment)

    def _download(self, name: str, rule: HttpRule | None) -> None:
        path = self.server.service.output(name)
        if rule and rule.kind == "lost_reply":
            raise Dropped
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(size))
            self.end_headers()
            if rule and rule.kind == "cut_body":
                self.wfile.write(stream.read(size // 2))
                self.wfile.flush()
                self.drop(abruptly=False)
                return
            shutil.copyfileobj(stream, self.wfile, 1 << 20)


def _route(command: str, path: str) -> tuple[str, re.Match[str]]:
    for method, pattern, name in _ROUTES:
        found = pattern.fullmatch(path) if method == command else None
        if found:
            return name, found
    raise wire.not_found()


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"Invalid JSON payload received. {error.msg} at column {error.colno}.") from None
