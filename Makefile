# `make demo` and `make test` set up everything they need. Python 3.10, 3.11 or 3.12 on Linux x86-64.

PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; raise SystemExit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
LATEST := .venv-latest

.PHONY: setup demo test test-kernels-latest test-transformers-latest lock clean

setup: .venv/.installed

.venv/.installed: requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10, 3.11 or 3.12 found; install one, or say make PYTHON=..."; exit 2; }
	$(PYTHON) -m venv .venv
	@echo "installing $$(grep -c '^[a-z].*==' requirements.txt) pinned packages into .venv: a few minutes, 9 GB"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup
	$(BIN)/python -m benchmarks.demo

# One thread a test process, two processes: tiny models gain nothing from more. Triton's interpreter is chosen when triton is
# first imported, so the kernels' tests have a process of their own.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --ignore=tests/kernels
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/kernels

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

# The newest transformers beside everything else of the lock: it must not take this project's `kernels` for Hugging Face's.
test-transformers-latest: setup
	rm -rf $(LATEST)
	$(PYTHON) -m venv $(LATEST)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >$$(echo $(LATEST)/lib/python3*/site-packages)/locked.pth
	$(LATEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade transformers
	$(LATEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@$(LATEST)/bin/python -c 'import transformers; print(f"transformers {transformers.__version__}")'
	$(LATEST)/bin/python -m pytest -q tests/test_packaging.py -k transformers

# The lock, for every supported Python at once; overrides.txt says which declared pin is overridden and why.
lock: setup
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile requirements.in --override overrides.txt --universal --python-version 3.10 \
		--fork-strategy fewest --custom-compile-command "make lock" -o requirements.txt

clean:
	rm -rf .venv $(LATEST) demo runs
