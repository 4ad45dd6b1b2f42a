"""Mistakes in the settings with which the engines of a sweep run side by side."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from test_command import mistakes, only

from mteb_vllm.engines import arguments
from mteb_vllm.preflight import devices
from mteb_vllm.preflight.command import check
from mteb_vllm.util.machine import cores

SWEEP = ["tasks=sts12", "engine.max_num_seqs=8,16"]
GPU = [*SWEEP, "engine=vllm"]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four GPUs, as the driver of a machine that has them would report."""
    monkeypatch.setattr(devices, "visible_gpus", lambda: ["0", "1", "2", "7"])
    monkeypatch.setattr(arguments, "gpu_count", lambda: 4)


def test_devices_need_gpus() -> None:
    text = only(*SWEEP, "hydra.launcher.devices=auto", multirun=True)
    assert text.startswith("hydra.launcher.devices=auto: vLLM finds no GPU here") and "hydra.launcher.workers" in text
    assert "[0,1]" in only(*SWEEP, "hydra.launcher.devices=[0,1]", multirun=True)
    both = mistakes(*SWEEP, "hydra.launcher.devices=auto", "hydra.launcher.workers=2", multirun=True)
    assert [mistake.key for mistake in both] == ["hydra.launcher.workers", "hydra.launcher.devices"]


def test_each_worker_needs_a_core() -> None:
    many = len(cores()) + 1
    assert f"Cores: {len(cores())}." in only(*SWEEP, f"hydra.launcher.workers={many}", multirun=True)
    assert "hydra.launcher.workers=0" in only(*SWEEP, "hydra.launcher.workers=0", multirun=True)
    assert check([*SWEEP, f"hydra.launcher.workers={len(cores())}"], multirun=True)
    text = only(*SWEEP, f"hydra.launcher.workers={len(cores())}", "engine.replicas=2", multirun=True)
    assert text.startswith("engine.replicas=2: the engine needs 2 cores, and hydra.launcher gives it 1")


@pytest.mark.usefixtures("gpus")
def test_devices_are_gpus_of_this_machine() -> None:
    assert len(check([*GPU, "hydra.launcher.devices=auto"], multirun=True)) == 2
    assert check([*GPU, "hydra.launcher.devices=[0,7]"], multirun=True)
    text = only(*GPU, "hydra.launcher.devices=[0,3]", multirun=True)
    assert text == "hydra.launcher.devices=[0,3]: there is no GPU 3\n    GPUs: 0, 1, 2, 7."
    assert "twice" in only(*GPU, "hydra.launcher.devices=[0,0]", multirun=True)
    assert "names no GPU" in only(*GPU, "hydra.launcher.devices=[]", multirun=True)
    assert "hydra.launcher.devices=auto" in only(*GPU, "hydra.launcher.workers=2", multirun=True)
    assert "must be a list" in only(*GPU, "hydra.launcher.devices=0", multirun=True)


@pytest.mark.usefixtures("gpus")
def test_an_engine_fits_on_the_devices() -> None:
    text = only(*GPU, "hydra.launcher.devices=[0,1]", "engine.tensor_parallel_size=1,3", multirun=True)
    assert text.startswith("engine.tensor_parallel_size=3: the engine needs 3 GPUs, and hydra.launcher gives it 2")
    assert check([*GPU, "hydra.launcher.devices=[0,1]", "engine.replicas=8"], multirun=True), "replicas share GPUs"
    auto = ["hydra.launcher.devices=[0,1]", "engine.replicas=auto"]
    assert "choose the GPUs with CUDA_VISIBLE_DEVICES" in only(*GPU, *auto, multirun=True)
    assert check([*GPU, "hydra.launcher.devices=auto", "engine.replicas=auto"], multirun=True)
    own = ["hydra.launcher.devices=auto", "+engine.env.CUDA_VISIBLE_DEVICES=1"]
    assert only(*GPU, *own, multirun=True).startswith("engine.env.CUDA_VISIBLE_DEVICES: cannot be combined")
    stage = ["pipeline=rerank", "model=minilm", "pipeline.scoring=cosine", "pipeline/first_stage=dense",
             "model@pipeline.first_stage.model=minilm", "+pipeline.first_stage.engine.tensor_parallel_size=8"]  # fmt: skip
    found = only("tasks=demo_retrieval", "pipeline.top_k=5,10", *stage, "hydra.launcher.devices=auto", multirun=True)
    assert found.startswith("pipeline.first_stage.engine.tensor_parallel_size=8")


def test_the_exit_status_is_2(tmp_path: Path) -> None:
    words = ["-m", "mteb_vllm", "-m", *SWEEP, "hydra.launcher.devices=auto", f"results.dir={tmp_path}/out"]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "vLLM finds no GPU here" in done.stderr and not (tmp_path / "out").exists()
