"""The command line as a real process, folders to run it in, and a clock that is moved by hand."""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parent.parent
SCHEMA = {
    "type": "object",
    "properties": {"topic": {"type": "string"}, "mood": {"type": "string", "enum": ["good", "bad", "mixed"]}},
    "required": ["topic", "mood"],
}
TIMEOUT_S = 90.0
"""No single command may take longer; a hanging one is a failure, not a wait."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        return self.stdout + self.stderr


class Gbrun:
    """Runs the command line in a child process that knows nothing of this one's environment."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.temporary = home / "tmp"
        self.temporary.mkdir(parents=True)
        self.started: list[subprocess.Popen[str]] = []

    def environment(self, **extra: str) -> dict[str, str]:
        """PATH, a home and a temporary folder of its own, loopback past any proxy, and no key."""
        kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
        found = {
            **kept,
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "LC_ALL": "C.UTF-8",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }
        if not _is_installed():
            found["PYTHONPATH"] = str(CHECKOUT)
        return {**found, **extra}

    def start(self, *args: str | Path, cwd: Path, env: Mapping[str, str] = {}) -> subprocess.Popen[str]:
        """Start a command; the test's end kills it if it still runs."""
        child = subprocess.Popen(
            [sys.executable, "-m", "runner.cli", *map(str, args)],
            cwd=cwd,
            env=self.environment(**env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self.started.append(child)
        return child

    def __call__(
        self,
        *args: str | Path,
        cwd: Path,
        code: int | None = 0,
        env: Mapping[str, str] = {},
        timeout_s: float = TIMEOUT_S,
    ) -> Ran:
        """Run a command to its end and hold it to its exit code; None takes any."""
        child = self.start(*args, cwd=cwd, env=env)
        return self.finish(child, code=code, timeout_s=timeout_s)

    def finish(self, child: subprocess.Popen[str], *, code: int | None, timeout_s: float = TIMEOUT_S) -> Ran:
        try:
            stdout, stderr = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
            stdout, stderr = child.communicate()
            pytest.fail(f"{child.args} did not end within {timeout_s:g} s:\n{stdout}{stderr}")
        got = Ran(child.returncode, stdout, stderr)
        assert "Traceback" not in got.said, got.said
        if code is not None:
            assert got.code == code, f"exit {got.code}, wanted {code}:\n{got.said}"
        return got

    def close(self) -> None:
        for child in self.started:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
            child.wait()
            for stream in (child.stdout, child.stderr):
                if stream:
                    stream.close()


def _is_installed() -> bool:
    try:
        importlib.metadata.distribution("gbrun")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def emulator_jobs(folder: Path) -> list[tuple[str, list[str]]]:
    """(display name, request ids) of every job that an emulator with this folder took, oldest first."""
    if not (folder / "emulator.sqlite").exists():
        return []
    with sqlite3.connect(f"file:{folder / 'emulator.sqlite'}?mode=ro", uri=True) as db:
        found = db.execute("SELECT id, display_name FROM jobs ORDER BY seq").fetchall()
    db.close()
    inputs = [(folder / "jobs" / f"{job}.in").read_bytes().splitlines() for job, _ in found]
    return [
        (name, [json.loads(line)["key"] for line in lines])
        for (_, name), lines in zip(found, inputs, strict=True)
    ]


class Project:
    """A folder with a spec, inputs, and the ways to look at what a run left in it."""

    def __init__(self, folder: Path, gbrun: Callable[..., Ran]) -> None:
        self.folder = folder
        self.gbrun = gbrun
        """`Gbrun`, or the command line inside this process."""
        self.settings: dict[str, Any] = {
            "version": 1,
            "name": "notes",
            # Short enough for a lost submission to be settled within a test.
            "backend": {"type": "local", "request_timeout_s": 10, "settle_s": 0.1},
            "inputs": "inputs/**/*.txt",
            "model": "gemini-3.5-flash-lite",
            "prompt": "What is this note about?\n\n{{ input.text }}\n",
            "output_schema": SCHEMA,
            "destination": "out/notes.jsonl",
        }
        folder.mkdir(parents=True, exist_ok=True)

    # ------------------------------------------------------------ making

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    def inputs(self, count: int) -> None:
        for number in range(count):
            self.write(f"inputs/{number:03}.txt", f"Note {number}: the shelf has {number} boards.\n")

    def spec(self, path: str = "job.yaml", **changes: Any) -> Path:
        """Write the spec; `changes` stay for the next time, None takes a key away."""
        self.settings |= changes
        body = {key: value for key, value in self.settings.items() if value is not None}
        return self.write(path, yaml.safe_dump(body, sort_keys=False, allow_unicode=True))

    def faults(self, **plan: Any) -> None:
        """Write the fault file and have the spec use it; the spec itself is not written."""
        self.write("faults.yaml", yaml.safe_dump(plan))
        self.settings["backend"]["faults"] = "faults.yaml"

    # ------------------------------------------------------------ running

    def run(self, *args: str | Path, code: int | None = 0, **options: Any) -> Ran:
        return self.gbrun(*args, cwd=self.folder, code=code, **options)

    def plan(self, *args: str, code: int | None = 0) -> str:
        return self.run("plan", "job.yaml", *args, code=code).stdout

    def apply(self, *args: str, code: int | None = 0, **options: Any) -> Ran:
        return self.run("apply", "job.yaml", "--auto-approve", *args, code=code, **options)

    # ------------------------------------------------------------ looking

    @property
    def name(self) -> str:
        return str(self.settings["name"])

    @property
    def state(self) -> Path:
        return self.folder / ".gbrun" / self.name / "default-local"

    def root(self) -> dict[str, Any]:
        return dict(json.loads((self.state / "state.json").read_bytes()))

    def attempts(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_bytes()) for path in sorted(self.state.glob("attempts/*.json"))]

    def shards(self) -> dict[str, bytes]:
        """Name of each stored shard -> its bytes, unpacked."""
        return {
            path.name: gzip.decompress(path.read_bytes())
            for path in sorted(self.state.glob("shards/*.jsonl.gz"))
        }

    def outcomes(self) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """(header, lines) of each outcome segment that the root names, oldest first."""
        found = []
        for name in self.root()["outcomes"]:
            header, *lines = gzip.decompress((self.state / name).read_bytes()).splitlines()
            found.append((json.loads(header), [json.loads(line) for line in lines]))
        return found

    def records(self) -> list[dict[str, Any]]:
        return self._lines(self.settings["destination"])

    def failures(self) -> list[dict[str, Any]]:
        path = self.settings["destination"].removesuffix(".jsonl") + ".errors.jsonl"
        return self._lines(path)

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        if not path.exists():
            return []
        data = path.read_bytes()
        assert data == b"" or data.endswith(b"\n"), f"{name} ends in the middle of a line"
        return [json.loads(line) for line in data.split(b"\n")[:-1]]

    def jobs(self) -> list[tuple[str, list[str]]]:
        """(display name, request ids) of every job that the emulator ever took, oldest first."""
        return emulator_jobs(self.state / "emulator")

    def jobs_of(self, folder: Path) -> list[tuple[str, list[str]]]:
        """The same of another emulator's folder."""
        return emulator_jobs(folder)

    def requests_sent(self) -> list[str]:
        """Every request id that ever was in a job, once per job."""
        return [request_id for _, ids in self.jobs() for request_id in ids]

    def leftovers(self) -> list[str]:
        """Temporary files beside the destinations and in the state, where none may be."""
        found = [path for path in self.folder.rglob("*") if path.is_file()]
        marks = (".tmp", ".part", ".journal")
        return sorted(
            str(path.relative_to(self.folder))
            for path in found
            if any(mark in path.name for mark in marks) and not path.match("emulator/emulator.sqlite*")
        )


class HandClock:
    """Moves only when someone sleeps; whoever has to act at a time says so with `at`."""

    def __init__(self, seconds: float = 1_800_000_000.0) -> None:
        self.seconds = seconds
        self.slept = 0.0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.slept += seconds
        assert self.slept < 10 * 86400, "ten days passed, and nothing came of it"
        due = [entry for entry in self._due if entry[0] <= self.seconds]
        self._due = [entry for entry in self._due if entry[0] > self.seconds]
        for _, act in due:
            act()

    def at(self, after_s: float, act: Callable[[], None]) -> None:
        """Call `act` during the first sleep that reaches `after_s` from now."""
        self._due.append((self.seconds + after_s, act))


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def new_clock() -> type[HandClock]:
    return HandClock


@pytest.fixture
def gbrun(tmp_path: Path) -> Iterator[Gbrun]:
    runner = Gbrun(tmp_path / "home")
    yield runner
    runner.close()


@pytest.fixture(scope="session")
def make_gbrun() -> Iterator[Callable[[Path], Gbrun]]:
    """Make a runner with a home of its own, for fixtures that outlive a test."""
    made: list[Gbrun] = []

    def make(home: Path) -> Gbrun:
        made.append(Gbrun(home))
        return made[-1]

    yield make
    for runner in made:
        runner.close()


@pytest.fixture(scope="session")
def make_project() -> type[Project]:
    """Make a project in any folder, with any runner."""
    return Project


@pytest.fixture
def new_project(tmp_path: Path, gbrun: Gbrun) -> Callable[..., Project]:
    """Make a project below the test's folder."""

    def make(folder: str | Path = "project") -> Project:
        return Project(tmp_path / folder, gbrun)

    return make


@pytest.fixture
def project(new_project: Callable[..., Project]) -> Project:
    return new_project()


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the checkout: specs, schemas, README."""
    return CHECKOUT


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """The command line inside this process, for tests that need many runs or a monkeypatch."""
    from runner.cli import run

    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    for name in [n for n in os.environ if n.startswith(("GEMINI_", "GOOGLE_", "GBRUN_"))]:
        monkeypatch.delenv(name)

    def call(*args: str | Path, cwd: Path, code: int | None = 0) -> Ran:
        monkeypatch.chdir(cwd)
        capsys.readouterr()
        returned = run([str(arg) for arg in args])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err, out + err
        if code is not None:
            assert returned == code, f"exit {returned}, wanted {code}:\n{out}{err}"
        return Ran(int(returned), out, err)

    return call


@pytest.fixture
def wait_for() -> Callable[..., None]:
    """Wait until something holds, for a bounded time."""

    def wait(what: Callable[[], object], timeout_s: float = 30.0) -> None:
        end = time.monotonic() + timeout_s
        while not what():
            assert time.monotonic() < end, "it did not come about in time"
            time.sleep(0.02)

    return wait


# ---------------------------------------------------------------- states in Cloud Storage

STATE = "gs://bucket/teams/notes"


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    # Storage's client takes its time to load, and few tests need it.
    import msgspec

    from runner.blobs.gcserrors import EMULATOR_VARIABLE
    from runner.emulator.faults import FaultPlan
    from runner.emulator.server import serve

    servers = []

    def begin(*rules: dict[str, Any]) -> Any:
        server = serve(tmp_path / "cloud", 0, msgspec.convert({"http": list(rules)}, FaultPlan))
        servers.append(server)
        server._http.service.objects.create_bucket("bucket")
        monkeypatch.setenv(EMULATOR_VARIABLE, server.url)
        return server

    yield begin
    for server in servers:
        server.close()


@pytest.fixture
def make_remote(
    cloud: Callable[..., Any], new_project: Callable[..., Any], make_project: type, gbrun: Any
) -> Callable[..., Any]:
    """A project whose state lies in the bucket; several of them are several machines."""

    from runner.blobs.gcs import GcsBlobs
    from runner.blobs.gcserrors import EMULATOR_VARIABLE
    from runner.gcsuri import GcsUri

    class Remote(make_project):  # type: ignore[misc,valid-type]
        @property
        def state(self) -> Path:
            """What this machine keeps."""
            (found,) = (self.folder / ".gbrun/notes").glob("cache-*")
            return Path(found)

        def run(self, *args: str | Path, **options: Any) -> Any:
            return super().run(*args, **{"env": self.env} | options)

        @property
        def blobs(self) -> Any:
            return GcsBlobs(GcsUri("bucket", "teams/notes"))

    def begin(*rules: dict[str, Any], folder: str = "project", server: Any = None) -> Any:
        made = Remote(gbrun.home.parent / folder, gbrun)
        made.server = server or cloud(*rules)
        made.env = {EMULATOR_VARIABLE: made.server.url}
        made.settings["state"] = STATE
        return made

    return begin
