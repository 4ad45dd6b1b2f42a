"""What a sweep leaves of itself, beside its points' folders: `sweep.json`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mteb_vllm.util.files import write_atomically


@dataclass
class Summary:
    """A sweep as it is kept in `sweep.json`, beside its points' folders.

    Attributes:
        points: For each point that has ended its number, folder, fingerprint, status, failures and seconds.
        engines: For each engine, by fingerprint, its model and the points on it.
        opened: How often each engine was opened, by fingerprint.
        children: How many child processes were started.
        seconds: Wall time.
    """

    points: dict[int, dict[str, Any]] = field(default_factory=dict)
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    opened: Counter[str] = field(default_factory=Counter)
    children: int = 0
    seconds: float = 0.0

    def write(self, folder: Path) -> None:
        """Writes it, whole or not at all."""
        content = {
            "points": [self.points[number] for number in sorted(self.points)],
            "engines": [{"fingerprint": key, **one, "opened": self.opened[key]} for key, one in self.engines.items()],
            "engines_opened": sum(self.opened.values()),
            "children": self.children,
            "seconds": self.seconds,
        }
        write_atomically(folder / "sweep.json", json.dumps(content, indent=2) + "\n")
