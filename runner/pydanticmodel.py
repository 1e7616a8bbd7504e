"""The JSON Schema of a pydantic model that a user's module defines. Runs the user's code."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from runner.model import Json
from runner.shape import suggest

_NAME = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*"


class Unusable(Exception):
    """Why there is no schema."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def schema(name: str, folder: str) -> dict[str, Json]:
    """What `model_json_schema()` says of the model `package.module:Model`, for values to be validated.

    The module is looked for in `folder` first, then where Python finds any. What the import changed in this
    process is put back: the path, the modules of the folder, where output goes.

    Raises:
        Unusable: the name has another form, the module cannot be imported, or it has no such model.
    """
    if not re.fullmatch(_NAME, name):
        raise Unusable(f'a model is named like "package.module:Model"; this is "{name}"')
    module_name, _, path = name.partition(":")
    with _importing(folder, module_name.partition(".")[0]):
        try:
            found: Any = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            raise Unusable(f"{module_name} cannot be imported: {_told(error)}", _hint(error)) from None
        for step in path.split("."):
            if not hasattr(found, step):
                models = [key for key, value in vars(found).items() if _is_model(value)]
                raise Unusable(f"{module_name} has no {path}", suggest(step, models))
            found = getattr(found, step)
        if not _is_model(found):
            raise Unusable(f"{name} is not a pydantic model", "name a class that derives from BaseModel")
        try:
            made = json.loads(json.dumps(found.model_json_schema(mode="validation"), allow_nan=False))
        except (Exception, SystemExit) as error:
            raise Unusable(f"{name} has no JSON Schema: {_told(error)}") from None
    if not isinstance(made, dict):
        raise Unusable(f"{name} has no JSON Schema: model_json_schema() gave something else")
    for number in _whole_numbers(made):
        if not -(1 << 63) <= number < 1 << 64:
            raise Unusable(f"the schema of {name} has {number}, which does not fit 64 bits")
    return made


def _whole_numbers(value: Json) -> Iterator[int]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _whole_numbers(inner)
    elif isinstance(value, int):
        yield value


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and callable(getattr(value, "model_json_schema", None))


@contextlib.contextmanager
def _importing(folder: str, top: str) -> Iterator[None]:
    path, modules, bytecode = list(sys.path), dict(sys.modules), sys.dont_write_bytecode
    if os.path.exists(os.path.join(folder, top)) or os.path.exists(os.path.join(folder, f"{top}.py")):
        # Of that name, the folder's own counts, whatever this process has loaded before.
        for loaded in [key for key in modules if key == top or key.startswith(f"{top}.")]:
            del sys.modules[loaded]
    sys.path.insert(0, folder)
    # Reading a spec writes nothing beside it.
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.path[:] = path
        sys.dont_write_bytecode = bytecode
        for loaded in [key for key, module in sys.modules.items() if _lies_in(module, folder)]:
            del sys.modules[loaded]
        sys.modules.update({key: module for key, module in modules.items() if key not in sys.modules})


def _lies_in(module: Any, folder: str) -> bool:
    path = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    return isinstance(path, str) and path.startswith(os.path.join(folder, ""))


def _told(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        text = f"{error.msg}, line {error.lineno}"
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _hint(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is neither in the spec's folder nor installed"
    return ""
