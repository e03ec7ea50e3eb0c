# Two commands from nothing: `make reproduce` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CORES ?= all
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help install reproduce test test-all lint reference clean

help:
	@echo "make install    set up $(VENV) with everything the workflow needs"
	@echo "make reproduce  run the embedded study from nothing to its report"
	@echo "make test       run the tests, in less than 20 minutes on two cores"
	@echo "make test-all   run all tests: also studies killed and started again, the tutorial, SLURM and the conda stand-in"
	@echo "make lint       check style and types"
	@echo "make reference  bring config/README.md, the schemas beside it and docs/metrics.md in step with the code"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "python3 >= 3.11 is needed; name one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# pip compiles on one core; templates among the packages' files do not compile, and need not.
COMPILE = $(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib >/dev/null 2>&1 || true

# torch and torchvision must come from one command: a pair of different builds does not import.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV): about 2 minutes and 6 GB, most of it PyTorch"
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[workflow]'
	@$(COMPILE)
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[workflow,test]'
	@$(COMPILE)
	@touch $@

install: $(VENV)/.installed

reproduce: install
	snakemake --cores $(CORES)
	@python -c 'from pathlib import Path; from unimind.study import read_study; print("The report:", Path(read_study("config/config.yaml").results, "report.html").resolve())'

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not longest"

test-all: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-test
	ruff check .
	mypy
	snakefmt --check Snakefile workflow
	snakemake --lint

reference: install
	python -m unimind.study_reference

clean:
	rm -rf results logs benchmarks/*/
