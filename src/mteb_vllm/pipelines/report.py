"""A report over runs that there are: nothing is evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Report:
    """Compares runs; which ones, `runs` says, and how, `report`.

    Attributes:
        dir: The folder that the report goes into; None: `<results.dir>/reports/<date>/<time>`.
    """

    model_kinds: ClassVar[tuple[str, ...]] = ()

    dir: str | None = None
