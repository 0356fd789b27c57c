# SPDX-License-Identifier: Apache-2.0
# Two commands for people: `make demo` and `make test`. Both install what they need (as root on Debian).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
T ?= 60
QUICK ?=
H ?= 1
CSRC := $(wildcard csrc/*.c csrc/*.h csrc/path/*.c csrc/path/*.h csrc/traffic/*.c csrc/traffic/*.h)

help:
	@echo "make demo   a protected VM whose hosts die in turns, under load, and come back (root, Debian)"
	@echo "make test   everything: linters, types, C tests under sanitizers, properties, real VMs (root, Debian)"
	@echo "make check  the part of it that needs neither root nor a VM"
	@echo "make fuzz   libFuzzer on each entry point of the C core, T=60 seconds each (root, Debian, or clang)"
	@echo "make bench  all that is measured, beside QEMU's own colo-compare (root, Debian); QUICK=1: a smoke run"
	@echo "make soak   a pair whose hosts die in turns for H=1 hours: SIGKILL, SIGSTOP, cut cables (root, Debian)"
	@echo "make lint   ruff and mypy only"
	@echo "make clean  forget all that was built here"

# What apt must bring before Python can do the rest; nothing happens where all of it is there.
deps:
	@sh tools/install-deps.sh $(PYTHON)

$(BIN)/python: | deps
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip setuptools wheel

# One install of the package, in the virtual environment, again whenever a source is newer.
$(VENV)/.installed: $(BIN)/python setup.py pyproject.toml $(CSRC) $(shell find coloproxy -name '*.py')
	$(BIN)/pip install --quiet ".[test,bench]"
	@touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/coloproxy demo

test: install
	$(BIN)/python tools/run_tests.py --all $(PYTEST_ARGS)

check: install
	$(BIN)/python tools/run_tests.py $(PYTEST_ARGS)

fuzz: install
	$(BIN)/python tools/run_fuzz.py --seconds $(T)

bench: install
	$(BIN)/python tools/run_bench.py $(if $(QUICK),--quick)

soak: install
	$(BIN)/python tools/node_cycles.py --hours $(H) --death kill stop cut link --keep-going --json soak.json --logs soak-logs

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info csrc/build tests/c/build tests/fuzz/build .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help deps install demo test check fuzz bench soak lint clean
