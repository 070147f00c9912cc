# Commands for a fresh clone; `make help` lists them.

# The first supported Python on the PATH that can be executed (a shim may exist for a version that is not installed). The oldest
# comes first: all tests run on 3.11, those that need no torch on 3.12 and 3.13 too, and 3.14 is only resolved (docs/install.md).
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3.14 python3 python,$(shell $(name) -c \
	'import sys; (3, 11) <= sys.version_info[:2] <= (3, 14) and print(sys.executable)' 2>/dev/null)))
CHECK_PYTHON := import sys; (3, 11) <= sys.version_info[:2] <= (3, 14) or \
	sys.exit("Expected Python 3.11 to 3.14; found %s, %s. Name another one: make PYTHON=/path/to/python" \
	% (sys.executable, sys.version.split()[0]))
HADOLINT ?= hadolint
KUBERNETES_VALIDATE ?= kubernetes-validate
JOBS ?= 2

BIN := .venv/bin
INSTALLED := .venv/installed

# Without Python's bytecode cache every command takes three times as long to start.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install lint check test nightly docs docs-data pictures notebooks screenshots demo base lab wheels try-wheels lock format docker-lint clean
.DELETE_ON_ERROR:

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

install: $(INSTALLED) ## create .venv with all locked packages and this project (GPU=1: the GPU build of torch)

$(INSTALLED): $(wildcard requirements/*.txt) requirements/install.py pyproject.toml setup.py $(wildcard forecaster/model/recurrence/csrc/*.[ch])
	@test -n "$(PYTHON)" || { echo "Expected Python 3.11 to 3.14 on the PATH; found none. Name one: make PYTHON=/path/to/python"; exit 2; }
	@"$$(test -x $(BIN)/python && echo $(BIN)/python || echo "$(PYTHON)")" -c '$(CHECK_PYTHON)'
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/python requirements/install.py lock.txt $(if $(GPU),--gpu)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	@touch $@

lint: install ## formatting, lint, types, import contracts
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint ## lint and the unit tests: run it before every commit
	$(BIN)/pytest --numprocesses $(JOBS) --dist worksteal -m unit

test: install ## every test but the nightly ones
	$(BIN)/pytest --numprocesses $(JOBS) --dist worksteal -m "not nightly"

nightly: install ## the nightly tests: remaining combinations, every fail point, searches, many processes at once
	$(BIN)/pytest --numprocesses $(JOBS) --dist worksteal -m nightly

docs: docs-data build/docs-venv/installed ## build the documentation site into build/site, and check its links
	NO_MKDOCS_2_WARNING=1 build/docs-venv/bin/mkdocs build --quiet --strict
	$(BIN)/python -m docs.generator.site_check build/site

docs-data: install ## write the reference pages from the code, and gather the pages of the site
	$(BIN)/python -m docs.generator

notebooks: install build/docs-venv/installed ## write the notebooks of docs/notebooks as .ipynb into build/notebooks
	mkdir -p build/notebooks
	for script in docs/notebooks/*.py; do build/docs-venv/bin/jupytext --quiet --to ipynb \
		--output build/notebooks/"$$(basename "$$script" .py)".ipynb "$$script" || exit 1; done

screenshots: docs ## take the pictures of the site, light and dark, into docs/pictures (needs Chromium)
	$(BIN)/python -m docs.generator.screenshots

pictures: install ## draw the pictures of the guides by the code of their pages (PAGES="docs/guides/x.md": of these only)
	$(BIN)/python -m docs.generator.pictures $(PAGES)

# An environment of its own, because the site is built from the text of the code: nothing of the project is installed there.
build/docs-venv/installed: requirements/lock-docs.txt requirements/install.py
	test -x build/docs-venv/bin/python || $(BIN)/python -m venv build/docs-venv
	build/docs-venv/bin/python requirements/install.py lock-docs.txt
	build/docs-venv/bin/python -m pip check
	@touch $@

demo: install ## train, promote and serve a model on this machine
	$(BIN)/forecaster demo

base: install ## pretrain the shipped network again, by the command on its card, into build/base
	mkdir -p build
	sed -n 's|^forecaster pretrain --out base |$(BIN)/forecaster pretrain --out build/base |p' forecaster/bundle/pretrained/base/card.md | \
		grep . > build/base.sh || { echo "Expected a command on the card of the shipped bundle; found none."; exit 1; }
	sh -e build/base.sh

lab: install ## run the experiments of the laboratory with five seeds, and write their table and pictures
	$(BIN)/python benchmarks/laboratory.py

format: install ## format the code and apply automatic fixes
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheels: ## build the pure wheel and the one with the kernel into dist/ (needs a C compiler and auditwheel)
	"$(PYTHON)" requirements/build_wheels.py dist

try-wheels: install ## install the wheels into new environments of every Python found, without torch, and test them there
	$(BIN)/python requirements/try_wheels.py

lock: ## update the lock files (needs uv)
	"$(PYTHON)" requirements/lock.py

docker-lint: ## check the Dockerfile with hadolint, the manifests with kubernetes-validate, and the compose files if Docker is installed
	$(HADOLINT) docker/Dockerfile
	$(KUBERNETES_VALIDATE) --strict $(filter-out %/hospital.yaml,$(wildcard docker/kubernetes/*.yaml))
	if docker compose version >/dev/null 2>&1; then \
		docker compose --file docker/compose.yaml config --quiet && docker compose --file docker/stack/compose.yaml config --quiet; fi

clean: ## remove build products and caches; .venv and .forecaster are kept
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
