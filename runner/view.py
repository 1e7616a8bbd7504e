"""Plans, results and state as text for a terminal. Pure: values in, lines out.

Every text makes sense without colour; `styled` lines begin with the symbol of their class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from runner.causes import Cause
from runner.model import Action, Attempt, Change, Plan, State
from runner.specmodel import Spec

if TYPE_CHECKING:
    from runner.apply import Result

SYMBOLS = {
    Action.IN_FLIGHT: "…",
    Action.NEW: "+",
    Action.RERUN: "~",
    Action.RETRY: "!",
    Action.REMOVED: "-",
    Action.FAILED: "x",
    Action.REUSED: "=",
    Action.UNCHANGED: "=",
}
_WORDS = {Action.IN_FLIGHT: "in flight"}


def plan(
    spec: Spec,
    made: Plan,
    *,
    state_label: str,
    causes: Sequence[Cause] = (),
    with_samples: bool = True,
) -> list[str]:
    """The plan as it is shown before an apply, ending in one line that sums it up."""
    serial = f"serial {made.basis.serial}" if made.basis.lineage else "not created yet"
    backend = spec.backend.type + (" (direct calls)" if spec.backend.mode == "direct" else "")
    lines = [
        f"{spec.name}  backend {backend}  model {spec.model}  state {state_label} {serial}",
        *_class_lines(made),
    ]
    if with_samples and made.samples:
        lines += ["Such as:", *samples(made)]
    for cause in causes:
        lines.append(f"Cause: {cause.component}  {cause.place}")
        lines += [f"    {line}" for line in cause.lines]
    lines += [f"  re-export: {reason}" for reason in _reexport_reasons(made)]
    if made.superseded_count:
        lines.append(
            f"  {made.superseded_count:,} request(s) in flight that no row wants any more: paid, kept,"
            " not exported"
        )
    if made.shards:
        requests = f"{made.request_count:,} request{'s' if made.request_count != 1 else ''}"
        lines.append(f"Shards {len(made.shards):,} ({requests}, {size(made.byte_count)}).")
    lines += [f"Refused: {refusal}" for refusal in made.refusals]
    lines.append(_summary(made))
    return lines


def change(found: Change) -> str:
    """One row of a plan."""
    text = f"  {SYMBOLS[found.action]} {found.key}"
    if found.reasons:
        text += f"  {', '.join(found.reasons)}"
    if found.was:
        text += f"  was {found.was}"
    if found.same_as:
        text += f"  same request as {found.same_as}"
    return text


def samples(made: Plan) -> list[str]:
    """A few rows per class, for a plan that is not shown row by row."""
    lines = []
    for action in SYMBOLS:
        lines += [f"  {change(found)}" for found in made.samples.get(action, ())]
        rest = made.counts.get(action, 0) - len(made.samples.get(action, ()))
        if made.samples.get(action) and rest > 0:
            lines.append(f"    {SYMBOLS[action]} ... {rest:,} more")
    return lines


def _class_lines(made: Plan) -> list[str]:
    width = max((len(f"{n:,}") for n in made.counts.values()), default=1)
    lines = []
    for action in SYMBOLS:
        count = made.counts.get(action, 0)
        if not count or action is Action.FAILED:
            continue
        word = _WORDS.get(action, str(action))
        lines.append(f"  {SYMBOLS[action]} {count:>{width},} {word:<10}{_detail(made, action)}".rstrip())
    failed = made.counts.get(Action.FAILED, 0)
    if failed:
        classes = ", ".join(f"{name} {count:,}" for name, count in sorted(made.failed.items()))
        lines.append(f"  x {failed:>{width},} failed    for good: {classes}")
    return lines


def _detail(made: Plan, action: Action) -> str:
    if action is Action.NEW:
        return "never run" + _duplicates(made)
    if action is Action.REMOVED:
        return "leave the destination, results kept"
    if action is Action.REUSED:
        return _reused(made)
    if action is Action.IN_FLIGHT:
        return f"in {len(made.live_tokens):,} job(s)"
    if action in (Action.RERUN, Action.RETRY):
        return _reasons(made, action)
    return ""


def _reasons(made: Plan, action: Action) -> str:
    first: Counter[str] = Counter()
    also: Counter[str] = Counter()
    for (found, reasons), count in made.reasons.items():
        if found is action and reasons:
            first[reasons[0]] += count
            also.update(dict.fromkeys(reasons[1:], count))
    text = ", ".join(f"{name} {count:,}" for name, count in sorted(first.items(), key=_by_count))
    if also:
        text += f" (also {', '.join(f'{n} {c:,}' for n, c in sorted(also.items(), key=_by_count))})"
    renamed = [c for c in made.samples.get(action, ()) if c.was]
    if renamed:
        text += f"; {renamed[0].key} was {renamed[0].was}"
    return text


def _reused(made: Plan) -> str:
    for change in made.samples.get(Action.REUSED, ()):
        if change.same_as:
            return f"already answered; {change.key}: same request as {change.same_as}"
        if change.was:
            return f"already answered; {change.key} was {change.was}"
    return "already answered"


def _duplicates(made: Plan) -> str:
    for change in made.samples.get(Action.NEW, ()):
        if change.same_as:
            return f"; {change.key}: same request as {change.same_as}"
    return ""


def _reexport_reasons(made: Plan) -> Sequence[str]:
    moving = set(made.counts) - {Action.UNCHANGED, Action.FAILED}
    return () if moving else made.reexport


def _summary(made: Plan) -> str:
    if not made.has_changes:
        return "No changes. Everything the spec asks for is there."
    order = (Action.NEW, Action.RERUN, Action.RETRY, Action.REUSED, Action.REMOVED, Action.IN_FLIGHT)
    parts = [f"{made.counts[a]:,} {_WORDS.get(a, str(a))}" for a in order if made.counts.get(a)]
    if not parts:
        parts = ["re-export only"]
    jobs = f"; {len(made.shards):,} job{'s' if len(made.shards) != 1 else ''}" if made.shards else ""
    return f"Plan: {', '.join(parts)}{jobs}."


def result(spec: Spec, got: Result) -> list[str]:
    """How an apply ended: both ledgers, where the records are, and what to do next."""
    lines = []
    if got.sent:
        lines.append(f"Requests {sum(got.sent.values()):,} = {_classes(got.sent)}")
    if got.usage:
        lines.append(f"Tokens {_classes(got.usage)}")
    if got.complete:
        lines.append(f"Rows {sum(got.rows.values()):,} = {_classes(got.rows) or '0'}")
        lines += [f"Wrote {path} ({size(byte_count)})" for path, (_, byte_count) in got.files.items()]
    lines += [f"Error: {error}" for error in got.errors]
    lines += [f"Needs a person: no job was found twice for {token}" for token in got.quarantined]
    if got.unsent:
        lines.append(f"{got.unsent:,} request(s) are planned and not submitted.")
    if got.in_flight:
        rest = "they go on without this run"
        if spec.backend.mode == "direct":
            rest = "what has an answer is kept, the others are asked by the next apply"
        lines.append(f"{got.in_flight:,} request(s) are in flight; {rest}.")
    if not got.complete and not got.errors:
        lines.append(f"Go on with: gbrun apply {spec.invocation}")
    return lines


def status(spec: Spec, state: State | None, attempts: Sequence[Attempt], *, state_label: str) -> list[str]:
    """The state and what is in flight."""
    if state is None:
        return [f"{spec.name}  state {state_label}: nothing has been applied yet."]
    lines = [f"{spec.name}  state {state_label} serial {state.serial}"]
    live = [a for a in attempts if a.state.live]
    lines += [
        f"  {a.token}  {a.state}  {a.job_state or ''}  {a.request_count:,} requests  {a.job_name}".rstrip()
        for a in live
    ]
    if live:
        lines.append(f"{len(live):,} job(s) in flight, {sum(a.request_count for a in live):,} requests.")
    else:
        lines.append("Nothing in flight.")
    return lines


def size(byte_count: int) -> str:
    """Bytes for people."""
    value = float(byte_count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def _classes(counts: Mapping[str, int]) -> str:
    return " + ".join(f"{count:,} {name}" for name, count in sorted(counts.items(), key=_by_count))


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]
