"""The catalogues of mteb and vLLM: their content, their cache, the child processes that make them; the nearest names."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mteb_vllm import catalogue
from mteb_vllm.catalogue import CatalogueError, MtebCatalogue, VllmCatalogue
from mteb_vllm.util.files import read_with_checksum, write_with_checksum
from mteb_vllm.util.suggestions import nearest, nearest_argument

HEAVY = ("mteb", "torch", "vllm", "transformers", "datasets", "pandas")


def forget() -> None:
    catalogue.mteb_catalogue.cache_clear()
    catalogue.vllm_catalogue.cache_clear()


@pytest.fixture(scope="session")
def warm_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a cache directory with both catalogues, made once by the real child processes."""
    with pytest.MonkeyPatch.context() as patch:
        if "MTEB_VLLM_CACHE" not in os.environ:
            patch.setenv("MTEB_VLLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        forget()
        catalogue.warm()
        yield catalogue.cache_dir()
    forget()


@pytest.fixture
def mteb(warm_cache: Path) -> MtebCatalogue:
    return catalogue.mteb_catalogue()


@pytest.fixture
def vllm(warm_cache: Path) -> VllmCatalogue:
    found = catalogue.vllm_catalogue()
    assert found is not None
    return found


@pytest.fixture
def texts(mteb: MtebCatalogue, vllm: VllmCatalogue, warm_cache: Path) -> dict[str, bytes]:
    """Return the output of the child processes, by kind."""

    def content(kind: str) -> bytes:
        path = catalogue.catalogue_path(kind)
        assert path is not None
        return read_with_checksum(path)

    return {kind: content(kind) for kind in ("mteb", "vllm")}


@pytest.fixture
def fresh(texts: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Set up an empty cache directory and memory, and a child that answers at once; yield the kinds that were requested."""
    requested: list[str] = []

    def make(kind: str) -> bytes:
        requested.append(kind)
        return texts[kind]

    monkeypatch.setattr(catalogue, "_make", make)
    monkeypatch.setenv("MTEB_VLLM_CACHE", str(tmp_path / "cache"))
    forget()
    yield requested
    forget()


@pytest.fixture
def fake_mteb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give the child process another `mteb` to import."""

    def write(source: str) -> None:
        (tmp_path / "path").mkdir(exist_ok=True)
        (tmp_path / "path" / "mteb.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))

    return write


# The catalogue of mteb


def test_tasks_have_their_metadata(mteb: MtebCatalogue) -> None:
    task = mteb.tasks["STS12"]
    assert (task.name, task.type, task.main_score) == ("STS12", "STS", "cosine_spearman")
    assert (task.modalities, task.splits) == (("text",), ("test",))
    assert (task.languages, task.subsets) == (("eng-Latn",), {"default": ("eng-Latn",)})
    assert (task.dataset_path, len(task.dataset_revision)) == ("mteb/sts12-sts", 40)
    assert (task.prompt, task.aggregate_of, task.superseded_by) == (None, (), None)
    assert len(mteb.tasks) > 2000
    assert mteb.version == metadata.version("mteb")


def test_languages_are_those_of_all_subsets_in_order(mteb: MtebCatalogue) -> None:
    task = mteb.tasks["STS22"]
    assert task.subsets["de-en"] == ("deu-Latn", "eng-Latn")
    assert task.languages[:3] == ("eng-Latn", "deu-Latn", "spa-Latn")
    assert len(set(task.languages)) == len(task.languages) == 10
    assert len(mteb.tasks["FloresBitextMining"].subsets) > 40_000


def test_tasks_that_mteb_leaves_out_by_default_are_included(mteb: MtebCatalogue) -> None:
    tasks = mteb.tasks.values()
    assert mteb.tasks["STS22"].superseded_by == "STS22.v2"
    assert "CQADupstackTexRetrieval" in mteb.tasks["CQADupstackRetrieval"].aggregate_of
    assert any(task.is_beta for task in tasks)
    assert any(not task.is_public for task in tasks)
    assert any("image" in task.modalities for task in tasks)


def test_prompts_of_tasks(mteb: MtebCatalogue) -> None:
    prompt = mteb.tasks["SciFact"].prompt
    assert isinstance(prompt, dict)
    assert set(prompt) == {"query"}
    assert isinstance(mteb.tasks["Banking77Classification"].prompt, str)


def test_task_types_and_prompt_types(mteb: MtebCatalogue) -> None:
    assert {"STS", "Retrieval", "Reranking", "BitextMining"} <= set(mteb.task_types)
    assert {task.type for task in mteb.tasks.values()} <= set(mteb.task_types)
    assert mteb.prompt_types == ("query", "document")


def test_attributes_that_determine_how_much_data_is_encoded(mteb: MtebCatalogue) -> None:
    assert mteb.tasks["STS12"].sampling == {}
    assert mteb.tasks["FloresBitextMining"].sampling == {"parallel_subsets": True}
    assert mteb.tasks["Banking77Classification"].sampling == {
        "is_cross_validation": False,
        "n_experiments": 10,
        "samples_per_label": 8,
        "train_split": "train",
    }
    whole, sample = (mteb.tasks[name].sampling for name in ("RedditClustering.v2", "TwentyNewsgroupsClustering.v2"))
    assert whole == {"max_document_to_embed": None, "max_fraction_of_documents_to_embed": None}
    assert sample == {"max_document_to_embed": None, "max_fraction_of_documents_to_embed": 0.04}


def test_only_demo_tasks_have_statistics(mteb: MtebCatalogue) -> None:
    with_statistics = {name for name, task in mteb.tasks.items() if task.statistics is not None}
    assert with_statistics == set(mteb.benchmarks["demo"])


def test_demo_tasks_are_included(mteb: MtebCatalogue) -> None:
    assert mteb.tasks["StdlibDocsRetrieval"].type == "Retrieval"
    assert {"StdlibDocsClassification", "StdlibDocsClustering"} <= set(mteb.tasks)


def test_benchmarks_with_their_aliases(mteb: MtebCatalogue) -> None:
    assert "STS12" in mteb.benchmarks["MTEB(eng, v2)"]
    assert mteb.benchmarks["MTEB(eng)"] == mteb.benchmarks["MTEB(eng, v2)"]
    assert mteb.benchmark_splits["MTEB(eng)"]["MTOPDomainClassification"] == ("test",)
    assert mteb.tasks["MTOPDomainClassification"].splits == ("validation", "test")
    assert {name for tasks in mteb.benchmarks.values() for name in tasks} <= set(mteb.tasks)


def test_models(mteb: MtebCatalogue) -> None:
    assert mteb.models["intfloat/multilingual-e5-small"] == {"query": "query: ", "document": "passage: "}
    assert mteb.models["sentence-transformers/all-MiniLM-L6-v2"] is None
    assert "BAAI/bge-reranker-v2-m3" in mteb.models


# The catalogue of vLLM


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("max_num_seqs", "int"),
        ("max_model_len", "int"),
        ("enable_prefix_caching", "bool"),
        ("enforce_eager", "bool"),
        ("gpu_memory_utilization", "float"),
        ("quantization", "str"),
        ("dtype", "str"),
        ("max_lora_rank", "int"),
        ("distributed_executor_backend", "str"),
        ("allowed_media_domains", "list"),
        ("cpu_offload_params", "list"),
        ("hf_overrides", "dict"),
        ("additional_config", "dict"),
        ("hf_token", "any"),
        ("pooler_config", "any"),
        ("served_model_name", "any"),
    ],
)
def test_kinds_of_engine_arguments(vllm: VllmCatalogue, name: str, kind: str) -> None:
    assert vllm.args[name].kind == kind


def test_choices_are_listed_only_where_vllm_accepts_no_other_value(vllm: VllmCatalogue) -> None:
    assert {"auto", "bfloat16", "float32"} <= set(vllm.args["dtype"].choices or ())
    assert vllm.args["runner"].choices == ("auto", "generate", "pooling", "draft")
    assert "lazy" in (vllm.args["safetensors_load_strategy"].choices or ())  # Optional[Literal]
    assert "8" in (vllm.args["max_lora_rank"].choices or ())  # numbers
    assert vllm.args["tokenizer_mode"].choices is None  # Literal | str
    assert vllm.args["distributed_executor_backend"].choices is None  # str | Literal | type | None
    assert vllm.args["max_num_seqs"].choices is None


def test_types_as_text(vllm: VllmCatalogue) -> None:
    assert vllm.args["max_num_seqs"].type == "int | None"
    assert vllm.args["pooler_config"].type == "PoolerConfig | None"
    assert vllm.args["enforce_eager"].type == "bool"


def test_every_field_of_engine_args_is_included(vllm: VllmCatalogue) -> None:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    tree = ast.parse(Path(spec.origin).with_name("engine").joinpath("arg_utils.py").read_text())
    (cls,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "EngineArgs")
    names = [
        node.target.id for node in cls.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    assert list(vllm.args) == [name for name in names if not name.startswith("_")]
    assert all(name == arg.name for name, arg in vllm.args.items())


def test_version_architectures_and_environment(vllm: VllmCatalogue) -> None:
    found = catalogue.vllm_distribution()
    assert found is not None and vllm.version == found[1] == metadata.version(found[0])
    assert {"BertModel", "Qwen3ForCausalLM", "XLMRobertaModel"} <= set(vllm.architectures)
    assert {"VLLM_LOGGING_LEVEL", "VLLM_ENABLE_V1_MULTIPROCESSING"} <= set(vllm.env)


def test_without_vllm_there_is_no_catalogue(fresh: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "distributions", lambda **_: iter(()))
    assert catalogue.vllm_distribution() is None
    assert catalogue.vllm_catalogue() is None
    assert fresh == []


# The cache


def test_a_second_process_reads_quickly_and_imports_nothing(warm_cache: Path) -> None:
    script = (
        "import json, sys, time\n"
        "from mteb_vllm import catalogue\n"
        "start = time.process_time()\n"
        "assert 'STS12' in catalogue.mteb_catalogue().tasks and 'dtype' in catalogue.vllm_catalogue().args\n"
        "print(json.dumps([time.process_time() - start, sorted(sys.modules)]))\n"
    )
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        elapsed, modules = json.loads(done.stdout)
        assert done.stderr == ""
        assert not set(HEAVY) & set(modules)
        seconds.append(elapsed)
    # 40 ms of processor time on an idle machine; making it takes seconds.
    assert min(seconds) < 1


def test_a_catalogue_is_cached_in_memory_and_on_disk(fresh: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    first = catalogue.mteb_catalogue()
    assert catalogue.mteb_catalogue() is first
    forget()
    assert catalogue.mteb_catalogue().models == first.models
    assert fresh == ["mteb"]
    notices = capsys.readouterr().err.splitlines()
    assert notices == [f"Reading the task list of mteb {metadata.version('mteb')} (only once; takes about 15 s)..."]


def test_the_source_file_of_a_module_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mteb_vllm.engines.describe import _source_file

    (tmp_path / "own_models" / "large").mkdir(parents=True)
    for name in ("own_models/__init__.py", "own_models/small.py", "own_models/large/__init__.py", "alone.py"):
        (tmp_path / name).write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for module, name in (
        ("own_models", "own_models/__init__.py"),
        ("own_models.small", "own_models/small.py"),
        ("own_models.large", "own_models/large/__init__.py"),
        ("alone", "alone.py"),
    ):
        assert _source_file(module) == tmp_path / name
    assert _source_file("own_models.none") is None and _source_file("no_such_package.x") is None


def test_notices_of_catalogues_that_are_made_at_the_same_time_are_whole_lines(
    fresh: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[str] = []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=writes.append, flush=lambda: None))
    catalogue.warm()
    assert len(writes) == 2 and all(text.startswith("Reading ") and text.endswith("...\n") for text in writes)


def _flip(text: bytes) -> bytes:
    return text.replace(b'"max_num_seqs"', b'"max_num_seqr"')


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"null",
        b"{}",
        b"[1, 2]",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        "truncated",
        _flip,
        "no checksum",
        "another file",
        "folder",
        "fifo",
    ],
    ids=lambda damage: str(damage)[:12],
)
def test_a_damaged_file_is_made_again(fresh: list[str], damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    whole = catalogue.vllm_catalogue()
    (file,) = catalogue.cache_dir().iterdir()
    content = file.read_bytes()
    file.unlink()
    if damage in ("folder", "fifo"):
        (os.mkdir if damage == "folder" else os.mkfifo)(file)
    elif damage == "another file":
        write_with_checksum(file.with_name("other.json"), b'{"other": 1}')
        file.with_name("other.json").replace(file)
    elif damage == "no checksum":
        file.write_bytes(content.partition(b"\n")[2])
    else:
        file.write_bytes(content[:-100] if damage == "truncated" else damage(content) if callable(damage) else damage)
    forget()
    assert catalogue.vllm_catalogue() == whole
    assert fresh == ["vllm", "vllm"]
    assert file.read_bytes() == content
    assert f"{file} cannot be read and is made again" in caplog.text


def test_an_unwritable_cache_is_no_error(
    fresh: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Nobody, not even root, can create a folder below a file.
    (tmp_path / "file").touch()
    monkeypatch.setenv("MTEB_VLLM_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        assert "STS12" in catalogue.mteb_catalogue().tasks
        assert "STS12" in catalogue.mteb_catalogue().tasks
    assert fresh == ["mteb"]
    assert "cannot be written (not a directory): every process" in caplog.text


def test_an_edited_source_file_makes_the_catalogue_again(
    fresh: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in set(itertools.chain(*catalogue._SOURCES.values())):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(Path(catalogue.__file__).parent / name, tmp_path / name)

    def requested() -> list[str]:
        fresh.clear()
        forget()
        catalogue.mteb_catalogue()
        catalogue.vllm_catalogue()
        return fresh

    assert requested() == ["mteb", "vllm"]
    monkeypatch.setattr(catalogue, "__file__", str(tmp_path / "catalogue.py"))
    assert requested() == []
    (tmp_path / "tasks" / "demo.py").write_text("# another demo task")
    assert requested() == ["mteb"]
    (tmp_path / "engines" / "describe.py").write_text("# another field of an argument")
    assert requested() == ["vllm"]
    (tmp_path / "catalogue.py").write_text("# another field")
    assert requested() == ["mteb", "vllm"]


def test_concurrent_makers_leave_one_valid_file(
    fresh: list[str], texts: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    together = threading.Barrier(8, timeout=30)

    def make(kind: str) -> bytes:
        together.wait()
        return texts[kind]

    monkeypatch.setattr(catalogue, "_make", make)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: catalogue.vllm_catalogue.__wrapped__(), range(8)))
    assert all(one == made[0] for one in made)
    (file,) = catalogue.cache_dir().iterdir()
    assert read_with_checksum(file) == texts["vllm"]
    assert caplog.text == ""


def test_warm_makes_both_in_parallel(
    fresh: list[str], texts: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=30)

    def make(kind: str) -> bytes:
        both.wait()
        return texts[kind]

    monkeypatch.setattr(catalogue, "_make", make)
    catalogue.warm()
    assert len(list(catalogue.cache_dir().iterdir())) == 2


def test_something_else_is_done_only_while_a_catalogue_is_made(fresh: list[str]) -> None:
    done: list[str] = []
    catalogue.warm(lambda: done.append("both are missing"))
    forget()
    catalogue.warm(lambda: done.append("none is missing"))
    next(catalogue.cache_dir().glob("vllm*")).unlink()
    forget()
    catalogue.warm(lambda: done.append("one is missing"))
    assert done == ["both are missing", "one is missing"] and sorted(fresh) == ["mteb", "vllm", "vllm"]


@pytest.mark.parametrize("writable", [True, False])
def test_a_catalogue_needed_while_it_is_made_is_not_made_twice(
    fresh: list[str], texts: dict[str, bytes], writable: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def make(kind: str) -> bytes:
        fresh.append(kind)
        time.sleep(0.2)
        return texts[kind]

    monkeypatch.setattr(catalogue, "_make", make)
    if not writable:
        (tmp_path / "cache").write_text("not a folder")
    catalogue.warm(lambda: (catalogue.mteb_catalogue(), catalogue.vllm_catalogue()))
    assert sorted(fresh) == ["mteb", "vllm"]


@pytest.mark.parametrize(
    ("own", "xdg", "expected"),
    [
        ("/own", "/xdg", "/own"),
        ("", "/xdg", "/xdg/mteb-vllm"),
        ("", "", "/home/me/.cache/mteb-vllm"),
        ("~nosuchuser/cache", "", "~nosuchuser/cache"),
    ],
)
def test_cache_dir(own: str, xdg: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("MTEB_VLLM_CACHE", own)
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert catalogue.cache_dir() == Path(expected)


# The child process


def test_the_error_of_a_failing_child_is_reported(fake_mteb: Callable[[str], None]) -> None:
    fake_mteb("raise ImportError('libmissing.so: no such file')")
    with pytest.raises(
        CatalogueError,
        match=r"mteb could not be imported and inspected .*exited with status 1\)(?s:.*)libmissing\.so: no such file$",
    ):
        catalogue._make("mteb")


def test_an_interrupted_command_does_not_wait_for_the_children(
    fake_mteb: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTEB_VLLM_CACHE", str(tmp_path / "cache"))
    forget()
    fake_mteb("import time\ntime.sleep(600)")

    def interrupt() -> None:
        while len(catalogue._children) < 2:
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        catalogue.warm(interrupt)
    assert not catalogue._children and not (tmp_path / "cache").exists()
    forget()


def test_the_child_is_offline_and_leaves_no_files(
    fake_mteb: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_TARGET_DEVICE", "nonsense")
    monkeypatch.setenv("MTEB_CACHE", "/mine")
    fake_mteb("import json, os\nraise SystemExit(json.dumps(dict(os.environ)))")
    with pytest.raises(CatalogueError) as caught:
        catalogue._make("mteb")
    env = json.loads(str(caught.value).splitlines()[-1])
    assert env["HF_HUB_OFFLINE"] == "1"
    assert env["VLLM_LOGGING_LEVEL"] == "ERROR"
    assert "VLLM_TARGET_DEVICE" not in env
    assert env["MTEB_CACHE"] == env["VLLM_CACHE_ROOT"] != "/mine"
    assert not Path(env["MTEB_CACHE"]).exists()


def test_the_child_imports_nothing_from_the_working_directory(
    fake_mteb: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mteb.py").write_text("raise SystemExit('from the working directory')")
    monkeypatch.chdir(tmp_path)
    fake_mteb("raise SystemExit('from the path')")
    with pytest.raises(CatalogueError, match=r"from the path$"):
        catalogue._make("mteb")


# The nearest names


@pytest.mark.parametrize(
    ("word", "choices", "expected"),
    [
        ("dtpye", ["type", "dtype", "seed"], ("dtype", "type")),  # swapped: one edit
        ("qury", ["document", "query"], ("query",)),
        (
            "STS21",
            ["STS11", "STS22", "STS12", "STS13", "STS31"],
            ("STS12", "STS11", "STS22", "STS31"),
        ),  # all, swapped first
        ("nfcorpus", ["NFCorpus", "NFCorpus-NL"], ("NFCorpus",)),  # another case only
        ("flaot32", ["auto", "float32", "float16"], ("float32",)),
        ("prefix_caching", ["enable_prefix_caching", "enable_sleep_mode"], ("enable_prefix_caching",)),
        ("Banking77", ["STS12", "Banking77Classification"], ("Banking77Classification",)),
        ("temperature", ["dtype", "seed", "max_num_seqs"], ()),
        ("fp16", ["auto", "half", "float16"], ()),
        ("dtype", [], ()),
        ("", ["dtype"], ()),
    ],
)
def test_nearest(word: str, choices: list[str], expected: tuple[str, ...]) -> None:
    assert nearest(word, choices) == expected
    assert nearest(word, reversed(choices)) == expected


def test_names_of_other_libraries_lead_to_the_argument_of_the_same_meaning() -> None:
    assert nearest_argument("max_len", ["max_logprobs", "max_model_len"]) == ("max_model_len",)
    assert nearest_argument("max_len", ["maxlen", "max_lens"]) == ("maxlen", "max_lens"), "it is not among the choices"


def test_nearest_returns_n_names_but_splits_no_tie() -> None:
    names = ["abcde1", "abcde2", "abcde3", "abcde4"]
    assert nearest("abcdef", names, n=1) == tuple(names)
    # Six names at the next distance are more than five: all are left out.
    worse = [f"abcd{digit}{digit}" for digit in range(6)]
    assert nearest("abcdef", [*worse, "abcde1"], n=3) == ("abcde1",)
    assert len(nearest("abcdef", worse)) == 5


def test_nearest_among_all_tasks_and_arguments(mteb: MtebCatalogue, vllm: VllmCatalogue) -> None:
    assert nearest("STS21", mteb.tasks)[:2] == ("STS12", "STS22")
    assert nearest("gpu_memory_utilisation", vllm.args) == ("gpu_memory_utilization",)
    start = time.perf_counter()
    assert nearest("Banking77Clasification", mteb.tasks)[0] == "Banking77Classification"
    assert time.perf_counter() - start < 1
