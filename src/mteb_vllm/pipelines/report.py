"""`pipeline=report`: compare finished runs, without evaluating anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mteb_vllm.config.schema import PathName


@dataclass(frozen=True, kw_only=True)
class Report:
    """A comparison of the runs in the config key `runs`, with the settings of the config group `report`.

    Attributes:
        dir: The report's output folder; None: `<results.dir>/reports/<date>/<time>`.
    """

    model_kinds: ClassVar[tuple[str, ...]] = ()

    dir: PathName | None = None
