# `make demo` runs the pipeline on the embedded model and teaches it a subject, `make test` runs the tests. Both set up .venv by themselves.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint fix docs pictures clean

demo: .venv/ready
	$(BIN)/nullbooth run -c configs/nullbooth.yaml
	$(BIN)/nullbooth inspect -c configs/nullbooth.yaml
	$(BIN)/nullbooth teach -o runs/taught

# On all cores. A worker that is done takes tests from the one with the most left.
test: .venv/ready
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check

fix: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/ready
	$(BIN)/python docs/generate.py

pictures: .venv/ready
	$(BIN)/python docs/pictures.py

# The pins are the versions that the tests ran with; torch==2.13.0 among them is a CPU build where one is offered.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv runs
