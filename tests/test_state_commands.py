"""The state changed by hand: every command through the real command line, the parts on their own."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from builders import Past, make_attempt, make_state, make_stored, ok_line

from runner import garbage, keys, parts, purge, roots, rowtable, statefile
from runner.errors import (
    StateForeign,
    UsageInvalid,
)
from runner.ledger import Ledger
from runner.model import AttemptState, Outcome, State
from runner.store import Store

MARK = "Zaubertrank"
"""Stands in the text of one row and nowhere else."""


@pytest.fixture
def past(tmp_path: Path) -> Iterator[Past]:
    made = Past(tmp_path / "plans")
    yield made
    made.close()


@pytest.fixture(scope="module")
def template(
    tmp_path_factory: pytest.TempPathFactory, make_gbrun: Callable[..., Any], make_project: Any
) -> Path:
    """Four notes, applied; the second holds the mark."""
    folder = tmp_path_factory.mktemp("applied")
    made = make_project(folder / "project", make_gbrun(folder / "home"))
    made.inputs(4)
    made.write("inputs/001.txt", f"A note about {MARK}.\n")
    made.spec()
    made.apply()
    return folder / "project"


@pytest.fixture
def applied(template: Path, project: Any) -> Any:
    """A copy of it for one test."""
    shutil.copytree(template, project.folder, dirs_exist_ok=True)
    return project


def counts(made: Any) -> dict[str, int]:
    return {str(action): count for action, count in made.counts.items()}


def known(store: Store, state: State) -> list[rowtable.KnownRow]:
    lines = store.lines(state.rows)
    next(lines)
    return [rowtable.from_line(line) for line in lines]


def everything(folder: Path) -> dict[str, bytes]:
    """Every file of a state, unpacked, but for the emulator's own."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith("emulator/"):
            data = path.read_bytes()
            found[name] = gzip.decompress(data) if name.endswith(".gz") else data
    return found


def holders(folder: Path, *words: str) -> list[str]:
    """Files of a state that hold any of these words."""
    return [name for name, data in everything(folder).items() if any(word.encode() in data for word in words)]


# ---------------------------------------------------------------- pull and push


def test_pull_prints_the_root_and_push_takes_it_back(applied: Any) -> None:
    pulled = applied.run("state", "pull", "job.yaml").stdout
    assert pulled.encode() == (applied.state / "state.json").read_bytes()

    applied.write("root.json", pulled)
    assert "has this root already" in applied.run("state", "push", "job.yaml", "root.json").stdout
    (applied.state / "state.json").unlink()
    assert "serial 3 now" in applied.run("state", "push", "job.yaml", "root.json").stdout
    assert (applied.state / "state.json").read_bytes() == pulled.encode()
    assert "No changes." in applied.plan()


def test_there_is_nothing_to_pull_before_an_apply(project: Any) -> None:
    project.inputs(1)
    project.spec()
    got = project.run("state", "pull", "job.yaml", code=1)
    assert "nothing has been applied yet" in got.stderr
    assert not project.state.exists()


def test_push_refuses_what_is_no_root_of_this_state(applied: Any) -> None:
    before = (applied.state / "state.json").read_bytes()
    state = statefile.load_state(before, "state.json")
    cases: list[tuple[State | bytes | None, int, str]] = [
        (None, 1, "cannot read other.json: No such file"),
        (before[:-30], 1, "other.json is truncated or not JSON"),
        (before.replace(b'"serial": 3', b'"serial": 9'), 1, "was edited or damaged"),
        (replace(state, lineage="f" * 32), 64, "has lineage ffff"),
        (
            replace(state, serial=9, lineage=state.lineage[:8] + "f" * 24),
            64,
            "has lineage " + state.lineage[:8],
        ),
        (replace(state, name="others"), 64, "is the state of 'others'"),
        (replace(state, env="prod"), 64, "(prod), not of 'notes'"),
        (replace(state, serial=2), 6, "has serial 2, and .gbrun/notes/default-local is at 3"),
        (replace(state, spec_digest="0"), 6, "both have serial 3, and differ"),
        (replace(state, serial=9, rows="rows/9.jsonl.gz"), 1, "such as rows/9.jsonl.gz"),
        (replace(state, serial=9, outcomes=()), 1, "does not name outcomes/1.jsonl.gz"),
    ]
    for content, code, words in cases:
        (applied.folder / "other.json").unlink(missing_ok=True)
        if content is not None:
            data = content if isinstance(content, bytes) else statefile.dump_state(content)
            applied.write("other.json", data)
        got = applied.run("state", "push", "job.yaml", "other.json", code=code)
        assert words in got.stderr, got.stderr
        assert "hint:" in got.stderr or "truncated" in words or "edited" in words
        assert (applied.state / "state.json").read_bytes() == before


def test_push_keeps_the_present_root(applied: Any) -> None:
    state = statefile.load_state((applied.state / "state.json").read_bytes(), "x")
    applied.write("newer.json", statefile.dump_state(replace(state, serial=7)))
    applied.run("state", "push", "job.yaml", "newer.json")

    assert applied.root()["serial"] == 7
    assert statefile.load_state((applied.state / "history/00000003.json").read_bytes(), "x") == state


def test_push_mends_a_damaged_root_without_losing_answers(applied: Any) -> None:
    old = next(iter(sorted(applied.state.glob("history/*.json"))), None)
    assert old is None
    applied.spec(prompt="Another prompt: {{ input.text }}")
    applied.apply()
    sent = applied.requests_sent()
    assert len(sent) == 8
    root = applied.state / "state.json"
    root.write_bytes(root.read_bytes()[:-40])

    said = applied.run("plan", "job.yaml", code=1).stderr
    assert "history/00000003.json" in said
    history = applied.state / "history/00000003.json"
    got = applied.run("state", "push", "job.yaml", history)
    assert "outcomes/2.jsonl.gz is newer than 00000003.json" in got.stdout

    assert "4 reused" in applied.plan()
    applied.apply()
    assert applied.requests_sent() == sent
    assert len(applied.records()) == 4


def test_push_takes_the_lock(applied: Any) -> None:
    applied.write("root.json", applied.run("state", "pull", "job.yaml").stdout)
    with Store(_blobs(applied), None, "x").lock("test", "now", 0):
        for command in (
            ("state", "push", "job.yaml", "root.json"),
            ("state", "mv", "job.yaml", "inputs/000.txt", "b"),
            ("state", "rm", "job.yaml", "inputs/000.txt"),
            ("state", "accept", "job.yaml", "inputs/000.txt"),
            ("state", "purge", "job.yaml", "--key", "**", "--auto-approve"),
            ("gc", "job.yaml"),
        ):
            assert "is locked by operation test" in applied.run(*command, code=5).stderr, command


def _blobs(project: Any) -> Any:
    from runner.blobs.local import LocalBlobs

    return LocalBlobs(project.state)


def test_a_lineage_is_known_by_its_attempts_where_all_roots_are_gone(past: Past) -> None:
    past.store.create_attempt(make_attempt())
    foreign = statefile.dump_state(make_state(lineage="f" * 32))
    with pytest.raises(StateForeign, match="has 01234567"):
        roots.push(past.store, foreign, "f.json", name="tickets", env=None)
    assert past.store.load() == (None, "")


# ---------------------------------------------------------------- mv and rm


def test_a_moved_file_is_unchanged_after_mv(applied: Any) -> None:
    sent = applied.requests_sent()
    (applied.folder / "inputs/001.txt").rename(applied.folder / "inputs/zzz.txt")
    applied.run("state", "mv", "job.yaml", "inputs/001.txt", "inputs/zzz.txt")

    plan = applied.plan()
    assert "4 unchanged" in plan
    assert "removed" not in plan
    assert "new" not in plan.replace("newer outcomes", "")
    applied.apply()
    assert applied.requests_sent() == sent
    assert [record["_key"] for record in applied.records()] == [
        "inputs/000.txt", "inputs/002.txt", "inputs/003.txt", "inputs/zzz.txt"
    ]  # fmt: skip
    assert "No changes." in applied.plan()


def test_mv_refuses_what_cannot_be_meant(applied: Any) -> None:
    got = applied.run("state", "mv", "job.yaml", "inputs/01.txt", "x.txt", code=64)
    assert "no key 'inputs/01.txt'" in got.stderr
    assert "did you mean 'inputs/001.txt'?" in got.stderr
    got = applied.run("state", "mv", "job.yaml", "inputs/001.txt", "inputs/000.txt", code=64)
    assert "has the key 'inputs/000.txt' already" in got.stderr
    assert "hint: forget it first" in got.stderr
    assert applied.root()["serial"] == 3


def test_a_snapshot_stays_sorted_by_key(past: Past) -> None:
    past.finish(past.plan({"b": "1", "d": "2", "é": "3"}))
    assert past.state is not None
    for new in ("a", "c", "e", "zz", "𝄞"):
        found = [row.key for row in known(past.store, keys.rename(past.store, past.state, "d", new))]
        assert found == sorted(["b", new, "é"])
    decomposed = "e\u0301"
    assert keys.rename(past.store, past.state, decomposed, "f") != past.state


def test_forgotten_keys_are_reused_where_the_input_is_still_there(applied: Any) -> None:
    sent = applied.requests_sent()
    (applied.folder / "inputs/003.txt").unlink()
    said = applied.run("state", "rm", "job.yaml", "inputs/001.txt", "inputs/003.txt").stdout
    assert "Forgot 2 key(s)" in said

    plan = applied.plan()
    assert "1 reused" in plan
    assert "2 unchanged" in plan
    assert "removed" not in plan
    applied.apply()
    assert applied.requests_sent() == sent
    assert len(applied.records()) == 3
    assert "No changes." in applied.plan()
    assert "no key 'inputs/009.txt'" in applied.run(
        "state", "rm", "job.yaml", "inputs/000.txt", "inputs/009.txt", code=64
    ).stderr  # fmt: skip
    assert "inputs/000.txt" in applied.run("state", "list", "job.yaml").stdout


def test_ordinals_have_no_gaps_after_rm(past: Past) -> None:
    documents = {f"{number}.txt": f"text {number}" for number in range(7)}
    past.finish(past.plan(documents))
    assert past.state is not None
    past.state = keys.forget(past.store, past.state, ["5.txt", "0.txt", "2.txt"])

    rows = known(past.store, past.state)
    assert [(row.key, row.ordinal) for row in rows] == [
        ("1.txt", 0), ("3.txt", 1), ("4.txt", 2), ("6.txt", 3)
    ]  # fmt: skip
    made = past.plan(documents)
    assert counts(made) == {"unchanged": 4, "reused": 3}


def test_keys_are_not_changed_under_a_run_or_before_one(project: Any, past: Past) -> None:
    project.inputs(2)
    project.faults(timing={"pending_s": 600})
    project.spec()
    for command in ("mv", "rm", "accept"):
        got = project.run("state", command, "job.yaml", "a", *["b"] * (command == "mv"), code=1)
        assert "nothing has been applied yet" in got.stderr
    project.apply("--no-wait", code=3)
    for args in (
        ("mv", "job.yaml", "a", "b"),
        ("rm", "job.yaml", "a"),
        ("accept", "job.yaml", "a"),
        ("purge", "job.yaml", "--key", "**", "--auto-approve"),
    ):
        got = project.run("state", *args, code=7)
        assert "1 submission(s) are in flight (batches/" in got.stderr
        assert "gbrun wait" in got.stderr
    with pytest.raises(UsageInvalid, match="no apply has finished"):
        keys.forget(past.store, make_state(), ["a"])


# ---------------------------------------------------------------- accept


def test_an_accepted_failure_is_never_tried_again(project: Any) -> None:
    project.inputs(3)
    project.faults(rows=[{"kind": "row_error", "code": 8, "match": "Note 1:"}])
    project.spec(failures={"max_attempts": 2})
    project.apply(code=4)
    project.spec(failures={"max_attempts": 5})
    sent = project.requests_sent()
    assert "1 retry" in project.plan()

    key = "inputs/001.txt"
    assert "transient RESOURCE_EXHAUSTED  accepted" in project.run("state", "accept", "job.yaml", key).stdout
    plan = project.plan()
    assert "No changes." in plan
    assert "retry" not in plan
    assert project.apply(code=4).code == 4
    assert project.requests_sent() == sent
    assert [(row["_key"], row["outcome"]) for row in project.failures()] == [(key, "transient")]
    assert "accepted: taken as final" in project.run("show", "job.yaml", "--key", key).stdout
    assert "accepted before" in project.run("state", "accept", "job.yaml", key).stdout
    assert len(project.root()["outcomes"]) == 3

    assert "retry" not in project.plan("--retry", "all")
    # Somebody who says so explicitly may have it run again.
    project.spec(failures={"max_attempts": 3})
    project.apply("--replace", key, code=4)
    assert len(project.requests_sent()) == len(sent) + 1
    assert "failed" in project.plan()


def test_only_failures_are_accepted(applied: Any) -> None:
    serial = applied.root()["serial"]
    got = applied.run("state", "accept", "job.yaml", "inputs/000.txt", code=64)
    assert "'inputs/000.txt' is ok; only failures are accepted" in got.stderr
    got = applied.run("state", "accept", "job.yaml", "inputs/0.txt", code=64)
    assert "no key" in got.stderr
    assert applied.root()["serial"] == serial


def test_what_has_no_outcome_is_not_accepted(past: Past) -> None:
    past.finish(past.plan({"a.txt": "a"}))
    assert past.state is not None
    with pytest.raises(UsageInvalid, match="no outcome yet"):
        keys.accept(past.store, past.state, ["a.txt"], lambda _: None)


def test_an_accepted_outcome_is_kept_in_its_line() -> None:
    one = make_stored(outcome=Outcome.MISSING, accepted=True)
    assert parts.load_outcome(parts.dump_outcome(one)) == one
    assert b"accepted" not in parts.dump_outcome(make_stored(outcome=Outcome.MISSING))


@pytest.mark.parametrize("retry", ["transient", "all", "none"])
def test_an_accepted_outcome_is_settled(past: Past, retry: Any) -> None:
    from runner.plan import Selection

    made = past.plan({"a.txt": "a"})
    (request_id,) = _ids(made)
    past.finish(made, {request_id: make_stored(request_id, Outcome.TRANSIENT, code="INTERNAL")})
    assert past.state is not None
    past.state, taken = keys.accept(past.store, past.state, ["a.txt"], past.index.stored)

    assert [one.request_id for one in taken] == [request_id]
    made = past.plan({"a.txt": "a"}, selection=Selection(retry=retry))
    assert counts(made) == {"failed": 1}
    assert not made.has_changes


def _ids(made: Any) -> list[str]:
    from builders import request_ids

    return request_ids(made)


# ---------------------------------------------------------------- purge


def test_a_purged_row_is_in_no_part(applied: Any) -> None:
    key = "inputs/001.txt"
    applied.spec(prompt="Another prompt: {{ input.text }}")
    applied.apply()
    applied.spec(prompt="A third prompt: {{ input.text }}")
    applied.apply()
    (applied.folder / key).unlink()
    others = {record["_key"]: record for record in applied.records() if record["_key"] != key}
    asked = [
        json.loads(line)["key"]
        for data in applied.shards().values()
        for line in data.splitlines()
        if MARK.encode() in line
    ]
    assert len(asked) == 3
    assert len(holders(applied.state, MARK)) >= 6  # shards and answers
    assert "rows/3.jsonl.gz" in holders(applied.state, key)
    assert "index.sqlite" in holders(applied.state, key)
    (applied.state / "shards/.tmp-0123").write_text(f"what a killed run left of {MARK}")

    got = applied.run("state", "purge", "job.yaml", "--key", key, "--auto-approve")

    assert holders(applied.state, MARK, key, *asked) == []
    assert "Purge: 1 row(s), 3 request(s)" in got.stdout
    assert "out/notes.jsonl: the next apply" in got.stdout
    assert any(record["_key"] == key for record in applied.records())
    sent = applied.requests_sent()
    plan = applied.plan()
    assert "3 unchanged" in plan
    assert "removed" not in plan
    applied.apply()
    assert {record["_key"]: record for record in applied.records()} == others
    assert applied.requests_sent() == sent
    assert "No changes." in applied.plan()
    for name in ("000", "002", "003"):
        assert "answer:" in applied.run("show", "job.yaml", "--key", f"inputs/{name}.txt").stdout
    # A prompt of before finds its old answers.
    applied.spec(prompt="Another prompt: {{ input.text }}")
    assert "3 reused" in applied.plan()
    applied.apply()
    assert applied.requests_sent() == sent
    got = applied.run("state", "purge", "job.yaml", "--key", key, "--auto-approve", code=64)
    assert "matches no key" in got.stderr


def test_a_purged_row_whose_input_is_still_there_is_new_and_can_be_sent(applied: Any) -> None:
    """The shard that was sent with the row must not be taken for the one that is sent now."""
    for _ in range(2):
        applied.run("state", "purge", "job.yaml", "--key", "inputs/001.txt", "--auto-approve")
        assert "1 new" in applied.plan()
        applied.apply()
        assert len(applied.records()) == 4
        assert "No changes." in applied.plan()
    applied.run("state", "purge", "job.yaml", "--key", "**", "--auto-approve")
    applied.apply()
    assert len(applied.records()) == 4
    assert len(applied.requests_sent()) == 4 + 1 + 1 + 4


def test_a_purge_is_approved_or_nothing_happens(applied: Any) -> None:
    before = everything(applied.state)
    got = applied.run("state", "purge", "job.yaml", "--key", "inputs/001.txt", code=7)
    assert "--auto-approve" in got.stderr
    assert "- inputs/001.txt" in got.stdout
    got = applied.run("state", "purge", "job.yaml", "--key", "inputs/1.txt", "--auto-approve", code=64)
    assert "did you mean 'inputs/001.txt'?" in got.stderr
    after = everything(applied.state)
    assert {n: d for n, d in before.items() if "index" not in n and n != "lock.json"} == {
        n: d for n, d in after.items() if "index" not in n and n != "lock.json"
    }


def test_what_another_row_asks_too_is_kept_and_said(project: Any) -> None:
    project.inputs(1)
    for name in ("a", "b"):
        project.write(f"inputs/{name}.txt", f"A note about {MARK}.\n")
    project.spec(prompt="Another prompt: {{ input.text }}")
    project.apply()
    project.spec(prompt="A third prompt: {{ input.text }}")
    project.apply()
    (project.folder / "inputs/a.txt").unlink()
    sent = project.requests_sent()
    got = project.run("state", "purge", "job.yaml", "--key", "inputs/a.txt", "--auto-approve")

    assert "1 row(s), 0 request(s)" in got.stdout
    assert "= kept: what the row inputs/b.txt asks too" in got.stdout
    assert "former key" not in got.stdout
    assert "2 unchanged" in project.plan()
    assert holders(project.state, "inputs/a.txt") == []
    project.apply()
    assert [record["_key"] for record in project.records()] == ["inputs/000.txt", "inputs/b.txt"]
    assert project.requests_sent() == sent
    # Neither its answer of today nor that of a former prompt is lost.
    project.spec(prompt="Another prompt: {{ input.text }}")
    assert "2 reused" in project.plan()
    project.apply()
    assert project.requests_sent() == sent
    project.run("state", "purge", "job.yaml", "--key", "inputs/b.txt", "--auto-approve")
    assert holders(project.state, "inputs/b.txt", MARK) == []


def test_a_renamed_row_goes_with_its_former_name(applied: Any) -> None:
    (applied.folder / "inputs/001.txt").rename(applied.folder / "inputs/new.txt")
    applied.spec(prompt="Another prompt: {{ input.text }}")
    applied.apply()
    (applied.folder / "inputs/new.txt").unlink()
    got = applied.run("state", "purge", "job.yaml", "--key", "inputs/new.txt", "--auto-approve")

    assert "- inputs/001.txt (the same document under a former key)" in got.stdout
    assert holders(applied.state, "inputs/001.txt", "inputs/new.txt", MARK) == []


def test_lines_that_answer_nothing_go_with_the_row(project: Any) -> None:
    """A line with a stranger's key, or twice, holds the person's answer all the same."""
    project.inputs(2)
    project.write("inputs/p.txt", f"A note about {MARK}.\n")
    project.faults(
        rows=[
            {"kind": "extra_line", "match": MARK},
            {"kind": "duplicate", "match": "Note 0:"},
            {"kind": "null_line", "match": "Note 1:"},
        ]
    )
    project.spec(failures={"max_attempts": 1})
    project.apply(code=4)
    (project.folder / "inputs/p.txt").unlink()
    before = next(iter(project.state.glob("responses/*"))).read_bytes()
    assert len(gzip.decompress(before).splitlines()) == 5
    kept = [record for record in project.records() if record["_key"] != "inputs/p.txt"]
    project.run("state", "purge", "job.yaml", "--key", "inputs/p.txt", "--auto-approve")

    (left,) = project.state.glob("responses/*")
    assert len(gzip.decompress(left.read_bytes()).splitlines()) == 1
    assert holders(project.state, MARK, "inputs/p.txt") == []
    project.apply(code=4)
    assert project.records() == kept


def test_what_no_row_names_is_said_and_goes_on_demand(project: Any, tmp_path: Path) -> None:
    project.inputs(1)
    project.write("inputs/p.txt", f"A note about {MARK}.\n")
    project.spec()
    project.apply()
    project.spec(prompt="Another prompt: {{ input.text }}")
    project.apply()
    for path in [*project.state.glob("history/*"), project.state / "rows/1.jsonl.gz"]:
        path.unlink()  # as after many applies and a gc
    got = project.run("state", "purge", "job.yaml", "--key", "inputs/p.txt", code=7)
    assert "2 stored request(s) belong to no known row, and stay (--unknown takes them out)" in got.stdout
    purged = ("state", "purge", "job.yaml", "--key", "inputs/p.txt", "--auto-approve", "--unknown")
    got = project.run(*purged)
    assert "and go too" in got.stdout
    assert holders(project.state, MARK) == []
    (project.folder / "inputs/p.txt").unlink()
    project.apply()
    assert len(project.records()) == 1


class Killed(Exception):
    pass


class DyingBlobs:
    """A blob store that dies at its n-th change, before or after it."""

    def __init__(self, blobs: Any, changes_left: int, *, after: bool) -> None:
        self._blobs = blobs
        self._left = changes_left
        self._after = after

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._blobs, name)
        if name not in ("create", "create_from", "replace", "delete"):
            return found

        def change(*args: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise Killed
            done = found(*args)
            if self._left == 0:
                raise Killed
            return done

        return change


def _filled(past: Past) -> list[str]:
    """Three documents, two of them in two versions, answered, with attempts and responses stored."""
    documents = {"a.txt": f"old {MARK}", "b.txt": "old b", "c.txt": "c"}
    for round_ in range(2):
        made = past.plan(documents)
        for shard in made.shards:
            past.store.put_shard(shard.shard_id, shard.path)
            token = f"gb1-01234567-{shard.shard_id[:16]}-a1"
            past.store.create_attempt(
                make_attempt(token, shard_id=shard.shard_id, state=AttemptState.CLEANED)
            )
            refs: dict[str, Any] = {}
            lines = [
                ok_line(orjson.loads(x)["key"], x.decode()) for x in shard.path.read_bytes().splitlines()
            ]
            past.store.put_responses(
                token, [b"\n".join(lines)], lambda x, r, refs=refs: refs.update({orjson.loads(x)["key"]: r})
            )
        past.finish(made, {i: make_stored(i, token=token, ref=refs[i]) for i in refs})
        assert past.state is not None
        if not round_:
            past.store.keep_history(past.state)
        documents = {**documents, "a.txt": f"new {MARK}", "b.txt": "new b"}
    # `finish` stores the outcomes under one name; the root is saved like that of an apply.
    past.store.save(past.state, "")
    return ["a.txt", MARK]


def _holders(store: Store, words: list[str]) -> list[str]:
    found = []
    for name in store.blobs.list(""):
        data = store.blobs.read(name)[0]
        data = gzip.decompress(data) if name.endswith(".gz") else data
        if any(word.encode() in data for word in words):
            found.append(name)
    return found


def _purge(store: Store, workspace: Path) -> None:
    workspace.mkdir(parents=True)
    ledger = Ledger(store)
    ledger.open()
    one = purge.Purge(store, lambda key: key == "a.txt", workspace, unknown=False)
    try:
        one.look(ledger.state)
        one.run(ledger)
    finally:
        one.close()


def _whole(store: Store) -> None:
    """Whatever the root refers to can be read, and each answer is that of its request."""
    state, _ = store.load()
    assert state is not None
    for root in (state, *(old for _, old, _ in store.history())):
        rows = known(store, root)
        assert [row.ordinal for row in sorted(rows, key=lambda row: row.ordinal)] == list(range(len(rows)))
        seen = set()
        for name in root.outcomes:
            lines = store.lines(name)
            next(lines)
            for stored in map(parts.load_outcome, lines):
                line = store.response(stored)
                assert line is not None
                assert orjson.loads(line)["key"] == stored.request_id
                seen.add(stored.request_id)
        assert {wanted.request_id for row in rows for wanted in row.wanted} <= seen
    for attempt, _ in store.attempts():
        list(store.shard_lines(attempt.shard_id))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_purge_that_is_killed_anywhere_is_completed_by_the_next(tmp_path: Path, after: bool) -> None:
    died = 0
    for number in range(1, 100):
        past = Past(tmp_path / f"plans-{after}-{number}")
        try:
            words = _filled(past)
            _whole(past.store)
            blobs = past.store.blobs
            dying = Store(DyingBlobs(blobs, number, after=after), None, "state")  # type: ignore[arg-type]
            try:
                _purge(dying, tmp_path / f"one-{after}-{number}")
            except Killed:
                died += 1
                _whole(past.store)
                _purge(past.store, tmp_path / f"two-{after}-{number}")
            assert _holders(past.store, words) == [], number
            _whole(past.store)
            past.state, _ = past.store.load()
            made = past.plan({"b.txt": "new b", "c.txt": "c"})
            assert counts(made) == {"unchanged": 2}
            if died < number:
                break
        finally:
            past.close()
    assert died > 10


def test_responses_of_many_members_keep_their_places(past: Past, tmp_path: Path) -> None:
    """What stays is read at new places; the row that goes lies between them."""
    documents = {f"{n}.txt": f"text {n}" for n in range(6)} | {"a.txt": MARK}
    made = past.plan(documents)
    (shard,) = made.shards
    past.store.put_shard(shard.shard_id, shard.path)
    past.store.create_attempt(make_attempt("t-a1", shard_id=shard.shard_id, state=AttemptState.CLEANED))
    refs: dict[str, Any] = {}
    lines = [
        ok_line(orjson.loads(line)["key"], line.decode() + "x" * 700_000)
        for line in shard.path.read_bytes().splitlines()
    ]
    past.store.put_responses(
        "t-a1", [b"\n".join(lines)], lambda line, ref: refs.update({orjson.loads(line)["key"]: ref})
    )
    past.finish(made, {i: make_stored(i, ref=refs[i]) for i in refs})
    assert past.state is not None
    past.store.save(past.state, "")
    assert len({ref.member for ref in refs.values()}) == 4
    _purge(past.store, tmp_path / "work")

    _whole(past.store)
    assert _holders(past.store, [MARK, "a.txt"]) == []


def test_an_index_that_was_read_before_a_purge_is_brought_up(past: Past, tmp_path: Path) -> None:
    """As many segments as before, and others: an index elsewhere must not go on with the old ones."""
    _filled(past)
    past.index.sync(past.state, ())
    past.store.save(past.state, past.store.load()[1])  # type: ignore[arg-type]
    gone = next(row for row in known(past.store, past.state) if row.key == "a.txt").wanted[0]  # type: ignore[arg-type]
    assert past.index.stored(gone.request_id)
    _purge(past.store, tmp_path / "work")
    past.state, _ = past.store.load()
    past.index.sync(past.state, ())

    assert past.index.stored(gone.request_id) is None
    for row in past.index.rows():
        stored = past.index.stored(row.wanted[0].request_id)
        assert stored is not None
        assert past.store.response(stored)


# ---------------------------------------------------------------- gc


def test_gc_deletes_what_nothing_refers_to(applied: Any) -> None:
    names = {
        "rows/9.jsonl.gz": gzip.compress(b'{"version":1,"components":{}}\n'),
        "outcomes/9.jsonl.gz": gzip.compress(b'{"version":1,"token":"","summary":{}}\n'),
        f"shards/{'f' * 64}.jsonl.gz": gzip.compress(b""),
        "specs/0000.json": b"{}",
        "responses/nobody.1.jsonl.gz": gzip.compress(b"x\n"),
        "rows/.tmp-0123456789abcdef": b"half",
        ".tmp-fedcba9876543210": b"half",
    }
    (token,) = [attempt["token"] for attempt in applied.attempts()]
    names[f"responses/{token}.2.jsonl.gz"] = gzip.compress(b"a second download\n")
    before = everything(applied.state)
    for name, data in names.items():
        (applied.state / name).write_bytes(data)

    got = applied.run("gc", "job.yaml", "--dry-run")
    listed = [line.split()[1] for line in got.stdout.splitlines() if line.startswith("  - ")]
    assert sorted(listed) == sorted(names)
    total = sum(map(len, names.values()))
    assert got.stdout.splitlines()[-1] == f"Would delete 8 file(s), {total} B."
    assert all((applied.state / name).exists() for name in names)

    assert "Deleted 0 file(s)" in applied.run("gc", "job.yaml", "--older-than", "1h").stdout
    for name in list(names)[:2]:
        os.utime(applied.state / name, (time.time() - 7200,) * 2)
    assert "Deleted 2 file(s)" in applied.run("gc", "job.yaml", "--older-than", "1h").stdout
    assert "Deleted 6 file(s)" in applied.run("gc", "job.yaml").stdout
    assert everything(applied.state).keys() == before.keys()
    assert "Deleted 0 file(s), 0 B." in applied.run("gc", "job.yaml").stdout
    assert "No changes." in applied.plan()


def test_gc_keeps_what_the_history_names(applied: Any) -> None:
    for number in range(3):
        applied.spec(prompt=f"Prompt {number}: {{{{ input.text }}}}")
        applied.apply()
    before = everything(applied.state)
    assert "Deleted 0 file(s)" in applied.run("gc", "job.yaml").stdout
    for path in applied.state.glob("history/*.json"):
        path.unlink()
    listed = applied.run("gc", "job.yaml").stdout
    for number in (1, 2, 3):
        assert f"- rows/{number}.jsonl.gz" in listed
    # Specs of rows that are no more, and nothing else: answers and what was asked are kept.
    assert {name.split("/")[0] for name in before.keys() - everything(applied.state).keys()} == {
        "rows", "history", "specs"
    }  # fmt: skip
    assert "No changes." in applied.plan()
    applied.spec(prompt="Prompt 0: {{ input.text }}")
    assert "4 reused" in applied.plan()


def test_gc_needs_a_root_that_can_be_read(applied: Any, new_project: Callable[..., Any]) -> None:
    before = everything(applied.state)
    root = applied.state / "state.json"
    data = root.read_bytes()
    root.write_bytes(data[:-9])
    assert "state.json" in applied.run("gc", "job.yaml", code=1).stderr
    root.unlink()
    got = applied.run("gc", "job.yaml", code=1)
    assert "has no state.json, so nothing says which parts are in use" in got.stderr
    assert "gbrun state push" in got.stderr
    root.write_bytes(data)
    assert everything(applied.state).keys() == before.keys()
    fresh = new_project("fresh")
    fresh.inputs(1)
    fresh.spec()
    assert "nothing has been applied yet" in fresh.run("gc", "job.yaml", code=1).stderr


def test_gc_keeps_the_only_record_of_an_attempt(past: Past) -> None:
    """A root from before a crash does not name it, and it is paid for all the same."""
    for number in (1, 2):
        past.store.create_attempt(make_attempt(f"t-a{number}", state=AttemptState.COLLECTED))
        past.store.put_responses(f"t-a{number}", [b"x\n"], lambda line, ref: None)
    name = past.store.put_outcomes("t-a1", {}, [])
    past.store.save(make_state(outcomes=(name,)), "")
    second = past.store.put_outcomes("t-a2", {}, [])
    again = past.store.put_outcomes("t-a1", {}, [])

    found = [one.name for one in garbage.find(past.store, time.time() + 9)]
    assert found == [again]
    assert second not in found


def test_gc_keeps_the_specs_that_rows_were_rendered_from(past: Past) -> None:
    """After --target they stand in one snapshot; the next plan's differences need them."""
    for digest in ("a" * 32, "b" * 32, "5" * 16):
        past.store.put_spec(digest, {})
    header = rowtable.header({"c": {"spec": "a" * 32, "digests": {}}})
    past.store.save(make_state(rows=past.store.put_rows([header])), "")
    found = [one.name for one in garbage.find(past.store, time.time() + 9)]
    assert found == [f"specs/{'b' * 32}.json"]


def test_gc_keeps_what_a_live_attempt_has_stored_so_far(past: Past) -> None:
    past.store.create_attempt(make_attempt("t-a1", state=AttemptState.TERMINAL))
    past.store.put_responses("t-a1", [b"x\n"], lambda line, ref: None)
    past.store.save(make_state(), "")
    assert garbage.find(past.store, time.time() + 9) == []


# ---------------------------------------------------------------- the lock


def test_the_lock_is_shown_while_it_is_held(applied: Any) -> None:
    assert "is not locked" in applied.run("lock", "show", "job.yaml").stdout
    assert "Nothing to do" in applied.run("force-unlock", "job.yaml", "0123").stdout
    store = Store(_blobs(applied), None, "x")
    with store.lock("apply", "2026-01-01T00:00:00Z", 0):
        holder = store.lock_holder()
        assert holder is not None
        got = applied.run("lock", "show", "job.yaml", code=5)
        for word in ("operation apply", holder["id"], str(os.getpid()), "since 2026-01-01T00:00:00Z"):
            assert word in got.stdout
        got = applied.run("force-unlock", "job.yaml", holder["id"], code=5)
        assert f"process {os.getpid()} on {holder['host']} still runs" in got.stderr
        assert f"kill {os.getpid()}" in got.stderr
        assert "which is not" not in got.stderr
        got = applied.run("force-unlock", "job.yaml", "0123", code=5)
        assert "which is not '0123'" in got.stderr
        # It was only looked at.
        applied.run("lock", "show", "job.yaml", code=5)
    assert store.lock_holder() is None


def test_a_killed_run_leaves_no_lock(project: Any, wait_for: Callable[..., None]) -> None:
    project.inputs(1)
    project.faults(http=[{"on": "upload", "kind": "slow", "delay_s": 20}])
    project.spec()
    child = project.gbrun.start("apply", "job.yaml", "--auto-approve", cwd=project.folder)
    store = Store(_blobs(project), None, "x")
    wait_for(lambda: project.state.exists() and (store.lock_holder() or {}).get("pid") == child.pid)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    wait_for(lambda: store.lock_holder() is None)
    assert (project.state / "lock.json").read_bytes()
    assert "is not locked" in project.run("lock", "show", "job.yaml").stdout


def test_the_lock_of_a_damaged_state_can_be_seen(applied: Any) -> None:
    (applied.state / "state.json").write_bytes(b"{")
    assert "is not locked" in applied.run("lock", "show", "job.yaml").stdout
