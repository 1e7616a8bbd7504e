"""Real processes, really killed: `kill -9` at random instants, and two applies at once.

On the Developer API's protocol with a state in a folder, and on Vertex's with a state in Cloud Storage, whose
lock outlives who was killed with it: there a person frees it.

Short in `make test`; `make torture ROUNDS=200` is the long one. A round that fails names its number,
and `TORTURE_FIRST=<number> ROUNDS=1` plays it again.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

SHORT_ROUNDS = 4
FAULTS: tuple[dict[str, Any], ...] = (
    {},
    {"http": [{"on": "create", "kind": "lost_reply", "times": 1}]},
    {"http": [{"on": "get", "kind": "http_5xx", "status": 503, "every": 3, "times": 4}]},
    {"http": [{"on": "download", "kind": "cut_body", "times": 1}]},
    {"rows": [{"kind": "shuffled"}]},
)


def prepare(project: Any, faults: dict[str, Any]) -> None:
    project.inputs(8)
    project.faults(timing={"pending_s": 0.1, "running_s": 0.3}, **faults)
    project.spec(
        shards={"max_requests": 2},
        concurrency={"max_jobs": 2},
        backend={
            **project.settings["backend"],
            "faults": "faults.yaml",
            "settle_s": 1,
            "request_timeout_s": 5,
        },
    )


def free(project: Any) -> bool:
    """Free the lock that a killed run left behind, where it left one."""
    shown = project.run("lock", "show", "job.yaml", code=None).stdout
    if " id " not in shown:
        return False
    id_ = shown.partition(" id ")[2].partition(",")[0]
    project.run("force-unlock", "job.yaml", id_, code=None)
    return True


def one_round(number: int, project: Any, gbrun: Any, calm: bytes, took_s: float) -> Counter[str]:
    """One life: one or two applies at a time, most of them killed, until one is left to finish."""
    chance = random.Random(number)
    seen: Counter[str] = Counter()
    prepare(project, FAULTS[number % len(FAULTS)])
    for _ in range(chance.choice((1, 2, 3))):
        together = chance.choice((1, 1, 2))
        children = [
            gbrun.start(
                "apply",
                "job.yaml",
                "--auto-approve",
                "--lock-timeout",
                "20s",
                cwd=project.folder,
                env=project.env,
            )
            for _ in range(together)
        ]
        seen["two at once"] += together == 2
        time.sleep(chance.uniform(0.2, 1.0) * took_s)
        for child in children:
            seen["killed while running"] += child.poll() is None
            child.kill()
        for child in children:
            child.communicate()
        seen["locks left behind"] += project.remote and free(project)
    both = [
        gbrun.start(
            "apply",
            "job.yaml",
            "--auto-approve",
            "--lock-timeout",
            "60s",
            cwd=project.folder,
            env=project.env,
        )
        for _ in range(2)
    ]
    codes = []
    for child in both:
        output = child.communicate(timeout=120)
        codes.append((child.returncode, output[1][-2000:]))
    assert [code for code, _ in codes] == [0, 0], (number, codes)

    sent = Counter(project.requests_sent())
    assert set(sent.values()) == {1}, (number, "a request was paid for twice", sent)
    assert len(sent) == 8, (number, sent)
    assert (project.folder / "out/notes.jsonl").read_bytes() == calm, number
    plan = project.plan("--detailed-exitcode", code=0)
    assert "No changes" in plan, (number, plan)
    seen["rounds"] += 1
    return seen


def rounds(first: int, count: int, new_project: Callable[[str], Any], gbrun: Any) -> Counter[str]:
    calm = new_project("calm")
    prepare(calm, {})
    began = time.monotonic()
    calm.apply()
    took_s = time.monotonic() - began
    records = (calm.folder / "out/notes.jsonl").read_bytes()
    seen: Counter[str] = Counter()
    for number in range(first, first + count):
        seen += one_round(number, new_project(f"round-{number}"), gbrun, records, took_s)
    return seen


@pytest.fixture(params=["gemini", "vertex"])
def make(
    request: pytest.FixtureRequest, new_project: Callable[..., Any], make_remote: Callable[..., Any]
) -> Callable[[str], Any]:
    """Makes a project on one of the protocols."""
    calm: list[Any] = []

    def begin(folder: str) -> Any:
        if request.param == "gemini":
            project = new_project(folder)
            project.env, project.remote = {}, False
            return project
        project = make_remote(folder=folder, server=calm[0].server if calm else None)
        calm.append(project)
        project.remote = True
        project.settings |= {"state": f"gs://bucket/{folder}", "backend": {"type": "local", "like": "vertex"}}
        return project

    return begin


def test_a_few_rounds(make: Callable[[str], Any], gbrun: Any) -> None:
    seen = rounds(0, SHORT_ROUNDS, make, gbrun)
    assert seen["killed while running"] >= SHORT_ROUNDS


@pytest.mark.slow
def test_many_rounds(make: Callable[[str], Any], gbrun: Any, capsys: pytest.CaptureFixture[str]) -> None:
    count = int(os.environ.get("ROUNDS", "200"))
    first = int(os.environ.get("TORTURE_FIRST", "1000"))
    seen = rounds(first, count, make, gbrun)
    with capsys.disabled():
        sys.stdout.write(f"\n{dict(seen)}; no request was sent twice, no record was lost\n")
