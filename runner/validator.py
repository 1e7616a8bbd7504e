"""What judges values against the user's JSON Schema: jsonschema-rs alone. Pure.

Two validators disagree (`multipleOf: 0.01` on 19.99, `\\p{L}`, a line end before `$`), so that "valid" has
one meaning only if one of them says it: for records, and for whether a schema can be used at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from runner.model import Json

FORMATS = frozenset(
    {
        "date", "date-time", "duration", "email", "hostname", "idn-email", "idn-hostname", "ipv4", "ipv6",
        "iri", "iri-reference", "json-pointer", "regex", "relative-json-pointer", "time", "uri",
        "uri-reference", "uri-template", "uuid",
    }
)  # fmt: skip
"""What is checked as a `format`; every other one is passed over."""


class Validator(Protocol):
    """Judges values against one schema. Either may raise ValueError for what no JSON text can hold."""

    def is_valid(self, value: Json) -> bool:
        """Whether the value keeps to the schema; faster than to look for errors."""
        ...

    def iter_errors(self, value: Json) -> Iterator[Any]:
        """Its errors, each with `message` and `instance_path`."""
        ...


def compiled(schema: Mapping[str, Json]) -> Validator:
    """What judges values by a schema.

    The schema is read as its `$schema` says, else as draft 2020-12. Formats are checked. A `$ref` never
    leaves the schema: one that does, as everything else that is wrong with a schema, is a ValueError.
    """
    import jsonschema_rs

    validator: Validator = jsonschema_rs.validator_for(dict(schema), validate_formats=True, offline=True)
    return validator
