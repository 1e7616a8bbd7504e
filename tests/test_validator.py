"""The one validator, held to the official JSON-Schema-Test-Suite (draft 2020-12, as of jsonschema 4.26.0).

`golden/json_schema_suite` is a copy of the suite's folder `tests/draft2020-12`, MIT licence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner import validator

SUITE = Path(__file__).parent / "golden" / "json_schema_suite"
FORMATS = (
    "email", "idn-email", "regex", "ipv4", "ipv6", "idn-hostname", "hostname", "date", "date-time", "time",
    "json-pointer", "relative-json-pointer", "iri", "iri-reference", "uri", "uri-reference", "uri-template",
    "uuid", "duration",
)  # fmt: skip
KNOWN = {
    ("format.json", f"{name} format", f"invalid {name} string is only an annotation by default")
    for name in FORMATS
}
"""Not as the suite says. Formats are checked: who writes `format: date` into a schema wants a date."""
REMOTE = "http://localhost:1234/"
"""Where the suite expects its other files; a schema that needs one is refused."""
REFUSED_COUNT = 54


def groups() -> list[Any]:
    return [
        pytest.param(name, group, id=f"{name}: {group['description']}")
        for path in sorted(SUITE.rglob("*.json"))
        for name in [path.relative_to(SUITE).as_posix()]
        for group in json.loads(path.read_text(encoding="utf-8"))
    ]


GROUPS = groups()


def whole(schema: Any) -> dict[str, Any]:
    """A schema as gbrun takes one: a mapping."""
    return schema if isinstance(schema, dict) else {"allOf": [schema]}


def is_refused(schema: Any) -> bool:
    try:
        validator.compiled(whole(schema))
    except ValueError as error:
        found = str(error)
    else:
        return False
    assert REMOTE in found
    assert REMOTE in json.dumps(schema)
    return True


def test_the_suite_is_whole() -> None:
    assert len({param.values[0] for param in GROUPS}) == 80
    assert sum(len(param.values[1]["tests"]) for param in GROUPS) == 1906


@pytest.mark.parametrize(("name", "group"), GROUPS)
def test_suite(name: str, group: dict[str, Any]) -> None:
    if is_refused(group["schema"]):
        return
    judge = validator.compiled(whole(group["schema"]))
    for case in group["tests"]:
        valid = judge.is_valid(case["data"])
        assert valid == (not list(judge.iter_errors(case["data"]))), case
        as_expected = valid == case["valid"]
        # One that is listed and passes is taken off the list.
        assert as_expected == ((name, group["description"], case["description"]) not in KNOWN), case


def test_what_lies_elsewhere_is_refused() -> None:
    refused = [param.values[1]["tests"] for param in GROUPS if is_refused(param.values[1]["schema"])]
    assert sum(map(len, refused)) == REFUSED_COUNT


def test_every_known_difference_is_a_test_of_the_suite() -> None:
    names = {
        (param.values[0], param.values[1]["description"], case["description"])
        for param in GROUPS
        for case in param.values[1]["tests"]
    }
    assert names >= KNOWN


@pytest.mark.parametrize("reference", ["FILE", "https://example.com/a.json", "other.json"])
def test_nothing_outside_is_read(reference: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"type": "integer"}')
    reference = reference.replace("FILE", (tmp_path / "a.json").as_uri())
    with pytest.raises(ValueError, match="not present"):
        validator.compiled({"properties": {"a": {"$ref": reference}}})


WRONG = ["!!", "not a (thing", "\x00 {", "::", "[", "a b", "#/~x", "%"]


@pytest.mark.parametrize("name", sorted(validator.FORMATS))
def test_the_formats_that_are_listed_are_checked(name: str) -> None:
    errors = validator.compiled({"format": name}).iter_errors
    assert any(list(errors(text)) for text in WRONG)


@pytest.mark.parametrize("name", ["currency", "password", "int32", "color"])
def test_other_formats_are_passed_over(name: str) -> None:
    errors = validator.compiled({"format": name}).iter_errors
    assert not any(list(errors(text)) for text in WRONG)


def test_money_and_letters() -> None:
    """Where validators are known to disagree."""
    errors = validator.compiled(
        {"properties": {"n": {"multipleOf": 0.01}, "s": {"pattern": "^\\p{L}+$"}}}
    ).iter_errors
    assert not list(errors({"n": 19.99, "s": "Größe"}))
    assert len(list(errors({"n": 19.999, "s": "a\n"}))) == 2
