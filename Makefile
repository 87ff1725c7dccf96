# rlrecipes: every target sets up what it needs; `make` alone lists them.

RECIPES := text_generation translation question_answering dialogue

# One of the recipes, for the targets that take one
RECIPE ?=
# How big to run: a file of recipes/profiles/
PROFILE ?= tiny
# Hub id or local checkpoint folder of the base model
MODEL ?=
# A data file or folder of your own (JSONL, JSON, CSV, Parquet)
DATA ?=
# How its columns are called, as 'target=post_edit rejected=machine'
COLUMNS ?=
# Of everything random in training
SEED ?= 0
# Name of the run's folder under runs/
RUN ?=
# Settings of the profile to override, as 'ppo.learning_rate=1e-6 sft.max_steps=50'; for bench, its options
ARGS ?=
# 1 makes finished stages again, with all that stands on them
FORCE ?=
# How often `make kills` kills the road before it lets it through
KILLS ?= 50

# The Python that .venv is made with
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
RLRECIPES := $(VENV)/bin/python -m rlrecipes
OPTIONS = $(if $(COLUMNS),--columns $(COLUMNS)) --profile $(PROFILE) --seed $(SEED) $(if $(MODEL),--model '$(MODEL)') \
	$(if $(DATA),--data '$(DATA)') $(if $(RUN),--run '$(RUN)') $(if $(FORCE),--force)

.DEFAULT_GOAL := help
.PHONY: help setup demo test kills lint check list bench show sft reward ppo evaluate report clean $(RECIPES)

help: ## this list
	@echo "Targets:"
	@awk -F ':.*## ' '/^[$$a-z()A-Z]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST) | sed 's/$$(RECIPES)   /<recipe>     /'
	@echo "  (<recipe> is one of: $(RECIPES))"
	@echo "Variables:"
	@awk '/^# / { text = substr($$0, 3) } /^[A-Z]+ \?=/ { printf "  %-18s %s\n", $$1 ($$3 == "" ? "" : "=" $$3), text }' $(MAKEFILE_LIST)

setup: $(READY) ## .venv with the pinned requirements; done by every target that needs it

$(READY): requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

demo: $(READY) ## all recipes end to end on the embedded default, then one report
	@$(RLRECIPES) demo $(OPTIONS) $(ARGS)

$(RECIPES): $(READY) ## all stages of one recipe, then its report
	@$(RLRECIPES) run $@ $(OPTIONS) $(ARGS)

show: $(READY) ## RECIPE=…: its data, reward and metrics, without training anything
	@$(RLRECIPES) show $(RECIPE) $(OPTIONS) $(ARGS)

sft: $(READY) ## RECIPE=…: supervised fine-tuning on the demonstrations
	@$(RLRECIPES) $@ $(RECIPE) $(OPTIONS) $(ARGS)

reward: $(READY) ## RECIPE=…: the reward model; RECIPE=translation+dialogue: one for several
	@$(RLRECIPES) $@ $(RECIPE) $(OPTIONS) $(ARGS)

ppo: $(READY) ## RECIPE=…: PPO against the reward
	@$(RLRECIPES) $@ $(RECIPE) $(OPTIONS) $(ARGS)

evaluate: $(READY) ## RECIPE=…: base, SFT and PPO on the held-out split
	@$(RLRECIPES) $@ $(RECIPE) $(OPTIONS) $(ARGS)

report: $(READY) ## RECIPE=…: one page on what came out
	@$(RLRECIPES) $@ $(RECIPE) $(OPTIONS) $(ARGS)

list: $(READY) ## the recipes and profiles there are
	@$(RLRECIPES) list

bench: $(READY) ## PPO beside plain TRL: memory, time, equality; ARGS=--quick, or '--device cuda --model llama-8b'
	@$(VENV)/bin/python -m benchmarks $(ARGS)

test: $(READY) ## the tests, without network or GPU
	$(VENV)/bin/python -m pytest

kills: $(READY) ## the road under random kills (KILLS, SEED), compared byte for byte with an uninterrupted one
	PYTHONPATH=. $(VENV)/bin/python tests/kills.py --kills $(KILLS) --seed $(SEED)

lint: $(READY) ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

check: lint test ## lint, types and tests: what CI runs

clean: ## removes .venv and caches; runs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
