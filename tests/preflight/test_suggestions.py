"""The suggestions in messages can be pasted into bash and are right, for a wide table of mistakes."""

from __future__ import annotations

import re

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from test_shell import pasted

from mteb_vllm.config.schema import composer
from mteb_vllm.errors import ConfigError, Mistake
from mteb_vllm.preflight.command import check

# Wrong overrides, which a suggestion replaces.
WRONG = [
    "engine.dtype=flaot32", "engine.head_dtype=flaot32", "+engine.kv_cache_dtype=fp9", "engine.block_size=16",
    "engine.max_model_len=512", "engine.max_num_batched_tokens=100", "engine.max_num_seqs=4k",
    "engine.pooler_config={dimension: 64}", "engine.pooler_config={seq_pooling_type: cls, use_activation: false}",
    "+engine.compilation_config={pass_config: {eliminate_noop: true}}", "engine.hf_overrides={num_label: 1}",
    "engine.hf_overrides.x=1", "engine.env.VLLM_LOGGING_LEVEL=DEBUG", "+prompts.STS12=true", "+prompts.STS12=it's: ",
    "prompts.STS12=x y", '+prompts.STS12="cost ${y} "', "prompts.query=passage ", "prompts.query=5", "prompts.query=a,b",
    'prompts.query="${"', "prompts.query=[a", "+prompts.query=it's, \"so\"", "model.revision=1234567", "results.reuse=exactt",
    "model.kind=encodr", "instruction.template=Instruct", "tasks=sts21", "prompts=e6",
    "engine.enable_prefix_caching=true", "tasks=msmarco",
    "tasks=MTEB(eng, v2)", "tasks=[STS12,sts13]", "engine.batch_size=8",
]  # fmt: skip
WORD = re.compile(r"(?:(?<=^)|(?<=\s))('?[+~]{0,2}[a-z][\w.@/-]*=)")


def suggestions(mistake: Mistake) -> list[str]:
    """Return the overrides in a message, as written in a shell."""
    found = list(mistake.nearest)
    for start in WORD.finditer(mistake.allowed):
        # Split words as a shell does, including quotes.
        rest, word = mistake.allowed[start.start() :], ""
        while rest and not rest[0].isspace():
            quoted = re.match(r"'[^']*'|\"[^\"]*\"|[^\s'\"]+", rest)
            assert quoted is not None, rest
            word, rest = word + quoted[0], rest[quoted.end() :]
        found.append(word.rstrip(".,;"))
    return [item for item in found if "=" in item]


# Each case composes two or three commands: the quick tests run a third of them.
@pytest.mark.parametrize(
    "wrong", [pytest.param(wrong, marks=[pytest.mark.slow] if at % 3 else []) for at, wrong in enumerate(WRONG)]
)
def test_suggestions_can_be_pasted_and_are_right(wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check([wrong])
    advised = [item for mistake in caught.value.mistakes for item in suggestions(mistake)]
    assert advised, caught.value
    for words in pasted(advised):
        assert len(words) == 1
        with composer():
            parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(words)
        assert len(parsed) == 1
    # At least one of them is right by itself; others may need more (a list, another task).
    left = [remaining(words) for words in pasted(advised)]
    assert any(not found for found in left), left


def remaining(words: list[str]) -> list[str]:
    """Return the mistakes after a suggestion, except those about unused prompts and about models that are not here."""
    try:
        check(words)
    except ConfigError as error:
        return [
            str(item) for item in error.mistakes if item.where != "prompts" and not item.where.startswith("model.name")
        ]
    return []
