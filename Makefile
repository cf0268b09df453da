# Each target makes the virtual environment that it needs.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=

.PHONY: check test clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "CPython 3.11 or later is needed; name one with PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable '.[check]'
	touch $@

check: $(VENV)/.installed
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

test: $(VENV)/.installed
	sh tests/install_servers.sh
	$(VENV)/bin/pytest -n auto $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) .hypothesis .mypy_cache .pytest_cache .ruff_cache
