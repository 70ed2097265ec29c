# make PYTHON=python3.12 VENV=/some/folder PIP_ARGS="--no-index --find-links wheels" PYTEST_ARGS="-k bundle"
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?=
# What is trained, and on which folders of scenes.
RECIPE ?= damp-base-long
DATA ?= $(or $(DAMP_DATA),../shared/data)
# Recipes of these architectures are of networks for photographs.
PHOTOGRAPHS := $(DATA)/rgb/bsds-train
SCENES ?= $(if $(shell grep -Es "^architecture: *(dfpir|dpmambair)" training/recipes/$(RECIPE).yaml),$(PHOTOGRAPHS),$(DATA)/cave \
	$(if $(shell grep -s "photographs:" training/recipes/$(RECIPE).yaml),$(PHOTOGRAPHS)))
RUNS ?= runs
TRAIN_ARGS ?=
SLOW ?=
# Tests run side by side, one thread each: two processes of two threads on two cores are many times slower.
WORKERS ?= 2
# Under which what flies is tested, beside this one.
PYTHONS ?= 3.10 3.12 3.13

EXTRAS := cpu,export,photographs,report,rtx,openvino,signing,products,zarr,archive,dev
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TYPED := -p runtime -p calibration -p deploy
BENCHMARKS = $(sort faults gpu $(filter-out _%,$(patsubst benchmarks/%.py,%,$(wildcard benchmarks/*.py))))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test bench train-background lint lint-style lint-types lint-imports check-flight check-pythons check-aarch64 sbom clean

help: ## this list
	@sed -n 's/^\([a-z0-9%-]*\):.*## /\1	/p' $(firstword $(MAKEFILE_LIST)) | while IFS='	' read -r name text; do printf '  make %-13s %s\n' "$$name" "$$text"; done

install: $(STAMP) ## make the virtual environment with everything that runs here

# The second line tells a finished environment from one that venv left half made, as it does where ensurepip is missing.
$(STAMP): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -c constraints.txt $(PIP_ARGS) -e ".[$(EXTRAS)]"
	@touch $@

demo: install ## a scene degraded, built, restored and checked, under build/demo
	@rm -rf build/demo
	$(BIN)/deploy demo --out build/demo

test: install ## the tests, with SLOW=1 those that take minutes too; says how many were left out for want of real cubes
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal $(if $(SLOW),-m "") $(PYTEST_ARGS)

test-%: install ## those of one package: test-runtime, test-export, test-calibration, test-training, test-deploy
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/$* -n $(WORKERS) --dist worksteal $(if $(SLOW),-m "") $(PYTEST_ARGS)

bench: install ## every benchmark, one table each
	@set -e; for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name; done

# Linux shares the processor among sessions first, by each session's own niceness, and only then among processes.
train-background: install ## train RECIPE on SCENES at low priority, from where it was; the log tells its process, `kill` ends it
	@test -f training/recipes/$(RECIPE).yaml || { echo "training/recipes/$(RECIPE).yaml: no such recipe" >&2; exit 2; }
	@mkdir -p $(RUNS)/$(RECIPE)
	@exec 9>$(RUNS)/$(RECIPE)/background; log=$(RUNS)/$(RECIPE)/log; touch $$log; from=$$(wc -c <$$log); \
		flock -n 9 || { echo "$(RUNS)/$(RECIPE): a process trains here already" >&2; exit 3; }; \
		OMP_NUM_THREADS=1 setsid sh -c '{ echo 19 >/proc/self/autogroup; } 2>/dev/null; exec nice -n 19 "$$@"' train \
		$(BIN)/python -m training.train --device cpu --recipe training/recipes/$(RECIPE).yaml \
		--data $(SCENES) --out $(RUNS)/$(RECIPE) $(TRAIN_ARGS) </dev/null >>$$log 2>&1 & \
		until tail -c +$$((from + 1)) $$log | grep -q ' at step '; do sleep 0.2; \
			kill -0 $$! 2>/dev/null || { tail -n 1 $$log >&2; exit 3; }; done; \
		echo "$(RECIPE) trains as process $$!; $$log tells how far it is"

lint: lint-style lint-types lint-imports ## style, types (as Python 3.11 and 3.10 see them) and the direction of imports

lint-style: install
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .

lint-types: install
	$(BIN)/mypy --strict $(TYPED)
	$(BIN)/mypy --strict $(TYPED) --python-version 3.10

lint-imports: install
	$(BIN)/lint-imports

check-flight: install ## do the flight computers' Pythons find wheels for the flight install?
	$(BIN)/python -m tests.flight_wheels

check-pythons: install ## the tests of what flies, under every one of PYTHONS that is found; fails where none is
	$(BIN)/python -m tests.flight_pythons $(PYTHONS)

check-aarch64: install ## the flight install run as aarch64, emulated (needs qemu-user-static): tests/flight, in ten minutes
	$(BIN)/python -m tests.aarch64 $(PYTEST_ARGS)

# No pip in the environment that is told of, and what is read is what is installed there: not this tree's own path.
sbom: ## what the flight install brings, package by package with versions and licences: build/sbom.json (CycloneDX)
	rm -rf build/sbom build/sbom.json
	$(PYTHON) -m venv build/sbom/tool
	build/sbom/tool/bin/python -m pip install --quiet -c constraints.txt $(PIP_ARGS) cyclonedx-bom
	$(PYTHON) -m venv --without-pip build/sbom/flight
	build/sbom/tool/bin/python -m pip --python build/sbom/flight/bin/python install --quiet -c constraints.txt $(PIP_ARGS) ".[cpu,stream,signing]"
	build/sbom/tool/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o build/sbom.json build/sbom/flight/bin/python
	@build/sbom/tool/bin/python -c 'import json; print(len(json.load(open("build/sbom.json"))["components"]), "components in build/sbom.json")'

clean: ## remove what was built and cached; the virtual environment and runs/ stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .benchmarks
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
