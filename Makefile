# Each target makes the virtual environment that it needs.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
BENCH_ARGS ?=

.PHONY: bench chaos check clean demo install-service test test-all uninstall-service

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
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs --quiet build --strict --config-file docs/mkdocs.yml

test: $(VENV)/.installed
	sh tests/install_servers.sh
	if ! $(VENV)/bin/python -c 'import MySQLdb' 2>/dev/null && pkg-config --exists libmariadb 2>/dev/null; then \
	  $(VENV)/bin/pip install --quiet --editable '.[test-mysqlclient]'; \
	fi
	$(VENV)/bin/pytest -n auto $(PYTEST_ARGS)

# The crash tests for long: hundreds of kills, a thousand power cuts, and daemons that
# see 2,000 tasks through while they are killed.
chaos: $(VENV)/.installed
	sh tests/install_servers.sh
	SESSIONSTORE_KILLS=400 SESSIONSTORE_SERVER_KILLS=150 SESSIONSTORE_CUTS=1000 \
	SESSIONSTORE_CHAOS_TASKS=2000 SESSIONSTORE_CHAOS_SECONDS=90 \
	  $(VENV)/bin/pytest -n auto -rP $(PYTEST_ARGS) tests/crash tests/chaos

# One run for each CPython from 3.11 on that is found, newest last.
test-all:
	@pythons=$$(sh tests/pythons.sh) && for python in $$pythons; do \
	  echo "== $$python" && \
	  $(MAKE) test PYTHON="$$python" VENV=".venv-$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" || exit 1; \
	done

# See tests/benchmarks; what was measured is written to build/bench.
bench: $(VENV)/.installed-bench
	sh tests/install_servers.sh
	$(VENV)/bin/python -m tests.benchmarks $(BENCH_ARGS)

$(VENV)/.installed-bench: $(VENV)/.installed
	$(VENV)/bin/pip install --quiet --editable '.[bench]'
	touch $@

# By the environment: a command line is shown to everybody, and make prints it.
ifdef URL
demo: export DAEMON_EXAMPLE_STORE = $(URL)
endif
demo: $(VENV)/.installed
	$(VENV)/bin/python -m daemon_example demo

# PREFIX, DESTDIR and PYTHON: see systemd/install.sh.
install-service uninstall-service: export PREFIX := $(PREFIX)
install-service uninstall-service: export DESTDIR := $(DESTDIR)
install-service uninstall-service: export PYTHON := $(PYTHON)
install-service uninstall-service:
	@sh systemd/install.sh $(@:-service=)

clean:
	rm -rf $(VENV) .venv-* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
