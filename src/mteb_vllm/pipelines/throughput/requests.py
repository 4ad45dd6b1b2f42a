"""The requests that an engine is timed on: texts or pairs, of chosen lengths or sampled from tasks."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mteb_vllm.catalogue import TaskInfo
from mteb_vllm.engines.base import Engine
from mteb_vllm.inference.encoding import run_texts, texts_without_tokens
from mteb_vllm.inference.pairs import PairTokenizer
from mteb_vllm.inference.scoring import run_pairs
from mteb_vllm.inference.token_feed import text_feed
from mteb_vllm.models.prompts import Prompts
from mteb_vllm.models.score_templates import ScoreTemplate
from mteb_vllm.pipelines.throughput.workload import draw_lengths, pairs_of_length, texts_of_length
from mteb_vllm.results.measurements import Unit

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

# Tokens of a pair's query, and consecutive pairs that share a query, as is typical for reranking.
_QUERY_TOKENS, _PER_QUERY = 16, 10
# Pairs of each template that are tokenised both by the engine and by us, to compare.
_CHECKED = 4
_SIDES = ("query", "document")


@dataclass(frozen=True)
class Workload:
    """The description of the texts or pairs that an engine is timed on; see the fields of `Throughput`."""

    requests: int
    lengths: Literal["fixed", "varied", "tasks"]
    tokens: int
    distribution: Literal["lognormal", "uniform"]
    spread: float
    side: Literal["query", "document"]
    seed: int

    @property
    def task(self) -> TaskInfo:
        """A placeholder retrieval task with one side, by which prompts are chosen for texts that do not come from tasks."""
        return TaskInfo(
            name="throughput",
            type="Retrieval",
            modalities=("text",),
            languages=(),
            subsets={},
            splits=(),
            dataset_path="",
            dataset_revision="",
            prompt=None,
            main_score="",
            sides=(self.side,),
        )


@dataclass(frozen=True)
class Requests:
    """Distinct texts or pairs.

    Attributes:
        texts: The texts with their prompts; for pairs, the queries.
        documents: The documents of pairs; None for texts.
        templates: The Jinja template of each pair, including its task's instruction. Pairs with the same template are
            consecutive, since a call of the engine takes only one.
    """

    texts: list[str]
    documents: list[str] | None = None
    templates: Sequence[str | None] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def with_tokens(self, tokenizer: Any) -> Requests:
        """Return only the texts that have at least one token, as engines require; pairs always do."""
        if self.documents is not None:
            return self
        blank = texts_without_tokens(tokenizer, self.texts)
        return replace(self, texts=[text for at, text in enumerate(self.texts) if at not in blank])

    @property
    def unit(self) -> Unit:
        """The unit of a request."""
        return "texts" if self.documents is None else "pairs"

    def check_tokens(self, engine: Engine) -> None:
        """Find out whether the engine can be given token ids for these requests, which takes time that is not its own."""
        if self.documents is None:
            text_feed(engine, self.texts)
            return
        for template, alike in itertools.groupby(range(len(self)), key=lambda row: self.templates[row]):
            rows = list(alike)[:_CHECKED]
            PairTokenizer(engine, template).feed(
                [self.texts[row] for row in rows], [self.documents[row] for row in rows]
            )

    def run(self, engine: Engine, rows: Sequence[int]) -> list[int]:
        """Run some requests as evaluations do, in one call per template; return the number of tokens of each."""
        if self.documents is None:
            return run_texts(engine, [self.texts[row] for row in rows])
        lengths = []
        for template, alike in itertools.groupby(rows, key=lambda row: self.templates[row]):
            pairs = [(self.texts[row], self.documents[row]) for row in alike]
            queries, documents = map(list, zip(*pairs, strict=True))
            lengths += run_pairs(engine, queries, documents, template)
        return lengths


def make_requests(engine: Engine, workload: Workload, prompts: Prompts, template: ScoreTemplate | None) -> Requests:
    """Return generated texts or pairs of exactly the chosen lengths.

    Args:
        engine: An open engine.
        workload: The lengths, their number, and the side.
        prompts: The prompts; for a reranker, its instructions.
        template: The score template of a reranker; None for other models.

    Raises:
        ValueError: if such texts cannot be made.
    """
    context, task = engine.max_model_len, workload.task
    # The shortest possible lengths: special tokens and a word, or a query and a word.
    least = 4 if template is None else _QUERY_TOKENS + 5
    drawn: dict[str, Any] = {
        "distribution": workload.distribution,
        "spread": workload.spread,
        "limit": context,
        "seed": workload.seed,
    }
    kind: Literal["fixed", "varied"] = "fixed" if workload.lengths == "fixed" else "varied"
    if template is None:
        prefix = prompts.prefix(task, workload.side).text
        least += len(engine.tokenizer(prefix, add_special_tokens=False)["input_ids"]) if prefix else 0
        lengths = draw_lengths(kind, workload.requests, workload.tokens, least=least, **drawn)
        return Requests(
            [prefix + text for text in texts_of_length(engine.tokenizer, lengths, prefix=prefix, seed=workload.seed)]
        )
    rendered = template.with_instruction(_instruction(template, prompts, task))
    reader = PairTokenizer(engine, rendered)

    def count(queries: list[str], documents: list[str]) -> list[int]:
        return reader.count(*template.with_prefixes(queries, documents))

    least += count(["a"], ["a"])[0]
    lengths = draw_lengths(kind, workload.requests, workload.tokens, least=least, **drawn)
    queries, documents = pairs_of_length(
        count, engine.tokenizer, lengths, query_tokens=_QUERY_TOKENS, per_query=_PER_QUERY, seed=workload.seed
    )
    return Requests(*template.with_prefixes(queries, documents), [rendered] * len(queries))


def _instruction(template: ScoreTemplate, prompts: Prompts, task: Any) -> str:
    return prompts.instruction(task, "query").text if template.takes_instruction else ""


@dataclass
class _TextCollector:
    """Collects the texts that tasks encode, through an encoder that returns random embeddings.

    Attributes:
        prompts: The prompts prefixed to the texts.
        texts: The texts by task and side.
        metadata: The metadata of the tasks by name.
    """

    prompts: Prompts
    texts: dict[tuple[str, str | None], list[str]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def encoder(self) -> Any:
        """Return an mteb encoder whose texts are collected here."""
        from mteb.models.abs_encoder import AbsEncoder
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        from mteb_vllm.inference.encoding import loader_texts, replace_surrogates

        collector, noise = self, np.random.default_rng(0)

        class Encoder(AbsEncoder):  # type: ignore[misc, unused-ignore]
            mteb_model_meta = ModelMeta.create_empty(
                {"name": "mteb-vllm/listener", "revision": "1", "similarity_fn_name": ScoringFunction.COSINE}
            )

            def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **_: Any) -> Any:
                side = prompt_type.value if prompt_type else None
                texts, n_texts = loader_texts(inputs)
                prefix = collector.prompts.prefix(task_metadata, prompt_type).text
                collector.metadata[task_metadata.name] = task_metadata
                collected = collector.texts.setdefault((task_metadata.name, side), [])
                collected.extend(replace_surrogates(prefix + text) for text in texts)
                return noise.standard_normal((n_texts, 8), dtype=np.float32)

        return Encoder()


def sample_requests(
    tasks: Sequence[AbsTask], workload: Workload, prompts: Prompts, template: ScoreTemplate | None
) -> Requests:
    """Return a sample of the distinct texts of tasks, with prompts; for a reranker, of pairs of their queries and documents.

    Args:
        tasks: The mteb tasks.
        workload: The number of requests, and the seed.
        prompts: See `make_requests`.
        template: See `make_requests`.

    Raises:
        ValueError: if the model is a reranker and no task has queries and documents.
    """
    from mteb_vllm.pipelines import mteb_run
    from mteb_vllm.results.store import ResultsStore

    collector = _TextCollector(prompts if template is None else Prompts())
    with tempfile.TemporaryDirectory(prefix="mteb-vllm-") as folder:
        for task in tasks:
            mteb_run.compute(collector.encoder(), task, ResultsStore(folder), reuse=False)
    draw = np.random.default_rng(workload.seed)
    if template is None:
        distinct = list(dict.fromkeys(text for texts in collector.texts.values() for text in texts))
        chosen = draw.permutation(len(distinct))[: workload.requests]
        return Requests([distinct[at] for at in chosen])
    pools = []
    for name, task in collector.metadata.items():
        queries, documents = (list(dict.fromkeys(collector.texts.get((name, side), []))) for side in _SIDES)
        rendered = template.with_instruction(_instruction(template, prompts, task))
        pools.append((queries, documents, rendered))
    sizes = [len(queries) * len(documents) for queries, documents, _ in pools]
    if not sum(sizes):
        raise ValueError("a reranker needs tasks with queries and documents, such as tasks=demo_retrieval")
    pairs = draw.choice(sum(sizes), min(workload.requests, sum(sizes)), replace=False)
    pairs.sort()  # pairs of a query are consecutive, as in reranking
    rows: list[tuple[str, str, str | None]] = []
    first = 0
    for (queries, documents, rendered), size in zip(pools, sizes, strict=True):
        for at in pairs[(pairs >= first) & (pairs < first + size)] - first:
            rows.append((queries[at // len(documents)], documents[at % len(documents)], rendered))
        first += size
    chosen_queries, chosen_documents, templates = map(list, zip(*rows, strict=True))
    return Requests(*template.with_prefixes(chosen_queries, chosen_documents), templates)
