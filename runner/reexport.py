"""Whether the destinations have to be written again though no row changes, and why. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from runner.model import Basis


def causes(
    basis: Basis,
    judge_digest: str,
    destinations: Mapping[str, tuple[str, int] | None],
    *,
    moved: bool,
    failed_anew: bool,
) -> tuple[str, ...]:
    """The reasons in words, none where what was written still stands.

    `destinations` says what lies at each destination now (digest and size, None for nothing); `moved` that
    rows stand at other places, `failed_anew` that rows failed for good that had not, or otherwise.
    """
    export = basis.export
    if export is None:
        return ("never written",)
    out = []
    if export.rows != basis.rows or export.outcome_count != basis.outcome_count:
        out.append("newer outcomes")
    if export.judge != judge_digest:
        out.append("output settings changed")
    for path, found in destinations.items():
        written = export.files.get(path)
        if written is not None and written != found:
            out.append(f"{path} is missing" if found is None else f"{path} was altered")
    gone = sorted(export.files.keys() - destinations.keys())
    out += (f"{path} is no longer a destination, and stays as it is" for path in gone)
    if failed_anew:
        out.append("rows failed that had not")
    if moved and not out:
        out.append("the order of the rows changed")
    return tuple(out)
