"""The summary of a sweep, stored as `sweep.json` next to its points' folders."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mteb_vllm.util.files import write_atomically


@dataclass
class Summary:
    """A sweep's summary.

    Attributes:
        points: Point number to the point's number, folder, fingerprint, status, failures and seconds, for ended points.
        engines: `EngineSpec.identity` to the engine's model and points.
        opened: `EngineSpec.identity` to how often the engine was opened.
        children: Number of child processes started.
        seconds: Wall time.
    """

    points: dict[int, dict[str, Any]] = field(default_factory=dict)
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    opened: Counter[str] = field(default_factory=Counter)
    children: int = 0
    seconds: float = 0.0

    def write(self, folder: Path) -> None:
        """Write it atomically to `sweep.json`."""
        content = {
            "points": [self.points[number] for number in sorted(self.points)],
            "engines": [{"fingerprint": key, **one, "opened": self.opened[key]} for key, one in self.engines.items()],
            "engines_opened": sum(self.opened.values()),
            "children": self.children,
            "seconds": self.seconds,
        }
        write_atomically(folder / "sweep.json", json.dumps(content, indent=2) + "\n")
