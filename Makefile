# One environment, made on first use and reused: `make env` makes it alone.
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.lynx-ready
PORT ?= 30000
MODEL := models/lynx-moe-tiny
SERVER := --model-path $(MODEL) --device cpu --mem-fraction-static 0.1 --max-total-tokens 32768 \
	--max-running-requests 64 --port $(PORT)

.PHONY: env demo serve test check format bench clean

env: $(STAMP)

$(STAMP): pyproject.toml scripts/make_env.sh
	sh scripts/make_env.sh $(VENV)
	@touch $@

demo: $(STAMP)  ## the same load on plain SGLang and on Lynx; report in build/demo
	$(PYTHON) loadtests/demo.py --model $(MODEL) --out build/demo

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

bench: $(STAMP)  ## decode step of plain SGLang and Lynx on this CPU
	PYTHONPATH=loadtests:models $(PYTHON) benchmarks/decode_step.py

clean:
	rm -rf build
