"""vLLM models that implement mteb's protocols, with the names and constructor arguments that users of mteb know.

They can be used without a configuration:

    import mteb
    from mteb_vllm import VllmEncoderWrapper

    if __name__ == "__main__":
        with VllmEncoderWrapper("intfloat/e5-small-v2", prompt_dict={"query": "query: ", "document": "passage: "}) as model:
            print(mteb.evaluate(model, mteb.get_tasks(["STS12", "SciFact"])))
"""

from mteb_vllm.wrappers.base import VllmWrapperBase, model_meta
from mteb_vllm.wrappers.cross_encoder import VllmCrossEncoderWrapper
from mteb_vllm.wrappers.encoder import VllmEncoderReranker, VllmEncoderWrapper

# A model as pipelines use it; its engine may not be open yet.
Wrapper = VllmEncoderWrapper | VllmEncoderReranker | VllmCrossEncoderWrapper

__all__ = [
    "VllmCrossEncoderWrapper",
    "VllmEncoderReranker",
    "VllmEncoderWrapper",
    "VllmWrapperBase",
    "Wrapper",
    "model_meta",
]
