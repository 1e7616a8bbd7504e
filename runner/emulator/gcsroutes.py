"""Cloud Storage over HTTP: routes of the JSON API, multipart and resumable uploads, downloads, faults.

Speaks what google-cloud-storage 3.x asks; what it does not ask (composing, copying, access lists, other
bucket settings) is 404. No credentials are asked for.
"""

from __future__ import annotations

import base64
import email.parser
import email.policy
import re
import time
from typing import Any
from urllib.parse import quote, unquote

import orjson

from runner.emulator import gcswire
from runner.emulator.exchange import Dropped, Exchange
from runner.emulator.faults import HttpRule
from runner.emulator.gcswire import Conditions, StorageError

MAX_BODY_BYTES = 128 << 20
"""Largest body of one request; larger objects come in chunks."""
_PATHS = re.compile(
    r"/(?P<kind>upload/|download/|)storage/v1/b(?:/(?P<bucket>[^/]+)(?P<objects>/o(?:/(?P<name>[^/]+))?)?)?"
)
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_RESUME_INCOMPLETE = 308


def concerns(path: str) -> bool:
    """Whether a request path, still quoted, belongs to Cloud Storage."""
    return bool(re.match(r"/(?:upload/|download/)?storage/v1/", path))


def answer(exchange: Exchange, path: str, query: dict[str, str]) -> None:
    """Answer one request. Raises StorageError for every answer that is an error, and Dropped."""
    found = _PATHS.fullmatch(path)
    if not found:
        raise StorageError(404, "notFound", "Not Found")
    bucket, name = unquote(found["bucket"] or ""), unquote(found["name"] or "")
    uploads = found["kind"] == "upload/" and found["objects"] is not None and not name
    downloads = exchange.command == "GET" and bool(name) and query.get("alt") == "media"
    body = exchange.body(MAX_BODY_BYTES)
    rule = _struck(exchange, "storage_write" if uploads else "storage_read" if downloads else "")
    _before(rule)
    if uploads:
        _upload(exchange, bucket, query, body, rule)
    elif downloads:
        _download(exchange, bucket, name, query, rule)
    else:
        _plain(exchange, found, query, body, rule)


# ---------------------------------------------------------------- faults


def _struck(exchange: Exchange, word: str) -> HttpRule | None:
    service = exchange.server.service
    rules = [service.plan.strike_http(on, service.tally) for on in ("storage", word) if on]
    return next((rule for rule in rules if rule is not None), None)


def _before(rule: HttpRule | None) -> None:
    """Faults that strike before any work."""
    if rule is None:
        return
    if rule.kind == "reset":
        raise Dropped
    if rule.kind == "http_429":
        message = (
            "The object exceeded the rate limit for object mutation operations (create, update, delete)."
        )
        raise StorageError(429, "rateLimitExceeded", message)
    if rule.kind == "http_5xx":
        raise StorageError(rule.status or 503, "backendError", "We encountered an internal error. Try again.")
    if rule.kind == "slow":
        time.sleep(rule.delay_s or 0)


def _reply(exchange: Exchange, body: Any, rule: HttpRule | None, status: int = 200, **headers: str) -> None:
    if rule and rule.kind == "lost_reply":
        raise Dropped
    exchange.send(body, status, **headers)


# ---------------------------------------------------------------- buckets, records, listings


def _plain(
    exchange: Exchange, found: re.Match[str], query: dict[str, str], body: bytes, rule: HttpRule | None
) -> None:
    objects = exchange.server.service.objects
    bucket, name = unquote(found["bucket"] or ""), unquote(found["name"] or "")
    match exchange.command, bool(bucket), found["objects"] is not None, bool(name):
        case "POST", False, False, False:
            wanted = str(_parsed(body).get("name", ""))
            objects.create_bucket(wanted)
            _reply(exchange, objects.bucket(wanted), rule)
        case "GET", True, False, False:
            _reply(exchange, objects.bucket(bucket), rule)
        case "GET", True, True, False:
            _reply(exchange, _listing(exchange, bucket, query), rule)
        case "GET", True, True, True:
            record = objects.get(bucket, name, _conditions(query), _generation(query))
            _reply(exchange, _shown(exchange, record), rule)
        case "DELETE", True, True, True:
            objects.delete(bucket, name, _conditions(query), _generation(query))
            _reply(exchange, None, rule, 204)
        case _:
            raise StorageError(404, "notFound", "Not Found")


def _listing(exchange: Exchange, bucket: str, query: dict[str, str]) -> dict[str, Any]:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    limit = gcswire.limit_of(query.get("maxResults", ""))
    after = _position(query.get("pageToken", ""))
    records = exchange.server.service.objects.list(bucket, prefix, after, "")
    chosen, folders, last = gcswire.page(records, prefix, delimiter, limit)
    body: dict[str, Any] = {"kind": "storage#objects"}
    if chosen:
        body["items"] = [_shown(exchange, record) for record in chosen]
    if folders:
        body["prefixes"] = folders
    if last:
        body["nextPageToken"] = base64.urlsafe_b64encode(last.encode()).decode()
    return body


def _position(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError:
        raise StorageError(400, "invalid", "Invalid page token.") from None


def _shown(exchange: Exchange, record: Any) -> dict[str, Any]:
    return gcswire.shown(record, exchange.base_url(), quote(record["name"], safe=""))


def _conditions(query: dict[str, str]) -> Conditions:
    return Conditions(
        generation=gcswire.integer("ifGenerationMatch", query.get("ifGenerationMatch")),
        metageneration=gcswire.integer("ifMetagenerationMatch", query.get("ifMetagenerationMatch")),
    )


def _generation(query: dict[str, str]) -> int | None:
    return gcswire.integer("generation", query.get("generation"))


# ---------------------------------------------------------------- uploads


def _upload(
    exchange: Exchange, bucket: str, query: dict[str, str], body: bytes, rule: HttpRule | None
) -> None:
    objects = exchange.server.service.objects
    kind, session = query.get("uploadType"), query.get("upload_id", "")
    if exchange.command == "POST" and kind == "multipart":
        wanted, data = _multipart(exchange.headers.get("Content-Type", ""), body)
        record = objects.put(bucket, _named(wanted, query), data, _conditions(query))
        _reply(exchange, _shown(exchange, record), rule)
    elif exchange.command == "POST" and kind == "media":
        wanted = {"contentType": exchange.headers.get("Content-Type", "")}
        record = objects.put(bucket, _named(wanted, query), body, _conditions(query))
        _reply(exchange, _shown(exchange, record), rule)
    elif exchange.command == "POST" and kind == "resumable":
        wanted = _parsed(body or b"{}")
        wanted.setdefault("contentType", exchange.headers.get("X-Upload-Content-Type", ""))
        begun = objects.start(bucket, _named(wanted, query), _conditions(query))
        address = f"{exchange.base_url()}/upload/storage/v1/b/{quote(bucket, safe='')}/o"
        _reply(exchange, {}, rule, Location=f"{address}?uploadType=resumable&upload_id={begun}")
    elif exchange.command == "PUT" and session:
        _chunk(exchange, session, body, rule)
    elif exchange.command == "DELETE" and session:
        objects.abandon(session)
        _reply(exchange, None, rule, 499)
    else:
        raise StorageError(400, "invalid", f"Unsupported uploadType: {kind}")


def _chunk(exchange: Exchange, session: str, body: bytes, rule: HttpRule | None) -> None:
    objects = exchange.server.service.objects
    found = _CONTENT_RANGE.fullmatch(
        exchange.headers.get("Content-Range", f"bytes 0-{len(body) - 1}/{len(body)}")
    )
    if not found or (found[1] is not None and int(found[2]) - int(found[1]) + 1 != len(body)):
        raise StorageError(400, "invalid", "Failed to parse Content-Range header.")
    hashes = dict(
        part.strip().partition("=")[::2] for part in exchange.headers.get("X-Goog-Hash", "").split(",")
    )
    total = None if found[3] == "*" else int(found[3])
    record = objects.append(session, int(found[1] or 0), body, total, hashes.get("crc32c", ""))
    if record is not None:
        _reply(exchange, _shown(exchange, record), rule)
        return
    received = objects.received(session)
    headers = {"Range": f"bytes=0-{received - 1}"} if received else {}
    _reply(exchange, None, rule, status=_RESUME_INCOMPLETE, **headers)


def _named(wanted: dict[str, Any], query: dict[str, str]) -> dict[str, Any]:
    name = wanted.get("name") or query.get("name")
    if not isinstance(name, str) or not 1 <= len(name.encode()) <= 1024 or "\r" in name or "\n" in name:
        raise StorageError(400, "required", "Required parameter: name")
    return {**wanted, "name": name}


def _multipart(content_type: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """The object resource and the bytes of a `multipart/related` body."""
    parser = email.parser.BytesHeaderParser(policy=email.policy.HTTP)
    boundary = parser.parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode()).get_boundary()
    parts = body.split(b"--" + (boundary or "").encode()) if boundary else []
    if len(parts) < 3:
        raise StorageError(400, "badContent", "Malformed multipart body.")
    first, rest = parts[1], body[body.index(parts[1]) + len(parts[1]) :]
    # The bytes may hold the boundary; only the last one ends them.
    opened = rest.partition(b"--" + (boundary or "").encode())[2]
    closed = opened.rpartition(b"\r\n--" + (boundary or "").encode() + b"--")[0]
    headers, _, data = closed.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    wanted = _parsed(first.partition(b"\r\n\r\n")[2])
    kind = parser.parsebytes(headers + b"\r\n\r\n").get("Content-Type", "")
    return {"contentType": str(kind), **wanted}, data


# ---------------------------------------------------------------- downloads


def _download(
    exchange: Exchange, bucket: str, name: str, query: dict[str, str], rule: HttpRule | None
) -> None:
    found = exchange.server.service.objects.open(bucket, name, _conditions(query), _generation(query))
    with found.stream:
        record, size = found.record, found.record["byte_count"]
        wanted = exchange.headers.get("Range", "")
        begin, end = _span(wanted, size)
        if begin >= size and wanted:
            headers = {"Content-Range": f"bytes */{size}"}
            exchange.send({}, 416, **headers)
            return
        if rule and rule.kind == "lost_reply":
            raise Dropped
        found.stream.seek(begin)
        exchange.send_response(206 if wanted else 200)
        exchange.send_header("Content-Type", record["content_type"])
        exchange.send_header("Content-Length", str(end - begin))
        exchange.send_header("ETag", gcswire.etag(record))
        exchange.send_header("X-Goog-Generation", str(record["generation"]))
        exchange.send_header("X-Goog-Metageneration", "1")
        exchange.send_header("X-Goog-Storage-Class", "STANDARD")
        exchange.send_header("X-Goog-Stored-Content-Length", str(size))
        exchange.send_header("X-Goog-Hash", f"crc32c={record['crc32c']},md5={record['md5']}")
        if wanted:
            exchange.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        exchange.end_headers()
        left = (end - begin) // 2 if rule and rule.kind == "cut_body" else end - begin
        while left and (block := found.stream.read(min(left, 1 << 20))):
            exchange.wfile.write(block)
            left -= len(block)
        if rule and rule.kind == "cut_body":
            exchange.wfile.flush()
            exchange.drop(abruptly=False)


def _span(wanted: str, size: int) -> tuple[int, int]:
    """First byte and the one after the last of a Range header."""
    found = _RANGE.fullmatch(wanted)
    if not wanted:
        return 0, size
    if not found or not (found[1] or found[2]):
        raise StorageError(400, "invalid", "Invalid Range header.")
    if not found[1]:
        return max(0, size - int(found[2])), size
    return int(found[1]), min(size, int(found[2]) + 1 if found[2] else size)


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise StorageError(400, "parseError", "Parse Error")
    return found
