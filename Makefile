# `make demo` and `make test` set up everything they need. Python 3.10, 3.11 or 3.12 on Linux x86-64.

PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; raise SystemExit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
LATEST := .venv-latest
LOGGERS := .venv-loggers
PIP := -m pip install --quiet --disable-pip-version-check

.PHONY: setup demo check test test-kernels-latest test-transformers-latest test-loggers lock clean

setup: .venv/.installed

.venv/.installed: requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10, 3.11 or 3.12 found; install one, or say make PYTHON=..."; exit 2; }
	$(PYTHON) -m venv .venv
	@echo "installing requirements.txt into .venv: a few minutes, 4.4 GB to download, 9 GB on disk"
	$(BIN)/python $(PIP) --no-deps -r requirements.txt
	$(BIN)/python $(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

# What the tests and the linter need beside it, and what is exported is verified with.
.venv/.installed-dev: .venv/.installed requirements-dev.txt requirements-export.txt
	$(BIN)/python $(PIP) --no-deps -r requirements-dev.txt -r requirements-export.txt
	@touch $@

demo: setup
	$(BIN)/python -m benchmarks.demo

# Under a minute, for every save: lint, the rules of import and of requirements, and the units: what trains nothing and reads no
# prepared dataset. The marker `slow` takes single tests of these files out.
UNITS := tests/cost tests/model tests/test_config.py tests/test_settings.py tests/test_imports.py tests/test_requirements.py \
	tests/data/test_batch.py tests/data/test_masking.py tests/data/test_sampler.py
check: .venv/.installed-dev
	$(BIN)/python -m ruff check --quiet .
	$(BIN)/python -m ruff format --check --quiet .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(UNITS)

# One thread a test process, two processes: tiny models gain nothing from more. In the files' order, as those with the fewest tests
# have the longest ones, and one process would run them alone at the end. Triton's interpreter is chosen when triton is
# first imported, so the kernels' tests have a process of their own.
test: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore=tests/kernels
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/kernels

# The kernels on the newest torch and triton of the package index, in an environment of their own, made anew each time: outside
# continuous integration, because what it installs is not pinned. Several GB.
test-kernels-latest:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10, 3.11 or 3.12 found; install one, or say make PYTHON=..."; exit 2; }
	rm -rf $(LATEST)
	$(PYTHON) -m venv $(LATEST)
	$(LATEST)/bin/python -m pip install --quiet --disable-pip-version-check torch numpy pytest pytest-timeout hypothesis
	$(LATEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade triton
	@$(LATEST)/bin/python -c 'import torch, triton; print(f"torch {torch.__version__}, triton {triton.__version__}")'
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(LATEST)/bin/python -m pytest --confcutdir=tests/kernels tests/kernels

# What lies over .venv in an environment of its own sees that one's packages, this checkout among them.
OVER = $(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	>$$(echo $(1)/lib/python3*/site-packages)/locked.pth

# The newest transformers and sentence-transformers beside everything else of the lock: exported folders must load there too, and
# this project's `kernels` must not be taken for Hugging Face's.
test-transformers-latest: .venv/.installed-dev
	rm -rf $(LATEST)
	$(PYTHON) -m venv $(LATEST)
	$(call OVER,$(LATEST))
	$(LATEST)/bin/python $(PIP) --upgrade transformers sentence-transformers
	@$(LATEST)/bin/python -c 'import transformers, sentence_transformers as sentence; \
		print(f"transformers {transformers.__version__}, sentence-transformers {sentence.__version__}")'
	$(LATEST)/bin/python -m pytest -q tests/test_packaging.py -k transformers
	OMP_NUM_THREADS=1 $(LATEST)/bin/python -m pytest -q tests/export tests/model/test_unpadded.py

# Weights & Biases and MLflow, through Composer's loggers.
test-loggers: .venv/.installed-dev
	rm -rf $(LOGGERS)
	$(PYTHON) -m venv $(LOGGERS)
	$(call OVER,$(LOGGERS))
	$(LOGGERS)/bin/python $(PIP) --no-deps -r requirements-loggers.txt
	OMP_NUM_THREADS=1 $(LOGGERS)/bin/python -m pytest tests/loggers

# The locks, for every supported Python at once; a later one takes what an earlier one holds. overrides.txt says which declared pins
# are overridden and why.
COMPILE = $(BIN)/uv pip compile --quiet --override overrides.txt --universal --python-version 3.10 --fork-strategy fewest \
	--custom-compile-command "make lock"
lock: setup
	$(BIN)/python $(PIP) uv
	$(COMPILE) requirements.in -o requirements.txt
	$(COMPILE) requirements-dev.in -c requirements.txt -o requirements-dev.txt
	$(COMPILE) requirements-export.in -c requirements.txt -c requirements-dev.txt -o requirements-export.txt
	$(COMPILE) requirements-loggers.in -c requirements.txt -c requirements-dev.txt -c requirements-export.txt \
		-o requirements-loggers.txt

clean:
	rm -rf .venv $(LATEST) $(LOGGERS) demo runs
