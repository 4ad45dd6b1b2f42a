"""Load, check and unload the data of tasks.

An error in one subset does not affect the others: subsets and splits that cannot be evaluated are reported with their errors,
and the others are evaluated.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mteb_vllm.errors import DataError, LockError
from mteb_vllm.results.failures import error_chain, one_line_message
from mteb_vllm.tasks.data_checks import find_problem
from mteb_vllm.tasks.selection import brings_candidates
from mteb_vllm.util.attributes import replace_attributes
from mteb_vllm.util.data_revisions import data_revision, is_local, local_folder

if TYPE_CHECKING:
    from datasets import Dataset
    from mteb.abstasks import AbsTask
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalDatasetLoader

    from mteb_vllm.results.store import ResultsStore

logger = logging.getLogger(__name__)

# A subset and a split of a task, which are evaluated together.
Unit = tuple[str, str]


def units(task: AbsTask) -> list[Unit]:
    """Return the evaluated subsets and splits of a task, in mteb's order."""
    return [(subset, split) for split in task.eval_splits for subset in task.hf_subsets]


def unit_name(unit: Unit) -> str:
    """Return the name of a subset and split for messages."""
    subset, split = unit
    return f"split {split}" if subset == "default" else f"subset {subset}, split {split}"


def restrict_to(task: AbsTask, chosen: Sequence[Unit]) -> contextlib.AbstractContextManager[None]:
    """Restrict a task to the subsets and splits that occur in `chosen`, for the duration of the context."""
    subsets = [subset for subset in task.hf_subsets if any(subset == one for one, _ in chosen)]
    splits = [split for split in task.eval_splits if any(split == one for _, one in chosen)]
    return replace_attributes(task, hf_subsets=subsets, _eval_splits=splits)


@contextlib.contextmanager
def open_data(task: AbsTask, store: ResultsStore) -> Iterator[dict[Unit, Exception]]:
    """Load a task's data for the duration of the context. Data in a local folder are always read again from its files.

    Args:
        task: The task.
        store: The results store; a temporary folder in it holds the files that `datasets` makes from a local folder.

    Yields:
        the errors of single subsets and splits that cannot be evaluated.

    Raises:
        DataError: if nothing of the task can be evaluated.
    """
    pinned = task.__dict__.get("metadata")
    with contextlib.ExitStack() as stack:
        try:
            if local_folder(task.metadata.dataset["path"]) is None:
                broken = load(task)
            else:
                try:
                    scratch = stack.enter_context(store.staging())
                except (OSError, LockError):  # the store is read-only
                    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mteb-vllm-")))
                with use_cache_folder(scratch):
                    broken = load(task)
            yield broken
        finally:
            if task.data_loaded:
                task.unload_data()
            task.dataset = None
            if pinned is not None:
                # mteb deletes a task's own metadata on unloading, but they contain the revision of data in a local folder.
                task.metadata = pinned


def load(task: AbsTask) -> dict[Unit, Exception]:
    """Load a task's data and check them; a reranking task without candidate lists is refused.

    `datasets` lists only the config `default` of an offline cache. mteb then drops the candidate lists without a warning, and
    would score full retrieval instead.

    Returns:
        the errors of single subsets and splits that cannot be evaluated.

    Raises:
        DataError: if nothing of the task can be evaluated, with advice.
    """
    broken: dict[Unit, Exception] = {}
    try:
        _load(task)
    except Exception as error:  # network, cache and file errors are of many types
        if not _is_missing(error):
            broken = _broken_parts(task)
        good = [unit for unit in units(task) if unit not in broken]
        if not broken or not good:
            raise _explain_error(task, error, broken) from error
        _load_only(task, good)
    path, revision = task.metadata.dataset["path"], task.metadata.revision
    if is_local(revision) and data_revision(path, revision) != revision:
        raise DataError(f"the files in {Path(path).absolute()} have changed since the run began: start the run again")
    for unit in units(task):
        if unit not in broken and (found := find_problem(task, *unit)):
            broken[unit] = DataError(found)
    if len(broken) == len(units(task)):
        raise DataError(_listed(broken))
    check_instructions(task)
    check_candidates(task)
    return broken


def _load(task: AbsTask) -> None:
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalDatasetLoader

    with replace_attributes(RetrievalDatasetLoader, _load_dataset_split=_load_split):
        task.load_data()
    if isinstance(task, AbsTaskRetrieval):
        task.convert_v1_dataset_format_to_v2(num_proc=None)


def _load_only(task: AbsTask, chosen: Sequence[Unit]) -> None:
    task.data_loaded = False
    with restrict_to(task, chosen):
        _load(task)


def _load_split(loader: RetrievalDatasetLoader, config: str, num_proc: int | None) -> Dataset:
    """Load one config of a retrieval task as mteb does, but name it in errors, and raise if it has no rows."""
    from datasets import load_dataset

    what = next((word for name, word in _CONFIGS.items() if config.endswith(name)), "relevance judgements")
    try:
        split = loader._get_split(config)
        rows = load_dataset(loader.hf_repo, config, split=split, revision=loader.revision, num_proc=num_proc)
    except Exception as error:
        if _is_missing(error):
            raise
        if _is_empty(loader.hf_repo, config, loader.split):
            raise DataError(f"there are no {what}") from error
        raise DataError(f"the {what} (config {config}) cannot be loaded: {_root(error)}") from error
    if not len(rows):
        raise DataError(f"there are no {what}")
    return rows


_CONFIGS = {
    "corpus": "documents",
    "queries": "queries",
    "query": "queries",
    "top_ranked": "candidate lists",
    "instruction": "instructions",
}


def _is_empty(path: str, config: str, split: str) -> bool:
    """Return whether the parquet files of a config have no rows for a split; `datasets` raises an unclear error for these."""
    import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]
    from datasets import load_dataset_builder

    try:
        files = load_dataset_builder(path, config).config.data_files
        chosen = files[split] if split in files else [file for one in files.values() for file in one]
        return bool(chosen) and sum(pq.read_metadata(file).num_rows for file in chosen) == 0
    except Exception:  # this only improves the message of another error
        return False


def _broken_parts(task: AbsTask) -> dict[Unit, Exception]:
    """Load each subset separately (each split, if there is only one subset), and return the errors of those that fail."""
    broken: dict[Unit, Exception] = {}
    at = 0 if len(task.hf_subsets) > 1 else 1
    for name in task.eval_splits if at else task.hf_subsets:
        mine = [unit for unit in units(task) if unit[at] == name]
        try:
            _load_only(task, mine)
        except Exception as error:
            logger.exception("%s cannot be loaded", name)
            broken |= dict.fromkeys(mine, error if isinstance(error, DataError) else DataError(_root(error)))
    return broken


def _is_missing(error: BaseException) -> bool:
    """Return whether an error means that a data set does not exist or cannot be reached."""
    names = ("DatasetNotFoundError", "OfflineModeIsEnabled", "LocalEntryNotFoundError")
    return any(isinstance(one, ConnectionError) or type(one).__name__ in names for one in error_chain(error))


def _root(error: BaseException) -> str:
    """Return the message of an error's root cause, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line_message(error)


def _listed(broken: Mapping[Unit, Exception]) -> str:
    named = [f"{unit_name(unit)}: {error}" for unit, error in list(broken.items())[:3]]
    return "; ".join(named + ([f"and {len(broken) - 3} more"] if len(broken) > 3 else []))


def _explain_error(task: AbsTask, error: Exception, broken: Mapping[Unit, Exception]) -> DataError:
    """Return an error at loading as a `DataError`, with the location of the data and how to get them."""
    path, pinned = task.metadata.dataset["path"], type(task).metadata.revision
    folder, command = Path(path).absolute(), download_command(path, pinned)
    message = one_line_message(error)
    if isinstance(error, DataError):
        message = _listed(broken) or str(error)
    elif _root(error) != message:
        message += f" (from {_root(error)})"
    if folder.is_dir():
        advice = f"repair the data set in {folder}, or delete the folder to use the data set on the Hub"
        return DataError(f"the data set in the folder {folder} cannot be loaded: {message}", advice)
    advice = f"with network access, run `{command}` in {Path.cwd()}: the folder {folder} takes precedence over the Hub"
    return DataError(f"the data set {path} cannot be loaded: {message}", advice)


def check_candidates(task: AbsTask) -> None:
    """Raise if a loaded reranking task lacks its candidate lists.

    Raises:
        DataError: with advice.
    """
    if not brings_candidates(task.metadata.type):
        return
    data: Any = getattr(task, "dataset", None) or {}
    for subset, split in units(task):
        part = data.get(subset, {}).get(split)
        if part is not None and not part.get("top_ranked"):
            raise DataError(
                f"the candidate lists (top_ranked) of {subset}/{split} are missing, as happens when a data set is loaded "
                "from the cache in offline mode",
                _copy_advice(task),
            )


def check_instructions(task: AbsTask) -> None:
    """Raise if a loaded instruction task may lack its instructions, for the same reason as candidate lists.

    Raises:
        DataError: with advice.
    """
    if not str(task.metadata.type).startswith("Instruction"):
        return
    data: Any = task.dataset
    columns = {name for splits in data.values() for part in splits.values() for name in part["queries"].column_names}
    path, revision = task.metadata.dataset["path"], task.metadata.dataset.get("revision")
    if "instruction" in columns or not _lists_only_default(path, revision):
        return
    raise DataError(
        f"in offline mode, it cannot be determined whether {task.metadata.name} has instructions, without which it would "
        "be a different task",
        _copy_advice(task),
    )


def _copy_advice(task: AbsTask) -> str:
    path = task.metadata.dataset["path"]
    command = download_command(path, type(task).metadata.revision)
    return (
        f"run with network access, or put a copy of the data set into the folder {Path(path).absolute()} (to download it: "
        f"`{command}` in {Path.cwd()})"
    )


def _lists_only_default(path: str, revision: str | None) -> bool:
    """Return whether `datasets` lists only the config `default`, as it does for an offline cache."""
    from datasets import get_dataset_config_names

    try:
        return list(get_dataset_config_names(path, revision)) == ["default"]
    except Exception:  # the task's data come from elsewhere
        return False


@contextlib.contextmanager
def use_cache_folder(folder: Path) -> Iterator[None]:
    """Make `datasets` use an otherwise empty folder as its cache, instead of the user's, for the duration of the context."""
    import datasets

    downloads = folder / datasets.config.DOWNLOADED_DATASETS_DIR
    with replace_attributes(
        datasets.config,
        HF_DATASETS_CACHE=folder,
        DOWNLOADED_DATASETS_PATH=str(downloads),
        EXTRACTED_DATASETS_PATH=str(downloads / datasets.config.EXTRACTED_DATASETS_DIR),
    ):
        yield


def download_command(path: str, revision: str) -> str:
    """Return the command that downloads a data set from the Hub into the local folder that takes precedence over the Hub."""
    return shlex.join(
        ["hf", "download", path, "--repo-type", "dataset", "--revision", revision, "--local-dir", path]
    )  # fmt: skip
