"""Where the state and the records of a life lie: blobs and a folder that a crash leaves as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from runner import statefile
from runner.blobs import Blobs, locked
from runner.blobs.lease import HEARTBEAT_S, Leases
from runner.blobs.local import LocalBlobs
from runner.errors import StateError
from runner.outputs.jsonl import JsonlFile

from .process import Process, Violation

if TYPE_CHECKING:
    from .world import World

_LABELS = {
    "specs": "spec",
    "shards": "shard",
    "responses": "responses",
    "outcomes": "outcomes",
    "rows": "rows",
    "history": "history",
}


class ProcessBlobs:
    """The blobs as one process has them: it can die around and inside of every write."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process
        self._inner: Blobs = world.blobs
        self.leases = Leases(
            _Living(world.blobs, process), "", clock=lambda: world.time, sleep=self._wait_for_lock
        )
        """Its locks, where the state lies at a place that cannot tell that a holder died."""

    # ------------------------------------------------------------ reading

    def read(self, name: str) -> tuple[bytes, str]:
        """See `Blobs.read`."""
        return self._inner.read(name)

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """See `Blobs.read_range`."""
        return self._inner.read_range(name, offset, length)

    def open(self, name: str) -> BinaryIO:
        """See `Blobs.open`."""
        return self._inner.open(name)

    def size(self, name: str) -> int:
        """See `Blobs.size`."""
        return self._inner.size(name)

    def exists(self, name: str) -> bool:
        """See `Blobs.exists`."""
        return self._inner.exists(name)

    def list(self, prefix: str) -> Iterator[str]:
        """See `Blobs.list`."""
        return self._inner.list(prefix)

    def read_lock(self, name: str) -> bytes | None:
        """See `Blobs.read_lock`."""
        return None

    # ------------------------------------------------------------ writing

    def create(self, name: str, data: bytes) -> str:
        """See `Blobs.create`."""
        label = "root create" if name == "state.json" else self._label(name, data)
        return self._write(label, name, lambda: self._inner.create(name, data))

    def create_from(self, name: str, chunks: Iterable[bytes]) -> str:
        """See `Blobs.create_from`."""
        label = self._label(name, b"")

        def torn() -> Iterator[bytes]:
            for number, chunk in enumerate(chunks):
                if number:
                    yield chunk
                    continue
                yield chunk[: len(chunk) // 2]
                self._world.visit(self._process, f"{label} half", name)
                yield chunk[len(chunk) // 2 :]

        return self._write(label, name, lambda: self._inner.create_from(name, torn()))

    def replace(self, name: str, data: bytes, version: str) -> str:
        """See `Blobs.replace`."""

        def act() -> str:
            before = self._inode(name)
            got = self._inner.replace(name, data, version)
            if before is not None and before == self._inode(name):
                self._world.tear(self._process, name)
            return got

        return self._write(self._label(name, data), name, act)

    def delete(self, name: str) -> None:
        """See `Blobs.delete`."""
        self._world.effect(self._process, f"{self._label(name, b'')} delete before", name)
        self._inner.delete(name)
        self._world.watch.removed(name)
        self._world.visit(self._process, f"{self._label(name, b'')} delete after", name)

    @contextmanager
    def lock(self, name: str, holder: bytes, timeout_s: float) -> Iterator[None]:
        """See `Blobs.lock`: freed when the process dies, as flock is."""
        world = self._world
        world.check_alive(self._process)
        if world.remote:
            with self._leased(name, holder, timeout_s):
                yield
            return
        waited_s = 0.0
        while world.holder is not None:
            if waited_s >= timeout_s:
                raise locked(name, None)
            waited_s += 1.0
            world.pass_time(1.0)
            world.switch(1.0)
        world.holder = self._process
        try:
            world.visit(self._process, "lock after")
            yield
        finally:
            world.holder = None
        if not self._process.dead:
            world.visit(self._process, "unlock after")

    @contextmanager
    def _leased(self, name: str, holder: bytes, timeout_s: float) -> Iterator[None]:
        """A lease: one who dies with it leaves it standing, until others have watched it for long enough."""
        world = self._world
        with self.leases.hold(name, holder, timeout_s):
            if world.holder is not None:
                raise Violation("a lease has one holder", f"{self._process.number}, {world.holder.number}")
            world.holder = self._process
            world.leases[self._process.number] = self.leases
            try:
                world.visit(self._process, "lock after")
                yield
            finally:
                world.holder = None
                del world.leases[self._process.number]
        if not self._process.dead:
            world.visit(self._process, "unlock after")

    def _wait_for_lock(self, seconds: float) -> None:
        self._world.pass_time(max(seconds, 1.0))
        self._world.switch(1.0)
        self._world.check_alive(self._process)

    def _label(self, name: str, data: bytes) -> str:
        if name == "state.json":
            return "root"
        kind = name.partition("/")[0]
        if kind == "attempts":
            return f"attempt {statefile.load_attempt(data, name).state}"
        return _LABELS[kind]

    def _write(self, label: str, name: str, act: Callable[[], str]) -> str:
        world = self._world
        world.effect(self._process, f"{label} before", name)
        if world.remote:
            self.leases.check()
        fails = world.faults.take("save_failed")
        after = fails and world.faults.rng.random() < 0.5
        if fails and not after:
            raise StateError("no space left on device")
        version = act()
        world.watch.wrote(self._process, name)
        world.visit(self._process, f"{label} after", name)
        if after:
            raise StateError("input/output error")
        return version

    def _inode(self, name: str) -> int | None:
        return (self._inner.root / name).stat().st_ino if isinstance(self._inner, LocalBlobs) else None


def show_life(leases: Leases, now: float) -> None:
    """What the thread of a holder does every minute, in the time of the life."""
    for held in leases._held.values():
        if not held.lost and now - held.renewed_at >= HEARTBEAT_S:
            leases._renew(held)


class _Living:
    """The blobs of locks, for as long as their process lives."""

    def __init__(self, blobs: Blobs, process: Process) -> None:
        self._blobs = blobs
        self._process = process

    def read(self, name: str) -> tuple[bytes, str]:
        return self._blobs.read(name)

    def create(self, name: str, data: bytes) -> str:
        return self._blobs.create(name, data)

    def replace(self, name: str, data: bytes, version: str) -> str:
        if self._process.dead:
            raise StateError("the dead write nothing")
        return self._blobs.replace(name, data, version)


class Records(JsonlFile):
    """A destination at which a process can die."""

    def place(self) -> None:
        """See `JsonlFile.place`."""
        assert _world is not None
        label = "errors" if ".errors." in self.path.name else "records"
        _world.effect(_world.process, f"{label} before")
        super().place()
        _world.visit(_world.process, f"{label} after")


_world: World | None = None
"""The life that is being lived; `export` opens destinations by path alone."""


def enter(world: World | None) -> None:
    """Say whose destinations are written from now on."""
    global _world
    _world = world


def snapshot(folder: Path) -> dict[Path, bytes]:
    """The destinations, and the state where it lies in files."""
    return {path: path.read_bytes() for path in _files(folder)}


def restore(folder: Path, files: dict[Path, bytes]) -> None:
    """Put those files back as they were."""
    for path in _files(folder):
        if path not in files:
            path.unlink()
    for path, data in files.items():
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)


def _files(folder: Path) -> list[Path]:
    found = [*folder.iterdir(), *(folder / "state").rglob("*")]
    return [path for path in found if path.is_file()]
