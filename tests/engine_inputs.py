"""Record the token ids that reach vLLM's core; the engine still computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from mteb_vllm.util.attributes import replace_attributes


@contextlib.contextmanager
def recorded(engine: Any) -> Iterator[list[list[int]]]:
    """The token ids of every request that the core gets inside the block."""
    core = engine.llm.llm_engine
    add_request = core.add_request
    given: list[list[int]] = []

    def spy(name: str, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        given.append(list(prompt["prompt_token_ids"]))
        return add_request(name, prompt, *args, **kwargs)

    with replace_attributes(core, add_request=spy):
        yield given
