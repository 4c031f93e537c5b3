# Two commands matter first: `make demo` and `make test`. `make check` is the whole gate.
PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/.ready
DEV    := .venv/.ready-dev

.PHONY: help demo test test-alone test-quick test-servers quick fix check lint types imports docs docs-check docs-site bench faults soak coverage lock clean

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

# Tests run in parallel workers, each with engines of its own. Tests marked `alone` follow one by one: they measure
# time, or kill processes, and another test beside them would be part of what they see.
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)

test: $(DEV)     ## the test suite, on real engines, in parallel; ARGS="-k mail" for a part of it
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not alone" $(ARGS)
	$(BIN)/python -m pytest -m alone $(ARGS) || test $$? = 5

quick: $(DEV)    ## under a minute: lint, types, import contracts, and all tests that need no engine, side by side
	@$(MAKE) --no-print-directory -j4 --output-sync=target lint types imports test-quick

test-quick: $(DEV)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not engine" $(ARGS)

fix: $(DEV)      ## format, and correct what the linter can correct
	$(BIN)/ruff format src tests bench docs
	$(BIN)/ruff check --fix src tests bench docs

# Not a part of `make test`: on Python 3.11 counting lines costs the tests 30 to 80 % more processor time. 3.12 and later count
# through sys.monitoring, which is cheap.
coverage: $(DEV) ## the tests with line coverage, which is printed at the end; ARGS=tests/unit for a part
	@rm -rf build/coverage && mkdir -p build/coverage
	COVERAGE_CORE=$(shell $(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') \
	  $(BIN)/python -m coverage run -m pytest -n $(WORKERS) --dist worksteal $(ARGS)
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report

test-servers: $(DEV)   ## contract suite and crash loop on servers that PyPI does not carry: Neo4j, from Maven Central
	@if command -v java >/dev/null && command -v mvn >/dev/null; then \
	  $(BIN)/python -m pytest tests/contract/test_graph.py tests/servers tests/faults/test_loop.py::test_the_promise_is_kept_on_neo4j \
	    --servers --timeout 400 $(ARGS); \
	else \
	  echo "NOT TESTED: the graph on Neo4j. It needs Java 17 and Maven."; \
	fi

lint: $(DEV)
	$(BIN)/ruff format --check src tests bench docs
	$(BIN)/ruff check src tests bench docs

types: $(DEV)
	$(BIN)/mypy

imports: $(DEV)
	$(BIN)/lint-imports

docs: $(DEV)     ## generate the reference pages and the pictures
	$(BIN)/python -m apex_memory.cli reference docs/reference
	$(BIN)/python -m docs.generate.pictures

docs-check: $(DEV)
	$(BIN)/python -m apex_memory.cli reference docs/reference --check
	$(BIN)/python -m docs.generate.pictures --check

docs-site: $(DEV)   ## build the documentation site and check its links; look at it with `python -m http.server -d build/site`
	$(BIN)/python -m docs.generate.site

check: lint types imports docs-check docs-site test test-servers   ## the whole gate; CI runs just this

bench: $(DEV)
	$(BIN)/python -m bench $(ARGS)

faults: $(DEV)   ## the crash loop: FAULTS=100 SEED=… GRAPH=neo4j; ARGS=overload for a minute of ten times too much
	$(BIN)/python -m tests.faults --faults $(or $(FAULTS),20) $(if $(SEED),--seed $(SEED)) $(if $(GRAPH),--graph $(GRAPH)) $(ARGS)

soak: $(DEV)     ## random seeds, again and again for MINUTES=10: property tests and crash loops; prints each seed
	@end=$$(( $$(date +%s) + 60 * $(or $(MINUTES),10) )); round=0; \
	while [ $$(date +%s) -lt $$end ]; do \
	  round=$$((round + 1)); seed=$$(od -An -N4 -tu4 /dev/urandom | tr -d ' '); \
	  echo "soak: round $$round, seed $$seed (repeat: make soak-round SEED=$$seed)"; \
	  $(MAKE) --no-print-directory soak-round SEED=$$seed || exit 1; \
	done

soak-round: $(DEV)
	$(BIN)/python -m pytest -q -m property --soak --hypothesis-seed=$(SEED) -p randomly -p "no:cacheprovider" --timeout 900 $(ARGS)
	$(BIN)/python -m tests.faults --faults $(or $(FAULTS),20) --seed $(SEED)

LOCK := uv pip compile --quiet --universal --generate-hashes --python-version 3.11 pyproject.toml --group build

lock:            ## refresh the locks (needs uv); versions already in a lock stay
	$(LOCK) --extra embedded -o requirements.lock
	$(LOCK) --all-extras --group dev --group docs -o requirements-dev.lock

clean:
	rm -rf .venv .apex
