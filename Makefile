# Two commands matter first: `make demo` and `make test`. `make check` is the whole gate.
PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/.ready
DEV    := .venv/.ready-dev

.PHONY: demo test test-servers check lint types imports docs docs-check docs-site bench faults lock clean

$(READY): requirements.lock pyproject.toml
	@echo "Setting up .venv (first time only) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(DEV): $(READY) requirements-dev.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

demo: $(READY)   ## set up, start the stack, land real inputs, ask questions; KEEP=1 leaves it running
	@$(BIN)/python -m apex_memory.cli demo $(if $(KEEP),--keep)

test: $(DEV)     ## the test suite, on real engines
	$(BIN)/python -m pytest $(ARGS)

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

LOCK := uv pip compile --quiet --universal --generate-hashes --python-version 3.11 pyproject.toml --group build

lock:            ## refresh the locks (needs uv); versions already in a lock stay
	$(LOCK) --extra embedded -o requirements.lock
	$(LOCK) --all-extras --group dev --group docs -o requirements-dev.lock

clean:
	rm -rf .venv .apex
