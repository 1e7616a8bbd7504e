"""What templates can and cannot do: hostile ones are stopped at their line, others are left alone."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runner.sandbox import CompiledTemplate, Fields, TemplateFailed

FIELDS = {"text": "hi\nyou", "items": "I", "keys": "K", "values": "V", "n": 1234567, "rows": [1, 2, 3]}


def render(text: str, fields: Mapping[str, Any] = FIELDS, **variables: Any) -> str:
    values = {"input": Fields("input", fields), "var": Fields("var", variables), "env": "dev"}
    return CompiledTemplate(text).render(values)


def failure(text: str) -> TemplateFailed:
    with pytest.raises(TemplateFailed) as caught:
        render(text)
    return caught.value


# ---------------------------------------------------------------- benign


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text\n", "plain text\n"),
        ("no newline", "no newline"),
        ("\n\n{{ input.text }}\n\n", "\n\nhi\nyou\n\n"),
        ("<b>{{ '<&>' }}</b>", "<b><&></b>"),
        ("{{ input.items }}{{ input.keys }}{{ input['values'] }}", "IKV"),
        ("{{ var.tone|upper }}/{{ env }}", "WARM/dev"),
        ("{% for n in input.rows %}{{ loop.index }}:{{ n }} {% endfor %}", "1:1 2:2 3:3 "),
        ("{% if input.n > 5 and input.text is defined %}big{% else %}small{% endif %}", "big"),
        (
            "{% set name = 'x' %}{{ name * 3 }}{{ name ~ 1 }}{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 10 }}",
            "xxxx1331024",
        ),
        ("{{ input.rows|join(', ') }}", "1, 2, 3"),
        ("{{ input.rows|map('string')|map('center', 3)|join('|') }}", " 1 | 2 | 3 "),
        ("{{ input.text|replace('\n', ' ')|title }}", "Hi You"),
        ("{{ input.text.split('\n')[1].center(7, '-') }}", "--you--"),
        ("{{ '%s-%03d'|format('a', 7) }}{{ '{}:{:>4}'.format('a', 7) }}", "a-007a:   7"),
        ("{{ input.text|indent(2) }}", "hi\n  you"),
        ("{{ {'b': 1, 'a': [1.5, none, true]}|tojson }}", '{"a": [1.5, null, true], "b": 1}'),
        ("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m('a') }}{{ m('b') }}", "[a][b]"),
        (
            "{% set n = namespace(n=0) %}{% for i in range(5) %}{% set n.n = n.n + i %}{% endfor %}{{ n.n }}",
            "10",
        ),
        ("{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}", "123"),
        ("{% raw %}{{ untouched }}{% endraw %}{# gone #}", "{{ untouched }}"),
        ("{{ [1, 'a', none] }}", "[1, 'a', None]"),
        ("{{ input.rows|select('odd')|list }}", "[1, 3]"),
        ("{{ '😀\u2028中文' }}", "😀\u2028中文"),
    ],
)
def test_benign_templates_are_as_in_jinja(text: str, expected: str) -> None:
    assert render(text, tone="warm") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ '{:,}'.format(input.n) }}", "1,234,567"),
        ("{{ '{} of {}'.format(1, 2500000) }}", "1 of 2500000"),
        ("{{ '%d'|format(input.n) }}", "1234567"),
    ],
)
def test_large_numbers_are_formatted(text: str, expected: str) -> None:
    assert render(text) == expected


def test_a_template_is_rendered_again_with_fresh_limits() -> None:
    template = CompiledTemplate("{% for i in range(60000) %}{% endfor %}{{ input.text }}")
    for number in range(20):
        text = f"t{number}"
        assert template.render({"input": Fields("input", {"text": text}), "var": None, "env": None}) == text


def test_the_names_that_a_template_uses_are_known() -> None:
    template = CompiledTemplate("{{ input.text }}{{ input['path'] }}{% if var.tone %}{{ var[x] }}{% endif %}")

    assert template.names == {("input", "text"), ("input", "path"), ("var", "tone"), ("var", ""), ("x", "")}


# ---------------------------------------------------------------- what does not exist


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ nope }}", "'nope' is not defined; templates see input, var and env"),
        ("{{ input.nope }}", "input has no field 'nope'; it has items, keys, n, rows, text, values"),
        ("{{ input['no pe'] }}", "input has no field 'no pe'"),
        ("{{ var.nope }}", "var has no field 'nope'; it has none"),
        ("{{ input.text.nope }}", "has no attribute 'nope'"),
        ("{{ input }}", "input as a whole is not text"),
        ("{% if nope %}{% endif %}", "'nope' is not defined"),
        ("{% for x in input.nope %}{% endfor %}", "input has no field 'nope'"),
        ("{{ nope|default }}{{ input.nope|upper }}", "input has no field 'nope'"),
        ("{{ lipsum() }}", "'lipsum' is not defined"),
        ("{{ [1, 2]|random }}", "No filter named 'random'"),
        ("{{ input.text|pprint }}", "No filter named 'pprint'"),
        ("{{ input.text|wordwrap(3) }}", "No filter named 'wordwrap'"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ 'a' + 1 }}", "TypeError"),
        ("{{ input.text", "unexpected end of template"),
        ("{% endfor %}", "unknown tag 'endfor'"),
    ],
)
def test_what_is_missing_is_named_with_its_line(text: str, words: str) -> None:
    found = failure("first line\nsecond line\n" + text)

    assert words in found.message
    assert found.line == 3


def test_an_undefined_name_in_a_list_is_not_printed() -> None:
    assert "'nope' is not defined" in failure("{{ [nope] }}").message


# ---------------------------------------------------------------- hostile


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ ''['__class__'] }}", "unsafe"),
        ("{{ input.text|attr('__class__') }}", "unsafe"),
        ("{{ input.text.upper.__self__ }}", "unsafe"),
        ("{{ input.__class__ }}", "no field '__class__'"),
        ("{{ input._values }}", "no field '_values'"),
        ("{{ range.__globals__ }}", "unsafe"),
        ("{{ '{0.__class__}'.format(input) }}", "name one of its fields"),
        ("{{ '{0.__class__}'.format('') }}", "unsafe"),
        ("{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os }}", "unsafe"),
        ("{{ self.__init__ }}", "unsafe"),
        ("{% set x = [] %}{{ x.append(1) }}", "unsafe"),
        ("{{ {}.update({'a': 1}) }}", "unsafe"),
        ("{% include 'x' %}", "no loader"),
        ("{% import '/etc/passwd' as x %}", "no loader"),
        ("{% extends 'x' %}", "no loader"),
        ("{{ 'a'.encode() }}", "unsafe"),
        ("{{ (1).to_bytes(1000000000, 'big') }}", "unsafe"),
        ("{{ (1).from_bytes([1, 2], 'big') }}", "unsafe"),
        ("{{ true.to_bytes(1000000000, 'big') }}", "unsafe"),
        ("{{ 'a' % 3 }}", "the % operator on text"),
        ("{{ '%99999999d' % 3 }}", "the % operator on text"),
    ],
)
def test_ways_out_are_shut(text: str, words: str) -> None:
    found = failure("\n" + text)

    assert words in found.message
    assert found.line == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
            "1,000,000 loop rounds",
        ),
        ("{% for i in range(1000000000) %}{% endfor %}", "Range too big"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "calls itself without end"),
        ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "calls itself without end"),
        ("{{ 'a' * 100000000 }}", "a repetition longer than"),
        ("{{ 100000000 * 'a' }}", "a repetition longer than"),
        ("{{ ([1] * 100000000)|length }}", "a repetition longer than"),
        ("{% set a = 'a' * 20000000 %}{{ a + a }}", "work on more than"),
        (
            "{% set n = namespace(a='aaaa') %}{% for i in range(60) %}{% set n.a = n.a + n.a %}{% endfor %}",
            "work on more than",
        ),
        (
            "{% set n = namespace(a='aaaa') %}{% for i in range(60) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
            "a value longer than",
        ),
        ("{{ ('a' * 1000000)|replace('a', 'a' * 100) }}", "replace that makes a text longer than"),
        ("{{ ('a' * 1000000).replace('', 'a' * 100) }}", "replace that makes a text longer than"),
        ("{{ (['a'] * 100000)|join('b' * 1000) }}", "join that makes a text longer than"),
        ("{{ ('b' * 1000).join(['a'] * 100000) }}", "join that makes a text longer than"),
        ("{{ 'a'|center(100000000) }}", "center wider than"),
        ("{{ 'a'.rjust(100000000) }}", "rjust wider than"),
        ("{{ '1'.zfill(100000000) }}", "zfill wider than"),
        ("{{ 'a\tb'.expandtabs(100000000) }}", "unsafe"),
        ("{{ 'a b'|indent(100000000) }}", "indent wider than"),
        ("{{ '%100000000d'|format(1) }}", "format wider than"),
        ("{{ '%*d'|format(100000000, 1) }}", "format wider than"),
        ("{{ '{:>100000000}'.format(1) }}", "format wider than"),
        ("{{ '{:>{}}'.format(1, 100000000) }}", "format with braces inside braces"),
        ("{{ 5|round(-1000000000) }}", "round to more than 10,000 digits"),
        ("{{ 5|round(precision=1000000000, method='ceil') }}", "round to more than 10,000 digits"),
        ("{{ ('f' * 1000000)|int(base=16) // 3 }}", "a number of more than 4,096 bits"),
        ("{{ 10 ** 100000000 }}", "a number of more than 4,096 bits"),
        ("{{ 10 ** (10 ** 10) }}", "a number of more than 4,096 bits"),
        (
            "{% set ns = namespace(a=9) %}{% for i in range(60) %}{% set ns.a = ns.a * ns.a %}{% endfor %}",
            "a number of more than",
        ),
    ],
)
def test_work_is_bounded(text: str, words: str) -> None:
    found = failure("one\n\n" + text)

    assert words in found.message
    assert found.line == 3


def test_words_that_look_like_an_address_are_printed() -> None:
    assert render("{{ [input.text] }}", {"text": "<x at 0x1f>"}) == "['<x at 0x1f>']"


@pytest.mark.parametrize(
    "text",
    [
        "{% set a = 'a' * 20000000 %}{{ a }}{{ a }}",
        "{% set a = 'a' * 100000 %}{% for i in range(1000) %}{{ a }}{% endfor %}",
    ],
)
def test_output_is_bounded(text: str) -> None:
    assert "more than 20,000,000 characters of output" in failure("one\n\n" + text).message


def test_too_much_output_names_its_line() -> None:
    assert failure("one\n\n{% set a = 'a' * 20000000 %}\n{{ a }}{{ a }}").line == 4


def test_nesting_that_cannot_be_compiled_is_refused() -> None:
    with pytest.raises(TemplateFailed, match=r"^nested too deeply$"):
        CompiledTemplate("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}")


def test_a_field_may_have_any_name() -> None:
    fields = {"describe": "a", "items": "b", "text": "c"}

    assert render("{{ input.describe }}{{ input.items }}{{ input.text }}", fields) == "abc"


def test_numbers_are_rounded() -> None:
    assert render("{{ 2.345|round(1) }} {{ 1234|round(-2) }} {{ 2.1|round(0, 'ceil') }}") == "2.3 1200 3.0"


@pytest.mark.parametrize(
    "text",
    [
        "{{ input.text.upper }}",
        "{{ range }}",
        "{{ [input.text.upper] }}",
        "{{ input.text.upper|string }}",
        "{{ joiner() }}",
    ],
)
def test_a_function_is_not_text(text: str) -> None:
    assert "is a function, not text" in failure(text).message


MEMORY_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")


@pytest.mark.parametrize(
    "text",
    [
        "{{ cycler('a') }}",
        "{{ [cycler('a')] }}",
        "{{ 'x' ~ cycler('a') }}",
        "{{ cycler('a')|string }}",
        "{{ '{}'.format(cycler('a')) }}",
        "{{ '%s'|format(input.text.upper) }}",
        "{{ [[input.text.upper]] }}",
        "{{ {'a': input.text.upper} }}",
        "{{ [1, 2]|map('upper') }}",
        "{{ [1, 2]|batch(2) }}",
    ],
)
def test_no_memory_address_is_printed(text: str) -> None:
    try:
        made = render(text)
    except TemplateFailed:
        return
    assert not MEMORY_ADDRESS.search(made)


# ---------------------------------------------------------------- hostile beyond what this process bears

BOMBS = {
    "join of long items": "{{ (['a' * 19999999] * 1000)|join|length }}",
    "join method of long items": "{{ ''.join(['a' * 19999999] * 1000)|length }}",
    "join of padded items": "{{ ([''] * 1000000)|map('center', 99999)|join|length }}",
    "format with a width as text": "{{ '{:{w}}'.format('a', w='999999999') }}",
    "format with a width in pieces": "{{ '{:{a}{b}}'.format('x', a=99999, b=9999) }}",
    "format_map with a width": "{{ '{a:{w}}'.format_map({'a': 1, 'w': '999999999'}) }}",
    "format with many wide fields": "{{ ('{0:99999}' * 100000).format(1)|length }}",
    "% format with many wide fields": "{{ ('%(a)99999d' * 100000)|format(a=1)|length }}",
    "expandtabs": "{{ ('\t' * 1000000).expandtabs(99999)|length }}",
    "indent": "{{ ('a\n' * 1000000)|indent(99999)|length }}",
    "tojson with indent": "{{ (range(99999)|list)|tojson(indent=99999)|length }}",
    "nested lists as text": (
        "{% set ns = namespace(a=['x']) %}{% for i in range(40) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}"
        "{{ ns.a }}"
    ),
    "nested lists as JSON": (
        "{% set ns = namespace(a=['x']) %}{% for i in range(40) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}"
        "{{ ns.a|tojson }}"
    ),
    "filters that walk lists of lists": "{{ ([range(99999)] * 1000000)|map('sum')|list|length }}",
    "macros that call twice": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}"
    ),
    "recursive loops that call twice": (
        "{% for x in [1, 2] recursive %}{% if loop.depth < 40 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}"
    ),
    "one join of many texts": "{% set a = 'a' * 19999999 %}{{ (" + " ~ ".join("a" * 300) + ")|length }}",
}
NESTED = (
    "{% set ns = namespace(a=['x'], b=['x']) %}{% for i in range(34) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}"
)
"""Two lists, equal and not the same, of 17 billion items each."""
LOOSE_BOMBS = {
    "comparing": NESTED + "{{ ns.a == ns.b }}",
    "looking in a list": NESTED + "{{ ns.a in [ns.b] }}",
    "counting": NESTED + "{{ [ns.b].count(ns.a) }}",
    "sorting": NESTED + "{{ [ns.a, ns.b]|sort|length }}",
    "a test": NESTED + "{{ ns.a is eq(ns.b) }}",
    "a namespace as text": NESTED + "{{ namespace(x=ns.a) }}",
    "a view of a dict as text": NESTED + "{{ dict(x=ns.a).values() }}",
    "format with doubled braces": "{{ ('{' * 2 ~ '}' * 2 ~ '{:{w}}').format('a', w='999999999')|length }}",
    "join of what is selected": "{{ (['a' * 1999999] * 1000)|select|join|length }}",
    "sum of lists": "{{ ([[1]] * 999999)|sum(start=[])|length }}",
}
_CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (400_000_000, 400_000_000))
seconds = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
from runner.sandbox import CompiledTemplate, Fields, TemplateFailed
try:
    CompiledTemplate(sys.argv[1]).render({"input": Fields("input", {}), "var": None, "env": None})
except TemplateFailed as error:
    print("stopped by memory" if "out of memory" in error.message else "stopped")
"""


def _set_off(text: str, seconds: int = 10) -> str:
    """How a template ends in a process of its own with 400 MB and a few seconds of time."""
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, text, str(seconds)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return child.stdout.strip() or f"ended by {child.returncode}"


@pytest.fixture(scope="module")
def ends() -> Mapping[str, str]:
    with ThreadPoolExecutor(4) as pool:
        stopped = dict(zip(BOMBS, pool.map(_set_off, BOMBS.values()), strict=True))
        loose = pool.map(lambda text: _set_off(text, 1), LOOSE_BOMBS.values())
        return stopped | dict(zip(LOOSE_BOMBS, loose, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and time are the kernel's")
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_stopped_by_a_count(name: str, ends: Mapping[str, str]) -> None:
    """By what the template asks for: not by the machine's memory or time, which differ."""
    assert ends[name] == "stopped"


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and time are the kernel's")
@pytest.mark.parametrize("name", LOOSE_BOMBS)
def test_bombs_that_are_not_stopped_yet(name: str, ends: Mapping[str, str]) -> None:
    assert ends[name] == "stopped"


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and time are the kernel's")
def test_harmless_templates_live_within_the_limits_of_the_bombs() -> None:
    assert _set_off("{{ 'a' * 1000 }}{{ nope }}") == "stopped"
