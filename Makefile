# `make help` lists the targets. Two matter first: `make demo` and `make quick`. `make check` is the whole gate.
PYTHON  ?= python3
WORKERS ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
BIN     := .venv/bin
READY   := .venv/.ready
DEV     := .venv/.ready-dev
CODE    := src tests bench docs deploy

# A process that may not keep its bytecode compiles the whole package each time it starts, 5 s of processor time, and the
# tests start hundreds of processes. So what `make` starts keeps it, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE

# Tests run in parallel workers, each with engines of its own: more than four would take much memory. Tests marked
# `alone` follow when the other workers have ended, see tests/parallel.py.
PARALLEL  = -n $(WORKERS) --maxprocesses 4 --dist loadgroup
SYNC     := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.DEFAULT_GOAL := help
.PHONY: alerts chart help demo quick quick-tests fix test test-servers test-deploy soak coverage check lint types imports docs docs-check docs-commands docs-site bench peers faults lock lock-image lock-peers licences sbom clean

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
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | awk -F'\t' '{ printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2 }'

demo: $(READY)   ## set up, start the stack, land real inputs, ask questions; KEEP=1 leaves it running
	@$(BIN)/python -m apex_memory.cli demo $(if $(KEEP),--keep)

quick: $(DEV)    ## under a minute: lint, types, import contracts, and all tests that need no engine, with a fifth of the random examples
	@$(MAKE) --no-print-directory --keep-going --jobs 4 $(SYNC) lint types imports quick-tests

quick-tests: $(DEV) ## the tests of `make quick` alone; ARGS="-k mail" for a part
	@$(BIN)/python -m pytest -q -m "not engine" --quick $(PARALLEL) $(ARGS)

fix: $(DEV)      ## format, and correct what the linter can correct
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

# These wait for engines and time limits a third of the time: on two cores three workers take 12 minutes, two 15. The gate
# also holds the crash loops and the demo, which fill the processors, and keeps to one worker for each.
test: WORKERS = $(shell expr $$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) + 1)
test: $(DEV)     ## the tests, on real engines, in WORKERS processes, with a fifth of the random examples; ARGS="-k mail" for a part
	$(BIN)/python -m pytest -m "not long" --quick $(PARALLEL) $(ARGS)
	@echo "Not run: the tests that take half a minute or more (the demo, storms, crash loops). make check runs them."

# Not a part of `make test`: on Python 3.11 counting lines costs the tests 30 to 80 % more processor time. 3.12 and later count
# through sys.monitoring, which is cheap.
coverage: $(DEV) ## the tests with line coverage, which is printed at the end; ARGS=tests/unit for a part
	@rm -rf build/coverage && mkdir -p build/coverage
	COVERAGE_CORE=$(shell $(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') \
	  $(BIN)/python -m coverage run -m pytest $(PARALLEL) $(ARGS)
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report

test-servers: $(DEV)   ## the tests on servers that PyPI does not carry: Neo4j (needs Java 17 and Maven), an OpenTelemetry collector (needs Go; building it takes minutes), PgBouncer, and the Qdrant that APEX_TEST_QDRANT names
	$(BIN)/python -m pytest -m server --servers --build-servers $(ARGS)

test-deploy: $(DEV)    ## the Helm chart on an API server of its own (needs Go, etcd and openssl, and half an hour to build it the first time); the Compose project, where a Docker Engine runs
	$(BIN)/python -m pytest -m deploy --deploy tests/deploy $(ARGS)

lint: $(DEV)     ## the format and the linter, which change nothing
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/ruff check $(CODE)

types: $(DEV)    ## mypy, in strict mode
	@$(BIN)/mypy

imports: $(DEV)  ## the import contracts
	@$(BIN)/lint-imports

docs: $(DEV)     ## generate the reference pages, the pictures, the Grafana dashboards, and the Helm chart's copies and table of values
	$(BIN)/python -m apex_memory.cli reference docs/reference
	$(BIN)/python -m docs.generate.pictures
	$(BIN)/python -m docs.generate.dashboards
	$(BIN)/python -m docs.generate.chart

docs-check: $(DEV)   ## fail if a generated page, picture or dashboard is not up to date
	$(BIN)/python -m apex_memory.cli reference docs/reference --check
	$(BIN)/python -m docs.generate.pictures --check
	$(BIN)/python -m docs.generate.dashboards --check
	$(BIN)/python -m docs.generate.chart --check

chart: $(DEV)    ## render the Helm chart for the tests, after a change of it (needs helm)
	$(BIN)/python -m docs.generate.chart --render

docs-commands: $(DEV)   ## run the commands of README, quickstart, how-to pages and runbooks as written, each page in a fresh clone; ARGS=docs/quickstart.md for one
	$(BIN)/python -m tests.docs $(ARGS)

docs-site: $(DEV)   ## build the documentation site and check its links; look at it with `python -m http.server -d build/site`
	$(BIN)/python -m docs.generate.site

check: $(DEV)    ## the gate: lint, types, imports, docs, and all tests, on Neo4j too where Java and Maven are
	@$(MAKE) --no-print-directory --jobs $(WORKERS) $(SYNC) lint types imports docs-check docs-site
	$(BIN)/python -m tests.gate $(PARALLEL) $(ARGS)

bench: $(DEV)    ## measure rates, times and ranking; ARGS=memory for one of the benchmarks
	$(BIN)/python -m bench $(ARGS)

peers: $(DEV)    ## measure Apex beside other memories (LightRAG, mem0, Graphiti, Chroma, LlamaIndex), which it installs into .cache/peers; ARGS=mem0 for one
	$(BIN)/python -m bench.peers $(ARGS)

faults: $(DEV)   ## the crash loop: FAULTS=100 SEED=… GRAPH=neo4j; ARGS=overload for a minute of ten times too much, ARGS=slow for kills, the demo and a day at a tenth of the machine (ARGS="slow --parts day" for some)
	$(BIN)/python -m tests.faults --faults $(or $(FAULTS),20) $(if $(SEED),--seed $(SEED)) $(if $(GRAPH),--graph $(GRAPH)) $(ARGS)

alerts: $(DEV)   ## fire each alert on a running stack by its fault, with a real Prometheus; ARGS="--only ApexBreakerOpen" for some
	@$(BIN)/python -m tests.alerts $(ARGS)

soak: $(DEV)     ## random inputs and faults with fresh seeds, again and again for SOAK=10 minutes; SEED=… repeats a round
	@$(BIN)/python -m tests.soak --minutes $(or $(SOAK),10) $(if $(SEED),--seed $(SEED)) $(ARGS)

LOCK := uv pip compile --quiet --universal --generate-hashes --python-version 3.11 pyproject.toml --group build

IMAGE_LOCK   := uv pip compile --quiet --universal --generate-hashes --python-version 3.11
IMAGE_EXTRAS := onnx documents sftp mcp flags neo4j otel s3

lock:            ## refresh the locks (needs uv); versions already in a lock stay
	$(LOCK) --extra embedded -o requirements.lock
	$(LOCK) --all-extras --group dev --group docs -o requirements-dev.lock
	$(IMAGE_LOCK) pyproject.toml $(foreach extra,$(IMAGE_EXTRAS),--extra $(extra)) --constraints requirements-dev.lock -o deploy/docker/requirements.lock
	$(IMAGE_LOCK) --group build --constraints requirements-dev.lock -o deploy/docker/build.lock

lock-peers:      ## refresh the lock of the peers that `make peers` measures (needs uv)
	uv pip compile --quiet --universal --generate-hashes --python-version 3.11 bench/peers/requirements.in -o bench/peers/requirements.txt

licences: $(DEV) ## list the licences of all locked packages, and fail on one that deploy/licences.toml does not allow
	@$(BIN)/python -m docs.generate.licences

sbom: $(DEV)     ## write a bill of materials (CycloneDX) for each lock to build/sbom
	@$(BIN)/python -m docs.generate.sbom

lock-image:      ## lock other extras for an image of your own: EXTRAS="onnx neo4j", written to deploy/docker/own.lock
	$(IMAGE_LOCK) pyproject.toml $(foreach extra,$(EXTRAS),--extra $(extra)) --constraints requirements-dev.lock -o deploy/docker/own.lock

clean:           ## remove .venv and the data folder .apex
	rm -rf .venv .apex
