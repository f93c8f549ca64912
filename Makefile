# Two commands on a fresh machine with Python >= 3.10: `make demo` and `make test`. Nothing is installed outside .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all check clean

demo: $(VENV)/.demo ## convert the starter model, run it on the sample clip, time it, compare it
	$(BIN)/edgepose demo --force

test: $(VENV)/.dev ## lint, types, tests
	$(MAKE) --no-print-directory check

test-all: $(VENV)/.dev ## the same with the slow tests
	EDGEPOSE_SLOW=1 $(MAKE) --no-print-directory check

check:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	EDGEPOSE_TEST_ENGINES=onnxruntime,openvino,tflite $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

clean: ## remove the virtual environment and what demo and tests wrote
	rm -rf $(VENV) edgepose-demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

# torch first and by itself: where a CPU wheel of this version is at hand, pip takes and keeps it.
$(VENV)/.demo: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "edgepose needs Python >= 3.10: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable '.[convert,validate]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) --editable '.[dev]'
	@touch $@
