"""Score templates: how a reranker's query-document pair is rendered, and which activation its logit gets.

vLLM renders a template as transformers renders a chat template: `messages` has one message of the role `query` and one of
the role `document`. A template with `{{ instruction }}` gets the task's instruction.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mteb_vllm.config.schema import ScoreTemplateConfig, conf_dir
from mteb_vllm.errors import Mistake
from mteb_vllm.util.plain import JsonObject
from mteb_vllm.util.suggestions import nearest

if TYPE_CHECKING:
    from jinja2 import Environment
    from jinja2.parser import Parser
    from transformers import PreTrainedTokenizerBase

Activation = Literal["sigmoid", "none"]

FOLDER = "score_template"
_QUERY, _DOCUMENT = "the-query-goes-here", "the-document-goes-here"
# A document that filters and slices would change: outer whitespace, markup, quotes, upper case, and length.
_PROBE = '  <b>The Document\'s "text" &amp; more\n\n' + "of it " * 2000 + "END \n"
_SPECIAL = ("bos_token", "eos_token", "sep_token", "cls_token", "pad_token", "unk_token")
# Limits on rendering one pair: processor time, memory, and length of the text.
_SECONDS, _BYTES, _LONGEST = 1.0, 1 << 30, 1_000_000
_TOO_MUCH = f"it needs more than {_SECONDS:g} s or {_BYTES >> 20} MiB for one pair"
_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from mteb_vllm.models.score_templates import render_probes
render_probes()
"""
# Functions and filters of transformers and jinja whose output changes between renderings.
_CHANGING_NAMES: tuple[str, ...] = ("strftime_now", "lipsum")
_CHANGING_FILTERS: tuple[str, ...] = ("random",)
_NAMES = ("messages", "instruction", *_SPECIAL)
_EXAMPLE = (
    'For example: \'Query: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}\''
)


@dataclass(frozen=True)
class ScoreTemplate:
    """How the input text of a reranker is rendered from a pair.

    Attributes:
        text: The jinja template; None if the model joins the two texts itself, as BERT-like cross-encoders do.
        query_prefix: Prefix of each query.
        document_prefix: Prefix of each document.
        activation: Activation of the logit: "sigmoid", "none" for the raw logit, None for that of the model's files.
    """

    text: str | None = None
    query_prefix: str = ""
    document_prefix: str = ""
    activation: Activation | None = None

    @property
    def takes_instruction(self) -> bool:
        """Whether the template uses `{{ instruction }}`."""
        return self.text is not None and "instruction" in _variables(self.text)

    def with_instruction(self, instruction: str) -> str | None:
        """Return the template with an instruction set inside its text, so that it needs no separate argument."""
        if self.text is None or not self.takes_instruction:
            return self.text
        # Jinja understands JSON's escapes. The line break is removed with the block, so the text starts a line as before.
        return f"{{% set instruction = {json.dumps(instruction, ensure_ascii=False)} %}}\n{self.text}"

    def with_prefixes(self, queries: Iterable[str], documents: Iterable[str]) -> tuple[list[str], list[str]]:
        """Return queries and documents with their prefixes."""
        return [self.query_prefix + text for text in queries], [self.document_prefix + text for text in documents]

    def render(
        self, query: str, document: str, instruction: str = "", tokenizer: PreTrainedTokenizerBase | None = None
    ) -> str:
        """Return the rendered input text of a pair; without a template, the two texts joined by a space.

        Args:
            query: The query, without its prefix.
            document: The document, without its prefix.
            instruction: The task's instruction.
            tokenizer: The model's tokenizer, for its special tokens; None: placeholders such as `<sep_token>`.
        """
        query, document = self.query_prefix + query, self.document_prefix + document
        template = self.with_instruction(instruction)
        if template is None:
            return f"{query} {document}"
        if tokenizer is not None:
            return render_pair(tokenizer, template, query, document)
        text = (
            _environment()
            .from_string(template)
            .render(messages=_messages(query, document), add_generation_prompt=False)
        )
        return str(text)

    def settings(self) -> JsonObject:
        """Return everything that can change results, as plain values."""
        return {
            "template": self.text,
            "query_prefix": self.query_prefix,
            "document_prefix": self.document_prefix,
            "activation": self.activation,
        }


def resolve(chosen: ScoreTemplateConfig, recipe: ScoreTemplateConfig | None, default_prompt: str = "") -> ScoreTemplate:
    """Return the score template of a run: the configured values over the recipe's, which `from_model` includes.

    Args:
        chosen: The config group `score_template`.
        recipe: The recipe's score template.
        default_prompt: The prompt that sentence-transformers adds to a pair's first text, by the model's files.

    Raises:
        OSError: if a template's file cannot be read.
    """
    layers = [recipe if chosen.from_model and recipe is not None else ScoreTemplateConfig(), chosen]
    values: dict[str, Any] = {}
    for layer in layers:
        if (text := template_text(layer)) is not None:
            values["text"] = text
        for name in ("query_prefix", "document_prefix", "activation"):
            if getattr(layer, name) is not None:
                values[name] = getattr(layer, name)
    if chosen.from_model and "text" not in values:
        values.setdefault("query_prefix", default_prompt)
    return ScoreTemplate(**values)


def template_text(config: ScoreTemplateConfig) -> str | None:
    """Return the template that a configuration sets, inline or by file; None if it sets none.

    Raises:
        OSError: if the file cannot be read.
    """
    if config.file is None:
        return config.template
    return template_file(config.file).read_text(encoding="utf-8")


def template_file(name: str) -> Path:
    """Return the path of a template file: the given path if it exists, else the shipped file of that name."""
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - unlike Path.expanduser it accepts an unknown user
    return path if path.is_absolute() or os.path.exists(path) else conf_dir() / FOLDER / name  # noqa: PTH110


def check(where: str, config: ScoreTemplateConfig | None) -> list[Mistake]:
    """Return the errors in a score template, without loading the model.

    Args:
        where: The section of the configuration, such as `score_template`.
        config: Its values.
    """
    if config is None:
        return []
    if config.template is not None and config.file is not None:
        return [
            Mistake(where, "sets both a template and a file", f"Keep only one of them, for example: {where}.file=null")
        ]
    at = f"{where}.template" if config.file is None else f"{where}.file"
    try:
        text = template_text(config)
    except (OSError, ValueError) as error:
        shipped = sorted(path.name for path in (conf_dir() / FOLDER).glob("*.jinja"))
        way = f"Use a path, or one of the shipped files: {', '.join(shipped)}."
        return [Mistake(at, f"cannot be read: {error}", way, value=config.file)]
    return [] if text is None else template_mistakes(at, text, config.file)


def template_mistakes(at: str, text: str, file: str | None = None) -> list[Mistake]:
    """Return the errors in a template's text.

    Args:
        at: The key that holds the text, or names its file.
        text: The text.
        file: The name of its file, if it has one.
    """
    from jinja2 import TemplateSyntaxError

    wrong = functools.partial(Mistake, at, value=file)
    try:
        changing = _changing_values(text)
    except TemplateSyntaxError as error:
        return [wrong(f"is not a valid jinja template: {error}")]
    except RecursionError:
        return [wrong("is nested too deeply")]
    if changing:
        what = f"uses {', '.join(changing)}: time and random values change from one rendering to the next"
        return [wrong(what, "Remove them: the same settings must always give the same input texts.")]
    probes = _render_in_subprocess(text)
    if probes.error is not None:
        near = nearest(probes.undefined, _NAMES) if probes.undefined else ()
        return [wrong(f"cannot be rendered: {probes.error}", nearest=near)]
    template = ScoreTemplate(text)
    rendered, without = probes.texts
    # Rendered in two processes, since hashes and addresses differ between them.
    if (template.render(_QUERY, _DOCUMENT, "an instruction"), template.render(_QUERY, _PROBE)) != probes.texts:
        return [wrong("renders a different text every time")]
    sides = {"query": _QUERY, "document": _DOCUMENT}
    lost = [side for side, word in sides.items() if word not in rendered]
    mistakes = [
        wrong(f"does not contain the {side}: every pair would be scored without it", _EXAMPLE.replace("query", side))
        for side in lost
    ]
    if not lost and without.count(_PROBE) != 1:
        what = "must contain the document exactly once and unchanged, since in long pairs the document is truncated"
        mistakes.append(wrong(what, "Do not apply filters (trim, tojson, ...) or slices to the document."))
    return mistakes


def _changing_values(text: str) -> list[str]:
    """Return the names that a template uses for time and random values, without rendering it."""
    from jinja2 import nodes

    found: dict[str, None] = {}
    for node in _environment().parse(text).find_all((nodes.Name, nodes.Filter, nodes.Const)):
        # A filter may be given as a string: map("random").
        if isinstance(node, nodes.Const):
            name, changing = node.value, _CHANGING_FILTERS
        else:
            assert isinstance(node, (nodes.Name, nodes.Filter))
            name, changing = node.name, (*_CHANGING_FILTERS, *_CHANGING_NAMES)
        if name in changing:
            found[str(name)] = None
    return list(found)


@dataclass(frozen=True)
class _Probes:
    """The result of rendering a template in a subprocess.

    Attributes:
        texts: The rendered pair of short texts, and the rendered pair with a long document.
        error: The reason why it could not be rendered; None if it was.
        undefined: The undefined name, if that is the reason.
    """

    texts: tuple[str, str] = ("", "")
    error: str | None = None
    undefined: str = ""


@functools.lru_cache(64)
def _render_in_subprocess(text: str) -> _Probes:
    """Render a template in a subprocess, since a template can run any computation and exhaust time or memory."""
    command = [sys.executable, "-c", _CHILD, json.dumps(list(map(str, sys.path)))]
    try:
        answer = subprocess.run(command, input=text.encode(errors="surrogatepass"), capture_output=True, timeout=60)
        texts, error, undefined = json.loads(answer.stdout)
        return _Probes((texts[0], texts[1]), error, undefined)
    except (subprocess.TimeoutExpired, ValueError):  # it was killed
        return _Probes(error=_TOO_MUCH)


def render_probes() -> None:
    """Render the template on standard input with limits on time and memory; run by `_render_in_subprocess`."""
    with contextlib.suppress(ImportError, AttributeError, ValueError, OSError):  # Windows, or lower limits already set
        import resource

        signal.setitimer(signal.ITIMER_PROF, _SECONDS)  # its signal ends the process
        resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    from jinja2 import UndefinedError

    template = ScoreTemplate(sys.stdin.buffer.read().decode(errors="surrogatepass"))
    texts, error, undefined = ("", ""), None, ""
    try:
        texts = template.render(_QUERY, _DOCUMENT, "an instruction"), template.render(_QUERY, _PROBE)
    except UndefinedError as caught:
        error, undefined = str(caught), str(caught).partition("'")[2].partition("'")[0]
    except MemoryError:
        error = _TOO_MUCH
    except Exception as caught:  # a template can raise anything
        error = f"{type(caught).__name__}: {caught}"
    if max(map(len, texts)) > _LONGEST:
        error = f"one rendered pair has {max(map(len, texts)):,} characters; the limit is {_LONGEST:,}"
        texts = ("", "")
    print(json.dumps([texts, error, undefined]))


def render_pair(tokenizer: PreTrainedTokenizerBase, template: str, query: str, document: str) -> str:
    """Render a pair as vLLM does: with the template, by the model's tokenizer.

    Args:
        tokenizer: The model's transformers tokenizer.
        template: The jinja template, with its instruction.
        query: The query, with its prefix.
        document: The document, with its prefix.
    """
    return str(tokenizer.apply_chat_template(_messages(query, document), chat_template=template, tokenize=False))


def _messages(query: str, document: str) -> list[dict[str, str]]:
    return [{"role": "query", "content": query}, {"role": "document", "content": document}]


@functools.cache
def _variables(template: str) -> frozenset[str]:
    from jinja2 import meta

    return frozenset(meta.find_undeclared_variables(_environment().parse(template)))


@functools.cache
def _environment() -> Environment:
    # As transformers renders chat templates (its utils/chat_template_utils.py).
    from jinja2 import Undefined, nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class StrictUndefined(Undefined):
        """An undefined name, which may be tested but not rendered."""

        __str__ = Undefined._fail_with_undefined_error

    class Generation(Extension):
        """transformers' tag around generated text, which does not change the text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
            next(parser.stream)
            body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return body

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", Generation],
        undefined=StrictUndefined,
    )
    environment.globals["raise_exception"] = refuse
    for name in _CHANGING_NAMES:
        environment.globals[name] = lambda *_, **__: refuse("time and random values change the text")
    for name in _CHANGING_FILTERS:
        environment.filters[name] = lambda *_, **__: refuse("time and random values change the text")
    for name in _SPECIAL:
        environment.globals[name] = f"<{name}>"  # placeholders for the tokenizer's own
    return environment
