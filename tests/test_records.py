"""Judged answers become records, and several samples of a row one record."""

from __future__ import annotations

import json
from typing import Any

import pytest
from builders import make_spec, make_stored
from msgspec import structs

from runner import records
from runner.model import Answer, Outcome
from runner.records import Sample
from runner.specmodel import Samples, Spec

O = Outcome  # noqa: E741
SCHEMA = {"type": "object"}


def sample(value: Any, number: int = 1, outcome: Outcome = O.OK, **stored: Any) -> Sample:
    name = f"r{number}"
    text = value if isinstance(value, str) else ""
    answer = Answer(request_id=name, outcome=outcome, value=value, text=text, code="C", message="m", raw=text)
    return Sample(make_stored(name, outcome, code="C", message="m", **stored), answer)


def asking(count: int, aggregate: str = "all", **more: Any) -> Spec:
    return make_spec(samples=Samples(count=count, aggregate=aggregate), **{"output_schema": SCHEMA, **more})


def combine(aggregate: str, *values: Any, **more: Any) -> dict[str, Any]:
    found = [sample(value, number) for number, value in enumerate(values)]
    return records.combined(found, asking(len(values), aggregate, **more))


@pytest.mark.parametrize(
    ("classes", "needed", "found"),
    [
        (["ok"], 1, "ok"),
        (["ok", "ok"], 2, "ok"),
        (["ok", "blocked"], 1, "ok"),
        (["ok", "blocked"], 2, "blocked"),
        (["missing", "truncated", "ok"], 2, "truncated"),
        (["ok", ""], 1, ""),
        (["transient", ""], 2, ""),
        ([], 0, "ok"),
    ],
)
def test_the_class_of_a_row(classes: list[str], needed: int, found: str) -> None:
    assert records.row_class(classes, needed) == found


def test_one_answer() -> None:
    assert records.combined([sample({"a": 1, "_key": "x"})], asking(1)) == {"a": 1}
    assert records.combined([sample([1, 2])], asking(1)) == {"value": [1, 2]}
    assert records.combined([sample("hello")], make_spec()) == {"text": "hello"}


def test_a_remedied_answer_says_so() -> None:
    assert records.combined([sample({"a": 1}, remedies="maxOutputTokens 200")], asking(1)) == {
        "a": 1,
        "_remedied": "maxOutputTokens 200",
    }


def test_all_keeps_them_in_order_with_null_for_those_that_failed() -> None:
    given = [sample({"a": 1}), sample(None, 2, O.INVALID), sample({"a": 3}, 3)]
    assert records.combined(given, asking(3)) == {"samples": [{"a": 1}, None, {"a": 3}]}


def test_first_takes_the_first_good_one() -> None:
    given = [sample(None, 1, O.BLOCKED), sample({"a": 2}, 2), sample({"a": 3}, 3)]
    assert records.combined(given, asking(3, "first")) == {"a": 2}


def test_majority_goes_field_by_field() -> None:
    found = combine("majority", {"team": "a", "n": 1}, {"team": "b", "n": 1}, {"team": "b", "n": 2})
    assert found == {"team": "b", "n": 1, "_agreement": {"team": 2 / 3, "n": 2 / 3}}


def test_of_equals_the_first_wins() -> None:
    assert combine("majority", {"t": "x"}, {"t": "y"})["t"] == "x"
    assert combine("majority", {"t": "y"}, {"t": "x"})["t"] == "y"


def test_majority_does_not_take_true_for_1_and_compares_whole_values() -> None:
    found = combine("majority", {"t": True}, {"t": 1}, {"t": 1})
    assert found["t"] == 1
    assert not isinstance(found["t"], bool)
    assert combine("majority", {"t": {"a": 1, "b": 2}}, {"t": {"b": 2, "a": 1}}, {"t": 0})["_agreement"] == {
        "t": 2 / 3
    }


def test_a_field_that_most_answers_lack_is_left_out() -> None:
    found = combine("majority", {"a": 1}, {"a": 1}, {"a": 1, "b": 2})
    assert found == {"a": 1, "_agreement": {"a": 1.0, "b": 2 / 3}}


def test_majority_of_texts_and_of_values() -> None:
    assert combine("majority", "yes", "no", "yes", output_schema=None) == {
        "text": "yes",
        "_agreement": {"text": 2 / 3},
    }
    assert combine("majority", 4, 4, 5) == {"value": 4, "_agreement": {"value": 2 / 3}}


def test_mean_of_numbers_and_majority_of_the_rest() -> None:
    found = combine("mean", {"n": 1, "t": "a"}, {"n": 2, "t": "b"}, {"n": 6, "t": "b"})
    assert found == {"n": 3.0, "t": "b", "_agreement": {"t": 2 / 3}}
    assert combine("mean", {"n": 2}, {"n": 2}) == {"n": 2}
    assert combine("mean", 1, 2) == {"value": 1.5}
    # What is not a number everywhere has no average.
    assert combine("mean", {"n": 1}, {"n": None}, {"n": None}) == {"n": None, "_agreement": {"n": 2 / 3}}
    assert "n" in combine("mean", {"n": True}, {"n": True})["_agreement"]


def test_a_failed_row_keeps_what_was_paid_for() -> None:
    given = [sample({"a": 1}), sample("{", 2, O.UNPARSEABLE), sample("", 3, O.BLOCKED)]
    outcome, line = records.failed("k", given, asking(3))
    told = json.loads(line)
    assert (outcome, told["outcome"], told["code"]) == ("unparseable", "unparseable", "C")
    assert told["raw"] == [
        {"a": 1},
        {"outcome": "unparseable", "code": "C", "raw": "{"},
        {"outcome": "blocked", "code": "C", "raw": ""},
    ]


def test_where_samples_came_from_is_a_list_and_tokens_are_summed_up() -> None:
    given = [sample({}, 1, usage={"prompt": 3}), sample({}, 2, usage={"prompt": 4, "output": 1})]
    found = records.meta([one.stored for one in given])
    assert found["_request_id"] == ["r1", "r2"]
    assert found["_usage"] == {"prompt": 7, "output": 1}
    assert records.meta([given[0].stored])["_request_id"] == "r1"


def test_vectors() -> None:
    spec = make_spec(task="embed_content")
    assert records.combined([sample([3.0, 4.0])], spec) == {"embedding": [3.0, 4.0]}
    scaled = make_spec(task="embed_content", normalize=True)
    assert records.combined([sample([3.0, 4.0])], scaled) == {"embedding": [0.6, 0.8]}
    assert records.unit([0.0, 0.0]) == [0.0, 0.0]
    assert records.cosine([1.0, 0.0], [2.0, 0.0]) == 1.0
    assert records.cosine([1.0, 0.0], [0.0, 0.0]) == 0.0


def test_a_mean_that_no_double_holds_is_an_ordinary_value() -> None:
    assert combine("mean", {"n": 1e308}, {"n": 1.1e308}) == {"n": 1e308, "_agreement": {"n": 1 / 2}}
    assert combine("mean", {"n": 10**400}, {"n": 1}) == {"n": 10**400, "_agreement": {"n": 1 / 2}}


@pytest.mark.parametrize("vector", [[1e308, 1e308], [1e-200, 1e-200], [3, 3], [10**300, 10**300]])
def test_vectors_of_any_length_are_scaled(vector: list[float]) -> None:
    assert records.unit(vector) == pytest.approx([0.5**0.5] * 2)
    assert records.cosine(vector, [1.0, 1.0]) == pytest.approx(1.0)


def test_a_vector_without_length_stays() -> None:
    assert records.unit([0, 0.0]) == [0, 0.0]
    assert records.cosine([0, 0], [1, 1]) == 0


def test_fields_with_an_underscore_are_aggregated() -> None:
    assert combine("majority", {"_score": 1}, {"_score": 1}) == {"_score": 1, "_agreement": {"_score": 1}}


def test_equal_numbers_are_one_value() -> None:
    found = combine("majority", {"n": [2, {"a": 1}]}, {"n": [1, {"a": 0}]}, {"n": [1.0, {"a": -0.0}]})
    assert found == {"n": [1, {"a": 0}], "_agreement": {"n": 2 / 3}}


@pytest.mark.parametrize("aggregate", ["majority", "mean"])
def test_what_is_aggregated_says_how_its_answers_came_to_be(aggregate: str) -> None:
    mended, sound, other = (
        sample({"n": 1}),
        sample({"n": 1}, 2, remedies="temperature 0"),
        sample({"n": 1}, 3),
    )
    assert mended.answer is not None
    mended = Sample(mended.stored, structs.replace(mended.answer, repaired="library"))
    found = records.combined([mended, sound, other], asking(3, aggregate))
    assert (found["n"], found["_repaired"], found["_remedied"]) == (1, "library", "temperature 0")
    assert "_repaired" not in found.get("_agreement", {})
