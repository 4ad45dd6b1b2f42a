"""Two-stage reranking in complete runs on real vLLM: results, their reuse, and invalid configurations."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import rerankers
from mteb_vllm import ConfigError, run
from mteb_vllm.pipelines.base import RunContext
from mteb_vllm.pipelines.rerank.first_stages import BM25, Oracle, Random
from mteb_vllm.pipelines.rerank.pipeline import Rerank
from mteb_vllm.preflight.command import check
from mteb_vllm.progress import Progress
from mteb_vllm.results.store import ResultsStore
from mteb_vllm.util.console import Console
from mteb_vllm.wrappers import VllmCrossEncoderWrapper, VllmEncoderReranker

pytestmark = pytest.mark.vllm

TASK = "StdlibDocsRetrieval"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that rerank the demo task with a small cross-encoder with random weights."""
    path = rerankers.small("bert", tmp_path_factory.mktemp("models"), 256)
    return [
        "pipeline=rerank", "tasks=demo_retrieval", "model=custom", "model.kind=cross_encoder", f"model.path={path}",
        "model.name=test/bert", "pipeline.top_k=3",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def reranker(small: list[str], minilm_args: dict[str, Any]) -> Any:
    path = next(word.removeprefix("model.path=") for word in small if word.startswith("model.path="))
    return VllmCrossEncoderWrapper(**(minilm_args | {"model": "test/bert", "path": path}))


@pytest.fixture
def stays_open(reranker: Any) -> None:
    """Keep the engine of several runs open: a run closes an engine that it has opened itself."""
    reranker.engine  # noqa: B018 - opens it if it is closed


def one(folder: Path, *overrides: str) -> Any:
    record: Any = run([*overrides, f"results.dir={folder}"], show=False)
    return record


def predictions(folder: Path) -> list[Path]:
    return sorted(folder.glob("predictions/*/*/experiments/*/*_predictions.json"))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, small: list[str], reranker: Any) -> tuple[Path, Any]:
    reranker.engine  # noqa: B018 - opens it
    folder = tmp_path_factory.mktemp("outputs")
    return folder, one(folder, *small)


def test_the_record_has_both_scores_the_gain_and_the_ceiling(first: tuple[Path, Any]) -> None:
    folder, record = first
    (task,) = record.tasks
    assert record.status == "ok", task.reason
    assert task.first_stage == pytest.approx(0.448, abs=5e-3)  # BM25
    assert 0 < task.main_score < task.ceiling < 1
    assert task.gain == pytest.approx(task.main_score - task.first_stage)
    assert (task.unit, task.candidates) == ("pairs", "first stage")
    content = json.loads((Path(record.output_dir) / "run.json").read_text())
    stored = content["tasks"][0]
    # A report computes the share of the possible gain from these three.
    assert (stored["first_stage"], stored["main_score"], stored["ceiling"]) == (
        task.first_stage,
        task.main_score,
        task.ceiling,
    )
    assert content["first_stage"]["kind"] == "bm25" and content["tasks"][0]["settings"] == record.fingerprint
    assert [Path(path) for path in content["tasks"][0]["predictions"]] == predictions(folder)
    assert content["settings"]["top_k"] == 3
    assert content["first_score"]["first_stage"] > 0.1, "retrieval is not other work"
    assert content["tasks"][0]["computed"] == content["tasks"][0]["texts"] > 2000
    prompt = content["tasks"][0]["prompts"]["pair"]
    assert prompt["example"] and prompt["key"] is None
    report = (Path(record.output_dir) / "report.md").read_text()
    assert "| gain | ceiling | share of ceiling | share of possible gain | pairs/s |" in report
    assert len(predictions(folder)) == 1
    (result,) = folder.glob(f"results/test__bert/*/experiments/*/{TASK}.json")
    assert result.parent.name == f"settings_{record.fingerprint}"


def test_a_repeated_run_computes_nothing(
    first: tuple[Path, Any], small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, record = first
    before = predictions(folder)[0].stat().st_mtime_ns
    again: Any = run([*small, f"results.dir={folder}"])
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("first", "reranked", "gain", "ceiling", "possible"))
    assert again.tasks[0].status == "cached" and again.engine is None and again.fingerprint == record.fingerprint
    scores = [(task.main_score, task.first_stage, task.ceiling) for task in (*record.tasks, *again.tasks)]
    assert scores[0] == scores[1]
    assert predictions(folder)[0].stat().st_mtime_ns == before


@pytest.mark.usefixtures("stays_open")
def test_results_depend_on_top_k_first_stage_and_score_template(first: tuple[Path, Any], small: list[str]) -> None:
    folder, record = first
    template = "'score_template.template=\"{{ messages[0].content }} [SEP] {{ messages[1].content }}\"'".strip("'")
    deeper = one(folder, *small[:-1], "pipeline.top_k=2")
    random = one(folder, *small, "pipeline/first_stage=random")
    templated = one(folder, *small, template)
    records = [record, deeper, random, templated]
    assert [other.tasks[0].status for other in records] == ["computed"] * 4
    assert len({other.fingerprint for other in records}) == 4
    assert len({other.tasks[0].main_score for other in records}) == 4
    assert len(predictions(folder)) == 2, "BM25's predictions are shared by three runs"
    assert random.tasks[0].first_stage < 0.01 and deeper.tasks[0].ceiling < record.tasks[0].ceiling
    assert templated.tasks[0].first_stage == record.tasks[0].first_stage
    for other, changed in zip(records[1:], ("pipeline.top_k=2", "pipeline/first_stage=random", template), strict=True):
        overrides = [text for text in small if text.split("=")[0] != changed.split("=")[0]]
        assert one(folder, *overrides, changed).tasks[0].status == "cached", other.overrides


@pytest.mark.slow
def test_the_demo_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record: Any = run(["experiment=rerank_demo", f"results.dir={tmp_path}"])
    text = capsys.readouterr().out
    assert record.status == "ok", record.tasks[0].reason
    assert all(word in text for word in ("first", "reranked", "gain", "ceiling", "possible"))
    row = next(line for line in text.splitlines() if line.startswith(TASK) and "%" in line).split()
    assert float(row[2]) == pytest.approx(0.448, abs=5e-3)
    assert row[4].startswith("+") and float(row[2]) < float(row[3]) < float(row[5]) < 1


@pytest.mark.slow
def test_a_matrix_computes_each_first_stage_once(tmp_path: Path, small: list[str]) -> None:
    overrides = [*small[:-1], "pipeline.top_k=1,2", "pipeline/first_stage=dense,bm25", f"results.dir={tmp_path}"]
    records: Any = run(overrides, multirun=True, show=False)
    assert [record.status for record in records] == ["ok"] * 4
    assert len(predictions(tmp_path)) == 2 and len({record.fingerprint for record in records}) == 4
    dense = [record for record in records if "pipeline/first_stage=dense" in record.overrides]
    assert [bool(record.first_stage.engine) for record in dense] == [True, False], (
        "the retriever's engine is opened once"
    )
    assert {"query", "document"} == {side.split(": ")[1] for side in dense[0].first_stage.prompts}
    assert dense[0].first_stage.work.computed > 2000 and dense[1].first_stage.work.computed == 0
    sweep = json.loads((Path(records[0].output_dir).parent / "sweep.json").read_text())
    assert (sweep["engines_opened"], sweep["children"]) == (2, 1), "the first stage was prefetched"
    report = (Path(records[0].output_dir).parent / "report.md").read_text()
    # Ceilings of only one or two candidates are below the first stage's score, so there is no share of a possible gain.
    assert "| first stage | reranked | gain | difference | ceiling | share of ceiling | pairs/s |" in report
    assert sum("%" in line for line in report.splitlines() if line.startswith("| ")) == 4
    assert dense[0].tasks[0].first_stage == pytest.approx(0.482, abs=5e-3)
    # The dense first stage's result is shared with an evaluation of the same model.
    evaluated = one(tmp_path, "tasks=demo_retrieval")
    assert evaluated.tasks[0].status == "cached"
    assert evaluated.tasks[0].main_score == dense[0].tasks[0].first_stage


def test_an_aggregate_is_reranked_part_by_part(tmp_path: Path, minilm: Any) -> None:
    from mteb.mocks import mock_tasks

    parts = [mock_tasks.MockRetrievalTask(), mock_tasks.MockMultilingualRetrievalTask()]
    for stage in (BM25(), Random(), Oracle()):
        outcome, again = (aggregate(tmp_path, minilm, parts, stage) for _ in range(2))
        assert outcome.status == "computed", outcome.reason
        assert outcome.first_stage is not None and 0 < outcome.main_score <= outcome.ceiling <= 1
        assert again.status == "cached" and again.first_stage == outcome.first_stage
        assert all(part._top_k == 1000 for part in parts), "shared parts are not changed"


def aggregate(folder: Path, minilm: Any, parts: list[Any], stage: Any) -> Any:
    from mteb.abstasks.aggregate_task_metadata import AggregateTaskMetadata
    from mteb.abstasks.aggregated_task import AbsTaskAggregate

    class Both(AbsTaskAggregate):
        metadata = AggregateTaskMetadata(
            name="Both", description="", reference=None, tasks=parts, main_score="ndcg_at_10", type="Retrieval",
            eval_splits=["test"], bibtex_citation="",
        )  # fmt: skip

    return reranked(folder, minilm, [Both()], stage)[0]


def reranked(folder: Path, minilm: Any, tasks: list[Any], stage: Any, out: Any = None) -> list[Any]:
    """Rerank mock tasks by cosine."""
    model = VllmEncoderReranker.from_spec(minilm.spec, minilm.prompts)
    progress = Progress(Console(file=out or io.StringIO(), width=200), len(tasks))
    return list(
        Rerank(top_k=2, scoring="cosine").run(RunContext(model, tasks, ResultsStore(folder), progress, stage=stage))
    )


def test_a_failed_first_stage_fails_the_task_with_its_reason(tmp_path: Path, small: list[str]) -> None:
    saved = tmp_path / "mine.json"
    saved.write_text(json.dumps({"mteb_model_meta": {"model_name": "a/b", "revision": "1"}, "default": {"test": {}}}))
    overrides = [*small, "pipeline/first_stage=saved", f"pipeline.first_stage.path={saved}"]
    record = one(tmp_path, *overrides)
    assert record.status == "failed" and "a different split or task" in record.tasks[0].reason
    assert record.engine is None, "no engine was opened for it"


@pytest.mark.slow
def test_memory_of_the_first_engine_is_released_before_the_second_opens(tmp_path: Path, small: list[str]) -> None:
    """Check the resident memory of the process tree while a reranker follows a dense first stage."""
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import json, psutil
from mteb_vllm import run
from mteb_vllm.engines import base as engine

def resident():
    me = psutil.Process()
    return sum(one.memory_info().rss for one in [me, *me.children(recursive=True)]) // 2**20

seen, start, close = [], engine._start, engine.Engine.close
def load(*args):
    seen.append(("opening", resident(), len(engine._open)))
    opened = start(*args)
    seen.append(("opened", resident(), len(engine._open)))
    return opened
def closing(self):
    there = self.llm is not None
    if there:
        seen.append(("closing", resident(), len(engine._open)))
    close(self)
    if there:
        seen.append(("closed", resident(), len(engine._open)))
engine._start, engine.Engine.close = load, closing
if __name__ == "__main__":
    # A model of 470 MB, so that its memory stands out from that kept by libraries.
    big = {str(tmp_path / "big")!r}
    overrides = {small!r} + ["pipeline/first_stage=dense", "model@pipeline.first_stage.model=custom"]
    overrides += [f"pipeline.first_stage.model.path={{big}}", "results.dir={tmp_path}"]
    record = run(overrides, show=False)
    print(json.dumps([seen, record.status, [task.reason for task in record.tasks]]))
"""
    )
    big_encoder(tmp_path / "big")
    env = {key: value for key, value in os.environ.items() if not key.startswith("VLLM_")}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=400, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    seen, status, reasons = json.loads(done.stdout.splitlines()[-1])
    assert status == "ok", reasons
    assert [(what, engines) for what, _, engines in seen[:6]] == [
        ("opening", 0), ("opened", 0), ("closing", 1), ("closed", 0), ("opening", 0), ("opened", 0)
    ]  # fmt: skip
    used = {what: memory for what, memory, _ in seen[:4]}
    assert used["closing"] - used["closed"] > 400, seen  # the weights are 470 MB
    assert seen[4][1] < used["closing"] - 400, seen


def big_encoder(folder: Path) -> None:
    """Save an encoder with 470 MB of weights, nearly all of them token embeddings, and one layer, so that it is fast."""
    import torch
    from transformers import BertConfig, BertModel

    tokenizer = rerankers.save_tokenizer(folder, "wordpiece", 256)
    torch.manual_seed(1)
    config = BertConfig(
        hidden_size=128, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128, vocab_size=960_000,
        max_position_embeddings=256, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)


@pytest.mark.slow
def test_a_killed_run_is_resumed(tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """After SIGKILL in the second stage of the second task, the first stage and the first task are not recomputed."""
    local = tmp_path / "work"
    write_local_task(local, "mteb/AskUbuntuDupQuestions", with_candidates=True)
    overrides = [text for text in small if not text.startswith("tasks")]
    overrides += [f"tasks.names=[AskUbuntuDupQuestions,{TASK}]", "pipeline.chunk_size=64"]
    env = {key: value for key, value in os.environ.items() if not key.startswith("VLLM_")}
    env |= {"HF_DATASETS_CACHE": str(tmp_path / "datasets")}

    def command(folder: Path) -> list[str]:
        return [sys.executable, "-m", "mteb_vllm", *overrides, f"results.dir={folder}"]

    killed = tmp_path / "killed"
    process = subprocess.Popen(
        command(killed),
        cwd=local,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("[1/2]"):
            break
    time.sleep(1.0)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert any("has its own candidates" in line for line in lines), lines
    (kept,) = predictions(killed)
    stamp = kept.stat().st_mtime_ns
    assert not list(killed.glob(f"results/test__bert/*/experiments/*/{TASK}.json")), "the run was killed too late"

    def scores(folder: Path) -> dict[str, Any]:
        found = folder.glob("results/test__bert/*/experiments/*/*.json")
        return {path.stem: json.loads(path.read_text())["scores"] for path in found if path.stem != "model_meta"}

    done = subprocess.run(command(killed), cwd=local, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"First stage: .*\(cached\)", done.stdout) and kept.stat().st_mtime_ns == stamp
    assert re.search(r"AskUbuntuDupQuestions: map_at_1000 .*\(cached\)", done.stdout)
    monkeypatch.chdir(local)
    undisturbed = one(tmp_path / "undisturbed", *overrides)
    assert undisturbed.status == "ok" and scores(killed) == scores(tmp_path / "undisturbed")


def write_local_task(root: Path, name: str, *, with_candidates: bool) -> None:
    """Write a small data set in the Hub's layout; in the working directory it takes precedence over the Hub."""
    folder = root / name
    folder.mkdir(parents=True)
    documents = {f"d{at}": text.replace("\n", " ") for at, text in enumerate(rerankers.texts()[:60])}
    queries = {f"q{at}": documents[f"d{at}"].split(".")[0] for at in range(12)}
    lists = {query: [f"d{(at + step) % 60}" for step in range(8)] for at, query in enumerate(queries)}
    rows = {
        "corpus": [{"_id": key, "title": "", "text": text} for key, text in documents.items()],
        "queries": [{"_id": key, "text": text} for key, text in queries.items()],
        "default": [{"query-id": query, "corpus-id": f"d{at}", "score": 1} for at, query in enumerate(queries)],
        "top_ranked": [{"query-id": query, "corpus-ids": ids} for query, ids in lists.items()],
    }
    configs = []
    for config, content in rows.items():
        if config == "top_ranked" and not with_candidates:
            continue
        (folder / f"{config}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        configs.append({"config_name": config, "data_files": [{"split": "test", "path": f"{config}.jsonl"}]})
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")


@pytest.mark.parametrize("with_candidates", [True, False])
def test_a_reranking_task_from_a_folder_in_the_hubs_layout(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch, with_candidates: bool
) -> None:
    write_local_task(tmp_path, "mteb/AskUbuntuDupQuestions", with_candidates=with_candidates)
    monkeypatch.chdir(tmp_path)
    record = one(tmp_path / "outputs", *small, "tasks.names=[AskUbuntuDupQuestions]")
    (task,) = record.tasks
    if with_candidates:
        assert task.status == "computed", task.reason
        assert (task.candidates, task.first_stage, task.ceiling, task.computed) == ("own", None, 1.0, 96)
        assert "own candidates" in (Path(record.output_dir) / "report.md").read_text()
        # The first stage does not matter.
        again = one(tmp_path / "outputs", *small, "tasks.names=[AskUbuntuDupQuestions]", "pipeline/first_stage=random")
        assert again.tasks[0].status == "cached"
    else:
        assert task.status == "failed" and "candidate lists (top_ranked)" in task.reason
        assert task.failure is not None
        assert f"put a copy of the data set into the folder {tmp_path}/mteb/AskUbuntu" in task.failure.advice


def test_mock_reranking_tasks_of_mteb(tmp_path: Path, minilm: Any) -> None:
    from mteb.mocks import mock_tasks

    tasks = [mock_tasks.MockRerankingTask(), mock_tasks.MockMultilingualRerankingTask(), mock_tasks.MockRetrievalTask()]
    out = io.StringIO()
    outcomes = reranked(tmp_path, minilm, tasks, BM25(), out)
    assert [outcome.status for outcome in outcomes] == ["computed"] * 3, [outcome.reason for outcome in outcomes]
    assert [outcome.candidates for outcome in outcomes] == ["own", "own", "first stage"]
    assert out.getvalue().count("has its own candidates: no first stage needed") == 2
    assert all(0 < outcome.main_score <= outcome.ceiling <= 1 for outcome in outcomes)


# Errors in the configuration


def mistakes(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        check(overrides)
    return str(error.value)


def test_a_template_without_the_document_is_refused(small: list[str]) -> None:
    text = mistakes(*small, 'score_template.template="{{ messages[0].content }}"')
    assert "does not contain the document" in text and "For example" in text
    assert "is not a valid jinja template" in mistakes(*small, 'score_template.template="{{ messages"')
    assert "cannot be read" in mistakes(*small, "score_template.file=nowhere.jinja")
    assert "both a template and a file" in mistakes(
        *small, "score_template=qwen3_reranker", 'score_template.template="{{ messages }}"'
    )


def test_templates_that_would_lose_or_change_a_text_are_refused(small: list[str]) -> None:
    def mistakes_of(text: str) -> str:
        return mistakes(*small, f"score_template.template='{text}'")

    valid = "{{ messages[0].content }} {{ messages[1].content }}"
    assert "Did you mean instruction?" in mistakes_of(valid + " {{ instructions }}")
    assert "'task_description' is undefined" in mistakes_of(valid + " {{ task_description }}")
    for change in (" | trim", " | tojson", " | lower", " | e", "[:500]"):
        assert "must contain the document exactly once and unchanged" in mistakes_of(
            f"{{{{ messages[0].content }}}} {{{{ messages[1].content{change} }}}}"
        )
    assert "must contain the document exactly once" in mistakes_of(valid + " {{ messages[1].content }}")
    for fine in (
        " {{ instruction }} {{ bos_token }}", " {% if tools is defined and tools %}x{% endif %}",
        " {% if tools %}x{% endif %}", ' {{ "I: " + instruction }}{{ instruction.strip() }}',
        " {% generation %}y{% endgeneration %}",
    ):  # fmt: skip
        assert check([*small, f"score_template.template='{valid}{fine}'"]), fine


def test_invalid_values_are_reported_without_a_crash(small: list[str]) -> None:
    assert "must be more than 0" in mistakes(*small, "pipeline.chunk_size=0")
    assert "must be more than 0" in mistakes("pipeline.chunk_size=-1")
    stage = [*small, "pipeline/first_stage=saved"]
    assert "no such file or folder" in mistakes(*stage, "pipeline.first_stage.path='~nosuchuser/x'")
    assert "no such file or folder" in mistakes(*stage, f"pipeline.first_stage.path={'x' * 300}")
    assert "cannot be read" in mistakes(*small, "score_template.file='~nosuchuser/x.jinja'")
    for name in ("_Configured", "METHOD"):
        target = f"pipeline.first_stage._target_=mteb_vllm.pipelines.rerank.first_stages.{name}"
        assert "is not a first stage class" in mistakes(*small, target)
    text = mistakes(*small, "pipeline.first_stage.stemmer_language=engilsh")
    assert "Did you mean pipeline.first_stage.stemmer_language=english?" in text
    assert "must be 1 or less" in mistakes(*small, "pipeline.first_stage.b=7")
    assert "has no head that scores a pair" in mistakes("model=minilm", "model.kind=cross_encoder", *small[:2])
    text = mistakes(*small, "pipeline/first_stage=dense", "+pipeline.first_stage.prompts.STS12=x")
    assert "pipeline.first_stage.prompts: none of its keys (STS12) applies" in text


def test_rerankers_that_cannot_score_are_refused(small: list[str], tmp_path: Path) -> None:
    def with_model(name: str, *more: str) -> list[str]:
        path = rerankers.small(name, tmp_path / name)
        return [text for text in small if not text.startswith("model.path")] + [f"model.path={path}", *more]

    text = mistakes(*with_model("two_labels"))
    assert "outputs 2 scores per pair" in text and "use a model with one label" in text
    assert "engine.hf_overrides must name the answer tokens" in mistakes(*with_model("qwen3"))
    ready = (
        "engine.hf_overrides={architectures: [Qwen3ForSequenceClassification], "
        'classifier_from_token: ["no", "yes"], method: from_2_way_softmax}'
    )
    text = mistakes(*with_model("qwen3"), ready)
    assert "a language model needs a score template" in text and "score_template=qwen3_reranker" in text
    assert check([*with_model("qwen3"), ready, "score_template=qwen3_reranker"])
    assert check([*with_model("qwen3"), ready, "score_template=none"]), "an explicit choice is accepted"
    original = 'engine.hf_overrides={classifier_from_token: ["no", "yes"], is_original_qwen3_reranker: true}'
    assert check([*with_model("qwen3"), original, "score_template=qwen3_reranker"])
    assert "has position embeddings for only 256 tokens" in mistakes(*with_model("roberta"), "engine.max_model_len=258")


def test_a_users_own_dense_first_stage_is_a_file(small: list[str], tmp_path: Path) -> None:
    group = tmp_path / "pipeline" / "first_stage"
    group.mkdir(parents=True)
    (group / "mine.yaml").write_text("defaults:\n  - dense\n  - override /model@model: minilm_hub\n")
    sweep = [*small, "pipeline/first_stage=bm25,mine"]
    with pytest.raises(ConfigError) as error:
        check(sweep, multirun=True, config_dir=str(tmp_path))
    (mistake,) = error.value.mistakes  # the model of the user's file is not in the cache, and the Hub cannot be reached
    assert mistake.where == "pipeline.first_stage.model.name=sentence-transformers/all-MiniLM-L6-v2"
    with pytest.raises(ConfigError) as error:
        check([*sweep, "model@pipeline.first_stage.model=e5_small"], multirun=True, config_dir=str(tmp_path))
    assert "only pipeline/first_stage=dense has this" in str(error.value)


def test_kinds_of_models_and_tasks_must_fit_the_pipeline(small: list[str]) -> None:
    assert "pipeline.scoring=cosine" in mistakes("pipeline=rerank", "tasks=demo_retrieval")
    assert "pipeline.scoring=cross_encoder" in mistakes(*small, "pipeline.scoring=cosine")
    assert "StdlibDocsClustering (Clustering)" in mistakes("pipeline=rerank", "pipeline.scoring=cosine")
    assert "from 1 to 1000" in mistakes(*small[:-1], "pipeline.top_k=1001")
    assert "is for cross-encoders" in mistakes("score_template=qwen3_reranker")
    assert "but its score template does not use {{ instruction }}" in mistakes(*small, 'prompts.query="q: "')
    assert "is part of its score template" in mistakes(*small, "instruction=qwen")
    assert "pipeline/first_stage=dense" in mistakes(*small, "pipeline.first_stage=dense")
    assert "Add: pipeline=rerank" in mistakes("pipeline/first_stage=bm25", "tasks=demo_retrieval")
    text = mistakes(*small, "pipeline/first_stage=dense", "pipeline.first_stage.engine.dtype=flaot32")
    assert "Did you mean pipeline.first_stage.engine.dtype=float32" in text
    text = mistakes(*small, "pipeline/first_stage=dense", "model@pipeline.first_stage.model=ms_marco_minilm")
    assert "pipeline.first_stage" in text
    assert "no such file or folder" in mistakes(
        *small, "pipeline/first_stage=saved", "pipeline.first_stage.path=nowhere"
    )
