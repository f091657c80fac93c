# make run   sets up and runs the main job       make test   sets up and runs every check
# Both make the virtual environment in $(VENV) first. Variables: PYTHON, VENV, TORCH, RUN_ARGS, PROCESSES, TEST_ARGS.
# make federations runs all five that come with the project, three seeds each, and prints the tables of docs/results.md.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
RUN_ARGS ?=
FEDERATIONS ?= omniglot steel_lines board_lines chest_xrays heart_hospitals
SEEDS ?= 0 1 2
PROCESSES ?= 2
TEST_ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: run test lint types federations bench endurance clean

run: $(VENV)/.ready-to-run
	$(BIN)/fedreptile-sim run $(RUN_ARGS)

test: $(VENV)/.ready-to-test lint types
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist worksteal $(TEST_ARGS)

lint: $(VENV)/.ready-to-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.ready-to-test
	$(BIN)/mypy

# Of the hospitals each seed also draws anew which few patients are labelled: there the draw decides more than training.
federations: $(VENV)/.ready-to-run
	set -e; for name in $(FEDERATIONS); do \
		for seed in $(SEEDS); do \
			case $$name in chest_xrays|heart_hospitals) deal="--set sites.seed=$$seed";; *) deal=;; esac; \
			$(BIN)/fedreptile-sim run $$name --out runs/$$name-$$seed --set run.seed=$$seed $$deal $(RUN_ARGS); \
		done; \
		$(BIN)/fedreptile-sim compare $(foreach seed,$(SEEDS),runs/$$name-$(seed)) --out runs/$$name.html --markdown; \
	done

bench: $(VENV)/.ready-to-run
	$(BIN)/python -m simulations.benchmarks.engines --sites 10,100
	$(BIN)/python -m simulations.benchmarks.big_model
	$(BIN)/python -m simulations.benchmarks.federation
	$(BIN)/python -m simulations.benchmarks.reading
	$(BIN)/python -m simulations.benchmarks.deployment
	$(BIN)/python -m simulations.benchmarks.line
	$(BIN)/python -m simulations.benchmarks.rollout

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
