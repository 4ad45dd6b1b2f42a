"""The selection of tasks agrees with mteb's own."""

from __future__ import annotations

from typing import Any

import mteb
import pytest
from mteb.abstasks.aggregated_task import AbsTaskAggregate

from mteb_vllm.catalogue import mteb_catalogue
from mteb_vllm.config.schema import TasksConfig
from mteb_vllm.tasks import selection as tasks

EN = "MTEB(eng, v2)"


def selected(**config: Any) -> list[str]:
    chosen, mistakes = tasks.select(TasksConfig(**config), mteb_catalogue())
    assert mistakes == []
    return [task.name for task in chosen]


def load_selected(**config: Any) -> dict[str, Any]:
    return {task.metadata.name: task for task in tasks.load(TasksConfig(**config), selected(**config))}


@pytest.mark.parametrize(
    "filters",
    [
        {"types": ["Retrieval"], "languages": ["deu"]},
        {"types": ["STS", "Clustering"]},
        {"languages": ["eng-Latn"], "types": ["Classification"]},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:The task .* is currently in beta")
def test_filters_select_what_mteb_selects(filters: dict[str, list[str]]) -> None:
    theirs = mteb.get_tasks(
        task_types=filters.get("types"),  # type: ignore[arg-type]
        languages=filters.get("languages"),
        modalities=["text"],
        exclusive_modality_filter=True,
        exclude_aggregate=True,
    )
    assert len(theirs) > 10
    assert sorted(selected(**filters)) == sorted(task.metadata.name for task in theirs)


def test_all_text_tasks_can_be_selected_by_name() -> None:
    catalogue = mteb_catalogue()
    hidden = [
        next(task.name for task in catalogue.tasks.values() if set(task.modalities) == {"text"} and keep(task))
        for keep in (lambda task: not task.is_public, lambda task: task.superseded_by, lambda task: task.aggregate_of)
    ]
    assert selected(names=[*hidden, "StdlibDocsRetrieval", "STS12", "STS12"]) == [
        *hidden,
        "StdlibDocsRetrieval",
        "STS12",
    ]


def test_names_override_the_benchmark() -> None:
    assert selected(names=["STS13"], benchmark="demo") == ["STS13"]


def test_the_demo_is_a_benchmark_of_its_own() -> None:
    demo = ["StdlibDocsRetrieval", "StdlibDocsClassification", "StdlibDocsClustering"]
    assert selected(benchmark="demo") == demo
    assert selected(benchmark="demo", types=["Clustering"]) == ["StdlibDocsClustering"]
    assert list(load_selected(benchmark="demo")) == demo
    assert not set(demo) & set(selected(languages=["eng"]))


def test_a_benchmark_has_its_own_subsets_and_splits() -> None:
    ours, theirs = load_selected(benchmark=EN), {task.metadata.name: task for task in mteb.get_benchmark(EN).tasks}
    assert {name: (task.hf_subsets, task.eval_splits) for name, task in ours.items()} == {
        name: (task.hf_subsets, task.eval_splits) for name, task in theirs.items()
    }
    assert ours["STS22.v2"].hf_subsets == ["en"] != list(mteb.get_task("STS22.v2").hf_subsets)


def test_filters_do_not_restore_subsets_excluded_by_a_benchmark() -> None:
    assert load_selected(benchmark=EN, languages=["eng"])["STS22.v2"].hf_subsets == ["en"]
    assert selected(benchmark=EN, languages=["deu"]) == []
    assert "no task in the benchmark 'MTEB(eng, v2)' matches the filters" in str(
        tasks.no_tasks_mistake(TasksConfig(benchmark=EN, languages=["deu"]))
    )


def test_points_of_a_sweep_do_not_affect_each_others_tasks() -> None:
    names = {"benchmark": "MTEB(Multilingual, v2)", "types": ["STS"]}
    before = load_selected(**names)["STS22.v2"].hf_subsets
    narrow = load_selected(**names, subsets=["de", "fr"], splits=["train"])["STS22.v2"]
    assert (sorted(narrow.hf_subsets), narrow.eval_splits) == (["de", "fr"], ["train"])
    after = load_selected(**names, subsets=["en", "de"])["STS22.v2"]
    assert (sorted(after.hf_subsets), after.eval_splits) == (["de", "en"], ["test"])
    assert load_selected(**names)["STS22.v2"].hf_subsets == before


def test_a_subset_must_match_both_filters() -> None:
    assert load_selected(names=["STS22.v2"], languages=["deu"], subsets=["de", "en", "de-en"])[
        "STS22.v2"
    ].hf_subsets == [
        "de",
        "de-en",
    ]
    assert selected(names=["STS22.v2", "STS12"], languages=["deu"], subsets=["en"]) == []
    assert selected(names=["STS22.v2", "STS12"], languages=["deu"]) == ["STS22.v2"]


def test_splits_that_a_task_does_not_evaluate_can_be_selected() -> None:
    assert selected(names=["STSBenchmark"], splits=["validation"]) == ["STSBenchmark"]
    assert load_selected(names=["STSBenchmark"], splits=["validation"])["STSBenchmark"].eval_splits == ["validation"]
    _, (mistake,) = tasks.select(TasksConfig(names=["STSBenchmark"], splits=["tset"]), mteb_catalogue())
    assert (mistake.where, mistake.nearest) == ("tasks.splits=tset", ("test",))


@pytest.mark.parametrize("benchmark", [EN, "MTEB(cmn, v1)"])
def test_a_benchmarks_own_splits_and_subsets_are_in_the_catalogue(benchmark: str) -> None:
    chosen, _ = tasks.select(TasksConfig(benchmark=benchmark), mteb_catalogue())
    made = load_selected(benchmark=benchmark)
    assert {one.name: (one.splits, set(one.subsets)) for one in chosen if not one.aggregate_of} == {
        name: (tuple(task.eval_splits), set(task.hf_subsets))
        for name, task in made.items()
        if not isinstance(task, AbsTaskAggregate)
    }
