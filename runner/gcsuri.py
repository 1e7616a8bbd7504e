"""Addresses in Cloud Storage: `gs://bucket/name`."""

from __future__ import annotations

import re

import msgspec

SCHEME = "gs://"
_BUCKET = r"[a-z0-9](?:[a-z0-9_-]{1,61}|[a-z0-9._-]{1,220})[a-z0-9]"
_REFUSED = r"[\x00-\x1f\x7f\\#?*\[\]\ud800-\udfff]"
_NAME_BYTES = 700
"""Longest prefix of a state: a name has at most 1,024 bytes, and the parts of a state need some."""
_OBJECT_BYTES = 1000
"""Longest name of an object of records: the failures beside it have one that is a little longer."""


class GcsUri(msgspec.Struct, frozen=True):
    """A bucket and what stands behind it, without slashes at its ends."""

    bucket: str
    name: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.name}"


def parse(text: str) -> GcsUri:
    """The address of a folder in a bucket.

    Raises ValueError, in words that follow the text, for one that cannot be one.
    """
    return _parsed(text, "a folder", _NAME_BYTES, ending="/")


def parse_object(text: str) -> GcsUri:
    """The address of one object in a bucket. Raises ValueError as `parse` does."""
    return _parsed(text, "an object", _OBJECT_BYTES)


def _parsed(text: str, what: str, longest_bytes: int, ending: str = "") -> GcsUri:
    if not text.startswith(SCHEME):
        raise ValueError(f"does not begin with {SCHEME}")
    bucket, _, name = text.removeprefix(SCHEME).partition("/")
    name = name.removesuffix(ending)
    if not re.fullmatch(_BUCKET, bucket):
        raise ValueError(
            f"has no bucket name: {bucket!r} (3 to 63 characters: lower-case letters, digits, - _ .)"
        )
    if not name:
        raise ValueError(f"names a bucket without {what} in it")
    if any(not part or part.startswith(".") for part in name.split("/")):
        raise ValueError("has a part that is empty or begins with a dot")
    if re.search(_REFUSED, name) or len(name.encode()) > longest_bytes:
        raise ValueError(f"is longer than {longest_bytes:,} bytes, or holds one of \\ # ? * [ ]")
    return GcsUri(bucket, name)
