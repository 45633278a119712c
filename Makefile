# Two commands on a fresh machine: make demo, make test. Each needs Python 3.11 or newer, and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-cuda check docs format clean

demo: $(READY)
	$(BIN)/python train.py experiment=demo hydra.run.dir=outputs/demo-$$(date +%Y%m%d-%H%M%S)

test: check
	$(BIN)/python -m pytest

# What needs a CUDA device; everything else is tested on the CPU, on every machine.
test-cuda: $(READY)
	TEST_CUDA=1 $(BIN)/python -m pytest -k cuda

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, from the Markdown of docs/ and the docstrings; `make test` builds it too (tests/docs/test_site.py).
docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going docs docs/_build

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One resolve; again only when what is to be installed has changed.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache docs/_build
