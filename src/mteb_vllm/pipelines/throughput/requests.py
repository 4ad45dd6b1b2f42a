"""What is asked of an engine while it is timed: texts, or pairs, of the lengths that were chosen."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mteb_vllm.catalogue import TaskInfo
from mteb_vllm.engines.base import Engine
from mteb_vllm.inference.encoding import texts_without_tokens
from mteb_vllm.inference.pairs import PairTokenizer
from mteb_vllm.models.prompts import Prompts
from mteb_vllm.models.score_templates import ScoreTemplate
from mteb_vllm.pipelines.throughput.workload import draw_lengths, pairs_of_length, texts_of_length
from mteb_vllm.results.measurements import Unit

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

# A query's share of a pair, and the pairs that share one, as rerankers meet them.
_QUERY_TOKENS, _PER_QUERY = 16, 10
_SIDES = ("query", "document")


@dataclass(frozen=True)
class Workload:
    """Which texts or pairs an engine is timed on.

    Attributes:
        requests: How many different ones.
        lengths: "fixed": every one has exactly `tokens` tokens; "varied": drawn, with that mean; "tasks": a sample of tasks'
            own texts.
        tokens: Tokens of a text or pair as the engine is given it, prompt and special tokens included.
        distribution: Of varied lengths.
        spread: Of a lognormal distribution: the standard deviation of the lengths' logarithms.
        side: Whose prompt stands in front of the texts, where they are not tasks' own.
        seed: Of the texts.
    """

    requests: int
    lengths: Literal["fixed", "varied", "tasks"]
    tokens: int
    distribution: Literal["lognormal", "uniform"]
    spread: float
    side: Literal["query", "document"]
    seed: int

    @property
    def task(self) -> TaskInfo:
        """The metadata by which prompts are chosen for texts that are no task's: one side of some retrieval task."""
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
    """Texts or pairs, all different.

    Attributes:
        texts: The texts with their prompts; of pairs, the queries.
        documents: The second texts of pairs; None where texts are embedded.
        templates: For each pair the jinja template that it is rendered by, its task's instruction in it; pairs with the same
            one follow each other, since a call has one.
    """

    texts: list[str]
    documents: list[str] | None = None
    templates: Sequence[str | None] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def with_tokens(self, tokenizer: Any) -> Requests:
        """Return those that hold a token: no engine takes others."""
        if self.documents is not None:
            return self
        blank = texts_without_tokens(tokenizer, self.texts)
        return replace(self, texts=[text for at, text in enumerate(self.texts) if at not in blank])

    @property
    def unit(self) -> Unit:
        """What is counted."""
        return "texts" if self.documents is None else "pairs"

    def ask(self, engine: Engine, rows: Sequence[int]) -> list[int]:
        """Ask an engine for some of them, in one call but where their templates differ; return the tokens of each."""
        if self.documents is None:
            return engine.embed([self.texts[row] for row in rows])[1]
        lengths = []
        for template, alike in itertools.groupby(rows, key=lambda row: self.templates[row]):
            pairs = [(self.texts[row], self.documents[row]) for row in alike]
            lengths += engine.score(*map(list, zip(*pairs, strict=True)), template=template).lengths
        return lengths


def made_requests(engine: Engine, workload: Workload, prompts: Prompts, template: ScoreTemplate | None) -> Requests:
    """Texts or pairs of exactly the lengths that were chosen, as the engine reads them.

    Args:
        engine: An open engine.
        workload: Lengths, their number, and the side.
        prompts: What stands in front of texts; of a reranker, its instructions.
        template: What a reranker reads pairs through; None for other models.

    Raises:
        ValueError: if there is no room for such texts.
    """
    context, task = engine.max_model_len, workload.task
    # The shortest that is still a text: special tokens and a word, or a pair's two.
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
    read = template.with_instruction(_instruction(template, prompts, task))
    reader = PairTokenizer(engine, read)

    def count(queries: list[str], documents: list[str]) -> list[int]:
        return reader.count(*template.with_prefixes(queries, documents))

    least += count(["a"], ["a"])[0]
    lengths = draw_lengths(kind, workload.requests, workload.tokens, least=least, **drawn)
    queries, documents = pairs_of_length(
        count, engine.tokenizer, lengths, query_tokens=_QUERY_TOKENS, per_query=_PER_QUERY, seed=workload.seed
    )
    return Requests(*template.with_prefixes(queries, documents), [read] * len(queries))


def _instruction(template: ScoreTemplate, prompts: Prompts, task: Any) -> str:
    return prompts.instruction(task, "query").text if template.takes_instruction else ""


@dataclass
class _Listener:
    """An encoder that only takes down what tasks ask of it, and answers with noise.

    Attributes:
        prompts: What stands in front of the texts.
        texts: For each task and side its texts.
        metadata: The metadata of the tasks.
    """

    prompts: Prompts
    texts: dict[tuple[str, str | None], list[str]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def made(self) -> Any:
        from mteb.models.abs_encoder import AbsEncoder
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        from mteb_vllm.inference.encoding import loader_texts, replace_surrogates

        listener, noise = self, np.random.default_rng(0)

        class Encoder(AbsEncoder):  # type: ignore[misc, unused-ignore]
            mteb_model_meta = ModelMeta.create_empty(
                {"name": "mteb-vllm/listener", "revision": "1", "similarity_fn_name": ScoringFunction.COSINE}
            )

            def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **_: Any) -> Any:
                side = prompt_type.value if prompt_type else None
                texts, n_texts = loader_texts(inputs)
                prefix = listener.prompts.prefix(task_metadata, prompt_type).text
                listener.metadata[task_metadata.name] = task_metadata
                said = listener.texts.setdefault((task_metadata.name, side), [])
                said.extend(replace_surrogates(prefix + text) for text in texts)
                return noise.standard_normal((n_texts, 8), dtype=np.float32)

        return Encoder()


def requests_of_tasks(
    tasks: Sequence[AbsTask], workload: Workload, prompts: Prompts, template: ScoreTemplate | None
) -> Requests:
    """A sample of the different texts that tasks ask for, as their prompts have them; of a reranker, queries with documents.

    Args:
        tasks: mteb's tasks.
        workload: How many, and by which seed.
        prompts: See `made_requests`.
        template: See `made_requests`.

    Raises:
        ValueError: if tasks for a reranker have no queries and documents.
    """
    from mteb_vllm.pipelines import mteb_run
    from mteb_vllm.results.store import ResultsStore

    listener = _Listener(prompts if template is None else Prompts())
    with tempfile.TemporaryDirectory(prefix="mteb-vllm-") as folder:
        for task in tasks:
            mteb_run.compute(listener.made(), task, ResultsStore(folder), reuse=False)
    draw = np.random.default_rng(workload.seed)
    if template is None:
        different = list(dict.fromkeys(text for texts in listener.texts.values() for text in texts))
        chosen = draw.permutation(len(different))[: workload.requests]
        return Requests([different[at] for at in chosen])
    pools = []
    for name, task in listener.metadata.items():
        queries, documents = (list(dict.fromkeys(listener.texts.get((name, side), []))) for side in _SIDES)
        read = template.with_instruction(_instruction(template, prompts, task))
        pools.append((queries, documents, read))
    sizes = [len(queries) * len(documents) for queries, documents, _ in pools]
    if not sum(sizes):
        raise ValueError("a reranker is timed on tasks with queries and documents: tasks=demo_retrieval")
    pairs = draw.choice(sum(sizes), min(workload.requests, sum(sizes)), replace=False)
    pairs.sort()  # a query's pairs follow each other, as they do when it is reranked
    rows: list[tuple[str, str, str | None]] = []
    first = 0
    for (queries, documents, read), size in zip(pools, sizes, strict=True):
        for at in pairs[(pairs >= first) & (pairs < first + size)] - first:
            rows.append((queries[at // len(documents)], documents[at % len(documents)], read))
        first += size
    chosen_queries, chosen_documents, templates = map(list, zip(*rows, strict=True))
    return Requests(*template.with_prefixes(chosen_queries, chosen_documents), templates)
