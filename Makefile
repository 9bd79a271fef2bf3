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

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## show the library at work here: an example, a self-check and a small table
	@$(BIN)/python -m onehot_triton

test: $(VENV)/.test ## run the test suite; ARGS="-k name" runs a part
	$(BIN)/python -m pytest -n auto --maxprocesses 4 $(ARGS)

mutants: $(VENV)/.test ## plant faults one by one and report those that no test notices; ARGS="--sample 20" plants 20
	$(BIN)/python tests/mutants/run.py --check $(ARGS)

# Tests of the distributions that neither interpret kernels nor compile, which is what takes the suite its time.
QUICK := tests/test_api_reference.py tests/test_distribution.py tests/test_masked.py tests/test_relaxed.py \
	tests/test_rng.py tests/test_self_check.py tests/test_report.py

test-quick: $(VENV)/.test ## run the tests of the eager path; ARGS=tests/test_x.py adds a file
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -k "not triton and not compiled" $(QUICK) $(ARGS)

# Without a pin of its own, Triton is the one that this torch requires.
compat: ## run the suite with another torch: make compat TORCH=2.15.0 PYTHON=python3.13 ARGS="-k name"
	@test -n "$(TORCH)" || { echo "make compat TORCH=2.15.0: which torch?"; exit 2; }
	@mkdir -p $(COMPAT)
	@sed -e 's/^torch==.*/torch==$(TORCH)/' -e '/^triton==/d' constraints.txt > $(COMPAT)/constraints.txt
	@$(MAKE) --no-print-directory test VENV=$(COMPAT) CONSTRAINTS=$(COMPAT)/constraints.txt

lint: $(VENV)/.test ## run ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

conformance: $(VENV)/.test ## run others' own tests of the class, in checkouts: RL=path PYTORCH=path PYRO=path
	$(BIN)/python tests/conformance.py --rl "$(RL)" --pytorch "$(PYTORCH)" --pyro "$(PYRO)"

bench: $(VENV)/.test ## time the library and its peers on this CPU, then write the report
	$(BIN)/python -m pytest -s -q -rs -W ignore --benchmark-quiet --save benchmarks/bench.py
	$(BIN)/python benchmarks/bench_sharded.py --save
	$(BIN)/python benchmarks/report.py

bench-gpu: ## check and time the compiled kernels with this machine's python3; ARGS=--dry-run needs no GPU
	PYTHONPATH=. $(PYTHON) tools/gpu.py $(ARGS)

ptx: $(VENV)/.test ## execute the compiled kernels on a CPU: the detectors' self-test, then every operation (ARGS: see tests/ptx)
	PYTHONPATH=tests $(BIN)/python tests/ptx/check.py --self-test
	PYTHONPATH=tests $(BIN)/python tests/ptx/check.py $(ARGS)

static-cost: $(VENV)/.test $(OLDER) ## compile the kernels, count their instructions, and write the predictions of docs/scaling.md
	$(BIN)/python tools/static_cost.py --arch sm_90 --json > static_cost.json
	mv static_cost.json benchmarks/results/static_cost.json
	PYTHONPATH=$(OLDER) $(BIN)/python tools/static_cost.py --arch sm_90 --json > static_cost.json
	mv static_cost.json benchmarks/results/static_cost_triton_3.6.0.json
	$(BIN)/python benchmarks/report.py

# The Triton that torch 2.11 brings, in a folder of its own beside the environment's.
$(OLDER): | $(VENV)/.demo
	$(BIN)/python -m pip --quiet --disable-pip-version-check install --target $@ --no-deps triton==3.6.0

docs: $(VENV)/.test ## write the API reference to build/docs, from the docstrings
	$(BIN)/python -W error -m pdoc -d google -o build/docs onehot_triton onehot_triton.integrations.torchrl onehot_triton.integrations.pyro

build: $(VENV)/.test ## build a wheel and an sdist in dist
	$(BIN)/python -m build --no-isolation

clean: ## remove the environment and every cache
	rm -rf $(VENV) .compat build dist *.egg-info .benchmarks .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The library, editable. Without build isolation setuptools is not downloaded a second time. torch warns without NumPy.
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
