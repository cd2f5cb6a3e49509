# scone_pl. `make help` lists the targets; each one does its own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SCONE := $(BIN)/python -m scone_pl

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format parity photos bench tensorboard clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## .venv with pinned dependencies, the package editable
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is older than 3.10; run make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

test: install ## lint, then the whole test suite (about 4 minutes on 2 cores)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2

lint: install ## ruff, check only
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: install ## ruff, fixing
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

demo: install ## mini-world: shards, Stage I, Stage II, scores before and after, pictures (under 10 minutes on 2 cores)
	$(SCONE) mini shards --output data_shards/mini
	$(SCONE) mini base --output runs/mini/base
	$(SCONE) fit --config experiments/mini/stage1.yaml
	$(SCONE) mini evaluate --checkpoint runs/mini/stage1/refined/weights --output runs/mini/before
	$(SCONE) fit --config experiments/mini/stage2.yaml
	$(SCONE) mini evaluate --checkpoint runs/mini/stage2/guidance/weights --output runs/mini/after
	$(SCONE) mini report --scores '[runs/mini/before/scores.json, runs/mini/after/scores.json]' \
	  --names '[before Stage II, after Stage II]'
	@echo
	@echo "pictures:    runs/mini/after/pictures.png (before: runs/mini/before/pictures.png)"
	@echo "TensorBoard: make tensorboard (logs in runs/mini/*/*/tensorboard)"

parity: install ## compare with the published implementation's numbers
	$(SCONE) parity tests/golden/parity

photos: install ## real photographs through every stage at real resolutions, two steps each (needs ../shared)
	$(SCONE) mini base --preset mini_photo --output runs/photos/base
	for subset in scone_single_candidate_refined scone_multi_candidate; do \
	  [ -e data_shards/photos/$$subset/manifest.json ] || $(SCONE) shards convert ../shared/data/scone_s2i_sample data_shards/photos/$$subset --subset $$subset || exit 1; done
	$(SCONE) fit --config experiments/photos/stages.yaml

bench: install ## attention, training step and sampling: time, memory, ratios to their baselines
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/data.py

tensorboard: install ## watch the runs
	$(BIN)/tensorboard --logdir runs

clean: ## remove what runs and builds left, shards included; .venv stays
	rm -rf runs data_shards/mini data_shards/photos .pytest_cache .ruff_cache *.egg-info
