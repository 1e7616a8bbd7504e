"""Two runners race on one state in Cloud Storage: one wins, the other exits 5 or waits, nothing is lost.

Short in `make test`; `make races ROUNDS=100` is the long one. Each runner is a machine of its own: other
folder, other process, the same documents, bucket and service.
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

from runner.blobs.gcserrors import EMULATOR_VARIABLE

SHORT_ROUNDS = 4
ENDS = {0, 5, 6}
"""Done; locked by the other; overtaken by the other."""


def one_round(number: int, make_remote: Callable[..., Any], server: Any) -> Counter[str]:
    chance = random.Random(number)
    machines = []
    for side in ("left", "right"):
        machine = make_remote(folder=f"round-{number}-{side}", server=server)
        machine.inputs(6)
        machine.env = {EMULATOR_VARIABLE: server.url, "GEMINI_API_KEY": "any"}
        machine.spec(
            backend={"type": "gemini", "base_url": server.url, "poll_interval_s": 0.05},
            state=f"gs://bucket/races/{number}",
            shards={"max_requests": 2},
        )
        machines.append(machine)
    seen: Counter[str] = Counter()
    children = []
    for machine in machines:
        patience = chance.choice((0, 0, 60))
        args = ("apply", "job.yaml", "--auto-approve", "--lock-timeout", str(patience))
        children.append(machine.gbrun.start(*args, cwd=machine.folder, env=machine.env))
        time.sleep(chance.choice((0.0, 0.0, 0.3, 1.0)))
    codes = sorted(
        machine.gbrun.finish(child, code=None).code for machine, child in zip(machines, children, strict=True)
    )
    assert set(codes) <= ENDS, (number, codes)
    assert 0 in codes, (number, codes)
    seen[" and ".join(map(str, codes))] += 1
    for machine in machines:
        machine.apply("--lock-timeout", "60")
        assert len(machine.records()) == 6, number
        assert "No changes." in machine.plan(), number
    texts = {(machine.folder / "out/notes.jsonl").read_bytes() for machine in machines}
    assert len(texts) == 1, number
    return seen


def rounds(first: int, count: int, make_remote: Callable[..., Any]) -> Counter[str]:
    calm = make_remote(folder="calm")
    server = calm.server
    seen: Counter[str] = Counter()
    for number in range(first, first + count):
        seen += one_round(number, make_remote, server)
    sent = Counter(key for _, keys in calm.jobs_of(calm.gbrun.home.parent / "cloud") for key in keys)
    assert set(sent.values()) == {count}, "a request was paid for twice in a round"
    assert len(sent) == 6
    return seen


def test_a_few_races(make_remote: Callable[..., Any]) -> None:
    rounds(0, SHORT_ROUNDS, make_remote)


@pytest.mark.slow
def test_many_races(make_remote: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    count = int(os.environ.get("ROUNDS", "100"))
    seen = rounds(int(os.environ.get("RACES_FIRST", "1000")), count, make_remote)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{count} races, exit codes {dict(seen)}; no request was sent twice, no record lost\n"
        )
