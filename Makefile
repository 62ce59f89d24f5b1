# Everything starts from python3.11, python3-venv and make; the rest lands in .venv.
#   make demo    search the documentation of Python's own library (no network once installed)
#   make test    lint, format, types, tests
#   make lint    the first three of those
#   make clean   remove .venv and caches

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin

# uv reads none of pip's settings, so what pip was told about where packages lie is handed on.
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS := $(shell echo "$$PIP_FIND_LINKS" | tr -s ' ' ',')
endif
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX := $(PIP_INDEX_URL)
endif

# uv links files to its cache, and nltk, with which LlamaIndex splits long texts, reads no linked file.
export UV_LINK_MODE := copy

TORCH := $(shell grep '^torch==' constraints.txt)
SETUP := pyproject.toml constraints.txt
UV    := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt

.PHONY: demo test lint clean

demo: $(VENV)/.stamp-demo
	$(BIN)/epic demo

test: $(VENV)/.stamp-test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(VENV)/.stamp-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.stamp-torch: $(SETUP)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' constraints.txt)"
	$(UV) $(TORCH)
	touch $@

$(VENV)/.stamp-demo: $(VENV)/.stamp-torch
	$(UV) --editable '.[cpu,langchain]'
	touch $@

# What tests need includes what the demo needs: a demo after them installs nothing.
$(VENV)/.stamp-test: $(VENV)/.stamp-torch
	$(UV) --editable '.[dev]'
	touch $(VENV)/.stamp-demo $@

clean:
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
