"""The Jinja dialect of specs: immutable sandbox, strict names, bounded work.

Templates cannot read files, the environment or the network: there is no loader, and the
sandbox refuses attributes that lead out. Work is bounded by counts, never by a clock, so a
template that is stopped on one machine is stopped on all.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_OUTPUT_CHARS = 20_000_000
"""Longest text a template may make; the service's own limit for a request is below it."""
MAX_STEPS = 1_000_000
"""Loop rounds of one rendering."""
MAX_WIDTH = 100_000
"""Widest padding, indentation or number format."""
_PADDING = frozenset(
    {"batch", "center", "expandtabs", "indent", "ljust", "rjust", "slice", "wordwrap", "zfill"}
)
_WIDE_FORMAT = re.compile(r"\d{6,}|\*")
_REMOVED_FILTERS = ("random", "pprint")
_REMOVED_GLOBALS = ("lipsum",)


class TemplateFailed(Exception):
    """A template could not be rendered; `line` is 1-based within its text, 0 where unknown."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


class _LimitReached(Exception):
    pass


class Fields:
    """Named values, read as `input.name` or `input["name"]`.

    Deliberately no Mapping: a column called `items` must not be hidden by a method.
    """

    __slots__ = ("_label", "_values")

    def __init__(self, label: str, values: Mapping[str, Any]) -> None:
        self._label = label
        self._values = values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __str__(self) -> str:
        raise TypeError(f"{self._label} as a whole is not text; name one of its fields")

    def describe(self) -> tuple[str, list[str]]:
        """The label and the names there are."""
        return self._label, sorted(self._values)


class _Undefined(jinja2.StrictUndefined):
    @property
    def _undefined_message(self) -> str:
        owner = self._undefined_obj
        if isinstance(owner, Fields):
            label, names = owner.describe()
            return f"{label} has no field {self._undefined_name!r}; it has {', '.join(names) or 'none'}"
        if self._undefined_name is not None and self._undefined_hint is None and not _has_owner(self):
            return f"{self._undefined_name!r} is not defined; templates see input, var and env"
        return super()._undefined_message


def _has_owner(undefined: jinja2.Undefined) -> bool:
    return undefined._undefined_obj is not jinja2.utils.missing


class _Environment(ImmutableSandboxedEnvironment):
    # Interception also keeps the compiler from folding `'a' * 10**9` while it compiles.
    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        super().__init__(
            undefined=_Undefined, keep_trailing_newline=True, autoescape=False, finalize=_printable
        )
        self.steps = 0
        for name in _REMOVED_GLOBALS:
            del self.globals[name]
        for name in _REMOVED_FILTERS:
            del self.filters[name]
        for name, function in self.filters.items():
            self.filters[name] = self._bounded(name, function)
        self.filters["_count"] = self._count
        self.filters["_check"] = _checked

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for text, count in ((left, right), (right, left)):
                if (
                    isinstance(text, (str, list, tuple))
                    and isinstance(count, int)
                    and len(text) * count > MAX_OUTPUT_CHARS
                ):
                    raise _LimitReached(f"a repetition longer than {MAX_OUTPUT_CHARS:,} characters")
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() + right.bit_length() if operator == "*" else left.bit_length() * right
            if bits > 4096:
                raise _LimitReached("a number of more than 4,096 bits")
        if operator == "%" and isinstance(left, str):
            raise _LimitReached("the % operator on text; use ~ to join text")
        return _checked(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            _check_growth(__obj.__name__, owner, args)
        return _checked(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            _check_growth("format", value.__self__, (*args, *kwargs.values()))
            return wrapped(*args, **kwargs)

        return bounded

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        passes = getattr(function, "jinja_pass_arg", None)

        def bounded(*args: Any, **kwargs: Any) -> Any:
            given = args[1:] if passes is not None else args
            value = _printable(given[0]) if given else ""
            _check_growth(name, value, (*given[1:], *kwargs.values()))
            return _checked(function(*args, **kwargs))

        # Jinja marks filters that want the context or environment by attributes.
        bounded.__dict__.update(getattr(function, "__dict__", {}))
        return bounded

    def _count(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise _LimitReached(f"more than {MAX_STEPS:,} loop rounds")
            yield value


def _check_growth(name: str, value: Any, args: tuple[Any, ...]) -> None:
    """Refuse a filter or method whose result would be too long, before it is made."""
    text = value if isinstance(value, str) else ""
    longest = max((len(a) for a in args if isinstance(a, (str, list, tuple))), default=0)
    if name in _PADDING or name == "format":
        width = max((a for a in args if isinstance(a, int)), default=0)
        if width > MAX_WIDTH or (name == "format" and _WIDE_FORMAT.search(text)):
            raise _LimitReached(f"{name} wider than {MAX_WIDTH:,}")
    if name == "replace" and len(args) > 1 and isinstance(args[0], str):
        copies = text.count(args[0])
    elif name == "join":
        # The filter joins `value` by its argument, the method joins its argument by `value`.
        items, longest = (args[0] if text and args else value), len(text) or longest
        copies = len(items) if hasattr(items, "__len__") else MAX_WIDTH
    elif name == "format":
        copies = text.count("{") + text.count("%")
    elif name in ("indent", "wordwrap", "translate"):
        copies = len(text) + 1 if name == "translate" else text.count("\n") + len(text.split(" "))
        longest = max(longest, MAX_WIDTH if name == "translate" else 0)
    else:
        return
    if copies * longest > MAX_OUTPUT_CHARS:
        raise _LimitReached(f"{name} that makes a text longer than {MAX_OUTPUT_CHARS:,} characters")


def _printable(value: Any) -> Any:
    """The value, unless its text would be an address in this machine's memory."""
    for part in value if isinstance(value, (list, tuple)) else (value,):
        if callable(part) and not isinstance(part, (jinja2.Undefined, type)):
            raise TypeError(f"{getattr(part, '__name__', 'this')} is a function, not text; call it with ()")
    return value


def _checked(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)) and len(value) > MAX_OUTPUT_CHARS:
        raise _LimitReached(f"a value longer than {MAX_OUTPUT_CHARS:,}")
    return value


class CompiledTemplate:
    """A template, compiled once and rendered per row. Not for use from two threads."""

    def __init__(self, text: str) -> None:
        """Compile `text`. Raises TemplateFailed with the line of a syntax error."""
        self._environment = _Environment()
        try:
            tree = self._environment.parse(text)
            _bound_loops(tree)
            code = self._environment.compile(tree, filename="<gbrun template>")
            self._template = jinja2.Template.from_code(
                self._environment, code, self._environment.make_globals(None)
            )
        except jinja2.TemplateSyntaxError as error:
            raise TemplateFailed(error.message or "syntax error", error.lineno) from error
        except (_LimitReached, RecursionError) as error:
            raise TemplateFailed(str(error) or "nested too deeply", 0) from error
        self.names = _used_names(tree)

    def render(self, values: Mapping[str, Any]) -> str:
        """The text. Raises TemplateFailed with the template's line and a cause."""
        self._environment.steps = 0
        chunks: list[str] = []
        length = 0
        try:
            for chunk in self._template.root_render_func(self._template.new_context(dict(values))):
                length += len(chunk)
                if length > MAX_OUTPUT_CHARS:
                    raise _LimitReached(f"more than {MAX_OUTPUT_CHARS:,} characters of output")
                chunks.append(chunk)
        except _LimitReached as error:
            raise TemplateFailed(
                f"the template was stopped: {error}", _line_of(self._template, error)
            ) from None
        except MemoryError as error:
            raise TemplateFailed(
                "the template was stopped: out of memory", _line_of(self._template, error)
            ) from None
        except RecursionError as error:
            raise TemplateFailed(
                "the template calls itself without end", _line_of(self._template, error)
            ) from None
        except Exception as error:
            # Whatever user-written expressions raise (TypeError, ZeroDivisionError, ...) is theirs.
            raise TemplateFailed(_words(error), _line_of(self._template, error)) from error
        return "".join(chunks)


def _words(error: Exception) -> str:
    if isinstance(error, jinja2.TemplateError):
        return error.message or type(error).__name__
    return f"{type(error).__name__}: {error}"


def _line_of(template: jinja2.Template, error: BaseException) -> int:
    line = 0
    trace: types.TracebackType | None = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<gbrun template>":
            line = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return line


def _bound_loops(tree: nodes.Template) -> None:
    """Put a counter around what every loop walks over, and a length check on every `~`."""
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, "_count", [], [], None, None, lineno=loop.lineno)
    for node in list(tree.find_all(nodes.Concat)):
        node.nodes = [nodes.Filter(n, "_check", [], [], None, None, lineno=node.lineno) for n in node.nodes]


def _used_names(tree: nodes.Template) -> frozenset[tuple[str, str]]:
    """(`input`, `text`) pairs that the template reads by attribute or constant subscript."""
    used = set()
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        assert isinstance(node, (nodes.Getattr, nodes.Getitem))
        if isinstance(node.node, nodes.Name):
            name = node.attr if isinstance(node, nodes.Getattr) else None
            if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
                name = str(node.arg.value)
            if name is not None:
                used.add((node.node.name, name))
    return frozenset(used)
