# `make help` lists the targets. Two matter first: `make demo` and `make quick`. `make check` is the whole gate.
PYTHON  ?= python3
WORKERS ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
BIN     := .venv/bin
READY   := .venv/.ready
DEV     := .venv/.ready-dev
CODE    := src tests bench docs

# Tests run in parallel workers, each with engines of its own: more than four would take much memory. Tests marked
# `alone` follow when the other workers have ended, see tests/parallel.py.
PARALLEL := -n $(WORKERS) --maxprocesses 4 --dist loadgroup
SYNC     := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.DEFAULT_GOAL := help
.PHONY: help demo quick quick-tests fix test test-servers soak coverage check lint types imports docs docs-check docs-site bench faults lock clean

$(READY): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)))' || \
	  { echo "Apex needs Python 3.11, 3.12 or 3.13 here; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another one: make demo PYTHON=python3.12"; exit 1; }
	@echo "Setting up .venv (first time only) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(DEV): $(READY) requirements-dev.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

help:            ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | awk -F'\t' '{ printf "  \033[1m%-13s\033[0m %s\n", $$1, $$2 }'

demo: $(READY)   ## set up, start the stack, land real inputs, ask questions; KEEP=1 leaves it running
	@$(BIN)/python -m apex_memory.cli demo $(if $(KEEP),--keep)

quick: $(DEV)    ## under a minute: lint, types, import contracts, and all tests that need no engine, side by side
	@$(MAKE) --no-print-directory --keep-going --jobs 4 $(SYNC) lint types imports quick-tests

quick-tests: $(DEV)
	@$(BIN)/python -m pytest -q -m "not engine" $(PARALLEL) $(ARGS)

fix: $(DEV)      ## format, and correct what the linter can correct
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

test: $(DEV)     ## the test suite, on real engines, in WORKERS processes; ARGS="-k mail" for a part of it
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

# Not a part of `make test`: on Python 3.11 counting lines costs the tests 30 to 80 % more processor time. 3.12 and later count
# through sys.monitoring, which is cheap.
coverage: $(DEV) ## the tests with line coverage, which is printed at the end; ARGS=tests/unit for a part
	@rm -rf build/coverage && mkdir -p build/coverage
	COVERAGE_CORE=$(shell $(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') \
	  $(BIN)/python -m coverage run -m pytest $(PARALLEL) $(ARGS)
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report

test-servers: $(DEV)   ## the tests on servers that PyPI does not carry: Neo4j, from Maven Central; needs Java 17 and Maven
	$(BIN)/python -m pytest -m server --servers $(ARGS)

lint: $(DEV)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/ruff check $(CODE)

types: $(DEV)
	@$(BIN)/mypy

imports: $(DEV)
	@$(BIN)/lint-imports

docs: $(DEV)     ## generate the reference pages and the pictures
	$(BIN)/python -m apex_memory.cli reference docs/reference
	$(BIN)/python -m docs.generate.pictures

docs-check: $(DEV)
	$(BIN)/python -m apex_memory.cli reference docs/reference --check
	$(BIN)/python -m docs.generate.pictures --check

docs-site: $(DEV)   ## build the documentation site and check its links; look at it with `python -m http.server -d build/site`
	$(BIN)/python -m docs.generate.site

check: lint types imports docs-check docs-site   ## the gate: lint, types, imports, docs, and all tests, on Neo4j too where Java and Maven are
	@$(MAKE) --no-print-directory test ARGS="--servers $(ARGS)"

bench: $(DEV)
	$(BIN)/python -m bench $(ARGS)

faults: $(DEV)   ## the crash loop: FAULTS=100 SEED=… GRAPH=neo4j; ARGS=overload for a minute of ten times too much, ARGS=slow for a tenth of the machine
	$(BIN)/python -m tests.faults --faults $(or $(FAULTS),20) $(if $(SEED),--seed $(SEED)) $(if $(GRAPH),--graph $(GRAPH)) $(ARGS)

soak: $(DEV)     ## random inputs and faults with fresh seeds, again and again for SOAK=10 minutes; SEED=… repeats a round
	@$(BIN)/python -m tests.soak --minutes $(or $(SOAK),10) $(if $(SEED),--seed $(SEED)) $(ARGS)

LOCK := uv pip compile --quiet --universal --generate-hashes --python-version 3.11 pyproject.toml --group build

lock:            ## refresh the locks (needs uv); versions already in a lock stay
	$(LOCK) --extra embedded -o requirements.lock
	$(LOCK) --all-extras --group dev --group docs -o requirements-dev.lock

clean:
	rm -rf .venv .apex
