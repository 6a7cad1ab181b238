# `make demo`, `make test` and `make docs` each set up .venv themselves: no other step is needed before them.
# A stamp file says what .venv holds, so that nothing is installed again until what asks for it changes.
#
# What is installed does not depend on what was released yesterday: requirements-dev.txt has one version of each tool of
# development, and an upper bound for everything else. To update it on purpose:
#
#     make test-newest    # does the project work with what the package index serves today?
#     make pin            # then these are the versions from now on

PYTHON ?= python3
# requirements-oldest.txt has files for Python 3.10 to 3.12.
OLDEST_PYTHON ?= $(shell python3.10 -c 'import sys; print(sys.executable)' 2>/dev/null || echo $(PYTHON))
VENV := .venv
OLDEST := .venv-oldest
NEWEST := .venv-newest
LIBRARIES := .venv-libraries
RUN := $(VENV)/bin/python -m
# One worker has all tests of a file, which may share something that takes long to make.
PARALLEL := --numprocesses auto --dist loadfile --no-loadscope-reorder
INSTALL := -m pip install -qq --disable-pip-version-check
PINNED := --constraint requirements-dev.txt
# Installed beforehand, for pip would take the newest one into an environment of its own for the build.
BUILD := hatchling editables
PROJECT := --no-build-isolation --editable

.PHONY: help demo test test-oldest test-newest test-libraries pin docs docs-version package release clean

help:
	@echo "make demo         set up .venv and run the quickstart (about two minutes after the set-up)"
	@echo "make test         set up .venv, then check style and types and run the tests"
	@echo "make test-oldest  check types and run the tests with the lowest versions that are promised, in $(OLDEST)"
	@echo "make test-newest  the same with the newest that the package index serves, in $(NEWEST)"
	@echo "make test-libraries  set up .venv-libraries, then run the tests over networks of other libraries (Python 3.11)"
	@echo "make pin          have the other commands install what make test-newest last installed: requirements-dev.txt"
	@echo "make docs         set up .venv and build the documentation in site/"
	@echo "make docs-version  put the documentation beside that of other versions, on the branch gh-pages"
	@echo "make package      set up .venv, then build the package in dist/ and check it"
	@echo "make release      make the release that CHANGELOG.md announces: see CONTRIBUTING.md"
	@echo "make clean        remove the environments, caches and the output of the examples"

demo: $(VENV)/.has-examples
	$(VENV)/bin/python examples/quickstart.py

test: $(VENV)/.has-dev
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy
	$(RUN) pytest $(PARALLEL) $(PYTEST_ARGS)

test-oldest: $(OLDEST)/.has-dev
	$(OLDEST)/bin/python -m mypy --cache-dir $(OLDEST)/.mypy_cache
	$(OLDEST)/bin/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

# Asks the package index each time.
test-newest: $(NEWEST)/.created
	@echo "Installing into $(NEWEST): a few minutes the first time, for PyTorch is large"
	@$(NEWEST)/bin/python $(INSTALL) --upgrade --upgrade-strategy eager $(BUILD)
	@$(NEWEST)/bin/python $(INSTALL) --upgrade --upgrade-strategy eager $(PROJECT) '.[dev,release]'
	$(NEWEST)/bin/python -m mypy --cache-dir $(NEWEST)/.mypy_cache
	$(NEWEST)/bin/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

pin:
	@test -e $(NEWEST)/.created || { echo "Run make test-newest first."; exit 1; }
	$(NEWEST)/bin/python .ci/pin.py > $(NEWEST)/requirements-dev.txt
	mv $(NEWEST)/requirements-dev.txt requirements-dev.txt

# The libraries have an environment of their own: some hold others' versions back.
test-libraries: $(LIBRARIES)/.has-libraries
	HF_HUB_OFFLINE=1 $(LIBRARIES)/bin/python -m pytest tests/libraries -m libraries $(PYTEST_ARGS)

docs: $(VENV)/.has-dev
	$(RUN) mkdocs build --strict

# Which version's pages these are, with its aliases: `make docs-version DOCS_VERSION="0.1.0 latest"`.
DOCS_VERSION ?= dev

# mike calls mkdocs by its name.
docs-version: export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
docs-version: $(VENV)/.has-dev
	mike deploy --update-aliases $(DOCS_VERSION)
	mike list latest > /dev/null 2>&1 && mike set-default latest || mike set-default dev

package: $(VENV)/.has-dev
	rm -rf dist
	$(RUN) build --no-isolation
	$(RUN) twine check --strict dist/*

release: $(VENV)/.has-dev
	$(VENV)/bin/python .ci/release.py

$(VENV)/.created $(NEWEST)/.created:
	$(PYTHON) -m venv $(@D)
	@touch $@

$(OLDEST)/.created:
	$(OLDEST_PYTHON) -m venv $(@D)
	@touch $@

$(VENV)/.has-examples: pyproject.toml requirements-dev.txt | $(VENV)/.created
	@echo "Installing into $(VENV): a few minutes the first time, for PyTorch is large"
	@$(VENV)/bin/python $(INSTALL) $(PINNED) $(BUILD)
	@$(VENV)/bin/python $(INSTALL) $(PINNED) $(PROJECT) '.[examples]'
	@touch $@

# The tools of development include the examples', hence the second stamp.
$(VENV)/.has-dev: pyproject.toml requirements-dev.txt | $(VENV)/.created
	@echo "Installing into $(VENV): a few minutes the first time, for PyTorch is large"
	@$(VENV)/bin/python $(INSTALL) $(PINNED) $(BUILD)
	@$(VENV)/bin/python $(INSTALL) $(PINNED) $(PROJECT) '.[dev,release]'
	@touch $@ $(VENV)/.has-examples

$(OLDEST)/.has-dev: pyproject.toml requirements-dev.txt requirements-oldest.txt | $(OLDEST)/.created
	@echo "Installing into $(OLDEST): a few minutes the first time, for PyTorch is large"
	@$(OLDEST)/bin/python $(INSTALL) $(PINNED) $(BUILD)
	@$(OLDEST)/bin/python $(INSTALL) $(PINNED) --constraint requirements-oldest.txt $(PROJECT) '.[dev]'
	@touch $@

$(LIBRARIES)/.has-libraries: pyproject.toml
	$(PYTHON) -m venv $(LIBRARIES)
	@echo "Installing into $(LIBRARIES): about eight gigabytes"
	@$(LIBRARIES)/bin/python -m pip install -qq --disable-pip-version-check --editable '.[libraries]'
	@$(LIBRARIES)/bin/python -m pip install -qq --disable-pip-version-check --no-deps litgpt==0.5.13
	@touch $@

clean:
	rm -rf $(VENV) $(OLDEST) $(NEWEST) $(LIBRARIES) dist site .mypy_cache .pytest_cache .ruff_cache examples/output
