"""Which text stands in front of a text, for which task and side.

mteb's precedence: `Task-query`, `Task`, `TaskType-query`, `TaskType`, `query`. The values are prompts, or, where an
instruction template is in use, the instructions that go into it; a task's own instruction is the last resort.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from mteb_vllm.catalogue import TaskInfo
from mteb_vllm.config.schema import InstructionConfig
from mteb_vllm.errors import Mistake, TemplateError
from mteb_vllm.util.fingerprint import callable_identity
from mteb_vllm.util.plain import JsonObject
from mteb_vllm.util.shell import suggest
from mteb_vllm.util.sources import CallableSource, find_callable_source, import_current

if TYPE_CHECKING:
    from mteb.types import PromptType

Template = str | Callable[[str, "PromptType | None"], str]

_EXAMPLE = suggest("instruction.template", r"Instruct: {instruction}\nQuery:")
_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*[:.][A-Za-z_]\w*")


class TaskLike(Protocol):
    """What is asked of a task; mteb's `TaskMetadata` is one, a catalogue's `TaskInfo` another."""

    @property
    def name(self) -> str:
        """Return the task's name."""

    @property
    def type(self) -> str:
        """Return its type, as `Retrieval`."""

    @property
    def prompt(self) -> str | Mapping[str, object] | None:
        """Return its own instruction: one text, one for each side, or None."""


@dataclass(frozen=True)
class Prefix:
    """The text in front of every text of one side of a task.

    Attributes:
        text: The exact text.
        key: The prompt key that it came from; "task" for the task's own instruction; None where there is no prompt.
    """

    text: str = ""
    key: str | None = None


@dataclass(frozen=True)
class Prompts:
    """The prompts and the instruction template of one run.

    Attributes:
        values: Key to prompt, or to instruction where there is a template.
        source: Where the values come from, in words.
        template: A text with `{instruction}` or a callable `(instruction, prompt_type) -> str`; None: no instructions.
        template_source: Where the template comes from, in words; empty where there is none.
        apply_to_documents: Whether documents carry an instruction.
        default: The prompt where no key applies (a sentence-transformers model may have one).
    """

    values: Mapping[str, str] = field(default_factory=dict)
    source: str = "none"
    template: Template | None = None
    template_source: str = ""
    apply_to_documents: bool = True
    default: str | None = None

    def prefix(self, task: TaskLike, prompt_type: PromptType | str | None = None) -> Prefix:
        """The prefix for one side of a task.

        Args:
            task: The task's metadata.
            prompt_type: mteb's `PromptType`, "query", "document" or None.
        """
        side = getattr(prompt_type, "value", prompt_type)
        if self.template is None:
            key = self._key(task, side)
            if key is None:
                return Prefix(self.default, "default") if self.default else Prefix()
            return Prefix(self.values[key], key)
        if side == "document" and not self.apply_to_documents:
            return Prefix()
        instruction = self.instruction(task, side)
        if callable(self.template):
            if isinstance(prompt_type, str):
                from mteb.types import PromptType

                prompt_type = PromptType(prompt_type)  # what such a callable gets from mteb
            return Prefix(self.template(instruction.text, prompt_type), instruction.key or "task")
        if not instruction.text:
            return Prefix()
        return Prefix(self.template.replace("{instruction}", instruction.text), instruction.key)

    def instruction(self, task: TaskLike, side: str | None) -> Prefix:
        """The bare instruction for one side of a task: the value of the key that applies, else the task's own.

        Args:
            task: The task's metadata.
            side: "query", "document" or None.
        """
        key = self._key(task, side)
        if key is not None:
            return Prefix(self.values[key], key)
        text = task_instruction(task, side)
        return Prefix(text, "task") if text else Prefix()

    def _key(self, task: TaskLike, side: str | None) -> str | None:
        return next((key for key in candidates(task.name, task.type, side) if key in self.values), None)

    def settings(self) -> JsonObject:
        """What of this changes results, as plain values."""
        template = self.template
        return {
            "prompts": dict(self.values),
            "default": self.default,
            "template": _identity(template) if callable(template) else template,
            "apply_to_documents": self.apply_to_documents if template is not None else None,
        }

    def sources(self) -> dict[str, str]:
        """Return where the values and the template come from, in words."""
        return {"source": self.source, "template_source": self.template_source}


def candidates(name: str, task_type: str, side: str | None) -> tuple[str, ...]:
    """The prompt keys that apply to one side of a task, first wins (mteb's `get_prompt_name`)."""
    if side is None:
        return (name, task_type)
    return (f"{name}-{side}", name, f"{task_type}-{side}", task_type, side)


def instruction_keys(keys: Collection[str], tasks: Iterable[TaskInfo]) -> set[str]:
    """Those of the keys that decide about a reranker's instruction: the query's side does."""
    return applying_keys(keys, tasks, sides=("query",))


def applying_keys(keys: Collection[str], tasks: Iterable[TaskInfo], sides: Sequence[str] | None = None) -> set[str]:
    """Those of the keys that decide anything for these tasks.

    Args:
        keys: Prompt keys.
        tasks: The tasks.
        sides: The sides that count; None: all that a task has.
    """
    used = set()
    for task in tasks:
        for side in sides or task.sides:
            first = next((key for key in candidates(task.name, task.type, side or None) if key in keys), None)
            if first is not None:
                used.add(first)
    return used


def task_instruction(task: TaskLike, side: str | None) -> str:
    """The instruction that a task brings along, else that of its type; empty if there is none for this side."""
    prompt = task.prompt
    if isinstance(prompt, Mapping):
        return str(prompt.get(side, "") or "" if side else next(iter(prompt.values()), ""))
    if prompt:
        return str(prompt)
    from mteb.abstasks.abstask import get_abstask_prompt

    try:
        return str(get_abstask_prompt(task.name))
    except KeyError:  # a task of the user's own, which mteb's registry does not hold
        return ""


@dataclass(frozen=True)
class ImportedTemplate:
    """A callable that is named by its import path, and imported when it is first called.

    Until then nothing of the user's is executed: what it is follows from its source.

    Attributes:
        module: The module that is imported.
        name: The callable's name in it.
        source: Where it is defined.
    """

    module: str
    name: str
    source: CallableSource

    def __call__(self, instruction: str, prompt_type: PromptType | None) -> str:
        """Return the prefix for an instruction.

        Raises:
            TemplateError: if the callable cannot be imported.
        """
        return str(self.load()(instruction, prompt_type))

    def load(self) -> Callable[..., object]:
        """Import the callable; a module that was edited since its import is imported anew.

        Raises:
            TemplateError: if it cannot be imported, or is not callable.
        """
        at = f"instruction.template={self.module}:{self.name}"
        try:
            function = import_current(self.module, self.name, self.source)
        except Exception as error:  # a module of the user's, which does what it likes when it is imported
            raise TemplateError(f"{at}: it cannot be imported: {type(error).__name__}: {error}") from error
        if not callable(function):
            raise TemplateError(f"{at}: it is not callable, but {type(function).__name__}")
        try:
            inspect.signature(function).bind("", None)
        except TypeError as error:
            raise TemplateError(f"{at}: it is called with (instruction, prompt_type), and cannot be: {error}") from None
        except ValueError:
            pass  # written in C: its call will say it
        return function

    def has_changed(self) -> bool:
        """Return whether its module's source is another one than the one that was found.

        Raises:
            ValueError: if the module is not there any more, cannot be parsed, or does not define the name.
        """
        return find_callable_source(f"{self.module}.{self.name}") != self.source

    def identity(self) -> str:
        """Return what fingerprints know it by: the digest of its module's source, the same in a dry run and in a run.

        Without a source it is known by the loaded object only, and a dry run does not know its result.
        """
        if self.source.digest is None:
            return callable_identity(self)
        return f"{self.source.module}:{self.source.name}#{self.source.digest[:16]}"


def _identity(template: Callable[..., object]) -> str:
    return template.identity() if isinstance(template, ImportedTemplate) else callable_identity(template)


def load_template(template: str) -> Template:
    """Return a template as written in YAML: a text with `{instruction}`, or a callable by its import path.

    Raises:
        ValueError: if it is neither.
    """
    if "{instruction}" in template:
        return template
    if _IMPORT_PATH.fullmatch(template) is None:
        raise ValueError(
            "an instruction template must contain the string '{instruction}', or be the import path of a callable"
        )
    module, _, name = template.replace(":", ".").rpartition(".")
    try:
        source = find_callable_source(template)
    except ValueError as error:
        raise ValueError(
            f"it holds no '{{instruction}}', and as an import path it leads nowhere: {error} (is it on PYTHONPATH?)"
        ) from None
    if source.is_no_callable:
        raise ValueError(f"{template} is not callable")
    return ImportedTemplate(module, name, source)


def _signature_problem(source: CallableSource) -> str:
    """Return why a callable cannot be called with (instruction, prompt_type), by its source; empty where it can, or may."""
    node, arguments = source.node, source.arguments
    if isinstance(node, ast.AsyncFunctionDef):
        return "is a coroutine function, and a template returns its text"
    if arguments is None or getattr(node, "decorator_list", None):
        return ""  # a decorator may change it: what is not known here is checked when the run starts
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    named = [one for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None]
    if required > 2 or (len(positional) < 2 and arguments.vararg is None) or named:
        return f"is called with (instruction, prompt_type), and takes ({ast.unparse(arguments)})"
    return ""


def check_template(template: str) -> Mistake | None:
    """What is wrong with a template, if anything."""
    try:
        loaded = load_template(template)
        if isinstance(loaded, ImportedTemplate) and (problem := _signature_problem(loaded.source)):
            raise ValueError(f"{template} {problem}")
    except ValueError as error:
        return Mistake(
            "instruction.template",
            str(error),
            f"For example: {_EXAMPLE}, or a function: instruction.template=my_package.templates:mine",
            value=f"{template!r}",
        )
    return None


def resolve(
    chosen: Mapping[str, Any],
    instruction: InstructionConfig,
    *,
    recipe: Mapping[str, str | None] | None,
    recipe_instruction: InstructionConfig | None,
    registry: Mapping[str, str] | None,
    sentence_transformers: Mapping[str, Any],
) -> Prompts:
    """The prompts of a run: what is chosen, over what the model says where `from_model` asks for that.

    The model says: its recipe; else mteb's registry; else its sentence-transformers config. Where an instruction template
    is in use, the last two are not read: they hold whole prompts, which are no instructions.

    A choice that holds nothing (`prompts=none`) leaves out the recipe's instruction template as well; one that holds values
    holds instructions, where the recipe has a template.

    Args:
        chosen: The config group `prompts`.
        instruction: The config group `instruction`.
        recipe: The recipe's prompts; None where it says nothing of them.
        recipe_instruction: The recipe's instruction template.
        registry: The prompts in mteb's registry, if it has any for this model.
        sentence_transformers: The content of the model's `config_sentence_transformers.json`.
    """
    own = _set({key: value for key, value in chosen.items() if key != "from_model"})
    template, apply_to_documents = instruction.template, instruction.apply_to_documents
    template_source = "the configuration" if template is not None else ""
    if instruction.from_model and recipe_instruction is not None:
        if template is None and recipe_instruction.template is not None and (chosen.get("from_model") or own):
            template, template_source = recipe_instruction.template, "the recipe"
        if apply_to_documents is None:
            apply_to_documents = recipe_instruction.apply_to_documents
    values: dict[str, str] = {}
    source, default = "", None
    if chosen.get("from_model"):
        if recipe is not None:
            values, source = _set(recipe), "the recipe"
        elif template is None and registry:
            values, source = dict(registry), "mteb's registry"
        elif template is None:
            values = _set(sentence_transformers.get("prompts") or {})
            source = "the model's sentence-transformers config"
            default = values.get(str(sentence_transformers.get("default_prompt_name")))
            # sentence-transformers takes the first of these three for documents.
            document = next((values[key] for key in ("document", "passage", "corpus") if key in values), None)
            if document is not None:
                values["document"] = document
            # An empty prompt says nothing, unless it keeps the default one away; older configs hold one for each side.
            values = {key: value for key, value in values.items() if value or default}
    sources = [source if values or default else "", "the configuration" if own else ""]
    return Prompts(
        values={**values, **own},
        source=" and ".join(filter(None, sources)) or "none",
        template=load_template(template) if template is not None else None,
        template_source=template_source,
        apply_to_documents=apply_to_documents is not False,
        default=default,
    )


def _set(prompts: Mapping[str, str | None]) -> dict[str, str]:
    return {key: value for key, value in prompts.items() if value is not None}
