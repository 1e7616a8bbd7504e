from __future__ import annotations

from pathlib import Path

import pytest

from runner import yamlfile
from runner.errors import SpecInvalid, UsageInvalid
from runner.specformat import format_text

MESSY = """\

# yaml-language-server: $schema=../schemas/spec.v1.json
# About tickets.

# the name
name: tickets   \nversion: 1
destination: out/x.jsonl   # where


prompt: |
      Line one
        indented   \n
      last {{ input.text }}
# which model
model: gemini-3.5-flash-lite
inputs:
-   files:
        glob: data/*.txt
        # skip drafts
        exclude:
            - a
            -   b
    on_bad_row: skip
- data/b/*.txt
generation_config:
    temperature: 0.2
    thinking_config: {thinking_level: low,
      include_thoughts: true}
    stop_sequences: ["a
       b", c]
extra_body:
      x:
      - - 1
        - 2
      - k: |2
           deep
        z: 1
output_schema:
   type: object
   properties:
      a:
         type: string
         description: >
             folded text
             here

             and on
      b: {type: number}


# the end
"""

NEAT = """\
# yaml-language-server: $schema=../schemas/spec.v1.json
# About tickets.

version: 1
# the name
name: tickets
inputs:
  - files:
      glob: data/*.txt
      # skip drafts
      exclude:
        - a
        - b
    on_bad_row: skip
  - data/b/*.txt
# which model
model: gemini-3.5-flash-lite

prompt: |
  Line one
    indented   \n
  last {{ input.text }}
generation_config:
  temperature: 0.2
  thinking_config: {thinking_level: low,
    include_thoughts: true}
  stop_sequences: ["a
     b", c]
extra_body:
  x:
    - - 1
      - 2
    - k: |2
         deep
      z: 1
output_schema:
  type: object
  properties:
    a:
      type: string
      description: >
        folded text
        here

        and on
    b: {type: number}
destination: out/x.jsonl   # where

# the end
"""


def test_a_messy_spec_becomes_neat() -> None:
    assert format_text(MESSY) == NEAT


def test_a_neat_spec_stays_as_it_is() -> None:
    assert format_text(NEAT) == NEAT


def test_line_ends_and_the_byte_order_mark_go() -> None:
    assert format_text("\ufeff" + MESSY.replace("\n", "\r\n")) == NEAT


@pytest.mark.parametrize(
    "text",
    [
        "version: 1\nname: x\n",
        "{version: 1, name: x}\n",
        "---\nversion: 1\n",
        "prompt: |+\n  a\n",
        "prompt: |2-\n    a\n   b\n",
        "prompt: >\n  a\n   b\n\n\n  c\n",
        "prompt: 'a\n\n  b'\nversion: 1\n",
        "prompt: a\n  b\n\n  c\nversion: 1\n",
        "inputs:\n# one\n- a\n\n# two\n-\n  b\n",
        "inputs:\n-\n    files:\n      glob: x\n",
        "unknown: 1\nname: x\n# end\n",
        "labels:\n   a: b # c\n\n\n   # d\n   e: |\n      f\n      # g\n",
        "description:\n     a\nextra_body:\n    - 'x\n      y'\n    -\n      {a: 1}\n"
        "    -\n        - |\n            t\n",
        "extra_body: [a,\nb,\n  {c: d,\n e: f}]\n",
        "extra_body: &x\n    a: 1\nlabels: {}\n",
    ],
)
def test_values_survive_and_a_second_time_changes_nothing(text: str) -> None:
    once = format_text(text)
    before, after = yamlfile.parse(text.encode(), "a"), yamlfile.parse(once.encode(), "b")
    assert after.value == before.value
    assert format_text(once) == once
    assert [c for c in text if c == "#"] == [c for c in once if c == "#"]


def test_every_readable_spec_of_the_goldens_survives() -> None:
    count = 0
    for path in sorted((Path(__file__).parent / "golden" / "specs").glob("*/spec.yaml")):
        document = yamlfile.read(path, "spec.yaml")
        if document.value is not None and not document.problems:
            once = format_text(path.read_text(encoding="utf-8"))
            assert yamlfile.parse(once.encode(), "x").value == document.value
            assert format_text(once) == once
            count += 1
    assert count > 30


@pytest.mark.parametrize(
    "text",
    [
        "destination: &d out.jsonl\nname: *d\n",
        "prompt: |+\n  a\n\n\nversion: 1\n",
        "extra_body:\n    ? a\n    : b\n",
    ],
)
def test_what_would_change_its_meaning_is_refused(text: str) -> None:
    with pytest.raises(UsageInvalid):
        format_text(text)


def test_a_comment_that_ends_a_block_stays_with_it() -> None:
    text = (
        "generation_config:\n    stop_sequences:\n    - a\n    # after a\n    # more\n  # of it all\n"
        "# of the name\nname: x\nlabels:\n  a: b\n  # the last"
    )

    once = format_text(text)

    assert once == (
        "# of the name\nname: x\nlabels:\n  a: b\n  # the last\n"
        "generation_config:\n  stop_sequences:\n    - a\n    # after a\n    # more\n  # of it all\n"
    )
    assert format_text(once) == once


def test_what_cannot_be_read_is_not_formatted() -> None:
    with pytest.raises(SpecInvalid) as caught:
        format_text("a: [1\n", "jobs/a.yaml")
    assert caught.value.diagnostics[0].path == "jobs/a.yaml"
    with pytest.raises(SpecInvalid):
        format_text("a: 1\na: 2\n")
