from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from runner import yamlfile
from runner.yamlfile import Document, parse, parse_json


def codes(document: Document) -> list[str]:
    return [found.code for found in document.problems]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("Off", "Off"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("12:30:45", "12:30:45"),
        ("0644", "0644"),
        ("-007", "-007"),
        ("00.5", "00.5"),
        ("2026-11-21", "2026-11-21"),
        ("2026-11-21T10:00:00Z", "2026-11-21T10:00:00Z"),
        ("0", 0),
        ("-12", -12),
        ("+3", 3),
        ("0o17", 15),
        ("0x1F", 31),
        ("1e-3", 0.001),
        ("1.", 1.0),
        (".5", 0.5),
        ("-1.5E+3", -1500.0),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("=", "="),
        ("18446744073709551615", 18446744073709551615),
        ('"5"', "5"),
        ("'no'", "no"),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
        ("! 5", "5"),
    ],
)
def test_scalars_follow_yaml_1_2(written: str, value: object) -> None:
    document = parse(f"a: {written}\n".encode(), "s.yaml")
    assert document.problems == ()
    found = document.value["a"]
    assert (found, type(found)) == (value, type(value))


def test_marks_name_the_place_of_keys_and_values() -> None:
    text = "a: one\nb:\n  - {c: 'two'}\n  - |\n    three\n"
    marks = parse(text.encode(), "s.yaml").marks
    inner = marks["b", 0, "c"]
    assert (inner.line, inner.column, inner.length, inner.style) == (3, 9, 5, "'")
    assert (inner.key_line, inner.key_column, inner.key_length) == (3, 6, 1)
    assert (marks["a",].column, marks["a",].length) == (4, 3)
    assert (marks["b", 1].line, marks["b", 1].style, marks["b", 1].key_line) == (4, "|", 0)


def test_marks_count_characters_after_wide_ones_and_all_line_ends() -> None:
    text = "\ufeff# 😀\r\né😀: x\ry: [é, z]\n"
    document = parse(text.encode(), "s.yaml")
    assert document.problems == ()
    assert document.marks["y", 1].line == 3
    assert document.marks["y", 1].column == 8


def test_an_alias_has_its_own_place_and_the_anchor_its_inside() -> None:
    document = parse(b"a: &x {k: v}\nb: *x\n", "s.yaml")
    assert document.value == {"a": {"k": "v"}, "b": {"k": "v"}}
    assert document.marks["b",].line == 2
    assert document.marks["b", "k"].line == 1


def test_duplicate_keys_name_both_lines() -> None:
    document = parse(b"a: 1\nb: 2\na: 3\n", "s.yaml")
    assert codes(document) == ["GB009"]
    found = document.problems[0]
    assert (found.line, found.column) == (3, 1)
    assert "line 1" in found.message
    assert "lines 1 and 3" in found.hint


def test_all_problems_of_the_values_are_found_in_one_run() -> None:
    text = b"a: .nan\nb: 1e999\n1: x\n<<: {}\nc: !x y\nc: 99999999999999999999\n"
    assert codes(parse(text, "s.yaml")) == ["GB017", "GB017", "GB016", "GB014", "GB015", "GB017", "GB009"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", "GB004"),
        (b"# only\n\n", "GB004"),
        (b"---\n...\n", "GB004"),
        (b"- a\n", "GB011"),
        (b"text\n", "GB011"),
        (b"42\n", "GB011"),
        (b"a: 1\n---\nb: 2\n", "GB010"),
        (b"a: \xff\n", "GB002"),
        ("a: 1\n".encode("utf-16"), "GB002"),
        (b"a: b\0c\n", "GB003"),
        (b"a: \x1b[0m\n", "GB003"),
        (b"a:\n\tb: 1\n", "GB007"),
        (b"<<<<<<< HEAD\na: 1\n=======\na: 2\n>>>>>>> x\n", "GB008"),
        (b"a: *b\n", "GB006"),
        (b"a: **/*.txt\n", "GB006"),
        (b"a: @b\n", "GB006"),
        (b"a: [1\n", "GB006"),
        (b"a: 'b\n", "GB006"),
        (b"a: b: c\n", "GB006"),
        (b"a: &x [*x]\n", "GB013"),
        (b"a: " + b"[" * 1000, "GB012"),
        (b"a: " + b"{b: " * 1000, "GB012"),
        (b"- " * 100_000, "GB012"),
        (b"? " * 100_000, "GB012"),
        (b"{" * 100_000, "GB012"),
    ],
)
def test_what_cannot_be_read_is_one_diagnostic(text: bytes, code: str) -> None:
    document = parse(text, "s.yaml")
    assert codes(document) == [code]
    assert document.value is None


def test_an_equals_line_alone_is_no_merge_marker() -> None:
    document = parse(b"a: |\n  text\n\nb: >-\n  =======\n", "s.yaml")
    assert document.value == {"a": "text\n", "b": "======="}


def test_many_aliases_of_many_are_refused_before_they_are_written_out() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    assert codes(parse("\n".join(lines).encode(), "s.yaml")) == ["GB013"]


def test_aliases_that_pile_up_depth_are_refused() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 80)]
    assert codes(parse("\n".join(lines).encode(), "s.yaml")) == ["GB012"]


def test_a_million_values_are_refused() -> None:
    document = parse(b"a: [" + b"1," * 300_000 + b"]\n", "s.yaml")
    assert codes(document) == ["GB013"]


def test_noise_never_raises() -> None:
    chooser = random.Random(7)
    seeds = [
        b"a: &x {b: [1, 'c', \"d\"]}\n",
        b"- |\n  t\n",
        b"? k\n: *x\n",
        b"!!int 5\n",
        b"<<: \t#\n",
        b"---\n",
    ]
    for _ in range(3000):
        data = bytearray(b"".join(chooser.choices(seeds, k=3)))
        for _ in range(chooser.randrange(6)):
            data[chooser.randrange(len(data))] = chooser.randrange(256)
        for document in (parse(bytes(data), "s.yaml"), parse_json(bytes(data), "s.json")):
            assert document.problems or isinstance(document.value, dict)


def test_json_keeps_order_values_and_places() -> None:
    text = b'{\n\t"b": "\\ud83d\\ude00 \\/ \\\\ud83d",\n\t"a": {"n": 1e5, "big": 9007199254740993}\n}\n'
    document = parse_json(text, "s.json")
    assert document.problems == ()
    assert list(document.value) == ["b", "a"]
    assert document.value["b"] == "😀 / \\ud83d"
    assert document.value["a"] == {"n": 100000.0, "big": 9007199254740993}
    assert document.marks["a", "n"].line == 3


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"{a: 1}", "GB018"),
        (b'{"a": 1,}', "GB018"),
        (b'{"a": NaN}', "GB018"),
        (b'{"a": "\\ud83d"}', "GB018"),
        (b'{"a": 1} // no', "GB018"),
        (b'{"a":' * 10_000, "GB018"),
        (b'{"a": 1, "a": 2}', "GB009"),
        (b'{"a": 1e999}', "GB017"),
        (b"[1]", "GB011"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "GB012"),
    ],
)
def test_json_is_held_to_json(text: bytes, code: str) -> None:
    document = parse_json(text, "s.json")
    assert codes(document) == [code]
    assert document.value is None


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert codes(yamlfile.read(tmp_path / "no.yaml", "no.yaml")) == ["GB001"]
    assert codes(yamlfile.read(tmp_path, "here")) == ["GB001"]
    assert codes(yamlfile.read(tmp_path / "a\0b", "odd")) == ["GB001"]
    os.mkfifo(tmp_path / "pipe.yaml")
    assert codes(yamlfile.read(tmp_path / "pipe.yaml", "pipe.yaml")) == ["GB001"]
    large = tmp_path / "large.yaml"
    large.write_bytes(b"a: 1\n" + b"#" * yamlfile.MAX_BYTES)
    assert codes(yamlfile.read(large, "large.yaml")) == ["GB005"]


def test_a_file_at_the_size_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "most.yaml"
    path.write_bytes(b"a: 1\n" + b"#" * (yamlfile.MAX_BYTES - 5))
    assert yamlfile.read(path, "most.yaml").value == {"a": 1}
