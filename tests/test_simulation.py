"""Whole lives against a service in memory, with seeded faults and crashes; `make simulate` has more."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from msgspec import structs
from simulation import invariants, run, world
from simulation.faults import Faults, on_vertex
from simulation.process import Violation

SEEDS = range(220)


@pytest.fixture(scope="module")
def lives() -> run.Lives:
    return run.live(SEEDS)


def test_every_life_holds(lives: run.Lives) -> None:
    totals = run.together(lives)
    assert not totals.failures, run.failure(totals.failures[0])
    assert totals.seeds == len(SEEDS)
    assert totals.lost_rows == 0


def test_lives_are_full_of_trouble(lives: run.Lives) -> None:
    """A simulation in which nothing goes wrong shows nothing."""
    for totals in lives.values():
        assert totals.seeds > len(SEEDS) / 3
        unseen = [point for point in totals.points if not totals.visits[point]]
        assert not unseen
        assert not [kind for kind in totals.kinds if not totals.faults[kind]]
        # So few lives may miss some of the rarest; thousands miss none.
        assert len([point for point in totals.points if not totals.crashes[point]]) <= 6
        assert set(totals.visits) <= set(totals.points)
        assert set(totals.faults) <= set(totals.kinds)
        assert totals.adopted > 50
        assert totals.ambiguous > 50


def test_a_service_can_be_chosen() -> None:
    lives = run.live(range(4), services=("vertex",))
    assert list(lives) == ["vertex"]
    assert lives["vertex"].seeds == sum(on_vertex(seed) for seed in range(4)) > 0


def test_both_services_give_the_same_records() -> None:
    """The undisturbed lives differ in their service alone."""
    shape = world.shape_of(0)
    with world._place() as folder:
        one, other = (
            world._reference(dataclasses.replace(shape, vertex=vertex), folder) for vertex in (False, True)
        )
    assert one == other


def test_a_seed_is_one_life() -> None:
    """The same seed gives the same trace, two runners included."""
    lived = {seed: Faults(seed, vertex=on_vertex(seed)) for seed in range(40)}
    twice = [seed for seed, faults in lived.items() if faults.has("two_runners")]
    vertex = [seed for seed in twice if on_vertex(seed)]
    for seed in [0, 1, *twice[:2], *vertex[:2]]:
        assert world.simulate(seed).trace == world.simulate(seed).trace


def test_plans_have_at_least_three_shards() -> None:
    for seed in range(200):
        shape = world.shape_of(seed)
        assert shape.shards >= 3
        assert len(set(shape.texts().values())) == shape.shards * shape.per_shard


def test_a_failure_names_its_replay() -> None:
    report = world.Report(7, violation=Violation("what must hold", "does not"), trace=["a", "b"])
    text = run.failure(report)
    assert "seed 7 breaks: what must hold" in text
    assert text.endswith("-m tests.simulation.run --seed 7")


# ---------------------------------------------------------------- the checks see what they are there for


def _breaks(invariant: str) -> None:
    """Some life must break this invariant, and no other one before."""
    found = run.together(run.live(range(60))).failures
    assert found
    violation = found[0].violation
    assert violation is not None
    assert violation.invariant == invariant, violation.text


def test_a_lost_outcome_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from runner.ledger import Ledger

    save = Ledger.save

    def forget(self: Ledger, state: object) -> None:
        kept = state.outcomes[1:] if len(state.outcomes) > 2 else state.outcomes  # type: ignore[attr-defined]
        save(self, dataclasses.replace(state, outcomes=kept))  # type: ignore[type-var]

    monkeypatch.setattr(Ledger, "save", forget)
    _breaks("nothing stored is lost")


def test_another_record_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    finished = invariants.Watch.finished

    def altered(self: invariants.Watch, reference: bytes) -> None:
        finished(self, reference.replace(b"1", b"2"))

    monkeypatch.setattr(invariants.Watch, "finished", altered)
    _breaks("records are those of the undisturbed run")


def test_a_plan_that_is_not_empty_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    make = world.World._plan

    def plan(self: world.World, *known: object) -> object:
        return structs.replace(make(self, *known), reexport=("always",))

    monkeypatch.setattr(world.World, "_plan", plan)
    _breaks("the re-plan is empty")


def test_unreadable_state_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from runner.errors import StateUnreadable
    from runner.store import Store

    def load(self: Store) -> None:
        raise StateUnreadable("no")

    readable = invariants.Watch.readable

    def look(self: invariants.Watch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "load", load)
            readable(self)

    monkeypatch.setattr(invariants.Watch, "readable", look)
    _breaks("state is readable at every crash point")


def test_nothing_is_left_in_the_shared_folder() -> None:
    world.simulate(3)
    assert not list(Path("/dev/shm").glob(f"gbrun-simulation-{os.getpid()}*"))
