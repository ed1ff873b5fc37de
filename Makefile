# `make app` and `make test` are all a newcomer needs; both make .venv first. The rest is for developers.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: app test check format bench first-light train-smoke clean

app: .venv/.runtime
	$(BIN)/python app.py

test: .venv/.dev
	$(BIN)/python -m pytest

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -m "not slow"

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A few minutes of training on small scenes, to see that every step of the way works.
train-smoke: .venv/.dev
	$(BIN)/python -m pytest tests/training -m slow

bench: .venv/.dev
	$(BIN)/python -m benchmarks.scan
	$(BIN)/python -m benchmarks.serving

# Rebuilds the sound bank, the pocket encoders, the scenes and the shipped model (about two hours on two cores). REAL names the folder
# with esc10, sonic_pi_samples and speech; see docs/pocket.md.
first-light: .venv/.train
	$(BIN)/python -m benchmarks.first_light

.venv/.made:
	$(PYTHON) -m venv .venv
	touch $@

.venv/.runtime: .venv/.made requirements.txt constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -r requirements.txt
	touch $@

.venv/.dev: .venv/.runtime pyproject.toml
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

.venv/.train: .venv/.dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[train-pocket]"
	touch $@

clean:
	rm -rf .venv build
