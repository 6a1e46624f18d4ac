# One environment, made on first use and reused: `make env` makes it alone.
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.lynx-ready
# The other SGLang that is supported: tests read its source.
OTHER_SGLANG := $(CURDIR)/build/sglang-0.5.22
PORT ?= 30000
SLO_MS ?= 20
MODEL := models/lynx-moe-tiny
SERVER := --model-path $(MODEL) --device cpu --mem-fraction-static 0.1 --max-total-tokens 32768 \
	--max-running-requests 64 --port $(PORT)
# GPU targets install nothing: any Python with torch and Triton, in a plain copy of the checkout.
GPU_PYTHON ?= $(if $(wildcard $(STAMP)),$(PYTHON),python3)
gpu-%: export PYTHONPATH := $(CURDIR)/kernels:$(CURDIR)/controller

.DEFAULT_GOAL := help
.PHONY: help env demo serve test families fuzz check format docs bench bench-shadow \
	gpu-all gpu-copy gpu-check gpu-sanitize gpu-bench gpu-e2e gpu-tune gpu-resources clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(STAMP)  ## make the environment in .venv: SGLang, this project and its tools (10 GB)

$(STAMP): pyproject.toml scripts/make_env.sh
	sh scripts/make_env.sh $(VENV)
	@touch $@

demo: $(STAMP)  ## run one load on plain SGLang and on Lynx (12 minutes, CPU); report in build/demo
	$(PYTHON) -m loadtests.demo --model $(MODEL) --out build/demo

serve: $(STAMP)  ## start a Lynx server on this CPU; SLO_MS=20 and PORT=30000 can be changed
	@printf '%s\n' "The server is ready when its log says 'The server is fired up'. Then:" \
	  "  curl -s http://127.0.0.1:$(PORT)/v1/chat/completions -H 'Content-Type: application/json' -d \
	'{\"model\": \"lynx\", \"messages\": [{\"role\": \"user\", \"content\": \"Dan has 57 toys. He collects 32 more. He loses 35 of them. How many toys does Dan have now?\"}]}'" \
	  "  $(VENV)/bin/lynx-sglang status --url http://127.0.0.1:$(PORT)"
	$(PYTHON) -m sglang.launch_server $(SERVER) --enable-metrics \
	  --moe-backend lynx --lynx-slo-itl-ms $(SLO_MS)

test: $(STAMP)  ## run all tests, also those on real servers
	$(PYTHON) -m pytest -m "not e2e" --numprocesses 2
	$(PYTHON) -m pytest -m e2e

families: $(STAMP)  ## serve a tiny model of every MoE family, plain and with Lynx (10 minutes)
	FAMILIES=all $(PYTHON) -m pytest tests/e2e/test_families.py --timeout=0

fuzz: $(STAMP)  ## 100,000 wrong inputs of each kind
	FUZZ_CASES=100000 $(PYTHON) -m pytest tests/fuzz --timeout=0

$(OTHER_SGLANG):
	sh scripts/get_sglang.sh $(PYTHON) $@

check: export OTHER_SGLANG := $(OTHER_SGLANG)
check: $(STAMP) $(OTHER_SGLANG)  ## run all that CI runs: format, lint, types, docs, tests
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(MAKE) docs
	$(MAKE) test

format: $(STAMP)  ## format the code and mend what the linter can
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

docs: $(STAMP)  ## build the documentation in build/docs; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

bench: $(STAMP)  ## time a decode step of plain SGLang and of Lynx on this CPU
	$(PYTHON) -m benchmarks.decode_step
	$(PYTHON) -m benchmarks.decode_step --width 8 \
	  --out benchmarks/results/cpu/decode_step_x8.json

bench-shadow: $(STAMP)  ## time decode steps with and without shadow passes on this CPU
	$(PYTHON) -m benchmarks.shadow_step

gpu-all:  ## GPU: all of these in 10 minutes, quick results first (OUT=folder, ARGS=second)
	GPU_PYTHON=$(GPU_PYTHON) sh benchmarks/gpu/all.sh $(or $(OUT),build/gpu/results) $(ARGS)

gpu-copy:  ## copy the last commit, without stored models, for a GPU host (OUT=new folder)
	sh benchmarks/gpu/all.sh --copy $(OUT)

gpu-check:  ## GPU: compare the Triton kernels with references (6 minutes; ARGS=--dry-run: no GPU)
	$(GPU_PYTHON) -m benchmarks.gpu.check $(ARGS)

gpu-sanitize:  ## GPU: the quick part of gpu-check under compute-sanitizer (3 minutes)
	timeout 150 compute-sanitizer --error-exitcode 1 \
	  $(GPU_PYTHON) -m benchmarks.gpu.check --quick --limit-min 2 || [ $$? -eq 124 ]

gpu-bench:  ## GPU: time the kernels against the byte floor and SGLang (10 minutes; ARGS=--dry-run)
	$(GPU_PYTHON) -m benchmarks.gpu.bench $(ARGS)

gpu-e2e:  ## GPU: time plain and Lynx servers at constant batches (10 minutes; ARGS=--dry-run)
	$(GPU_PYTHON) -m benchmarks.gpu.e2e $(ARGS)

gpu-tune:  ## GPU: sweep the kernels' tile shapes (ARGS=--dry-run)
	$(GPU_PYTHON) -m benchmarks.gpu.tune $(ARGS)

gpu-resources:  ## compile for sm_80, 90 and 100 without a GPU: kernels/RESOURCES.md, predictions
	$(GPU_PYTHON) -m benchmarks.gpu.resources
	$(GPU_PYTHON) -m benchmarks.gpu.model > benchmarks/gpu/PREDICTIONS.md

clean:  ## remove build/
	rm -rf build
