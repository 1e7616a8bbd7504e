"""Cloud Storage's answers: errors, objects as they are shown, pages of a listing, preconditions. Pure.

Source: https://cloud.google.com/storage/docs/json_api/v1, read 2026-11-21.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from runner.emulator import wire
from runner.emulator.wire import ApiError

LARGEST_PAGE = 1000


class StorageError(ApiError):
    """An answer in the JSON API's own envelope."""

    def __init__(self, http_status: int, reason: str, message: str) -> None:
        super().__init__(http_status, message)
        self.reason = reason

    def body(self) -> dict[str, Any]:
        """The envelope."""
        error = {"message": self.message, "domain": "global", "reason": self.reason}
        if self.http_status == 412:
            error |= {"locationType": "header", "location": "If-Match"}
        return {"error": {"code": self.http_status, "message": self.message, "errors": [error]}}


@dataclass(frozen=True, slots=True)
class Conditions:
    """Preconditions on the object's present generation; None where nothing is asked."""

    generation: int | None = None
    """0: there must be no object."""
    metageneration: int | None = None

    def check(self, record: Any) -> None:
        """Raises StorageError 412 where the present object, or its absence, does not meet them."""
        generation = record["generation"] if record else 0
        # Metadata cannot be patched here, so every object is at its first metageneration.
        metageneration = 1 if record else 0
        if self.generation not in (None, generation) or self.metageneration not in (None, metageneration):
            raise StorageError(
                412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold."
            )


def shown(record: Any, base_url: str, quoted_name: str) -> dict[str, Any]:
    """An object as the service shows it; addresses lead back to `base_url`."""
    bucket, name, generation = record["bucket"], record["name"], record["generation"]
    created = wire.timestamp(record["created_ns"], 3)
    body: dict[str, Any] = {
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{generation}",
        "selfLink": f"{base_url}/storage/v1/b/{bucket}/o/{quoted_name}",
        "mediaLink": f"{base_url}/download/storage/v1/b/{bucket}/o/{quoted_name}"
        f"?generation={generation}&alt=media",
        "name": name,
        "bucket": bucket,
        "generation": str(generation),
        "metageneration": "1",
        "contentType": record["content_type"],
        "storageClass": "STANDARD",
        "size": str(record["byte_count"]),
        "md5Hash": record["md5"],
        "crc32c": record["crc32c"],
        "etag": etag(record),
        "timeCreated": created,
        "updated": created,
        "timeStorageClassUpdated": created,
    }
    metadata = orjson.loads(record["metadata"])
    return body | ({"metadata": metadata} if metadata else {})


def page(records: Iterable[Any], prefix: str, delimiter: str, limit: int) -> tuple[list[Any], list[str], str]:
    """One page of a listing: records, common prefixes, and the last name where more follows."""
    chosen: list[Any] = []
    folders: list[str] = []
    last = ""
    for record in records:
        folder = _folder(record["name"], prefix, delimiter)
        if folder and folders[-1:] == [folder]:
            last = record["name"]
            continue
        if len(chosen) + len(folders) == limit:
            return chosen, folders, last
        last = record["name"]
        if folder:
            folders.append(folder)
        else:
            chosen.append(record)
    return chosen, folders, ""


def _folder(name: str, prefix: str, delimiter: str) -> str:
    head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
    return prefix + head + found if found else ""


def limit_of(text: str) -> int:
    """The page size in `maxResults`. Raises StorageError 400."""
    number = integer("maxResults", text)
    return min(number or LARGEST_PAGE, LARGEST_PAGE)


def integer(name: str, text: str | None) -> int | None:
    """A whole number of a query, None where it is not given. Raises StorageError 400."""
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise StorageError(400, "invalidParameter", f"Invalid value for {name}: {text!r}")
    return int(text)


def etag(record: Any) -> str:
    """An opaque mark of an object's version."""
    return base64.b64encode(f"g{record['generation']}".encode()).decode()


def no_object(bucket: str, name: str, generation: int | None) -> StorageError:
    """What every missing object is answered with."""
    version = f"#{generation}" if generation is not None else ""
    return StorageError(404, "notFound", f"No such object: {bucket}/{name}{version}")


def no_bucket() -> StorageError:
    """What everything in a missing bucket is answered with."""
    return StorageError(404, "notFound", "The specified bucket does not exist.")
