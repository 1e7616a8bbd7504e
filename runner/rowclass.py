"""What becomes of a row, and why: the table of the design. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from runner.model import Action, Outcome, Stored, Wanted
from runner.render import COMPONENTS
from runner.specmodel import Failures


class Verdict(msgspec.Struct, frozen=True):
    """What becomes of a row: the action, its reasons, and the requests to send for it."""

    action: Action
    reasons: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    live: tuple[str, ...] = ()
    outcome: str = ""
    """The row's class where it is settled."""


def judge_row(
    wanted: Sequence[Wanted],
    stored: Mapping[str, Stored | None],
    live: Mapping[str, str | None],
    *,
    known: bool,
    same_requests: bool,
    why: Callable[[], tuple[str, ...]],
    failures: Failures,
    needed: int | None = None,
    remedied: Mapping[str, Stored] = {},
    replaced: bool = False,
    retry: str = "transient",
) -> Verdict:
    """The first class that fits, over all requests the row wants (the table of the design).

    `wanted`, `stored` and `live` are about the requests to which the row's addresses lead, `remedied`
    has the failures that some of them remedy. `needed` is how many must be ok, None for all. `why`
    gives the reasons of a rerun, asked only where they are needed.
    """
    ids = [w.request_id for w in wanted]
    spare = 0 if needed is None else len(ids) - needed
    tokens = tuple(dict.fromkeys(t for i in ids if (t := live[i]) is not None))
    if tokens:
        return Verdict(Action.IN_FLIGHT, live=tokens)
    if replaced:
        return Verdict(Action.RERUN if known else Action.NEW, ("replace",) if known else (), tuple(ids))
    found = {i: stored[i] for i in ids}

    def is_settled(one: Stored) -> bool:
        if retry == "all":
            return one.outcome is Outcome.OK or one.accepted
        again = one.retryable(failures.retry) and one.jobs < failures.max_attempts
        return retry == "none" or not again

    settled = {i: s for i, s in found.items() if s is not None and is_settled(s)}
    broken = [s for i in ids if (s := settled.get(i)) is not None and s.outcome is not Outcome.OK]
    if len(broken) > spare:
        first = min(broken, key=lambda s: list(Outcome).index(s.outcome))
        return Verdict(Action.FAILED, (first.code or first.outcome,), outcome=first.outcome)
    if len(settled) == len(found):
        return Verdict(Action.UNCHANGED if same_requests else Action.REUSED, outcome=Outcome.OK)
    pending = tuple(i for i in dict.fromkeys(ids) if i not in settled)
    because = [found[i] or remedied.get(i) for i in pending]
    codes = tuple(dict.fromkeys(s.code or s.outcome for s in because if s is not None))
    if codes:
        return Verdict(Action.RETRY, codes, pending)
    return Verdict(Action.RERUN, why(), pending) if known else Verdict(Action.NEW, (), pending)


def rerun_reasons(before: Mapping[str, str], now: Mapping[str, str], *, same_input: bool) -> tuple[str, ...]:
    """The components that differ, by name, in a fixed order; `input` last, and where nothing else is left."""
    names = [name for name in COMPONENTS if before.get(name) != now.get(name)]
    if not same_input or not names:
        names.append("input")
    return tuple(names)
