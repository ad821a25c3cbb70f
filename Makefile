# The commands of kdnotes. `make run` and `make test` need nothing but Python 3.11+, make and git.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
JOBS   ?= 2
STAMP  := $(VENV)/.installed

.PHONY: help install run test test-fast lab bench backbone results export hooks clean

help:
	@echo "make run        run every paper notebook (demo profile), two at a time (JOBS=2); the report grows meanwhile"
	@echo "make test       notebooks and package in sync, ruff, pytest, the notebooks' own cells"
	@echo "make test-fast  what runs no notebook, starts no batch and takes no more than some seconds a test"
	@echo "make lab        JupyterLab on nbs/index.ipynb; what is run there leaves the clone clean"
	@echo "make bench      benchmarks, as ratios against a plain reference"
	@echo "make backbone   NACO's pretrained backbone, where its settings or clips are no longer those of the file (4 minutes)"
	@echo "make results    refresh results/ (executed demo notebooks, tables, claims)"
	@echo "make export     notebooks -> package, clean outputs, README from nbs/index.ipynb"
	@echo "make hooks      git hooks that keep notebooks clean (nbdev)"
	@echo "make clean      remove runs, caches and the virtual environment"

install: $(STAMP)

# The bytecode is written here, once and on all cores: where PYTHONDONTWRITEBYTECODE is set, every process would compile
# torch anew (7 s each). Templates among the packages are no Python and may fail.
$(STAMP): settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("kdnotes needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev]'
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib/python3*/site-packages || true
	@touch $(STAMP)

run: install
	$(BIN)/kdnotes run --all --profile demo --jobs $(JOBS) --report

test: install
	$(BIN)/ruff check .
	$(BIN)/python -m pytest tests -n 2 --dist loadgroup --no-loadscope-reorder

test-fast: install
	$(BIN)/ruff check .
	$(BIN)/python -m pytest tests -n 2 --dist loadgroup --no-loadscope-reorder -m "not slow and not long" --ignore-glob 'tests/test_batch*' \
		--ignore tests/test_notebooks.py --ignore tests/test_cli.py

lab: install
	$(BIN)/jupyter lab --config jupyter_config.py

bench: install
	$(BIN)/kdnotes bench

backbone: install
	$(BIN)/python -c 'from kdnotes.papers.naco import publish_backbone; print(publish_backbone("kdnotes/models/kept/naco.safetensors", "runs/backbone")["built"])'

results: backbone
	$(BIN)/kdnotes run --all --profile demo --jobs $(JOBS) --force
	$(BIN)/kdnotes results

export: install
	$(BIN)/jupyter nbconvert --log-level WARN --clear-output --inplace nbs/*.ipynb nbs/*/*.ipynb nbs/*/*/*.ipynb
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python -c 'from kdnotes.report.publish import write_readme; write_readme()'

hooks: install
	$(BIN)/nbdev_install_hooks

clean:
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache .benchmarks
