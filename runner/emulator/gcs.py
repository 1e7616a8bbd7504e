"""Cloud Storage over one folder: buckets, objects with generations, preconditions, resumable uploads.

An object's bytes are in place before its record says so, and its record changes in one transaction with
the check of its preconditions: of racing writers one wins. No HTTP here; see `gcsroutes`.

Source: https://cloud.google.com/storage/docs/json_api/v1, read 2026-11-21; requests of google-cloud-storage
3.17.1, recorded on loopback.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import orjson

from runner.emulator import wire
from runner.emulator.database import Database
from runner.emulator.gcswire import LARGEST_PAGE, Conditions, StorageError, no_bucket, no_object

_TABLES = (
    "CREATE TABLE IF NOT EXISTS buckets (name TEXT PRIMARY KEY, created_ns INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS objects (bucket TEXT NOT NULL, name TEXT NOT NULL, "
    "generation INTEGER NOT NULL, blob TEXT NOT NULL, byte_count INTEGER NOT NULL, md5 TEXT NOT NULL, "
    "crc32c TEXT NOT NULL, content_type TEXT NOT NULL, metadata BLOB NOT NULL, created_ns INTEGER NOT NULL, "
    "PRIMARY KEY (bucket, name)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS sessions (id TEXT PRIMARY KEY, bucket TEXT NOT NULL, wanted BLOB NOT NULL, "
    "conditions BLOB NOT NULL, received INTEGER NOT NULL, done BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS generations (newest INTEGER NOT NULL)",
)
_STALE_S = 7 * 86400
"""Life of a resumable upload. Source: https://cloud.google.com/storage/docs/resumable-uploads."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_AFTER_ALL = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class Found:
    """An object: its record, and how to read the very bytes that the record describes."""

    record: Any
    stream: BinaryIO


class Objects:
    """Buckets and objects; every method may be called from several threads and processes at once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._blobs = database.folder / "objects"
        self._parts = database.folder / "object-parts"
        self._appending = threading.Lock()
        with database.write() as connection:
            for statement in _TABLES:
                connection.execute(statement)
        for folder in (self._blobs, self._parts):
            folder.mkdir(exist_ok=True)
        for part in self._parts.iterdir():
            if part.stat().st_mtime < time.time() - _STALE_S:
                part.unlink(missing_ok=True)

    # ------------------------------------------------------------ buckets

    def create_bucket(self, name: str) -> None:
        """Make a bucket. Raises StorageError 400 for a name that is none, 409 where it exists."""
        if not _BUCKET.fullmatch(name):
            raise StorageError(400, "invalid", f"Invalid bucket name: '{name}'")
        with self._database.write() as connection:
            if _bucket(connection, name):
                raise StorageError(
                    409, "conflict", "Your previous request to create the named bucket succeeded."
                )
            connection.execute("INSERT INTO buckets VALUES (?, ?)", (name, wire.now_ns()))

    def bucket(self, name: str) -> dict[str, Any]:
        """A bucket as the service shows it. Raises StorageError 404."""
        found = self._database.rows("SELECT * FROM buckets WHERE name = ?", name)
        if not found:
            raise no_bucket()
        created = wire.timestamp(found[0]["created_ns"], 3)
        return {
            "kind": "storage#bucket",
            "id": name,
            "name": name,
            "projectNumber": "0",
            "metageneration": "1",
            "location": "US",
            "locationType": "multi-region",
            "storageClass": "STANDARD",
            "etag": "CAE=",
            "timeCreated": created,
            "updated": created,
        }

    # ------------------------------------------------------------ objects

    def put(self, bucket: str, wanted: Mapping[str, Any], data: bytes, conditions: Conditions) -> Any:
        """Create or replace an object and return its record; `wanted` is the object resource given.

        Raises StorageError: 404 no bucket, 412, 400 where a hash that was given is not that of the bytes.
        """
        part = self._parts / wire.new_id(32)
        part.write_bytes(data)
        try:
            return self._place(bucket, wanted, part, conditions)
        finally:
            part.unlink(missing_ok=True)

    def get(self, bucket: str, name: str, conditions: Conditions, generation: int | None) -> Any:
        """The record of an object. Raises StorageError 404, 412."""
        self.bucket(bucket)
        found = self._database.rows("SELECT * FROM objects WHERE bucket = ? AND name = ?", bucket, name)
        if not found or generation not in (None, found[0]["generation"]):
            raise no_object(bucket, name, generation)
        conditions.check(found[0])
        return found[0]

    def open(self, bucket: str, name: str, conditions: Conditions, generation: int | None) -> Found:
        """An object and its bytes, which the caller closes. Raises StorageError 404, 412."""
        while True:
            record = self.get(bucket, name, conditions, generation)
            try:
                return Found(record, (self._blobs / record["blob"]).open("rb"))
            except FileNotFoundError:
                # Replaced between the two; the record says something else by now.
                continue

    def list(self, bucket: str, prefix: str, after: str, end: str) -> Iterator[Any]:
        """Records whose names begin with `prefix`, are above `after` and below `end` (""), by name."""
        self.bucket(bucket)
        while True:
            page = self._database.rows(
                "SELECT * FROM objects WHERE bucket = ? AND name > ? AND name >= ? AND name < ? "
                "ORDER BY name LIMIT ?",
                bucket,
                after,
                prefix,
                min(prefix + _AFTER_ALL, end or _AFTER_ALL),
                LARGEST_PAGE,
            )
            yield from page
            if len(page) < LARGEST_PAGE:
                return
            after = page[-1]["name"]

    def delete(self, bucket: str, name: str, conditions: Conditions, generation: int | None) -> None:
        """Delete an object. Raises StorageError 404, 412."""
        self.bucket(bucket)
        with self._database.write() as connection:
            record = _object(connection, bucket, name)
            if record is None or generation not in (None, record["generation"]):
                raise no_object(bucket, name, generation)
            conditions.check(record)
            connection.execute("DELETE FROM objects WHERE bucket = ? AND name = ?", (bucket, name))
        (self._blobs / record["blob"]).unlink(missing_ok=True)

    def _place(self, bucket: str, wanted: Mapping[str, Any], part: Path, conditions: Conditions) -> Any:
        """Turn a file of bytes into an object."""
        md5, crc32c, byte_count = _hashes(part)
        for name, given, real in (
            ("MD5 hash", wanted.get("md5Hash"), md5),
            ("CRC32C", wanted.get("crc32c"), crc32c),
        ):
            if given and given != real:
                message = f'Provided {name} "{given}" doesn\'t match calculated {name} "{real}".'
                raise StorageError(400, "invalid", message)
        blob = part.name
        with self._database.write() as connection:
            if not _bucket(connection, bucket):
                raise no_bucket()
            before = _object(connection, bucket, wanted["name"])
            conditions.check(before)
            os.replace(part, self._blobs / blob)
            connection.execute(
                "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    bucket,
                    wanted["name"],
                    _next_generation(connection),
                    blob,
                    byte_count,
                    md5,
                    crc32c,
                    wanted.get("contentType") or "application/octet-stream",
                    orjson.dumps(wanted.get("metadata") or {}),
                    wire.now_ns(),
                ),
            )
            record = _object(connection, bucket, wanted["name"])
        if before is not None:
            (self._blobs / before["blob"]).unlink(missing_ok=True)
        return record

    # ------------------------------------------------------------ resumable uploads

    def start(self, bucket: str, wanted: Mapping[str, Any], conditions: Conditions) -> str:
        """Begin an upload; its id. Raises StorageError 404, 412."""
        self.bucket(bucket)
        session = wire.new_id(48)
        (self._parts / session).touch()
        with self._database.write() as connection:
            conditions.check(_object(connection, bucket, wanted["name"]))
            asked = orjson.dumps([conditions.generation, conditions.metageneration])
            connection.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?, 0, '')",
                (session, bucket, orjson.dumps(wanted), asked),
            )
        return session

    def append(self, session: str, offset: int, data: bytes, total: int | None, crc32c: str) -> Any:
        """Take bytes at `offset` of an upload; the object's record once `total` bytes are there, else None.

        Bytes that came before are passed over; what begins behind the end is left alone. An upload that
        is complete answers with its object again. Raises StorageError 404, 412, 400.
        """
        with self._appending:
            known = self._session(session)
            if known["done"]:
                return orjson.loads(known["done"])
            received = known["received"]
            fresh = data[received - offset :] if offset <= received else b""
            if fresh:
                with (self._parts / session).open("r+b") as part:
                    part.seek(received)
                    part.write(fresh)
                    part.truncate()
                received += len(fresh)
                with self._database.write() as connection:
                    connection.execute("UPDATE sessions SET received = ? WHERE id = ?", (received, session))
            if total is None or received != total:
                return None
            wanted = orjson.loads(known["wanted"]) | ({"crc32c": crc32c} if crc32c else {})
            conditions = Conditions(*orjson.loads(known["conditions"]))
            record = dict(self._place(known["bucket"], wanted, self._parts / session, conditions))
            record["metadata"] = record["metadata"].decode()
            with self._database.write() as connection:
                connection.execute(
                    "UPDATE sessions SET done = ? WHERE id = ?", (orjson.dumps(record), session)
                )
            return record

    def received(self, session: str) -> int:
        """Bytes that an upload has so far. Raises StorageError 404."""
        return int(self._session(session)["received"])

    def abandon(self, session: str) -> None:
        """End an upload without an object. Raises StorageError 404."""
        self._session(session)
        with self._database.write() as connection:
            connection.execute("DELETE FROM sessions WHERE id = ?", (session,))
        (self._parts / session).unlink(missing_ok=True)

    def _session(self, session: str) -> Any:
        found = self._database.rows("SELECT * FROM sessions WHERE id = ?", session)
        if not found:
            raise StorageError(404, "notFound", "The upload does not exist or is over.")
        return found[0]


def _bucket(connection: sqlite3.Connection, name: str) -> bool:
    return connection.execute("SELECT 1 FROM buckets WHERE name = ?", (name,)).fetchone() is not None


def _object(connection: sqlite3.Connection, bucket: str, name: str) -> Any:
    return connection.execute(
        "SELECT * FROM objects WHERE bucket = ? AND name = ?", (bucket, name)
    ).fetchone()


def _next_generation(connection: sqlite3.Connection) -> int:
    """Microseconds since the epoch, as the service has it, but never twice the same and never back."""
    found = connection.execute("SELECT newest FROM generations").fetchone()
    new = max(wire.now_ns() // 1000, found[0] + 1 if found else 0)
    connection.execute(
        "UPDATE generations SET newest = ?" if found else "INSERT INTO generations VALUES (?)", (new,)
    )
    return new


def _hashes(path: Path) -> tuple[str, str, int]:
    """MD5 and CRC32C in Base64, and the size."""
    # The package has no types.
    checksum: Any = google_crc32c.Checksum
    md5, crc, count = hashlib.md5(usedforsecurity=False), checksum(), 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            md5.update(block)
            crc.update(block)
            count += len(block)
    return base64.b64encode(md5.digest()).decode(), base64.b64encode(crc.digest()).decode(), count
