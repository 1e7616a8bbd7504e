"""Who a state's jobs belong to: endpoint and key, and whether another one may go on. Pure.

A principal is `local`, `gemini:<host>:<fingerprint of the key>` or `vertex:<host>:<project>/<location>`, with
`direct-` before it where jobs are synchronous calls of this machine.
"""

from __future__ import annotations

import ipaddress

from runner.errors import StateForeign


def check(recorded: str, now: str, *, live: bool) -> str:
    """A warning where the principal changed harmlessly, else nothing.

    `live` says whether submissions are in flight, which only their own endpoint can show.

    Raises:
        StateForeign: another endpoint while submissions are in flight, or a loopback service and a
            real one in one state: an emulator's answers must never stand in for a model's.
    """
    if not recorded or recorded == now:
        return ""
    if is_loopback(recorded) != is_loopback(now):
        raise StateForeign(
            f"this state belongs to {_endpoint(recorded)}, and the spec's backend is {_endpoint(now)}:"
            " answers of an emulator are kept apart from a model's",
            hint="use another state folder (leave `state` out to have one for each)",
        )
    if _endpoint(recorded) != _endpoint(now):
        if live:
            raise StateForeign(
                f"jobs are in flight at {_endpoint(recorded)}, and the spec's backend is {_endpoint(now)}",
                hint="collect them with the former backend first (gbrun wait), then switch",
            )
        return f"the backend was {_endpoint(recorded)} and is {_endpoint(now)}; stored results are reused"
    return "another API key than last time; jobs that another project's key made cannot be seen with it"


def is_loopback(principal: str) -> bool:
    """Whether a principal is a service on this machine."""
    principal = principal.removeprefix("direct-")
    host = principal.split(":", 1)[-1].rsplit(":", 1)[0].strip("[]")
    if principal == "local" or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _endpoint(principal: str) -> str:
    # Whoever may use a project sees its jobs, with whatever credentials.
    whole = principal == "local" or principal.removeprefix("direct-").startswith("vertex:")
    return principal if whole else principal.rsplit(":", 1)[0]
