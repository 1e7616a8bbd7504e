"""What the steps of one apply share: who they work with, and what they remember.

None of what is remembered has to survive the process: the state has all that matters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runner.backends import Backend
from runner.clock import Clock
from runner.decide import Policy
from runner.index import Index
from runner.ledger import Ledger
from runner.model import Json, PlannedShard
from runner.recordspool import RecordSpool
from runner.remedies import Remedy
from runner.results import Judge
from runner.specmodel import Spec
from runner.store import Store


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, for whoever watches."""

    kind: str
    """`submitted`, `adopted`, `job`, `collected`, `refused`, `deferred`, `ambiguous`, `outage`, ..."""
    token: str
    text: str
    data: Mapping[str, Json] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Run:
    """One apply, as its steps see it."""

    spec: Spec
    store: Store
    index: Index
    ledger: Ledger
    backend: Backend
    clock: Clock
    policy: Policy
    judge: Judge
    on_event: Callable[[Event], None]
    scratch: Path
    """A folder for files of this run."""
    mine: set[str] = field(default_factory=set)
    """Tokens of attempts that this run created."""
    uploads: dict[str, str] = field(default_factory=dict)
    """Token -> name of its upload."""
    wanted: set[str] = field(default_factory=set)
    """Tokens whose requests some row wants."""
    shards: dict[str, PlannedShard] = field(default_factory=dict)
    """Shards of this run by id, in the order of the plan, retries last."""
    todo: list[str] = field(default_factory=list)
    """Ids of shards that have no attempt yet."""
    wants: Callable[[str], bool] = lambda request_id: False
    """Whether some row of the plan waits for a request; none does where there is no plan."""
    again: dict[str, Remedy | None] = field(default_factory=dict)
    """Requests that failed and are to be sent again: as they were, or with a remedy."""
    remedies: set[str] = field(default_factory=set)
    """Remedied requests of this run."""
    looked_at: dict[str, float] = field(default_factory=dict)
    """When each token was last polled or searched for."""
    quarantined: set[str] = field(default_factory=set)
    """Tokens of submissions that need a person."""
    stalled: set[str] = field(default_factory=set)
    """Tokens already pointed out as pending for too long."""
    errors: list[str] = field(default_factory=list)
    """What the service refused, in its own words."""
    surveyed: bool = False
    """Whether all jobs of the account were looked at."""
    sent: Counter[str] = field(default_factory=Counter)
    """Requests collected, per outcome."""
    usage: Counter[str] = field(default_factory=Counter)
    """Tokens of what was collected."""
    records: RecordSpool | None = None
    """Records of what was collected; None where nothing will be exported."""

    def event(self, kind: str, token: str, text: str, data: Mapping[str, Json] | None = None) -> None:
        """Tell whoever watches."""
        self.on_event(Event(kind, token, text, data or {}))
