"""The names of settings in messages, for the configuration and for Python."""

from __future__ import annotations

import pytest

from mteb_vllm.util.setting_names import SettingNames


@pytest.mark.parametrize(
    ("key", "keyword"),
    [
        ("engine.dtype", "dtype"),
        ("engine", "backend"),
        ("model.name", "model"),
        ("model.path", "path"),
        ("instruction.template", "instruction_template"),
        ("score_template.activation", "activation"),
    ],
)
def test_a_key_has_a_keyword(key: str, keyword: str) -> None:
    assert SettingNames.CONFIGURATION.name_of(key) == key
    assert SettingNames.KEYWORDS.name_of(key) == keyword


def test_values_are_written_for_a_shell_or_for_python() -> None:
    pooler = {"use_activation": False}
    configuration, keywords = SettingNames.CONFIGURATION, SettingNames.KEYWORDS
    assert configuration.assign("engine.dtype", "float32") == "engine.dtype=float32"
    assert configuration.assign("engine.load_format", "auto", new=True) == "+engine.load_format=auto"
    assert configuration.assign("engine.pooler_config", pooler) == "'engine.pooler_config={use_activation:false}'"
    assert keywords.assign("engine.dtype", "float32") == "dtype='float32'"
    assert keywords.assign("engine.load_format", "auto", new=True) == "load_format='auto'"
    assert keywords.assign("engine.pooler_config", pooler) == "pooler_config={'use_activation': False}"
