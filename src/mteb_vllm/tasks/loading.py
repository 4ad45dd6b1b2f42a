"""A task's data: loaded for as long as they are needed, checked, and refused where they are not what the task needs.

What is wrong with one subset costs no other anything: the subsets and splits that cannot be evaluated are named, with their
reasons, and the others are.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mteb_vllm.engines.timing import replace_attributes
from mteb_vllm.errors import DataError, LockError
from mteb_vllm.results.failures import error_chain, one_line_message
from mteb_vllm.tasks.data_checks import problem
from mteb_vllm.tasks.selection import brings_candidates
from mteb_vllm.util.data_revisions import data_revision, is_local, local_folder

if TYPE_CHECKING:
    from datasets import Dataset
    from mteb.abstasks import AbsTask
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalDatasetLoader

    from mteb_vllm.results.store import ResultsStore

logger = logging.getLogger(__name__)

# A subset and a split of a task: what is evaluated at a time.
Unit = tuple[str, str]


def units(task: AbsTask) -> list[Unit]:
    """Return the subsets and splits of a task that are evaluated, in mteb's order."""
    return [(subset, split) for split in task.eval_splits for subset in task.hf_subsets]


def unit_name(unit: Unit) -> str:
    """Return how messages name a subset and a split."""
    subset, split = unit
    return f"split {split}" if subset == "default" else f"subset {subset}, split {split}"


def narrowed(task: AbsTask, chosen: Sequence[Unit]) -> contextlib.AbstractContextManager[None]:
    """Let a task have only the subsets and splits that are in some of these."""
    subsets = [subset for subset in task.hf_subsets if any(subset == one for one, _ in chosen)]
    splits = [split for split in task.eval_splits if any(split == one for _, one in chosen)]
    return replace_attributes(task, hf_subsets=subsets, _eval_splits=splits)


@contextlib.contextmanager
def loaded(task: AbsTask, store: ResultsStore) -> Iterator[dict[Unit, Exception]]:
    """Load a task's data for the time of the context; those in a folder of the working directory as they are now.

    Args:
        task: The task.
        store: Beside its results lies, until the context ends, what `datasets` makes of such a folder.

    Yields:
        why single subsets and splits cannot be evaluated.

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
                except (OSError, LockError):  # a store that can only be read
                    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mteb-vllm-")))
                with cached_in(scratch):
                    broken = load(task)
            yield broken
        finally:
            if task.data_loaded:
                task.unload_data()
            task.dataset = None
            if pinned is not None:
                # mteb takes an object's own metadata away with its data: the revision of data in a local folder is there.
                task.metadata = pinned


def load(task: AbsTask) -> dict[Unit, Exception]:
    """Load a task's data and check them; a reranking task whose candidate lists got lost is refused.

    `datasets` lists only the config `default` of an offline cache, and mteb then drops the candidate lists without a word:
    it would silently score full retrieval instead.

    Returns:
        why single subsets and splits cannot be evaluated.

    Raises:
        DataError: if nothing of the task can be evaluated, with what to do.
    """
    broken: dict[Unit, Exception] = {}
    try:
        _load(task)
    except Exception as error:  # networks, caches and files fail in many ways
        if not _is_missing(error):
            broken = _broken_parts(task)
        good = [unit for unit in units(task) if unit not in broken]
        if not broken or not good:
            raise _explained(task, error, broken) from error
        _load_only(task, good)
    path, revision = task.metadata.dataset["path"], task.metadata.revision
    if is_local(revision) and data_revision(path, revision) != revision:
        raise DataError(f"the files in {Path(path).absolute()} have changed since the run began: run again")
    for unit in units(task):
        if unit not in broken and (found := problem(task, *unit)):
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
    with narrowed(task, chosen):
        _load(task)


def _load_split(loader: RetrievalDatasetLoader, config: str, num_proc: int | None) -> Dataset:
    """Load one config of a retrieval task as mteb does, but say which one fails, and that one without rows is empty."""
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
    """Return whether the parquet files of a config hold no row of a split: `datasets` fails over those without saying so."""
    import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]
    from datasets import load_dataset_builder

    try:
        files = load_dataset_builder(path, config).config.data_files
        chosen = files[split] if split in files else [file for one in files.values() for file in one]
        return bool(chosen) and sum(pq.read_metadata(file).num_rows for file in chosen) == 0
    except Exception:  # it only explains
        return False


def _broken_parts(task: AbsTask) -> dict[Unit, Exception]:
    """Return which subsets cannot be loaded, of a task with one subset which splits, by loading each alone."""
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
    """Return whether a data set is not there at all, or cannot be reached."""
    names = ("DatasetNotFoundError", "OfflineModeIsEnabled", "LocalEntryNotFoundError")
    return any(isinstance(one, ConnectionError) or type(one).__name__ in names for one in error_chain(error))


def _root(error: BaseException) -> str:
    """Return what an error comes from, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line_message(error)


def _listed(broken: Mapping[Unit, Exception]) -> str:
    named = [f"{unit_name(unit)}: {error}" for unit, error in list(broken.items())[:3]]
    return "; ".join(named + ([f"and {len(broken) - 3} more"] if len(broken) > 3 else []))


def _explained(task: AbsTask, error: Exception, broken: Mapping[Unit, Exception]) -> DataError:
    """Return the failure that an error at loading means, with where the data are looked for and how to have them."""
    path, pinned = task.metadata.dataset["path"], type(task).metadata.revision
    folder, command = Path(path).absolute(), download_command(path, pinned)
    said = one_line_message(error)
    if isinstance(error, DataError):
        said = _listed(broken) or str(error)
    elif _root(error) != said:
        said += f" (from {_root(error)})"
    if folder.is_dir():
        advice = f"repair the data set in {folder}, or remove the folder, for which the Hub's data set is taken then"
        return DataError(f"the data set in the folder {folder} cannot be loaded: {said}", advice)
    advice = (
        f"where there is a network, run `{command}` in {Path.cwd()}: a folder {folder} is taken before the Hub is asked"
    )
    return DataError(f"the data set {path} cannot be loaded: {said}", advice)


def check_candidates(task: AbsTask) -> None:
    """Refuse a loaded reranking task without its candidate lists.

    Raises:
        DataError: with what to do.
    """
    if not brings_candidates(task.metadata.type):
        return
    data: Any = getattr(task, "dataset", None) or {}
    for subset, split in units(task):
        part = data.get(subset, {}).get(split)
        if part is not None and not part.get("top_ranked"):
            raise DataError(
                f"the candidate lists (top_ranked) of {subset}/{split} are missing, as happens with an offline data-set "
                "cache; " + _copy_of(task)
            )


def check_instructions(task: AbsTask) -> None:
    """Refuse a loaded task of instructions that lost them, as happens with candidate lists.

    Raises:
        DataError: with what to do.
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
        f"is another task; {_copy_of(task)}"
    )


def _copy_of(task: AbsTask) -> str:
    path = task.metadata.dataset["path"]
    command = download_command(path, type(task).metadata.revision)
    return (
        f"put a copy of the data set into a folder {path} of the working directory ({Path(path).absolute()}; where there is "
        f"a network: `{command}`), or load it online"
    )


def _lists_too_little(path: str, revision: str | None) -> bool:
    """Return whether `datasets` lists only one configuration of a data set that has several: what an offline cache does."""
    from datasets import get_dataset_config_names

    try:
        return list(get_dataset_config_names(path, revision)) == ["default"]
    except Exception:  # a task whose data come from elsewhere
        return False


@contextlib.contextmanager
def cached_in(folder: Path) -> Iterator[None]:
    """Let `datasets` cache what it loads in a folder that nothing else is in, instead of the user's cache."""
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
    """Return the command that fetches a data set of the Hub into the folder where it is looked for."""
    return shlex.join(
        ["hf", "download", path, "--repo-type", "dataset", "--revision", revision, "--local-dir", path]
    )  # fmt: skip
