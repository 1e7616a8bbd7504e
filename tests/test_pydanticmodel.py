"""Schemas from pydantic models: only with leave, never a traceback, nothing left behind."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner import lints, pydanticmodel, response_schema, spec, validator
from runner.errors import SpecInvalid
from runner.pydanticmodel import Unusable
from runner.render import Renderer
from runner.results import Judge
from runner.specmodel import Spec

SPEC = """\
version: 1
name: invoices
backend: local
inputs: data/*.txt
model: gemini-3.5-flash-lite
prompt: "{{ input.text }}"
output_schema: {pydantic: NAME}
destination: out/invoices.jsonl
"""
MODELS = """\
from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from typing import Annotated, Literal, Optional, Union

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Team(str, enum.Enum):
    billing = "billing"
    other = "other"


class Line(BaseModel):
    "As printed."

    text: str = Field(min_length=1, max_length=20, description="The words")
    count: int = Field(ge=1, le=99)
    price: Optional[float] = None


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class Invoice(BaseModel):
    model_config = ConfigDict(extra="forbid")

    vendor: str
    dated: datetime.date
    at: datetime.datetime
    team: Team
    second_team: Team | None = None
    first: Line | None = None
    lines: list[Line] = Field(min_length=1)
    more: list[Line] | None = None
    pet: Annotated[Union[Cat, Dog], Field(discriminator="kind")]
    other_pet: Union[Cat, Dog, None] = None
    amount: int | str
    pair: tuple[int, str]
    code: Annotated[str, Field(pattern="^[A-Z]{2}$")]
    number: uuid.UUID
    total: decimal.Decimal

    @field_validator("vendor")
    @classmethod
    def no_vendor_is_good_enough(cls, value: str) -> str:
        raise ValueError("never")


class Outer:
    class Inner(BaseModel):
        a: int


class Odd(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    a: Outer


class Stopping(BaseModel):
    a: int

    @classmethod
    def model_json_schema(cls, **given):
        raise SystemExit(3)


class Listing(BaseModel):
    @classmethod
    def model_json_schema(cls, **given):
        return [1]


class Key(BaseModel):
    key: int = Field(alias="_key")


class Huge(BaseModel):
    n: int = Field(le=2**70)


class BadPattern(BaseModel):
    a: str = Field(json_schema_extra={"pattern": "("})


not_a_class = 5
print("imported")
"""
S = {"type": "STRING"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models.py").write_text(MODELS, encoding="utf-8")
    return tmp_path


@pytest.fixture
def load(folder: Path) -> Callable[..., Spec]:
    def run(name: str = "models:Invoice", *, allow_python: bool = True) -> Spec:
        (folder / "spec.yaml").write_text(SPEC.replace("NAME", name), encoding="utf-8")
        return spec.load(folder / "spec.yaml", environ={}, allow_python=allow_python)

    return run


def problem(load: Callable[..., Spec], name: str, **given: Any) -> tuple[str, str, str]:
    with pytest.raises(SpecInvalid) as caught:
        load(name, **given)
    [found] = caught.value.diagnostics
    assert (found.line, found.where) == (7, "output_schema")
    assert name in found.snippet
    return found.code, found.message, found.hint


# ---------------------------------------------------------------- the schema


def test_the_schema_is_the_models(load: Callable[..., Spec], capsys: pytest.CaptureFixture[str]) -> None:
    schema = load().output_schema
    assert schema is not None
    assert schema["title"] == "Invoice"
    assert list(schema["properties"])[:3] == ["vendor", "dated", "at"]
    assert spec.resolved(load())["output_schema"] == schema
    # What a module prints must not stand among the records.
    assert capsys.readouterr().out == ""


def test_a_model_and_its_schema_written_down_are_one(load: Callable[..., Spec], folder: Path) -> None:
    by_model = load()
    assert by_model.output_schema is not None
    written = SPEC.replace("{pydantic: NAME}", "invoice.json")
    (folder / "written.yaml").write_text(written, encoding="utf-8")
    (folder / "invoice.json").write_text(json.dumps(by_model.output_schema), encoding="utf-8")
    by_file = spec.load(folder / "written.yaml", environ={})
    assert spec.digest(by_file) == spec.digest(by_model)
    assert Renderer(by_file).components == Renderer(by_model).components


def test_it_is_lowered_for_the_service(load: Callable[..., Spec]) -> None:
    schema = load().output_schema
    assert schema is not None
    sent, notes = response_schema.lower(schema)
    text = repr(sent)
    assert "$ref" not in text
    assert "'null'" not in text
    assert "oneOf" not in text
    assert sent["propertyOrdering"] == list(schema["properties"])
    assert sent["required"] == schema["required"]
    found = sent["properties"]
    line = {
        "type": "OBJECT",
        "title": "Line",
        "description": "As printed.",
        "properties": {
            "text": {**S, "title": "Text", "description": "The words", "minLength": 1, "maxLength": 20},
            "count": {"type": "INTEGER", "title": "Count", "minimum": 1, "maximum": 99},
            "price": {"type": "NUMBER", "title": "Price", "nullable": True},
        },
        "propertyOrdering": ["text", "count", "price"],
        "required": ["text", "count"],
    }
    kind = {**S, "title": "Kind"}
    cat = {
        "type": "OBJECT", "title": "Cat", "properties": {"kind": {**kind, "enum": ["cat"]}},
        "propertyOrdering": ["kind"], "required": ["kind"],
    }  # fmt: skip
    dog = {
        "type": "OBJECT", "title": "Dog",
        "properties": {"kind": {**kind, "enum": ["dog"]}, "name": {**S, "title": "Name"}},
        "propertyOrdering": ["kind", "name"], "required": ["kind", "name"],
    }  # fmt: skip
    team = {**S, "title": "Team", "enum": ["billing", "other"]}
    assert found["team"] == team
    assert found["second_team"] == {**team, "nullable": True}
    assert found["first"] == {**line, "nullable": True}
    assert found["lines"] == {"type": "ARRAY", "title": "Lines", "minItems": 1, "items": line}
    assert found["more"] == {"type": "ARRAY", "title": "More", "nullable": True, "items": line}
    assert found["pet"] == {"anyOf": [cat, dog]}
    assert found["other_pet"] == {"anyOf": [{**cat, "nullable": True}, {**dog, "nullable": True}]}
    amount = {"title": "Amount"}
    assert found["amount"] == {"anyOf": [{**amount, "type": "INTEGER"}, {**amount, **S}]}
    assert found["pair"]["items"] == {"anyOf": [{"type": "INTEGER"}, S]}
    assert found["at"] == {**S, "title": "At", "format": "date-time"}
    assert (found["dated"], found["number"]) == ({**S, "title": "Dated"}, {**S, "title": "Number"})
    assert found["code"]["pattern"] == "^[A-Z]{2}$"
    assert {note.partition(": ")[2].split()[0] for note in notes} == {
        "`additionalProperties`", "format", "`oneOf`", "`prefixItems`"
    }  # fmt: skip


def test_answers_are_judged_by_the_schema_alone(load: Callable[..., Spec]) -> None:
    """A validator written in Python does not run: every row of a shard could be judged anywhere."""
    errors = validator.compiled(load().output_schema or {}).iter_errors
    good = {
        "vendor": "x", "dated": "2026-11-21", "at": "2026-11-21T10:00:00Z", "team": "other",
        "lines": [{"text": "a", "count": 1}], "pet": {"kind": "cat"}, "amount": "1", "pair": [1, "a"],
        "code": "DE", "number": "6a2f41a3-c54c-fce8-32d2-0324e1c32e22", "total": "1.5",
    }  # fmt: skip
    assert list(errors(good)) == []
    for change in ({"dated": "yesterday"}, {"team": "sales"}, {"more": [{}]}, {"extra": 1}, {"code": "de"}):
        assert list(errors({**good, **change}))
    assert Judge(load().output_schema)


def test_warnings_name_the_place_in_the_models_schema(load: Callable[..., Spec]) -> None:
    found = [warning for warning in lints.lint(load()) if warning.code == "GB910"]
    assert {warning.line for warning in found} == {7}
    assert any("/properties/dated of the model" in warning.message for warning in found)


def test_a_model_inside_of_a_package(load: Callable[..., Spec], folder: Path) -> None:
    package = folder / "shapes" / "v1"
    package.mkdir(parents=True)
    (folder / "shapes" / "__init__.py").write_text("")
    (package / "parts.py").write_text("import pydantic\nclass P(pydantic.BaseModel):\n    n: int\n")
    (package / "model.py").write_text("from shapes.v1.parts import P\nclass M(P):\n    m: int\n")
    schema = load("'shapes.v1.model:M'").output_schema
    assert schema is not None
    assert list(schema["properties"]) == ["n", "m"]
    inner = load("'models:Outer.Inner'").output_schema
    assert inner is not None
    assert inner["title"] == "Inner"


# ---------------------------------------------------------------- what is left behind


def test_nothing_is_left_behind(
    load: Callable[..., Spec], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    before = (list(sys.path), set(sys.modules), sys.dont_write_bytecode)
    load()
    load()
    after = (list(sys.path), set(sys.modules), sys.dont_write_bytecode)
    assert (after[0], after[2]) == (before[0], before[2])
    assert not {name for name in after[1] - before[1] if name.partition(".")[0] == "models"}
    assert sorted(os.listdir(folder)) == ["models.py", "spec.yaml"]


def test_the_folders_own_module_counts(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Not what another spec, or gbrun, has loaded under that name."""
    other = tmp_path_factory.mktemp("other")
    (other / "models.py").write_text("import pydantic\nclass Invoice(pydantic.BaseModel):\n    z: int\n")
    (other / "json.py").write_text("import pydantic\nclass J(pydantic.BaseModel):\n    j: int\n")
    module = sys.modules["json"]
    assert list(pydanticmodel.schema("models:Invoice", str(other))["properties"]) == ["z"]
    assert "vendor" in pydanticmodel.schema("models:Invoice", str(folder))["properties"]
    assert list(pydanticmodel.schema("models:Invoice", str(other))["properties"]) == ["z"]
    assert sys.modules["json"] is module


# ---------------------------------------------------------------- what goes wrong


def test_without_leave_no_code_runs(load: Callable[..., Spec], folder: Path) -> None:
    (folder / "models.py").write_text("open('ran', 'w')\nraise SystemExit")
    code, message, hint = problem(load, "models:Invoice", allow_python=False)
    assert (code, hint) == ("GB315", "give --allow-python if you trust the code")
    assert '"models:Invoice" is Python code' in message
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("modles:Invoice", "modles cannot be imported: ModuleNotFoundError", "modles is neither in the"),
        ("models:Invoce", "models has no Invoce", 'did you mean "Invoice"?'),
        ("models:not_a_class", "models:not_a_class is not a pydantic model", "name a class"),
        ("models:Outer", "models:Outer is not a pydantic model", "name a class"),
        ("models:Odd", "models:Odd has no JSON Schema: PydanticInvalidForJsonSchema", ""),
        ("models:Stopping", "models:Stopping has no JSON Schema: SystemExit: 3", ""),
        ("models:Listing", "models:Listing has no JSON Schema: model_json_schema() gave something else", ""),
        ("models:Huge", "schema of models:Huge has 1180591620717411303424, which does not fit 64 bits", ""),
        ("models.Invoice", 'a model is named like "package.module:Model"', ""),
        ("models:", 'a model is named like "package.module:Model"', ""),
        ("../models:Invoice", 'a model is named like "package.module:Model"', ""),
    ],
)
def test_what_cannot_be_used(load: Callable[..., Spec], name: str, message: str, hint: str) -> None:
    code, told, advice = problem(load, f"'{name}'")
    assert code == "GB316"
    assert message in told
    assert advice.startswith(hint)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import nothing_like_it", "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("1 +", "SyntaxError: invalid syntax, line 1"),
        ("raise RuntimeError('one\\ntwo')", "RuntimeError: one two"),
        ("raise SystemExit('bye')", "SystemExit: bye"),
        ("import sys; sys.exit()", "SystemExit"),
        ("assert False", "AssertionError"),
        ("\x00", "SyntaxError"),
    ],
)
def test_a_module_that_cannot_be_imported(
    load: Callable[..., Spec], folder: Path, text: str, told: str
) -> None:
    (folder / "models.py").write_text(text)
    before = list(sys.path)
    code, message, _ = problem(load, "models:Invoice")
    assert code == "GB316"
    assert message.startswith(f"models cannot be imported: {told}")
    assert sys.path == before


def test_an_interrupt_goes_through(folder: Path) -> None:
    (folder / "models.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        pydanticmodel.schema("models:Invoice", str(folder))


def test_the_models_schema_is_checked_like_any(load: Callable[..., Spec]) -> None:
    assert problem(load, "models:Key")[0] == "GB314"
    code, message, _ = problem(load, "models:BadPattern")
    assert code == "GB312"
    assert "at /properties/a/pattern of the schema of models:BadPattern" in message


def test_an_unusable_model_says_what_to_do() -> None:
    with pytest.raises(Unusable) as caught:
        pydanticmodel.schema("x y", "/")
    assert caught.value.hint == ""


# ---------------------------------------------------------------- the commands


def test_the_commands_take_the_flag(folder: Path, cli: Callable[..., Any]) -> None:
    (folder / "spec.yaml").write_text(SPEC.replace("NAME", "'models:Invoice'"), encoding="utf-8")
    (folder / "data").mkdir()
    (folder / "data" / "a.txt").write_text("an invoice")
    assert "[GB315]" in cli("validate", "spec.yaml", cwd=folder, code=64).stderr
    assert "valid" in cli("validate", "spec.yaml", "--allow-python", cwd=folder).stdout
    assert "GB315" in cli("plan", "spec.yaml", cwd=folder, code=64).stderr
    told = cli("plan", "spec.yaml", "--allow-python", cwd=folder).stdout
    assert "1 new" in told
    rendered = cli("render", "spec.yaml", "--allow-python", cwd=folder).stdout
    assert "propertyOrdering" in rendered
    assert "$ref" not in rendered
