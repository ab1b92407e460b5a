# make demo   set up, run the main job on what ships with the project, say where the results are
# make test   set up, run the whole test suite in random order (its seed is printed; --randomly-seed=N repeats it)
# make fuzz  set up, try thousands of odd command lines and damaged files (a short one is part of `make test`)
# make app    set up, open the app
# make lint   set up, check style, format, import contracts and types
# make lock   resolve what pyproject.toml names anew, in an environment of its own, and write requirements.lock
# make audit  ask whether anything in requirements.lock has a known vulnerability (needs the network)
# Every target may be repeated; nothing is installed twice.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test fuzz app bench lint lock audit clean

setup: $(VENV)/.installed $(VENV)/.chromium

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# Chromium draws PDF, SVG and PNG and drives the browser tests. Where it cannot be installed, HTML and CSV still work.
$(VENV)/.chromium: $(VENV)/.installed
	@if command -v chromium google-chrome chrome >/dev/null 2>&1; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	  (apt-get install -y -qq chromium >/dev/null 2>&1 || (apt-get update -qq && apt-get install -y -qq chromium)) >/dev/null || \
	  echo "Chromium could not be installed: figures are exported as HTML and CSV only."; \
	else echo "Chromium was not found: install it (for example 'sudo apt-get install chromium') to export PDF, SVG and PNG."; fi
	@touch $@

demo: setup
	$(BIN)/workbench demo

test: setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

fuzz: setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.fuzz

app: setup
	$(BIN)/workbench app

bench: setup
	$(BIN)/python -m tests.benchmarks

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

# No hashes: torch's build differs by machine. What CUDA builds of torch bring is pinned by torch itself; a CPU build has none of it.
lock:
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip setuptools
	$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check hatchling editables '.[test]'
	$(VENV)-lock/bin/python -m pip list --format=freeze --disable-pip-version-check > $(VENV)-lock/list
	(grep '^#' requirements.lock; grep -Eiv '^(pip|wheel|interpretability-workbench|triton|nvidia-.*|cuda-.*)==' $(VENV)-lock/list | \
	  sed 's/+.*//') > $(VENV)-lock/lock
	mv $(VENV)-lock/lock requirements.lock
	rm -rf $(VENV)-lock

audit:
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip-audit
	$(VENV)-audit/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip

clean:
	rm -rf $(VENV) $(VENV)-lock $(VENV)-audit cached/runs cached/store
