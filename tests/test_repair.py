"""What is nearly JSON: read along the library's value, never guessed."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner import repair, spec
from runner.cli.job import Job
from runner.errors import SpecInvalid
from runner.model import Answer, Outcome
from runner.render import Renderer
from runner.repair import repaired
from runner.results import Judge
from runner.specmodel import Spec

WORDS = st.text(alphabet="abcxyz 0123éß日", max_size=6)
LEAVES = st.none() | st.booleans() | st.integers(-(10**18), 10**18) | WORDS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=8,
).filter(lambda value: isinstance(value, dict | list) and value)


def loosely(value: Any, choose: Any) -> str:
    """JSON as a careless writer puts it, never strict."""
    if isinstance(value, dict):
        members = [
            f"{loosely(key, choose)}:{choose([' ', ''])}{loosely(v, choose)}" for key, v in value.items()
        ]
        return "{" + between(members, choose) + "}"
    if isinstance(value, list):
        return "[" + between([loosely(item, choose) for item in value], choose) + "]"
    if isinstance(value, str):
        opening, closing = choose([('"', '"'), ("'", "'"), ("“", "”")])
        return opening + value + closing
    if value is None or isinstance(value, bool):
        return choose([repr(value), json.dumps(value)])
    return str(value)


def between(parts: list[str], choose: Any) -> str:
    comma = choose([",", ", ", ",\n", ", /* so */ ", ", // so\n"])
    return comma.join(parts) + choose(["", ",", ", ", "\n", " # end\n"])


@settings(max_examples=300, deadline=None)
@given(VALUES, st.data())
def test_a_careless_value_is_read_as_it_is_or_not_at_all(value: Any, data: st.DataObject) -> None:
    text = loosely(value, lambda options: data.draw(st.sampled_from(options)))
    found = repaired(text, in_prose=False)
    assert found is None or (found == value and json.dumps(found) == json.dumps(value))
    assert found is None or set(map(type, leaves(found))) <= {str, int, float, bool, type(None)}


def leaves(value: Any) -> list[Any]:
    """Keys and values that hold no others."""
    if isinstance(value, dict):
        return [*value, *(leaf for inner in value.values() for leaf in leaves(inner))]
    return [leaf for inner in value for leaf in leaves(inner)] if isinstance(value, list) else [value]


def test_a_repaired_value_is_judged_by_every_rule_of_the_schema() -> None:
    """The validator takes texts, and no kind of its own of them."""
    rule = {"type": "string", "pattern": "^(on|off)$", "maxLength": 3}
    names = {"enum": ["a", "b"]}
    judge = Judge({"type": "object", "additionalProperties": rule, "propertyNames": names}, repair=True)

    def judged(text: str) -> Outcome:
        candidate = {"content": {"parts": [{"text": text}]}, "finishReason": "STOP"}
        line = json.dumps({"key": "r1", "response": {"candidates": [candidate]}}).encode()
        answer = judge.line(line)
        assert isinstance(answer, Answer)
        return answer.outcome

    assert judged("{'a': 'on', b: \"off\",}") is Outcome.OK
    assert judged("{'a': 'on', c: \"off\",}") is Outcome.INVALID
    assert judged("{'a': 'on', b: \"none\",}") is Outcome.INVALID


@settings(max_examples=100, deadline=None)
@given(VALUES, st.data())
def test_a_careless_value_that_is_cut_is_never_one(value: Any, data: st.DataObject) -> None:
    text = loosely(value, lambda options: data.draw(st.sampled_from(options)))
    for end in range(len(text)):
        found = repaired(text[:end], in_prose=False)
        assert found is None, text[:end]


def said(text: str) -> str:
    return re.sub(r"[^\w+-]|_", "", text)


def brackets(text: str) -> list[str]:
    return re.findall(r"[][{}]", text)


@settings(max_examples=300, deadline=None)
@given(VALUES, st.data())
def test_a_damaged_value_says_what_its_text_says(value: Any, data: st.DataObject) -> None:
    """Nothing is left out or made up, whatever characters are gone, doubled or new."""
    text = json.dumps(value, ensure_ascii=False)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.sampled_from(["", "", *"{}[],:'\" a1"])) + text[at + 1 :]
    found = repaired(text, in_prose=False)
    if found is not None:
        assert said(text) == said(json.dumps(found, ensure_ascii=False))
        assert [c for c in text if c in "{}[]"] == [
            c for c in json.dumps(found) if c in "{}[]"
        ] or "'" in text


def test_a_text_has_a_longest_and_a_deepest() -> None:
    text = "['" + "x" * (repair.MAX_CHARS - 5) + "',]"
    assert repaired(text, in_prose=False) is not None
    assert repaired(text + " ", in_prose=False) is None
    levels = repair.MAX_DEPTH
    assert repaired("[" * levels + "1," + "]" * levels, in_prose=False) is not None
    assert repaired("[" * (levels + 1) + "1," + "]" * (levels + 1), in_prose=False) is None


def test_the_library_may_look_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[" + "'a', " * 1000 + "]"
    assert repaired(text, in_prose=False) is not None
    monkeypatch.setattr(repair, "_LOOKS_PER_CHAR", 1)
    assert repaired(text, in_prose=False) is None


def test_texts_in_prose_need_quotes() -> None:
    assert repaired("[a, b]", in_prose=False) == ["a", "b"]
    assert repaired("[a, b]", in_prose=True) is None
    assert repaired("{a: 'b',}", in_prose=True) == {"a": "b"}


def test_what_breaks_the_library_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    import json_repair

    def broken(*args: Any, **given: Any) -> Any:
        raise AssertionError("a bug")

    monkeypatch.setattr(json_repair, "repair_json", broken)
    assert repaired("['a',]", in_prose=False) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{'a': 'x'}", {"a": "x "}),
        ("{'a': 'x '}", {"a": "x"}),
        ("{'a': 1, 'b': 2}", {"a": 1}),
        ("{'a': 1}", {"a": 1, "b": ""}),
        ("{'a': 1}", {"a": "1"}),
        ("{'a': 1}", {"a": True}),
        ("{'a': True}", {"a": 1}),
        ("{'a': true}", {"a": "true"}),
        ("{'a': true}", {"a": False}),
        ("{'a': 1.0}", {"a": 1}),
        ("{'a': 'b', 'c': 'd'}", {"c": "d", "a": "b"}),
        ("[1, 2]", [[1, 2]]),
        ("[[1], 2]", [1, 2]),
        ("{'a': 12}", {"a": 1}),
        ("{'a': 'x', /* and */ 'b': 1}", {"a": "x"}),
    ],
)
def test_a_wrong_value_of_the_library_is_seen(text: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import json_repair

    monkeypatch.setattr(json_repair, "repair_json", lambda *args, **given: value)
    assert repaired(text, in_prose=False) is None


# ---------------------------------------------------------------- the setting

SPEC = """\
version: 1
name: invoices
backend: local
inputs: data/*.txt
model: gemini-3.5-flash-lite
prompt: "{{ input.text }}"
output_schema: {type: object}
destination: out/invoices.jsonl
"""


def loaded(folder: Path, more: str = "") -> Spec:
    (folder / "spec.yaml").write_text(SPEC + more, encoding="utf-8")
    return spec.load(folder / "spec.yaml", environ={})


def test_repair_is_off_unless_the_spec_says_so(tmp_path: Path) -> None:
    plain, off = loaded(tmp_path), loaded(tmp_path, "failures: {repair: false}\n")
    on = loaded(tmp_path, "variables: {r: true}\nfailures: {repair: '${var.r}'}\n")
    assert [one.failures.repair for one in (plain, off, on)] == [False, False, True]
    assert spec.digest(plain) == spec.digest(off)
    assert "repair" not in spec.resolved(plain)["failures"]


def test_repair_is_no_part_of_a_request(tmp_path: Path) -> None:
    plain, on = loaded(tmp_path), loaded(tmp_path, "failures: {repair: true}\n")
    assert Renderer(plain).components == Renderer(on).components


def test_repair_changes_what_judges(tmp_path: Path) -> None:
    def digest(more: str) -> str:
        loaded(tmp_path, more)
        with Job({"path": tmp_path / "spec.yaml"}) as job:
            return job.judge_digest

    plain, off, on = (
        digest(more) for more in ("", "failures: {repair: false}\n", "failures: {repair: true}\n")
    )
    assert plain == off != on


def test_repair_without_its_package_is_told_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "json_repair" else find(name, *rest)
    )
    assert loaded(tmp_path, "failures: {repair: false}\n")
    with pytest.raises(SpecInvalid) as caught:
        loaded(tmp_path, "failures: {repair: true}\n")
    [found] = caught.value.diagnostics
    assert (found.code, found.line, found.where) == ("GB110", 9, "failures")
    assert found.hint == "pip install 'gbrun[repair]'"
