# Two commands do everything on a fresh machine with Python 3.11: `make app` and `make test`.
# `make app ARGS="--port 7861"` passes arguments on; `make test ARGS=tests/test_flow.py` runs one file.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
JOBS   ?= 2
ARGS   ?=
RUN    := $(VENV)/bin/python
PIP    := $(RUN) -m pip install --disable-pip-version-check --quiet -c constraints.txt

.PHONY: app lab test lint screenshots clean
.DELETE_ON_ERROR:

app: $(VENV)/.app-installed
	$(RUN) app.py $(ARGS)

# The notebooks in JupyterLab; what they do is recorded beside the app's runs.
lab: $(VENV)/.lab-installed
	WORKBENCH_RUNS="$(CURDIR)/runs" PYTHONPATH="$(CURDIR)" $(RUN) -m jupyterlab --ServerApp.root_dir=notebooks $(ARGS)

# One thread in each of the parallel test processes: more would only compete for the same cores.
test: $(VENV)/.tests-installed
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

lint: $(VENV)/.tests-installed
	$(RUN) -m ruff check .
	$(RUN) -m mypy

# Every page in four variants, for looking at.
screenshots: $(VENV)/.tests-installed
	PYTHONPATH=. $(RUN) docs/screenshots.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The stamps are older than their prerequisites only when those change, so an installed machine starts at once.
# torch goes first: whichever build of it pip prefers here then satisfies every package that asks for torch.
$(VENV)/.app-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV): a few minutes the first time"
	$(PIP) torch
	$(PIP) -e .
	touch $@

$(VENV)/.lab-installed: $(VENV)/.app-installed
	$(PIP) -e ".[lab]"
	touch $@

$(VENV)/.tests-installed: $(VENV)/.app-installed
	$(PIP) -e ".[tests]"
	touch $@
