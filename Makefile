# make ablation   the main job: trains experiments/attention_type.py and writes its report
# make test       the tests
# make check      format, lint, types, tests
# make parity     docs/parity.md, how far every mechanism is from its reference
# make docs       the documentation, as build/docs/index.html
# Each sets up .venv from the hashed requirements first; a bare Python 3.11 with pip is enough.

PYTHON ?= python3
BIN := .venv/bin
LOCK := uv pip compile -q --universal --python-version 3.11 --generate-hashes
WORKDIR ?= runs/attention_type
# Some environments forbid __pycache__; then each of the processes that tests start would compile all
# of the source anew.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile \
  --no-loadscope-reorder

.PHONY: ablation test test-slow parity check format docs lock clean

ablation: .venv/run.stamp
	$(BIN)/python -m research.sweep --experiment=experiments/attention_type.py --workdir=$(WORKDIR)
	$(BIN)/python -m research.report --workdir=$(WORKDIR)

test: .venv/dev.stamp
	$(PYTEST)

test-slow: .venv/parity.stamp
	XLA_FLAGS= $(BIN)/python -m pytest -m slow -n 2

parity: .venv/parity.stamp
	$(BIN)/python -m tests.parity

check: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/ty check
	$(PYTEST)

format: .venv/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# A warning is an error: a link that leads nowhere, a page in no table of contents.
docs: .venv/docs.stamp
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/docs
	@echo build/docs/index.html

.venv/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is older. Try: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv .venv
	touch $@

.venv/run.stamp: requirements.txt .venv/python.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

.venv/dev.stamp: requirements-dev.txt .venv/python.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

.venv/docs.stamp: requirements-docs.txt .venv/run.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

.venv/parity.stamp: requirements-parity.txt .venv/dev.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

# Recompiles the locks after a change of pyproject.toml; needs uv.
lock:
	$(LOCK) pyproject.toml -o requirements.txt
	for extra in dev gpu gpu-cuda12 tpu; do \
	  $(LOCK) --extra $$extra -c requirements.txt pyproject.toml -o requirements-$$extra.txt; \
	done
	for extra in docs data; do \
	  $(LOCK) --extra $$extra -c requirements-dev.txt pyproject.toml -o requirements-$$extra.txt; \
	done

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
