"""Times taking in an output (parse, validate, state, records) beside two bare loops, and prints the ratios:
to the one that only parses and writes records, and to the one that also keeps what a state has of them.

    python bench/collect.py [--counts 10000,100000] [--runs 3]

A service made of files answers at once, in turn with the two kinds of answers that there are: a long text
in a small object, and an invoice of many small fields. What is timed, in one process, is what an apply does
from the first look at the ended jobs to the placed destination. The machine should be quiet.
"""

import argparse
import gc
import hashlib
import json
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCH.parent), str(BENCH)]

import bare  # noqa: E402

from runner import export, index, inputs, ledger, plan  # noqa: E402
from runner import spec as specfile  # noqa: E402
from runner.apply import Apply, Stop  # noqa: E402
from runner.blobs.local import LocalBlobs  # noqa: E402
from runner.clock import SystemClock  # noqa: E402
from runner.decide import Policy  # noqa: E402
from runner.index import Index  # noqa: E402
from runner.model import Job, JobState, Upload  # noqa: E402
from runner.render import Renderer  # noqa: E402
from runner.specmodel import ShardLimits  # noqa: E402
from runner.store import Store  # noqa: E402

WORDS = ["router", "billing", "outage", "refund", "cable", "login", "invoice", "delivery", "screen", "noise"]
SPEC = """\
version: 1
name: bench
backend: local
inputs: data/**/*.txt
model: gemini-3.5-flash-lite
prompt: "{{ input.text }}"
output_schema: schema.json
destination: out/bench.jsonl
cleanup: keep
"""


SCHEMAS = {
    "long texts": {
        "type": "object",
        "properties": {
            "team": {"type": "string", "enum": ["billing", "outage", "other"]},
            "score": {"type": "number", "minimum": 0},
            "tags": {"type": "array", "items": {"type": "string"}},
            "summary": {"type": "string"},
        },
        "required": ["team", "score", "tags"],
    },
    "invoices": {
        "type": "object",
        "properties": {
            "number": {"type": "string", "pattern": "^INV-[0-9]{6}$"},
            "date": {"type": "string", "format": "date"},
            "currency": {"type": "string", "enum": ["EUR", "USD"]},
            "vendor": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "email": {"type": "string", "format": "email"}},
                "required": ["name"],
            },
            "line_items": {"type": "array", "items": {"$ref": "#/$defs/item"}},
            "total": {"type": "number"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["number", "line_items", "total"],
        "$defs": {
            "item": {
                "type": "object",
                "properties": {
                    "description": {"type": "string"},
                    "quantity": {"type": "integer", "minimum": 0},
                    "unit_price": {"type": "number"},
                    "tax": {"type": "number"},
                },
                "required": ["description", "quantity", "unit_price"],
            }
        },
    },
}


def long_text(rng):
    return {
        "team": rng.choice(["billing", "outage", "other"]),
        "score": round(rng.random(), 3),
        "tags": rng.choices(WORDS, k=5),
        "summary": " ".join(rng.choices(WORDS, k=250)),
    }


def invoice(rng):
    return {
        "number": f"INV-{rng.randrange(10**6):06d}",
        "date": f"2026-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
        "currency": rng.choice(["EUR", "USD"]),
        "vendor": {"name": rng.choice(WORDS), "email": f"{rng.choice(WORDS)}@example.com"},
        "line_items": [
            {
                "description": " ".join(rng.choices(WORDS, k=4)),
                "quantity": rng.randint(1, 20),
                "unit_price": round(rng.random() * 100, 2),
                "tax": rng.choice([0, 7, 19]),
            }
            for _ in range(14)
        ],
        "total": round(rng.random() * 1000, 2),
        "note": rng.choice([None, " ".join(rng.choices(WORDS, k=20))]),
    }


MAKERS = {"long texts": long_text, "invoices": invoice}


class Files:
    """A service whose jobs have ended when they are looked at."""

    limits = ShardLimits(max_requests=1_000_000, max_bytes=2_000_000_000)
    poll_interval_s = 0.01
    principal = "local"
    notice = ""

    def __init__(self, outputs):
        self.outputs = outputs

    def upload(self, path, *, name, sha256):
        return Upload(name=name, sha256=sha256)

    def create(self, *, model, upload_name, display_name, task):
        return self.get(f"batches/{display_name}")

    def jobs(self):
        return iter(())

    def get(self, job_name):
        token = job_name.removeprefix("batches/")
        state = JobState.SUCCEEDED if (self.outputs / token).exists() else JobState.RUNNING
        return Job(job_name=job_name, display_name=token, state=state, output_name=token)

    def output(self, job):
        with (self.outputs / job.output_name).open("rb") as file:
            while chunk := file.read(1 << 18):
                yield chunk


def answers(folder, state, out, make):
    """The output of every job in flight, one file each; all of them in one file for the bare loop."""
    rng = random.Random(7)
    store = Store(LocalBlobs(state), None, "state")
    with (folder / "responses.jsonl").open("wb") as whole:
        for attempt, _ in store.attempts():
            with (out / attempt.token).open("wb") as file:
                for line in store.shard_lines(attempt.shard_id):
                    text = json.dumps(make(rng))
                    part = {"content": {"parts": [{"text": text}], "role": "model"}}
                    response = {
                        "candidates": [{**part, "finishReason": "STOP", "index": 0}],
                        "usageMetadata": {"promptTokenCount": 900, "candidatesTokenCount": 300},
                        "modelVersion": "gemini-3.5-flash-lite",
                        "responseId": hashlib.sha256(line).hexdigest()[:22],
                    }
                    body = {"key": json.loads(line)["key"], "response": response}
                    data = json.dumps(body).encode() + b"\n"
                    file.write(data)
                    whole.write(data)


def planned(spec, state, work):
    store = Store(LocalBlobs(state), state, "state")
    known = Index(store)
    root, _ = store.load()
    attempts = [attempt for attempt, _ in store.attempts()]
    known.sync(root, attempts)
    work.mkdir()
    made, _ = plan.make(
        spec,
        basis=ledger.basis(root, attempts),
        spec_digest=specfile.digest(spec),
        judge_digest="judge",
        entries=inputs.entries(spec),
        read=lambda entry: inputs.read(spec, entry),
        renderer=Renderer(spec),
        history=known,
        workspace=work,
        destinations=export.look(spec),
        trusted_before_ns=index.trusted_before_ns(),
    )
    return store, known, made


def carry_out(spec, store, known, made, backend, *, wait):
    return Apply(
        spec=spec,
        resolved=specfile.resolved(spec),
        plan=made,
        store=store,
        index=known,
        backend=backend,
        clock=SystemClock(),
        policy=Policy(
            max_jobs=100, poll_interval_s=0.01, request_timeout_s=10, settle_s=1,
            submit=not wait, wait=wait, cleanup="keep",
        ),
        new_lineage=lambda: uuid.uuid4().hex,
        on_event=lambda event: None,
        stop=Stop(),
    ).run()  # fmt: skip


def one(folder, spec, submitted, outputs, number):
    """(bare seconds, those of the bare loop that keeps, our seconds) of one run on a copy of the submitted
    state."""
    state = folder / f"state-{number}"
    shutil.copytree(submitted, state)
    shutil.rmtree(folder / "out", ignore_errors=True)
    store, known, made = planned(spec, state, folder / f"work-{number}")
    responses, kept = folder / "responses.jsonl", folder / "kept"
    kept.mkdir()
    began = time.perf_counter()
    bare.collect(responses, folder / "bare.out")
    bare_s = time.perf_counter() - began
    # In a process of its own, since it holds everything in memory.
    keep = [sys.executable, BENCH / "bare.py", "collect_and_keep", responses, folder / "schema.json", kept]
    keeping_s = float(subprocess.run(keep, check=True, capture_output=True).stdout)
    began = time.perf_counter()
    result = carry_out(spec, store, known, made, Files(outputs), wait=True)
    ours_s = time.perf_counter() - began
    assert result.complete, result
    assert set(result.rows) == {"ok"}, result.rows
    known.close()
    shutil.rmtree(state)
    shutil.rmtree(kept)
    return bare_s, keeping_s, ours_s


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--counts", default="10000,100000")
    options.add_argument("--runs", type=int, default=3)
    chosen = options.parse_args()
    # As the command line does.
    gc.set_threshold(100_000, 50, 100)
    for count in map(int, chosen.counts.split(",")):
        for kind in SCHEMAS:
            with tempfile.TemporaryDirectory(prefix="gbrun-bench-") as temporary:
                measure(Path(temporary), kind, count, chosen.runs)


def measure(folder, kind, count, times):
    for number in range(count):
        place = folder / "data" / f"{number // 1000:04d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:07d}.txt").write_text(f"{number}")
    (folder / "schema.json").write_text(json.dumps(SCHEMAS[kind]))
    (folder / "spec.yaml").write_text(SPEC)
    spec = specfile.load(folder / "spec.yaml", environ={})
    submitted, outputs = folder / "submitted", folder / "outputs"
    submitted.mkdir()
    outputs.mkdir()
    store, known, made = planned(spec, submitted, folder / "work")
    carry_out(spec, store, known, made, Files(outputs), wait=False)
    known.close()
    answers(folder, submitted, outputs, MAKERS[kind])
    line_bytes = (folder / "responses.jsonl").stat().st_size / count
    runs = [one(folder, spec, submitted, outputs, number) for number in range(times)]
    bare_s, keeping_s, ours_s = (statistics.median(column) for column in zip(*runs, strict=True))
    ratio = statistics.median(ours / bare for bare, _, ours in runs)
    to_keeping = statistics.median(ours / keeping for _, keeping, ours in runs)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    what = f"collect, {count:,} {kind} of {line_bytes / 1000:.1f} KB"
    print(
        f"{what:<44} bare {bare_s:6.2f} s  keeping {keeping_s:6.2f} s  gbrun {ours_s:6.2f} s"
        f"  ratios {ratio:5.2f} {to_keeping:5.2f}  peak {peak_mb:4.0f} MB  {count / ours_s:,.0f} rows/s",
        flush=True,
    )


if __name__ == "__main__":
    main()
