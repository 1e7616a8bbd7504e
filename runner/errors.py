"""Everything gbrun refuses or fails with, and the one table of exit codes.

    GbrunError                     1
      SpecInvalid                 64   every problem of one run, as diagnostics
      UsageInvalid                64
      InputUnreadable              1
      StateError                   1
        StateUnreadable            1
        StateForeign              64
        StateLocked                5
        StateChanged               6
      PlanStale                    6
      GuardRefused                 7
      BackendError                 1
        SubmissionRefused          1   nothing was created
        SubmissionDeferred         1   429: try the same attempt again later
        SubmissionUnknown          8   a job may or may not exist

The core raises these; `cli` alone turns them into text and exit codes.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Exit(enum.IntEnum):
    """The process exit codes, as documented in the README."""

    CONVERGED = 0
    ERROR = 1
    CHANGES = 2
    IN_PROGRESS = 3
    FAILURES = 4
    LOCKED = 5
    STALE = 6
    REFUSED = 7
    AMBIGUOUS = 8
    USAGE = 64
    BUG = 70
    INTERRUPTED = 130
    TERMINATED = 143


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostic:
    """One problem in a file that the user wrote.

    `line` and `column` are 1-based, `length` counts characters to underline;
    all three are 0 where the problem has no place in the file.
    """

    code: str
    message: str
    path: str
    line: int = 0
    column: int = 0
    length: int = 0
    where: str = ""
    """What encloses the place, such as `generation_config`; may be empty."""
    snippet: str = ""
    """The source line, without its newline."""
    hint: str = ""
    """One next step, or a suggestion; may be empty."""
    severity: str = "error"
    """`error` or `warning`."""


class GbrunError(Exception):
    """A failure with a message for the user: what, where, value; `hint` is one next step."""

    exit_code = Exit.ERROR

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SpecInvalid(GbrunError):
    """The spec, or a file it names, has problems; all of them are in `diagnostics`."""

    exit_code = Exit.USAGE

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        super().__init__(f"{len(diagnostics)} problem(s) in the spec")
        self.diagnostics = tuple(diagnostics)


class UsageInvalid(GbrunError):
    """The command line asks for something that cannot be meant."""

    exit_code = Exit.USAGE


class InputUnreadable(GbrunError):
    """An input cannot be read or turned into a request."""


class StateError(GbrunError):
    """Something about the stored state."""


class StateUnreadable(StateError):
    """The state, or a part of it, is truncated, edited or of an unknown version."""


class StateForeign(StateError):
    """The state belongs to another spec, environment or principal."""

    exit_code = Exit.USAGE


class StateLocked(StateError):
    """Another run holds the lock."""

    exit_code = Exit.LOCKED


class StateChanged(StateError):
    """Someone else replaced what this run was about to replace."""

    exit_code = Exit.STALE


class PlanStale(GbrunError):
    """The plan no longer matches the state it was made from."""

    exit_code = Exit.STALE


class GuardRefused(GbrunError):
    """A guard, a missing approval or a safety rule stopped the run."""

    exit_code = Exit.REFUSED


class BackendError(GbrunError):
    """The service answered with an error, or could not be reached.

    `status` is the service's own word (`RESOURCE_EXHAUSTED`), `http_status` its number;
    `transient` says whether the same call may succeed later.
    """

    def __init__(
        self, message: str, *, hint: str = "", status: str = "", http_status: int = 0, transient: bool = False
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.http_status = http_status
        self.transient = transient


class SubmissionRefused(BackendError):
    """A create call that certainly made no job."""


class SubmissionDeferred(BackendError):
    """A create call answered by 429: no job was made, the same attempt may be posted later."""


class SubmissionUnknown(BackendError):
    """A create call whose result is unknown: a job may or may not exist."""

    exit_code = Exit.AMBIGUOUS
