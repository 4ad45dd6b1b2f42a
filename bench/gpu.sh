#!/usr/bin/env bash
# Measure a GPU: dtypes, fixed and varied lengths, vLLM and sentence-transformers, for docs/measurements/gpu.md.
# Takes about eight minutes on an H100 or H200.
#   bench/gpu.sh MINILM_FOLDER RESULTS
set -u
minilm=$1 results=$2
python=${PYTHON:-python3}
how=(experiment=unpadding pipeline.tokens=128 'pipeline.batch_sizes=[1,8,64,256]' pipeline.seconds=0.7 hydra.launcher.point_timeout=120)
"$python" "$(dirname "$0")/random_model.py" qwen3-0.6b "$results/qwen3-0.6b" --tokenizer "$minilm"
timeout -s INT "${FIRST:-275}" "$python" -m mteb_vllm -m "${how[@]}" model=custom model.name=sentence-transformers/all-MiniLM-L6-v2 \
    model.path="$minilm" 'engine=vllm,sentence_transformers' engine.dtype=bfloat16,float16,float32 \
    pipeline.requests=2048 results.dir="$results/minilm"
timeout -s INT "${SECOND:-225}" "$python" -m mteb_vllm -m "${how[@]}" model=custom model.name=random/qwen3-0.6b \
    model.path="$results/qwen3-0.6b" 'engine=vllm,sentence_transformers' engine.dtype=bfloat16,float32 \
    pipeline.requests=768 results.dir="$results/qwen3"
