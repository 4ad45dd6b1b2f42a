"""The embedded default tasks (`tasks=demo`): the docstrings of Python's own standard library.

Real text that every machine already has, so a first run needs no download. Three ordinary mteb tasks are made of it:

==========================  =========================================================  ==========================
task                        what is asked                                              main score, chance
==========================  =========================================================  ==========================
`StdlibDocsRetrieval`       a docstring's summary line finds the rest of that          ndcg_at_10, below 0.01
                            docstring among the rests of all docstrings
`StdlibDocsClassification`  a summary line tells which of 20 packages it documents     accuracy, 0.05
`StdlibDocsClustering`      whole docstrings fall into the 10 modules they document    v_measure, about 0.05
==========================  =========================================================  ==========================

The recipe, version `RECIPE`:

- Source files are parsed, never imported: the modules in `sys.stdlib_module_names` and their submodules, but none with
  a part of its path that begins with an underscore or is `test` or `tests`. The packages in `DETACHED` are left out
  because distributions ship the same Python with or without them.
- Of these, the docstring (`inspect.cleandoc`) of each function, class and method with a public path.
  The first paragraph, put on one line, is its summary; what follows is its body.
- Retrieval: the documents are the different bodies of `MIN_BODY_WORDS` to `MAX_BODY_WORDS` words (the few longer ones
  would take a third of the time). The queries are the summaries of `MIN_SUMMARY_WORDS` to `MAX_SUMMARY_WORDS` words
  above them, but none that a document of its own repeats. One summary above several bodies is one query with several
  relevant documents; one body below several summaries is one document. Bodies without a usable summary stay as
  distractors. Docstrings that are a summary only are no documents: they often answer a query better than the body
  that counts as relevant.
- Classification: the `N_PACKAGES` packages with the most summaries of their own (one that stands in two packages has no
  right answer), `N_TRAIN` + `N_TEST` summaries of each.
- Clustering: the `N_MODULES` modules with the most docstrings of their own, `N_PER_MODULE` docstrings of each.
  Neither takes texts of fewer than `MIN_SUMMARY_WORDS` words.
- Where only some texts are taken, those with the lowest hashes are: no seed and no order of files has a say, and
  neighbouring versions of Python share most of them.

The dataset revision is the recipe's version, Python's version and a hash of every source file that is read: the same
revision means the same texts. The reverse does not hold, since a changed comment is a new revision, too: a hash of the
texts themselves would cost two seconds of parsing wherever a task is only named.
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

__all__ = [
    "TASKS",
    "Docstring",
    "StdlibDocsClassification",
    "StdlibDocsClustering",
    "StdlibDocsRetrieval",
    "docstrings",
    "statistics",
]

RECIPE = "v1"  # goes up with every change below that changes a text, a label or a score
DETACHED = frozenset({"distutils", "ensurepip", "idlelib", "lib2to3", "test", "tkinter", "turtledemo"})
MIN_SUMMARY_WORDS, MAX_SUMMARY_WORDS = 3, 30
MIN_BODY_WORDS, MAX_BODY_WORDS = 8, 100
N_PACKAGES, N_TRAIN, N_TEST = 20, 20, 25
N_MODULES, N_PER_MODULE = 10, 50


class Docstring(NamedTuple):
    """One docstring: where it stands, and its two parts (`body` is empty where there is only a summary)."""

    module: str
    name: str
    line: int
    summary: str
    body: str

    @property
    def package(self) -> str:
        """Return the package that defines it."""
        return self.module.partition(".")[0]

    @property
    def text(self) -> str:
        """Return both parts as one text."""
        return f"{self.summary}\n\n{self.body}".strip()

    @property
    def place(self) -> str:
        """Unique: a property and its setter share a name, but no line."""
        return f"{self.module}.{self.name}:{self.line}"


@cache
def _sources() -> dict[str, Path]:
    """Module name -> source file, sorted by name; empty where Python came without sources."""
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
    """Name, line and docstring of what is defined publicly below `node`, in the order of the file."""
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
    """All docstrings of the recipe, by module and line (about two seconds, once per process).

    Raises:
        FileNotFoundError: This Python came without the sources of its standard library.
    """
    if not _sources():
        raise FileNotFoundError(
            "The demo tasks are made of the docstrings of Python's standard library, but this Python has no sources "
            f"of it in {sysconfig.get_path('stdlib')}. Use a Python that has, or other tasks, for example tasks=sts12."
        )
    found = []
    for module, path in _sources().items():
        for name, line, text in _public(ast.parse(path.read_bytes())):
            summary, _, body = text.partition("\n\n")
            found.append(Docstring(module, name, line, " ".join(summary.split()), body.strip()))
    return tuple(found)


def _normal(text: str) -> str:
    """The same for texts that differ only in case, white space or a full stop at the end."""
    return " ".join(text.split()).casefold().rstrip(".")


def _largest_classes(labelled: Iterable[tuple[str, str]], n_classes: int, size: int) -> dict[str, list[str]]:
    """From (label, text) pairs, the labels with the most texts of their own, and up to `size` of these texts each."""
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
    """A docstring's summary line finds the rest of that docstring."""

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
        """Make queries of the summaries, and documents of the bodies."""
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
    """A summary line tells which package of the standard library it stands in."""

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
        """Make the training texts and the test texts of the largest packages."""
        if self.data_loaded:
            return
        classes = _largest_classes(((doc.package, doc.summary) for doc in docstrings()), N_PACKAGES, N_TRAIN + N_TEST)
        self.dataset = DatasetDict(
            train=_rows({label: texts[:N_TRAIN] for label, texts in classes.items()}, "text", "label"),
            test=_rows({label: texts[N_TRAIN:] for label, texts in classes.items()}, "text", "label"),
        )
        self.data_loaded = True


class StdlibDocsClustering(AbsTaskClustering):
    """Docstrings fall into the modules they stand in."""

    max_fraction_of_documents_to_embed = None
    # Each experiment draws this many with replacement. mteb's 16,384 give the same score for eight times the k-means;
    # one draw a text leaves so few different texts that random vectors reach 0.08 instead of 0.05.
    max_documents_per_cluster = 4 * N_MODULES * N_PER_MODULE
    metadata = _metadata(
        name="StdlibDocsClustering",
        description="Group docstrings of Python's standard library by the module that they stand in.",
        type="Clustering",
        category="t2c",
        task_subtypes=["Thematic clustering"],
        main_score="v_measure",
        prompt="Identify the Python module that a function, class or method belongs to by its documentation",
    )

    def load_data(self, num_proc: int | None = None, **kwargs: object) -> None:
        """Make one set of the texts of the largest modules."""
        if self.data_loaded:
            return
        classes = _largest_classes(((doc.module, doc.text) for doc in docstrings()), N_MODULES, N_PER_MODULE)
        self.dataset = DatasetDict(test=_rows(classes, "sentences", "labels"))
        self.data_loaded = True


TASKS: dict[str, type[AbsTask]] = {
    task.metadata.name: task for task in (StdlibDocsRetrieval, StdlibDocsClassification, StdlibDocsClustering)
}


def statistics(task: type[AbsTask]) -> dict[str, dict[str, object]] | None:
    """A demo task's descriptive statistics, in the form of the files that mteb brings for its own tasks.

    Args:
        task: One of `TASKS`.

    Returns:
        split -> what mteb counts in it, the training split included; None where that cannot be had.
    """
    made = task()
    splits = [*made.eval_splits, *([made.train_split] if isinstance(made, AbsTaskClassification) else [])]
    try:
        made.load_data()
        # mteb's public way to them writes them into its own package.
        return {split: dict(made._calculate_descriptive_statistics_from_split(split)) for split in splits}
    except (FileNotFoundError, AttributeError, TypeError):  # an mteb that does it otherwise is no reason to fail
        return None
