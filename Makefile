# make train   set up, train on the embedded names, print sampled names
# make test    set up, run the tests; then those of the ops again, with CUDA's bindings and kernels, on the CPU
# make sanitize  build the C++ under the watch of compilers' sanitizers, and run the tests that call it
# make bench   set up, measure everything, write benchmarks/results/
# make docs    set up, build the documentation as a site into build/docs
# make notebooks  set up, write the lessons of docs/learn as notebooks, beside them
# make wheels  set up, pack the sources and a wheel for each Python of this machine into dist/
SHELL := /bin/bash
PYTHON ?= python3
TORCH_VERSION ?= 2.13.0
# Of a machine with a GPU but without compiler or network: an interpreter of its Python's version, and what it lacks.
GPU_PYTHON ?= $(PYTHON)
GPU_PACKAGES ?= liger-kernel cut-cross-entropy expecttest
VENV := .venv
BIN := $(VENV)/bin
# Re-run the set-up whenever a file that decides what is installed or compiled changes.
BUILD_INPUTS := pyproject.toml setup.py $(wildcard building/*.py) $(shell find csrc -type f)
# What setup.py is asked for: what it was asked for last, until it is something else.
ASKED_LAST := $(shell cat $(VENV)/.asked 2> /dev/null)
CHARLM_CUDA ?= $(or $(word 1,$(ASKED_LAST)),auto)
CHARLM_ISA ?= $(or $(word 2,$(ASKED_LAST)),auto)
export CHARLM_CUDA CHARLM_ISA
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# pip leaves it to Python to compile what is imported, a small part of torch, and Python keeps that.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE
CXX_FILES = $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

.PHONY: train test sanitize bench docs notebooks wheels gpu gpu-kit lint format setup clean FORCE

# A run that is already there goes on to its end, which may be at once: no run is ever overwritten.
train: $(VENV)/.ready
	@if [ -n "$$(ls -A runs/names 2>/dev/null)" ]; then command="--resume"; else command="--out"; fi; \
	set -x; $(BIN)/charlm train $$command runs/names
	$(BIN)/charlm sample runs/names -n 20

test: $(VENV)/.tools
	$(BIN)/python -m pytest -n auto --dist worksteal
	if [ "$$(uname)" = Linux ]; then $(BIN)/python -m pytest -n auto --dist worksteal --device simulated; fi

# The C++ built so that an access out of bounds, or an operation without a defined result, ends the program with a
# report; in a folder of its own. Two threads, as a bound between theirs is what most easily falls in the wrong place.
# Reports go to files, since pytest keeps what is written to standard error and dies with it. Checks of a gradient by
# differences call the same code hundreds of times more.
SANITIZED := build/sanitize
SANITIZERS = $(foreach name,libasan.so libubsan.so libstdc++.so,$(shell $${CC:-gcc} -print-file-name=$(name)))
OPS := $(filter-out reference,$(basename $(notdir $(wildcard charlm/ops/[a-z]*.py))))
SANITIZED_TESTS := $(patsubst %,tests/test_%.py,$(OPS) bad_input constraints data_errors direct_calls direct_losses engine \
  engine_branches engine_population kept loss_edges memory text text_sampler token_weights uncounted_rows zero_sizes)

sanitize: $(VENV)/.tools
	CHARLM_SANITIZE=1 CHARLM_CUDA=0 CHARLM_ISA=auto $(BIN)/python setup.py --quiet build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	rm -f $(SANITIZED)/report.*
	LD_PRELOAD="$(SANITIZERS)" OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive \
	  UBSAN_OPTIONS=print_stacktrace=1:log_path=$(SANITIZED)/report \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:log_path=$(SANITIZED)/report \
	  $(BIN)/pytest -n auto --dist worksteal -q -k "not gradcheck" \
	  -o "pythonpath=$(SANITIZED)/lib . tests/cuda_on_cpu" $(SANITIZED_TESTS) \
	  || { cat $(SANITIZED)/report.* 2> /dev/null; exit 1; }
	if [ "$$(uname)" = Linux ]; then \
	  CHARLM_SANITIZE=1 LD_PRELOAD="$(SANITIZERS)" \
	    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:log_path=$(SANITIZED)/report \
	    $(BIN)/pytest -n auto --dist worksteal -q --device simulated tests/test_cuda_kernels.py \
	    || { cat $(SANITIZED)/report.* 2> /dev/null; exit 1; }; \
	fi

bench: $(VENV)/.ready
	$(PIP_INSTALL) "charlm-ops[bench]"
	$(BIN)/python -m benchmarks

# build/docs/index.html. A link or a name that leads nowhere is an error.
docs: $(VENV)/.tools
	$(BIN)/python -m sphinx --builder html --conf-dir docs --fresh-env --fail-on-warning --keep-going --quiet . build/docs

notebooks: $(VENV)/.tools
	$(BIN)/python -m scripts.notebooks

# On a machine with a GPU: all that it is asked, in ten minutes; what a run that was cut short has done is not repeated.
gpu: $(VENV)/.tools
	$(BIN)/python -m benchmarks.gpu

# dist/: the source distribution, and a wheel for each Python from 3.10 that is found here.
wheels: $(VENV)/.tools
	$(BIN)/python -m scripts.build_wheels

# What to take along, beside the sources, to run the same where there is neither compiler nor network.
gpu-kit: CHARLM_CUDA := 1
gpu-kit: $(VENV)/.ready
	$(BIN)/python -m scripts.gpu_kit --python $(GPU_PYTHON) --packages $(GPU_PACKAGES)

lint: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

setup: $(VENV)/.tools

# torch first and at one pinned version: every later install then finds its requirement satisfied.
$(VENV)/.torch-$(TORCH_VERSION):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "charlm needs Python >= 3.10: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch==$(TORCH_VERSION) "setuptools>=77" "pybind11>=2.13" ninja
	touch $@

$(VENV)/.asked: $(VENV)/.torch-$(TORCH_VERSION) FORCE
	@echo "$(CHARLM_CUDA) $(CHARLM_ISA)" | cmp -s - $@ || echo "$(CHARLM_CUDA) $(CHARLM_ISA)" > $@

$(VENV)/.ready: $(VENV)/.torch-$(TORCH_VERSION) $(VENV)/.asked $(BUILD_INPUTS)
	$(PIP_INSTALL) --no-build-isolation --editable ".[plot]"
	touch $@

# What tests and linters take.
$(VENV)/.tools: $(VENV)/.ready
	$(PIP_INSTALL) "charlm-ops[test,dev]"
	touch $@

clean:
	rm -rf build dist gpu-kit *.egg-info charlm/*.so $(VENV)/.ready
