# Everything runs from .venv, which `make setup` builds from pyproject.toml with the interpreter PYTHON.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= $(shell n=$$(nproc); if [ $$n -gt 4 ]; then echo 4; else echo $$n; fi)

.PHONY: demo test check docker-check check-slow check-gpu bench setup clean

demo: setup  ## render a world, extract, fit and evaluate all four tasks; prints one table
	$(BIN)/python benchmarks/demo.py --out demo

test: setup  ## the ordinary tests, but for those of docker/ (make docker-check)
	OMP_NUM_THREADS=1 HYPOTHESIS_PROFILE=ci $(BIN)/python -m pytest -n $(JOBS) -m "not slow and not gpu" \
		--ignore=tests/test_docker.py --durations=15

check: setup  ## lint, format, import arrows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

docker-check: setup  ## lint docker/, check its cluster file, run the image's install steps in a clean environment
	$(BIN)/python -m pytest tests/test_docker.py

check-slow: setup  ## the long tests: repeated kills, and every one of the difficult video files
	$(BIN)/python -m pytest -m "slow and not gpu" --durations=15

check-gpu: setup  ## extract, fit and eval on a CUDA device compared with the CPU (skipped without one)
	$(BIN)/python -m pytest -m gpu -s tests/gpu

bench: setup  ## the benchmarks, one after another
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

setup: .venv/ready

.venv/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev,demo]'
	touch $@

clean:  ## remove what make made, except the environment
	rm -rf demo dist build .pytest_cache .ruff_cache .import_linter_cache .hypothesis
