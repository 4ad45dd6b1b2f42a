"""Find packages that are missing or do not work together, without importing them."""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
from importlib import metadata

from mteb_vllm.errors import Mistake


def package_mistakes() -> list[Mistake]:
    """Return a mistake for a torchvision that was built for another torch than the installed one.

    transformers imports torchvision wherever it is installed, and importing such a one raises
    `RuntimeError: operator torchvision::nms does not exist`.
    """
    try:
        torch, vision = metadata.version("torch"), metadata.distribution("torchvision")
    except metadata.PackageNotFoundError:
        return []
    release, _, build = torch.partition("+")
    pinned = next(filter(None, map(_pinned_torch, vision.requires or ())), release)
    if pinned != release:
        built = f"for torch {pinned}"
    # On x86-64 PyPI has builds for CUDA only; elsewhere its builds for the CPU carry no label.
    elif build == "cpu" and not vision.version.endswith("+cpu") and platform.machine() in ("x86_64", "AMD64"):
        built = "for CUDA"
    else:
        return []
    what = f"was built {built}, but torch {torch} is installed: importing it fails (operator torchvision::nms does not exist)"
    uninstall = "uv pip uninstall" if (vision.read_text("INSTALLER") or "").strip() == "uv" else "pip uninstall -y"
    way = f"Text models do not need it. Remove it: {uninstall} torchvision"
    return [Mistake(f"torchvision {vision.version}", what, way, code="conflict")]


def slurm_mistakes(swept: bool) -> list[Mistake]:
    """Return the reasons why a command cannot be run as jobs of SLURM here.

    Args:
        swept: Whether it is a sweep.
    """
    mistakes = []
    if not swept:
        what = "only sweeps are run as jobs"
        way = "Make it a sweep: add -m."
        mistakes.append(Mistake("hydra/launcher", what, way, value="slurm", code="conflict"))
    if importlib.util.find_spec("submitit") is None:
        what, way = "is required for hydra/launcher=slurm", "Install it: pip install 'mteb-vllm[slurm]'"
        mistakes.append(Mistake("submitit", what, way, code="not_installed"))
    if missing := [name for name in ("sbatch", "squeue", "scontrol", "scancel", "srun") if shutil.which(name) is None]:
        what = f"there is no {missing[0]} here"
        way = "Run the command on a machine from which jobs are submitted, such as a login node."
        mistakes.append(Mistake("hydra/launcher", what, way, value="slurm", code="not_installed"))
    return mistakes


def _pinned_torch(requirement: str) -> str | None:
    """Return the version of torch that a requirement pins, as 2.10.0; None if it pins none."""
    found = re.match(r"torch\s*\(?\s*==\s*([\d.]*\d)", requirement)
    return found[1] if found else None
