# What a person types. `make test` is the whole check; `.ci/run` is `make lint test cross`.
# Everything these targets install goes into this folder's own ignored places: target/, fuzz/target/, .cache/, .venv/.
# Only `make cross` installs packages of the system, where it is root on Debian.

SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help run test lint cross bench peers fuzz goldens build model

# On a terminal cargo shows its progress; in a log it keeps quiet.
QUIET := $(shell [ -t 2 ] || echo -q)
export PUNA_HOME ?= $(CURDIR)/.cache/puna
PUNA := target/release/puna
QUESTION ?= What is a llama? Answer in one sentence.
FUZZ_SECONDS ?= 60
GOLDENS_PYTHON ?= .venv/bin/python

help: ## list the targets
	@echo "puna: LLaMA, whole, in Rust"
	@sed -n 's/^\([a-z]*\):[^#]*## /  make \1\t/p' Makefile | expand -t 18

run: model ## build, fetch the default model (94 MiB, once) and answer a question; QUESTION="..." asks another
	@printf '== puna run "%s"\n' "$(QUESTION)"
	@$(PUNA) run "$(QUESTION)"

build:
	@echo "== Build the command (release; a few minutes the first time)"
	@cargo build $(QUIET) --release --locked -p puna-cli

model: build
	@echo "== Fetch the default model into $(PUNA_HOME) (nothing to do where it is there already)"
	@$(PUNA) pull smollm2

test: ## the whole check: tests on the best ISA and the scalar one, fuzz targets, README's commands; OFFLINE=1: without the model
	@.ci/test $(if $(OFFLINE),--offline)

lint: ## format, clippy, documentation, words, sizes, paths, licences
	@.ci/lint

cross: ## the kernels' tests for aarch64, emulated (as root on Debian installs the tools); ALL=1: also slow ones, and checks the other crates
	@.ci/aarch64 $(if $(ALL),--all)

bench: model ## speed of the default model on this machine
	@$(PUNA) bench -m smollm2

peers: model ## speed beside llama.cpp, OpenVINO and Transformers, which it installs into .cache/peers; PEERS_ARGS="--help" says how
	@benches/peers/run $(PEERS_ARGS)

fuzz: ## fuzz each parser for FUZZ_SECONDS (60) seconds
	@fuzz/run $(FUZZ_SECONDS)

goldens: model ## make SmolLM2's goldens again with Transformers (installs torch into .venv: several GB)
	@if [ ! -x "$(GOLDENS_PYTHON)" ]; then \
	  echo "== Install torch and transformers into .venv"; \
	  python3 -m venv .venv && .venv/bin/pip install -q -r tools/goldens_requirements.txt; \
	fi
	@$(GOLDENS_PYTHON) tools/smollm2_goldens.py "$$(find "$(PUNA_HOME)" -name SmolLM2-135M-Instruct.Q4_1.gguf -print -quit)"
