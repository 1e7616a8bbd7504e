"""A few rows asked at once, each shown with what came of it. Pure but for the calls it is given."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from runner import modelfacts, records
from runner.model import Answer, Json, Outcome, Request
from runner.results import Judge, Stray, dump_line
from runner.specmodel import Spec
from runner.story import quoted, sent_lines

LEAST_COSINE = 0.99
"""Below this, a vector embedded again is another vector."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One request, asked synchronously."""

    request: Request
    line: bytes
    """The response line, as in a batch's output."""
    answer: Answer | Stray
    cosine: float | None = None
    """Between this vector and the one that the batch brought, None where it brought none."""

    @property
    def good(self) -> bool:
        """Whether the answer is ok, and the batch's vector where there is one."""
        ok = isinstance(self.answer, Answer) and self.answer.outcome is Outcome.OK
        return ok and (self.cosine is None or self.cosine >= LEAST_COSINE)


def ask(
    spec: Spec, request: Request, sent: bytes, call: Callable[[bytes], bytes], former: list[float] | None
) -> Trial:
    """Ask one request. `sent` is its line with secrets put in, `former` the vector a batch brought."""
    line = call(sent).rstrip(b"\n")
    answer = Judge.of(spec).line(line)
    cosine = None
    if former is not None and isinstance(answer, Answer) and answer.outcome is Outcome.OK:
        same = len(former) == len(answer.value)
        cosine = records.cosine(former, answer.value) if same else 0.0
    return Trial(request, line, answer, cosine)


def shown(spec: Spec, key: str, trial: Trial) -> list[str]:
    """A trial as lines for a terminal: request, answer, validation, tokens, cost."""
    lines = [f"{key}  {trial.request.request_id}", *sent_lines(trial.request.line)]
    answer = trial.answer
    if isinstance(answer, Stray):
        return [*lines, f"  no answer: the line that came back is {answer.what}"]
    if answer.outcome is Outcome.OK:
        lines += ["  record:", *quoted(_record(spec, answer))]
    else:
        lines.append(f"  {answer.outcome} {answer.code}: {answer.message}")
        raw = answer.raw if isinstance(answer.raw, str) else dump_line(answer.raw).decode().rstrip()
        if answer.raw:
            lines += ["  answer:", *quoted(raw)]
    if trial.cosine is not None:
        verdict = "the same" if trial.cosine >= LEAST_COSINE else f"below {LEAST_COSINE}"
        lines.append(f"  cosine to the batch's vector: {trial.cosine:.4f} ({verdict})")
    if answer.usage:
        lines.append(f"  tokens: {tokens(answer.usage)}; {cost(spec, answer.usage)}")
    return lines


def summary(spec: Spec, trials: list[Trial]) -> list[str]:
    """The last lines: outcomes, tokens and cost over all trials."""
    classes: dict[str, int] = {}
    usage: dict[str, int] = {}
    for trial in trials:
        found = trial.answer
        name = found.outcome if isinstance(found, Answer) else "unreadable"
        classes[name] = classes.get(name, 0) + 1
        for kind, count in found.usage.items() if isinstance(found, Answer) else ():
            usage[kind] = usage.get(kind, 0) + count
    lines = [
        f"Requests {len(trials):,} = " + ", ".join(f"{count:,} {name}" for name, count in classes.items())
    ]
    if usage:
        lines.append(f"Tokens {tokens(usage)}; {cost(spec, usage)}")
    return lines


def tokens(usage: Mapping[str, int]) -> str:
    """Counts of tokens in words."""
    return " + ".join(f"{count:,} {kind}" for kind, count in usage.items())


def cost(spec: Spec, usage: Mapping[str, int]) -> str:
    """What tokens cost: these calls, and the same in a batch."""
    if not spec.backend.paid:
        return "free"
    now, batch = (modelfacts.cost_usd(spec.model, usage, batch=batch) for batch in (False, True))
    if now is None or batch is None:
        return f"the price of {spec.model} is not known"
    as_of = modelfacts.table()["as_of"]
    return f"about ${now:.6f}, in a batch ${batch:.6f} (list prices of text as of {as_of})"


def _record(spec: Spec, answer: Answer) -> str:
    body = records.body(answer, spec)
    vector = body.get("embedding")
    if isinstance(vector, list) and len(vector) > 8:
        shown = ", ".join(f"{value:.4f}" for value in vector[:6])
        return f"embedding of {len(vector):,} dimensions: [{shown}, ...]"
    return json.dumps(body, indent=2, ensure_ascii=_has_half_a_pair(body))


def _has_half_a_pair(body: Json) -> bool:
    """Whether a text in it is none that a terminal could be sent."""
    return b"\\ud" in dump_line(body)
