# Everything a fresh machine needs is Python 3.11 and make: each target sets up what it uses in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: run test lint bench model constraints clean

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gridmedic needs Python 3.11; name yours with make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

run: $(READY)  ## the simulated grid, the daemon that watches it, and the console
	$(BIN)/gridmedic demo

test: $(READY) lint  ## lint, types, architecture and the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## speeds, as ratios measured in one run
	@for b in benchmarks/bench_*.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

model: $(READY)  ## the default model; DATA names recorded events to learn from beside the simulated ones
	$(BIN)/gridmedic train $(DATA) --simulated-hours 120 --seed 1 --out models/default

constraints:  ## pin what is installed now; upgrade it first
	@echo "# Every version that gridmedic is tested with; 'make constraints' writes this file." > constraints.new
	$(BIN)/python -m pip freeze --exclude-editable | grep == | tr 'A-Z_' 'a-z-' >> constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) var build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
