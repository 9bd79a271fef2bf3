# Every target builds what it needs in .venv, from constraints.txt, and skips what is already there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDER := $(VENV)/triton-3.6.0
CONSTRAINTS := constraints.txt
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install -c $(CONSTRAINTS)
# An environment with another torch, beside .venv.
COMPAT = .compat/torch-$(TORCH)-$(notdir $(PYTHON))

.DEFAULT_GOAL := help
.PHONY: help demo test test-quick compat mutants lint conformance bench bench-gpu ptx static-cost docs build clean

help: ## says what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## the library at work on this machine: example, self-check, a small table
	@$(BIN)/python -m onehot_triton

test: $(VENV)/.test ## the whole test suite; make test ARGS="-k name" for a part
	$(BIN)/python -m pytest -n auto --maxprocesses 4 $(ARGS)

mutants: $(VENV)/.test ## plants faults one by one and says which no test sees; make mutants ARGS="--sample 20"
	$(BIN)/python tests/mutants/run.py --check $(ARGS)

# What says most about the distributions in the least time: interpreted kernels and compilers take the rest.
QUICK := tests/test_api_reference.py tests/test_distribution.py tests/test_masked.py tests/test_relaxed.py \
	tests/test_rng.py tests/test_self_check.py tests/test_report.py

test-quick: $(VENV)/.test ## the eager path alone; make test-quick ARGS=tests/test_x.py adds a file
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -k "not triton and not compiled" $(QUICK) $(ARGS)

# Without a pin of its own, Triton is the one that this torch requires.
compat: ## the suite with another torch: make compat TORCH=2.15.0 PYTHON=python3.13 ARGS="-k name"
	@test -n "$(TORCH)" || { echo "make compat TORCH=2.15.0: which torch?"; exit 2; }
	@mkdir -p $(COMPAT)
	@sed -e 's/^torch==.*/torch==$(TORCH)/' -e '/^triton==/d' constraints.txt > $(COMPAT)/constraints.txt
	@$(MAKE) --no-print-directory test VENV=$(COMPAT) CONSTRAINTS=$(COMPAT)/constraints.txt

lint: $(VENV)/.test ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

conformance: $(VENV)/.test ## the tests of the class in checkouts of others: RL=path PYTORCH=path PYRO=path
	$(BIN)/python tests/conformance.py --rl "$(RL)" --pytorch "$(PYTORCH)" --pyro "$(PYRO)"

bench: $(VENV)/.test ## times the library against its peers on this CPU, then makes the report
	$(BIN)/python -m pytest -s -q -rs -W ignore --benchmark-quiet --save benchmarks/bench_*.py
	$(BIN)/python benchmarks/bench_sharded.py --save
	$(BIN)/python benchmarks/report.py

bench-gpu: ## checks the compiled kernels, then times them, with the python3 that is there; ARGS=--dry-run on a CPU
	PYTHONPATH=. $(PYTHON) benchmarks/gpu.py $(ARGS)

ptx: $(VENV)/.test ## runs the compiled kernels on a CPU: the detectors, then every operation (ARGS: see tests/ptx)
	PYTHONPATH=tests $(BIN)/python tests/ptx/check.py --self-test
	PYTHONPATH=tests $(BIN)/python tests/ptx/check.py $(ARGS)

static-cost: $(VENV)/.test $(OLDER) ## compiles the kernels and counts their instructions, for the predictions of docs/scaling.md
	$(BIN)/python benchmarks/static_cost.py --arch sm_90 --json > static_cost.json
	mv static_cost.json benchmarks/results/static_cost.json
	PYTHONPATH=$(OLDER) $(BIN)/python benchmarks/static_cost.py --arch sm_90 --json > static_cost.json
	mv static_cost.json benchmarks/results/static_cost_triton_3.6.0.json
	$(BIN)/python benchmarks/report.py

# The Triton of torch 2.11, beside the one that the environment has.
$(OLDER): | $(VENV)/.demo
	$(BIN)/python -m pip --quiet --disable-pip-version-check install --target $@ --no-deps triton==3.6.0

docs: $(VENV)/.test ## the API reference, from the docstrings, in build/docs
	$(BIN)/python -W error -m pdoc -d google -o build/docs onehot_triton onehot_triton.integrations.torchrl onehot_triton.integrations.pyro

build: $(VENV)/.test ## a wheel and an sdist, in dist
	$(BIN)/python -m build --no-isolation

clean: ## removes the environment and every cache
	rm -rf $(VENV) .compat build dist *.egg-info .benchmarks .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The library itself, editable. Build isolation would download setuptools once more; torch warns where NumPy is not.
$(VENV)/.demo: constraints.txt pyproject.toml
	@echo "making $(VENV), which takes a minute or two the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) setuptools wheel numpy
	@$(PIP) --no-build-isolation -e .
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	@echo "installing what the tests need"
	@$(PIP) --no-build-isolation -e ".[test,bench,torchrl,examples,docs]"
	@touch $@
