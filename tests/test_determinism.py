"""The same spec and inputs give the same bytes, whatever machine, place, order or environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

TEXTS = {
    "inputs/ä/über.txt": "Grüße\n",
    "inputs/a b/#1.txt": "Straße, \u2028 next\r\nline",
    "inputs/a-b/z.txt": "",
    "inputs/a/z.txt": "日本語 🙂\n",
    "inputs/a.txt": "plain\n",
    "inputs/Z.txt": "upper\n",
    "inputs/b/twin.txt": "plain\n",
}
ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "here": {},
    "elsewhere": {"parent": "some where/else/deeper"},
    "C locale": {"env": {"LC_ALL": "C", "LANG": "C"}},
    "another hash seed": {"env": {"PYTHONHASHSEED": "4242"}},
    "another zone": {"env": {"TZ": "Pacific/Kiritimati"}},
    "created in another order": {"backwards": True},
    "all at once": {
        "parent": "x",
        "backwards": True,
        "env": {"LC_ALL": "C", "PYTHONHASHSEED": "1", "TZ": "America/St_Johns"},
    },
}


def left_by(project: Any) -> dict[str, Any]:
    """All that must not depend on where and when: shards by name, plan, records, outcomes, specs."""
    return {
        "shards": project.shards(),
        "records": (project.folder / "out/notes.jsonl").read_bytes(),
        # One segment per job, in the order in which the jobs happened to end.
        "requests": sorted([line["id"] for line in lines] for _, lines in project.outcomes()),
        "tokens": [attempt["token"].split("-", 2)[2] for attempt in project.attempts()],
        "spec": {path.name: path.read_bytes() for path in project.state.glob("specs/*.json")},
        "spec_digest": project.root()["spec_digest"],
    }


def made(project: Any, *, backwards: bool = False, env: Mapping[str, str] = {}) -> dict[str, Any]:
    items = list(TEXTS.items())
    for name, text in reversed(items) if backwards else items:
        project.write(name, text)
    # The emulator answers for itself; what is compared is what gbrun sends and writes.
    project.spec(
        shards={"max_requests": 2},
        variables={"tone": "dry"},
        prompt="{{ input.path }} {{ input.name | upper }} ({{ var.tone }})\n{{ input.text }}\n",
        generation_config={"temperature": 0, "stop_sequences": ["b", "a"], "max_output_tokens": 300},
    )
    base = {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", "TZ": "UTC"}
    project.apply(env={**base, **env})
    return left_by(project)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, make_gbrun: Any, make_project: Any) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("first")
    return made(make_project(folder / "project", make_gbrun(folder / "home")))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_same_bytes_everywhere(
    name: str, new_project: Callable[..., Any], expected: dict[str, Any]
) -> None:
    case = ENVIRONMENTS[name]
    project = new_project(f"{case.get('parent', '.')}/project")
    found = made(project, backwards=case.get("backwards", False), env=case.get("env", {}))
    for part, value in expected.items():
        assert found[part] == value, part


def test_what_is_compared_is_there(expected: dict[str, Any]) -> None:
    assert len(expected["shards"]) == 4
    assert expected["records"].count(b"\n") == len(TEXTS)
    lines = b"".join(expected["shards"].values())
    # Keys by code point, each request a line, nothing escaped, line ends as they are.
    assert lines.count(b"\n") == 7
    assert "Straße, \u2028 next\\r\\nline".encode() in lines
    assert b"project" not in lines
    assert expected["records"].index(b"inputs/Z.txt") < expected["records"].index(b"inputs/a b/#1.txt")


def test_another_text_gives_other_bytes(new_project: Callable[..., Any], expected: dict[str, Any]) -> None:
    """The comparison has teeth: one changed letter shows."""
    project = new_project()
    project.write("inputs/a.txt", "plaim\n")
    project.spec()
    project.apply()
    assert not set(project.shards()) & set(expected["shards"])
