"""The arguments of `mteb_vllm.run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mteb_vllm import ConfigError, run


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("dry_run=true", "overrides: must be a list, not text"),
        (b"dry_run=true", "overrides: must be a list, not bytes"),
        ({"dry_run": True}, "overrides: must be a list, not a mapping"),
        (None, "overrides: must be a list, not nothing (null)"),
        (["dry_run=true", 5], "overrides=5: each must be text, not a whole number"),
        ([("dry_run", True)], "overrides=('dry_run', True): each must be text, not a list"),
    ],
)
def test_overrides_must_be_a_list_of_texts(overrides: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(overrides, show=False)
    (mistake,) = caught.value.mistakes
    assert str(mistake) == f'{message}\n    Write a list of texts: ["model=minilm", "tasks=sts12"]'


def test_overrides_may_come_from_an_iterator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(run(iter(["dry_run=true"]), show=False), list)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir()), "nothing was run"


@pytest.mark.parametrize("folder", [5, "", "/nowhere"])
def test_the_folder_of_configuration_files(folder: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"config_dir=5: must be a path|--config-dir (''|/nowhere): there is no such folder"
    ):
        run(["dry_run=true"], config_dir=folder, show=False)
