"""Labels of classification tasks, read from their data set once.

mteb passes the label column of a data set to scikit-learn, and `datasets` decodes that column row by row each time it is
looked at: about 40 times in each of a task's 10 experiments (mteb 2.26, datasets 5.2). With thousands of texts this takes
longer than computing their embeddings, and the engine waits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from mteb_vllm.util.attributes import replace_attributes

if TYPE_CHECKING:
    from datasets import Dataset
    from mteb.abstasks import AbsTask


@contextlib.contextmanager
def labels_as_lists(task: AbsTask) -> Iterator[None]:
    """Let a classification task draw samples and compute scores from lists of labels, for the duration of the context.

    The scores are the same. Tasks of other types, and those with code of their own for this, are left alone.
    """
    from mteb.abstasks.classification import AbsTaskClassification as Classification

    replacements: dict[str, Callable[..., object]] = {}
    if isinstance(task, Classification):
        kind, score, draw = type(task), task._calculate_scores, task._undersample_data

        def calculate_scores(y_test: Iterable[int], y_pred: list[int]) -> object:
            return score(list(y_test), y_pred)

        def undersample_data(dataset: Dataset, *args: object, **kwargs: object) -> object:
            return draw(_ListColumns(dataset), *args, **kwargs)  # type: ignore[arg-type]

        if kind._calculate_scores is Classification._calculate_scores:
            replacements["_calculate_scores"] = calculate_scores
        if kind._undersample_data is Classification._undersample_data:
            replacements["_undersample_data"] = undersample_data
    with replace_attributes(task, **replacements):
        yield


class _ListColumns:
    """A data set whose columns are lists, as far as drawing samples from it needs one."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, column: str) -> list[object]:
        return list(self._dataset[column][:])

    def select(self, rows: list[int]) -> Dataset:
        return self._dataset.select(rows)
