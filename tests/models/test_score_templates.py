"""Score templates: each renders always the same text, in bounded time and memory."""

from __future__ import annotations

import time

import pytest

from mteb_vllm.config.schema import ScoreTemplateConfig, conf_dir
from mteb_vllm.models.score_templates import FOLDER, check, template_mistakes

PAIR = "{{ messages[0].content }} {{ messages[1].content }}"
LOOPS = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"


def errors_in(text: str) -> str:
    return "\n".join(map(str, template_mistakes("score_template.template", PAIR + text)))


def test_shipped_templates_pass() -> None:
    files = [path.name for path in (conf_dir() / FOLDER).glob("*.jinja")]
    assert len(files) >= 2
    for name in files:
        assert check("score_template", ScoreTemplateConfig(file=name)) == []
    assert (
        errors_in("{% for x in [1, 2] %}{{ loop.index }}{% endfor %}{% set c = cycler('a', 'b') %}{{ c.next() }}") == ""
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("{{ strftime_now('%f') }}", "strftime_now"),
        (
            "{% if strftime_now is defined and instruction == 'never' %}{{ strftime_now('%f') }}{% endif %}",
            "strftime_now",
        ),
        ("{{ [1, 2, 3] | random }}", "random"),
        ("{{ [[1, 2]] | map('random') | first }}", "random"),
        ("{{ lipsum() }}", "lipsum"),
    ],
)
def test_time_and_random_values_are_refused_anywhere(text: str, name: str) -> None:
    assert f"uses {name}: time and random values change" in errors_in(text)


def test_a_text_that_differs_between_processes_is_refused() -> None:
    assert "renders a different text every time" in errors_in("{{ range }}"), "its address"
    assert "time and random values change the text" in errors_in(
        "{% set f = 'ran' ~ 'dom' %}{{ [[1]] | map(f) | first }}"
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (LOOPS, "it needs more than"),
        ("{{ 'x' * 10 ** 10 }}", "it needs more than"),
        ("{{ 'x' | center(10 ** 7) }}", "one rendered pair has 10,0"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{% set x = 'x' * 99 %}" + "{% set x = x ~ x %}" * 40, "it needs more than"),
    ],
    ids=["loops", "multiplication", "filter", "recursion", "doubling"],
)
def test_unbounded_work_is_refused(text: str, why: str) -> None:
    started = time.process_time()
    assert f"cannot be rendered: {why}" in errors_in(text)
    assert time.process_time() - started < 2, "the work is done in another process"


def test_deep_nesting_is_refused() -> None:
    assert "nested too deeply" in errors_in("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}")
