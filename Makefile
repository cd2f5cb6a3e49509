# scone_pl. `make help` lists the targets; each one does its own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SCONE := $(BIN)/python -m scone_pl

# make table5 SEEDS=2 QUICK=1 JOBS=2: how many seeds, a first look instead of a result, runs side by side
SEEDS ?= 5
QUICK ?= 0
JOBS ?= 2
TABLES := rates rates_long table4 table5 table5_long parts table6 table6_training figure11 layers robustness robustness_trained no_experts
EVIDENCE = OMP_NUM_THREADS=1 $(SCONE) mini evidence --seeds $(SEEDS) --jobs $(JOBS) $(if $(filter 1,$(QUICK)),--quick true) --table

.DEFAULT_GOAL := help
.PHONY: help install demo test-slow table2 table3 test lint format parity photos bench tensorboard clean
.PHONY: gpu-check gpu-packages gpu-page mini-data mini-base evidence tokens no-experts $(TABLES)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9_-]+:.*## / {printf "  %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## .venv with pinned dependencies, the package editable
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is older than 3.10; run make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

test: install ## lint, then the test suite; test-slow has the rest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: install ## the tests that `make test` leaves out
	$(BIN)/python -m pytest -n 2 -m slow

lint: install ## ruff, check only
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: install ## ruff, fixing
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

demo: install ## mini-world: shards, Stage I from the shipped base, Stage II, scores before and after, pictures (under 5 minutes on 2 cores)
	$(SCONE) mini shards --output data_shards/mini --plain 0 --question_pairs 0
	$(SCONE) fit --config experiments/mini/stage1.yaml
	$(SCONE) mini evaluate --checkpoint runs/mini/stage1/refined/weights --output runs/mini/before
	$(SCONE) fit --config experiments/mini/stage2.yaml
	$(SCONE) mini evaluate --checkpoint runs/mini/stage2/guidance/weights --output runs/mini/after
	$(SCONE) mini report --scores '[runs/mini/before/scores.json, runs/mini/after/scores.json]' \
	  --names '[before Stage II, after Stage II]'
	@echo
	@echo "pictures:    runs/mini/after/pictures.png (before: runs/mini/before/pictures.png)"
	@echo "TensorBoard: make tensorboard (logs in runs/mini/*/*/tensorboard)"

mini-data: install ## the mini-world's shards and random weights
	$(SCONE) mini shards --output data_shards/mini --multi_wide 10000
	$(SCONE) mini base --output runs/mini/random
	$(SCONE) mini base --preset mini_dense --output runs/mini/random_dense

mini-base: mini-data ## the mini-world's base from random weights, as shipped in experiments/mini/base_weights
	OMP_NUM_THREADS=1 $(SCONE) fit --config experiments/mini/base.yaml

$(TABLES): mini-data
	$(EVIDENCE) $@
rates: ## learning rates of the arms of Table 5, chosen alike on validation episodes (SEEDS=2)
rates_long: ## the same for table5_long
rates rates_long: SEEDS := 2
table4: ## base, Stage I step 1, step 2 (SEEDS=5 QUICK=0 JOBS=2)
table5: ## Stage II: direct, two steps, with the bridge
table5_long: ## the same arms, three times as long
parts: ## what of the soft bridge matters, one change at a time
table6: ## thresholds and masks in sampling
table6_training: ## thresholds in training
figure11: ## similarity of every layer, maps, automatic choice of the layer
layers: ## which layer the bridge should read
robustness: ## likeness, number of candidates and references, naming, unseen shapes
robustness_trained: ## the same after training on harder episodes
no_experts: ## the bridge in a dense decoder, without separate experts
no-experts: no_experts
tokens: mini-data ## what leaving blocked tokens out, or dropping them, saves in time and memory, and its scores
	$(if $(filter 1,$(QUICK)),,$(BIN)/python benchmarks/tokens.py --output docs/evidence/tokens_cost.json)
	$(EVIDENCE) tokens
evidence: $(TABLES) tokens ## all experiments, about 4 hours on 2 cores; finished runs are not run again

parity: install ## compare with the published implementation's numbers
	$(SCONE) parity tests/golden/parity

NAME = $(notdir $(patsubst %/weights,%,$(CHECKPOINT:/=)))
OUTPUT ?= runs

table2: install ## OmniContext: make table2 CHECKPOINT=weights/Scone DATA=../OmniContext-jsonl [ARGS='--limit 2']
	@test -n "$(CHECKPOINT)" -a -n "$(DATA)" || { echo "error: make $@ CHECKPOINT=folder of weights DATA=folder with data.jsonl, or with OmniContext-jsonl in it"; exit 1; }
	$(SCONE) evaluate --benchmark omnicontext --data "$(or $(wildcard $(DATA)/OmniContext-jsonl),$(DATA))" --checkpoint "$(CHECKPOINT)" --output "$(OUTPUT)/omnicontext/$(NAME)" $(ARGS)

table3: install ## SconeEval: make table3 CHECKPOINT=weights/Scone DATA=../SconeEval; both: make table2 table3 ... DATA=..
	@test -n "$(CHECKPOINT)" -a -n "$(DATA)" || { echo "error: make $@ CHECKPOINT=folder of weights DATA=folder with data.jsonl, or with SconeEval in it"; exit 1; }
	$(SCONE) evaluate --benchmark sconeeval --data "$(or $(wildcard $(DATA)/SconeEval),$(DATA))" --checkpoint "$(CHECKPOINT)" --output "$(OUTPUT)/sconeeval/$(NAME)" $(ARGS)

photos: install ## the shipped photographs through every stage at real resolutions, two steps each
	$(SCONE) mini base --preset mini_photo --output runs/photos/base
	$(SCONE) fit --config experiments/photos/stages.yaml

bench: install ## attention, training step, sampling, data (DATA=a set in the published layout), snapshots: time, memory, ratios to their baselines
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/data.py $(if $(DATA),--source $(DATA),--only memory)
	$(BIN)/python benchmarks/snapshots.py

ANY_PYTHON = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

gpu-check: ## what only a GPU can show: 8 minutes on one H100, any Python with torch and lightning (docs/gpu.md; ARGS=--list)
	@PYTHONPATH=.gpu-packages:$$PYTHONPATH $(ANY_PYTHON) -m benchmarks.gpu_check $(ARGS)

GPU_PACKAGES = jsonargparse docstring_parser typeshed_client webdataset braceexpand
gpu-packages: ## .gpu-packages: the pure-Python packages that a machine with PyTorch lacks, to be copied along with the tree
	rm -rf .gpu-packages
	$(ANY_PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --only-binary=:all: \
	  --python-version 3.12 --platform any --target .gpu-packages --constraint constraints.txt $(GPU_PACKAGES)

gpu-page: ## the results in docs/gpu/*.json as tables in docs/gpu.md
	$(ANY_PYTHON) -m benchmarks.gpu_check.page

tensorboard: install ## watch the runs
	$(BIN)/tensorboard --logdir runs

clean: ## remove what runs and builds left, shards included; .venv stays
	rm -rf runs data_shards/mini .pytest_cache .ruff_cache .gpu-packages *.egg-info
