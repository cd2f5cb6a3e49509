# scone_pl. `make help` lists the targets; each one does its own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SCONE := $(BIN)/python -m scone_pl

# make table5 SEEDS=2 QUICK=1 JOBS=2: number of seeds, a first look instead of a result, runs in parallel
SEEDS ?=
QUICK ?= 0
JOBS ?= $(if $(SCALE),1,2)
TABLES := rates rates_long table4 table5 table5_long parts table6 table6_training figure11 layers robustness robustness_trained no_experts neo_table5 neo_layers untrained_mask oracle sampling
WORLD2 := icons_base icons_stage1 icons_table5 icons_table5_long icons_table6 icons_masks icons_oracle icons_rotated icons_names icons_no_stage1 icons_robustness icons_plausibility icons_adaptive icons_rebalancing icons_tokens
# SCALE=large: world 2 one size up, whose base is trained first.
ICONS := icons$(if $(filter large,$(SCALE)),_large)
canvas_large := , canvas: 64
ICONS_WORLD := {names: 80$(canvas_$(SCALE))}
# A scale that a study lacks is refused before its data are made.
$(foreach study,$(filter $(TABLES) $(WORLD2),$(MAKECMDGOALS)),$(if $(SCALE),$(if $(shell grep '^  $(SCALE):' experiments/studies/$(study).yaml),,$(error $(study) has no scale $(SCALE)))))
STUDY = $(if $(SCALE),,OMP_NUM_THREADS=1) $(SCONE) study run $(if $(SCALE),--scale $(SCALE)) $(if $(SEEDS),--seeds $(SEEDS)) --jobs $(JOBS) $(if $(filter 1,$(QUICK)),--quick)

.DEFAULT_GOAL := help
.PHONY: help install demo construct-demo test-slow table2 table3 test lint format docs parity photos bench tensorboard clean
.PHONY: gpu-check gpu-packages gpu-page mini-data mini-base evidence tokens no-experts $(TABLES) icons-data icons-random icons-pretrained icons-base evidence-look $(WORLD2)

# "## text" after a target is its line in `make help`, "##@ title" starts a group.
help: ## list the targets
	@awk -F ':.*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9_-]+:.*## / {printf "  %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Start
install: $(VENV)/.installed ## create .venv with pinned dependencies; the package is editable
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is older than 3.10; run make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install ## train both stages in the mini-world and score them: 5 minutes on 2 idle cores
	$(SCONE) demo --output .

construct-demo: install ## construct training data of icons with planted faults, with a fake model server
	$(SCONE) construct demo

tensorboard: install ## TensorBoard of all runs
	$(BIN)/tensorboard --logdir runs

clean: ## remove runs, builds and shards of the mini-world; .venv stays
	rm -rf runs data_shards/mini .pytest_cache .ruff_cache .mypy_cache .gpu-packages site *.egg-info

##@ Develop
test: install ## ruff, then the test suite without its slow tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: install $(VENV)/.app-installed $(VENV)/.ray-installed ## the slow tests; those of `scone_pl app` and `study-page` need Chromium
	$(BIN)/python -m pytest -n 2 -m slow

$(VENV)/.app-installed: $(VENV)/.installed tests/app/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement tests/app/requirements.txt
	@touch $@

$(VENV)/.ray-installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[ray]'
	@touch $@

lint: install ## check style (ruff) and types (mypy), as the pre-commit hooks do
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: install ## fix style (ruff)
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

docs: $(VENV)/.docs-installed ## build the documentation in site/, with API pages; any warning is an error
	$(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"
$(VENV)/.docs-installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

parity: install ## compare with the published implementation's numbers
	$(SCONE) parity tests/golden/parity

bench: install ## time and memory of attention, training step, sampling, data (DATA=published set), snapshots
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/data.py $(if $(DATA),--source $(DATA),--only memory)
	$(BIN)/python benchmarks/snapshots.py

##@ Benchmarks of the paper
NAME = $(notdir $(patsubst %/weights,%,$(CHECKPOINT:/=)))
OUTPUT ?= runs

table2: install ## OmniContext: CHECKPOINT=weights/Scone DATA=../OmniContext-jsonl [ARGS='--limit 2']
	@test -n "$(CHECKPOINT)" -a -n "$(DATA)" || { echo "error: make $@ CHECKPOINT=folder of weights DATA=folder with data.jsonl, or with OmniContext-jsonl in it"; exit 1; }
	$(SCONE) evaluate --benchmark omnicontext --data "$(or $(wildcard $(DATA)/OmniContext-jsonl),$(DATA))" --checkpoint "$(CHECKPOINT)" --output "$(OUTPUT)/omnicontext/$(NAME)" $(ARGS)

table3: install ## SconeEval: CHECKPOINT=weights/Scone DATA=../SconeEval
	@test -n "$(CHECKPOINT)" -a -n "$(DATA)" || { echo "error: make $@ CHECKPOINT=folder of weights DATA=folder with data.jsonl, or with SconeEval in it"; exit 1; }
	$(SCONE) evaluate --benchmark sconeeval --data "$(or $(wildcard $(DATA)/SconeEval),$(DATA))" --checkpoint "$(CHECKPOINT)" --output "$(OUTPUT)/sconeeval/$(NAME)" $(ARGS)

##@ Real resolutions
photos: install ## two steps of every stage on the shipped photographs, at real resolutions
	$(SCONE) mini base --preset mini_photo --output runs/photos/base
	$(SCONE) fit --config experiments/photos/stages.yaml

##@ Studies in the mini-world (options: SEEDS=5 QUICK=0 JOBS=2)
mini-data: install ## shards and random weights of the mini-world
	$(SCONE) mini shards --output data_shards/mini --multi_wide 10000
	$(SCONE) mini base --output runs/mini/random
	$(SCONE) mini base --preset mini_dense --output runs/mini/random_dense
	$(SCONE) mini base --preset mini_neo --output runs/mini/random_neo

mini-base: mini-data ## train the base weights that ship in experiments/mini/base_weights, 6 minutes
	OMP_NUM_THREADS=1 $(SCONE) fit --config experiments/mini/base.yaml

$(TABLES): mini-data
	$(STUDY) experiments/studies/$@.yaml
rates: ## learning rate of each arm of Table 5, on validation episodes (SEEDS=2)
rates_long: ## the same for table5_long
table4: ## base, Stage I step 1, step 2
table5: ## Stage II: direct, in two steps, with the bridge
table5_long: ## the same arms with three times the steps
parts: ## which part of the soft bridge matters, one change at a time
table6: ## threshold and mask in sampling
table6_training: ## threshold in training
figure11: ## similarity by layer, maps, automatic choice of the layer
layers: ## which layer the bridge should read
robustness: ## similar candidates, more candidates and references, naming, unseen shapes
robustness_trained: ## the same after training on harder episodes
no_experts: ## the bridge in a dense decoder, without separate experts
no-experts: no_experts
neo_table5: ## Table 5 on a second base model, SenseNova-U1
neo_layers: ## which layer the bridge should read there
sampling: ## how few passes through the network have the published settings' score
untrained_mask: ## masks in sampling over weights that were trained without
oracle: ## which layers an exact mask needs
icons-data: install ## shards of world 2
	$(SCONE) icons shards --output data_shards/$(ICONS) --world '$(ICONS_WORLD)'

icons-random: install ## random weights of world 2
	$(SCONE) icons base --output runs/$(ICONS)/random --preset $(ICONS)

icons-pretrained: icons-random ## what world 2's base starts from: a ViT pretrained with texts, 8 minutes
	$(SCONE) icons base --output runs/$(ICONS)/contrastive --preset $(ICONS) --contrastive_steps 8000 --world '$(ICONS_WORLD)'

icons-base: icons-data icons-pretrained ## train the base weights that ship in experiments/icons/base_weights, 20 minutes
	OMP_NUM_THREADS=1 $(SCONE) fit --config experiments/icons/base.yaml $(if $(filter large,$(SCALE)),--config experiments/icons/large/base.yaml)

icons_base: icons-pretrained
$(WORLD2): icons-data $(if $(filter large,$(SCALE)),icons-pretrained)
	$(STUDY) experiments/studies/$@.yaml
icons_base: ## world 2: does s separate without boxes?
icons_stage1: ## world 2: Stage I
icons_table5: ## world 2: Stage II
icons_table5_long: ## world 2: the same, three times as long
icons_table6: ## world 2: the threshold, in training
icons_masks: ## world 2: masks over weights that were trained without, by layers
icons_oracle: ## world 2: the exact mask, by layers
icons_rotated: ## world 2: the soft bridge from an s that was destroyed
icons_names: ## world 2: an s per name of the instruction
icons_no_stage1: ## world 2: Stage II straight from the base
icons_robustness: ## world 2: likeness, naming, more candidates, unseen names
icons_plausibility: ## world 2: training data that show contacts
icons_adaptive: ## world 2: layer and threshold of each image by its own s
icons_rebalancing: ## world 2: dynamic attention rebalancing, which trains nothing
icons_tokens: ## world 2: blocked tokens masked or dropped
evidence-look: icons-data icons-random ## world 2's studies but for the base's own training, one seed each, short: 11 minutes
	$(MAKE) $(filter-out icons_base,$(WORLD2)) SEEDS=1 QUICK=1
	$(STUDY) --seeds 1 --quick --arms random,generation experiments/studies/icons_base.yaml
tokens: mini-data ## time, memory and scores with blocked tokens masked or dropped
	$(if $(filter 1,$(QUICK)),,$(BIN)/python benchmarks/tokens.py --output docs/evidence/tokens_cost.json)
	$(STUDY) experiments/studies/tokens.yaml
evidence: $(TABLES) tokens ## all studies of world 1, hours on 2 cores; finished runs are kept

##@ GPU
ANY_PYTHON = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

gpu-check: ## what only a GPU can show, 8 minutes on one H100 (docs/gpu.md; ARGS=--list)
	@PYTHONPATH=.gpu-packages:$$PYTHONPATH $(ANY_PYTHON) -m benchmarks.gpu_check $(ARGS)

GPU_PACKAGES = jsonargparse docstring_parser typeshed_client webdataset braceexpand
gpu-packages: ## pure-Python packages in .gpu-packages, for a machine that has only PyTorch
	rm -rf .gpu-packages
	$(ANY_PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --only-binary=:all: \
	  --python-version 3.12 --platform any --target .gpu-packages --constraint constraints.txt $(GPU_PACKAGES)

gpu-page: ## write the results in docs/gpu/*.json to docs/gpu.md
	$(ANY_PYTHON) -m benchmarks.gpu_check.page
