"""What a score template may do: render one text, always the same, with bounded time and memory."""

from __future__ import annotations

import time

import pytest

from mteb_vllm.config.schema import ScoreTemplateConfig, conf_dir
from mteb_vllm.models.score_templates import FOLDER, check, template_mistakes

PAIR = "{{ messages[0].content }} {{ messages[1].content }}"
LOOPS = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"


def said(text: str) -> str:
    return "\n".join(map(str, template_mistakes("score_template.template", PAIR + text)))


def test_shipped_templates_pass() -> None:
    files = [path.name for path in (conf_dir() / FOLDER).glob("*.jinja")]
    assert len(files) >= 2
    for name in files:
        assert check("score_template", ScoreTemplateConfig(file=name)) == []
    assert said("{% for x in [1, 2] %}{{ loop.index }}{% endfor %}{% set c = cycler('a', 'b') %}{{ c.next() }}") == ""


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
def test_time_and_chance_are_refused_wherever_they_stand(text: str, name: str) -> None:
    assert f"uses {name}: time and random values change" in said(text)


def test_a_text_that_differs_between_processes_is_refused() -> None:
    assert "gives another text at every rendering" in said("{{ range }}"), "its address"
    assert "time and random values change the text" in said("{% set f = 'ran' ~ 'dom' %}{{ [[1]] | map(f) | first }}")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (LOOPS, "it needs more than"),
        ("{{ 'x' * 10 ** 10 }}", "it needs more than"),
        ("{{ 'x' | center(10 ** 7) }}", "it makes a text of 10,0"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{% set x = 'x' * 99 %}" + "{% set x = x ~ x %}" * 40, "it needs more than"),
    ],
    ids=["loops", "multiplication", "filter", "recursion", "doubling"],
)
def test_work_without_end_is_refused(text: str, why: str) -> None:
    started = time.process_time()
    assert f"cannot be rendered: {why}" in said(text)
    assert time.process_time() - started < 2, "it is not this process that works"


def test_nesting_without_end_is_refused() -> None:
    assert "nested too deeply" in said("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}")
