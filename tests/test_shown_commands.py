"""Every command and override that a person is shown, pasted into bash and checked as the command line would be."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
from test_shell import pasted

from mteb_vllm.cli import HELP
from mteb_vllm.config.schema import conf_dir
from mteb_vllm.errors import ConfigError, Mistake
from mteb_vllm.preflight.command import check

ROOT = Path(__file__).parents[1]
# What the reader puts something of his own in place of: a model, a folder, a file.
PLACEHOLDERS = re.compile(
    r"org/name|/folder|/elsewhere|/results/of/others|my_conf|FOLDER|FIELD|NAME|mine\b|\.\.\.|VLLM_X|my_package"
)
# Where an override is at home, if not in a plain run.
HOMES = {
    r"pipeline=rerank|pipeline\.(top_k|scoring)": (
        "pipeline=rerank",
        "pipeline.scoring=cosine",
        "tasks=demo_retrieval",
    ),
    r"\S*pipeline[./]first_stage": (
        "pipeline=rerank",
        "pipeline.scoring=cosine",
        "tasks=demo_retrieval",
        "pipeline/first_stage=dense",
    ),
    r"pipeline\.first_stage\.path": (
        "pipeline=rerank",
        "pipeline.scoring=cosine",
        "tasks=demo_retrieval",
        "pipeline/first_stage=saved",
    ),
    r"\S*pipeline[./]reference": ("pipeline=parity",),
    r"pipeline=report|pipeline\.dir": ("pipeline=report", "runs=outputs"),
    r"score_template|.*model\.kind=cross_encoder": ("model=ms_marco_minilm", "pipeline=rerank", "tasks=demo_retrieval"),
}
INCOMPLETE = ("group=file", "group.field=value", "pipeline/first_stage=", "pipeline.dir=")


def command_lines(text: str) -> list[str]:
    """The commands of a README or help text: whole lines, and what stands between backticks."""
    lines = re.findall(r"^(?: {4}|\$ |# )(?:\S*/)?(mteb-vllm\b.*)$", text, re.MULTILINE)
    # Prose between backticks may be wrapped.
    quoted = re.findall(r"(?<!`)`(mteb-vllm [^`]+)`(?!`)", text)
    return [re.sub(r"\s+#.*", "", line) for line in [*lines, *(" ".join(item.split()) for item in quoted)]]


def overrides(text: str) -> list[str]:
    """The overrides between backticks: `group=file`, `'group.field="a text"'`."""
    found = re.findall(r"(?<!`)`((?:'|\"|[+~]|\w)[^`\n]*=[^`\n]*)`(?!`)", text)
    return [item for item in found if re.match(r"['+~]*[a-z_]+([./@][\w./@-]+)*=", item)]


README = (ROOT / "README.md").read_text(encoding="utf-8")
PROSE = re.sub(r"^```(?:python|yaml)?\n.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
COMMANDS = list(dict.fromkeys(
    command_lines(PROSE) + command_lines(HELP)
    + [line for file in sorted((conf_dir() / "experiment").glob("*.yaml")) for line in command_lines(file.read_text())[:1]]
))  # fmt: skip
OVERRIDES = list(dict.fromkeys(overrides(PROSE)))


def test_there_are_commands_to_try() -> None:
    assert len(COMMANDS) > 25 and len(OVERRIDES) > 35
    first = [file.read_text().splitlines()[1] for file in (conf_dir() / "experiment").glob("*.yaml")]
    assert all(line.startswith("# mteb-vllm ") for line in first)


def is_ours(mistake: Mistake, words: list[str]) -> bool:
    """Whether a mistake is the command's, and not that of a machine without these models, or of a placeholder."""
    absent = (
        "is not in the local cache",
        "there is no folder",
        "is not installed",
        "holds no run",
        "there is no such folder",
    )
    if any(text in mistake.what for text in absent) and "model" in mistake.where:
        return False
    return not (PLACEHOLDERS.search(str(mistake)) or PLACEHOLDERS.search(" ".join(words)))


@functools.cache
def argv_of() -> dict[str, list[str]]:
    """What bash makes of all of them, in one process; names between backticks are wrapped by shell words only."""
    lines = [*COMMANDS, *OVERRIDES]
    return dict(zip(lines, pasted(lines), strict=True))


def checked(words: list[str]) -> list[Mistake]:
    multirun = "-m" in words
    words = [word for word in words if word != "-m"]
    try:
        check(words, multirun=multirun)
    except ConfigError as error:
        return [mistake for mistake in error.mistakes if is_ours(mistake, words)]
    return []


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_that_is_shown_works(line: str) -> None:
    words = argv_of()[line]
    assert words[0] == "mteb-vllm"
    rest = [word for word in words[1:] if word not in ("...", "…")]
    flags = [word for word in rest if word.startswith("--")]
    if flags and flags[0] in ("--cfg", "--config-dir"):
        rest = rest[rest.index(flags[0]) + 2 :]
        if flags[0] == "--config-dir":
            rest = [word for word in rest if not PLACEHOLDERS.search(word)]
    assert checked(rest) == []


def home_of(line: str) -> tuple[str, ...]:
    return next((home for start, home in reversed(HOMES.items()) if re.match(start, line)), ())


def alone(words: list[str]) -> bool:
    """Whether an override chooses a file, and with it what others may be: fields are checked together."""
    return any("." not in word.partition("=")[0] or word.startswith("tasks.") for word in words)


def groups() -> list[tuple[tuple[str, ...], list[str]]]:
    """Overrides that can be checked in one command: their home, and the lines."""
    found: dict[tuple[str, ...], list[str]] = {}
    for line in OVERRIDES:
        if line in INCOMPLETE:
            continue
        words = argv_of()[line]
        keys = {word.partition("=")[0] for word in words}
        home = home_of(line)
        together = found.setdefault((*home, line if alone(words) else ""), [])
        taken = {word.partition("=")[0] for other in together for word in argv_of()[other]}
        (found.setdefault((*home, line), []) if keys & taken else together).append(line)
    return [(key[:-1], lines) for key, lines in found.items()]


@pytest.mark.parametrize(("home", "lines"), groups())
def test_an_override_that_is_shown_works(home: tuple[str, ...], lines: list[str]) -> None:
    words = [word for line in lines for word in argv_of()[line]]
    new = [part for part in home if part.partition("=")[0] not in {word.partition("=")[0] for word in words}]
    assert checked([*new, *words]) == []
