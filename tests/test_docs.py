"""README and docs: current, complete, without dead links, and a site that needs no network."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from mteb_vllm import errors
from mteb_vllm.config import schema
from mteb_vllm.results.failures import Kind

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"


def script(name: str) -> ModuleType:
    """Import a script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"{name}_docs", DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    return script("generate")


@pytest.fixture(scope="module")
def measured() -> ModuleType:
    return script("charts")


def test_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_pictures_are_small() -> None:
    assert (DOCS / "images" / "report.png").stat().st_size < 200_000


# The charts of the measurements.


def test_charts_of_measurements_show_the_figures_of_their_tables(measured: ModuleType) -> None:
    page, heading, tokens = measured.CHARTS["cpu-unpadding"]
    rows = measured.read_table((DOCS / "measurements" / page).read_text(encoding="utf-8"), heading)
    curves = measured.curves(rows, tokens)
    assert [(curve.engine, curve.lengths) for curve in curves] == [
        (engine, lengths)
        for engine in ("vLLM", "sentence-transformers")
        for lengths in ("64 tokens each", "varied (lognormal)")
    ]
    first = curves[0].throughput
    assert (first.requests_per_second, first.p50(1), first.p50(64)) == (69.0, 26.0, 818.0)
    assert [step.batch_size for step in first.steps] == [1, 8, 64]
    assert first.steps[1].requests_per_second == pytest.approx(8 / 0.103)


def test_every_picture_of_measurements_is_drawn_from_a_table_of_its_page(measured: ModuleType) -> None:
    pictures = {path.stem for path in (DOCS / "measurements").glob("*.png")}
    assert pictures == set(measured.CHARTS)
    counts = {}
    for name, (page, heading, tokens) in measured.CHARTS.items():
        text = (DOCS / "measurements" / page).read_text(encoding="utf-8")
        counts[name] = len(measured.curves(measured.read_table(text, heading), tokens))
        section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        assert f"({name}.png)" in section
        assert (DOCS / "measurements" / f"{name}.png").stat().st_size < 400_000
    assert counts == {"cpu-dtypes": 3, "cpu-unpadding": 4, "gpu-minilm": 12, "gpu-qwen3": 3}


# Language.

# Words of earlier versions, which were not idiomatic: some for all text, some for the docstrings and comments of modules.
UNIDIOMATIC = (
    r"\broofs?\b", r"\beverything at once\b", r"\bset aside\b", r"\b(?:gives?|giving|gave) way\b", r"\bbeside\b",
    r"\b(?:said|told|hears?|asks|asked for|whomever)\b", r"\bof whom\b", r"\breads? behind\b", r"\bknown already\b",
    r"\bstands? (?:first|last|in it|in front|on top|behind)\b", r"\bwhat (?:stands|comes of|the model reads)\b",
    r"\bReturn what\b", r"\btells? (?:it|them|one) from\b",
)  # fmt: skip
UNIDIOMATIC_IN_MODULES = (r'"""What\b', r"# What\b", r"^ +\w+: What\b")
TEXTS = (".css", ".jinja", ".js", ".md", ".py", ".yaml", ".yml")


def unidiomatic(text: str, patterns: tuple[str, ...]) -> list[str]:
    found = (re.search(pattern, line) for line in text.splitlines() for pattern in patterns)
    return [match[0] for match in found if match is not None]


def test_unidiomatic_words_of_earlier_versions_do_not_come_back() -> None:
    files = [README, ROOT / "CHANGELOG.md"]
    files += [path for name in ("src", "conf", "docs") for path in (ROOT / name).rglob("*") if path.suffix in TEXTS]
    found = {}
    for path in files:
        if path.name != "vega.js":
            patterns = UNIDIOMATIC + (UNIDIOMATIC_IN_MODULES if path.is_relative_to(ROOT / "src") else ())
            found[path.relative_to(ROOT).as_posix()] = unidiomatic(path.read_text(encoding="utf-8"), patterns)
    assert len(found) > 200
    assert {path: words for path, words in found.items() if words} == {}


@pytest.mark.parametrize(
    "line",
    [
        "The share of the roof is 50 %.", "A text that is set aside gives way.", "# What is shown", '    """What it is."""',
        "        name: What tells it from the others.", "the best stands first", "as the engine said", "a file beside it",
        '    """Return what the engine hears."""',
    ],
)  # fmt: skip
def test_unidiomatic_words_are_found(line: str) -> None:
    assert unidiomatic(line, UNIDIOMATIC + UNIDIOMATIC_IN_MODULES)


@pytest.mark.parametrize(
    "line",
    [
        "the roofline of the machine", "The file cannot be read as Python.", "All errors are reported at once.",
        "# Stands for null", "  What to try: lower engine.max_model_len", "## What a sweep saves",
    ],
)  # fmt: skip
def test_idiomatic_words_are_not_found(line: str) -> None:
    assert not unidiomatic(line, UNIDIOMATIC)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("pipeline.window", "pipeline.chunk_size"),
        ("pipeline.length_tolerance", "pipeline.norm_tolerance"),
        ("store.", "embedding_cache."),
    ],
)
def test_the_changelog_lists_renamed_keys(old: str, new: str) -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    reference = (DOCS / "reference" / "configuration.md").read_text(encoding="utf-8")
    assert re.search(rf"`{re.escape(old)}\*?`[^`]*`{re.escape(new)}\*?`", changelog), f"{old} -> {new}"
    assert f"| `{new}" in reference and f"| `{old}" not in reference


def test_the_readme_defines_a_point_where_it_is_first_mentioned() -> None:
    text = re.sub(r"^```.*?^```$", "", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    first = next(part for part in re.split(r"\n\s*\n", text) if re.search(r"\bpoints?\b", part))
    assert re.search(r"[Ee]ach combination of values is a \*point\*", " ".join(first.split()))


# The folder tree of the architecture page.

NAME = r"\w+(?:\.py|/)"


def in_package(folder: Path) -> set[str]:
    """The packages and public modules in a folder, as `sweep/` and `plan.py`."""
    packages = {f"{path.parent.name}/" for path in folder.glob("*/__init__.py")}
    return packages | {path.name for path in folder.glob("[!_]*.py")}


def folder_tree(page: str) -> dict[str, str]:
    """The names in the tree of the package: name to the rest of its line."""
    (tree,) = re.findall(r"^```text\n(.*?^src/mteb_vllm/\n.*?)^```$", page, re.DOTALL | re.MULTILINE)
    found = {}
    for line in tree.partition("src/mteb_vllm/\n")[2].splitlines():
        names, rest = re.split(r" {2,}", line.strip(), maxsplit=1)
        found |= dict.fromkeys(names.split(", "), rest)
    return found


def test_the_tree_of_the_architecture_page_is_that_of_the_package() -> None:
    package = ROOT / "src" / "mteb_vllm"
    tree = folder_tree((DOCS / "explanation" / "architecture.md").read_text(encoding="utf-8"))
    assert set(tree) == in_package(package)
    for name, rest in tree.items():
        if name.endswith("/"):
            assert set(re.findall(NAME, rest)) <= in_package(package / name), name


# The reference pages.


@pytest.mark.parametrize("name", ["reference/configuration.md", "reference/models.md"])
def test_generated_pages_are_current(generate: ModuleType, name: str) -> None:
    written = (DOCS / name).read_text(encoding="utf-8")
    assert written == generate.pages()[name], "stale: make reference"


def test_a_changed_comment_makes_a_page_stale(generate: ModuleType, tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(schema.conf_dir(), conf)
    assert generate.pages(conf) == generate.pages()
    for file, name in (
        ("engine/fields.yaml", "reference/configuration.md"),
        ("model/e5_small.yaml", "reference/models.md"),
    ):
        path = conf / file
        path.write_text(re.sub(r"# (.*)$", r"# Changed: \1", path.read_text(), count=1, flags=re.MULTILINE))
        assert generate.pages(conf)[name] != generate.pages()[name]
        assert "Changed: " in generate.pages(conf)[name]


def test_a_key_without_a_comment_is_an_error(generate: ModuleType, tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(schema.conf_dir(), conf)
    path = conf / "pipeline" / "evaluate.yaml"
    path.write_text(re.sub(r"  +#.*", "", path.read_text()))
    with pytest.raises(generate.MissingDescriptionError, match=r"^pipeline\.\w+ has no comment"):
        generate.pages(conf)


def test_a_field_of_the_schema_that_no_file_has_is_an_error(generate: ModuleType, tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(schema.conf_dir(), conf)
    path = conf / "tasks" / "fields.yaml"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith("subsets")))
    with pytest.raises(generate.MissingDescriptionError, match="the schema has subsets"):
        generate.pages(conf)


def test_comments_are_read_behind_below_and_above_keys(generate: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "# @package _global_\n# The head,\n# in two lines.\n"
        'first: "a # no comment"     # behind it\n'
        "                            # and below\n"
        "# above it\n"
        "nested:\n"
        "  inner: it's               # its own\n"
        "  # of two\n"
        "  other: {a: 1}\n"
        "bare: null\n"
    )
    file = generate.read(path)
    assert file.head == "The head, in two lines."
    assert file.comments == {
        "first": "behind it and below",
        "nested": "above it",
        "nested.inner": "its own",
        "nested.other": "of two",
    }


def test_every_key_of_the_schema_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "configuration.md").read_text(encoding="utf-8")
    sections = {
        "model": schema.ModelConfig, "tasks": schema.TasksConfig, "results": schema.ResultsConfig,
        "embedding_cache": schema.EmbeddingCacheConfig, "report": schema.ReportConfig,
        "score_template": schema.ScoreTemplateConfig, "instruction": schema.InstructionConfig,
        "hydra.launcher": schema.LauncherConfig,
    }  # fmt: skip
    keys = [f"{name}.{field.name}" for name, cls in sections.items() for field in fields(cls)]
    keys += [f"hydra.launcher.{field.name}" for field in fields(schema.SlurmConfig)]
    keys += [field.name for field in fields(schema.RunConfig) if field.name in ("runs", "retry_failed", "dry_run")]
    assert [key for key in keys if f"| `{key}` |" not in page and not key.endswith("from_model")] == []
    for path in schema.conf_dir().rglob("*.yaml"):
        group = path.parent.relative_to(schema.conf_dir()).as_posix()
        if group not in (".", "model") and not group.startswith("hydra") and path.stem != "fields":
            assert f"`{group}={path.stem}`" in page
    models = (DOCS / "reference" / "models.md").read_text(encoding="utf-8")
    recipes = {path.stem for path in (schema.conf_dir() / "model").glob("*.yaml")} - {"fields", "custom"}
    assert set(re.findall(r"^\| `model=(\w+)`", models, re.MULTILINE)) == recipes


# Troubleshooting.


def sections(text: str) -> dict[str, str]:
    """The sections of the third level, by their titles."""
    parts = re.split(r"^### (.+)$", text, flags=re.MULTILINE)
    return {
        title: re.split(r"^## ", body, flags=re.MULTILINE)[0]
        for title, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def test_troubleshooting_names_every_failure_and_error_with_cause_and_remedy() -> None:
    text = (DOCS / "reference" / "troubleshooting.md").read_text(encoding="utf-8")
    kinds, exceptions = text.split("## Failure kinds")[1].split("## Exceptions")
    assert set(sections(kinds)) == set(get_args(Kind))
    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert set(sections(exceptions)) == defined
    for title, body in sections(text).items():
        assert re.search(r"\*\*(Cause|Meaning)\.\*\* [\w`].*\*\*What to do\.\*\* \w", body, re.DOTALL), title
    assert all(f"`{code}`" in sections(exceptions)["ConfigError"] for code in get_args(errors.Code))


# Links.


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


PAGES = [README, ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_in_the_repository_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{link} in {path.name}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{link} in {path.name}"


# The site.


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        source / "mkdocs.yml",
        "--site-dir",
        site,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=source)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("docs") / "site"
    done = build(ROOT, target)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_the_site_has_every_page_and_no_program(site: Path) -> None:
    pages = {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in DOCS.rglob("*.md")}
    assert pages <= {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert not list(site.rglob("*.py"))


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?([^\"\s>]+)", text)
        loaded += re.findall(r"<link\b(?![^>]*rel=\"?(?:canonical|prev|next))[^>]*\bhref=\"?([^\"\s>]+)", text)
        assert loaded and not [link for link in loaded if re.match(r"(https?:)?//", link)], path


@pytest.mark.parametrize("link", ["[x](nowhere.md)", "[x](install.md#nowhere)", "![x](images/nowhere.png)"])
def test_a_dead_link_fails_the_build(tmp_path: Path, link: str) -> None:
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("*.py"))
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    page = tmp_path / "docs" / "index.md"
    page.write_text(f"{page.read_text(encoding='utf-8')}\n{link}\n", encoding="utf-8")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0 and "nowhere" in done.stdout + done.stderr


def test_the_share_of_a_sweeps_time_is_that_of_the_measurements() -> None:
    quoted = re.search(r"takes \[(\d+)% of the time\]", (DOCS / "how-to/sweeps.md").read_text())
    table = re.search(r"\| ratio \| ([\d.]+) \|", (DOCS / "measurements/cpu.md").read_text())
    assert quoted is not None and table is not None
    assert abs(int(quoted[1]) / 100 - float(table[1])) <= 0.005


def test_lists_of_paths_are_documented_as_paths() -> None:
    page = (DOCS / "reference/configuration.md").read_text()
    assert "| `runs` | `null` | path or pattern, or list of them |" in page
    assert "list of strings" not in page and "integer >" not in page
