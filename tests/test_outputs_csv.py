"""CSV as others read it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from test_outputs import spec_of, written

from runner.specmodel import Destination


@pytest.mark.parametrize("text", ["a\rb", "a\nb", "a\r\nb", 'a"b', "a,b", "=SUM(A1)", "'x", "\u2028", "é"])
def test_texts_stand_as_they_are(tmp_path: Path, text: str) -> None:
    spec = spec_of(tmp_path, Destination(path="x.csv"))
    data = written(spec, [{"_key": "k", "text": text}]).read_bytes()
    assert data.endswith(b"\n")
    assert not data.endswith(b"\r\n")
    rows = list(csv.reader(io.StringIO(data.decode(), newline="")))
    assert [len(row) for row in rows] == [8, 8]
    assert rows[1][:2] == ["k", text]


def test_values_are_written_as_in_json(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, Destination(path="x.csv"))
    record = {"_key": "k", "count": 10**30, "score": 1e-7, "sure": True, "tags": [], "any": "1"}
    path = written(spec, [record, {"_key": "l", "sure": False, "any": False}])
    assert path.read_text() == (
        f'_key,text,count,score,sure,tags,place,any\nk,,{10**30},1e-7,true,[],,"""1"""\nl,,,,false,,,false\n'
    )
