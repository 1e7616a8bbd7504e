"""A collection of messy answers, run through `extract_json`: `make messy MESSY=path/to/messy.jsonl`.

One JSON object per line: `id`, `input`, `expected_kind` (`value`, or another word where there is none),
`expected`, `tags` and `tier` (A where independent tools agree with `expected`).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from runner.answer_json import extract_json

NEARLY = (
    "trailing_comma",
    "single_quotes",
    "comment_like",
    "python_literals",
    "unquoted_key",
    "smart_quotes",
)
FOUND = ("fence", "leading_prose", "bom", "valid_json")
RESULTS = ("right", "nothing", "another value")
"""`nothing`: a value was expected. `another value`: also where none was expected."""


def group(case: Mapping[str, Any]) -> tuple[str, str]:
    """What gbrun promises about a case of this kind, and the kind."""
    tags = case["tags"]
    if "truncated" in tags:
        return "never", "truncated"
    if "valid_json" in tags:
        return "as it is", "valid_json"
    for promise, kinds in (("with repair", NEARLY), ("as it is", FOUND)):
        for kind in kinds:
            if kind in tags:
                return promise, kind
    return "no promise", tags[0]


def result(case: Mapping[str, Any]) -> tuple[str, Any]:
    """How a case came out, and the value."""
    promise, _ = group(case)
    found = extract_json(case["input"], repair=promise != "as it is")
    wanted = promise != "never" and case["expected_kind"] == "value"
    if found is None:
        return ("nothing" if wanted else "right"), None
    return ("right" if wanted and found[0] == case["expected"] else "another value"), found[0]


def report(cases: Iterable[Mapping[str, Any]]) -> list[str]:
    """The table by promise, kind and tier, and every case of tier A that is not as expected."""
    counts: Counter[tuple[str, str, str, str]] = Counter()
    differ = []
    for case in cases:
        how, value = result(case)
        promise, kind = group(case)
        counts[promise, kind, case["tier"], how] += 1
        if case["tier"] == "A" and how != "right":
            told = f"{how} {json.dumps(value)[:80]}" if value is not None else how
            differ.append(f"{case['id']}  {promise}, {kind}: {json.dumps(case['input'])[:100]}  {told}")
    lines = [f"{'promise':12}{'kind':18}{'tier':6}" + "".join(f"{name:>15}" for name in RESULTS)]
    for promise, kind, tier in sorted({key[:3] for key in counts}):
        numbers = "".join(f"{counts[promise, kind, tier, name]:>15}" for name in RESULTS)
        lines.append(f"{promise:12}{kind:18}{tier:6}{numbers}")
    return [*lines, "", f"tier A, not as expected: {len(differ)}", *differ]


def main() -> int:
    if len(sys.argv) != 2:
        sys.stderr.write("usage: make messy MESSY=path/to/messy.jsonl\n")
        return 64
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    cases = [json.loads(line) for line in text.split("\n") if line.strip()]
    sys.stdout.write("\n".join(report(cases)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
