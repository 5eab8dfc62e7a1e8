# Two commands do all set-up on a fresh machine: `make demo` and `make test`.
VENV   ?= .venv
# PYTHON=/path/to/python chooses one; else tools/setup-system.sh looks for one, and installs it as root.
BIN     = $(VENV)/bin
OUT    ?= runs/demo

.PHONY: help demo demo-adapter test lint format clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 16

demo: $(VENV)/.demo  ## the main job: real packages → tasks → rollouts → EntroPO → N attempts → report
	$(BIN)/swe demo --out $(OUT)

demo-adapter: $(VENV)/.demo  ## train again the SFT adapter the demo starts from (about an hour on 2 cores)
	$(BIN)/swe demo-adapter --out runs/demo-adapter

test: $(VENV)/.dev $(VENV)/.tests lint  ## ruff, mypy, import layers, then every test
	$(BIN)/python -m pytest -n auto --dist loadgroup

lint: $(VENV)/.dev  ## ruff, mypy strict, import layers
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## rewrite the files in the house format
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:  ## remove the virtual environment and caches of this checkout (runs/ is kept)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.system:
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh tools/setup-system.sh
	@touch $@

$(VENV)/.tests: | $(VENV)/.system
	@sh tools/setup-system.sh tests
	@touch $@

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/.system
	$(BIN)/pip install -q --no-compile -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.system
	$(BIN)/pip install -q --no-compile -c constraints.txt -e '.[dev]'
	@touch $@
