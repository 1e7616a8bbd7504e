"""Response lines become answers: each class, hostile lines, JSON found in text, records and failures."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from builders import error_line, make_spec, ok_line, response_body
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from runner import parts
from runner.model import Answer, Outcome, Stored
from runner.records import body, failure, record
from runner.results import Judge, Stray, dump_line

SCHEMA = {
    "type": "object",
    "properties": {"topic": {"type": "string"}, "when": {"type": "string", "format": "date-time"}},
    "required": ["topic"],
}
STRICT, FREE = Judge(SCHEMA), Judge(None)


def judged(line: bytes, judge: Judge = FREE) -> Answer:
    found = judge.line(line)
    assert isinstance(found, Answer), found
    return found


# ---------------------------------------------------------------- one of each class

FEEDBACK = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 9}}
CLASSES: list[tuple[str, Judge, bytes, Outcome, str]] = [
    ("text", FREE, ok_line("r", "hello"), Outcome.OK, ""),
    ("valid", STRICT, ok_line("r", '{"topic": "bill"}'), Outcome.OK, ""),
    ("in parts", STRICT, ok_line("r", '{"topic"', ': "bill"}'), Outcome.OK, ""),
    ("no finish reason", FREE, ok_line("r", "hello", finish=None), Outcome.OK, ""),
    ("unknown finish reason, with text", FREE, ok_line("r", "hello", finish="NEW_ONE"), Outcome.OK, ""),
    ("call, no schema", FREE, ok_line("r", {"functionCall": {"name": "f", "args": {}}}), Outcome.OK, ""),
    ("call, schema", STRICT, ok_line("r", {"functionCall": {"name": "f"}}), Outcome.UNPARSEABLE, "NOT_JSON"),
    ("missing field", STRICT, ok_line("r", "{}"), Outcome.INVALID, "SCHEMA"),
    ("wrong type", STRICT, ok_line("r", "[1]"), Outcome.INVALID, "SCHEMA"),
    ("wrong format", STRICT, ok_line("r", '{"topic": "a", "when": "soon"}'), Outcome.INVALID, "SCHEMA"),
    ("no JSON", STRICT, ok_line("r", "It is a bill."), Outcome.UNPARSEABLE, "NOT_JSON"),
    ("cut", STRICT, ok_line("r", '{"topic": "bi'), Outcome.UNPARSEABLE, "NOT_JSON"),
    (
        "max tokens",
        STRICT,
        ok_line("r", '{"topic": "bi', finish="MAX_TOKENS"),
        Outcome.TRUNCATED,
        "MAX_TOKENS",
    ),
    (
        "max tokens, whole",
        STRICT,
        ok_line("r", '{"topic": "b"}', finish="MAX_TOKENS"),
        Outcome.TRUNCATED,
        "MAX_TOKENS",
    ),
    ("max tokens, no text", FREE, ok_line("r", finish="MAX_TOKENS"), Outcome.TRUNCATED, "MAX_TOKENS"),
    (
        "prompt blocked",
        FREE,
        orjson.dumps({"key": "r", "response": FEEDBACK}),
        Outcome.BLOCKED,
        "PROHIBITED_CONTENT",
    ),
    ("safety", FREE, ok_line("r", "half", finish="SAFETY"), Outcome.BLOCKED, "SAFETY"),
    ("recitation", FREE, ok_line("r", finish="RECITATION"), Outcome.BLOCKED, "RECITATION"),
    ("unknown finish reason, no text", FREE, ok_line("r", finish="NEW_ONE"), Outcome.BLOCKED, "NEW_ONE"),
    ("bad argument", FREE, error_line("r", 3), Outcome.REJECTED, "INVALID_ARGUMENT"),
    ("not found", FREE, error_line("r", 5), Outcome.REJECTED, "NOT_FOUND"),
    ("rights", FREE, error_line("r", 7), Outcome.REJECTED, "PERMISSION_DENIED"),
    ("unknown code", FREE, error_line("r", 77), Outcome.REJECTED, "CODE_77"),
    *(
        (f"row error {code}", FREE, error_line("r", code), Outcome.TRANSIENT, name)
        for code, name in {
            1: "CANCELLED",
            2: "UNKNOWN",
            4: "DEADLINE_EXCEEDED",
            8: "RESOURCE_EXHAUSTED",
            9: "FAILED_PRECONDITION",
            10: "ABORTED",
            13: "INTERNAL",
            14: "UNAVAILABLE",
        }.items()
    ),
    ("error without a code", FREE, b'{"key":"r","error":{}}', Outcome.TRANSIENT, "UNKNOWN"),
    ("stop without parts", FREE, ok_line("r"), Outcome.TRANSIENT, "EMPTY"),
    ("no candidates", FREE, b'{"key":"r","response":{}}', Outcome.TRANSIENT, "NO_CANDIDATES"),
    ("neither", FREE, b'{"key":"r"}', Outcome.TRANSIENT, "EMPTY"),
    ("response is null", FREE, b'{"key":"r","response":null}', Outcome.TRANSIENT, "EMPTY"),
    (
        "echo and nulls",
        FREE,
        orjson.dumps(
            {"key": "r", "status": "", "error": None, "request": {}, "response": response_body("x")}
        ),
        Outcome.OK,
        "",
    ),
]


@pytest.mark.parametrize(
    ("judge", "line", "outcome", "code"), [c[1:] for c in CLASSES], ids=[c[0] for c in CLASSES]
)
def test_classes(judge: Judge, line: bytes, outcome: Outcome, code: str) -> None:
    found = judged(line, judge)

    assert (found.request_id, found.outcome, found.code) == ("r", outcome, code)
    assert bool(found.message) == (outcome is not Outcome.OK)


def test_what_is_kept_of_an_answer() -> None:
    found = judged(ok_line("r", {"text": "thinking", "thought": True}, "a", {"inlineData": {}}, "b"))

    assert (found.text, found.parts) == ("ab", ({"inlineData": {}},))
    assert found.usage == {"prompt": 11, "output": 5, "thoughts": 3}
    assert (found.model_version, found.finish_reason) == ("gemini-3.5-flash-lite", "STOP")


def test_counts_may_be_written_as_text() -> None:
    assert judged(ok_line("r", "a", usageMetadata={"promptTokenCount": "7"})).usage == {"prompt": 7}


def test_each_error_has_its_path_and_the_first_five_are_told() -> None:
    judge = Judge({"items": {"type": "object", "properties": {"n": {"type": "integer"}}}})
    found = judged(ok_line("r", json.dumps([{"n": "x"}] * 9)), judge)

    assert found.message.startswith('/0/n: "x" is not of type "integer"; /1/n: ')
    assert found.message.count("is not of type") == 5
    assert found.raw == json.dumps([{"n": "x"}] * 9)


def test_messages_are_short() -> None:
    assert len(judged(error_line("r", 3, "x" * 10_000)).message) == 500
    assert len(judged(ok_line("r", json.dumps({"topic": ["x" * 9000]})), STRICT).message) == 500


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (orjson.dumps({"response": response_body("x"), "metadata": {"key": "r7"}}), "r7"),
        (orjson.dumps({"metadata": {"key": "r8"}, "error": {"code": 13, "message": "m"}}), "r8"),
        (orjson.dumps({"key": "r9", "metadata": {"key": "other"}, "response": response_body("x")}), "r9"),
    ],
)
def test_the_inline_form_has_its_key_in_the_metadata(line: bytes, key: str) -> None:
    assert judged(line).request_id == key


# ---------------------------------------------------------------- hostile lines

BIG = "x" * 5_000_000
DEEP = b'{"a":' * 10_000 + b"1" + b"}" * 10_000


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"null", "null"),
        (b"[]", "not an object"),
        (b'"r"', "not an object"),
        (b"17", "not an object"),
        (b"{}", "no key"),
        (b'{"key":null}', "no key"),
        (b'{"key":""}', "no key"),
        (b'{"key":7,"response":{}}', "no key"),
        (b'{"key":["r"]}', "no key"),
        (b'{"metadata":{"key":{}}}', "no key"),
        (b'{"metadata":[]}', "no key"),
        (b"", "unreadable"),
        (b"\xff\xfe{}", "unreadable"),
        (b'{"key":"r","response":"\xc3\x28"}', "unreadable"),
        (b'{"key":"r","response":{"candidates":[', "unreadable"),
        (b'{"key":"r","x":NaN}', "unreadable"),
        (b'{"key":"r","x":-Infinity}', "unreadable"),
        (b"[" * 10_000, "unreadable"),
        (b'{"key":"r","response":' + DEEP + b"}", "unreadable"),
        (b'{"key":"r"} {"key":"s"}', "unreadable"),
        (b"\x00", "unreadable"),
    ],
)
def test_lines_that_answer_nothing(line: bytes, what: str) -> None:
    assert FREE.line(line) == Stray(what) == STRICT.line(line)


ODD: list[bytes] = [
    ok_line("r", BIG),
    b'{"key":"r","key":"s","response":{}}',
    b'{"key":"r","response":{"candidates":null}}',
    b'{"key":"r","response":{"candidates":{}}}',
    b'{"key":"r","response":{"candidates":[null]}}',
    b'{"key":"r","response":{"candidates":[{"content":null,"finishReason":7}]}}',
    b'{"key":"r","response":{"candidates":[{"content":{"parts":[null,1,"x",{"text":null},{}]}}]}}',
    b'{"key":"r","response":{"promptFeedback":[],"usageMetadata":[],"modelVersion":{}}}',
    b'{"key":"r","response":{"promptFeedback":{"blockReason":{}}}}',
    b'{"key":"r","response":[]}',
    b'{"key":"r","error":"words"}',
    b'{"key":"r","error":{"code":"13","message":["x"]}}',
    b'{"key":"r","error":{"code":' + b"9" * 30 + b"}}",
    b'{"key":"r","response":{"usageMetadata":{"promptTokenCount":-1,"candidatesTokenCount":1.5}}}',
    b'{"key":"r\\ud800","response":{}}',
    ok_line("r", '{"topic": "' + "\u2028\u0085" + '"}'),
    ok_line("r", "[" * 100_000),
    ok_line("r", '{"topic":' * 5_000),
    ok_line("r", "{[" * 100_000),
    ok_line("r", "```json\n" * 20_000),
    ok_line("r", '{"topic": NaN}'),
    ok_line("r", '{"topic": ' + "9" * 400 + "}"),
]
CRASHES = [
    pytest.param(
        ok_line("r", "a", usageMetadata={"promptTokenCount": "²"}), id="digits that int() does not take"
    ),
    pytest.param(
        ok_line("r", "a", usageMetadata={"promptTokenCount": "9" * 5000}), id="a count of 5,000 digits"
    ),
    pytest.param(ok_line("r", '{"topic": ' + "9" * 5000 + "}"), id="a number of 5,000 digits"),
    pytest.param(ok_line("r", '{"topic": ' + "[" * 900 + "]" * 900 + "}"), id="900 levels deep"),
]


def check_an_outcome(line: bytes) -> None:
    """Whatever the line holds, it ends in an outcome that can be stored."""
    for judge in (FREE, STRICT):
        found = judge.line(line)
        if isinstance(found, Answer):
            stored = Stored(
                jobs=1,
                request_id="r",
                outcome=found.outcome,
                token="t",
                code=found.code,
                message=found.message,
                usage=found.usage,
                model_version=found.model_version,
                finish_reason=found.finish_reason,
            )
            loaded = parts.load_outcome(parts.dump_outcome(stored))
            assert (loaded.outcome, loaded.usage, bool(loaded.message)) == (
                found.outcome,
                found.usage,
                bool(found.message),
            )


@pytest.mark.parametrize("line", ODD, ids=range(len(ODD)))
def test_odd_lines_end_in_an_outcome(line: bytes) -> None:
    check_an_outcome(line)


@pytest.mark.parametrize("line", CRASHES)
def test_what_is_too_long_or_too_deep_ends_in_an_outcome(line: bytes) -> None:
    check_an_outcome(line)


@pytest.mark.parametrize(
    "line",
    [
        b'{"key":"r","error":{"code":3,"message":"bad \\ud800 text"}}',
        b'{"key":"r","response":{"modelVersion":"m\\udfff","candidates":[]}}',
        ok_line("r", "a", usageMetadata={"promptTokenCount": "9" * 30}),
        ok_line("r", '{"topic": ["\\ud800"]}'),
    ],
    ids=[
        "surrogate in a message",
        "surrogate in a version",
        "count over 64 bits",
        "surrogate in a schema error",
    ],
)
def test_what_is_told_of_a_line_can_be_stored(line: bytes) -> None:
    check_an_outcome(line)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "x", "{", "STOP"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "error",
                        "code",
                        "message",
                        "response",
                        "candidates",
                        "content",
                        "parts",
                        "text",
                        "thought",
                        "finishReason",
                        "promptFeedback",
                        "blockReason",
                        "usageMetadata",
                        "promptTokenCount",
                        "modelVersion",
                        "metadata",
                        "key",
                    ]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    )
)
def test_any_shape_ends_in_an_outcome(body: Any) -> None:
    line = orjson.dumps({**body, "key": "r"} if isinstance(body, dict) else body)

    check_an_outcome(line)


# ---------------------------------------------------------------- records


def made(line: bytes, judge: Judge, key: str = "a.txt", **meta: Any) -> bytes:
    schema = {"type": "object"} if judge is STRICT else None
    return record(key, dump_line(body(judged(line, judge), make_spec(output_schema=schema)) | meta))


@pytest.mark.parametrize(
    ("line", "judge", "expected"),
    [
        (ok_line("r", '{"topic": "bill"}'), STRICT, b'{"_key":"a.txt","topic":"bill"}\n'),
        (ok_line("r", "hi\u2028"), FREE, '{"_key":"a.txt","text":"hi\u2028"}\n'.encode()),
        (
            ok_line("r", {"functionCall": {"name": "f"}}),
            FREE,
            b'{"_key":"a.txt","text":"","parts":[{"functionCall":{"name":"f"}}]}\n',
        ),
        (
            ok_line("r", '```json\n{"topic": "x"}\n```'),
            STRICT,
            b'{"_key":"a.txt","topic":"x","_repaired":"fence"}\n',
        ),
    ],
)
def test_records(line: bytes, judge: Judge, expected: bytes) -> None:
    assert made(line, judge) == expected


def test_an_answer_that_is_no_object_is_a_value() -> None:
    answer = judged(ok_line("r", "[1]"), Judge({"type": "array"}))

    assert record("k", dump_line(body(answer, make_spec(output_schema={})))) == b'{"_key":"k","value":[1]}\n'


def test_an_empty_object_is_a_record() -> None:
    answer = judged(ok_line("r", "{}"), Judge({"type": "object"}))

    assert record("k", dump_line(body(answer, make_spec(output_schema={})))) == b'{"_key":"k"}\n'


def test_meta_stands_behind_the_fields() -> None:
    assert made(ok_line("r", "hi"), FREE, _usage={"prompt": 1}) == (
        b'{"_key":"a.txt","text":"hi","_usage":{"prompt":1}}\n'
    )


@pytest.mark.parametrize("key", ['quo"te', "日本", "a\u2028b", "back\\slash"])
def test_keys_are_encoded(key: str) -> None:
    line = made(ok_line("r", "hi"), FREE, key)

    assert orjson.loads(line) == {"_key": key, "text": "hi"}
    assert line.count(b"\n") == 1


def test_an_answer_cannot_take_the_key_of_another_row() -> None:
    line = made(ok_line("r", '{"topic": "x", "_key": "other.txt"}'), STRICT)

    assert orjson.loads(line)["_key"] == "a.txt"
    assert line.count(b'"_key"') == 1


@pytest.mark.parametrize(
    "number",
    [
        "123456789012345678901234567890",
        "9007199254740993",
        "1e400",
    ],
)
def test_a_number_is_kept_or_refused_but_never_another_one(number: str) -> None:
    found = STRICT.line(ok_line("r", '{"topic": "x", "n": ' + number + "}"))
    assert isinstance(found, Answer)

    if found.outcome is Outcome.OK:
        assert json.loads(record("k", dump_line(body(found, make_spec(output_schema={})))))["n"] == int(
            number
        )


def test_a_lone_surrogate_can_be_written() -> None:
    line = made(ok_line("r", '{"topic": "\\ud800"}'), STRICT)

    assert json.loads(line) == {"_key": "a.txt", "topic": "\ud800"}
    assert line.isascii()


def test_failures_have_the_fields_of_the_design() -> None:
    assert failure("k", "blocked", "SAFETY", "stopped", 2, {"a": 1}) == (
        b'{"_key":"k","outcome":"blocked","code":"SAFETY","message":"stopped","attempts":2,"raw":{"a":1}}\n'
    )


def test_any_value_makes_one_line() -> None:
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    for value in (deep, "\ud800", 10**30, {"a": "\u2028"}):
        line = dump_line(value)
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        assert json.loads(line) == value


# ---------------------------------------------------------------- the usual line, read fast

_PARTS = st.lists(
    st.one_of(
        st.builds(lambda text: {"text": text}, st.sampled_from(["", "{}", '{"topic": "x"}', "words", "[1]"])),
        st.just({"text": "thinking", "thought": True}),
        st.just({"text": "x", "thought": False, "thoughtSignature": "c2ln"}),
        st.sampled_from([{"functionCall": {"name": "f"}}, {"text": 1}, {}, None, {"text": "x", "new": 1}]),
    ),
    max_size=3,
)
_COUNTS = st.sampled_from([0, 5, "7", -1, True, None, 1.5, 1 << 60])


@given(
    parts=_PARTS,
    reason=st.sampled_from(["STOP", "MAX_TOKENS", "SAFETY", "", None]),
    counts=st.lists(_COUNTS, max_size=4),
    more=st.dictionaries(
        st.sampled_from(["error", "metadata", "promptFeedback", "new"]), st.just({}), max_size=2
    ),
    key=st.sampled_from(["r1", "", None, 5]),
)
@settings(max_examples=400, deadline=None)
def test_the_usual_line_is_judged_as_every_other(
    parts: list[Any], reason: Any, counts: list[Any], more: dict[str, Any], key: Any
) -> None:
    names = ["promptTokenCount", "cachedContentTokenCount", "candidatesTokenCount", "thoughtsTokenCount"]
    response: dict[str, Any] = {
        "candidates": [{"content": {"parts": parts, "role": "model"}, "finishReason": reason, "index": 0}],
        "usageMetadata": dict(zip(names, counts, strict=False)),
        "modelVersion": "m",
    }
    feedback = {name: more[name] for name in more if name == "promptFeedback"}
    outer = {name: more[name] for name in more if name != "promptFeedback"}
    line = json.dumps({"key": key, "response": response | feedback, **outer}).encode()
    for judge in (STRICT, FREE):
        found = judge.line(line)
        if isinstance(found, Answer) and found.dumped:
            assert found.dumped == dump_line(found.value)
            found = structs.replace(found, dumped=b"")
        assert found == judge._line(line)


@pytest.mark.parametrize("levels", [254, 255])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"n":', "}")])
def test_what_is_nested_too_deep_is_so_for_the_fast_reading_too(
    levels: int, opening: str, closing: str
) -> None:
    inner = "1" if closing == "}" else ""
    text = '{"topic":"x","n":' + opening * (levels - 1) + inner + closing * (levels - 1) + "}"
    line = ok_line("r1", text)
    found, thorough = STRICT.line(line), STRICT._line(line)
    assert isinstance(found, Answer)
    assert isinstance(thorough, Answer)
    assert found.outcome is thorough.outcome
    assert (found.outcome is Outcome.OK) == (levels <= 254)


def test_most_lines_are_read_fast() -> None:
    assert STRICT._text(ok_line("r1", '{"topic": "x"}')) is not None
    assert FREE._text(ok_line("r1", "thinking", "x")) is not None
    assert STRICT._text(error_line("r1", 3)) is None
    assert STRICT._text(ok_line("r1", "no JSON")) is None


REAL = "r" + "0123456789abcdef" * 2


@pytest.mark.parametrize(
    "rest",
    [
        b'"response":' + DEEP,
        b'"response":"\xc3\x28"',
        b'"response":{"x":NaN}',
        b'"response":{"x":1e999}',
        b'"error":{"code":3,"details":' + b"[" * 300 + b"]" * 300 + b"}",
    ],
    ids=["deep", "not UTF-8", "NaN", "infinite", "deep error"],
)
def test_a_whole_line_that_cannot_be_read_is_the_outcome_of_its_request(rest: bytes) -> None:
    line = b'{"key":"' + REAL.encode() + b'",' + rest + b"}"
    for judge in (STRICT, FREE):
        found = judge.line(line)
        assert isinstance(found, Answer)
        assert (found.request_id, found.outcome, found.code) == (REAL, Outcome.UNPARSEABLE, "UNREADABLE_LINE")
    # Cut off anywhere, it is half a line: its request counts as missing.
    for end in (len(line) - 1, len(line) // 2, 50):
        assert STRICT.line(line[:end]) == Stray("unreadable")


def test_a_line_that_names_two_requests_is_nobodys() -> None:
    other = REAL.replace("0", "f")
    line = f'{{"key":"{REAL}","x":NaN}} {{"key":"{other}"}}'.encode()
    assert STRICT.line(line) == Stray("unreadable")


def test_a_key_inside_an_answer_names_nothing() -> None:
    answer = json.dumps(json.dumps({"key": REAL})).encode()
    assert STRICT.line(b'{"key":"x","response":{"x":NaN,"text":' + answer + b"}}") == Stray("unreadable")


@pytest.mark.parametrize("value", [b"1" + b"0" * 400, b"true", b'"1"', b"null"])
def test_a_vector_of_anything_but_doubles_is_none(value: bytes) -> None:
    line = b'{"key":"r1","response":{"embedding":{"values":[' + value + b",1]}}}"
    found = Judge(None, embeds=True).line(line)
    assert isinstance(found, Answer)
    assert (found.outcome, found.code) == (Outcome.UNPARSEABLE, "NOT_NUMBERS")


def test_an_error_may_be_words_alone() -> None:
    found = Judge(None).line(b'{"key":"r1","error":"backend went away"}')
    assert isinstance(found, Answer)
    assert (found.outcome, found.code, found.message) == (Outcome.TRANSIENT, "UNKNOWN", "backend went away")


@pytest.mark.parametrize("parts", [["{}"], ["{}", {"functionCall": {"name": "f"}}]], ids=["short", "long"])
def test_the_name_of_an_answer_is_read_either_way(parts: list[Any]) -> None:
    found = Judge(None).line(ok_line("r1", *parts, responseId="Zx9"))
    assert isinstance(found, Answer)
    assert found.response_id == "Zx9"
