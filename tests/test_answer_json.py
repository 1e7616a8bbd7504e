"""The JSON of an answer, from texts of every kind. The cases lie in `golden/json`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import messy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.answer_json import MAX_DEPTH, extract_json, parse
from runner.model import Answer, Outcome
from runner.results import Judge, Stray

CASES = Path(__file__).parent / "golden" / "json"
LOOSE = Judge({"type": ["object", "array"]}, repair=True)


def cases(name: str) -> list[Any]:
    found = [json.loads(line) for line in (CASES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({(case["kind"], case["name"]) for case in found}) == len(found) >= 25
    return [pytest.param(case, id=f"{case['kind']}: {case['name']}") for case in found]


@pytest.mark.parametrize("case", cases("found"))
@pytest.mark.parametrize("repair", [False, True])
def test_found(case: dict[str, Any], repair: bool) -> None:
    assert extract_json(case["text"], repair=repair) == (case["value"], case["how"])


@pytest.mark.parametrize("case", cases("nearly"))
def test_nearly_json_is_found_with_repair_alone(case: dict[str, Any]) -> None:
    assert extract_json(case["text"]) is None
    assert extract_json(case["text"], repair=True) == (case["value"], "library")


@pytest.mark.parametrize("case", [*cases("cut-off"), *cases("refused")])
@pytest.mark.parametrize("repair", [False, True])
def test_never_found(case: dict[str, Any], repair: bool) -> None:
    assert extract_json(case["text"], repair=repair) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', ({"a": 1}, "")),
        (" \n[1, 2]\t", ([1, 2], "")),
        ("\ufeff{}", ({}, "")),
        ("true", (True, "")),
        ('"a\u2028b"', ("a\u2028b", "")),
        ('{"code": "```json\\n{}\\n```"}', ({"code": "```json\n{}\n```"}, "")),
        ('```json\n{"a": 1}\n```', ({"a": 1}, "fence")),
        ('```\n{"a": 1}\n```', ({"a": 1}, "fence")),
        ('```JSON {"a": 1}```', ({"a": 1}, "fence")),
        ('Here:\r\n```json\r\n{"a": 1}\r\n```\r\nDone.', ({"a": 1}, "fence")),
        ("```python\nx = 1\n```\n```json\n[7]\n```", ([7], "fence")),
        ('The answer is {"a": {"b": []}}. Bye.', ({"a": {"b": []}}, "prose")),
        ("See {this} and [that], then [1, 2].", ([1, 2], "prose")),
        ("Nothing {} [] here, but [3].", ([3], "prose")),
        ("The answer is 42.", None),
        ("", None),
        ("{'a': 1}", None),
        ('{"a": 1,}', None),
        ("NaN", None),
        ('{"a": 1', None),
        ('```json\n{"a": 1', None),
        ('```json\n{"a": {"b": 2}', None),
        ('{"a": [{"b": 2}], "c"', None),
        ('[{"x": 1}, {"y": "z', None),
        ('Sure! {"a": {"b": 1}, "c": 2', None),
    ],
)
def test_extraction(text: str, expected: tuple[Any, str] | None) -> None:
    assert extract_json(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        '[{"x": 1}, {"y": tru',
        '[{"x": 1}, -',
        '[{"x": 1}, {"y": "a\\u12',
        '{"a": [1], "b": nul',
        '["```[1]```", ',
    ],
)
def test_a_value_that_is_cut_off_is_never_completed(text: str) -> None:
    assert extract_json(text) is None


def test_what_is_not_json_is_not_found_in_prose() -> None:
    assert extract_json('It is {"a": NaN}.') is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(VALUES, st.booleans())
def test_a_whole_value_is_found_however_it_is_wrapped(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)

    assert extract_json(text) == (value, "")
    assert extract_json("\ufeff \n" + text + "\n") == (value, "")
    if "```" not in text:
        assert extract_json(f"Here you are:\n```json\n{text}\n```\n") == (value, "fence")


@given(
    st.dictionaries(
        st.sampled_from("abc"), st.lists(st.sampled_from(["x", "{", "}"]), min_size=1), min_size=1
    )
)
def test_a_cut_object_of_texts_is_never_found(value: Any) -> None:
    text = json.dumps(value)
    for end in range(len(text)):
        assert extract_json(text[:end]) is None
        assert extract_json("Answer: " + text[:end]) is None
        assert extract_json("```json\n" + text[:end]) is None


@settings(deadline=None)
@given(VALUES.filter(lambda value: isinstance(value, dict | list)), st.booleans())
def test_a_cut_value_is_never_found(value: Any, repair: bool) -> None:
    text = json.dumps(value)
    for end in range(len(text)):
        found = extract_json(text[:end], repair=repair)
        # Of `[]` and the like there is nothing to cut.
        assert found is None or found[0] in ({}, [])


# ---------------------------------------------------------------- hostile lines


def line(text: str, reason: str = "STOP") -> bytes:
    content = {"parts": [{"text": text}]}
    body = {"candidates": [{"content": content, "finishReason": reason}]}
    return json.dumps({"key": "r", "response": body}).encode()


def judged(text: str, judge: Judge = LOOSE) -> Answer:
    found = judge.line(line(text))
    assert isinstance(found, Answer)
    return found


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def test_depth_has_a_limit_of_its_own() -> None:
    """What is read deep down a stack must be writable further down."""
    assert judged(nested(MAX_DEPTH)).outcome is Outcome.OK
    for levels in (MAX_DEPTH + 1, 900, 10_000, 1_000_000):
        assert judged(nested(levels)).outcome is Outcome.UNPARSEABLE
        assert judged(f"Here: {nested(levels)}.").outcome is Outcome.UNPARSEABLE
        assert judged('{"a":' * levels + "1" + "}" * levels).outcome is Outcome.UNPARSEABLE
        assert judged("{'a':" * levels + "1,}" + "}" * (levels - 1)).outcome is Outcome.UNPARSEABLE


def test_a_deep_line_is_no_answer() -> None:
    deep = b'{"key":"r","response":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}"
    assert LOOSE.line(deep) == Stray("unreadable")


def test_what_is_repaired_does_not_hang_on_the_stack() -> None:
    def down(steps: int, text: str) -> Outcome:
        return down(steps - 1, text) if steps else judged(text).outcome

    for text in (nested(60).replace("[]", "[1,]"), "{'a':" * 60 + "1,}" + "}" * 59):
        assert [down(steps, text) for steps in (0, 450)] == [Outcome.OK] * 2


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ('{"a": ' + "9" * 4_000 + "}", Outcome.OK),
        ('{"a": ' + "9" * 5_000 + "}", Outcome.UNPARSEABLE),
        ("{'a': " + "9" * 5_000 + "}", Outcome.UNPARSEABLE),
        ('{"a": 1e999}', Outcome.UNPARSEABLE),
        ('{"a": NaN}', Outcome.UNPARSEABLE),
        ('{"a": -Infinity,}', Outcome.UNPARSEABLE),
        ('{"a": "\ud800"}', Outcome.OK),
        ("{'a': '\ud800',}", Outcome.OK),
        ('{"a": 1, "a": 2}', Outcome.OK),
        ("\x00" * 1000, Outcome.UNPARSEABLE),
        ("{'a': '\x00',}", Outcome.OK),
    ],
)
def test_odd_values_end_in_an_outcome(text: str, outcome: Outcome) -> None:
    assert judged(text).outcome is outcome


def test_invalid_utf8_is_no_answer() -> None:
    assert LOOSE.line(line("abc").replace(b"abc", b"{\xff}")) == Stray("unreadable")


def test_the_last_of_equal_keys_counts_whatever_reads_them() -> None:
    text = '{"b": 1, "a": {"c": 1, "c": 2}, "b": 2}'
    for found in (
        parse(text.encode()),
        # Read by the parser for what the first one refuses, and by the one for prose.
        parse((text[:-1] + ', "s": "\\ud800"}').encode()),
        extract_json(f"So: {text}"),
        extract_json(f"```\n{text}\n```"),
    ):
        value = found[0] if isinstance(found, tuple) else found
        assert (list(value)[:2], value["b"], value["a"]) == (["b", "a"], 2, {"c": 2})


HOSTILE = [
    "[", "{", '{"a":', "[] ", "{} x", "[x] ", "[x", "]", "```", "```\nx\n```\n", "```json\n{", '"', '\\"',
    '"\\', "\\", "'", "{'a': 1} ", "{'a':[", "(", "/*", "//", "#\n", "a:", "a,", "“", "“a” ", "1 ", "\n", "é",
    "[1,]", ",{",
]  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE)
@pytest.mark.parametrize("around", [("", ""), ("{", "}"), ('{"a": "', '",}'), ("```json\n[", "]\n```")])
def test_time_grows_with_length_alone(unit: str, around: tuple[str, str]) -> None:
    text = around[0] + unit * (30_000 // len(unit)) + around[1]
    started = time.process_time()
    judged(text)
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    ("unit", "byte_count"),
    [
        ("{'name': 'x', 'ok': True,},", 50_000_000),
        ("```\n[1,]\n```\n", 50_000_000),
        ("[1] ", 5_000_000),
        ("[x", 5_000_000),
        ("{'a':", 5_000_000),
        ('"\\', 50_000_000),
    ],
)
def test_a_huge_line_ends_in_an_outcome(unit: str, byte_count: int) -> None:
    data = line(unit * (byte_count // len(unit)))
    started = time.process_time()
    found = LOOSE.line(data)
    assert isinstance(found, Answer)
    assert found.outcome in (Outcome.OK, Outcome.UNPARSEABLE)
    assert time.process_time() - started < 30


def test_a_good_value_of_50_mb_is_one() -> None:
    found = judged(json.dumps([{"name": "x" * 80, "n": n} for n in range(500_000)]))
    assert found.outcome is Outcome.OK
    assert len(found.value) == 500_000


# ---------------------------------------------------------------- what the judge makes of it


def test_a_repaired_value_is_validated_and_marked() -> None:
    judge = Judge({"type": "object", "properties": {"n": {"type": "integer"}}}, repair=True)
    good, bad = judged("{'n': 1,}", judge), judged("{'n': 'x',}", judge)
    assert (good.outcome, good.value, good.repaired) == (Outcome.OK, {"n": 1}, "library")
    assert (bad.outcome, bad.repaired) == (Outcome.INVALID, "library")
    assert judged("{'n': 1,}", Judge({"type": "object"})).outcome is Outcome.UNPARSEABLE


def test_what_was_cut_at_the_limit_is_not_repaired() -> None:
    found = LOOSE.line(line("{'n': 1,}", "MAX_TOKENS"))
    assert isinstance(found, Answer)
    assert (found.outcome, found.value) == (Outcome.TRUNCATED, None)


def test_without_repair_the_library_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "json_repair", None)
    assert judged("{'n': 1,}", Judge({"type": "object"})).outcome is Outcome.UNPARSEABLE
    with pytest.raises(ImportError):
        judged("{'n': 1,}")


# ---------------------------------------------------------------- collections


def test_the_report_over_a_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    rows = [
        {"id": "a", "input": "{'n': 1}", "expected": {"n": 1}, "tags": ["single_quotes"]},
        {"id": "b", "input": "[1, 2", "expected": [1, 2], "tags": ["truncated"]},
        {"id": "c", "input": "(1)", "expected": 1, "tags": ["leading_prose"]},
        {"id": "d", "input": "So [1]", "expected": [2], "tags": ["leading_prose"]},
    ]
    path = tmp_path / "messy.jsonl"
    path.write_text(
        "".join(json.dumps({**row, "expected_kind": "value", "tier": "A"}) + "\n" for row in rows),
        encoding="utf-8",
    )
    monkeypatch.setattr(sys, "argv", ["messy", str(path)])
    assert messy.main() == 0
    told = capsys.readouterr().out
    assert [line.split()[-3:] for line in told.splitlines()[1:4]] == [
        ["0", "1", "1"], ["1", "0", "0"], ["1", "0", "0"]
    ]  # fmt: skip
    assert "tier A, not as expected: 2" in told
    assert 'd  as it is, leading_prose: "So [1]"  another value [1]' in told
