"""Every command, override, YAML file and Python call that README, docs and --help show, checked as a run would check them."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from test_shell import pasted

from mteb_vllm.cli import HELP
from mteb_vllm.config.schema import conf_dir
from mteb_vllm.errors import ConfigError, Mistake
from mteb_vllm.preflight.command import check

ROOT = Path(__file__).parents[1]
# Names in place of which readers put their own: a model, a folder, a file.
PLACEHOLDERS = re.compile(
    r"org/name|0123abc|/folder|/elsewhere|/results/of/others|FOLDER|FIELD|NAME|mine\.jinja|\.\.\.|VLLM_X|my_package\.templates"
)
# Keys of the launcher for SLURM.
OF_SLURM = "partition|account|time|gpus|cpus|memory|modules|setup|max_jobs|additional_parameters"
# What an override is checked together with, where a plain run does not have its key.
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
    r"pipeline\.(lengths|tokens|requests|batch_sizes)": ("pipeline=throughput",),
    r"'tasks\.subsets": ("tasks=xquad",),
    r"\S*pipeline[./]reference": ("pipeline=parity",),
    r"'?hydra[./]sweeper|report\.score_tolerance|.*=choice\(": (
        "-m",
        "hydra/sweeper=optuna",
        "hydra.sweeper.direction=maximize",
        "report.objective=texts_per_second",
        "results.reuse=none",
        "engine.seed=choice(0,1)",
    ),
    r"pipeline=report|pipeline\.dir": ("pipeline=report", "runs=outputs"),
    rf"'?\+?hydra\.launcher\.({OF_SLURM})|hydra/launcher=slurm": (
        "-m",
        "hydra/launcher=slurm",
    ),
    r"score_template|.*model\.kind=cross_encoder": ("model=ms_marco_minilm", "pipeline=rerank", "tasks=demo_retrieval"),
}
INCOMPLETE = ("group=file", "group.field=value")
# Written by docs/generate.py from files that have tests of their own.
GENERATED = ("reference/configuration.md", "reference/models.md")
# Where files of the reader's are shown, for pages that only mention them.
OWN_FILES = "docs/how-to/own-yaml.md"


class Block(NamedTuple):
    """A fenced block."""

    language: str
    text: str


class Shown(NamedTuple):
    """Something that a page shows."""

    page: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def blocks(text: str) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [Block(*item) for item in found]


def prose(text: str) -> str:
    return re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def shows_errors(block: Block) -> bool:
    """Whether a block shows a wrong command with the errors that it gives."""
    return re.search(r"^\d+ (error|mistake)s? in the configuration:$", block.text, re.MULTILINE) is not None


def shell_lines(text: str) -> list[str]:
    """The commands of a page: lines of its bash blocks, and those after a `$` in its console blocks."""
    lines = []
    for block in blocks(text):
        if block.language == "bash":
            lines += block.text.splitlines()
        elif block.language == "console" and not shows_errors(block):
            lines += [line.removeprefix("$ ") for line in block.text.splitlines() if line.startswith("$ ")]
    # Prose between backticks may be wrapped.
    quoted = re.findall(r"(?<!`)`((?:mteb-vllm|make|hf) [^`]+)`(?!`)", prose(text))
    found = [*lines, *(" ".join(item.split()) for item in quoted)]
    return [re.sub(r"\s+#.*", "", line) for line in found if line.strip()]


def help_lines(text: str) -> list[str]:
    found = re.findall(r"^(?: {4}|# )(mteb-vllm\b.*)$", text, re.MULTILINE)
    return [re.sub(r"\s+#.*", "", line) for line in found]


def overrides(text: str) -> list[str]:
    """The overrides between backticks: `group=file`, `'group.field="a text"'`."""
    found = re.findall(r"(?<!`)`((?:'|\"|[+~]|\w)[^`\n]*=[^`\n]*)`(?!`)", prose(text))
    return [item for item in found if re.match(r"['+~]*[a-z_]+([./@][\w./@-]+)*=", item) and not item.endswith("=")]


PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
LINES = list(dict.fromkeys(
    [Shown(page, line) for page, text in PAGES.items() for line in shell_lines(text)]
    + [Shown("--help", line) for line in help_lines(HELP)]
    + [Shown(file.name, line) for file in sorted((conf_dir() / "experiment").glob("*.yaml"))
       for line in help_lines(file.read_text())[:1]]
))  # fmt: skip
COMMANDS = [line for line in LINES if re.match(r"(\w+=\S+ )?(\S*/)?mteb-vllm\b", line.text)]
OTHERS = [line for line in LINES if line not in COMMANDS]
OVERRIDES = list(dict.fromkeys(
    item for page, text in PAGES.items() if not page.endswith(GENERATED) for item in overrides(text)
))  # fmt: skip


def test_there_are_commands_to_try() -> None:
    assert len(COMMANDS) > 80 and len(OVERRIDES) > 60
    first = [file.read_text().splitlines()[1] for file in (conf_dir() / "experiment").glob("*.yaml")]
    assert all(line.startswith("# mteb-vllm ") for line in first)


def is_ours(mistake: Mistake) -> bool:
    """Whether a mistake is the command's, and not that of a machine without what it needs, or of a placeholder."""
    if mistake.key in ("submitit", "hydra/launcher") and mistake.code == "not_installed":
        return False
    if mistake.key in ("hydra.launcher.devices", "hydra.launcher.workers") and (
        "finds no GPU here" in mistake.what or "needs a core" in mistake.what
    ):
        return False
    if "submitit_local" in mistake.where and not any(metadata.distributions(name="hydra-submitit-launcher")):
        return False
    absent = (
        "is not in the local cache",
        "there is no folder",
        "is not installed",
        "holds no run",
        "there is no such folder",
    )
    if any(text in mistake.what for text in absent) and ("model" in mistake.where or "runs" in mistake.where):
        return False
    return not PLACEHOLDERS.search(str(mistake))


@functools.cache
def argv_of() -> dict[str, list[str]]:
    """What bash makes of all of them, in one process."""
    lines = list(dict.fromkeys([*(line.text for line in LINES), *OVERRIDES]))
    return dict(zip(lines, pasted(lines), strict=True))


def checked(words: list[str], config_dir: Path | None = None) -> list[Mistake]:
    multirun = "-m" in words
    words = [word for word in words if word != "-m"]
    try:
        check(words, multirun=multirun, config_dir=str(config_dir) if config_dir is not None else None)
    except ConfigError as error:
        return [mistake for mistake in error.mistakes if is_ours(mistake)]
    return []


def own_files(page: str) -> list[tuple[str, str]]:
    """The files of the reader's that a page shows: their paths, by the comment on the first line, and contents."""
    found = []
    for block in blocks(PAGES[page]):
        if (named := re.match(r"# (my_(?:conf|package)/\S+)\n", block.text)) is not None:
            found.append((named[1], block.text.partition("\n")[2]))
    return found


def write_own_files(page: str, folder: Path) -> Path:
    """Write a page's own files, and return its folder of configuration files."""
    for name, text in own_files(page):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if path.suffix == ".py":
            (path.parent / "__init__.py").touch()
    return folder / "my_conf"


@pytest.mark.parametrize("line", COMMANDS, ids=str)
def test_a_command_that_is_shown_works(line: Shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = argv_of()[line.text]
    while words[0] != "mteb-vllm":  # variables, and the folder that it is in
        assert re.fullmatch(r"[A-Z_]+=\S*|\S*/mteb-vllm", words[0])
        words = ["mteb-vllm", *words[1:]] if words[0].endswith("/mteb-vllm") else words[1:]
    rest = [word for word in words[1:] if word not in ("...", "…")]
    if rest and rest[0] in ("--cfg", "--help", "--version", "--hydra-help"):
        return  # Hydra's own
    folder = None
    if "--config-dir" in rest:
        at = rest.index("--config-dir")
        assert rest[at + 1] in ("my_conf", "DIR")
        page = line.page if line.page in PAGES and own_files(line.page) else OWN_FILES
        folder = write_own_files(page, tmp_path)
        rest = [*rest[:at], *rest[at + 2 :]]
        monkeypatch.syspath_prepend(tmp_path)
        for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
            monkeypatch.delitem(sys.modules, name)  # another test's
    assert checked(rest, folder) == []


WRONG = [(page, block) for page, text in PAGES.items() for block in blocks(text) if shows_errors(block)]


@pytest.mark.parametrize(("page", "block"), WRONG, ids=[page for page, _ in WRONG])
def test_errors_that_are_shown_are_those_of_the_command(page: str, block: Block) -> None:
    command, _, *shown = block.text.rstrip().splitlines()
    (words,) = pasted([command.removeprefix("$ ")])
    with pytest.raises(ConfigError) as error:
        check(words[1:])
    assert str(error.value).splitlines()[1:] == shown


def test_a_wrong_command_of_every_kind_is_found(tmp_path: Path) -> None:
    folder = write_own_files(OWN_FILES, tmp_path)
    for words in (
        ["engine.dtpye=float32"],
        ["-m", "prompts=none,e6"],
        ["model=custom", "model.name=org/name", "tasks=sts21"],
        ["experiment=mine", "engine.dtype=float33"],
    ):
        assert checked(words, folder), words


@pytest.mark.parametrize("page", [page for page in PAGES if own_files(page)])
def test_files_that_are_shown_are_used_by_a_command_of_their_page(page: str) -> None:
    lines = [line.text for line in COMMANDS if line.page == page and "--config-dir my_conf" in line.text]
    used = " ".join([*lines, *(text for _, text in own_files(page))])
    for name, _ in own_files(page):
        path = Path(name)
        if path.suffix == ".yaml" and path.parts[1] != "local":
            group = "/".join(path.parts[1:-1])
            assert re.search(rf"{group}(=|: )\S*\b{path.stem}\b", used), f"{name} is in no command of {page}"


@pytest.mark.parametrize("line", OTHERS, ids=str)
def test_other_commands_exist(line: Shown) -> None:
    words = line.text.split()
    if words[0] == "make":
        done = subprocess.run(
            ["make", "--dry-run", *argv_of()[line.text][1:]], cwd=ROOT, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
    elif words[0] == "hf":
        name, options = (words[2], words[3:]) if len(words) > 2 else ("", ["--repo-type"])
        assert words[1] == "download"
        recipes = [yaml.safe_load(path.read_text()) for path in (conf_dir() / "model").glob("*.yaml")]
        pinned = {recipe.get("name"): recipe.get("revision") for recipe in recipes if recipe.get("revision")}
        if "--repo-type" not in options:
            assert options == ["--revision", pinned[name]]
    elif "install" in words:
        extra = re.findall(r"(?:mteb-vllm|\.)\[(\w+)\]", line.text)[0]
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    else:
        raise AssertionError(f"nothing checks {line.text}")


PYTHON = [(page, block.text) for page, text in PAGES.items() for block in blocks(text) if block.language == "python"]


@pytest.mark.parametrize(("page", "text"), PYTHON, ids=[f"{page}: {text.splitlines()[0]}" for page, text in PYTHON])
def test_python_that_is_shown_names_what_there_is(page: str, text: str) -> None:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mteb_vllm"):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "run":
            words = ast.literal_eval(node.args[0])
            options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
            assert checked([*words, *(["-m"] if options.get("multirun") else [])]) == []


@pytest.mark.parametrize("page", PAGES)
def test_blocks_say_what_they_are_and_outputs_which_command_made_them(page: str) -> None:
    for block in blocks(PAGES[page]):
        assert block.language in ("bash", "console", "python", "yaml", "toml", "text"), block
        if block.language == "console":
            assert block.text.startswith("$ "), block


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
