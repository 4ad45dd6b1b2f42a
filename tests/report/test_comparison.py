"""Comparisons: against figures computed by hand, and against slow ways to the same figures."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mteb_vllm.report.answer import answer
from mteb_vllm.report.comparison import Comparison, Point, Row, TaskScore, compare
from mteb_vllm.report.tables import comparison_markdown
from mteb_vllm.results.failures import Failure


def task(name: str, score: float | None, computed: int | None = 100, seconds: float = 1.0, **more: Any) -> TaskScore:
    measured: dict[str, Any] = (
        {"computed": computed, "tokens": 10 * computed, "seconds": seconds} if computed is not None else {}
    )
    return TaskScore(name, score=score, **{"type": name[:3], "failed": score is None, "stored": 0} | measured | more)


def point(
    name: str, *tasks: TaskScore, engine: str = "e", facts: dict[str, str] | None = None, **overrides: str
) -> Point:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return Point(name, Path(name), overrides=dotted, facts=facts or {"model": "m"}, engine=engine, tasks=list(tasks))


def named(comparison: Comparison) -> dict[str, Row]:
    return {row.point.name: row for row in comparison.rows}


def test_means_differences_and_the_answer() -> None:
    made = compare(
        [
            point("0", task("STS12", 0.8), task("Ret1", 0.4), task("Ret2", 0.6), dtype="float32", engine="a"),
            point(
                "1", task("STS12", 0.8), task("Ret1", 0.399), task("Ret2", 0.6, seconds=0.25), dtype="bf16", engine="b"
            ),
            point(
                "2",
                task("STS12", 0.9),
                task("Ret1", None),
                task("Ret2", 0.9),
                task("Ret3", 1.0),
                dtype="fp16",
                engine="c",
            ),
        ]
    )
    rows = named(made)
    assert made.shared == ["STS12", "Ret1", "Ret2"] and made.tasks[-1] == "Ret3"
    assert rows["0"].mean == pytest.approx(0.6) and rows["0"].difference == 0
    assert rows["0"].by_type == {"STS": 0.8, "Ret": 0.5}
    assert rows["1"].difference == pytest.approx(-0.001 / 3)
    assert (rows["2"].mean, rows["2"].difference, rows["2"].by_type) == (None, None, {"STS": 0.9, "Ret": None})
    speed = rows["1"].speed
    assert speed is not None and (speed.texts, speed.tokens, speed.computed) == (300 / 2.25, 3000 / 2.25, 300)
    assert made.best is rows["0"] and made.answer is rows["1"]
    assert [row.good for row in made.rows] == [True, True, False]
    assert [row.on_front for row in made.rows] == [True, True, False]
    text = " ".join(answer(made))
    assert "1 of 3 points failed, entirely or on some tasks: point 2." in text
    assert (
        "Fastest of the 2 points within 0.001 of the best mean: point 1 (dtype=bf16), mean 0.59967, 133 texts/s."
        in text
    )
    assert "dtype=bf16 instead of float32: score -0.00033, speed x1.33, 1 pair." in text
    # The scale of epsilon is the scores' own, and its edge is in.
    assert named(compare([row.point for row in made.rows], epsilon=0.001 / 3))["1"].good
    assert not named(compare([row.point for row in made.rows], epsilon=0.0003))["1"].good


def test_the_baseline_may_be_any_point() -> None:
    points = [point("0", task("A", 0.5), x="1"), point("1", task("A", 0.75), x="2")]
    made = compare(points, baseline="1")
    assert [row.difference for row in made.rows] == [-0.25, 0.0]
    assert [(one.value, one.against) for one in made.effects] == [("1", "2")]
    with pytest.raises(ValueError, match="no point is called 7; available: 0, 1"):
        compare(points, baseline="7")


def test_columns_are_the_settings_that_distinguish_points() -> None:
    def ran(name: str, of: str, vllm: str, **overrides: str) -> Point:
        facts = {"model": of, "revision": f"r-{of}", "prompts": "none", "engine.seed": "0", "versions.vllm": vllm}
        return point(name, task("A", 0.5), facts=facts | {"git": name, "resolved.dtype": name}, **overrides)

    points = [ran("0", "a", "1", model="a", results__dir="x"), ran("1", "b", "1", model="b", results__dir="y")]
    made = compare(points)
    assert made.columns == ["model"], "a revision follows from its model"
    assert list(made.constants.items()) == [("versions.vllm", "1"), ("prompts", "none"), ("engine.seed", "0")]
    made = compare([*points, ran("2", "a", "2", model="a")])
    assert made.columns == ["model", "versions.vllm"]
    assert [row.settings for row in made.rows] == [("a", "1"), ("b", "1"), ("a", "2")]


def test_an_override_on_some_command_lines_only_is_compared_by_the_facts() -> None:
    facts = {"model": "m", "engine.dtype": "float32"}
    same = compare(
        [point("0", task("A", 0.5), facts=facts), point("1", task("A", 0.5), facts=facts, engine__dtype="float32")]
    )
    assert same.columns == []
    assert "The points do not differ in any setting." in answer(same)
    other = compare([point("0", task("A", 0.5), facts=facts), point("1", task("A", 0.5), engine__dtype="auto")])
    assert [row.settings for row in other.rows] == [("float32",), ("auto",)]


def test_points_that_failed_before_their_first_task_change_nothing_for_the_others() -> None:
    dead = Point("1", Path("1"), overrides={"x": "2"}, failures=[Failure("engine_start", "no")])
    unreadable = Point("2", Path("2"), failures=[Failure("error", "no record")])
    made = compare([point("0", task("A", 0.5), x="1"), dead, unreadable, point("3", task("A", 0.6), x="3")])
    assert made.shared == ["A"] and made.columns == ["x"] and made.constants == {"model": "m"}
    assert [row.mean for row in made.rows] == [0.5, None, None, 0.6]
    assert [(one.value, one.pairs, one.score) for one in made.effects] == [("2", 1, None), ("3", 1, pytest.approx(0.1))]
    lines = answer(made)
    assert lines[0] == "2 of 4 points failed, entirely or on some tasks: point 1, point 2."
    assert lines[1] == "2 points with missing scores cannot be the best: point 1, point 2."


def test_points_without_a_common_task_have_no_best_point() -> None:
    made = compare([point("0", task("A", 0.5), tasks="a"), point("1", task("B", 0.6), tasks="b")])
    assert (made.shared, made.best, made.answer, made.columns) == ([], None, None, ["tasks"])
    assert answer(made)[0] == "The points have no task in common, so there are no means and no best point."


def speeds(comparison: Comparison) -> list[tuple[str, float] | None]:
    return [None if row.speed is None else (row.speed.of, row.speed.texts) for row in comparison.rows]


def test_a_speed_is_measured_on_computed_texts_or_taken_from_a_point_with_the_same_engine() -> None:
    reused = TaskScore("A", "A", score=0.5)
    made = compare(
        [
            point("none", reused, engine="alone"),
            point("cached", reused, task("B", 0.5), TaskScore("C", score=0.5)),
            point("half", task("A", 0.5, 100, stored=100, seconds=0.5)),
            point("stored", task("A", 0.5, 99, stored=100)),
            point("failed", task("A", None, 60), engine="other"),
        ]
    )
    assert speeds(made) == [None, ("half", 200), ("half", 200), ("half", 200), ("failed", 60)]


def test_a_point_that_failed_before_its_first_score_has_no_speed() -> None:
    stopped = replace(point("stopped"), failures=[Failure("interrupted", "KeyboardInterrupt")])
    failed = point("failed", task("A", None, None))
    assert speeds(compare([point("whole", task("A", 0.5)), stopped, failed])) == [("whole", 100), None, None]


def test_a_failed_point_that_has_the_speed_of_another_says_so() -> None:
    whole = point("whole", task("A", 0.5), task("B", 0.5))
    failed = point("failed", task("A", 0.5, 10, stored=90), replace(task("B", None, None), failed=True))
    comparison = compare([whole, failed])
    assert speeds(comparison) == [("whole", 100), ("whole", 100)]
    assert "; speed of whole |" in comparison_markdown(comparison)


def test_speeds_are_over_the_same_tasks() -> None:
    short, long = task("Short", 0.5, 1000, seconds=1.0), task("Long", 0.5, 100, seconds=9.0)
    reused = TaskScore("Short", score=0.5, cached=True)
    made = compare(
        [
            point("both", short, long, engine="a"),
            point("long", reused, long, engine="b"),  # a tenth as fast, only because of what it had still to do
            point("borrowed", reused, long, engine="a"),
            point("more", short, long, task("Other", 0.5, 10**6), engine="d"),
            point("failed", short, task("Long", None, None), engine="e"),
            point("lost", short, task("Long", None, None), engine="a"),
        ]
    )
    assert made.shared == ["Short", "Long"]
    own = 1100 / 10
    assert speeds(made) == [
        ("both", own),
        None,
        ("both", own),
        ("more", own),
        None,
        ("both", own),
    ]
    assert [row.speed.computed for row in made.rows if row.speed] == [1100] * 4


def test_a_task_whose_texts_came_from_the_embedding_cache_is_not_measured() -> None:
    # The many queries were computed, the long documents of the other task were there.
    queries, documents = task("A", 0.5, 1000, seconds=1.0), task("B", 0.5, 10, stored=900, seconds=1.0)
    made = compare(
        [
            point("stored", queries, documents, x="1"),
            point("whole", queries, task("B", 0.5, 900, stored=10, seconds=9.0), x="2"),
            point("alone", queries, documents, x="3", engine="other"),
        ]
    )
    assert speeds(made) == [("whole", 190), ("whole", 190), None]


def test_without_shared_tasks_a_speed_is_over_the_same_tasks() -> None:
    def of(name: str, *tasks: TaskScore, selection: str) -> Point:
        return point(name, *tasks, tasks=selection)

    reused = TaskScore("A", score=0.5, cached=True)
    made = compare(
        [
            of("a", task("A", 0.5, 100), selection="a"),
            of("b", task("B", 0.5, 10), selection="b"),
            of("a again", reused, selection="a"),
            of("a and c", reused, task("C", 0.5), selection="ac"),
            of("nothing", selection="d"),
        ]
    )
    assert made.shared == []
    assert speeds(made) == [("a", 100), ("b", 10), None, None, None], "a cached point has no speed at all"


@pytest.mark.parametrize(
    "failure",
    [Failure("killed", "by a signal"), Failure("interrupted", "Ctrl-C"), Failure("timeout", "too long", "B")],
    ids=["killed", "interrupted", "in a task that it has no outcome of"],
)
def test_a_point_that_ended_early_leaves_the_means_of_others_alone(failure: Failure) -> None:
    whole = [point(str(n), task("A", 0.5), task("B", 0.7), x=str(n)) for n in range(2)]
    ended = replace(point("2", task("A", 0.9), x="2"), failures=[failure])
    made = compare([ended, *whole], baseline="0")
    assert made.shared == ["A", "B"] and [row.mean for row in made.rows] == [
        None,
        pytest.approx(0.6),
        pytest.approx(0.6),
    ]
    assert named(made)["2"].scores == {"A": 0.9, "B": None} and named(made)["2"].speed == named(made)["0"].speed
    assert (made.best, named(made)["2"].good) == (named(made)["0"], False)
    assert compare([ended]).shared == ["A"], "its other tasks are unknown"
    of_a_task = replace(ended, failures=[Failure("killed", "by a signal", "A")])
    assert compare([of_a_task, *whole]).shared == ["A"], "it is not known to have ended there"


def test_speeds_in_pairs_and_in_texts_are_not_compared() -> None:
    made = compare([point("0", task("A", 0.5), x="1"), point("1", task("A", 0.5, unit="pairs"), x="2")])
    assert made.answer is None and not any(row.on_front for row in made.rows) and made.effects[0].speed is None
    assert made.unit is None and any("not comparable" in line for line in answer(made))
    silent = compare(
        [point("0", task("A", 0.5), x="1"), point("1", task("A", 0.5, 9, stored=99, unit="pairs"), x="2", engine="f")]
    )
    assert silent.unit is None and silent.answer is None and not any(row.on_front for row in silent.rows)
    known = TaskScore("A", score=0.5)
    for tasks, unit in {
        (task("A", 0.5, unit="pairs"), known): "pairs",
        (task("A", 0.5), known): "texts",
        (known,): "texts",
    }.items():
        assert compare([point(str(n), one) for n, one in enumerate(tasks)]).unit == unit, "some points have no unit"


def test_cached_results_do_not_count_as_computed() -> None:
    there = task("A", 0.5, 100, stored=5, cached=True)
    own, reused, both, others = (
        point("0", task("A", 0.5, 100, stored=5)),
        point("1", there),
        point("2", there, task("B", 0.5, 10, stored=1)),
        point("3", TaskScore("A", score=0.5)),
    )
    assert [(one.total("computed"), one.total("stored")) for one in (own, reused, both, others)] == [
        (100, 5),
        (0, 0),
        (10, 1),
        (None, None),
    ]


def test_reranking_has_the_means_of_both_stages() -> None:
    tasks = [task("A", 0.5, first_stage=0.25, ceiling=1.0), task("B", 0.75, first_stage=0.5, ceiling=0.75)]
    own = [task("A", 0.5, ceiling=1.0), task("B", 0.25, first_stage=0.5, ceiling=1.0)]
    both, without = compare([point("0", *tasks, x="1"), point("1", *own, x="2")]).rows
    assert (both.first_stage, both.gain, both.ceiling) == (0.375, 0.25, 0.875)
    assert (without.first_stage, without.gain, without.ceiling) == (None, None, 1.0)
    assert (both.share, without.share) == (0.75, 0.375)
    assert both.gain_share == (0.625 - 0.375) / (0.875 - 0.375) and without.gain_share is None
    assert compare([point("0", *tasks, task("C", 0.5))]).rows[0].share is None


def test_there_is_no_share_of_a_possible_gain_without_room_for_one() -> None:
    def share(first: float, reranked: float, ceiling: float) -> float | None:
        return compare([point("0", task("A", reranked, first_stage=first, ceiling=ceiling))]).rows[0].gain_share

    assert share(0.5, 0.5, 0.5) is None and share(0.3, 0.3, 0.1 + 0.2) is None, "the ceiling is the first stage"
    assert share(0.5, 0.25, 1.0) == -0.5, "reranking can lower a score"
    # A task without room counts in the means, and does not divide by zero.
    both = [task("A", 0.5, first_stage=0.5, ceiling=0.5), task("B", 0.75, first_stage=0.5, ceiling=1.0)]
    assert compare([point("0", *both)]).rows[0].gain_share == 0.5


def test_a_single_point_is_compared_with_nothing() -> None:
    made = compare([point("0", task("A", 0.5), x="1")])
    assert made.columns == [] and made.answer is made.best is made.rows[0]
    assert answer(made) == ["One point: mean 0.50000 over 1 task, 100 texts/s."]


def test_effects_that_cannot_be_determined_are_named() -> None:
    made = compare([point("0", task("A", 0.5), x="1", y="1"), point("1", task("A", 0.5), x="2", y="2")])
    assert made.effects == []
    assert "x: no effect can be determined, since no two points with scores differ only in this setting." in answer(
        made
    )


def test_an_effect_gives_the_number_of_pairs_of_each_figure() -> None:
    def at(x: str, y: int, score: float | None, computed: int | None) -> Point:
        return point(f"{x}{y}", task("A", score, computed), engine=f"{x}{y}", x=x, y=str(y))

    def effect(*points: Point) -> tuple[int, int, int, str]:
        made = compare([at("a", 0, 0.5, 100), at("a", 1, 0.5, 100), *points])
        one = next(one for one in made.effects if one.column == "x")
        line = next(line for line in answer(made) if line.startswith("x=b instead of a: "))
        return one.pairs, one.score_pairs, one.speed_pairs, line.removeprefix("x=b instead of a: ")

    assert effect(at("b", 0, 0.6, 90), at("b", 1, 0.7, 110)) == (
        2, 2, 2, "score +0.15000 (+0.10000 to +0.20000), no measurable difference in speed (0.90 to 1.10), 2 pairs."
    )  # fmt: skip
    assert effect(at("b", 0, 0.6, 200), at("b", 1, 0.7, 200)) == (
        2, 2, 2, "score +0.15000 (+0.10000 to +0.20000), speed x2.00 (2.00 to 2.00), 2 pairs."
    )  # fmt: skip
    assert effect(at("b", 0, None, 150), at("b", 1, 0.4, 200)) == (
        2, 1, 2, "score -0.10000, 1 pair; speed x1.73 (1.50 to 2.00), 2 pairs."
    )  # fmt: skip
    assert effect(at("b", 0, None, None), at("b", 1, 0.4, 200)) == (2, 1, 1, "score -0.10000, speed x2.00, 1 pair.")
    assert effect(at("b", 0, 0.4, None), at("b", 1, 0.4, None)) == (
        2, 2, 0, "score -0.10000 (-0.10000 to -0.10000), 2 pairs."
    )  # fmt: skip


def test_the_answer_lists_the_largest_effects_of_many_values() -> None:
    points = [point(str(n), task("A", 0.5 + n / 1000), engine=str(n), x=str(n)) for n in range(50)]
    lines = [line for line in answer(compare(points)) if line.startswith("x")]
    assert len(lines) == 13 and lines[0].startswith("x=38 instead of 0: score +0.03800")
    assert lines[-1] == "x: 37 other values had smaller effects."


@pytest.mark.parametrize("seed", range(20))
def test_front_effects_and_good_points_match_a_brute_force_search(seed: int) -> None:
    chance = random.Random(seed)
    axes = [[str(n) for n in range(chance.randint(1, 4))] for _ in range(chance.randint(1, 4))]
    points = []
    for values in itertools.product(*axes):
        for _ in range(chance.choice((0, 1, 1, 2))):
            overrides = {f"x{at}": value for at, value in enumerate(values)}
            # Few different scores and speeds, so that there are ties.
            score = chance.choice((None, *(n / 8 for n in range(8))))
            measured = task("A", score, chance.choice((None, 100, 200, 300)))
            points.append(point(str(len(points)), measured, engine=str(len(points)), **overrides))
    if not points:
        return
    epsilon = chance.choice((0.0, 0.125, 0.3))
    made = compare(points, epsilon=epsilon, baseline=str(chance.randrange(len(points))))
    rows, baseline = made.rows, named(made)[made.baseline]
    means = [row.mean for row in rows if row.mean is not None]
    for row in rows:
        assert row.good == (row.mean is not None and row.mean >= max(means) - epsilon)
        assert row.on_front == (placed(row) is not None and not any(beats(other, row) for other in rows))
    good = [row for row in rows if row.good and row.speed]
    fastest = max((placed(row)[::-1] for row in good), default=None)  # type: ignore[index]
    assert (made.answer and placed(made.answer)) == (fastest and fastest[::-1])
    for at, column in enumerate(made.columns):
        values = dict.fromkeys(row.settings[at] for row in rows if row.settings[at] != baseline.settings[at])
        slow = {value: pairs(rows, at, value, baseline.settings[at]) for value in values}
        effects = {one.value: one for one in made.effects if one.column == column}
        assert effects.keys() == {value for value, found in slow.items() if found}
        for value, effect in effects.items():
            scores = [one.mean - other.mean for one, other in slow[value] if None not in (one.mean, other.mean)]  # type: ignore[operator]
            logs = [
                math.log(one.speed.texts / other.speed.texts) for one, other in slow[value] if one.speed and other.speed
            ]
            assert (effect.pairs, effect.score_pairs, effect.speed_pairs) == (len(slow[value]), len(scores), len(logs))
            assert effect.score == (pytest.approx(sum(scores) / len(scores)) if scores else None)
            assert effect.score_range == (pytest.approx((min(scores), max(scores))) if scores else None)
            assert effect.speed == (pytest.approx(math.exp(sum(logs) / len(logs))) if logs else None)
            assert effect.speed_range == (pytest.approx((math.exp(min(logs)), math.exp(max(logs)))) if logs else None)


def placed(row: Row) -> tuple[float, float] | None:
    return (row.mean, row.speed.texts) if row.mean is not None and row.speed is not None else None


def beats(one: Row, other: Row) -> bool:
    a, b = placed(one), placed(other)
    return a is not None and b is not None and a != b and a[0] >= b[0] and a[1] >= b[1]


def pairs(rows: list[Row], at: int, value: str, against: str) -> list[tuple[Row, Row]]:
    return [
        (one, other)
        for one in rows
        for other in rows
        if one.settings[at] == value and other.settings[at] == against
        if all(a == b for n, (a, b) in enumerate(zip(one.settings, other.settings, strict=True)) if n != at)
    ]


def test_a_cached_point_takes_part_in_no_effect_on_speed() -> None:
    def at(x: str, cached: bool) -> Point:
        return point(x, task("A", 0.5, 100, cached=cached), engine=x, x=x)

    for cached, speed_pairs in ((False, 1), (True, 0)):
        made = compare([at("a", False), at("b", cached)])
        (effect,) = made.effects
        assert (effect.pairs, effect.score_pairs, effect.speed_pairs) == (1, 1, speed_pairs)
        assert (made.rows[1].speed is None, made.rows[1].point.cached) == (cached, cached)


def test_rows_are_ranked_best_first_and_failed_ones_last() -> None:
    dead = Point("dead", Path("dead"), failures=[Failure("killed", "gone")])
    made = compare(
        [
            dead,
            point("low", task("A", 0.4), x="1"),
            point("slow", task("A", 0.5, seconds=2.0), x="2", engine="s"),
            point("failed", task("A", None), x="3"),
            point("fast", task("A", 0.5), x="4", engine="f"),
        ]
    )
    assert [row.point.name for row in made.ranked] == ["fast", "slow", "low", "dead", "failed"]


def test_runs_of_several_kinds_have_one_column_for_the_model() -> None:
    def ran(name: str, of: str, source: Any = "run", **overrides: str) -> Point:
        facts = {"model": of, "tasks": "A"}
        return replace(point(name, task("A", 0.5), facts=facts, **overrides), source=source)

    made = compare(
        [
            ran("0", "org/small", model="small"),
            ran("1", "org/large", model="custom", model__name="org/large", model__revision="abc"),
            ran("others", "org/other", source="results"),
        ]
    )
    assert made.columns == ["model"] and [row.settings for row in made.rows] == [
        ("org/small",), ("org/large",), ("org/other",)
    ]  # fmt: skip
    # What differs between runs of one model stays.
    revisions = [ran(name, "org/large", model__revision=name) for name in ("a", "b")]
    assert compare([*revisions, ran("0", "org/small")]).columns == ["model", "model.revision"]
    # Two recipes of one model are two settings, whatever their model is called.
    recipes = [
        ran("0", "org/small", model="small"),
        ran("1", "org/small", model="small_prompted"),
        ran("2", "org/b", model="b"),
    ]
    assert [row.settings[0] for row in compare(recipes).rows] == ["small", "small_prompted", "b"]


@pytest.mark.parametrize(
    "overrides",
    [
        ({"tasks__names": "[A,B]"}, {"tasks__names": "[B, A]"}),
        ({"tasks__names": "[B,A]"}, {"tasks": "ab"}),
        ({"tasks__names": "[B,A]"}, {}),
    ],
)
def test_the_order_of_task_names_is_no_setting(overrides: tuple[dict[str, str], dict[str, str]]) -> None:
    facts = {"model": "m", "tasks": "A, B"}
    points = [point(str(at), task("A", 0.5), task("B", 0.5), facts=facts, **one) for at, one in enumerate(overrides)]
    assert compare(points).columns == []


def test_a_value_that_engines_chose_is_shared_only_if_no_other_was_set() -> None:
    chosen, same, other = (
        {"resolved.max_model_len": "256"},
        {"engine.max_model_len": "256"},
        {"engine.max_model_len": "64"},
    )

    def shared(*facts: dict[str, str], source: Any = "run") -> bool:
        made = [point(str(at), task("A", 0.5), facts=one) for at, one in enumerate(facts)]
        made[-1] = replace(made[-1], source=source)
        return "resolved.max_model_len" in compare(made).constants

    assert shared(chosen, chosen) and shared(chosen, same)
    assert shared(chosen, {}), "its results were cached"
    assert not shared(chosen, other) and not shared(chosen, {}, source="results")


def test_shared_settings_begin_with_the_model_and_end_with_the_environment() -> None:
    facts = {
        "engine.env.VLLM_X": "1", "engine.dtype": "float32", "shell.OMP_NUM_THREADS": "2", "prompts": "none", "git": "abc",
        "versions.vllm": "0.32", "device": "cpu", "tasks": "A", "revision": "r", "model": "m",
    }  # fmt: skip
    made = compare([point(str(at), task("A", 0.5), facts=facts) for at in range(2)])
    assert list(made.constants) == [
        "model", "revision", "tasks", "device", "versions.vllm", "prompts", "engine.dtype", "git", "engine.env.VLLM_X",
        "shell.OMP_NUM_THREADS",
    ]  # fmt: skip


def test_the_same_tasks_are_no_setting_however_they_were_selected() -> None:
    one, two, gone = task("A", 0.5), task("B", 0.6), Failure("engine_died", "died")
    points = [
        replace(point("0", one, two, tasks="demo"), facts={"tasks": "demo"}),
        replace(point("1", two, one, tasks__names="[B,A]"), facts={"tasks": "A, B"}),
        replace(point("2", one, two), facts={"tasks": "demo"}),
        replace(point("3", one, tasks="demo"), facts={"tasks": "demo"}, failures=[gone]),
    ]
    made = compare(points)
    assert (made.columns, made.constants["tasks"]) == ([], "demo")
    fewer = replace(point("4", one, tasks__names="[A]"), facts={"tasks": "A"})
    made = compare([*points, fewer])
    assert (made.columns, [row.settings for row in made.rows]) == (["tasks"], [("demo",)] * 4 + [("A",)])
    other = replace(point("5", one, tasks="demo"), facts={"tasks": "demo"})
    made = compare([*points[:3], other])
    assert [row.settings for row in made.rows] == [("A, B",)] * 3 + [("A",)], "two files of the same name"


def test_a_baseline_without_a_mean_is_named() -> None:
    points = [point("0", task("A", None), x="1"), point("1", task("A", 0.5), x="2")]
    said = "The baseline (point 0) has no mean, so differences from it are unknown."
    assert said in answer(compare(points)) and said not in answer(compare(points, baseline="1"))
    assert said not in answer(compare(points[:1]))


def test_scores_of_different_subsets_are_not_compared() -> None:
    """A benchmark may evaluate one language of a task, and other people's results may have all of them."""
    one = [task("STS17", 0.9, subsets="test: en-en"), task("STS12", 0.5, subsets="test: default")]
    all_of_it = [task("STS17", 0.4, subsets="11 subsets (0a1b2c3d)"), task("STS12", 0.6, subsets="test: default")]
    made = compare([point("0", *one, x="1"), point("1", *all_of_it, x="2")])
    assert (made.shared, made.unequal, made.tasks) == (["STS12"], ["STS17"], ["STS17", "STS12"])
    assert made.best is made.rows[1] and made.rows[1].mean == 0.6 and made.rows[1].scores["STS17"] == 0.4
    said = "Not compared: STS17, since its scores are of different splits or subsets in different points."
    assert said in answer(made) and "x=2 instead of 1: score +0.10000" in " ".join(answer(made))
    assert not any("that some points lack" in line for line in answer(made))
    text = comparison_markdown(made)
    scores, differences = text.split("## Differences from the baseline, by task")
    assert "| STS17 |" in scores and "| STS17 |" not in differences and "| STS12 |" in differences
    nothing = compare([point("0", one[0], x="1"), point("1", all_of_it[0], x="2")])
    assert (nothing.best, nothing.shared, nothing.rows[0].mean) == (None, [], None)
    assert any("no task evaluated on the same splits and subsets in common" in line for line in answer(nothing))
    # A failed task has no score to compare, and of some records it is not known.
    unknown = [task("STS17", None), task("STS12", 0.6)]
    assert not compare([point("0", *one, x="1"), point("1", *unknown, x="2")]).unequal


def test_points_on_different_devices_or_versions_have_no_effect_of_a_setting() -> None:
    cpu, gpu = {"device": "cpu", "versions.vllm": "0.26"}, {"device": "H200", "versions.vllm": "0.32"}
    made = compare(
        [
            point("0", task("A", 0.5), facts=cpu, engine__dtype="float32"),
            point("1", task("A", 0.6, seconds=0.01), facts=gpu, engine__dtype="bfloat16", engine="b"),
        ]
    )
    assert made.columns == ["engine.dtype", "device"] and not made.effects, "the version follows from the device"
    third = point("2", task("A", 0.55, seconds=0.02), facts=gpu, engine__dtype="float32", engine="c")
    made = compare([*(row.point for row in made.rows), third])
    effects = {effect.column: effect for effect in made.effects}
    assert effects["engine.dtype"].pairs == 1 and effects["engine.dtype"].score == pytest.approx(0.05)
    assert effects["engine.dtype"].speed == pytest.approx(2) and effects["device"].speed == pytest.approx(50)
    # Each backend has its own packages, and the program's own version changes no score.
    engines = [
        {
            "device": "cpu",
            "versions.vllm": "0.32",
            "versions.torch": "2",
            "versions.mteb-vllm": "1",
            "versions.python": "3.11.7",
        },
        {"device": "cpu", "versions.sentence-transformers": "5", "versions.torch": "2", "versions.mteb-vllm": "2"},
    ]
    made = compare(
        [point(str(at), task("A", 0.5 + at / 10), facts=facts, engine=str(at)) for at, facts in enumerate(engines)]
        + [point("2", task("A", 0.7), facts=engines[1], engine__batch_size="8", engine="c")]
    )
    assert "versions.python" not in made.columns and "versions.mteb-vllm" not in made.columns
    (effect,) = [one for one in made.effects if one.column == "engine.batch_size"]
    assert effect.score == pytest.approx(0.1)
    # Results of others were computed somewhere else, and of many versions: their models are compared all the same.
    others = [
        replace(point(name, task("A", score), facts={"model": name, "versions.mteb": version}), source="results")
        for name, score, version in (("a", 0.5, "1"), ("b", 0.6, "2"))
    ]
    made = compare(others)
    assert made.columns == ["model"] and [effect.pairs for effect in made.effects] == [1]


def test_speeds_on_different_numbers_of_cores_are_not_compared() -> None:
    points = [
        point("0", task("A", 0.5), facts={"cores": "2"}, dtype="float32"),
        point("1", task("A", 0.6, seconds=0.1), facts={"cores": "64"}, dtype="bfloat16", engine="b"),
    ]
    (effect,) = compare(points).effects
    assert (effect.pairs, effect.score_pairs, effect.speed_pairs) == (1, 1, 0)
    # The number of GPUs follows from how many of them an engine needs.
    sizes = [
        point("0", task("A", 0.5), facts={"gpus": "1"}, engine__tensor_parallel_size="1"),
        point("1", task("A", 0.5, seconds=0.5), facts={"gpus": "2"}, engine__tensor_parallel_size="2", engine="b"),
    ]
    (effect,) = compare(sizes).effects
    assert (effect.speed, effect.speed_pairs) == (pytest.approx(2), 1)
    same = [replace(points[0], overrides={}), replace(points[1], overrides={})]
    (effect,) = compare(same).effects
    assert (effect.column, effect.speed_pairs) == ("cores", 1)
