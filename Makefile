.DEFAULT_GOAL := help
.PHONY: help setup demo test test-full check testbed docs wheel loc

PY := .venv/bin/python

help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Create .venv and install everything (quick when done)
	@scripts/setup

demo: setup ## Two real hosts on this machine, a real model served over them
	@$(PY) scripts/demo

test: setup ## Unit, contract and one round on a testbed of three hosts
	@scripts/test -m 'not full and not gpu'

test-full: setup ## The long matrices too; writes their tables into docs/
	@scripts/test -m 'not gpu'

check: setup ## Lint, format, types, import rules, function size
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PY) scripts/loc --check
	$(PY) scripts/docs --check

testbed: setup ## Three real hosts on this machine, left running
	scripts/testbed up --hosts 3

docs: setup ## Write the generated pages of docs/ again
	$(PY) scripts/docs

wheel: setup ## Build the wheel and prove it in a fresh environment
	$(PY) -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(PY) -m pytest -m full tests/test_wheel.py

loc: setup ## Lines of code, function sizes
	@$(PY) scripts/loc
