"""Choose the prompt for each task and side.

mteb's precedence: `Task-query`, `Task`, `TaskType-query`, `TaskType`, `query`. The values are prompts or, with an
instruction template, the instructions to insert into it; the fallback is the task's own instruction.
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
from mteb_vllm.util.sentences import sentence
from mteb_vllm.util.setting_names import SettingNames
from mteb_vllm.util.shell import suggest
from mteb_vllm.util.sources import CallableSource, find_callable_source, import_current

if TYPE_CHECKING:
    from mteb.types import PromptType

Template = str | Callable[[str, "PromptType | None"], str]

_EXAMPLE = suggest("instruction.template", r"Instruct: {instruction}\nQuery:")
_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*[:.][A-Za-z_]\w*")


class TaskLike(Protocol):
    """The task metadata that prompts depend on; mteb's `TaskMetadata` and the catalogue's `TaskInfo` have it."""

    @property
    def name(self) -> str:
        """Return the task's name."""

    @property
    def type(self) -> str:
        """Return its type, such as `Retrieval`."""

    @property
    def prompt(self) -> str | Mapping[str, object] | None:
        """Return its own instruction: one text, one for each side, or None."""


@dataclass(frozen=True)
class Prefix:
    """The prefix of every text on one side of a task.

    Attributes:
        text: The exact prefix.
        key: The prompt key that it came from; "task" for the task's own instruction; None without a prompt.
    """

    text: str = ""
    key: str | None = None


@dataclass(frozen=True)
class Prompts:
    """The prompts and the instruction template of one run.

    Attributes:
        values: Maps keys to prompts, or to instructions if there is a template.
        source: The origin of the values, for messages.
        template: A text with `{instruction}` or a callable `(instruction, prompt_type) -> str`; None: no instructions.
        template_source: The origin of the template, for messages; empty without one.
        apply_to_documents: Whether documents get an instruction.
        default: The prompt if no key applies (a sentence-transformers model may have one).
    """

    values: Mapping[str, str] = field(default_factory=dict)
    source: str = "none"
    template: Template | None = None
    template_source: str = ""
    apply_to_documents: bool = True
    default: str | None = None

    def prefix(self, task: TaskLike, prompt_type: PromptType | str | None = None) -> Prefix:
        """Return the prefix for one side of a task.

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

                prompt_type = PromptType(prompt_type)  # mteb passes this type to such callables
            return Prefix(self.template(instruction.text, prompt_type), instruction.key or "task")
        if not instruction.text:
            return Prefix()
        return Prefix(self.template.replace("{instruction}", instruction.text), instruction.key)

    def instruction(self, task: TaskLike, side: str | None) -> Prefix:
        """Return the instruction for one side of a task: the value of the key that applies, else the task's own.

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
        return next((key for key in candidate_keys(task.name, task.type, side) if key in self.values), None)

    def settings(self) -> JsonObject:
        """Return everything that can change results, as plain values."""
        template = self.template
        return {
            "prompts": dict(self.values),
            "default": self.default,
            "template": _identity(template) if callable(template) else template,
            "apply_to_documents": self.apply_to_documents if template is not None else None,
        }

    def sources(self) -> dict[str, str]:
        """Return the origins of the values and of the template."""
        return {"source": self.source, "template_source": self.template_source}


def candidate_keys(name: str, task_type: str, side: str | None) -> tuple[str, ...]:
    """Return the prompt keys for one side of a task, in order of precedence (mteb's `get_prompt_name`)."""
    if side is None:
        return (name, task_type)
    return (f"{name}-{side}", name, f"{task_type}-{side}", task_type, side)


def instruction_keys(keys: Collection[str], tasks: Iterable[TaskInfo]) -> set[str]:
    """Return the keys that decide a reranker's instruction, which is that of the query side."""
    return applying_keys(keys, tasks, sides=("query",))


def applying_keys(keys: Collection[str], tasks: Iterable[TaskInfo], sides: Sequence[str] | None = None) -> set[str]:
    """Return the keys that apply to at least one side of one of the tasks.

    Args:
        keys: Prompt keys.
        tasks: The tasks.
        sides: The sides to consider; None: all sides of each task.
    """
    used = set()
    for task in tasks:
        for side in sides or task.sides:
            first = next((key for key in candidate_keys(task.name, task.type, side or None) if key in keys), None)
            if first is not None:
                used.add(first)
    return used


def task_instruction(task: TaskLike, side: str | None) -> str:
    """Return a task's own instruction, else that of its type; empty if there is none for this side."""
    prompt = task.prompt
    if isinstance(prompt, Mapping):
        return str(prompt.get(side, "") or "" if side else next(iter(prompt.values()), ""))
    if prompt:
        return str(prompt)
    from mteb.abstasks.abstask import get_abstask_prompt

    try:
        return str(get_abstask_prompt(task.name))
    except KeyError:  # a user-defined task, which mteb's registry does not have
        return ""


@dataclass(frozen=True)
class ImportedTemplate:
    """A callable given by its import path, and imported when it is first called.

    Until then no user code runs: the callable is identified by its source.

    Attributes:
        module: The module.
        name: The callable's name in it.
        source: Its definition.
        names: How messages name settings.
    """

    module: str
    name: str
    source: CallableSource
    names: SettingNames = SettingNames.CONFIGURATION

    def __call__(self, instruction: str, prompt_type: PromptType | None) -> str:
        """Return the prefix for an instruction.

        Raises:
            TemplateError: if the callable cannot be imported.
        """
        return str(self.load()(instruction, prompt_type))

    def load(self) -> Callable[..., object]:
        """Import the callable; a module that was edited since its import is imported again.

        Raises:
            TemplateError: if it cannot be imported, or is not callable.
        """
        at = f"{self.names.name_of('instruction.template')}={self.module}:{self.name}"
        try:
            function = import_current(self.module, self.name, self.source)
        except Exception as error:  # importing a user's module can raise anything
            raise TemplateError(f"{at}: cannot be imported: {type(error).__name__}: {error}") from error
        if not callable(function):
            raise TemplateError(f"{at}: is not callable, but of type {type(function).__name__}")
        try:
            inspect.signature(function).bind("", None)
        except TypeError as error:
            raise TemplateError(f"{at}: cannot be called with (instruction, prompt_type): {error}") from None
        except ValueError:
            pass  # written in C, without a signature: an error will only show when it is called
        return function

    def has_changed(self) -> bool:
        """Return whether its module's source has changed since it was found.

        Raises:
            ValueError: if the module is gone, cannot be parsed, or does not define the name.
        """
        return find_callable_source(f"{self.module}.{self.name}") != self.source

    def identity(self) -> str:
        """Return its identity for fingerprints: the digest of its module's source, the same in a dry run and in a run.

        Without a source only the loaded object identifies it, so a dry run cannot tell whether its result is cached.
        """
        if self.source.digest is None:
            return callable_identity(self)
        return f"{self.source.module}:{self.source.name}#{self.source.digest[:16]}"


def _identity(template: Callable[..., object]) -> str:
    return template.identity() if isinstance(template, ImportedTemplate) else callable_identity(template)


def load_template(template: str, names: SettingNames = SettingNames.CONFIGURATION) -> Template:
    """Return the template that a text defines: the text itself if it has `{instruction}`, else a callable by import path.

    Args:
        template: The text.
        names: How messages name settings.

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
            f"it has no '{{instruction}}', and is not the import path of a callable: {sentence(str(error))} "
            "Its package must be installed or on PYTHONPATH"
        ) from None
    if source.is_no_callable:
        raise ValueError(f"{template} is not callable")
    return ImportedTemplate(module, name, source, names)


def _signature_problem(source: CallableSource) -> str:
    """Return why a callable cannot be called with (instruction, prompt_type), by its source; empty if it can or might."""
    node, arguments = source.node, source.arguments
    if isinstance(node, ast.AsyncFunctionDef):
        return "is a coroutine function, but a template must return a string"
    if arguments is None or getattr(node, "decorator_list", None):
        return ""  # a decorator may change the signature; it is checked when the run starts
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    named = [one for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None]
    if required > 2 or (len(positional) < 2 and arguments.vararg is None) or named:
        return f"is called with (instruction, prompt_type), but takes ({ast.unparse(arguments)})"
    return ""


def check_template(template: str) -> Mistake | None:
    """Return the error in an instruction template; None if there is none."""
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
    """Return the prompts of a run: the configured ones over the model's own, which `from_model` includes.

    The model's own are those of its recipe, else of mteb's registry, else of its sentence-transformers config. The last two
    are ignored if there is an instruction template, since they are complete prompts and not instructions.

    An empty choice (`prompts=none`) drops the recipe's instruction template too. Configured values are used as instructions
    if the recipe has a template.

    Args:
        chosen: The config group `prompts`.
        instruction: The config group `instruction`.
        recipe: The recipe's prompts; None if it does not set them.
        recipe_instruction: The recipe's instruction template.
        registry: The prompts in mteb's registry, if it has any for this model.
        sentence_transformers: The content of the model's `config_sentence_transformers.json`.
    """
    own = _without_nulls({key: value for key, value in chosen.items() if key != "from_model"})
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
            values, source = _without_nulls(recipe), "the recipe"
        elif template is None and registry:
            values, source = dict(registry), "mteb's registry"
        elif template is None:
            values = _without_nulls(sentence_transformers.get("prompts") or {})
            source = "the model's sentence-transformers config"
            default = values.get(str(sentence_transformers.get("default_prompt_name")))
            # sentence-transformers uses the first of these for documents.
            document = next((values[key] for key in ("document", "passage", "corpus") if key in values), None)
            if document is not None:
                values["document"] = document
            # An empty prompt only has a meaning if it overrides a default one; older configs have one for each side.
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


def _without_nulls(prompts: Mapping[str, str | None]) -> dict[str, str]:
    return {key: value for key, value in prompts.items() if value is not None}
