"""A torchvision that cannot be imported with the installed torch is found without importing it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mteb_vllm.errors import ConfigError
from mteb_vllm.preflight.command import check
from mteb_vllm.preflight.packages import package_mistakes

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts the metadata of a package at the front of the path, without the package."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")

    def write(name: str, version: str, *requires: str, installer: str = "pip") -> None:
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        (folder / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {line}" for line in requires), ""]))
        (folder / "INSTALLER").write_text(f"{installer}\n")

    return write


def test_a_torchvision_for_cuda_beside_a_torch_for_the_cpu(install: Install) -> None:
    install("torch", "2.13.0+cpu")
    install("torchvision", "0.28.0", "numpy", "torch==2.13.0", installer="uv")
    with pytest.raises(ConfigError) as caught:
        check([])
    (mistake,) = caught.value.mistakes
    assert str(mistake) == (
        "torchvision 0.28.0: was built for CUDA, but torch 2.13.0+cpu is installed: importing it fails (operator "
        "torchvision::nms does not exist)\n    Text models do not need it. Remove it: uv pip uninstall torchvision"
    )
    assert "torchvision" not in sys.modules


def test_a_torchvision_for_another_version_of_torch(install: Install) -> None:
    install("torch", "2.13.0+cpu")
    install("torchvision", "0.27.0+cpu", "torch (==2.12.0)")
    (mistake,) = package_mistakes()
    assert "was built for torch 2.12.0, but torch 2.13.0+cpu is installed" in mistake.what
    assert mistake.allowed.endswith("Remove it: pip uninstall -y torchvision")


@pytest.mark.parametrize(
    ("torch", "vision", "requires", "machine"),
    [
        ("2.13.0+cpu", "0.28.0+cpu", "torch==2.13.0", "x86_64"),
        ("2.13.0", "0.28.0", "torch==2.13.0", "x86_64"),
        ("2.13.0+cu130", "0.28.0", "torch==2.13.0", "x86_64"),
        ("2.13.0+cpu", "0.28.0", "torch==2.13.0", "aarch64"),
        ("2.13.0+cpu", "0.28.0+cpu", "torch", "x86_64"),
    ],
)
def test_a_torchvision_that_fits(
    install: Install, monkeypatch: pytest.MonkeyPatch, torch: str, vision: str, requires: str, machine: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    install("torch", torch)
    install("torchvision", vision, requires)
    assert package_mistakes() == []


def test_a_report_needs_neither(install: Install, tmp_path: Path) -> None:
    install("torch", "2.13.0+cpu")
    install("torchvision", "0.28.0", "torch==2.13.0")
    assert check(["pipeline=report", f"runs={tmp_path}"])
