# The developer's commands; they need Python 3.10 to 3.13 only. `make help` lists them.
PYTHON ?= python3
STACK ?= onedl
# The environment (6 GB) is outside the checkout, so that clones with equal requirements share it.
ifeq ($(VENV),)
override VENV := $(shell "$(PYTHON)" requirements/environment.py path "$(STACK)")
endif
RUN = "$(VENV)/bin/python"
# One test process for each core; TEST_ARGS=-n0 uses a single process.
PYTEST = $(RUN) -m pytest -n auto --dist worksteal

# The environment has third-party packages only, so the checkout is on the path, also in the processes that
# the tests and the demo start.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

.PHONY: help setup demo test test-all test-cuda lint ruff mypy format docs clean
.DEFAULT_GOAL := help

help:
	@echo 'make setup     create the environment if it is missing'
	@echo 'make demo      a teacher and its students on digits, or on birds if FNKD_DATA and FNKD_WEIGHTS are set'
	@echo 'make test      all but the slow tests; TEST_ARGS="-k norm -x" goes to pytest'
	@echo 'make test-all  every test'
	@echo 'make test-cuda what holds on a GPU alone'
	@echo 'make docs      the documentation, in docs/_build/html (Python 3.11 or later)'
	@echo 'make lint      ruff and mypy; make format applies the fixes of ruff'
	@echo 'make clean     remove caches and build files from this checkout'
	@echo
	@echo 'STACK=$(STACK) (onedl or openmmlab)  PYTHON=$(PYTHON)'
	@echo 'VENV=$(VENV)'

setup:
	@"$(PYTHON)" requirements/environment.py build "$(STACK)" "$(VENV)"

demo: setup
	$(RUN) tools/demo.py $(DEMO_ARGS)

test: setup
	$(PYTEST) -m 'not slow' $(TEST_ARGS)

test-all: setup
	$(PYTEST) $(TEST_ARGS)

# One process: the tests share the GPU.
test-cuda: setup
	FNKD_TEST_CUDA=1 $(RUN) -m pytest tests/test_cuda $(TEST_ARGS)

lint: ruff mypy

ruff: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

mypy: setup
	$(RUN) -m mypy

# The pages, with the notebook executed; warnings are errors. Sphinx needs Python 3.11.
docs: setup
	rm -rf docs/_build
	$(RUN) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

format: setup
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info docs/_build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
