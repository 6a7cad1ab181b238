# `make demo`, `make test` and `make docs` each set up .venv themselves: no other step is needed before them.
# A stamp file says what .venv holds, so that nothing is installed again until pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
LIBRARIES := .venv-libraries
RUN := $(VENV)/bin/python -m
INSTALL := $(RUN) pip install -qq --disable-pip-version-check --editable

.PHONY: help demo test test-libraries docs clean

help:
	@echo "make demo    set up .venv and run the quickstart (about two minutes after the set-up)"
	@echo "make test    set up .venv, then check style and types and run the tests"
	@echo "make test-libraries  set up .venv-libraries, then run the tests over networks of other libraries (Python 3.11)"
	@echo "make docs    set up .venv and build the documentation in site/"
	@echo "make clean   remove .venv, caches and the output of the examples"

demo: $(VENV)/.has-examples
	$(VENV)/bin/python examples/quickstart.py

test: $(VENV)/.has-dev
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy
	$(RUN) pytest --numprocesses auto --dist loadgroup $(PYTEST_ARGS)

# The libraries have an environment of their own: some hold others' versions back.
test-libraries: $(LIBRARIES)/.has-libraries
	HF_HUB_OFFLINE=1 $(LIBRARIES)/bin/python -m pytest tests/libraries -m libraries $(PYTEST_ARGS)

docs: $(VENV)/.has-dev
	$(RUN) mkdocs build --strict

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.has-examples: pyproject.toml | $(VENV)/.created
	@echo "Installing into $(VENV): a few minutes the first time, for PyTorch is large"
	@$(INSTALL) '.[examples]'
	@touch $@

# The tools of development include the examples', hence the second stamp.
$(VENV)/.has-dev: pyproject.toml | $(VENV)/.created
	@echo "Installing into $(VENV): a few minutes the first time, for PyTorch is large"
	@$(INSTALL) '.[dev]'
	@touch $@ $(VENV)/.has-examples

$(LIBRARIES)/.has-libraries: pyproject.toml
	$(PYTHON) -m venv $(LIBRARIES)
	@echo "Installing into $(LIBRARIES): about eight gigabytes"
	@$(LIBRARIES)/bin/python -m pip install -qq --disable-pip-version-check --editable '.[libraries]'
	@$(LIBRARIES)/bin/python -m pip install -qq --disable-pip-version-check --no-deps litgpt==0.5.13
	@touch $@

clean:
	rm -rf $(VENV) $(LIBRARIES) site .mypy_cache .pytest_cache .ruff_cache examples/output
