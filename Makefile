# Everything a newcomer types. Each verb sets up what it needs; `make` alone lists them.
SHELL := /bin/bash
unexport PYTHONDONTWRITEBYTECODE  # each start of an engine compiles 3,000 modules where it is set
PYTHON_VENV := .venv/bin/python
COMPILE := .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-build \
	--no-header --no-emit-find-links --no-emit-index-url

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev serve test check bench demo-models lock clean

help: ## list these verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## install into .venv (nothing to do if it is up to date)
	@scripts/setup.sh

setup-dev:
	@scripts/setup.sh --dev

serve: setup ## set up and serve; ARGS="--port 9000" passes options on
	@.venv/bin/atelier serve $(ARGS)

test: setup-dev ## run the tests; ARGS="-k images" passes options on
	@$(PYTHON_VENV) -m pytest $(ARGS)

check: setup-dev ## lint, formatting, types, and the floors
	@$(PYTHON_VENV) -m ruff check .
	@$(PYTHON_VENV) -m ruff format --check .
	@$(PYTHON_VENV) -m mypy
	@.venv/bin/lint-imports

bench: setup-dev ## the graph against plain `vllm serve`
	@$(PYTHON_VENV) -m benchmarks.graph_vs_vllm $(ARGS)

demo-models: setup ## train both demo checkpoints from nothing; ARGS="--scale 0.1" on a GPU
	@nice $(PYTHON_VENV) -m demo_models.training $(ARGS)

lock: setup ## resolve requirements/*.in anew into *.lock; ARGS="--upgrade" takes newer releases
	$(COMPILE) requirements/{base,sdnq,cpu}.in --excludes requirements/cpu-excludes.txt -o requirements/cpu.lock $(ARGS)
	$(COMPILE) requirements/{base,sdnq,gpu}.in --overrides requirements/gpu-overrides.txt --no-emit-package torch \
		-o requirements/gpu.lock $(ARGS)
	$(COMPILE) requirements/dev.in -c requirements/cpu.lock -o requirements/dev.lock $(ARGS)
	$(COMPILE) requirements/installer.in -o requirements/installer.lock $(ARGS)

clean: ## remove the environment and every cache
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
