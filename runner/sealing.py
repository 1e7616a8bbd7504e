"""Marks that stand for sensitive values wherever something is stored or shown. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import orjson

from runner.model import Json


def seal(name: str, secret: str, salt: str) -> str:
    """What stands for a sensitive value where it must not: a digest, salted by spec and variable."""
    return "sensitive:" + hashlib.sha256(f"gbrun\0{salt}\0{name}\0{secret}".encode()).hexdigest()[:32]


def sealed(value: Json, secrets: Mapping[str, str], salt: str) -> Json:
    """A copy of `value` in which each of `secrets`, by variable name, is sealed wherever it occurs."""
    if isinstance(value, Mapping):
        return {key: sealed(item, secrets, salt) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [sealed(item, secrets, salt) for item in value]
    if isinstance(value, str):
        for name, secret in sorted(secrets.items(), key=lambda item: (-len(item[1]), item[0])):
            if secret and secret in value:
                value = value.replace(secret, seal(name, secret, salt))
    return value


def reveal(line: bytes, secrets: Mapping[str, str], salt: str) -> bytes:
    """A stored JSON line as it is sent: with the sensitive values in the place of their marks."""
    for name, secret in secrets.items():
        line = line.replace(seal(name, secret, salt).encode(), orjson.dumps(secret)[1:-1])
    return line
