"""Uploaded files: their records, their bytes, and the resumable protocol's sessions.

Bytes are moved into place by rename before their record is written, so a record never leads to
nothing. Files vanish when their time is over. Outputs of batches are no files here: `jobs.py`
keeps them, as the service itself answers only `:download` for them.

Source: recorded uploads of google-genai 3.4.0; https://ai.google.dev/gemini-api/docs/files (2 GB a
file, 48 hours), read 2026-11-21.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import time
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from runner.emulator import wire
from runner.emulator.database import Database
from runner.emulator.wire import ApiError

MAX_BYTES = 2 << 30
_STALE_S = 48 * 3600
_OWN_URI = re.compile(r"(?:https?://[^/]+/v1(?:beta1?)?/)?(files/[a-z0-9-]{1,40})")


class Files:
    """The Files API over one folder."""

    def __init__(self, database: Database, ttl_s: float) -> None:
        self._database = database
        self._ttl_ns = int(ttl_s * 1e9)
        self._blobs = database.folder / "files"
        self._parts = database.folder / "parts"
        for folder in (self._blobs, self._parts):
            folder.mkdir(exist_ok=True)
        for part in self._parts.iterdir():
            if part.stat().st_mtime < time.time() - _STALE_S:
                part.unlink(missing_ok=True)

    # ------------------------------------------------------------ uploads

    def start(self, file: dict[str, Any], byte_count: int, mime_type: str) -> str:
        """Begin an upload; its id. `byte_count` is -1 where the client did not say."""
        name = _checked_name(file["name"]) if file.get("name") else f"files/{wire.new_id(12)}"
        if max(byte_count, file.get("sizeBytes", 0)) > MAX_BYTES:
            raise ApiError(400, f"The file is larger than the limit of {MAX_BYTES} bytes.")
        if self._record(name):
            raise _taken(name)
        upload = wire.new_id(32)
        (self._parts / upload).touch()
        with self._database.write() as connection:
            connection.execute(
                "INSERT INTO uploads VALUES (?, ?, ?, ?, ?, 0, '')",
                (
                    upload,
                    name,
                    file.get("displayName", ""),
                    file.get("mimeType") or mime_type or "application/octet-stream",
                    byte_count,
                ),
            )
        return upload

    def received(self, upload: str) -> int:
        """Bytes that an upload has so far."""
        return int(self._upload(upload)["received"])

    def append(self, upload: str, offset: int, source: BufferedIOBase, byte_count: int) -> None:
        """Take `byte_count` bytes at `offset`, which must be where the upload stands."""
        session = self._upload(upload)
        if offset != session["received"]:
            raise ApiError(400, f"The upload offset {offset} is not the expected {session['received']}.")
        if offset + byte_count > MAX_BYTES:
            raise ApiError(400, f"The file is larger than the limit of {MAX_BYTES} bytes.")
        with (self._parts / upload).open("r+b") as part:
            part.seek(offset)
            left = byte_count
            while left:
                block = source.read(min(left, 1 << 20))
                if not block:
                    raise ConnectionError("the client went away in the middle of a chunk")
                part.write(block)
                left -= len(block)
            part.truncate()
        with self._database.write() as connection:
            connection.execute("UPDATE uploads SET received = ? WHERE id = ?", (offset + byte_count, upload))

    def finalize(self, upload: str) -> str:
        """Turn an upload into a file; its name. Asked again, the same file."""
        session = self._upload(upload)
        if session["file"]:
            return str(session["file"])
        if session["byte_count"] not in (-1, session["received"]):
            raise ApiError(400, f"{session['received']} of {session['byte_count']} bytes were uploaded.")
        part, blob = self._parts / upload, self._blobs / upload
        # A process killed after the rename and before the record leaves only the blob.
        if part.exists():
            os.replace(part, blob)
        with blob.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        created = wire.now_ns()
        with self._database.write() as connection:
            self._sweep(connection.execute)
            if connection.execute("SELECT 1 FROM files WHERE name = ?", (session["name"],)).fetchone():
                raise _taken(session["name"])
            connection.execute(
                "INSERT INTO files (name, display_name, mime_type, byte_count, sha256, created_ns, "
                "expires_ns, blob) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    session["name"],
                    session["display_name"],
                    session["mime_type"],
                    session["received"],
                    sha256,
                    created,
                    created + self._ttl_ns,
                    upload,
                ),
            )
            connection.execute("UPDATE uploads SET file = ? WHERE id = ?", (session["name"], upload))
        return str(session["name"])

    def _upload(self, upload: str) -> Any:
        found = self._database.rows("SELECT * FROM uploads WHERE id = ?", upload)
        if not found:
            raise ApiError(404, "The upload does not exist or is over.")
        return found[0]

    # ------------------------------------------------------------ files

    def get(self, name: str, base_url: str) -> dict[str, Any]:
        """A file as the service shows it."""
        _check_id(name, "GetFileRequest")
        record = self._record(name)
        if not record:
            raise _forbidden(name)
        return _shown(record, base_url)

    def list(self, after: int, limit: int, base_url: str) -> tuple[list[dict[str, Any]], int]:
        """Newest files first, below position `after` (0: from the newest); the next position or 0."""
        now = wire.now_ns()
        records = self._database.rows(
            "SELECT * FROM files WHERE expires_ns > ? AND seq < ? ORDER BY seq DESC LIMIT ?",
            now,
            after or 1 << 62,
            limit + 1,
        )
        shown = [_shown(record, base_url) for record in records[:limit]]
        return shown, int(records[limit - 1]["seq"]) if len(records) > limit else 0

    def delete(self, name: str) -> None:
        """Delete a file; one that is gone is forbidden, as at the service."""
        _check_id(name, "DeleteFileRequest")
        record = self._record(name)
        if not record:
            raise _forbidden(name)
        with self._database.write() as connection:
            connection.execute("DELETE FROM files WHERE name = ?", (name,))
        (self._blobs / record["blob"]).unlink(missing_ok=True)

    def path(self, name: str) -> Path | None:
        """Where a file's bytes are, None where it does not exist."""
        record = self._record(name)
        return self._blobs / record["blob"] if record else None

    def digest_of(self, uri: str) -> str | None:
        """SHA-256 of the upload that a part refers to; empty for other places, None where it is gone."""
        own = _OWN_URI.fullmatch(uri)
        if not own:
            return ""
        record = self._record(own[1])
        return str(record["sha256"]) if record else None

    def _record(self, name: str) -> Any:
        found = self._database.rows("SELECT * FROM files WHERE name = ?", name)
        if found and found[0]["expires_ns"] > wire.now_ns():
            return found[0]
        return None

    def _sweep(self, execute: Any) -> None:
        now = wire.now_ns()
        for blob, *_ in execute("SELECT blob FROM files WHERE expires_ns <= ?", (now,)).fetchall():
            (self._blobs / blob).unlink(missing_ok=True)
        execute("DELETE FROM files WHERE expires_ns <= ?", (now,))


def _checked_name(name: str) -> str:
    identifier = name.removeprefix("files/")
    if not wire.FILE_ID.fullmatch(identifier):
        raise ApiError(
            400,
            "* CreateFileRequest.file.name: File IDs may only contain lowercase alphanumeric characters or "
            "dashes (-), cannot begin or end with a dash and cannot be more than 40 characters.\n",
        )
    return f"files/{identifier}"


def _check_id(name: str, request: str) -> None:
    if len(name.removeprefix("files/")) > wire.FILE_ID_LENGTH:
        raise ApiError(
            400,
            f"* {request}.name: File ID (name excluding 'files/') cannot be more than "
            f"{wire.FILE_ID_LENGTH} characters.\n",
        )


def _taken(name: str) -> ApiError:
    return ApiError(409, f"Requested entity already exists: {name}")


def _forbidden(name: str) -> ApiError:
    identifier = name.removeprefix("files/")
    return ApiError(403, f"You do not have permission to access the File {identifier} or it may not exist.")


def _shown(record: Any, base_url: str) -> dict[str, Any]:
    shown = {"name": record["name"]}
    if record["display_name"]:
        shown["displayName"] = record["display_name"]
    created = wire.timestamp(record["created_ns"], 6)
    shown |= {
        "mimeType": record["mime_type"],
        "sizeBytes": str(record["byte_count"]),
        "createTime": created,
        "updateTime": created,
        "expirationTime": wire.timestamp(record["expires_ns"]),
        # The live service is reported to encode the hex text, not the digest's bytes.
        "sha256Hash": base64.b64encode(record["sha256"].encode()).decode(),
        "uri": f"{base_url}/v1beta/{record['name']}",
        "state": "ACTIVE",
        "source": "UPLOADED",
    }
    return shown
