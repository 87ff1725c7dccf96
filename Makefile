# rlrecipes: every target sets up what it needs; `make` alone lists them.

# The table with the stages' names and help
TABLE := rlrecipes/run/stages.py
STAGES := $(shell awk -F '"' '/^    "[a-z_]+": (Stage|_algorithm)/ { print $$2 }' $(TABLE))
RECIPES := $(notdir $(patsubst %/,%,$(dir $(wildcard recipes/*/recipe.py))))

# `=` and not `?=`: what the environment exports for others (COLUMNS is the terminal's width) is not ours.

# One of the recipes, for the targets that take one
RECIPE =
# How big to run: a file of recipes/profiles/; without it, as RUN was begun, or tiny
PROFILE =
# Hub id or local checkpoint folder of the base model
MODEL =
# A data file or folder of your own (JSONL, JSON, CSV, Parquet), or hub: public data sets; hub:<id> for one
DATA =
# Which of its columns to read as what, as 'target=post_edit rejected=machine'
COLUMNS =
# Seed of everything random in training; without it, as RUN was begun, or 0
SEED =
# For a recipe: a run for each seed, <run>-seed<seed>, as '0 1 2', and then their mean and spread
SEEDS =
# For compare: names of runs, as 'mine other'; the others are set against the first
RUNS =
# For plan: GiB of a GPU, or its name, such as rtx4090; without it, the profile's card
CARD =
# Name of the run's folder under runs/; a run that is there keeps its settings, so RUN=mine alone goes on with it
RUN =
# Begin a new RUN as another was: the settings.toml that it left
SETTINGS =
# For a new RUN: the run whose SFT and reward model it takes as they are
FROM =
# Settings of the profile to override, as 'ppo.learning_rate=1e-6 sft.max_steps=50'; for bench, numbers and chat, options
ARGS =
# Which algorithms train a policy, as 'ppo rloo grpo dpo distill'; without it, as RUN was begun, or ppo
ALGORITHM =
# Where they begin: sft; base, without SFT; or a folder with an adapter of the model; without it, as RUN was begun, or sft
START =
# What evaluation compares, as 'base sft ppo runs/other'; without it, all policies of the run
POLICIES =
# 1 makes finished stages again, with all that stands on them
FORCE =
# For chat and export: the policy; without it, the last one trained
POLICY =
# For export: 1 also writes whole weights, with the adapter merged in
MERGED =
# For export and examine: the folder it goes to; without it, the run's own
TO =
# For export: org/name of the Hugging Face hub to upload to
PUSH =
# What starts several processes, as 'torchrun --nproc_per_node 2' or 'accelerate launch --num_processes 4'; without it, one
LAUNCH =
# For kills: how often to kill the run before it may finish
KILLS = 50

# The Python that .venv is made with
PYTHON = python3
VENV := .venv
READY := $(VENV)/.ready
# With it, `python -m` does not find the package that lies here
unexport PYTHONSAFEPATH
# A text as one word of the shell, whatever it holds
quoted = '$(subst ','\'',$(1))'
# A variable by its name, its value untouched by make: as one word, each word of it, and behind an option
one = $(if $(value $(1)),$(call quoted,$(value $(1))))
each = $(foreach part,$(value $(1)),$(call quoted,$(part)))
given = $(if $(value $(1)),$(2) $(call one,$(1)))
# Behind `--`, torchrun takes no --run for one of its own options
RLRECIPES := $(if $(value LAUNCH),PATH="$$PWD/$(VENV)/bin:$$PATH" $(call each,LAUNCH) -m -- rlrecipes,$(VENV)/bin/python -m rlrecipes)
# 1 says yes; nothing and 0 say no
yes = $(filter-out 0,$(value $(1)))
# ARGS stand first: --columns would take them for its own
options = $(call each,ARGS) $(if $(value ALGORITHM),$(call quoted,run.algorithms=$(value ALGORITHM))) $(if $(value START),$(call quoted,run.start=$(value START))) $(if $(value POLICIES),$(call quoted,evaluate.policies=$(value POLICIES))) \
	$(call given,COLUMNS,--columns) $(call given,PROFILE,--profile) $(call given,SEED,--seed) \
	$(call given,MODEL,--model) $(call given,DATA,--data) $(call given,RUN,--run) $(call given,SETTINGS,--settings) \
	$(call given,FROM,--from) $(if $(call yes,FORCE),--force) $(call given,POLICY,--policy) \
	$(if $(call yes,MERGED),--merged) $(call given,PUSH,--push) $(call given,TO,--to) $(call given,CARD,--card) \
	$(if $(value SEEDS),--seeds $(call each,SEEDS))
# A command that does not take a variable refuses it
others = $(options) $(call given,RUNS,--runs)

# Of the second words the one that is written most like the first
nearest = $(shell $(PYTHON) -c 'import difflib, sys; print(*difflib.get_close_matches(sys.argv[1], sys.argv[2:], 1, 0.5))' \
	$(call quoted,$(1)) $(2))
# Lines of more than 80 columns are broken between words, under the help's second column
WRAP := length($$0) > 80 { n = split(substr($$0, 22), words, " "); line = substr($$0, 1, 21); \
	for (i = 1; i <= n; i++) { if (length(line) + length(words[i]) > 80) { sub(/ $$/, "", line); print line; line = sprintf("%21s", "") } \
	line = line words[i] " " } sub(/ $$/, "", line); print line; next } { print }

# A misspelt variable would be taken for nothing said, so it is refused, whatever the target
VARIABLES := $(shell awk '/^[A-Z]+ =/ { print $$1 }' $(lastword $(MAKEFILE_LIST))) VENV READY
STRANGE := $(foreach name,$(filter-out $(VARIABLES) SHELL MAKE% .% -*,$(.VARIABLES)),$(if $(filter command,$(origin $(name))),$(name)))
ifneq ($(strip $(STRANGE)),)
NEAREST := $(call nearest,$(shell echo $(call quoted,$(firstword $(STRANGE))) | tr a-z A-Z),$(VARIABLES))
$(error there is no variable $(firstword $(STRANGE)); $(if $(NEAREST),did you mean $(NEAREST)?,there are $(VARIABLES)))
endif

.DEFAULT_GOAL := help
TARGETS := help setup demo test kills faults lint check list sweep bench gpu plan-bench time-bench numbers results compare-algorithms show plan chat export examine runs compare clean $(RECIPES) $(STAGES)
.PHONY: $(TARGETS)

help: ## this list
	@{ echo "Targets:"; \
	awk -F ':.*## ' '/^[$$a-z()A-Z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST) | sed 's/$$(RECIPES)   /<recipe>     /'; \
	awk -F '"' '/^    "[a-z_]+": (Stage|_algorithm)\(/ { name = $$2 } /[ (]help="/ { for (i = 1; i < NF; i++) if ($$i ~ /help=$$/) printf "  %-18s RECIPE=…: %s\n", name, $$(i + 1) }' $(TABLE); \
	echo "  (<recipe> is one of: $(RECIPES))"; \
	echo "Variables:"; \
	awk '/^# / { text = substr($$0, 3) } /^[A-Z]+ =/ { printf "  %-18s %s\n", $$1 ($$3 == "" ? "" : "=" $$3), text }' $(MAKEFILE_LIST); } | awk '$(WRAP)'

# A name that is no target, with the nearest that is one
.DEFAULT:
	@$(error there is no target $@; $(or $(foreach near,$(call nearest,$@,$(TARGETS)),did you mean $(near)?),`make` lists them))

setup: $(READY) ## make .venv with the pinned requirements; every target that needs it does so

$(READY): requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

demo: $(READY) ## all recipes end to end on their built-in data, then one report
	@$(RLRECIPES) demo $(others)

$(RECIPES): $(READY) ## all stages of one recipe, then its report
	@$(RLRECIPES) run $@ $(others) $(call given,RECIPE,--recipe)

show: $(READY) ## RECIPE=…: its data, reward and metrics, without training anything
	@$(RLRECIPES) show $(call one,RECIPE) $(others)

plan: $(READY) ## RECIPE=…: GPU memory of each stage from the model's config alone, the largest batches that fit CARD, and hours
	@$(RLRECIPES) plan $(call one,RECIPE) $(others)

$(STAGES): $(READY) # RECIPE=…; their help stands in the table
	@$(RLRECIPES) $@ $(call one,RECIPE) $(others)

chat: $(READY) ## RECIPE=…: talk to a run's policy; or one answer for each line of standard input
	@$(RLRECIPES) $@ $(call one,RECIPE) $(others)

export: $(READY) ## RECIPE=…: a run's policy as PEFT and Transformers load it, with a model card
	@$(RLRECIPES) $@ $(call one,RECIPE) $(others)

runs: $(READY) ## all runs: what they reached, and how far they are
	@$(RLRECIPES) runs $(others)

compare: $(READY) ## RUNS='…': runs side by side: settings, paired results, curves on the same axes
	@$(RLRECIPES) compare $(call each,RUNS) $(call given,RECIPE,--recipe) $(options)

examine: $(READY) ## RECIPE=…: what a run's reward model has learnt, as a page and a table; ARGS=reward.model=… for one from elsewhere
	@$(RLRECIPES) $@ $(call one,RECIPE) $(others)

sweep: $(READY) ## RECIPE=… FROM=…: W&B's trials of PPO's settings (recipes/<recipe>/sweep.yaml) over that run's SFT and reward model
	$(if $(and $(value RECIPE),$(value FROM)),,$(error sweep needs RECIPE=… and FROM=…, a finished run))
	@FROM=$(call one,FROM) PYTHON=$(VENV)/bin/python $(VENV)/bin/python -c 'import sys, wandb, yaml; \
	wandb.login(prompt=False) or sys.exit("error: a sweep needs the server of Weights & Biases; log in with `$(VENV)/bin/wandb login`"); \
	wandb.agent(wandb.sweep(yaml.safe_load(open(sys.argv[1])), project="rlrecipes"), project="rlrecipes")' $(call quoted,recipes/$(value RECIPE)/sweep.yaml)

list: $(READY) ## the recipes and profiles there are
	@$(RLRECIPES) list $(others)

bench: $(READY) ## PPO, RLOO, GRPO and DPO beside plain TRL: memory, time, equality; ARGS=--quick, or '--device cuda --model llama-8b'
	@$(VENV)/bin/python -m benchmarks $(call each,ARGS)

gpu: $(READY) ## what only a GPU can tell, each with its target; goes on where it was stopped; ARGS='--model qwen3-8b'
	@$(VENV)/bin/python -m benchmarks.gpu $(call each,ARGS)

plan-bench: $(READY) ## the plan beside measured peaks: twelve shapes on the CPU
	@$(VENV)/bin/python -m benchmarks.plan

time-bench: $(READY) ## planned seconds beside those taken in one thread; ARGS='--recipe dialogue --model .models/… sft.max_steps=30'
	@$(VENV)/bin/python -m benchmarks.times $(call each,ARGS)

results: $(READY) ## hours of runs, three seeds each, and what they came to (docs/results.md); goes on where it was stopped
	@$(VENV)/bin/python -m benchmarks.results $(call each,ARGS)

compare-algorithms: $(READY) ## all algorithms on the same SFT and reward models, at equal answers and at equal CPU time: hours; goes on where it was stopped
	@$(VENV)/bin/python -m benchmarks.algorithms $(call each,ARGS)

numbers: $(READY) ## fill the pages' blocks of figures from finished runs; blocks without runs stay as they are
	@$(VENV)/bin/python -m benchmarks.numbers $(call each,ARGS)

test: $(READY) ## the tests, without network or GPU
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal

kills: $(READY) ## kill a run, or one of its processes (LAUNCH), at random moments (KILLS, SEED) and compare it byte for byte
	PYTHONPATH=. $(VENV)/bin/python tests/kills.py --kills $(call one,KILLS) --seed $(or $(call one,SEED),0) $(call given,ALGORITHM,--algorithms) $(call given,LAUNCH,--launch)

faults: $(READY) ## files, options, settings, kills and disks that go wrong, by the hundred; goes on where it was stopped
	PYTHONPATH=.:tests $(VENV)/bin/python -m faults $(call each,ARGS)

lint: $(READY) ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

check: lint test ## lint, types and tests: what CI runs

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
