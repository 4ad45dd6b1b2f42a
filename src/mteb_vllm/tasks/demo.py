"""The built-in default tasks (`tasks=demo`), made from the docstrings of Python's standard library.

This is real text that every machine already has, so a first run needs no download. There are three ordinary mteb tasks:

==========================  =========================================================  ==========================
task                        goal                                                       main score, chance level
==========================  =========================================================  ==========================
`StdlibDocsRetrieval`       retrieve the body of a docstring, among the bodies of all  ndcg_at_10, below 0.01
                            docstrings, by its summary line
`StdlibDocsClassification`  predict from a summary line which of 20 packages it is in  accuracy, 0.05
`StdlibDocsClustering`      group whole docstrings by the 10 modules they are in       v_measure, about 0.05
==========================  =========================================================  ==========================

The recipe, version `RECIPE`:

- Sources: the modules in `sys.stdlib_module_names` and their submodules, except those with a part of the path that starts
  with an underscore or is `test` or `tests`. Files are parsed, never imported. The packages in `DETACHED` are excluded,
  since distributions ship the same Python with or without them.
- Texts: the docstrings (`inspect.cleandoc`) of functions, classes and methods with a public path. The first paragraph,
  joined into one line, is the summary; the rest is the body.
- Retrieval: the documents are the distinct bodies of `MIN_BODY_WORDS` to `MAX_BODY_WORDS` words (the few longer ones
  would take a third of the time). The queries are their summaries of `MIN_SUMMARY_WORDS` to `MAX_SUMMARY_WORDS` words,
  except those repeated in one of their own documents. A summary with several bodies is one query with several relevant
  documents; a body with several summaries is one document. Bodies without a suitable summary remain as distractors.
  Docstrings without a body are not documents, since they often answer a query better than the relevant body.
- Classification: the `N_PACKAGES` packages with the most unique summaries (a summary that occurs in two packages has no
  correct label), `N_TRAIN` + `N_TEST` summaries of each.
- Clustering: the `N_MODULES` modules with the most unique docstrings, `N_PER_MODULE` docstrings of each. Classification
  and clustering use only texts of at least `MIN_SUMMARY_WORDS` words.
- Samples consist of the texts with the lowest hashes, so they depend on no seed and no order of files, and similar
  versions of Python share most of them.

The dataset revision consists of the recipe's version, Python's version and a hash of all source files, so equal revisions
imply equal texts. The reverse does not hold, since a changed comment changes the revision as well; hashing the texts
themselves would need a second of parsing wherever a task is only named.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTask, AbsTaskClassification, AbsTaskClustering, AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata

from mteb_vllm.util.garbage import garbage_collection_paused

__all__ = [
    "TASKS",
    "Docstring",
    "StdlibDocsClassification",
    "StdlibDocsClustering",
    "StdlibDocsRetrieval",
    "docstrings",
    "statistics",
]

RECIPE = "v1"  # raise it with every change below that affects a text, a label or a score
DETACHED = frozenset({"distutils", "ensurepip", "idlelib", "lib2to3", "test", "tkinter", "turtledemo"})
MIN_SUMMARY_WORDS, MAX_SUMMARY_WORDS = 3, 30
MIN_BODY_WORDS, MAX_BODY_WORDS = 8, 100
N_PACKAGES, N_TRAIN, N_TEST = 20, 20, 25
N_MODULES, N_PER_MODULE = 10, 50


class Docstring(NamedTuple):
    """A docstring: its location and its two parts; `body` is empty if there is only a summary."""

    module: str
    name: str
    line: int
    summary: str
    body: str

    @property
    def package(self) -> str:
        """The top-level package that defines it."""
        return self.module.partition(".")[0]

    @property
    def text(self) -> str:
        """Both parts as one text."""
        return f"{self.summary}\n\n{self.body}".strip()

    @property
    def place(self) -> str:
        """A unique id; it includes the line, since a property and its setter have the same name."""
        return f"{self.module}.{self.name}:{self.line}"


@cache
def _sources() -> dict[str, Path]:
    """Return module name -> source file, sorted by name; empty if Python was installed without sources."""
    root = Path(sysconfig.get_path("stdlib"))
    found = {}
    for top in sys.stdlib_module_names - DETACHED:
        for path in (root / f"{top}.py", *(root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            if path.is_file() and not any(part.startswith("_") or part in ("test", "tests") for part in parts):
                found[".".join(parts)] = path
    return dict(sorted(found.items()))


@cache
def _revision() -> str:
    digest = hashlib.sha256()
    for module, path in _sources().items():
        digest.update(module.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return f"{RECIPE}-py{platform.python_version()}-{digest.hexdigest()[:12]}"


def _public(node: ast.AST, path: tuple[str, ...] = ()) -> Iterator[tuple[str, int, str]]:
    """Yield name, line and docstring of each public definition below `node`, in the order of the file."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if child.name.startswith("_"):
                continue
            here = (*path, child.name)
            if text := (ast.get_docstring(child) or "").strip():
                yield ".".join(here), child.lineno, text
            if isinstance(child, ast.ClassDef):
                yield from _public(child, here)
        elif isinstance(child, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            yield from _public(child, path)


@cache
def docstrings() -> tuple[Docstring, ...]:
    """Return all docstrings of the recipe, by module and line (takes about a second, once per process).

    Raises:
        FileNotFoundError: if this Python was installed without the sources of its standard library.
    """
    if not _sources():
        raise FileNotFoundError(
            "The demo tasks are made from the docstrings of Python's standard library, but this Python installation has "
            f"no source files in {sysconfig.get_path('stdlib')}. Use one that has them, or other tasks, such as tasks=sts12."
        )
    found = []
    with garbage_collection_paused():
        for module, path in _sources().items():
            for name, line, text in _public(ast.parse(path.read_bytes())):
                summary, _, body = text.partition("\n\n")
                found.append(Docstring(module, name, line, " ".join(summary.split()), body.strip()))
    return tuple(found)


def _normal(text: str) -> str:
    """Return a text without differences in case, white space and trailing full stops."""
    return " ".join(text.split()).casefold().rstrip(".")


def _largest_classes(labelled: Iterable[tuple[str, str]], n_classes: int, size: int) -> dict[str, list[str]]:
    """Return the labels with the most unique texts, and up to `size` of these texts for each, from (label, text) pairs."""
    labels: dict[str, set[str]] = defaultdict(set)
    texts: dict[str, str] = {}
    for label, text in labelled:
        key = _normal(text)
        if len(key.split()) >= MIN_SUMMARY_WORDS:
            labels[key].add(label)
            texts.setdefault(key, text)
    classes: dict[str, list[str]] = defaultdict(list)
    for key in sorted(texts, key=lambda key: hashlib.sha256(key.encode()).digest()):
        if len(labels[key]) == 1:
            classes[min(labels[key])].append(texts[key])
    largest = sorted(classes, key=lambda label: (-len(classes[label]), label))[:n_classes]
    return {label: classes[label][:size] for label in sorted(largest)}


def _rows(classes: dict[str, list[str]], text_column: str, label_column: str) -> Dataset:
    pairs = [(text, label) for label, texts in classes.items() for text in texts]
    return Dataset.from_dict({text_column: [text for text, _ in pairs], label_column: [label for _, label in pairs]})


def _metadata(**fields: Any) -> TaskMetadata:
    return TaskMetadata(
        dataset={"path": "mteb-vllm/stdlib-docs", "revision": _revision()},
        reference="https://docs.python.org/3/library/",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        modalities=["text"],
        date=("1991-02-20", "2026-11-22"),
        domains=["Programming", "Written"],
        license="https://docs.python.org/3/license.html",
        annotations_creators="derived",
        dialect=[],
        sample_creation="found",
        bibtex_citation="",
        **fields,
    )


class StdlibDocsRetrieval(AbsTaskRetrieval):
    """Retrieve the body of a docstring by its summary line."""

    metadata = _metadata(
        name="StdlibDocsRetrieval",
        description="Find the documentation of a function, class or method of the standard library by its summary.",
        type="Retrieval",
        category="t2t",
        task_subtypes=["Code retrieval"],
        main_score="ndcg_at_10",
        prompt={"query": "Given the summary of a Python function, class or method, retrieve its documentation"},
    )

    def load_data(self, num_proc: int | None = None, **kwargs: object) -> None:
        """Build queries from the summaries and documents from the bodies."""
        if self.data_loaded:
            return
        corpus: dict[str, Docstring] = {}
        queries: dict[str, Docstring] = {}
        relevant: dict[str, set[str]] = defaultdict(set)
        for doc in docstrings():
            body, summary = _normal(doc.body), _normal(doc.summary)
            if not MIN_BODY_WORDS <= len(body.split()) <= MAX_BODY_WORDS:
                continue
            corpus.setdefault(body, doc)
            if MIN_SUMMARY_WORDS <= len(summary.split()) <= MAX_SUMMARY_WORDS:
                queries.setdefault(summary, doc)
                relevant[summary].add(body)
        queries = {
            summary: doc for summary, doc in queries.items() if not any(summary in body for body in relevant[summary])
        }
        split = RetrievalSplitData(
            corpus=Dataset.from_list([{"id": doc.place, "text": doc.body} for doc in corpus.values()]),
            queries=Dataset.from_list([{"id": f"q:{doc.place}", "text": doc.summary} for doc in queries.values()]),
            relevant_docs={
                f"q:{doc.place}": {corpus[body].place: 1 for body in sorted(relevant[summary])}
                for summary, doc in queries.items()
            },
            top_ranked=None,
        )
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class StdlibDocsClassification(AbsTaskClassification):
    """Predict from a summary line which package of the standard library it is in."""

    metadata = _metadata(
        name="StdlibDocsClassification",
        description="Tell from a summary line which package of Python's standard library it documents.",
        type="Classification",
        category="t2c",
        task_subtypes=["Topic classification"],
        main_score="accuracy",
        prompt="Classify the summary of a Python function, class or method by the package that defines it",
    )

    def load_data(self, num_proc: int | None = None, **kwargs: object) -> None:
        """Build the training and test texts from the largest packages."""
        if self.data_loaded:
            return
        classes = _largest_classes(((doc.package, doc.summary) for doc in docstrings()), N_PACKAGES, N_TRAIN + N_TEST)
        self.dataset = DatasetDict(
            train=_rows({label: texts[:N_TRAIN] for label, texts in classes.items()}, "text", "label"),
            test=_rows({label: texts[N_TRAIN:] for label, texts in classes.items()}, "text", "label"),
        )
        self.data_loaded = True


class StdlibDocsClustering(AbsTaskClustering):
    """Group docstrings by the modules they are in."""

    max_fraction_of_documents_to_embed = None
    # The number of texts drawn with replacement per experiment. mteb's default of 16,384 gives the same score with eight
    # times the k-means work; drawing only as many as there are texts leaves so few distinct ones that random vectors score
    # 0.08 instead of 0.05.
    max_documents_per_cluster = 4 * N_MODULES * N_PER_MODULE
    metadata = _metadata(
        name="StdlibDocsClustering",
        description="Group docstrings of Python's standard library by the module that they are in.",
        type="Clustering",
        category="t2c",
        task_subtypes=["Thematic clustering"],
        main_score="v_measure",
        prompt="Identify the Python module that a function, class or method belongs to by its documentation",
    )

    def load_data(self, num_proc: int | None = None, **kwargs: object) -> None:
        """Build one set from the texts of the largest modules."""
        if self.data_loaded:
            return
        classes = _largest_classes(((doc.module, doc.text) for doc in docstrings()), N_MODULES, N_PER_MODULE)
        self.dataset = DatasetDict(test=_rows(classes, "sentences", "labels"))
        self.data_loaded = True


TASKS: dict[str, type[AbsTask]] = {
    task.metadata.name: task for task in (StdlibDocsRetrieval, StdlibDocsClassification, StdlibDocsClustering)
}


def statistics(task: type[AbsTask]) -> dict[str, dict[str, object]] | None:
    """Return a demo task's descriptive statistics, in the format of the files that mteb ships for its own tasks.

    Args:
        task: One of `TASKS`.

    Returns:
        split -> statistics, including the training split; None if they cannot be computed.
    """
    made = task()
    splits = [*made.eval_splits, *([made.train_split] if isinstance(made, AbsTaskClassification) else [])]
    try:
        made.load_data()
        # A private method, since mteb's public one writes the statistics into mteb's own package.
        return {split: dict(made._calculate_descriptive_statistics_from_split(split)) for split in splits}
    except (FileNotFoundError, AttributeError, TypeError):  # optional: another version of mteb must not make this fail
        return None
