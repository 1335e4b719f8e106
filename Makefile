# make demo   the whole road on two CPU cores: theorems, a sweep, small language models, one report
# make test   lint, types, import contracts and all tests
# make bridge  toy forecasts against small transformers, exactly; then the report again (20 minutes)
# make explore  the proper-learning gap with sliders, in the browser
# make test-vllm  the tests that need vLLM, with its CPU build in an environment of its own
# make fmt    format the code        make clean  remove out/        make help  this list

PYTHON ?= python3
OUT ?= out/demo
SEEDS ?= 8
BIN := .venv/bin
PY := $(BIN)/python
PIP := $(BIN)/pip --disable-pip-version-check install -q -c constraints.txt

THEORY := $(shell find theory -name '*.py')

.PHONY: demo bridge explore test test-vllm lint fmt clean help study sweep
.DELETE_ON_ERROR:

help:
	@sed -n '1,6s/^# //p' Makefile

$(BIN)/.demo: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(PIP) -e '.[llm]'
	@touch $@

$(BIN)/.dev: $(BIN)/.demo
	$(PIP) -e '.[llm,dev]'
	@touch $@

# --- the demo: each step reads files and writes files; a second run reuses what is there ----------

demo: $(OUT)/report.html

$(OUT)/check.json: $(THEORY) | $(BIN)/.demo
	@echo "== 1/5 checking the theorems"
	@mkdir -p $(OUT)
	@$(PY) -m theory check --json $@

$(OUT)/task.json: $(THEORY) | $(BIN)/.demo
	@echo "== 2/5 exporting a task and predicting Figs. 3, 9 and 10 at the toy rung"
	@mkdir -p $(OUT)
	@$(PY) -m theory task --out $@

$(OUT)/predictions.json: $(OUT)/task.json
	@$(PY) -m theory forecast fig3 fig9 fig10 --task $< --out $@

sweep: | $(BIN)/.demo
	@echo "== 3/5 measuring the proper-learning gap on small trees"
	@$(PY) -m theory sweep quick --out $(OUT)/sweep

study: $(OUT)/predictions.json | $(BIN)/.demo
	@echo "== 4/5 training small GPT-NeoX models on the exported task"
	@$(PY) -m llm study fig3 fig9 fig10 --preset tiny --seeds $(SEEDS) --data $(OUT)/task.json \
		--predictions $(OUT)/predictions.json --out $(OUT)/study

$(OUT)/report.html: $(OUT)/check.json $(OUT)/predictions.json sweep study
	@echo "== 5/5 drawing the report"
	@$(PY) -m paper_figures report $(OUT)

bridge: | $(BIN)/.demo
	@$(PY) -m theory bridge --out $(OUT)/bridge
	@$(PY) -m paper_figures report $(OUT)

explore: $(BIN)/.dev
	$(BIN)/marimo run notebooks/explorer.py

# --- development ---------------------------------------------------------------------------------

lint: $(BIN)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

test: lint
	OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile -q

# vLLM pins other versions than we do: its own environment, which a study names as vllm_python.
.venv-vllm/.ready: constraints.txt constraints-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip --disable-pip-version-check install -q -c constraints.txt torch
	.venv-vllm/bin/pip --disable-pip-version-check install -q --no-deps -r constraints-vllm.txt
	@touch $@

test-vllm: $(BIN)/.dev .venv-vllm/.ready
	ROADS_VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python OMP_NUM_THREADS=1 $(PY) -m pytest -q tests/vllm

fmt: $(BIN)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf out
