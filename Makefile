# `make run` and `make test` each install everything first. `make help` lists the targets.

PYTHON ?= python3
VENV   ?= .venv
EXTRA  ?= cpu
JOBS   ?= 2
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-$(EXTRA)
UV     := uv==0.13.9

# Every process with an engine imports vLLM, which takes twice as long where Python has no compiled files.
unexport PYTHONDONTWRITEBYTECODE

# uv does not read PIP_FIND_LINKS. Where a folder of wheels is configured, torch's CPU build comes from there;
# elsewhere from PyTorch's own CPU index.
ifeq ($(EXTRA),cpu)
FROM := $(if $(PIP_FIND_LINKS),,--torch-backend=cpu)
endif
BROWSERS := chromium-headless-shell chromium chromium-browser google-chrome
BROWSER = $(or $(MTEB_VLLM_CHROMIUM),$(strip $(foreach name,$(BROWSERS),$(shell command -v $(name) 2>/dev/null))))
PINS := $(wildcard constraints-$(EXTRA).txt)

.DEFAULT_GOAL := help
.PHONY: help install browser run test test-slow test-conditions check format bench bench-sweep bench-prompts bench-embedding-cache bench-replicas bench-first-score \
        docs reference picture charts wheel clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

install: $(STAMP)  ## make .venv: on a CPU with pinned versions; EXTRA=cuda, for a GPU, with the newest vLLM (0.26 or later)

$(STAMP): pyproject.toml $(PINS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(UV)'
	UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python $(FROM) \
	    $(PINS:%=--constraint %) --editable '.[$(EXTRA),dev]'
	touch $@

run: install  ## evaluate MiniLM on the demo tasks, offline (ARGS="engine.dtype=bfloat16" to change it)
	$(BIN)/mteb-vllm $(ARGS)

check: install  ## ruff, mypy, and the order of imports
	$(BIN)/ruff check src tests bench docs
	$(BIN)/ruff format --check src tests bench docs
	$(BIN)/mypy
	$(BIN)/lint-imports

# Reports are tested in a browser. Where none can be had, those tests skip, and say so.
browser:
	@[ -n "$(BROWSER)" ] || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || \
	    { apt-get update && apt-get install --yes --no-install-recommends chromium-headless-shell; } >/dev/null 2>&1 || true

test: check browser  ## the linters, then all tests except the slow ones, JOBS files at a time
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-slow: install  ## the slow tests, JOBS files at a time: fault injection in sweeps, a soak test that kills processes, published scores, and SLURM jobs if SLURM is installed
	$(BIN)/pytest -m slow -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-conditions: install  ## mutation test: invert each condition that decides whether a result is reused; a test must fail for each (CONDITIONS="results.lookup")
	$(BIN)/python tests/reverse_conditions.py $(CONDITIONS)

bench: install  ## the overhead of the wrappers over raw vLLM, measured side by side (BENCH="--what predict --pairs 20")
	$(BIN)/python bench/overhead.py $(BENCH)

bench-sweep: install  ## the time of a sweep against that of the same points as separate commands (about 15 minutes)
	$(BIN)/python bench/sweep.py $(BENCH)

bench-prompts: install  ## the time that the embedding cache saves in a sweep over query prompts (BENCH="--tasks SciFact")
	$(BIN)/python bench/prompts.py $(BENCH)

bench-embedding-cache: install  ## lookups per second in an embedding cache of a million vectors (1.7 GB of disk)
	$(BIN)/python bench/embedding_cache.py $(BENCH)

bench-replicas: install  ## one engine against several replicas, measured side by side (BENCH="--replicas 4 --pairs 20")
	$(BIN)/python bench/replicas.py $(BENCH)

bench-first-score: install  ## the time to a run's first score against another checkout (BENCH="/path/to/it --pairs 5")
	$(BIN)/python bench/first_score.py $(BENCH)

docs: install  ## build docs/ into site/; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

reference: install  ## generate the pages of docs/ that are based on conf/: configuration keys, models
	$(BIN)/python docs/generate.py

picture: install browser  ## run the sweep of docs/screenshot.py and take a screenshot of its report (REPORT=file: of an existing report)
	$(BIN)/python docs/screenshot.py $(REPORT)

charts: install  ## draw the charts of docs/measurements from the tables of its pages
	$(BIN)/python docs/charts.py

format: install  ## fix and format the code with ruff
	$(BIN)/ruff check --fix src tests bench docs
	$(BIN)/ruff format src tests bench docs

wheel: install  ## build dist/*.whl
	$(BIN)/python -m build --no-isolation --wheel

clean:  ## remove everything that the other targets made, except results
	rm -rf $(VENV) dist build site .mypy_cache .pytest_cache .ruff_cache
