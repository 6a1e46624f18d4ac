# One environment, made on first use and reused: `make env` makes it alone.
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.lynx-ready
PORT ?= 30000
MODEL := models/lynx-moe-tiny
SERVER := --model-path $(MODEL) --device cpu --mem-fraction-static 0.1 --max-total-tokens 32768 \
	--max-running-requests 64 --port $(PORT)

.PHONY: help env demo serve test check format docs bench bench-shadow gpu-check gpu-bench gpu-e2e gpu-tune gpu-resources clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(STAMP)  ## one environment in .venv, with SGLang: about 10 GB

$(STAMP): pyproject.toml scripts/make_env.sh
	sh scripts/make_env.sh $(VENV)
	@touch $@

demo: $(STAMP)  ## the same load on plain SGLang and on Lynx; report in build/demo
	$(PYTHON) -m loadtests.demo --model $(MODEL) --out build/demo

serve: $(STAMP)  ## a Lynx server that stays; SLO_MS sets its promise
	@printf '%s\n' "When the server is ready:" \
	  "  curl -s http://127.0.0.1:$(PORT)/v1/chat/completions -H 'Content-Type: application/json' -d \
	'{\"model\": \"lynx\", \"messages\": [{\"role\": \"user\", \"content\": \"Ann has 5 apples and buys 7 more. How many apples does she have?\"}]}'" \
	  "  $(VENV)/bin/lynx-sglang status --url http://127.0.0.1:$(PORT)"
	$(PYTHON) -m sglang.launch_server $(SERVER) --enable-metrics \
	  --moe-backend lynx --lynx-slo-itl-ms $(or $(SLO_MS),20)

test: $(STAMP)  ## all tests, the end-to-end ones on a real server included
	$(PYTHON) -m pytest

check: $(STAMP)  ## format, lint, types and tests
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest

format: $(STAMP)
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

docs: $(STAMP)  ## the documentation site in build/docs; a broken link ends it
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

bench: $(STAMP)  ## decode step of plain SGLang and Lynx on this CPU
	$(PYTHON) -m benchmarks.decode_step
	$(PYTHON) -m benchmarks.decode_step --width 8 \
	  --out benchmarks/results/cpu/decode_step_x8.json

bench-shadow: $(STAMP)  ## what the quality guard's shadow passes cost
	$(PYTHON) -m benchmarks.shadow_step

# On a GPU machine: no installation, any Python with torch and Triton. ARGS=--dry-run needs no GPU.
GPU_PYTHON ?= $(if $(wildcard $(STAMP)),$(PYTHON),python3)
gpu-%: export PYTHONPATH := $(CURDIR)/kernels:$(CURDIR)/controller

gpu-check:  ## are the Triton kernels right on this GPU? under 10 minutes
	$(GPU_PYTHON) -m benchmarks.gpu.check $(ARGS)
	@if command -v compute-sanitizer >/dev/null && [ -z "$(ARGS)" ]; then \
	  timeout 150 compute-sanitizer --error-exitcode 1 \
	    $(GPU_PYTHON) -m benchmarks.gpu.check --quick --limit-min 2 || [ $$? -eq 124 ]; \
	else echo "compute-sanitizer: not run"; fi

gpu-bench:  ## their time against the byte floor, SGLang and the active experts; under 10 minutes
	$(GPU_PYTHON) -m benchmarks.gpu.bench $(ARGS)

gpu-e2e:  ## a real server, plain and with Lynx, at constant batches; under 10 minutes
	$(GPU_PYTHON) -m benchmarks.gpu.e2e $(ARGS)

gpu-tune:  ## sweep tile shapes on this GPU
	$(GPU_PYTHON) -m benchmarks.gpu.tune $(ARGS)

gpu-resources:  ## compile for GPUs that are not here, write kernels/RESOURCES.md and the predictions
	$(GPU_PYTHON) -m benchmarks.gpu.resources
	$(GPU_PYTHON) -m benchmarks.gpu.model > benchmarks/gpu/PREDICTIONS.md

clean:
	rm -rf build
