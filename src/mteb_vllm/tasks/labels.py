"""Labels of classification tasks, read from their data set once.

mteb passes the label column of a data set to scikit-learn, and `datasets` decodes that column row by row each time it is looked
at: about 40 times in each of a task's 10 experiments (mteb 2.26, datasets 5.0). With thousands of texts this takes longer than
computing their embeddings, and the engine waits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mteb_vllm.engines.timing import replace_attributes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from datasets import Dataset
    from mteb.abstasks import AbsTask


@contextlib.contextmanager
def labels_as_lists(task: AbsTask) -> Iterator[None]:
    """Let a classification task draw samples and compute scores from lists of labels, for the duration of the context.

    The scores are the same. Tasks of other types, and those with code of their own for this, are left alone.
    """
    from mteb.abstasks.classification import AbsTaskClassification as Stock

    kind, replacements = type(task), {}
    if isinstance(task, Stock) and kind._calculate_scores is Stock._calculate_scores:
        calculate = task._calculate_scores

        def calculate_scores(y_test: Iterable[object], y_pred: object) -> object:
            return calculate(list(y_test), y_pred)

        replacements["_calculate_scores"] = calculate_scores
    if isinstance(task, Stock) and kind._undersample_data is Stock._undersample_data:
        undersample = task._undersample_data

        def undersample_data(dataset: Dataset, experiment: int, order: list[int] | None = None) -> object:
            return undersample(_ListColumns(dataset), experiment, order)

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
