"""Times gbrun as whole processes beside the bare loops, and prints absolute times and ratios.

    python bench/plan.py [--counts 10000,100000] [--runs 5]

Runs alternate (bare, gbrun, bare, ...), so that a machine whose speed drifts drifts for both;
quoted are medians. Peak memory is the largest of a process. Documents are made anew from a seed.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BENCH = Path(__file__).resolve().parent
GBRUN = [sys.executable, "-c", "from runner.cli import main; main()"]
BARE = [sys.executable, str(BENCH / "bare.py")]
WORDS = ["router", "billing", "outage", "refund", "cable", "login", "invoice", "delivery", "screen", "noise"]
SPEC = """\
version: 1
name: bench
backend: local
inputs: data/**/*.txt
model: gemini-3.5-flash-lite
prompt: |
  Which team should handle this ticket?
  {{ input.text }}
output_schema:
  type: object
  properties: {team: {type: string, enum: [billing, outage, other]}}
  required: [team]
destination: out/bench.jsonl
"""


def documents(folder, count):
    rng = random.Random(count)
    for number in range(count):
        place = folder / "data" / f"{number // 1000:04d}"
        if number % 1000 == 0:
            place.mkdir(parents=True)
        text = " ".join(rng.choices(WORDS, k=280))
        (place / f"{number:07d}.txt").write_text(f"{number} {text}\n")
    (folder / "spec.yaml").write_text(SPEC)


def once(command, folder):
    """(wall seconds, user + system seconds, peak MB) of one process."""
    began = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(BENCH.parent)}
    # As installed: modules are compiled once and not by every run.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    child = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in (0, 2):
        raise SystemExit(f"{' '.join(command)} exited with {child.returncode}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def pair(name, bare, ours, folder, runs, before=lambda: None):
    measured = []
    for _ in range(runs):
        before()
        measured.append((once(bare, folder), once(ours, folder)))
    ratio = statistics.median(o[0] / b[0] for b, o in measured)
    cpu_ratio = statistics.median(o[1] / b[1] for b, o in measured)
    bare_s = statistics.median(b[0] for b, _ in measured)
    ours_s = statistics.median(o[0] for _, o in measured)
    peak_mb = max(o[2] for _, o in measured)
    print(
        f"{name:<44} bare {bare_s:7.2f} s  gbrun {ours_s:7.2f} s  ratio {ratio:5.2f}"
        f"  (cpu {cpu_ratio:5.2f})  peak {peak_mb:5.0f} MB",
        flush=True,
    )


def start_up(folder, runs):
    for name, arguments in (
        ("gbrun --help", ["--help"]),
        ("gbrun validate", ["validate", "spec.yaml"]),
        ("gbrun plan, one file", ["plan", "spec.yaml"]),
    ):
        wall = statistics.median(once([*GBRUN, *arguments], folder)[0] for _ in range(runs * 2 + 1))
        print(f"{name:<44} {wall * 1000:7.0f} ms", flush=True)


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--counts", default="10000,100000")
    options.add_argument("--runs", type=int, default=5)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="gbrun-bench-") as temporary:
        small = Path(temporary) / "one"
        small.mkdir()
        documents(small, 1)
        start_up(small, chosen.runs)
        for count in map(int, chosen.counts.split(",")):
            folder = Path(temporary) / str(count)
            folder.mkdir()
            documents(folder, count)
            write = [*BARE, "read_hash_write", "data", "bare.out", "2300"]
            pair(
                f"first plan, {count:,} documents", write, [*GBRUN, "plan", "spec.yaml"], folder, chosen.runs
            )
            # A state is needed for what follows; documents younger than two seconds are read again.
            time.sleep(2.5)
            took = once([*GBRUN, "apply", "spec.yaml", "--auto-approve", "-q"], folder)
            print(
                f"apply on the local emulator, {count:,} documents{'':<9} {took[0]:7.2f} s"
                f"  {count / took[0]:,.0f} rows/s  peak {took[2]:5.0f} MB",
                flush=True,
            )
            once([*GBRUN, "plan", "spec.yaml"], folder)
            walk = [*BARE, "walk_stat", "data"]
            pair(
                f"plan with nothing to do, {count:,} documents",
                walk,
                [*GBRUN, "plan", "spec.yaml"],
                folder,
                chosen.runs,
            )
            pair(
                f"the same with --no-stat-cache, {count:,} documents",
                write,
                [*GBRUN, "plan", "spec.yaml", "--no-stat-cache"],
                folder,
                max(1, chosen.runs // 2),
            )


if __name__ == "__main__":
    main()
