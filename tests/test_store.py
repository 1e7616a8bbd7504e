"""The state in a blob store: what is replaced only while unchanged, and what is refused when damaged."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from builders import make_attempt, make_state, make_stored

from runner.blobs import BlobExists
from runner.blobs.memory import MemoryBlobs
from runner.errors import StateChanged, StateError, StateLocked, StateUnreadable
from runner.model import AttemptState, ResponseRef
from runner.store import HISTORY_COUNT, Store


@pytest.fixture
def store() -> Store:
    return Store(MemoryBlobs(), None, ".gbrun/tickets")


def swap(store: Store, name: str, data: bytes) -> None:
    store.blobs.delete(name)
    store.blobs.create(name, data)


# ---------------------------------------------------------------- root


def test_there_is_no_state_at_first(store: Store) -> None:
    assert store.load() == (None, "")


def test_a_root_is_saved_and_replaced(store: Store) -> None:
    one, two = make_state(serial=1), make_state(serial=2)
    version = store.save(one, "")
    assert store.load() == (one, version)

    later = store.save(two, version)
    assert store.load() == (two, later)
    assert later != version


@pytest.mark.parametrize("version", ["", "stale"])
def test_a_root_that_another_run_replaced_is_left_alone(store: Store, version: str) -> None:
    first = store.save(make_state(serial=1), "")
    store.save(make_state(serial=2), first)
    with pytest.raises(StateChanged, match=r"\.gbrun/tickets/state\.json was replaced"):
        store.save(make_state(serial=9), version and first)

    loaded, _ = store.load()
    assert loaded is not None
    assert loaded.serial == 2


def test_a_damaged_root_names_the_newest_good_one(store: Store) -> None:
    for serial in (1, 2, 3):
        store.keep_history(make_state(serial=serial))
    swap(store, "history/00000003.json", b"{")
    store.save(make_state(serial=4), "")
    data = store.blobs.read("state.json")[0]
    for end in range(len(data) - 1):
        swap(store, "state.json", data[:end])
        with pytest.raises(StateUnreadable, match=r"\.gbrun/tickets/state\.json") as caught:
            store.load()
        assert caught.value.hint == "the newest good one is .gbrun/tickets/history/00000002.json"


def test_the_last_roots_are_kept(store: Store) -> None:
    for serial in range(1, 31):
        store.keep_history(make_state(serial=serial))
        store.keep_history(make_state(serial=serial))

    names = list(store.blobs.list("history/"))
    assert len(names) == HISTORY_COUNT
    assert (names[0], names[-1]) == ("history/00000011.json", "history/00000030.json")


def test_the_lock_is_for_one_and_names_its_holder(store: Store) -> None:
    words = r"operation apply, pid .*, since 2026-01-01T00:00:00Z"
    with store.lock("apply", "2026-01-01T00:00:00Z", 0), pytest.raises(StateLocked, match=words):
        store.lock("wait", "later", 0).__enter__()
    with store.lock("wait", "later", 0):
        pass


# ---------------------------------------------------------------- attempts


def test_attempts_are_listed_with_their_versions(store: Store) -> None:
    versions = [store.create_attempt(make_attempt(f"t-a{n}")) for n in (2, 1)]

    assert [(a.token, v) for a, v in store.attempts()] == [("t-a1", versions[1]), ("t-a2", versions[0])]


def test_an_attempt_has_one_creator(store: Store) -> None:
    store.create_attempt(make_attempt(request_count=1))
    with pytest.raises(BlobExists):
        store.create_attempt(make_attempt(request_count=2))

    assert [a.request_count for a, _ in store.attempts()] == [1]


def test_an_attempt_that_another_run_changed_is_left_alone(store: Store) -> None:
    old = store.create_attempt(make_attempt(state=AttemptState.PREPARED))
    new = store.replace_attempt(make_attempt(state=AttemptState.VOID), old)
    with pytest.raises(StateChanged, match="changed by another run"):
        store.replace_attempt(make_attempt(state=AttemptState.POSTING), old)

    assert [(a.state, v) for a, v in store.attempts()] == [(AttemptState.VOID, new)]


def test_attempts_are_read_anew_as_long_as_they_can_change(store: Store) -> None:
    version = store.create_attempt(make_attempt(state=AttemptState.SUBMITTED))
    for state in (AttemptState.TERMINAL, AttemptState.COLLECTED, AttemptState.CLEANED):
        assert len(store.attempts()) == 1
        version = Store(store.blobs, None, "other").replace_attempt(make_attempt(state=state), version)
        assert [(a.state, v) for a, v in store.attempts()] == [(state, version)]


def test_a_damaged_attempt_is_named(store: Store) -> None:
    store.create_attempt(make_attempt("t-a1"))
    swap(store, "attempts/t-a1.json", store.blobs.read("attempts/t-a1.json")[0][:-9])
    with pytest.raises(StateUnreadable, match=r"\.gbrun/tickets/attempts/t-a1\.json"):
        store.attempts()


# ---------------------------------------------------------------- parts


def test_parts_are_numbered_and_never_overwritten(store: Store) -> None:
    assert store.put_rows([b"h\n", b"1\n"]) == "rows/1.jsonl.gz"
    store.blobs.create("rows/7.jsonl.gz", b"left by a crash")
    assert store.put_rows([b"h\n"]) == "rows/8.jsonl.gz"
    store.blobs.delete("rows/1.jsonl.gz")
    assert store.put_rows([b"h\n"]) == "rows/9.jsonl.gz"
    assert list(store.lines("rows/9.jsonl.gz")) == [b"h"]


def test_an_outcomes_segment_begins_with_what_to_say_of_it(store: Store) -> None:
    name = store.put_outcomes("t-a1", {"outcomes": {"ok": 1}}, [b"{}\n"])
    header, *rest = store.lines(name)

    assert name == "outcomes/1.jsonl.gz"
    assert orjson.loads(header) == {"version": 1, "token": "t-a1", "summary": {"outcomes": {"ok": 1}}}
    assert rest == [b"{}"]


def test_a_writer_that_fails_leaves_nothing(store: Store) -> None:
    def lines() -> Iterator[bytes]:
        yield b"h\n"
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        store.put_rows(lines())
    assert list(store.blobs.list("")) == []


def test_a_shard_is_kept_as_it_was_submitted(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes('{"key":"r1","x":"\u2028"}\n{"key":"r2"}\n'.encode())
    store.put_shard("f" * 64, path)
    path.write_bytes(b"other")
    store.put_shard("f" * 64, path)

    assert list(store.shard_lines("f" * 64)) == ['{"key":"r1","x":"\u2028"}'.encode(), b'{"key":"r2"}']


def test_a_part_that_the_state_refers_to_and_that_is_gone(store: Store) -> None:
    for read in (store.lines, store.shard_lines):
        with pytest.raises(StateUnreadable, match="is missing, though the state refers to it"):
            list(read("rows/3.jsonl.gz"))


def test_specs_are_kept_once(store: Store) -> None:
    store.put_spec("5" * 16, {"b": 1, "a": 2})
    store.put_spec("5" * 16, {"other": 1})

    assert store.spec("5" * 16) == {"b": 1, "a": 2}
    assert store.spec("6" * 16) is None


# ---------------------------------------------------------------- responses


def put(store: Store, chunks: list[bytes]) -> list[tuple[bytes, ResponseRef]]:
    seen: list[tuple[bytes, ResponseRef]] = []
    store.put_responses("t-a1", chunks, lambda line, ref: seen.append((line, ref)))
    return seen


def read(store: Store, ref: ResponseRef | None) -> Any:
    return store.response(make_stored(token="t-a1", ref=ref))


def test_responses_are_kept_byte_for_byte_and_read_at_random(store: Store) -> None:
    lines = [b'{"n":%d,"x":"' % n + b"\xe2\x80\xa8" * 200_000 + b'"}' for n in range(5)]
    seen = put(store, [b"\n".join(lines)])
    stored = store.blobs.read("responses/t-a1.1.jsonl.gz")[0]

    assert gzip.decompress(stored) == b"\n".join(lines) + b"\n"
    assert [read(store, ref) for _, ref in reversed(seen)] == lines[::-1]
    assert len({ref.member for _, ref in seen}) == 3
    assert [o for o, _ in store.response_members("t-a1", 1)] == sorted({ref.member for _, ref in seen})
    assert read(store, None) is None


def test_a_second_download_is_a_second_part(store: Store) -> None:
    (first,), (second,) = put(store, [b"one\n"]), put(store, [b"two"])

    assert (first[1].part, second[1].part) == (1, 2)
    assert (read(store, first[1]), read(store, second[1])) == (b"one", b"two")


def test_parts_of_tokens_that_begin_alike_are_numbered_apart(store: Store) -> None:
    store.put_responses("t-a11", [b"x\n"], lambda line, ref: None)

    assert put(store, [b"y\n"])[0][1].part == 1


def test_a_response_file_cut_at_any_byte_is_never_read_wrong(store: Store) -> None:
    seen = put(store, [b"one, two\nthree\n" + bytes(range(11, 200)) + b"\nlast\n"])
    name = "responses/t-a1.1.jsonl.gz"
    data = store.blobs.read(name)[0]
    for end in range(len(data)):
        swap(store, name, data[:end])
        for line, ref in seen:
            try:
                assert read(store, ref) == line
            except StateError:
                continue


def test_a_response_that_is_gone_is_an_error_of_the_state(store: Store) -> None:
    with pytest.raises(StateError):
        read(store, ResponseRef(part=1, member=0, offset=0, length=3))
