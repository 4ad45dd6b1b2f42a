"""Overrides quoted for a shell: bash, Hydra's parser and OmegaConf read back the original value."""

import random
import subprocess

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from mteb_vllm.config.schema import with_line_breaks
from mteb_vllm.util import shell

PIECES = [
    *"\\\\\"\"''$${}()[]<>=,:;&|!`~+-*?#%@^ \t\n\r./01aneé日",
    "${", "\\${", "${y}", "\\n", "\\\\n", "true", "null", "1e3", "nan", "it's: ", "${oc.env:HOME}",
]  # fmt: skip


def pasted(lines: list[str]) -> list[list[str]]:
    """Return the arguments that bash passes for each line, without the first word."""
    script = "f() { printf '%s\\0' \"$@\"; printf '\\1\\0'; }\n" + "".join(f"f {line}\n" for line in lines)
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, timeout=30)
    words = done.stdout.decode().split("\0")[:-1]
    found: list[list[str]] = [[]]
    for word in words:
        if word == "\1":
            found.append([])
        else:
            found[-1].append(word)
    return found[:-1]


def read(override: str):
    """Return the value that Hydra sets."""
    (parsed,) = OverridesParser.create().parse_overrides([override])
    config = OmegaConf.create({"at": {}})
    OmegaConf.update(config, "at.key", parsed.value(), force_add=True)
    return OmegaConf.to_container(config, resolve=True)["at"]["key"]


def texts(count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return ["".join(chance.choice(PIECES) for _ in range(chance.randint(0, 8))) for _ in range(count)]


def test_any_text_survives_bash_and_hydra() -> None:
    values = texts(1500, seed=1)
    argv = pasted([shell.suggest("at.key", value) for value in values])
    assert [len(words) for words in argv] == [1] * len(values)
    wrong = [(value, words[0]) for value, words in zip(values, argv, strict=True) if read(words[0]) != value]
    assert not wrong


@pytest.mark.parametrize(
    "value",
    [
        True, None, 3, 0.5, 1e-7, -2, "3", "true", "None", "", " ", "a,b", [], ["a", "b c", 1, None], {},
        {"dimensions": 64}, {"a": {"b": ["it's", "${x}"]}, "odd key:": "x"}, "MTEB(eng, v2)", "/folder/with space",
    ],
)  # fmt: skip
def test_any_value_survives_with_its_type(value: object) -> None:
    ((word,),) = pasted([shell.suggest("at.key", value)])
    found = read(word)
    assert found == value and type(found) is type(value)


def test_a_command_survives_bash() -> None:
    words = ["pipeline=report", shell.override("runs", "it's ${here}")]
    assert pasted([shell.command(*words)]) == [["mteb-vllm", *words]]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Instruct: {instruction}\\nQuery:", "Instruct: {instruction}\nQuery:"),
        ("\\\\nabla", "\\nabla"),
        ("\\\\\\n", "\\\\n"),
        ("tab \\t, \\ alone \\", "tab \\t, \\ alone \\"),
        (
            {"query": "a\\nb", "document": None, "from_model": True},
            {"query": "a\nb", "document": None, "from_model": True},
        ),
    ],
)
def test_a_backslash_and_an_n_are_a_line_break(written: object, meant: object) -> None:
    assert with_line_breaks(written) == meant


def test_only_a_pair_of_quotes_is_removed() -> None:
    assert [shell.unquoted(text) for text in ('"a"', "'a'", "\"a'", '"', "it's")] == ["a", "a", "\"a'", '"', "it's"]
