"""What is changed when a request is sent again, and where its address leads then."""

from __future__ import annotations

import json
from typing import Any

import pytest
from builders import Outcomes, make_spec, make_stored

from runner import remedies
from runner.model import Outcome, Stored
from runner.specmodel import Failures, Spec

O = Outcome  # noqa: E741
CUT = make_stored("r1", O.TRUNCATED, code="MAX_TOKENS")


def spec(remedy: Any = None, *, max_attempts: int = 3, **config: Any) -> Spec:
    found = {"truncated": {"max_output_tokens": "x2"}} if remedy is None else remedy
    return make_spec(
        generation_config={"max_output_tokens": 100, **config},
        failures=Failures(remedies=found, max_attempts=max_attempts),
    )


def aim(root: str, outcomes: Outcomes, of: Spec, live: Any = (), retry: str = "transient") -> remedies.Aim:
    return remedies.aim(root, outcomes.stored, lambda i: "t" if i in live else None, of, retry=retry)


def test_a_factor_multiplies_what_was_asked_for_last() -> None:
    first = remedies.following("r1", CUT, {}, spec())
    assert first is not None
    assert first.settings == {"maxOutputTokens": 200}
    second = remedies.following("r1", CUT, first.settings, spec())
    assert second is not None
    assert second.settings == {"maxOutputTokens": 400}
    assert len({first.request_id, second.request_id, "r1"}) == 3


def test_the_id_of_a_remedied_request_is_pinned() -> None:
    found = remedies.following("r1", CUT, {}, spec())
    assert found is not None
    assert found.request_id == "r6c8c413bdcc0953007c6d10bdca6211b"


def test_a_factor_ends_at_the_models_limit() -> None:
    high = spec(max_output_tokens=60_000)
    first = remedies.following("r1", CUT, {}, high)
    assert first is not None
    assert first.settings == {"maxOutputTokens": 65_536}
    assert remedies.following("r1", CUT, first.settings, high) is None


@pytest.mark.parametrize("asked", [65_536, 100_000])
def test_a_factor_never_lowers(asked: int) -> None:
    """The same answer, cut earlier, would be paid for again."""
    assert remedies.following("r1", CUT, {}, spec(max_output_tokens=asked)) is None


def test_what_changes_nothing_is_no_remedy() -> None:
    """The very same request would be paid for twice."""
    same = {"truncated": {"temperature": 0, "max_output_tokens": 100}}
    assert remedies.following("r1", CUT, {}, spec(same, temperature=0)) is None
    other = remedies.following("r1", CUT, {}, spec(same, temperature=1))
    assert other is not None
    assert other.settings == {"temperature": 0}


@pytest.mark.parametrize("outcome", sorted(set(O) - {O.TRUNCATED}))
def test_another_class_has_no_remedy(outcome: Outcome) -> None:
    assert remedies.following("r1", make_stored("r1", outcome), {}, spec()) is None


def test_what_a_person_accepted_is_not_remedied() -> None:
    assert remedies.following("r1", make_stored("r1", O.TRUNCATED, accepted=True), {}, spec()) is None


def test_settings_of_several_classes_add_up() -> None:
    both = spec({"truncated": {"max_output_tokens": 500}, "invalid": {"temperature": 0.5, "top_p": 0.9}})
    first = remedies.following("r1", CUT, {}, both)
    assert first is not None
    second = remedies.following("r1", make_stored("r2", O.INVALID), first.settings, both)
    assert second is not None
    assert second.settings == {"maxOutputTokens": 500, "temperature": 0.5, "topP": 0.9}
    assert remedies.following("r1", make_stored("r2", O.INVALID), second.settings, both) is None


def test_a_remedied_line_differs_in_its_key_and_the_settings_alone() -> None:
    sent = b'{"key":"r1","request":{"contents":[1],"generationConfig":{"maxOutputTokens":100,"seed":7}}}'
    line = remedies.line(sent, remedies.Remedy("r2", {"maxOutputTokens": 200}))
    assert json.loads(line) == {
        "key": "r2",
        "request": {"contents": [1], "generationConfig": {"maxOutputTokens": 200, "seed": 7}},
    }
    assert line.endswith(b"\n")
    bare = remedies.line(b'{"key":"r1","request":{"contents":[1]}}', remedies.Remedy("r2", {"seed": 1}))
    assert json.loads(bare)["request"]["generationConfig"] == {"seed": 1}


# ---------------------------------------------------------------- where an address leads


def chain(last: Outcome | None = None, **more: Any) -> tuple[Outcomes, str]:
    """r1 was cut and has a remedy, which ended so; the outcomes and the id of the remedied request."""
    remedy = remedies.following("r1", CUT, {}, spec())
    assert remedy is not None
    cut = make_stored("r1", O.TRUNCATED, remedied_by=remedy.request_id, remedy=remedy.settings)
    found = Outcomes({"r1": cut})
    if last is not None:
        found[remedy.request_id] = make_stored(remedy.request_id, last, **more)
    return found, remedy.request_id


def test_without_remedies_an_address_leads_to_its_own_request() -> None:
    assert aim("r1", Outcomes(), make_spec()) == remedies.Aim("r1", None)
    assert aim("r1", Outcomes(r1=CUT), make_spec()) == remedies.Aim("r1", CUT)


def test_a_failure_with_a_remedy_leads_to_a_new_request() -> None:
    found = aim("r1", Outcomes(r1=CUT), spec())
    assert (found.stored, found.before, found.is_new) == (None, CUT, True)
    assert found.remedy is not None
    assert found.remedy.settings == {"maxOutputTokens": 200}


@pytest.mark.parametrize("of", [spec(), make_spec()], ids=["with the remedy", "after it was deleted"])
def test_a_remedied_answer_is_found(of: Spec) -> None:
    outcomes, remedied = chain(O.OK)
    found = aim("r1", outcomes, of)
    assert (found.request_id, found.stored) == (remedied, outcomes[remedied])
    assert not found.is_new


def test_a_remedy_in_flight_is_found() -> None:
    outcomes, remedied = chain()
    assert aim("r1", outcomes, make_spec(), live={remedied}).request_id == remedied


def test_a_remedy_that_was_never_sent_is_sent_or_forgotten() -> None:
    outcomes, remedied = chain()
    found = aim("r1", outcomes, spec())
    assert (found.request_id, found.stored, found.is_new) == (remedied, None, False)
    assert aim("r1", outcomes, make_spec()).stored == outcomes["r1"]
    assert aim("r1", outcomes, spec(), retry="none").stored == outcomes["r1"]
    assert aim("r1", outcomes, spec(max_attempts=1)).stored == outcomes["r1"]


def test_a_chain_ends_with_the_attempts() -> None:
    outcomes, remedied = chain(O.TRUNCATED, jobs=2)
    third = aim("r1", outcomes, spec())
    assert third.remedy is not None
    assert third.remedy.settings == {"maxOutputTokens": 400}
    assert third.before == outcomes[remedied]
    assert aim("r1", outcomes, spec(max_attempts=2)).request_id == remedied


def test_no_remedy_for_what_is_in_flight() -> None:
    assert aim("r1", Outcomes(r1=CUT), spec(), live={"r1"}).request_id == "r1"


def test_a_stored_outcome_keeps_its_remedy() -> None:
    from runner.parts import dump_outcome, load_outcome

    stored: Stored = chain(O.OK)[0]["r1"]
    assert load_outcome(dump_outcome(stored)) == stored
