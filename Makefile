# Each target works alone on a fresh clone with Python >= 3.11 and make: it creates .venv and installs what it needs.

PYTHON ?= python3
# Test processes. Models of tests are tiny: a second thread of one process would only wait.
WORKERS ?= 2
# Problems per family that the routers learn from, and on which their thresholds are found at most: few responses that run in
# circles hold much of an LLM share, so it takes many.
ROUTER_NUM ?= 3000
CALIBRATION_NUM ?= 250
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
STAMPS := .venv/stamps

.PHONY: demo test test-slow check reference docs bench pair router reproduce reproduce-quick clean

demo: $(STAMPS)/run
	$(BIN)/navtoken demo $(ARGS)

test: $(STAMPS)/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

test-slow: $(STAMPS)/dev
	$(BIN)/python -m pytest -m slow --timeout 1800 $(ARGS)

check: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/command_pages.py --check

# docs/commands/ from the options' dataclasses.
reference: $(STAMPS)/run
	$(BIN)/python docs/command_pages.py

# The documentation site, into build/site. Material's notice about its successor is not about this build.
docs: $(STAMPS)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

# Speed, memory and scaling, each against a peer or a limit, into benchmarks/results/; the machine should do nothing else.
bench: $(STAMPS)/run
	$(BIN)/python benchmarks/bench.py $(ARGS)

# Data, tokenizer and weights of the embedded pair, from a seed; resumes where an interrupted run stopped.
pair: $(STAMPS)/run
	$(BIN)/python -m navtoken.embedded $(ARGS)

# Labels, and from them the embedded pair's routers with their thresholds; resumes where an interrupted run stopped.
router: $(STAMPS)/run
	$(BIN)/python experiments/routers.py --num $(ROUTER_NUM) --calibration-num $(CALIBRATION_NUM) $(ARGS)

# Every committed experiment again, into build/reproduce/, and which figures agree: hours. Resumes where it stopped.
reproduce: $(STAMPS)/rl
	$(BIN)/python experiments/reproduce.py $(ARGS)

# Less of it, of fewer problems and steps, into build/reproduce-quick/: minutes.
reproduce-quick: $(STAMPS)/rl
	$(BIN)/python experiments/reproduce.py --size quick $(ARGS)

# torch comes first and alone, so that an installer offered a CPU build takes it rather than one that drags CUDA in.
$(STAMPS)/torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "navtoken needs Python >= 3.11; run: make PYTHON=python3.11")'
	@echo "installing torch into .venv (once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/run: $(STAMPS)/torch pyproject.toml
	@echo "installing navtoken into .venv (once)"
	$(PIP) --editable .
	@touch $@

$(STAMPS)/rl: $(STAMPS)/torch pyproject.toml
	@echo "installing navtoken with what training needs into .venv (once)"
	$(PIP) --editable '.[rl]'
	@touch $@ $(STAMPS)/run

$(STAMPS)/dev: $(STAMPS)/torch pyproject.toml
	@echo "installing navtoken with its development tools into .venv (once)"
	$(PIP) --editable '.[dev]'
	@touch $@ $(STAMPS)/run $(STAMPS)/rl $(STAMPS)/docs

# The site is made of files; it needs nothing of what navtoken itself needs.
$(STAMPS)/docs: constraints.txt pyproject.toml
	@echo "installing the site's tools into .venv (once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) mkdocs-material
	@mkdir -p $(STAMPS) && touch $@

clean:
	rm -rf .venv dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
