"""A task's data, loaded, and refused where they are not what the task needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mteb_vllm.errors import DataError
from mteb_vllm.failures import in_one_line
from mteb_vllm.tasks import brings_candidates

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask


def load(task: AbsTask) -> None:
    """Loads a task's data; a reranking task whose candidate lists got lost is refused.

    `datasets` lists only the config `default` of an offline cache, and mteb then drops the candidate lists without a word:
    it would silently score full retrieval instead.

    Raises:
        DataError: with the way out.
    """
    from mteb.abstasks import AbsTaskRetrieval

    try:
        task.load_data()
    except Exception as error:  # networks, caches and files fail in many ways
        raise DataError(in_one_line(error)) from error
    if isinstance(task, AbsTaskRetrieval):
        task.convert_v1_dataset_format_to_v2(num_proc=None)
        check_instructions(task)
    check_candidates(task)


def check_candidates(task: AbsTask) -> None:
    """Refuses a loaded reranking task without its candidate lists.

    Raises:
        DataError: with the way out.
    """
    if not brings_candidates(task.metadata.type):
        return
    data: Any = getattr(task, "dataset", None) or {}
    for subset in task.hf_subsets:
        for split in task.eval_splits:
            part = data.get(subset, {}).get(split)
            if part is not None and not part.get("top_ranked"):
                raise DataError(
                    f"the candidate lists (top_ranked) of {subset}/{split} are missing, as happens with an offline data-set "
                    "cache; put a copy of the data set into a folder "
                    f"{task.metadata.dataset['path']} of the working directory, or load it online"
                )


def check_instructions(task: AbsTask) -> None:
    """Refuses a loaded task of instructions that lost them, as happens with candidate lists.

    Raises:
        DataError: with the way out.
    """
    if not str(task.metadata.type).startswith("Instruction"):
        return
    data: Any = task.dataset
    columns = {name for splits in data.values() for part in splits.values() for name in part["queries"].column_names}
    path, revision = task.metadata.dataset["path"], task.metadata.dataset.get("revision")
    if "instruction" in columns or not _lists_too_little(path, revision):
        return
    raise DataError(
        f"whether {task.metadata.name} has instructions cannot be known from an offline data-set cache, and without them it "
        f"is another task; put a copy of the data set into a folder {path} of the working directory, or load it online"
    )


def _lists_too_little(path: str, revision: Any) -> bool:
    """Whether `datasets` lists only one configuration of a data set that has several: what an offline cache does."""
    from datasets import get_dataset_config_names

    try:
        return list(get_dataset_config_names(path, revision)) == ["default"]
    except Exception:  # a task whose data come from elsewhere
        return False
