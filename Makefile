# make run   sets up and runs the main job       make test   sets up and runs every check
# Both make the virtual environment in $(VENV) first. Variables: PYTHON, VENV, TORCH, RUN_ARGS, TEST_ARGS.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
RUN_ARGS ?=
TEST_ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: run test lint types bench endurance clean

run: $(VENV)/.ready-to-run
	$(BIN)/fedreptile-sim run $(RUN_ARGS)

test: $(VENV)/.ready-to-test lint types
	$(BIN)/python -m pytest $(TEST_ARGS)

lint: $(VENV)/.ready-to-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.ready-to-test
	$(BIN)/mypy

bench: $(VENV)/.ready-to-run
	$(BIN)/python -m simulations.benchmarks.federation

endurance: $(VENV)/.ready-to-test
	$(BIN)/python -m pytest -m endurance $(TEST_ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Torch comes first and alone, so that TORCH decides between a CPU and a CUDA build.
$(VENV)/.ready-to-run: pyproject.toml constraints.txt
	@echo "setting up $(VENV): torch first, then the rest (a few minutes on a first run)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install $(TORCH)
	$(PIP) install --constraint constraints.txt --editable .
	touch $@

$(VENV)/.ready-to-test: $(VENV)/.ready-to-run
	$(PIP) install --constraint constraints.txt --editable ".[dev]"
	touch $@
