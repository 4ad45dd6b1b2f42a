"""How messages name settings: as keys of the configuration, or as keyword arguments of the wrappers in Python."""

from __future__ import annotations

import shlex
from enum import Enum

from mteb_vllm.util.shell import override

# Keys whose keyword argument is not named like the last part of the key.
_KEYWORDS = {"engine": "backend", "model.name": "model", "instruction.template": "instruction_template"}


class SettingNames(Enum):
    """The names that messages use for settings: those of the interface that the user called."""

    CONFIGURATION = "configuration"
    KEYWORDS = "keywords"

    def name_of(self, key: str) -> str:
        """Return the name of a setting.

        Args:
            key: Its key in the configuration, such as `engine.dtype`; the keyword argument of that is `dtype`.
        """
        return key if self is SettingNames.CONFIGURATION else _KEYWORDS.get(key, key.rpartition(".")[2])

    def assign(self, key: str, value: object, *, new: bool = False) -> str:
        """Return a setting with a value: `engine.dtype=float32`, quoted for a shell, or `dtype='float32'`.

        Args:
            key: Its key in the configuration.
            value: The value.
            new: Whether no file of the configuration declares the key, so that an override needs a plus.
        """
        if self is SettingNames.CONFIGURATION:
            return shlex.quote(override(f"{'+' if new else ''}{key}", value))
        return f"{self.name_of(key)}={value!r}"
