"""What libraries say is out of the way, except what concerns a model."""

from __future__ import annotations

import logging

from mteb_vllm.util.quiet import warnings_about_models


def test_warnings_about_a_model_are_collected_once() -> None:
    with warnings_about_models() as found:
        for _ in range(2):
            logging.getLogger("vllm.config.model").warning("Casting %s\n  to %s.", "bfloat16", "float16")
        logging.getLogger("vllm.config.model").info("not a warning")
        logging.getLogger("vllm.triton_utils.importing").warning("Triton is not installed")
        logging.getLogger("vllm.transformers_utils.config").warning(
            "Unable to determine Sentence Transformers pooling type from %s", "1_Pooling/config.json"
        )
    logging.getLogger("vllm.config.model").warning("afterwards")
    assert found == ["Casting bfloat16 to float16."]
