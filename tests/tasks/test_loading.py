"""Loading of data: always the current files, checked before an engine opens, with errors limited to single subsets."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mteb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from mteb.mocks import mock_tasks
from test_evaluate import Encoder, evaluate

from mteb_vllm.catalogue import mteb_catalogue
from mteb_vllm.config.schema import TasksConfig
from mteb_vllm.errors import DataError, FirstStageError, PartialResultError
from mteb_vllm.models.prompts import Prompts
from mteb_vllm.pipelines.base import RunContext
from mteb_vllm.pipelines.parity.sides import SideRunner
from mteb_vllm.pipelines.rerank.candidates import search_meta
from mteb_vllm.pipelines.rerank.pipeline import Rerank
from mteb_vllm.pipelines.throughput.pipeline import Throughput
from mteb_vllm.progress import Progress, quiet_console
from mteb_vllm.results import lookup as stored
from mteb_vllm.results.failures import failure_from_exception
from mteb_vllm.results.store import ResultsStore
from mteb_vllm.tasks import data_checks
from mteb_vllm.tasks import selection as tasks
from mteb_vllm.util.data_revisions import aggregate_revision, data_revision

PAIRS = [
    ("a cat sleeps", "a cat is sleeping"), ("rain falls", "it is raining"), ("he plays chess", "he plays a board game"),
    ("a red car", "a blue car"), ("bread is baked", "a loaf in the oven"), ("trees grow", "the stock market fell"),
]  # fmt: skip
TEXTS = ["cats chase mice", "rain falls in spring", "a baker makes bread", "a train has an engine"]


def write(root: Path, configs: dict[str, tuple[str, Any]]) -> None:
    """Write a data set in the Hub's format; `configs` maps each config to its split and rows."""
    lines = []
    for config, (split, rows) in configs.items():
        file = root / config / f"{split}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), file)
        lines.append(
            f"- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {config}/{split}.parquet\n"
        )
    (root / "README.md").write_text("---\nconfigs:\n" + "".join(lines) + "---\n")


def write_sts(root: Path, *, turned: bool = False) -> None:
    scores = sorted(range(len(PAIRS)), reverse=turned)
    rows = [{"sentence1": a, "sentence2": b, "score": score / 2} for (a, b), score in zip(PAIRS, scores, strict=True)]
    write(root / "mteb/sts12-sts", {"default": ("test", rows)})


def write_scifact(root: Path, **other: Any) -> None:
    parts: dict[str, Any] = {
        "corpus": [{"_id": f"d{at}", "title": "", "text": text} for at, text in enumerate(TEXTS)],
        "queries": [{"_id": f"q{at}", "text": text.split()[-1]} for at, text in enumerate(TEXTS)],
        "default": [{"query-id": f"q{at}", "corpus-id": f"d{at}", "score": 1} for at in range(4)],
        **other,
    }
    splits = {"corpus": "corpus", "queries": "queries"}
    write(root / "mteb/scifact", {name: (splits.get(name, "test"), rows) for name, rows in parts.items()})


def write_xquad(root: Path, **texts: list[str | None]) -> None:
    configs: dict[str, tuple[str, Any]] = {}
    for name, lines in texts.items():
        configs[f"{name}-corpus"] = (
            "corpus",
            [{"_id": f"d{at}", "title": "", "text": one} for at, one in enumerate(lines)],
        )
        configs[f"{name}-queries"] = (
            "queries",
            [{"_id": f"q{at}", "text": f"{name} {at}"} for at in range(len(lines))],
        )
        judged = [{"query-id": f"q{at}", "corpus-id": f"d{at}", "score": 1} for at in range(len(lines))]
        configs[f"{name}-qrels"] = ("validation", judged)
    write(root / "mteb/XQuADRetrieval", configs)


def load(name: str, **config: Any) -> Any:
    return tasks.load(TasksConfig(names=[name], **config), [name])[0]


def counted(rows: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    return [{**row, **changes} if at % 3 == 0 else row for at, row in enumerate(rows)]


CORPUS = [{"_id": f"d{at}", "title": "", "text": text} for at, text in enumerate(TEXTS)]
QUERIES = [{"_id": f"q{at}", "text": text} for at, text in enumerate(TEXTS)]
NO_QRELS = pa.table(
    {
        "query-id": pa.array([], pa.string()),
        "corpus-id": pa.array([], pa.string()),
        "score": pa.array([], pa.int64()),
    }
)


def test_an_edited_folder_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Path(os.environ["HF_DATASETS_CACHE"])
    before = set(cache.rglob("*"))
    scores = []
    for folder, turned in (("one", False), ("one", True), ("other", False)):
        write_sts(tmp_path / folder, turned=turned)
        monkeypatch.chdir(tmp_path / folder)
        (outcome,) = evaluate(tmp_path / "results", Encoder(), load("STS12"))
        scores.append((outcome.status, outcome.main_score))
    (_, first), (_, second), (_, third) = scores
    assert abs(first) > 0.01 and second == pytest.approx(-first) and third == first
    assert [status for status, _ in scores] == ["computed"] * 3
    assert set(cache.rglob("*")) == before and not list((tmp_path / "results").glob(".writing-*")), (
        "nothing is left behind"
    )


def test_data_that_change_during_a_run_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sts(tmp_path)
    monkeypatch.chdir(tmp_path)
    task = load("STS12")
    write_sts(tmp_path, turned=True)
    (outcome,) = evaluate(tmp_path / "results", Encoder(), task)
    assert outcome.failure.kind == "data" and "have changed since the run began" in outcome.reason


def test_an_aggregate_has_the_revision_of_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert aggregate_revision({"a": "c0ffee", "b": "beef"}, "1") == "1"
    info = next(
        task
        for task in mteb_catalogue().tasks.values()
        if task.aggregate_of and "/" in mteb_catalogue().tasks[task.aggregate_of[0]].dataset_path
    )
    monkeypatch.chdir(tmp_path)
    revisions = [load(info.name).metadata.revision]
    for content in ("one", "two"):
        part = Path(mteb_catalogue().tasks[info.aggregate_of[0]].dataset_path)
        part.mkdir(parents=True, exist_ok=True)
        (part / "data.txt").write_text(content)
        revisions.append(load(info.name).metadata.revision)
        assert stored._revision(info) == revisions[-1], "a dry run computes the same revision"
    assert len(set(revisions)) == 3 and data_revision("no/such", "abc") == "abc"
    (part / "data.txt").unlink()
    part.rmdir()
    assert load(info.name).metadata.revision == revisions[0], "pinned metadata of another point is reset"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"corpus": counted(CORPUS, title=None)}, "2 of 4 documents have a null title (first: d0)"),
        ({"corpus": counted(CORPUS, text=None)}, "2 of 4 documents have a null text (first: d0)"),
        (
            {"corpus": [{**row, "text": 7} for row in CORPUS]},
            "the column text of the documents has the type int64, not text",
        ),
        ({"corpus": [{"_id": row["_id"]} for row in CORPUS]}, "the documents have no column text"),
        ({"queries": [*QUERIES[:3], {"_id": "q3", "text": None}]}, "1 of 4 queries has a null text (first: q3)"),
        ({"default": NO_QRELS}, "split test: there are no relevance judgements"),
        ({"default": [{"query-id": "q1", "corpus-id": "d1", "score": 0}]}, "there are no relevant documents"),
        ({"default": [{"query-id": "x", "corpus-id": "d1", "score": 1}]}, "there are no queries that have relevance"),
        ({"default": [{"query-id": "q1", "corpus-id": "d1"}]}, "score"),
    ],
    ids=["title", "text", "number", "column", "query", "no-qrels", "no-relevant", "no-queries", "no-score"],
)
def test_errors_in_retrieval_data_are_found_before_an_engine_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], message: str
) -> None:
    write_scifact(tmp_path, **changed)
    monkeypatch.chdir(tmp_path)
    model = Encoder()
    (outcome,) = evaluate(tmp_path / "results", model, load("SciFact"))
    assert outcome.failure.kind == "data" and message in outcome.reason, outcome.reason
    assert model.tried == 0 and outcome.failure.advice


def test_valid_retrieval_data_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scifact(tmp_path)
    monkeypatch.chdir(tmp_path)
    (outcome,) = evaluate(tmp_path / "results", Encoder(), load("SciFact"))
    assert outcome.status == "computed", outcome.reason


@pytest.mark.parametrize("text", [None, "missing"])
def test_an_error_in_one_subset_does_not_affect_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    write_xquad(tmp_path, de=["ein Bäcker", None, "ein Zug"], en=list(TEXTS), es=["un gato", "el pan"])
    if text == "missing":
        (tmp_path / "mteb/XQuADRetrieval/de-corpus/corpus.parquet").write_bytes(b"no parquet")
    monkeypatch.chdir(tmp_path)
    model = Encoder()
    (outcome,) = evaluate(tmp_path / "results", model, load("XQuADRetrieval", subsets=["de", "en", "es"]))
    assert outcome.status == "failed" and outcome.main_score is None and outcome.failure.kind == "data"
    assert "1 of 3 subsets failed: subset de, split validation: " in outcome.reason
    wanted = "cannot be loaded" if text == "missing" else "1 of 3 documents has a null text (first: d1)"
    assert wanted in outcome.reason
    assert set(outcome.scores["validation"]) == {"en", "es"} and len(outcome.subset_scores()) == 2
    again = Encoder()
    (same,) = evaluate(tmp_path / "results", again, load("XQuADRetrieval", subsets=["de", "en", "es"]))
    assert (again.tried, same.subset_scores()) == (0, outcome.subset_scores()), "cached subsets are not recomputed"
    (good,) = evaluate(tmp_path / "results", Encoder(), load("XQuADRetrieval", subsets=["en", "es"]))
    assert good.status == "cached"


class FailingEncoder(Encoder):
    """An encoder that fails for one subset."""

    def __init__(self, bad: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bad, self.subsets = bad, []

    def encode(self, inputs: Any, *, hf_subset: str, **kwargs: Any) -> Any:
        self.subsets.append(hf_subset)
        if hf_subset == self.bad:
            raise ValueError("an odd text")
        return super().encode(inputs, **kwargs)


@pytest.mark.parametrize("again", [False, True])
def test_a_subset_whose_evaluation_fails_is_named_and_computed_next_time(tmp_path: Path, again: bool) -> None:
    task = mock_tasks.MockMultilingualSTSTask()
    first, *others = task.hf_subsets
    if again:  # existing scores are kept until they are replaced
        evaluate(tmp_path, Encoder(), mock_tasks.MockMultilingualSTSTask())
    (outcome,) = evaluate(tmp_path, FailingEncoder(first), task, reuse=not again)
    assert outcome.failure.kind == "task" and f"subset {first}, split test: ValueError: an odd text" in outcome.reason
    assert set(outcome.scores["test"]) == ({first, *others} if again else set(others))
    model = FailingEncoder("none")
    (complete,) = evaluate(tmp_path, model, mock_tasks.MockMultilingualSTSTask())
    assert set(model.subsets) == (set() if again else {first}) and set(complete.scores["test"]) == {first, *others}


def test_the_parts_of_an_aggregate_after_a_failed_one_are_computed(tmp_path: Path) -> None:
    task = mock_tasks.MockAggregatedTask()
    bad, *others = task.metadata.tasks
    bad.load_data = lambda **_: (_ for _ in ()).throw(OSError("no such disk"))
    try:
        (outcome,) = evaluate(tmp_path, Encoder(), task)
    finally:
        del bad.load_data
    assert outcome.failure.kind == "data" and bad.metadata.name in outcome.reason and "no such disk" in outcome.reason
    assert all(one.status == "cached" for one in evaluate(tmp_path, Encoder(opens=False), *others))


def test_a_missing_data_set_is_found_before_an_engine_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = Encoder()
    (outcome,) = evaluate(tmp_path / "results", model, load("SciFact"))
    assert outcome.failure.kind == "data" and model.tried == 0
    revision = mteb.get_task("SciFact").metadata.revision
    command = f"hf download mteb/scifact --repo-type dataset --revision {revision} --local-dir mteb/scifact"
    assert f"`{command}`" in outcome.failure.advice and str(tmp_path / "mteb/scifact") in outcome.failure.advice


def test_a_missing_data_set_of_a_first_stage_is_found_before_an_engine_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stage:
        encoder = None

        def settings(self, task: str) -> dict[str, Any]:
            return {"kind": "none"}

        def searcher(self, task: Any) -> Any:
            class Search:
                mteb_model_meta = search_meta("test/none", "1", {})

            return Search()

    monkeypatch.chdir(tmp_path)
    model = Encoder()
    model.set_extra_settings = lambda settings: None  # type: ignore[attr-defined]
    progress = Progress(quiet_console(), 1)
    (outcome,) = Rerank().run(
        RunContext(model, [load("SciFact")], ResultsStore(tmp_path / "results"), progress, stage=Stage())
    )
    assert outcome.failure is not None and outcome.failure.kind == "data" and model.tried == 0
    assert "hf download mteb/scifact" in outcome.failure.advice


def test_missing_data_of_throughput_and_parity_are_found_before_an_engine_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model: Any = Encoder()
    model.spec = SimpleNamespace(convert="embed")
    progress = Progress(quiet_console(), 1)
    with pytest.raises(DataError, match="mteb/scifact cannot be loaded"):
        timed = Throughput(batch_sizes=[1], lengths="tasks")
        list(timed.run(RunContext(model, [load("SciFact")], None, progress, prompts=Prompts())))
    with pytest.raises(DataError, match="mteb/scifact cannot be loaded"):
        SideRunner(model, tmp_path / "side", 10, 10, 5, tmp_path / "shared").evaluate(load("SciFact"))
    assert model.tried == 0


def test_columns_and_rows_of_other_tasks() -> None:
    def problem(task: Any, **columns: Any) -> str | None:
        task.dataset = DatasetDict({"test": Dataset.from_dict(columns), "train": Dataset.from_dict(columns)})
        return data_checks.find_problem(task, "default", "test")

    sts = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "score": [1.0, 2.0]}
    task: Any = mock_tasks.MockSTSTask()
    assert problem(task, **sts) is None
    assert problem(task, **{**sts, "sentence2": ["c", None]}) == "1 of 2 rows has a null sentence2 (first: row 1)"
    assert problem(task, **{**sts, "score": [None, None]}) == "2 of 2 rows have a null score (first: row 0)"
    assert "there is no column score" in str(problem(task, sentence1=["a"], sentence2=["b"]))
    assert problem(task, sentence1=[], sentence2=[], score=[]) == "there are no rows"
    task.dataset = DatasetDict({"dev": Dataset.from_dict(sts)})
    assert data_checks.find_problem(task, "default", "test") == "there is no such split; available: dev"
    task = mock_tasks.MockClassificationTask()
    assert problem(task, text=["a", "b"], label=[0, 1]) is None
    assert problem(task, text=["a", "b"], label=[0, None]) == "1 of 2 rows has a null label (first: row 1)"
    assert problem(task, text=[1, 2], label=[0, 1]) == "the column text of the rows has the type int64, not text"
    task.dataset = DatasetDict({"test": Dataset.from_dict({"text": ["a"], "label": [0]})})
    assert "there is no training split train" in str(data_checks.find_problem(task, "default", "test"))
    task = mock_tasks.MockSummarizationTask()
    good: dict[str, Any] = {
        "text": ["a"], "human_summaries": [["b", "c"]], "machine_summaries": [["d"]], "relevance": [[0.5]]
    }  # fmt: skip
    assert problem(task, **good) is None
    assert "a null machine_summaries" in str(problem(task, **{**good, "machine_summaries": [["d", None]]}))


@pytest.mark.filterwarnings("ignore")
def test_all_mock_tasks_of_mteb_pass_the_checks() -> None:
    checked = 0
    for name in dir(mock_tasks):
        kind = getattr(mock_tasks, name)
        if not name.startswith("Mock") or not isinstance(kind, type) or not hasattr(kind, "metadata"):
            continue
        if set(kind.metadata.modalities) != {"text"} or hasattr(kind.metadata, "tasks"):
            continue
        task = kind()
        task.load_data()
        if hasattr(task, "convert_v1_dataset_format_to_v2"):
            task.convert_v1_dataset_format_to_v2(num_proc=None)
        for split in task.eval_splits:
            for subset in task.hf_subsets:
                assert data_checks.find_problem(task, subset, split) is None, name
        checked += 1
    assert checked > 10


def test_the_kind_of_a_partial_failure_is_that_of_its_cause() -> None:
    error = PartialResultError({"subset de": DataError("no rows", "mend it")}, 2, "subsets")
    outer = FirstStageError("the first stage failed: ...")
    outer.__cause__ = error
    for one in (error, outer):
        assert (failure_from_exception(one, "T").kind, failure_from_exception(one, "T").advice) == ("data", "mend it")
