# The everyday commands. They use the Python environment that is active.
.DEFAULT_GOAL := help
.PHONY: help run test lint docs clean

help:
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 8

run: ## the main job: pre-train, fine-tune and compare, a few minutes on a CPU
	heirloom quickstart

test: ## all tests that need no network, no GPU and little time
	pytest -n 2 --dist loadfile

lint: ## style and form, as CI checks them
	ruff check .
	ruff format --check .

docs: ## run every example in README.md and docs/
	pytest tests/test_docs.py

clean: ## remove what builds and tests leave; keeps runs/
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
