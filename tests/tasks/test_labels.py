"""Labels of classification tasks are read once, and neither samples nor scores change."""

from __future__ import annotations

from typing import Any

import datasets.arrow_dataset
import mteb
import numpy as np
import pytest
from datasets import Dataset
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.multilabel_classification import AbsTaskMultilabelClassification
from mteb.mocks import mock_tasks

from mteb_vllm.tasks.labels import labels_as_lists


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The columns that were read row by row, once for each time."""
    rows, real = [], datasets.arrow_dataset.Column.__iter__

    def counted(self: Any) -> Any:
        rows.append(self.column_name)
        return real(self)

    monkeypatch.setattr(datasets.arrow_dataset.Column, "__iter__", counted)
    return rows


@pytest.mark.parametrize("classes", [2, 7])
def test_scores_and_samples_are_the_same_with_one_reading(classes: int, reads: list[str]) -> None:
    task, rng = mteb.get_task("Banking77Classification"), np.random.default_rng(0)
    labels = [int(label) for label in rng.integers(0, classes, 200)]
    data = Dataset.from_dict({"text": ["a text"] * 200, "label": labels})
    predicted = rng.integers(0, classes, 200)
    assert isinstance(task, AbsTaskClassification)
    scores, (drawn, order, chosen) = task._calculate_scores(data["label"], predicted), task._undersample_data(data, 0)
    assert len(reads) > 20, "otherwise mteb no longer needs this"
    reads.clear()
    with labels_as_lists(task):
        assert task._calculate_scores(data["label"], predicted) == scores
        assert len(reads) == 1
        again = task._undersample_data(data, 0)
        assert (again[0][:], again[1:]) == (drawn[:], (order, chosen))
        further = task._undersample_data(data, 1, list(again[1]))
        assert len(reads) == 1
    assert further[2] == task._undersample_data(data, 1, list(order))[2]
    assert "_calculate_scores" not in vars(task) and "_undersample_data" not in vars(task)


def test_tasks_with_their_own_code_are_left_alone() -> None:
    multilabel = mock_tasks.MockMultilabelClassification()
    assert isinstance(multilabel, AbsTaskMultilabelClassification)
    for task in (multilabel, mock_tasks.MockSTSTask()):
        with labels_as_lists(task):
            assert "_calculate_scores" not in vars(task)
