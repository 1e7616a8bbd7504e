"""Locks that outlive their process: watched, passed over, lost and noticed, by a clock moved by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from runner.blobs.gcs import GcsBlobs
from runner.blobs.gcserrors import EMULATOR_VARIABLE
from runner.blobs.lease import HEARTBEAT_S, TAKEOVER_S, Leases
from runner.blobs.memory import MemoryBlobs
from runner.emulator.server import serve
from runner.errors import StateChanged, StateError, StateLocked
from runner.gcsuri import GcsUri

MINE = b'{"id": "1", "operation": "apply", "pid": 1}'
YOURS = b'{"id": "2", "operation": "gc", "pid": 2}'
NEVER_S = 3600.0
"""A heartbeat that does not come within a test."""


class Watcher:
    """A clock that moves only by sleeping; what is due meanwhile happens in between."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.each: Callable[[], object] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.each()


@pytest.fixture
def cells() -> MemoryBlobs:
    return MemoryBlobs()


def leases(cells: Any, watcher: Watcher | None = None, **options: float) -> Leases:
    clock = watcher or Watcher()
    return Leases(
        cells, "gs://b/", clock=lambda: clock.now, sleep=clock.sleep, **{"heartbeat_s": NEVER_S, **options}
    )


def body(cells: MemoryBlobs) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cells.read("lock.json")[0])
    return found


def left(cells: MemoryBlobs) -> None:
    """A lock whose holder was killed."""
    cells.create("lock.json", json.dumps({"holder": json.loads(MINE), "beat": 7}).encode())


def test_the_blob_says_who_holds_it_and_when_nobody_does(cells: MemoryBlobs) -> None:
    with leases(cells).hold("lock.json", MINE, 0):
        assert body(cells) == {"holder": json.loads(MINE), "beat": 0}
    assert body(cells)["holder"] is None
    with leases(cells).hold("lock.json", YOURS, 0):
        assert body(cells)["holder"] == json.loads(YOURS)


def test_a_lock_that_stands_still_is_taken_over_after_five_minutes(cells: MemoryBlobs) -> None:
    left(cells)
    watcher = Watcher()
    with leases(cells, watcher).hold("lock.json", YOURS, 1000):
        assert TAKEOVER_S <= watcher.now - 1000 <= TAKEOVER_S + 2 * NEVER_S / 30
        assert body(cells)["holder"] == json.loads(YOURS)


def test_it_is_not_taken_over_a_moment_before(cells: MemoryBlobs) -> None:
    left(cells)
    watcher = Watcher()
    with pytest.raises(StateLocked, match="operation apply, pid 1") as caught:
        leases(cells, watcher, heartbeat_s=60.0).hold("lock.json", YOURS, TAKEOVER_S - 1).__enter__()
    assert "300 s is passed over" in caught.value.hint
    assert "gbrun force-unlock SPEC 1" in caught.value.hint
    assert body(cells)["holder"] == json.loads(MINE)


def test_a_lock_that_moves_is_never_taken_over(cells: MemoryBlobs) -> None:
    watcher = Watcher()
    holder = leases(cells)
    with holder.hold("lock.json", MINE, 0):
        held = holder._held["lock.json"]

        def beat() -> None:
            if int(watcher.now) % 240 < 2:
                holder._renew(held)

        watcher.each = beat
        with pytest.raises(StateLocked):
            leases(cells, watcher, heartbeat_s=60.0).hold("lock.json", YOURS, 7200).__enter__()
        assert body(cells)["beat"] > 20
    with leases(cells).hold("lock.json", YOURS, 0):
        pass


def test_the_thread_shows_life(cells: MemoryBlobs) -> None:
    with leases(cells, heartbeat_s=0.01).hold("lock.json", MINE, 0):
        until(lambda: body(cells)["beat"] >= 3)
        assert body(cells)["holder"] == json.loads(MINE)
    beats = [thread.name for thread in threading.enumerate() if thread.name.startswith("lease-")]
    assert beats == []
    assert body(cells)["holder"] is None


def test_what_cannot_be_read_is_a_lock_until_it_has_stood_still(cells: MemoryBlobs) -> None:
    for number, data in enumerate((b"", b"{", b"[]", b'{"beat": 1}')):
        cells.create(f"lock{number}.json", data)
        with pytest.raises(StateLocked, match="another run"):
            leases(cells).hold(f"lock{number}.json", MINE, 0).__enter__()
        with leases(cells, Watcher(), heartbeat_s=60.0).hold(f"lock{number}.json", MINE, 1000):
            pass


def test_a_lost_lock_is_noticed_before_the_next_write(cells: MemoryBlobs) -> None:
    watcher = Watcher()
    holder = leases(cells, watcher)
    with holder.hold("lock.json", MINE, 0):
        holder.check()
        with leases(cells, takeover_s=-1.0).hold("lock.json", YOURS, 0):
            # Trusted while the last sign of life is younger than half of what others wait for.
            watcher.now += TAKEOVER_S / 2 - 1
            holder.check()
            watcher.now += 2
            for _ in range(2):
                with pytest.raises(StateChanged, match="operation gc, pid 2 holds it now") as caught:
                    holder.check()
            assert "run the command again" in caught.value.hint
        assert body(cells)["holder"] is None
    holder.check()


def test_a_lock_that_nobody_took_is_good_after_a_long_sleep(cells: MemoryBlobs) -> None:
    watcher = Watcher()
    holder = leases(cells, watcher)
    with holder.hold("lock.json", MINE, 0):
        watcher.now += 8 * 3600
        holder.check()
        assert body(cells)["beat"] == 1


def test_without_a_word_from_the_place_nothing_is_written(cells: MemoryBlobs) -> None:
    class Cut:
        working = True
        read, create = cells.read, cells.create

        def replace(self, name: str, data: bytes, version: str) -> str:
            if not self.working:
                raise StateError("cannot be reached")
            return cells.replace(name, data, version)

    cut, watcher = Cut(), Watcher()
    holder = leases(cut, watcher)
    with holder.hold("lock.json", MINE, 0):
        cut.working = False
        holder.check()
        watcher.now += TAKEOVER_S
        with pytest.raises(StateError, match="cannot be reached"):
            holder.check()
        cut.working = True
        holder.check()
        cut.working = False
    assert body(cells)["holder"] == json.loads(MINE), "given back in time only"


def test_a_lock_is_freed_by_the_words_of_its_holder(cells: MemoryBlobs) -> None:
    assert leases(cells).free("lock.json", MINE) is False
    left(cells)
    words = leases(cells).holder("lock.json")
    assert words is not None
    assert json.loads(words) == json.loads(MINE)
    assert leases(cells).free("lock.json", YOURS) is False
    assert leases(cells).free("lock.json", words) is True
    assert leases(cells).free("lock.json", words) is False
    assert leases(cells).holder("lock.json") is None


def test_of_many_that_wait_one_at_a_time_has_it(cells: MemoryBlobs) -> None:
    left(cells)
    inside: list[int] = []
    most: list[int] = []

    def wait(number: int) -> None:
        mine = Leases(cells, "", heartbeat_s=0.02, takeover_s=0.3)
        with mine.hold("lock.json", b'{"pid": %d}' % number, 30):
            inside.append(number)
            most.append(len(inside))
            threading.Event().wait(0.05)
            inside.remove(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6


def until(holds: Callable[[], object]) -> None:
    for _ in range(500):
        if holds():
            return
        threading.Event().wait(0.02)
    raise AssertionError("it did not come about")


# ---------------------------------------------------------------- between processes

CHILD = """
import sys
from runner.blobs.gcs import GcsBlobs
from runner.gcsuri import parse
blobs = GcsBlobs(parse("gs://bucket/folder"), heartbeat_s=0.1, takeover_s=1.0)
with blobs.lock("lock.json", b'{"operation": "apply", "pid": 7}', 0):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock."""
    with ExitStack() as stack:
        server = serve(tmp_path / "emulator", 0, None)
        stack.callback(server.close)
        server._http.service.objects.create_bucket("bucket")
        monkeypatch.setenv(EMULATOR_VARIABLE, server.url)
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        stack.callback(child.communicate, timeout=10)
        stack.callback(child.kill)
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield child


def test_a_living_process_keeps_its_lock_and_a_killed_one_is_passed_over(
    held: subprocess.Popen[str],
) -> None:
    watcher = GcsBlobs(GcsUri("bucket", "folder"), heartbeat_s=0.1, takeover_s=1.0)
    with pytest.raises(StateLocked, match="operation apply, pid 7"), watcher.lock("lock.json", b"{}", 2.5):
        pass
    os.kill(held.pid, signal.SIGKILL)
    held.wait(10)
    assert watcher.read_lock("lock.json") == b'{"operation": "apply", "pid": 7}'
    with pytest.raises(StateLocked), watcher.lock("lock.json", b"{}", 0.3):
        pass
    with watcher.lock("lock.json", b"{}", 20):
        watcher.create("a", b"x")


def test_the_real_lock_waits_for_minutes() -> None:
    assert (HEARTBEAT_S, TAKEOVER_S) == (60.0, 300.0)
