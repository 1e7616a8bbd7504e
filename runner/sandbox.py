"""The Jinja dialect of specs: immutable sandbox, strict names, bounded work.

Templates cannot read files, the environment or the network: there is no loader, and the
sandbox refuses attributes that lead out. Work is bounded by counts, never by a clock or by
memory, so a template that is stopped on one machine is stopped on all: every loop round,
every call, filter, comparison and slice is charged for what it touches, before it is done
where its result could be longer than what it is given.
"""

from __future__ import annotations

import re
import string
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from runner.plaintemplate import MAX_OUTPUT_CHARS

MAX_STEPS = 1_000_000
"""Loop rounds of one rendering."""
MAX_WORK = 50_000_000
"""Characters and items that one rendering may touch, counted again at each operation."""
MAX_ITEMS = 1_000_000
"""Longest list."""
MAX_INSIDE = 200_000
"""Most values inside a value that is printed or put into another, counted as often as they stand there."""
MAX_WIDTH = 10_000
"""Widest padding, indentation or number format, and the most digits that a number is rounded to."""
MAX_BITS = 4096
"""Largest whole number."""
_CALL_WORK = 1000
"""What a call is charged besides what it touches: macros can call themselves twice."""
_ITEM_WORK = 8
"""An item of a list costs as much as so many characters of a text."""
_PADDING = frozenset({"center", "indent", "ljust", "rjust", "zfill", "batch", "slice", "truncate"})
_DIGITS = re.compile(r"\d+")
_PERCENT = re.compile(r"%(?:\([^)]*\))?[^%a-zA-Z(]*[a-zA-Z%]")
_REMOVED_FILTERS = ("pprint", "random", "urlize", "wordwrap", "xmlattr")
_REMOVED_GLOBALS = ("lipsum",)
_REMOVED_METHODS = frozenset(
    {"encode", "expandtabs", "format_map", "translate", "maketrans", "to_bytes", "from_bytes"}
)
"""Of texts and numbers. Bytes have no text anyway, and nothing would bound what is made of them."""


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

    __repr__ = __str__


class _Undefined(jinja2.StrictUndefined):
    def __repr__(self) -> str:
        # A list prints its items by repr, and an undefined one must not become text.
        return self._fail_with_undefined_error()

    @property
    def _undefined_message(self) -> str:
        owner = self._undefined_obj
        if isinstance(owner, Fields):
            label, names = owner._label, sorted(owner._values)
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
            undefined=_Undefined, keep_trailing_newline=True, autoescape=False, finalize=self._printable
        )
        self.steps = 0
        self.work = 0
        for name in _REMOVED_GLOBALS:
            del self.globals[name]
        for name in _REMOVED_FILTERS:
            del self.filters[name]
        tables: tuple[dict[str, Any], ...] = (self.filters, self.tests)
        for table in tables:
            for name, function in table.items():
                table[name] = self._charged(name, function)
        self.filters["_count"] = self._count
        self.filters["_touch"] = self._touch
        self.filters["_deep"] = self._deep
        self.filters["_concat"] = self._concat

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for value, count in ((left, right), (right, left)):
                limit = MAX_OUTPUT_CHARS if isinstance(value, str) else MAX_ITEMS
                if isinstance(value, (str, list, tuple)) and isinstance(count, int):
                    if len(value) * count > limit:
                        raise _LimitReached(f"a repetition longer than {limit:,}")
                    self.spend(len(value) * count)
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() + right.bit_length() if operator == "*" else left.bit_length() * right
            if bits > MAX_BITS:
                raise _LimitReached(f"a number of more than {MAX_BITS:,} bits")
        if operator == "%" and isinstance(left, str):
            raise _LimitReached("the % operator on text; use ~ to join text")
        self.spend(_size(left) + _size(right))
        return _bounded(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        __self.spend(_CALL_WORK + _size(owner) + sum(map(_size, args)))
        if isinstance(owner, str):
            __self._check_growth(f".{__obj.__name__}", owner, args)
        made = super().call(__context, __obj, *args, **kwargs)
        if isinstance(made, (list, tuple, dict)):
            __self._deep(made)
        return __self._spent(made)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        removed = isinstance(obj, (str, int)) and attr in _REMOVED_METHODS
        return not removed and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if getattr(value, "__name__", "") == "format_map":
            return None
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            self._check_growth(".format", value.__self__, (*args, *kwargs.values()))
            return wrapped(*args, **kwargs)

        return bounded

    def spend(self, amount: int) -> None:
        """Charge for work. Raises _LimitReached where there was too much of it."""
        self.work += amount
        if self.work > MAX_WORK:
            raise _LimitReached(f"work on more than {MAX_WORK:,} characters or items")

    def _spent(self, value: Any) -> Any:
        self.spend(_size(value))
        return _bounded(value)

    def _charged(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        passes = getattr(function, "jinja_pass_arg", None)

        def charged(*args: Any, **kwargs: Any) -> Any:
            given = args[1:] if passes is not None else args
            if given and isinstance(given[0], types.GeneratorType):
                # Of `map` and the like: drawn and charged here, so that no filter walks it unseen.
                drawn = [self._touch(item) for item in self._count(given[0])]
                given = (drawn, *given[1:])
                args = (args[0], *given) if passes is not None else given
            self.spend(1 + sum(map(_size, given)))
            if name in _TEXT_FILTERS:
                for value in (*given, *kwargs.values()):
                    self._printable(value)
            self._check_growth(name, given[0] if given else "", (*given[1:], *kwargs.values()))
            return self._spent(function(*args, **kwargs))

        # Jinja marks filters that want the context or environment by attributes.
        charged.__dict__.update(getattr(function, "__dict__", {}))
        return charged

    def _count(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise _LimitReached(f"more than {MAX_STEPS:,} loop rounds")
            yield value

    def _touch(self, value: Any) -> Any:
        self.spend(_size(value))
        return value

    def _concat(self, values: list[Any]) -> str:
        texts = [str(self._printable(value)) for value in values]
        length = sum(map(len, texts))
        if length > MAX_OUTPUT_CHARS:
            raise _LimitReached(f"a value longer than {MAX_OUTPUT_CHARS:,}")
        self.spend(length)
        return "".join(texts)

    def _printable(self, value: Any) -> Any:
        """The value, unless it has no text, or one that says where in memory it lies, or is far too long."""
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, (list, tuple, dict)):
            return self._deep(value)
        raise TypeError(_without_text(value))

    def _deep(self, value: Any) -> Any:
        """The value, charged for everything inside it: lists that share lists are huge as text."""
        waiting = [value]
        count = 0
        while waiting:
            found = waiting.pop()
            count += 1
            if count + len(waiting) > MAX_INSIDE:
                raise _LimitReached(f"a value of more than {MAX_INSIDE:,} values")
            if isinstance(found, dict):
                waiting.extend(found.keys())
                waiting.extend(found.values())
            elif isinstance(found, (list, tuple)):
                if len(found) > MAX_INSIDE:
                    raise _LimitReached(f"a value of more than {MAX_INSIDE:,} values")
                waiting.extend(found)
            elif not isinstance(found, _PLAIN):
                raise TypeError(_without_text(found))
            else:
                self.spend(_size(found))
        return value

    def _check_growth(self, name: str, value: Any, args: tuple[Any, ...]) -> None:
        """Refuse a filter or method whose result would be too long, before it is made."""
        text = value if isinstance(value, str) else ""
        method, name = name.startswith("."), name.removeprefix(".")
        if name in _PADDING or name == "tojson":
            width = max((a for a in args if isinstance(a, int)), default=0)
            pad = max((len(a) for a in args if isinstance(a, str)), default=0)
            lines = text.count("\n") + 1 if name == "indent" else 1
            if width > MAX_WIDTH or (name == "tojson" and width > 16):
                raise _LimitReached(f"{name} wider than {MAX_WIDTH:,}")
            length = lines * max(width, pad)
        elif name == "replace" and len(args) > 1 and isinstance(args[0], str) and isinstance(args[1], str):
            length = text.count(args[0]) * len(args[1])
        elif name == "join":
            items, glue = (args[0], text) if method else (value, args[0] if args else "")
            length = self._joined_length(items, glue)
        elif name == "sum" and any(isinstance(a, (list, tuple)) for a in args):
            raise _LimitReached("sum of lists; use + or a loop")
        elif name == "round":
            if any(isinstance(a, int) and abs(a) > MAX_WIDTH for a in args):
                raise _LimitReached(f"round to more than {MAX_WIDTH:,} digits")
            return
        elif name == "format":
            length = self._format_length(text, args, braces=method)
        else:
            return
        if length > MAX_OUTPUT_CHARS:
            raise _LimitReached(f"{name} that makes a text longer than {MAX_OUTPUT_CHARS:,} characters")
        self.spend(length)

    def _joined_length(self, items: Any, glue: Any) -> int:
        between = len(glue) if isinstance(glue, str) else 0
        if isinstance(items, (str, range)):
            return len(items) * (between + 8)
        length = 0
        for item in items:
            self._printable(item)
            length += between + (len(item) if isinstance(item, str) else 8)
            if length > MAX_OUTPUT_CHARS:
                break
        return length

    def _format_length(self, text: str, args: tuple[Any, ...], *, braces: bool) -> int:
        if braces:
            specs = [spec or "" for _, _, spec, _ in string.Formatter().parse(text)]
            if any("{" in spec for spec in specs):
                raise _LimitReached("format with braces inside braces")
        else:
            specs = _PERCENT.findall(text)
            if any("*" in spec for spec in specs):
                raise _LimitReached(f"format wider than {MAX_WIDTH:,}: write a width as digits")
        widths = [int(width[:9]) for spec in specs for width in _DIGITS.findall(spec)]
        if max(widths, default=0) > MAX_WIDTH:
            raise _LimitReached(f"format wider than {MAX_WIDTH:,}")
        for value in args:
            self._printable(value)
        longest = max((len(a) if isinstance(a, str) else 32 for a in args), default=0)
        return len(text) + sum(widths) + len(specs) * longest


def _without_text(value: Any) -> str:
    if callable(value):
        return f"{getattr(value, '__name__', 'this')} is a function, not text; call it with ()"
    if isinstance(value, Fields):
        return str(value)
    return f"a {type(value).__name__} is not text"


_PLAIN = (str, int, float, bool, type(None), range, jinja2.Undefined)
"""What is printed as it is: its text depends on its value alone."""
_TEXT_FILTERS = frozenset(
    {
        "capitalize", "center", "e", "escape", "forceescape", "format", "indent", "lower", "replace",
        "string", "striptags", "title", "tojson", "trim", "truncate", "upper", "urlencode", "wordcount",
    }
)  # fmt: skip
"""Filters that make text of what they are given, whatever it is."""


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return len(value) * _ITEM_WORK if isinstance(value, (list, tuple, dict, range)) else 1


def _bounded(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)) and len(value) > MAX_OUTPUT_CHARS:
        raise _LimitReached(f"a value longer than {MAX_OUTPUT_CHARS:,}")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise _LimitReached(f"a number of more than {MAX_BITS:,} bits")
    return value


class CompiledTemplate:
    """A template, compiled once and rendered per row. Not for use from two threads."""

    def __init__(self, text: str) -> None:
        """Compile `text`. Raises TemplateFailed with the line of a syntax error."""
        self._environment = _Environment()
        try:
            tree = self._environment.parse(text)
            used = _used_names(tree)
            tree = _Charging().visit(tree)
            code = self._environment.compile(tree, filename="<gbrun template>")
            self._template = jinja2.Template.from_code(
                self._environment, code, self._environment.make_globals(None)
            )
        except jinja2.TemplateSyntaxError as error:
            raise TemplateFailed(error.message or "syntax error", error.lineno) from error
        except _LimitReached as error:
            raise TemplateFailed(str(error), 0) from error
        except RecursionError as error:
            raise TemplateFailed("nested too deeply", 0) from error
        self.names = used

    def render(self, values: Mapping[str, Any]) -> str:
        """The text. Raises TemplateFailed with the template's line and a cause."""
        self._environment.steps = self._environment.work = 0
        chunks: list[str] = []
        length = 0
        made: Any = self._template.root_render_func(self._template.new_context(dict(values)))
        try:
            for chunk in made:
                length += len(chunk)
                if length > MAX_OUTPUT_CHARS:
                    line = self._template.get_corresponding_lineno(made.gi_frame.f_lineno)
                    words = f"more than {MAX_OUTPUT_CHARS:,} characters of output"
                    raise TemplateFailed(f"the template was stopped: {words}", line)
                chunks.append(chunk)
        except TemplateFailed:
            raise
        except _LimitReached as error:
            message = f"the template was stopped: {error}"
            raise TemplateFailed(message, _line_of(self._template, error)) from None
        except MemoryError as error:
            message = "the template was stopped: out of memory"
            raise TemplateFailed(message, _line_of(self._template, error)) from None
        except RecursionError as error:
            message = "the template calls itself without end"
            raise TemplateFailed(message, _line_of(self._template, error)) from None
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


class _Charging(NodeTransformer):
    """Puts a counter around what loops walk over, and a charge on what operators and literals make.

    Filters and calls are charged by the environment; comparisons, slices, `~` and literals are
    compiled to bare Python.
    """

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_count")
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filtered(node.expr, "_touch")
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, "_touch")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filtered(node.node, "_touch")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        # Checked as a whole: `a ~ a ~ a` makes one text.
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_concat")

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_deep")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_deep")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_deep") if node.ctx == "load" else node


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _used_names(tree: nodes.Template) -> frozenset[tuple[str, str]]:
    """(`input`, `text`) pairs that the template reads by attribute or constant subscript.

    The second is empty for a name that is used as a whole, or asked for what is only known later.
    """
    used = set()
    owners = set()
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        assert isinstance(node, (nodes.Getattr, nodes.Getitem))
        if isinstance(node.node, nodes.Name):
            name = node.attr if isinstance(node, nodes.Getattr) else None
            if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
                name = str(node.arg.value)
            if name is not None:
                used.add((node.node.name, name))
                owners.add(id(node.node))
    used |= {(node.name, "") for node in tree.find_all(nodes.Name) if id(node) not in owners}
    return frozenset(used)
