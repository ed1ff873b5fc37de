# `make app` and `make test` are all a newcomer needs; both make .venv first. The rest is for developers.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: app test lint check budget format bench bench-beside first-light ladder-scenes open train-smoke clean

app: .venv/.runtime
	$(BIN)/python app.py

# Files of tests run side by side, each worker on one thread: on two cores half the time.
WORKERS ?= 2

test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint budget
	$(BIN)/python -m pytest -m "not slow"

# No file has a limit, but each room has a budget of lines.
budget: .venv/.dev
	$(BIN)/python -m tools.budget

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A few minutes of training on small scenes, to see that every step of the way works.
train-smoke: .venv/.dev
	$(BIN)/python -m pytest tests/training -m slow

# The tables of docs/performance.md, from the smallest part to the whole app; the slow ones last. Wants a machine with nothing else to do.
bench: .venv/.dev
	$(BIN)/python -m benchmarks.scan
	$(BIN)/python -m benchmarks.evaluation
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.hour
	$(BIN)/python -m benchmarks.start
	$(BIN)/python -m benchmarks.slider
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.encoders --repeats 5
	@echo "All numbers lie in build/benchmarks:"; ls build/benchmarks/*.json

# This checkout beside another one, in turn: make bench-beside BEFORE=../before (made by `git worktree add ../before f584b19`).
bench-beside: .venv/.dev
	$(BIN)/python -m benchmarks.beside $(BEFORE)

# Rebuilds the sound bank, the pocket encoders, the scenes and the shipped model (about two hours on two cores), then measures.
# docs/pocket.md explains the steps. REAL: folder with esc10, sounds, sonic_pi_samples and speech. CAPTIONS: manifests whose sentences teach
# the text encoder; HELD_OUT: one that measures it; TEACHER: folder of the AudioSet tagger that teaches the audio encoder.
REAL ?= ../shared/data
CAPTIONS ?= $(addprefix $(REAL)/,castella/train.jsonl castella/val.jsonl clotho_moment/val.jsonl clotho_moment/test.jsonl)
HELD_OUT ?= $(REAL)/castella/test.jsonl
TEACHER ?= ../shared/teacher
WORDINGS = $(addprefix recipes/pocket/sound_bank/,groups.yaml audioset.yaml)
# Half a minute to five, levels down to -5 dB, sounds that overlap and die away by themselves, truth where they can be heard; a third of
# the queries about absent sounds.
WILD = --min-scene-seconds 30 --max-scene-seconds 300 --min-snr-db -5 --overlap-share 0.35 --tail-seconds 1 --audible-db -10 --absent-share 0.34
SYNTHESIZE = $(BIN)/python -m qamdetr synthesize --clips build/sounds/scenes-$(1) --output build/scenes/$(1) --name $(1)
EXTRACT = $(BIN)/python -m qamdetr extract --clip-seconds 0.5 --manifest build/scenes/$(1)/manifest.jsonl --feature-dir build/features

first-light: .venv/.train
	$(BIN)/python -m recipes.pocket.sound_bank.build --real $(REAL) --output build/sounds
	$(BIN)/python -m recipes.pocket.text --captions $(CAPTIONS) --wordings $(WORDINGS) --held-out $(HELD_OUT) --output build/pocket-text --epochs 10
	$(BIN)/python -m recipes.pocket.mixtures --bank build/sounds --teacher $(TEACHER) --output build/pool
	$(BIN)/python -m recipes.pocket.audio --pool build/pool --bank build/sounds --text build/pocket-text --teacher $(TEACHER) \
		--output checkpoints/pocket-encoder
	$(BIN)/python -m recipes.pocket.known
	$(call SYNTHESIZE,train) $(WILD) --backgrounds build/sounds/backgrounds-train --num-scenes 1280 --seed 1 --captions-per-target 2
	$(call SYNTHESIZE,val) $(WILD) --backgrounds build/sounds/backgrounds-heldout --num-scenes 120 --seed 2
	$(call SYNTHESIZE,fifty) $(WILD) --backgrounds build/sounds/backgrounds-heldout --num-scenes 150 --seed 4
	$(call SYNTHESIZE,test) --backgrounds build/sounds/backgrounds-heldout --num-scenes 120 --seed 3
	$(call EXTRACT,train)
	$(call EXTRACT,val)
	$(BIN)/python train.py --config pocket --threads 2 --name qam-detr-pocket
	$(BIN)/python -m recipes.publish runs/qam-detr-pocket --output checkpoints/qam-detr-pocket
	$(BIN)/python -m recipes.pocket.sound_bank.examples --bank build/sounds --output assets
	$(BIN)/python -m benchmarks.hearing --real $(REAL)

# An open-vocabulary model on the pocket space and one of the teacher's, after first-light; hours, and not run as a whole yet: the shipped
# one saw 320 of the scenes, see its card and docs/open-vocabulary.md.
open: export QAMDETR_TEACHER = $(TEACHER)
open: .venv/.train
	$(BIN)/python -m recipes.open.spaces --pool build/pool --output build/spaces
	for space in pocket teacher_minilm; do for set in train val; do $(BIN)/python -m recipes.open.run extract --combo open:$$space \
		--clip-seconds 0.5 --manifest build/scenes/$$set/manifest.jsonl --feature-dir build/features || exit; done; done
	$(BIN)/python -m recipes.open.run train --config open --threads 2 --name qam-detr-open --set "data.more_spaces=[open:teacher_minilm]"
	$(BIN)/python -m recipes.open.run publish runs/qam-detr-open --output checkpoints/qam-detr-open

# Scenes of the ablation ladder and their features; docs/ladder.md says what is run on them. Needs the sound bank (first lines above).
LADDER = $(BIN)/python -m qamdetr synthesize --clips build/sounds/scenes-$(1) --output build/ladder/$(1) --name $(1) \
	--min-scene-seconds 60 --max-scene-seconds 120 --min-groups 3 --max-groups 6 --num-workers 2

ladder-scenes: .venv/.runtime
	$(call LADDER,train) --backgrounds build/sounds/backgrounds-train --num-scenes 1200 --seed 11
	$(call LADDER,val) --backgrounds build/sounds/backgrounds-heldout --num-scenes 200 --seed 12
	$(call LADDER,test) --backgrounds build/sounds/backgrounds-heldout --num-scenes 240 --seed 13
	for set in train val test; do \
		$(BIN)/python -m qamdetr extract --manifest build/ladder/$$set/manifest.jsonl --feature-dir build/ladder/features || exit; \
	done

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	touch $@

.venv/.runtime: .venv/.made requirements.txt constraints.txt pyproject.toml setup.py
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

.venv/.dev: .venv/.runtime pyproject.toml
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

.venv/.train: .venv/.dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[train-pocket]"
	touch $@

clean:
	rm -rf .venv build
