# `make demo`, `make test`, `make quality`: each sets up .venv with the pinned packages first, once.
SHELL := bash
BASE_PYTHON ?= $(shell command -v python3.11 || command -v python3)
WORKERS ?= 2
SEED ?= 0
BIN := .venv/bin
PYTHON := $(BIN)/python
# One thread per worker: the tests' tensors are tiny, and more threads only get in each other's way.
# The tests compare with a CPU; those that want a GPU are test-accelerator's.
TEST_ENV := CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
INSTALL := $(PYTHON) -m pip install --quiet -c constraints.txt

# transformers' own tests, which its wheel leaves out (tests/helpers/transformers_tests.py reads them here).
TRANSFORMERS := $(subst ==,-,$(shell grep '^transformers==' constraints.txt))

.PHONY: help demo test common-tests coverage walk test-slow test-accelerator test-security test-lowest quality style docs build clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: .venv/.ready  ## render scenes, ground expressions in them, write pictures to ./demo
	$(PYTHON) scripts/demo.py $(if $(MODEL),--model $(MODEL))

test: .venv/.ready-dev common-tests  ## the tests, in minutes
	$(TEST_ENV) $(PYTHON) -m pytest -q -n $(WORKERS) --dist loadgroup

common-tests: .venv/.ready-dev  ## fetch transformers' own common tests, once; without them those tests are skipped
	@[ -d .cache/$(TRANSFORMERS)/tests ] || { mkdir -p .cache \
		&& $(PYTHON) -m pip download --quiet --no-deps --no-binary :all: -d .cache $(subst -,==,$(TRANSFORMERS)) \
		&& tar -xzf .cache/$(TRANSFORMERS).tar.gz -C .cache $(TRANSFORMERS)/tests; } \
		|| echo "transformers' common tests could not be fetched from the package index: they will be skipped."

coverage: .venv/.ready-dev common-tests  ## the same tests with the lines that they reach; too few is an error
	$(TEST_ENV) $(PYTHON) -m pytest -q -n $(WORKERS) --dist loadgroup --cov --cov-report=term --cov-report=html

walk: .venv/.ready-dev  ## what a newcomer does, in a new environment: README.md and docs/fine-tune.md, command by command
	BASE_PYTHON=$(BASE_PYTHON) scripts/walk_as_newcomer.sh

test-slow: .venv/.ready-dev  ## the tests that take longer
	$(TEST_ENV) $(PYTHON) -m pytest -q -m slow

test-accelerator: .venv/.ready-dev  ## the tests that need a CUDA device, in two minutes
	$(PYTHON) -m pytest -q -m accelerator tests/test_accelerator.py tests/benchmarks/test_speed.py

test-security: .venv/.ready-dev  ## the fuzzers, about ten minutes; SEED=N repeats or changes what they try
	$(TEST_ENV) HIVG_FUZZ_SEED=$(SEED) HIVG_FUZZ_ROWS=1500 HIVG_FUZZ_CASES=3000 HIVG_FUZZ_FOLDERS=150 \
		HIVG_FUZZ_RECIPES=4000 $(PYTHON) -m pytest -q -n $(WORKERS) --timeout 1800 tests/data/test_row_fuzz.py \
		tests/data/readers/test_format_fuzz.py \
		tests/utils/test_safe_pickle.py tests/hub/test_folder_fuzz.py tests/training/test_recipe_fuzz.py \
		tests/modeling/test_image_loading_hivg.py tests/inference/test_web_page.py tests/inference/test_web_guard.py

test-lowest: .venv-lowest/.ready  ## the tests with the lower bounds of setup.py, torch excepted
	$(TEST_ENV) .venv-lowest/bin/python -m pytest -q -n $(WORKERS) --dist loadgroup

quality: .venv/.ready-dev  ## lint, format, types and spelling, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

style: .venv/.ready-dev  ## fix what the linter and the formatter can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.ready-dev  ## the documentation site, to site/; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

build: .venv/.ready-dev  ## wheel and source distribution in dist, checked for upload
	rm -rf dist
	$(PYTHON) -m build
	$(BIN)/twine check --strict dist/*

clean:  ## remove caches, builds and generated documents; .venv stays
	rm -rf build dist site demo htmlcov .coverage .cache .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -not -path './.venv/*' -exec rm -rf {} +

# The stamps make a second call quick; a changed requirement or pin installs again.
.venv/.ready: setup.py constraints.txt
	[ -x $(PYTHON) ] || $(BASE_PYTHON) -m venv .venv
	$(INSTALL) -e .
	touch $@

.venv/.ready-dev: setup.py constraints.txt
	[ -x $(PYTHON) ] || $(BASE_PYTHON) -m venv .venv
	$(INSTALL) -e '.[dev]'
	touch .venv/.ready $@

# The lower bounds as exact versions, extras included; torch stays at the pinned version. What these packages need
# themselves is the newest that fits.
.venv-lowest/.ready: setup.py constraints.txt
	[ -x .venv-lowest/bin/python ] || $(BASE_PYTHON) -m venv .venv-lowest
	sed -n '/^REQUIRED/,/^EXTRAS\["dev"\]/p' setup.py | grep -oE '"[A-Za-z0-9_-]+(\[[a-z]+\])?>=[0-9.]+' | grep -v torch \
		| tr -d '"' | sed 's/>=/==/' > .venv-lowest/bounds.txt
	.venv-lowest/bin/python -m pip install --quiet -r .venv-lowest/bounds.txt $$(grep '^torch==' constraints.txt) \
		build codespell hypothesis jsonschema parameterized pytest pytest-timeout pytest-xdist selenium setuptools wheel
	.venv-lowest/bin/python -m pip install --quiet --no-deps -e .
	touch $@
