# make demo   set up, run the main job on what ships with the project, say where the results are
# make test   set up, run the whole test suite in random order (its seed is printed; --randomly-seed=N repeats it)
# make app    set up, open the app
# make lint   set up, check style, format, import contracts and types
# Every target may be repeated; nothing is installed twice.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test app bench lint clean

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
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

app: setup
	$(BIN)/workbench app

bench: setup
	$(BIN)/python -m tests.benchmarks

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

clean:
	rm -rf $(VENV) cached/runs cached/store
