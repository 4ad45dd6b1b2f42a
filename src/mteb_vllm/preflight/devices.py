"""Check the settings with which the engines of a sweep run side by side on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from mteb_vllm.config.schema import LauncherConfig, RunConfig
from mteb_vllm.engines.arguments import gpus_per_engine, resolve_arguments
from mteb_vllm.errors import Mistake
from mteb_vllm.pipelines.factory import PipelineParts
from mteb_vllm.pipelines.rerank.first_stages import Dense
from mteb_vllm.util.machine import cores, visible_gpus


def chosen_gpus(launcher: LauncherConfig) -> list[str]:
    """Return the GPUs that a sweep divides among its engines, as `CUDA_VISIBLE_DEVICES` names them; empty: none."""
    return visible_gpus() if launcher.devices == ["auto"] else list(launcher.devices or ())


def device_mistakes(launcher: LauncherConfig) -> list[Mistake]:
    """Return the mistakes in the devices and the number of workers, for this machine."""
    gpus, mistakes = visible_gpus(), []
    if launcher.devices is not None:
        shown = f"[{','.join(launcher.devices)}]" if launcher.devices != ["auto"] else "auto"
        unknown = [name for name in launcher.devices if name not in gpus]
        if launcher.workers is not None:
            what = "cannot be combined with hydra.launcher.devices"
            way = "devices is for GPUs, and workers for a CPU."
            mistakes.append(Mistake("hydra.launcher.workers", what, way, value=f"{launcher.workers}", code="conflict"))
        if not gpus:
            what, way = "vLLM finds no GPU here", "On a CPU, set hydra.launcher.workers to run engines side by side."
            mistakes.append(Mistake("hydra.launcher.devices", what, way, value=shown))
        elif launcher.devices != ["auto"] and (unknown or not launcher.devices):
            what = f"there is no GPU {unknown[0]}" if unknown else "names no GPU"
            way = f"GPUs: {', '.join(gpus)}."
            mistakes.append(Mistake("hydra.launcher.devices", what, way, value=shown, code="unknown_choice"))
        elif len(set(launcher.devices)) < len(launcher.devices):
            mistakes.append(Mistake("hydra.launcher.devices", "names a GPU twice", value=shown))
    elif launcher.workers is not None and launcher.workers > 1:
        problem = None
        if gpus:
            problem = "engines use the GPUs of this machine", "To divide them: hydra.launcher.devices=auto"
        elif not hasattr(os, "sched_setaffinity"):
            problem = "this system cannot bind a process to cores", "Leave it unset."
        elif launcher.workers > len(cores()):
            problem = "each worker needs a core, and there are fewer", f"Cores: {len(cores())}."
        if problem is not None:
            mistakes.append(Mistake("hydra.launcher.workers", *problem, value=f"{launcher.workers}"))
    return mistakes


def engine_size_mistakes(launcher: LauncherConfig, config: RunConfig, parts: PipelineParts) -> list[Mistake]:
    """Return the mistakes in a point's engines that do not fit on the devices or cores that one of them gets.

    Args:
        launcher: Settings without mistakes.
        config: The point, without mistakes.
        parts: Its pipeline.
    """
    gpus = chosen_gpus(launcher)
    workers = launcher.workers or 1
    if not gpus and workers == 1:
        return []
    mistakes = []
    for where, engine, recipe in _engines(config, parts):
        args, env, _, _, replicas, address = resolve_arguments(engine, recipe)
        if address is not None:
            continue  # it runs on a Ray cluster
        size = gpus_per_engine(args)
        # Replicas may share a GPU, but not a core.
        needed = size if gpus else size * replicas
        room = len(gpus) or len(cores()) // workers
        if needed > room:
            key = "tensor_parallel_size" if size > room else "replicas"
            what = f"the engine needs {needed} {'GPUs' if gpus else 'cores'}, and hydra.launcher gives it {room}"
            mistakes.append(Mistake(f"{where}.{key}", what, value=f"{engine.get(key)}", code="conflict"))
        if gpus and "CUDA_VISIBLE_DEVICES" in env:
            what = "cannot be combined with hydra.launcher.devices, which sets it for each engine"
            mistakes.append(Mistake(f"{where}.env.CUDA_VISIBLE_DEVICES", what, code="conflict"))
        if gpus and launcher.devices != ["auto"] and "auto" in (engine.get("replicas"), recipe.get("replicas")):
            what = "is one replica for each visible GPU, but hydra.launcher.devices chooses some of them"
            way = "Set a number, or choose the GPUs with CUDA_VISIBLE_DEVICES and hydra.launcher.devices=auto."
            mistakes.append(Mistake(f"{where}.replicas", what, way, value="auto", code="conflict"))
    return mistakes


def _engines(
    config: RunConfig, parts: PipelineParts
) -> Iterator[tuple[str, Mapping[str, object], Mapping[str, object]]]:
    """Yield the key, the values and the recipe's values of each vLLM engine of a point."""
    yield "engine", config.engine, config.model.engine
    if isinstance(parts.first_stage, Dense):
        yield "pipeline.first_stage.engine", parts.first_stage.engine, parts.first_stage.model.engine
