PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
SPEC := specs/tickets.yaml

.PHONY: demo test check fix simulate torture races messy bench lock clean

# Everything below stands on the environment; it is made once and again when the lock changes.
.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch .venv/ready

# The main job on the local emulator, on real documents: plan, apply, apply again, records.
demo: .venv/ready
	rm -rf specs/.gbrun/tickets specs/out/tickets.jsonl specs/out/tickets.errors.jsonl
	$(BIN)/gbrun plan $(SPEC)
	$(BIN)/gbrun apply $(SPEC) --auto-approve
	$(BIN)/gbrun apply $(SPEC) --auto-approve
	head -n 3 specs/out/tickets.jsonl
	@echo "specs/out/tickets.jsonl holds the records; they are the emulator's answers, not a model's."

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A whole life per seed: crashes, faults, two runs at once. A failing seed prints how to replay it.
SEEDS ?= 10000
simulate: .venv/ready
	$(BIN)/python -m tests.simulation.run --seeds $(SEEDS)

# Real processes, really killed.
ROUNDS ?= 200
torture: .venv/ready
	ROUNDS=$(ROUNDS) $(BIN)/python -m pytest -q -m slow tests/test_torture.py

# A collection of messy answers, held against what their authors expect of them (tests/messy.py).
messy: .venv/ready
	$(BIN)/python -m tests.messy $(MESSY)

# Two runners on one state in Cloud Storage.
races: .venv/ready
	ROUNDS=$(or $(ROUNDS),100) $(BIN)/python -m pytest -q -m slow tests/test_races.py

bench: .venv/ready
	$(BIN)/python bench/plan.py
	$(BIN)/python bench/collect.py

# Writes requirements.lock anew from the ranges in pyproject.toml.
lock: .venv/ready
	$(BIN)/python -m pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --extra dev --generate-hashes --strip-extras --no-emit-index-url \
		--no-emit-trusted-host --no-emit-find-links --allow-unsafe --output-file requirements.lock pyproject.toml

clean:
	rm -rf .venv build dist
